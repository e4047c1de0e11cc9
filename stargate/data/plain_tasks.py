"""Guesses which tasks need no clarifying question, from their wording. English only.

A request is plain when it asks for a fact ("What is the capital of ...", "How many ...", "Why does
...") and neither speaks of the person who asks ("my", "I") nor wants a judgement ("best",
"recommend", "tips"). Wrong guesses are cheap: the check only lists them.
"""

import re

from stargate.data.text import QUOTES

# Words after which the answer depends on who asks.
_PERSONAL = re.compile(
    r"\b(i|i'm|i'd|i've|i'll|me|my|mine|myself|we|our|us)\b"
    r"|\b(best|better|good|perfect|ideal|optimal|favou?rite|easy|cheap(est)?|should|recommend\w*"
    r"|suggest\w*|advi[cs]e|tips?|ideas?|help|plan|strateg\w+|ways?|methods?|steps?|guide|improve"
    r"|worth|fun|interesting|local|near(by)?|prepare|learn)\b",
    re.I,
)
_THING = (
    r"(capital|currency|definition|meaning|difference|distance|population|area|height|age|year|"
    r"history|purpose|name|number|formula|value|melting|boiling|temperature|speed|weight|highest|"
    r"largest|biggest|tallest|longest|oldest|smallest|deepest|chemical|current|latest|"
    r"(side )?effects?|symptoms?|causes?|ingredients|main|basic|stages|elements|features|rules)"
)
_FACT = re.compile(
    rf"(what|which)('s| is| are| was| were) (the |some |all the )*([\w-]+ )?{_THING}s?\b"
    r"|(at |in |on )?(what|which) (year|day|temperature|country|countries|states?|city|language)\b"
    r"|what (is|are|was|were) (an? |the )?[\w'-]+( [\w'-]+)?[.?!]*$"
    r"|what does .+ (mean|look like|stand for)"
    r"|how (many|old|long|far|tall|high|deep|big|fast|hot|cold|heavy)\b"
    r"|how much (is|are|does|do|did|was)\b"
    r"|how (does|did|is|are|was|were) "
    r"|(who|whose|when|where|why)('s| (is|are|was|were|did|do|does|wrote|won|invented))\b"
    r"|(is|are|was|were|did|does|do|can|has|have) (?!you\b|there a (way|better)\b)"
    r"|(define|translate|summari[sz]e|describe|explain|list|name)\b"
    r"|(can|could) you (please )?(explain|define|translate)\b"
    r"|tell me (about|the)\b"
    r"|how do you (say|spell|pronounce|calculate|convert)\b",
    re.I,
)


def asks_for_a_fact(text: str) -> bool:
    """Whether a task reads as if any answer would fit everybody."""
    text = " ".join(text.translate(QUOTES).split())
    spoken_of = re.sub(r"^tell me\b", "", text, flags=re.I)
    return _FACT.match(text) is not None and _PERSONAL.search(spoken_of) is None

"""What a model says aloud, without what it thinks before.

    "<think>She likes tea.</think>Dear Ann"  -> "Dear Ann"
    "She likes tea.</think>Dear Ann"         -> "Dear Ann"   the prompt opened the block
    "<think>She likes"                       -> None         cut off before a word was said
    "Dear Ann<|im_end|>"                     -> "Dear Ann"   a server that shows the end of turn

Servers with a reasoning parser part the two themselves; others, and engines, send both in one text.
"""

import json
import re

# (opening, closing) marks of model families, as in vLLM's reasoning parsers: Qwen, DeepSeek and
# most others; Seed, MiniMax; Mistral; Cohere; Kimi; Gemma 4; gpt-oss, whose answer has a channel.
_TAG = r"(?:\w{1,9}:)?(?:think|thinking|thought|reasoning)"
_MARKS = (
    (rf"<{_TAG}>", rf"</{_TAG}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"\u25c1think\u25b7", r"\u25c1/think\u25b7"),
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>"),
    (r"<\|channel>", r"<channel\|>"),
    (r"<\|channel\|>(?:analysis|commentary)<\|message\|>", r"<\|channel\|>final<\|message\|>"),
)
_MARK = re.compile(
    f"(?P<open>{'|'.join(a for a, _ in _MARKS)})|(?P<close>{'|'.join(b for _, b in _MARKS)})"
)
# <|im_end|>, <|eot_id|>, DeepSeek's full-width bars, </s>, <eos>, <end_of_turn>, <turn|>.
_END = re.compile(r"(<[|\uff5c][^<>\s]{1,40}[|\uff5c]>|</s>|<eos>|<end_of_turn>|<turn\|>)\Z")


def spoken_part(text: str) -> str | None:
    """A text without its reasoning and without the marks that end a turn; None if it ends within
    the reasoning. A text without either comes back as it is, and so does a JSON value.
    """
    kept: list[str] = []
    start, opened = 0, None
    for mark in _MARK.finditer(text):
        if mark.lastgroup == "open":
            opened = mark.start() if opened is None else opened
            continue
        if opened is None:
            kept.clear()  # the prompt opened it, or a thought had another one in it
        else:
            kept.append(text[start:opened])
        start, opened = mark.end(), None
    if (start or opened is not None) and _is_json(text):
        return text  # its strings speak of marks
    # Within a line an opening mark alone is a word of the text.
    if opened is not None and not text[text.rfind("\n", 0, opened) + 1 : opened].strip():
        return None
    said = "".join((*kept, text[start:])).strip() if start else text
    while (end := _END.search(said.rstrip())) is not None:
        said = said[: end.start()].rstrip()
    return said


def knows_thoughts(text: str) -> bool:
    """Whether a chat template, or the texts of a tokenizer's added tokens, have such marks."""
    return _MARK.search(text) is not None


def speech_start(text: str, opened: bool = False) -> int | None:
    """Where in a sampled text, special tokens written out, its last thought has ended; 0 if there
    is none, None if the text ends within one. `opened`: the prompt has begun a thought.
    """
    start = 0
    for mark in _MARK.finditer(text):
        opened = mark.lastgroup == "open"
        start = start if opened else mark.end()
    return None if opened else start


def open_thought(prompt: str) -> str | None:
    """The mark that ends the thought in which a prompt ends; None if it ends in none."""
    marks = list(_MARK.finditer(prompt))
    if not marks or marks[-1].lastgroup != "open":
        return None
    mark = marks[-1][0]
    return f"{mark[0]}/{mark[1:]}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True

"""Grounding: only facts that answer the question are told, each once, and nothing is invented."""

import asyncio
from collections.abc import Sequence

import pytest

from stargate.config.roleplayer import FactsGrounding, PersonaGrounding
from stargate.config.run import EngineRoleplayerConfig
from stargate.errors import DataError, RecordDropped
from stargate.rollout.question_text import questions_in
from stargate.rollout.roleplayer import (
    EngineCall,
    build_roleplayer,
    invented_words,
    kept_share,
    require_facts,
)
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Answer, Pair, StopReason
from tests.fakes.keyword_match import PAIR, KeywordMatch
from tests.fakes.scripted import ScriptedGenerate, byte_chat, make_pair, make_turn


def answer(
    question: str,
    said: str = "I own a brown dog.",
    turns: Sequence[object] = (),
    end: bool = True,
    config: EngineRoleplayerConfig | None = None,
    prompts: str = "small",
    **facts: object,
) -> tuple[Answer, ScriptedGenerate]:
    generate = ScriptedGenerate(lambda request: said, end=end)
    config = config or EngineRoleplayerConfig(grounding=FactsGrounding(**facts))  # type: ignore[arg-type]
    match = KeywordMatch() if isinstance(config.grounding, FactsGrounding) else None
    views = Views(load_prompts(prompts))
    roleplay = build_roleplayer(config, EngineCall(generate, byte_chat(), config), views, match, 0)
    coroutine = roleplay(PAIR, list(turns), question, session="d", seed=5)  # type: ignore[arg-type]
    return asyncio.run(coroutine), generate


def test_the_answering_fact_is_voiced_and_recorded() -> None:
    got, generate = answer("Do you have a brown animal?")
    assert got.elicited == (1,)
    assert (got.text, got.stop) == ("I own a brown dog.", StopReason.STOP)
    [request] = generate.requests
    assert request.sampling.seed == 5
    prompt = "".join(chr(i) for i in request.prompt_ids)
    assert "I own a brown dog." in prompt
    assert "green tea" not in prompt  # facts that were not asked for stay hidden
    assert "About p." not in prompt  # and so does the profile


def test_no_fitting_fact_means_no_preference_and_no_model_call() -> None:
    got, generate = answer("Which colour?")
    assert got == Answer("I have no preference about that.", (), StopReason.FIXED)
    assert generate.requests == []


def test_only_the_nearest_fact_answers_and_is_told_once() -> None:
    """The next nearest in its place would reward questions that ask for nothing in particular."""
    turn = make_turn(elicited=(0,))
    got, generate = answer("Some tea perhaps?", turns=[turn])
    assert got == Answer("I told you that already.", (), StopReason.FIXED)
    assert generate.requests == []
    got, _ = answer("Do you have milk in your tea?", voice="fact", turns=[turn])
    assert got == Answer("I hate tea with milk.", (), StopReason.FIXED, (2,))


def test_the_same_question_gets_what_it_got_before() -> None:
    """What had no answer has none again: it was not told already."""
    told = make_turn("Do you like tea?", "I love green tea.", elicited=(0,))
    for question in ("Do you like tea?", "So do you like TEA?", "Tell me: do you like tea?"):
        assert answer(question, turns=[told])[0].text == "I told you that already."
    unknown = make_turn("Which colour?", "I have no preference about that.")
    assert answer("Which colour?", turns=[unknown])[0].text == "I have no preference about that."


def test_a_statement_elicits_nothing() -> None:
    got, _ = answer("You should get a brown dog.")
    assert got.elicited == ()


def test_of_several_questions_the_first_count() -> None:
    assert answer("A brown one? And tea?", voice="fact")[0].elicited == (1,)
    assert answer("Which colour? And tea?", voice="fact")[0].elicited == ()
    two = {"voice": "fact", "questions_per_turn": 2}
    got, _ = answer("A brown one? And tea? Or milk?", **two)
    assert (got.text, got.elicited) == ("I own a brown dog. I love green tea.", (1, 0))
    assert answer("Tea? Green tea?", **two)[0].elicited == (0,)
    assert answer("Which colour? And tea?", **two)[0].elicited == (0,)
    told = make_turn(elicited=(0,))
    assert answer("Tea? A brown dog?", turns=[told], **two)[0].elicited == (1,)
    assert answer("Tea? Which colour?", turns=[told], **two)[0].text == "I told you that already."


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("I own a cat.", True),  # does not state the fact
        ("I own a brown dog and a yacht.", True),  # invents
        ("I own a brown dog.", False),  # was cut off
        ("", True),
    ],
)
def test_words_that_do_not_hold_are_replaced_by_the_fact(said: str, end: bool) -> None:
    got, _ = answer("A brown one?", said=said, end=end)
    assert got == Answer("I own a brown dog.", (), StopReason.FIXED, (1,))


def test_voice_fact_makes_no_model_call() -> None:
    got, generate = answer("A brown one?", voice="fact")
    assert got.text == "I own a brown dog."
    assert generate.requests == []


def test_questions_are_found() -> None:
    assert questions_in("Nice. What is your budget? Thanks!") == ["What is your budget?"]
    assert questions_in("Tell me about your family.") == ["Tell me about your family."]
    assert questions_in("I would buy the red one.") == []


def test_invented_words_are_found_by_stem() -> None:
    assert invented_words("I walked breads", ["Walking bread."]) == set()
    assert invented_words("I need a car, so I live on 90", ["I live on 90.", "Need?"]) == {"car"}


def test_what_is_kept_of_a_fact_is_a_share_of_its_telling_words() -> None:
    fact = "I get to town by boda-boda or on foot."  # get, town, boda, boda, foot
    assert kept_share("I can take boda-bodas, so I can take them.", fact) == 0.25
    assert kept_share("I get to town on foot or by boda-boda.", fact) == 1.0


def test_persona_grounding_shows_the_whole_persona_and_elicits_nothing() -> None:
    config = EngineRoleplayerConfig(grounding=PersonaGrounding())
    got, generate = answer("More?", " Sure. ", [make_turn()], config=config, prompts="paper")
    assert (got.text, got.elicited) == ("Sure.", ())
    assert "About p." in "".join(chr(i) for i in generate.requests[0].prompt_ids)


def test_an_empty_answer_drops_the_dialogue() -> None:
    with pytest.raises(RecordDropped, match="empty_answer"):
        answer("More?", "  ", config=EngineRoleplayerConfig(), prompts="paper")


def test_what_the_model_thinks_is_not_said() -> None:
    config = EngineRoleplayerConfig()
    got, _ = answer("More?", "<think>She asks.</think>\nSure.", config=config, prompts="paper")
    assert got.text == "Sure."
    with pytest.raises(RecordDropped, match="empty_answer"):
        answer("More?", "<think>She asks", config=config, prompts="paper", end=False)


def test_a_persona_without_facts_is_named() -> None:
    pairs: list[Pair] = [PAIR, make_pair(persona="zoe", facts=())]
    with pytest.raises(DataError, match="'zoe' has no facts"):
        require_facts(pairs)

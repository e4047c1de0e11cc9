"""Users who differ: in style, and in patience. What they tell is recorded as it stands."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from stargate.config.roleplayer import FactsGrounding, Style
from stargate.config.run import EngineRoleplayerConfig, SamplingConfig
from stargate.errors import ConfigError
from stargate.evaluation.elicitation import observe_elicitation, turn_facts
from stargate.records.schemas import dialogue_from_row, dialogue_row
from stargate.rollout.deadline import TurnWatch
from stargate.rollout.dialogue import play
from stargate.rollout.questioner import Questioner
from stargate.rollout.roleplayer import EngineCall, build_roleplayer
from stargate.rollout.users import style_of, telegram
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Answer, Dialogue, DialoguePlan, Pair, StopReason, Turn, told_facts
from tests.fakes.keyword_match import PAIR, KeywordMatch
from tests.fakes.scripted import ScriptedGenerate, byte_chat, make_pair, make_turn

VIEWS = Views(load_prompts("paper"))
TEA = make_turn("Tea?", "I love green tea.", elicited=(0,))
DOG = make_turn("A brown dog?", "I own a brown dog.", elicited=(1,))


def answer(
    question: str, turns: Sequence[Turn] = (), seed: int = 0, voice: str = "fact", **config: object
) -> tuple[Answer, ScriptedGenerate]:
    generate = ScriptedGenerate(lambda request: "I own a brown dog.")
    config = {"grounding": FactsGrounding.model_validate({"voice": voice}), **config}
    made = EngineRoleplayerConfig.model_validate(config)
    call = EngineCall(generate, byte_chat(), made)
    roleplay = build_roleplayer(made, call, VIEWS, KeywordMatch(), seed=0)
    return asyncio.run(roleplay(PAIR, turns, question, session="d", seed=seed)), generate


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (
            "I cannot stand onions, but I would eat pinto beans every day.",
            "Cannot stand onions, but would eat pinto beans every day.",
        ),
        (
            "My right knee was replaced six weeks ago, and I walk with a cane.",
            "Right knee replaced six weeks ago, and walk with cane.",
        ),
        ("I have no car and do not cycle.", "No car and not cycle."),
        ("We have 900 euros for treats.", "900 euros for treats."),
        ("I do.", "Do."),
        ("I am the", "I am the"),
    ],
)
def test_a_telegram_has_every_telling_word(fact: str, expected: str) -> None:
    assert telegram(fact) == expected


def test_a_terse_user_tells_the_fact_in_few_words_without_a_call() -> None:
    got, generate = answer("A brown one?", voice="model", style="terse")
    assert got == Answer("Own brown dog.", (), StopReason.FIXED, (1,))
    assert generate.requests == []
    assert answer("Which colour?", style="terse")[0].text == "I have no preference about that."


def test_an_evasive_user_dodges_a_third_by_the_seed() -> None:
    said = [answer("A brown one?", seed=seed, style="evasive")[0] for seed in range(300)]
    dodged = Answer("I would rather not say.", (), StopReason.FIXED)
    told = Answer("I own a brown dog.", (), StopReason.FIXED, (1,))
    assert said[:6] == [told, dodged, told, dodged, dodged, told]
    assert set(said) == {dodged, told}
    assert 80 <= said.count(dodged) <= 120
    assert said[:9] == [answer("A brown one?", seed=s, style="evasive")[0] for s in range(9)]


def test_a_chatty_user_adds_what_tells_nothing() -> None:
    talk = VIEWS.users.small_talk
    assert talk[0] == "That is a nice thing to ask."
    said = [answer("A brown one?", seed=seed, style="chatty")[0] for seed in range(30)]
    assert {one.text for one in said} == {f"I own a brown dog. {one}" for one in talk}
    assert {one.elicited for one in said} == {(1,)}
    got, generate = answer("A brown one?", voice="model", style="chatty")
    assert (len(generate.requests), got.token_ids, got.stop) == (1, (), StopReason.FIXED)
    assert answer("Which colour?", style="chatty")[0].text.startswith("I have no preference about")


def test_a_contradicting_user_takes_back_what_it_told() -> None:
    said = [answer("A brown one?", [TEA], seed, style="contradicting")[0] for seed in range(100)]
    plain = Answer("I own a brown dog.", (), StopReason.FIXED, (1,))
    text = 'What I said before is not true ("I love green tea."). I own a brown dog.'
    back = Answer(text, (), StopReason.FIXED, (1,), retracted=(0,))
    assert set(said) == {plain, back}
    assert 35 <= said.count(back) <= 65
    # Nothing was told yet: there is nothing to take back.
    first = [answer("A brown one?", [], seed, style="contradicting")[0] for seed in range(20)]
    assert set(first) == {plain}


def test_what_was_taken_back_is_told_again_and_then_holds() -> None:
    taken = make_turn("Any colour?", "No.", retracted=(0,))
    assert answer("Tea?", [TEA])[0].text == "I told you that already."
    assert answer("Tea?", [TEA, taken])[0].elicited == (0,)
    again = [TEA, taken, TEA]
    said = [answer("Some tea?", again, seed, style="contradicting")[0] for seed in range(20)]
    assert {one.text for one in said} == {"I told you that already."}


def test_facts_that_were_taken_back_are_not_elicited() -> None:
    taken = make_turn("Why?", "What I said before is not true.", retracted=(0,))
    assert told_facts([TEA, DOG, taken]) == (1,)
    assert told_facts([TEA, DOG, taken, TEA]) == (1, 0)
    pair = Pair(PAIR.task, PAIR.persona, "gold", gold_facts=(0, 1))
    turns = (TEA, DOG, make_turn("Why?", "I love green tea, not true.", retracted=(0,)))
    dialogue = Dialogue("d", pair.id, 0, 3, 0, 0, turns)
    assert dialogue_from_row(dialogue_row(pair, dialogue)) == dialogue
    assert dialogue_row(pair, dialogue)["elicited"] == (1,)
    found = observe_elicitation([(pair, dialogue)], len)
    [facts], [coverage] = found["facts_per_dialogue"], found["fact_coverage"]
    assert (facts.value, coverage.value) == (1.0, 0.5)
    assert [one.value for one in found["recited_facts_per_dialogue"]] == [0.0]  # it was told before
    told_again = Dialogue("d", pair.id, 0, 4, 0, 0, (*turns, TEA))
    assert [one.elicited for one in turn_facts(pair, told_again)] == [(0,), (1,), (), (0,)]


def test_of_several_styles_each_pair_has_one() -> None:
    styles: tuple[Style, ...] = ("plain", "terse", "chatty")
    pairs = [make_pair(persona=f"p{i}") for i in range(300)]
    drawn = [style_of(pair, styles, 0) for pair in pairs]
    assert drawn[:4] == ["plain", "plain", "plain", "terse"]
    assert min(Counter(drawn)[style] for style in styles) > 70
    assert drawn == [style_of(pair, styles, 0) for pair in pairs]
    assert drawn != [style_of(pair, styles, 1) for pair in pairs]


def test_a_model_that_plays_the_persona_is_told_its_style() -> None:
    for style in ("terse", "evasive", "chatty", "contradicting"):
        told = getattr(VIEWS.users, style)
        first, *_ = VIEWS.roleplayer(PAIR, [TEA], "More?", style)
        assert first.text.endswith(f"The assistant asks: Tea?\n\n{told}")
        _, generate = answer("More?", grounding={"type": "persona"}, style=[style])
        prompt = "".join(chr(i) for i in generate.requests[0].prompt_ids)
        assert f"More?\n\n{told}" in prompt
    _, generate = answer("More?", grounding={"type": "persona"})
    assert "few words" not in "".join(chr(i) for i in generate.requests[0].prompt_ids)


def test_a_set_without_texts_of_users_is_named() -> None:
    bare = load_prompts("paper").model_copy(update={"users": None})
    with pytest.raises(ConfigError, match="no texts for roleplayer"):
        Views(bare).roleplayer(PAIR, [], "More?", "terse")


@pytest.mark.parametrize("grounding", [{"type": "persona"}, {"type": "facts", "voice": "fact"}])
@pytest.mark.parametrize(("patience", "num_turns"), [(1, 2), (2, 3), (3, 4), (4, 4), (None, 4)])
def test_patience_ends_the_dialogue(
    grounding: object, patience: int | None, num_turns: int
) -> None:
    """After so many turns the next question is one too many."""
    config = EngineRoleplayerConfig.model_validate({"grounding": grounding, "patience": patience})
    said = ScriptedGenerate(lambda request: "Sure.")
    call = EngineCall(said, byte_chat(), config)
    roleplay = build_roleplayer(config, call, VIEWS, KeywordMatch(), seed=0)
    ask = Questioner(
        ScriptedGenerate(lambda request: "q?"), VIEWS, byte_chat(), SamplingConfig(), 4096
    )
    plan = DialoguePlan("t0/t:p/0", PAIR, 0, 4, seed=7)
    dialogue = asyncio.run(play(plan, ask, roleplay, TurnWatch(60.0)))
    assert (len(dialogue.turns), dialogue.num_turns) == (num_turns, 4)
    ended = patience is not None and patience < 4
    assert (dialogue.turns[-1].answer == "Just answer, please.") == ended
    assert all(turn.answer != "Just answer, please." for turn in dialogue.turns[:-1])

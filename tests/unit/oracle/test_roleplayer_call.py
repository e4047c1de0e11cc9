"""A Roleplayer behind an API: what is sent, what is said, what is paid, what is dropped."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stargate.config.files import load_config
from stargate.config.roleplayer import ApiRoleplayerConfig, ApiSamplingConfig, FactsGrounding
from stargate.config.run import DegenerationConfig, EngineRoleplayerConfig, RunConfig
from stargate.errors import (
    BudgetError,
    ConfigError,
    DataError,
    DivergenceError,
    RecordDropped,
)
from stargate.launch.summary import cost_lines
from stargate.monitoring.journal import COST_FILE, RunJournal
from stargate.monitoring.tracking import Trackers
from stargate.oracle.roleplayer_call import ApiCall, open_roleplayer_oracle, roleplayer_cost
from stargate.records.counters import generated_tokens
from stargate.records.history import RunHistory, RunTotals
from stargate.records.schemas import dialogue_from_row, dialogue_row
from stargate.records.store import RunStore
from stargate.remote.scan import is_record
from stargate.rollout.degeneration import DegenerationWatch
from stargate.rollout.roleplayer import build_roleplayer
from stargate.text.prompts import load_prompts
from stargate.text.views import Views
from stargate.types import Answer, Dialogue, StopReason, Turn
from tests.fakes.keyword_match import PAIR, KeywordMatch
from tests.fakes.misbehaving_server import Behave, Behaviour, MisbehavingServer, Raw, completion
from tests.fakes.oracle_cases import PRICED, QUICK
from tests.fakes.scripted import make_pair, make_turn


def api(url: str, **fields: Any) -> ApiRoleplayerConfig:
    oracle = {"type": "openai", "base_url": url, "model": "m", "api_key_env": None}
    oracle |= {"retry": QUICK.model_dump(), "cost": PRICED.model_dump()} | fields.pop("oracle", {})
    return ApiRoleplayerConfig(type="api", oracle=oracle, **fields)  # type: ignore[arg-type]


def say(body: bytes) -> Behave:
    return lambda seen: Raw(200, body)


def ask(
    config: ApiRoleplayerConfig,
    folder: Path,
    questions: Sequence[str] = ("More?",),
    turns: Sequence[Turn] = (),
    at_once: bool = False,
) -> list[Answer]:
    """Answers to questions of a dialogue with PAIR, each after the same turns."""

    async def run() -> list[Answer]:
        oracle = open_roleplayer_oracle(config, folder)
        try:
            match = KeywordMatch() if isinstance(config.grounding, FactsGrounding) else None
            views = Views(load_prompts("paper" if match is None else "small"))
            roleplay = build_roleplayer(config, ApiCall(oracle, config), views, match, 0)
            one = partial(roleplay, PAIR, turns, session="d", seed=5)
            if at_once:
                return list(await asyncio.gather(*map(one, questions)))
            return [await one(question) for question in questions]
        finally:
            await oracle.aclose()

    return asyncio.run(run())


def test_what_is_sent_and_said(tmp_path: Path) -> None:
    answer = completion("<think>Who asks?</think>\n Sure. ")
    with MisbehavingServer(say(answer)) as server:
        config = api(server.url, sampling=ApiSamplingConfig(temperature=0.7, max_new_tokens=33))
        turn = replace(make_turn("Tea?", "Yes."), answer_ids=None)
        [got] = ask(config, tmp_path, turns=[turn])
        assert got == Answer("Sure.", None, StopReason.STOP)
        [seen] = server.seen
    assert {key: seen.body[key] for key in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "m",
        "temperature": 0.7,
        "max_tokens": 33,
        "seed": 5,
    }
    assert "top_p" not in seen.body
    *first, answered, asked = seen.body["messages"]
    assert "About p." in first[-1]["content"]  # the persona
    assert answered == {"role": "assistant", "content": "Yes."}
    assert asked == {"role": "user", "content": "More?"}


def test_null_and_unseeded_leave_parameters_out(tmp_path: Path) -> None:
    with MisbehavingServer() as server:
        sampling = ApiSamplingConfig(temperature=None)
        oracle = {"max_tokens_parameter": "max_completion_tokens"}
        ask(api(server.url, sampling=sampling, seeded=False, oracle=oracle), tmp_path)
        [seen] = server.seen
    assert not seen.body.keys() & {"temperature", "top_p", "seed", "max_tokens"}
    assert seen.body["max_completion_tokens"] == 700


def test_facts_ground_an_api_as_they_ground_an_engine(tmp_path: Path) -> None:
    said = {"fine": "I own a brown dog.", "drifts": "I own a yacht.", "thinks": "<think>She"}
    for name, text in said.items():
        with MisbehavingServer(say(completion(text))) as server:
            config = api(server.url, grounding=FactsGrounding())
            got, unknown = ask(config, tmp_path / name, ["A brown one?", "Which colour?"])
            assert len(server.seen) == 1  # what no fact answers is no call
            prompt = server.seen[0].text
        assert "I own a brown dog." in prompt and "About p." not in prompt
        assert unknown == Answer("I have no preference about that.", (), StopReason.FIXED)
        assert (got.text, got.elicited) == ("I own a brown dog.", (1,))
        sampled = name == "fine"
        assert got.token_ids == (None if sampled else ())
        assert got.stop is (StopReason.STOP if sampled else StopReason.FIXED)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion("no", refusal="I won't"), "answer_refused"),
        (completion("x", "content_filter"), "answer_filtered"),
        (completion("x", "odd"), "answer_malformed"),
        (completion(""), "empty_answer"),
        (completion("", "length"), "empty_answer"),
        (completion("<think>Who", "length"), "empty_answer"),
        (b'{"error": {"message": "oops"}}', "answer_failed"),
    ],
)
def test_a_call_that_fails_for_good_drops_the_dialogue(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    with (
        MisbehavingServer(say(body)) as server,
        pytest.raises(RecordDropped) as caught,
    ):
        ask(api(server.url), tmp_path)
    assert caught.value.reason == reason


def test_a_prompt_too_long_has_the_reason_that_an_engine_gives_it(tmp_path: Path) -> None:
    error = Raw(400, b'{"error": {"message": "x", "code": "context_length_exceeded"}}')
    with (
        MisbehavingServer(lambda seen: error) as server,
        pytest.raises(RecordDropped, match="d answer 1") as caught,
    ):
        ask(api(server.url), tmp_path)
    assert caught.value.reason == "prompt_too_long"


def test_a_user_may_be_sorry_and_may_be_cut_off(tmp_path: Path) -> None:
    sorry = "I'm afraid I can't eat nuts."
    with MisbehavingServer(say(completion(sorry))) as server:
        assert ask(api(server.url), tmp_path)[0].text == sorry
    with MisbehavingServer(say(completion("I like", "length"))) as server:
        assert ask(api(server.url), tmp_path) == [Answer("I like", None, StopReason.LENGTH)]


def test_each_question_is_asked_anew_unless_the_cache_is_on(tmp_path: Path) -> None:
    for cache, calls in ((False, 4), (True, 1)):
        with MisbehavingServer() as server:
            for _ in range(2):
                config, folder = api(server.url, cache=cache), tmp_path / str(cache)
                ask(config, folder, ["More?", "More?"], at_once=True)
            assert len(server.seen) == calls
        cost = roleplayer_cost(tmp_path / str(cache))
        assert cost is not None
        assert (cost["calls"], round(cost["money"], 9)) == (calls, calls * 0.00014)


def test_the_money_of_a_run_is_that_of_all_its_sittings(tmp_path: Path) -> None:
    with MisbehavingServer() as server:
        # A call costs 140 millionths, and could cost 1,000 or so.
        config = api(server.url, oracle={"cost": PRICED.model_dump() | {"max_cost": 0.005}})
        for _ in range(2):
            with pytest.raises(BudgetError, match=r"cost\.max_cost = 0\.005"):
                ask(config, tmp_path, ["More?"] * 100)
        calls = len(server.seen)
    cost = roleplayer_cost(tmp_path)
    assert cost is not None and cost["calls"] == calls and 0.003 < cost["money"] <= 0.005
    assert cost_lines(cost) == [
        f"Roleplayer's API: {calls} calls, {100 * calls} + {20 * calls} tokens, "
        f"cost {0.00014 * calls:.6g}"
    ]


def test_a_run_that_moves_takes_its_meter_along(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with MisbehavingServer() as server:
        config = api(server.url, oracle={"cost": PRICED.model_dump() | {"max_cost": 0.005}})
        with pytest.raises(BudgetError):
            ask(config, here, ["More?"] * 100)
        before = roleplayer_cost(here)
        there.mkdir()
        (there / COST_FILE).write_text(json.dumps(before))
        assert is_record(COST_FILE)
        with pytest.raises(BudgetError, match=r"cost\.max_cost = 0\.005"):
            ask(config, there)
    assert before is not None and roleplayer_cost(there) == before
    (tmp_path / COST_FILE).write_text('{"calls": "many"}')
    with pytest.raises(DataError, match=r"roleplayer_cost\.json: not what a run writes: calls"):
        ask(config, tmp_path)


def test_the_journal_keeps_the_cost_as_a_record(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    store, trackers = RunStore(tmp_path), Trackers([])
    cost = {"calls": 3, "money": 0.5}
    journal = RunJournal(store, trackers, RunHistory(), RunTotals(), {}, lambda: cost)
    with journal.kept():
        pass
    assert store.read_json(COST_FILE) == journal.summary["roleplayer_cost"] == cost


def test_the_cost_names_what_is_not_in_it(tmp_path: Path) -> None:
    assert roleplayer_cost(tmp_path) is None and cost_lines(None) == []
    with MisbehavingServer() as server:
        ask(api(server.url, oracle={"cost": {}}), tmp_path)
    with (
        MisbehavingServer(lambda seen: Behaviour.CUT_OFF_LENGTH) as server,
        pytest.raises(RecordDropped, match="answer_failed"),
    ):
        ask(api(server.url), tmp_path)
    [line] = cost_lines(roleplayer_cost(tmp_path))
    assert "(1 calls have no price in roleplayer.oracle.cost.prices)" in line
    assert "; 4 without an answer, perhaps" in line


def test_an_answer_without_ids_is_a_record_like_any_other(tmp_path: Path) -> None:
    turn = replace(make_turn("Tea?", "Yes."), answer_ids=None, question_ids=(5, 6))
    dialogue = Dialogue("t0/t:p/0", "t:p", 0, 1, 3, 0, (turn,))
    store = RunStore(tmp_path)
    asyncio.run(store.append("t0", "dialogues", [dialogue_row(make_pair(), dialogue)]))
    [row] = store.read("t0", "dialogues")
    assert dialogue_from_row(row).turns[0].answer_ids is None
    assert dialogue_from_row(row) == dialogue
    assert generated_tokens(dialogue) == 2


def test_an_api_that_repeats_itself_to_the_limit_is_found_out(tmp_path: Path) -> None:
    def hear(answer: str) -> None:
        watch = DegenerationWatch("t0", RunStore(tmp_path), DegenerationConfig(min_texts=1))
        turn = replace(make_turn("Tea?", answer), answer_ids=None, answer_stop=StopReason.LENGTH)
        watch.heard(Dialogue("t0/t:p/0", "t:p", 0, 1, 3, 0, (turn,)))
        watch.check()

    hear(" ".join(f"word{n}" for n in range(40)))
    with pytest.raises(DivergenceError, match="the roleplayer's texts are empty or endless"):
        hear("tea and milk and " * 10)


# --- the config


def config(**roleplayer: Any) -> RunConfig:
    return RunConfig(roleplayer=roleplayer)  # type: ignore[arg-type]


ORACLE = {"type": "openai", "model": "m"}


def test_a_roleplayer_is_an_engine_or_an_api() -> None:
    engine, default = config(model="tiny", engine={"max_num_seqs": 3}), RunConfig()
    assert isinstance(engine.roleplayer, EngineRoleplayerConfig)
    assert default.roleplayer == EngineRoleplayerConfig()
    assert list(engine.engines) == ["questioner", "roleplayer"]
    remote = config(type="api", oracle=ORACLE, grounding={"type": "facts"})
    assert list(remote.engines) == ["questioner"]
    assert remote.roleplayer.model == "m"
    for one in (engine, remote):  # a run directory keeps it
        assert RunConfig.model_validate(one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["roleplayer={type: apis}"], "roleplayer: type must be engine or api"),
        (["roleplayer={type: api}"], "roleplayer.oracle: Field required"),
        (["roleplayer.modle=x"], "unknown key roleplayer.modle;"),
        (["roleplayer.engine.num_engines=0"], "roleplayer.engine.num_engines: "),
        (
            ["roleplayer={type: api, model: x, oracle: {type: openai, model: m}}"],
            "unknown key roleplayer.model;",
        ),
        (
            [
                "roleplayer={type: api, oracle: {type: openai, model: m}}",
                "rollout.num_workers=2",
            ],
            "rollout.num_workers must be 0, got 2",
        ),
        (
            ["roleplayer={type: api, oracle: {type: openai, model: m}}", "evaluation.judge={}"],
            "evaluation.judge.backend.type=engine is the Roleplayer's engine",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({}))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", overrides)
    assert message in str(caught.value)

"""A whole small build against a made-up server: what it writes, leaves out, repeats and refuses."""

import asyncio
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stargate.data.build.builder import Build, Rehearsal
from stargate.data.build.config import BuildConfig
from stargate.data.build.folder import BuildFolder
from stargate.data.build.prompts import load_build_prompts
from stargate.data.build.report import GoldReport
from stargate.data.dataset import read_dataset
from stargate.errors import BudgetError, DataError, OracleError
from stargate.launch.cli import main
from stargate.monitoring.progress import PlainProgress
from stargate.oracle.open import open_oracle
from tests.fakes.build_answers import behave, build_config, kind_of
from tests.fakes.misbehaving_server import MisbehavingServer, Raw, completion

pytestmark = pytest.mark.integration

FILES = ("tasks.jsonl", "personas.jsonl", "golds.jsonl")


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer(behave()) as running:
        yield running


@pytest.fixture
def config(server: MisbehavingServer, tmp_path: Path) -> BuildConfig:
    return build_config(server.url, tmp_path)


def build_of(config: BuildConfig) -> Build:
    progress = PlainProgress(io.StringIO())
    return Build(config, load_build_prompts(config.prompts), progress, config.model)


def make(config: BuildConfig, **options: Any) -> GoldReport:
    """Builds, as the command does."""

    async def run() -> GoldReport:
        build = build_of(config)
        with build.folder.locked():
            assert not build.folder.is_finished()
            async with open_oracle(config.oracle, config.cache_path) as oracle:
                return await build.run(oracle, **options)

    return asyncio.run(run())


def make_for(max_cost: float, config: BuildConfig) -> None:
    """Builds until the money is spent."""
    tree = config.model_dump()
    tree["oracle"]["cost"]["max_cost"] = max_cost
    with pytest.raises(BudgetError, match=rf"cost\.max_cost = {max_cost}"):
        make(BuildConfig.model_validate(tree))


def rehearse(config: BuildConfig) -> Rehearsal:
    async def run() -> Rehearsal:
        async with open_oracle(config.oracle, config.cache_path) as oracle:
            return await build_of(config).rehearse(oracle)

    return asyncio.run(run())


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "build-report.json").read_text())
    return content


def make_with(
    change: Callable[[dict[str, Any]], bytes | None], folder: Path
) -> tuple[MisbehavingServer, dict[str, Any]]:
    """Builds with a server that answers otherwise where `change` says so."""
    with MisbehavingServer(behave(change)) as server:
        config = build_config(server.url, folder)
        make(config)
    return server, report_of(config.out)


def test_a_build_is_a_dataset(server: MisbehavingServer, config: BuildConfig) -> None:
    make(config)
    dataset = read_dataset(config.out)
    assert dataset.dropped == []
    assert {s: len(dataset.pairs(s)) for s in dataset.splits} == {"A": 9, "B": 4, "test": 1}
    assert len({p.name for p in dataset.personas.values()}) == 6
    for person in dataset.personas.values():
        assert len(person.facts) == 8
        assert all(fact in person.text for fact in person.facts)
        assert dataset.fact_origins[person.id] == ("extracted",) * 8
    order = [json.loads(line) for line in (config.out / "golds.jsonl").read_text().splitlines()]
    pairs = [(gold["task_id"], gold["persona_id"]) for gold in order]
    first = [(f"A-task-{i}", f"A-persona-{j}") for i in range(2) for j in range(3)]
    assert pairs[:6] == first
    report = report_of(config.out)
    assert report["sources"]["facts"]["fact_not_stated"] >= 6  # the submarines
    assert report["golds"] == {"A": 9, "B": 4, "test": 1}
    assert report["cost"]["calls"] == len(server.seen)
    assert sorted(f.name for f in config.out.iterdir()) == ["build-report.json", *sorted(FILES)]
    assert not config.out.with_name("out.partial").exists()
    sampled = [s.body for s in server.seen if kind_of(s.body) == "persona"]
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in sampled} == {(1.4, 0.9, 400)}
    golds = [s.body for s in server.seen if kind_of(s.body) == "gold"]
    assert {(b["temperature"], b["max_tokens"]) for b in golds} == {(0.0, 300)}
    assert len(golds) == 14


def test_unusable_personas_are_made_anew(tmp_path: Path) -> None:
    """Cut off, without a name, a copy of an example, refused: each is counted, each tried again."""
    example = load_build_prompts("paper").examples[0]
    bad = [
        completion("Name: Cut Off\nI am", "length"),
        completion("no name here, " * 20),
        completion(f"Name: Somebody Else\n{example.text}"),
        completion("I'm sorry, but I can't help with that."),
        completion("Name: Too Short\nI am short."),
    ]

    def change(body: dict[str, Any]) -> bytes | None:
        return bad.pop() if bad and kind_of(body) == "persona" else None

    _, report = make_with(change, tmp_path)
    assert report["personas"] == {"A": 3, "B": 2, "test": 1}
    reasons = ("oracle_cut_off", "oracle_refused", "persona_like_another", "persona_too_short")
    counts = report["sources"]["personas_not_used"]["counts"]
    assert counts == dict.fromkeys((*reasons, "persona_without_name"), 1)
    assert report["sources"]["persona_rounds"] == 2


def test_names_and_texts_are_used_once(tmp_path: Path) -> None:
    first: list[bytes] = []

    def change(body: dict[str, Any]) -> bytes | None:
        if kind_of(body) != "persona" or "These names are taken" in body["messages"][0]["content"]:
            return None
        text = "Name: Same Name\n" + " ".join(f"I like thing{n} very much." for n in range(12))
        first.append(completion(text))
        return first[-1]

    server, report = make_with(change, tmp_path)
    assert len(first) == 6
    assert report["sources"]["personas_not_used"]["counts"] == {"persona_name_taken": 5}
    again = [s for s in server.seen if "These names are taken" in s.text]
    assert all("Same Name" in s.text for s in again)


def test_a_place_that_is_never_filled_ends_in_an_error_or_the_report(tmp_path: Path) -> None:
    def change(body: dict[str, Any]) -> bytes | None:
        return completion("I cannot help with that.") if kind_of(body) == "facts" else None

    with MisbehavingServer(behave(change)) as server:
        config = build_config(server.url, tmp_path)
        with pytest.raises(
            DataError, match=r"'A': no persona could be made: \d+ x facts_oracle_ref"
        ):
            make(config)
    assert sum(kind_of(s.body) == "persona" for s in server.seen) == 36


def test_what_is_no_answer_never_becomes_a_gold(tmp_path: Path) -> None:
    bodies = {
        ("thing 0", 0): completion("I'm sorry, but I can't help with that."),
        ("thing 1", 0): completion("You could", "length"),
        ("thing 2", 0): completion(""),
        ("thing 3", 0): completion("You may not", "content_filter"),
    }
    seen: Counter[str] = Counter()

    def change(body: dict[str, Any]) -> bytes | None:
        if kind_of(body) != "gold":
            return None
        task = body["messages"][0]["content"].split("thing ")[1][0]
        seen[task] += 1
        return bodies.get((f"thing {task}", seen[task] - 1))

    with MisbehavingServer(behave(change)) as server:
        config = build_config(server.url, tmp_path)
        report = make(config)
    assert report.num_golds == 10
    assert report.missing.counts == Counter(
        oracle_refused=1, oracle_cut_off=1, oracle_empty=1, oracle_filtered=1
    )
    missing = (config.out / "missing-golds.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in missing] == [
        *("oracle_refused", "oracle_cut_off", "oracle_empty", "oracle_filtered")
    ]
    golds = (config.out / "golds.jsonl").read_text()
    assert len(golds.splitlines()) == 10
    assert "sorry" not in golds
    assert report_of(config.out)["missing_golds"]["counts"]["oracle_refused"] == 1
    assert len(read_dataset(config.out).pairs("A")) == 9 - 3


def test_unanswered_pairs_are_asked_again(tmp_path: Path) -> None:
    broken = True

    def one(seen: Any) -> Raw:
        if broken and "thing 5" in seen.text:
            return Raw(500, b"{}")
        found = behave()(seen)
        assert isinstance(found, Raw)
        return found

    with MisbehavingServer(one) as server:
        config = build_config(server.url, tmp_path)
        with pytest.raises(OracleError, match="1 pairs were not answered"):
            make(config)
        assert not config.out.exists()
        assert report_of(tmp_path / "out.partial")["missing_golds"]["counts"] == {
            "oracle_failed": 1
        }
        asked = len(server.seen)
        accepted = make(
            config.model_copy(update={"out": tmp_path / "other", "cache": config.cache_path}),
            accept_failed=True,
        )
        assert accepted.num_golds == 13
        broken = False
        asked = len(server.seen)
        assert make(config).num_golds == 14
        assert len(server.seen) == asked + 1


def test_the_same_answers_give_the_same_bytes(tmp_path: Path, server: MisbehavingServer) -> None:
    (tmp_path / "b").mkdir()
    one = build_config(server.url, tmp_path)
    slow = {**one.oracle.model_dump(), "limits": {"max_concurrency": 1}}
    other = build_config(server.url, tmp_path / "b", oracle=slow)
    make(one)
    make(other)
    for file in FILES:
        assert (one.out / file).read_bytes() == (other.out / file).read_bytes()


def test_finished_and_changed_builds(
    tmp_path: Path, server: MisbehavingServer, config: BuildConfig
) -> None:
    make(config)
    asked = len(server.seen)
    with pytest.raises(AssertionError):  # is_finished
        make(config)
    assert len(server.seen) == asked
    # Speed, prices and addresses are no part of what is built.
    moved = {**config.oracle.model_dump(), "base_url": "http://127.0.0.1:1/v1"}
    with pytest.raises(AssertionError):
        make(build_config(server.url, tmp_path, oracle=moved))
    with pytest.raises(DataError, match=r"they differ in: seed, golds"):
        make(build_config(server.url, tmp_path, seed=1, golds={"max_tokens": 10}))
    (tmp_path / "tasks.txt").write_text("A?\nB?\nC?\nD?\nE?\nF?\n")
    with pytest.raises(DataError, match=r"they differ in: tasks\)"):
        make(build_config(server.url, tmp_path))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(DataError, match="is no build; choose another out"):
        BuildFolder(foreign, {}).is_finished()
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"holds thesis\.tex, which no build writes"):
        BuildFolder(tmp_path / "mine", {}).begin()


def test_only_one_process_builds(tmp_path: Path) -> None:
    one, two = BuildFolder(tmp_path / "out", {}), BuildFolder(tmp_path / "out", {})
    with (
        one.locked(),
        pytest.raises(DataError, match="another process is building it right now"),
        two.locked(),
    ):
        pass
    with two.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_max_cost_stops_and_more_money_goes_on(
    server: MisbehavingServer, config: BuildConfig
) -> None:
    make_for(0.01, config)
    assert 0 < len(server.seen) < 26
    make(config)
    bodies = [json.dumps(seen.body) for seen in server.seen]
    assert len(bodies) == len(set(bodies))


def test_a_rehearsal_says_what_a_build_takes(
    server: MisbehavingServer, config: BuildConfig
) -> None:
    before = rehearse(config)
    assert len(server.seen) == 0
    assert not config.out.with_name("out.partial").exists()
    assert (before.num_pairs, before.num_standins) == (14, 6)
    assert (before.estimate.calls, before.estimate.cached) == (6 + 6 + 14, 0)
    assert before.estimate.completion_tokens == 6 * 400 + 6 * 500 + 14 * 300
    assert before.estimate.money is not None
    expected = (before.estimate.prompt_tokens + 2 * before.estimate.completion_tokens) / 1e6
    assert before.estimate.money == pytest.approx(expected, abs=1e-6)
    make_for(0.03, config)
    half = rehearse(config)
    known = server.log.behaviours["raw_200"]
    # Personas and facts are whole by now and ask nothing more: only golds are counted.
    assert half.estimate.cached == known - 12 > 0
    assert half.estimate.calls == 26 - known
    make(config)


def test_personas_of_a_file_get_facts(tmp_path: Path) -> None:
    people = tmp_path / "personas.json"
    texts = [
        "I'm ADA. I mend clocks in Lyon. I owe 300 crowns. I keep bees.",
        "I'm BO. I fly kites in Lima. I sing bass. I never drink milk.",
        "I'm CY. I fly kites in Lima. I sing bass. I never drink milk.",
        "I'm DI. I paint boats in Perth. I earn 900 crowns. I walk home.",
    ]
    people.write_text(json.dumps(texts))
    rows = {"A": [0, 1], "B": [1, 2], "test": [2, 4]}
    facts = {"minimum": 2}
    personas = {"type": "file", "path": people, "rows": rows, "facts": facts}

    def change(body: dict[str, Any]) -> bytes | None:
        short = kind_of(body) == "facts" and "ADA" in body["messages"][0]["content"]
        return completion("- I keep bees.") if short else None

    with MisbehavingServer(behave(change)) as server:
        with pytest.raises(DataError, match="split 'B' has 2 tasks and 0 personas"):
            make(build_config(server.url, tmp_path, personas=personas))
        people.write_text(json.dumps([texts[0], *texts[3:], *texts[1:3]]))
        config = build_config(server.url, tmp_path, out=tmp_path / "second", personas=personas)
        make(config)
    dataset = read_dataset(config.out)
    ada, di = dataset.personas["A-persona-0"], dataset.personas["B-persona-0"]
    assert ada.facts == ("I mend clocks in Lyon.", "I owe 300 crowns.", "I keep bees.")
    assert dataset.fact_origins[ada.id][0].startswith("sentence:")
    assert dataset.fact_origins[di.id] == ("extracted",) * 3
    assert report_of(config.out)["sources"]["personas_not_used"]["counts"] == {
        "facts_from_sentences": 1,
        "persona_with_too_few_facts": 1,
    }


def test_what_a_killed_run_left_is_replaced(tmp_path: Path, config: BuildConfig) -> None:
    make_for(0.03, config)
    for name in ("golds.jsonl", ".golds.jsonl.1.tmp", "golds.spool", "missing-golds.jsonl"):
        (tmp_path / "out.partial" / name).write_text("{half a li")
    (tmp_path / "out.partial" / ".build-report.json.1.tmp").write_text("{")
    make(config)
    assert sorted(f.name for f in config.out.iterdir()) == ["build-report.json", *sorted(FILES)]
    assert len(read_dataset(config.out).golds) == 14


def test_the_command(
    tmp_path: Path, config: BuildConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "build.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    build = ["data", "build", str(file)]
    assert main([*build, "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "calls to pay: 26 (0 answered already)" in said
    assert re.search(r"money: at most about 0\.0[1-4] ", said)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["build.yaml", "tasks.txt"]
    assert main([*build, "oracle.cost.max_cost=0.03"]) == 9
    assert "more than cost.max_cost = 0.03" in capfd.readouterr().err
    assert main(build) == 0
    assert "14 golds" in capfd.readouterr().out
    assert main(build) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert main([*build, "--dry-run"]) == 0
    assert main([*build, "seed=2"]) == 3
    assert "they differ in: seed" in capfd.readouterr().err

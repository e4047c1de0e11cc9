"""What others wrote stays text and in its folder; code of others is announced; keys stay secret."""

import asyncio
import json
import logging
import unicodedata
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from stargate.config.judge import ApiBackend
from stargate.config.oracle import OpenAIOracleConfig
from stargate.config.run import RunConfig
from stargate.data.dataset import read_dataset
from stargate.data.importers import TaskSource, import_dataset
from stargate.errors import ConfigError, DataError, RecordDropped
from stargate.evaluation import statistics
from stargate.launch.cli import main
from stargate.launch.eval_session import evaluation_root
from stargate.launch.session import fill_run_dir
from stargate.launch.setup import REMOTE_CODE, prepare
from stargate.launch.summary import print_summary
from stargate.monitoring.journal import _logged
from stargate.monitoring.progress import LiveProgress, PlainProgress, safe_text
from stargate.monitoring.summary import summarise_run
from stargate.records.history import RunTotals
from stargate.records.store import RunStore
from tests.fakes.data_folder import write_folder
from tests.fakes.report_run import build_run
from tests.unit.launch import test_ablation
from tests.unit.test_pair_steps import config

# Clears the screen, sets the title, goes back to the line's start, reverses direction, hides,
# breaks the line where some terminals do, sends an 8-bit control sequence.
NASTY = "a\x1b[2J\x1b]0;owned\x07b\rc\u202ed\u2066e\u200bf\u2028g\x9b31mh\x00i\ud800j"
ESCAPED = r"a\x1b[2J\x1b]0;owned\x07b\x0dc\u202ed\u2066e\u200bf\u2028g\x9b31mh\x00i\ud800j"


def dangerous(text: str) -> set[str]:
    """Characters that a terminal takes as orders."""
    kinds = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return {c for c in text if c != "\n" and unicodedata.category(c) in kinds}


def test_what_a_terminal_would_obey_is_escaped_once() -> None:
    assert safe_text(NASTY) == ESCAPED
    assert safe_text(ESCAPED) == ESCAPED
    assert safe_text("two\nlines, José, 日本, 🍚") == "two\nlines, José, 日本, 🍚"
    assert dangerous(NASTY) and not dangerous(ESCAPED)


def test_progress_escapes_whatever_is_said_and_noted() -> None:
    out = StringIO()
    progress = PlainProgress(out)
    progress.say(NASTY)
    with progress.stage("s", 1, "u") as stage:
        stage.note(NASTY)
        stage.advance()
    assert not dangerous(out.getvalue())
    assert out.getvalue().count(ESCAPED) == 2


def test_the_live_display_escapes_too(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LiveProgress()
    progress.say(NASTY)
    with progress.stage("s", 1, "u") as stage:
        stage.note(f"{NASTY} [red]markup[/red]")
        stage.advance()
    out = capsys.readouterr().out
    assert not dangerous(out)
    assert ESCAPED in out.replace("\n", "")


def test_an_error_that_quotes_a_model_is_one_harmless_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise RecordDropped("empty", "d", f"first\nsecond {NASTY}")

    monkeypatch.setattr("stargate.launch.doctor.run", run)
    assert main(["doctor"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("stargate doctor: d: empty: first second a\\x1b[2J")
    assert not dangerous(line)


def test_the_log_of_a_run_escapes_too(tmp_path: Path) -> None:
    with _logged(tmp_path / "driver.log"):
        logging.getLogger("stargate").warning("%s", NASTY)
    text = (tmp_path / "driver.log").read_text(encoding="utf-8")
    assert ESCAPED in text and not dangerous(text)


def test_summaries_reports_and_data_on_the_screen_escape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build_run(tmp_path)
    row = next(iter(RunStore(root).read("eval-m0", "dialogues")))
    row["turns"][0]["answer"] = "\x1b[31mred\r"
    store = RunStore(root)
    asyncio.run(store.append("eval-m0", "dialogues", [{**row, "id": f"{row['id']}-again"}]))
    counters = RunTotals()
    counters.drop(RecordDropped("empty_question", "d", NASTY))
    evaluations = {"m0": {"question_rate": 1.0}}
    summary = summarise_run(counters, evaluations, (), "finished", {})
    print_summary(summary, store, 100, PlainProgress())
    assert main(["report", str(root), "--text"]) == 0
    data = tmp_path / "data"
    personas = [json.loads(line) for line in (data / "personas.jsonl").read_text().splitlines()]
    text = NASTY.replace("\ud800", "").replace("\x00", "")
    personas[0]["name"] = personas[0]["text"] = text
    (data / "personas.jsonl").write_text("".join(json.dumps(p) + "\n" for p in personas))
    assert main(["data", "show", str(data), "--n", "50"]) == 0
    assert main(["data", "check", str(data)]) == 0
    out = capsys.readouterr().out
    assert r"\x1b[31mred" in out  # a model said that
    assert r"owned\x07b" in out
    assert not dangerous(out)


# --- paths


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "..",
        ".",
        "/etc/evil",
        "a/b",
        "a\\b",
        "evil\x00",
        "",
        ".hidden",
        "a\nb",
        "x" * 101,
    ],
)
@pytest.mark.parametrize("key", ["id", "split"])
def test_no_name_of_a_data_file_can_lead_out_of_a_folder(
    tmp_path: Path, name: str, key: str
) -> None:
    row = {"id": "t", "text": "Plan a trip?", "split": "A", key: name}
    person = {"id": "p", "name": "Ana", "text": "I am Ana.", "split": "A"}
    write_folder(tmp_path / "data", tasks=[row], personas=[person], golds=[])
    with pytest.raises(DataError, match=rf"tasks\.jsonl:1: {key}"):
        read_dataset(tmp_path / "data", partial=True)
    # An import keeps what it can under a name of its own, and writes nowhere else.
    before = sorted(tmp_path.rglob("*"))
    import_dataset(tmp_path / "data", tmp_path / "out", "jsonl", tasks=TaskSource())
    written = sorted(set(tmp_path.rglob("*")) - set(before))
    assert {file.parent for file in written} <= {tmp_path, tmp_path / "out"}
    dataset = read_dataset(tmp_path / "out", partial=True)
    assert all(set(t.id + t.split).isdisjoint("/\\\x00\n") for t in dataset.tasks.values())
    assert main(["data", "export", str(tmp_path / "out"), str(tmp_path / "sft"), "--format", "sft"])
    assert not {"evil", "evil.jsonl"} & {file.name for file in tmp_path.parent.iterdir()}


def _state(folder: Path, name: str) -> None:
    file = folder / "tasks/state.json"
    values = json.loads(file.read_text())
    values["_data_files"] = [{"filename": name}]
    file.write_text(json.dumps(values))


def _splits(folder: Path, name: str) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))


@pytest.mark.parametrize("write", [_state, _splits])
@pytest.mark.parametrize("name", ["../secret/data-00000-of-00001.arrow", "../../secret", "..", ""])
def test_a_hugging_face_folder_can_not_name_files_outside_it(
    tmp_path: Path, write: Callable[[Path, str], None], name: str
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    tasks = datasets.Dataset.from_list([{"id": "t", "text": "Plan a trip?", "split": "A"}])
    folder = tmp_path / "hf"
    datasets.DatasetDict({"tasks": tasks}).save_to_disk(str(folder))
    write(folder, name)
    with pytest.raises(DataError, match="not a name in its own folder"):
        import_dataset(folder, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "..", "a/b", ".x", "a\nb", ""])
def test_run_and_evaluation_names_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        RunConfig(name=name)
    with pytest.raises(ConfigError, match="--name must be"):
        evaluation_root(tmp_path, name, RunConfig(), RunConfig())


# --- code of others


def test_remote_code_is_announced_before_anything_is_opened() -> None:
    said: list[str] = []
    trusting = RunConfig.model_validate(
        {"trust_remote_code": True, "data": {"source": "/nowhere"}, "tracking": {}}
    )
    with pytest.raises(DataError, match="no such dataset folder"):
        prepare(trusting, said.append)
    assert said == [REMOTE_CODE]
    assert "trust_remote_code" in REMOTE_CODE and "run on this machine" in REMOTE_CODE
    with pytest.raises(DataError):
        prepare(trusting.model_copy(update={"trust_remote_code": False}), said.append)
    assert said == [REMOTE_CODE]


def test_remote_code_is_in_the_log_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bootstrap is slow and not what is tested.
    monkeypatch.setattr(statistics, "clustered_interval", lambda table, config: None)
    names = ["own_response"]
    made = test_ablation.ablation(tmp_path, names, trust_remote_code=True)
    test_ablation.play(test_ablation.FakeSystem(), made, names)
    assert REMOTE_CODE in (tmp_path / "own_response/logs/driver.log").read_text()


# --- secrets

PLANTED = "planted-0123456789abcdef"
VARIABLES = (
    *("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
    *("AWS_SECRET_ACCESS_KEY", "JUDGE_KEY", "SOMETHING_ELSE"),
)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{PLANTED}-{name}")


@pytest.mark.usefixtures("planted")
def test_a_planted_key_is_in_no_file_of_a_run_and_on_no_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run with fakes for engines: its tables, config, logs, curves, summary and report."""
    oracle = OpenAIOracleConfig(
        model="m", base_url="http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY"
    )
    judge = {"backend": ApiBackend(type="api", oracle=oracle).model_dump(mode="json")}
    evaluation = {"num_dialogues": 1, "turns": [1], "judge": judge}
    names = ["own_response"]
    root = tmp_path / "ablation"
    made = test_ablation.ablation(root, names, tracking={})
    test_ablation.play(test_ablation.FakeSystem(), made, names)
    assert main(["report", str(root / "own_response")]) in (0, 3)
    fill_run_dir(tmp_path / "run", config(evaluation=evaluation))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "environment.json", "driver.log"} <= {file.name for file in files}
    assert any("tfevents" in file.name for file in files)
    assert REMOTE_CODE not in (root / "own_response/logs/driver.log").read_text()
    assert "JUDGE_KEY" in (tmp_path / "run/config.yaml").read_text()  # the name, never the value
    holding = [str(file) for file in files if PLANTED.encode() in file.read_bytes()]
    assert holding == []
    said = capsys.readouterr()
    assert PLANTED not in said.out + said.err


@pytest.mark.usefixtures("planted")
def test_a_run_that_fails_names_no_key_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (
        ["run", "cpu_demo", "data.source=/nowhere", f"runs_dir={tmp_path}"],
        ["eval", str(tmp_path)],
        ["resume", str(tmp_path)],
        ["report", str(tmp_path)],
        ["submit", "cpu_demo", "--address", "http://127.0.0.1:1", "--env", "HF_TOKEN"],
    ):
        assert main(argv) not in (0, 1)
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 5
    assert PLANTED not in said.out + said.err


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        OpenAIOracleConfig(model="m", base_url=f"https://me:{PLANTED}@host/v1")
    assert PLANTED not in str(caught.value)

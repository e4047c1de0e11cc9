"""What a run is made from: recorded when it begins, compared when somebody goes on with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stargate.config.files import dump_config
from stargate.config.run import RunConfig
from stargate.launch import eval_session, session, setup
from stargate.launch.cli import main
from stargate.launch.provenance import PROVENANCE_FILE, Inputs, inputs_of, keep_inputs
from stargate.launch.session import fill_run_dir
from stargate.records.files import file_sha256
from stargate.records.store import RunStore
from stargate.text.prompts import packaged_prompts_dir
from tests.fakes.data_folder import write_folder
from tests.fakes.model_files import safetensors_bytes, write_model

HUB = "models--org--name/snapshots"


class Reached(Exception):
    """A command came past the comparison."""


class World:
    """A run of a model folder, a data folder and a prompt file, and the commands on it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.run = root / "run"
        self.base, self.data = write_model(root / "base"), root / "data"
        write_folder(self.data, tasks=[{"id": "a"}], personas=[{"id": "b"}], golds=[{"id": "c"}])
        self.prompts = Path(shutil.copy(packaged_prompts_dir() / "small.yaml", root / "mine.yaml"))
        self.config = RunConfig.model_validate(
            {
                "model": str(self.base),
                "data": {"source": str(self.data)},
                "prompts": str(self.prompts),
                "roleplayer": {"model": str(write_model(root / "voice")), "prompts": "paper"},
                "evaluation": {"judge": {"prompts": "judge"}},
            }
        )
        patch.setattr(setup, "prepare", self._prepare)
        patch.setattr(eval_session, "prepare", self._prepare)
        patch.setattr(session, "sit", self._sit)
        patch.setattr(eval_session, "checkpoint_dirs", lambda *_: {0: self.base})
        patch.setattr(eval_session, "discovery", self._sit)

    def begin(self) -> RunStore:
        store = fill_run_dir(self.run, self.config)
        keep_inputs(store, self.inputs(self.config), accept=False, say=print, new=True)
        return store

    def inputs(self, config: RunConfig) -> Inputs:
        return inputs_of(config, Path(config.model), self.root / "voice")

    def _prepare(self, config: RunConfig, say: object, training: bool = True) -> Any:
        base = Path(config.model)
        evaluator = SimpleNamespace()
        return SimpleNamespace(
            config=config,
            inputs=self.inputs(config),
            base_model_dir=base,
            evaluator=lambda *_: evaluator,
        )

    def _sit(self, *_: object, **__: object) -> None:
        raise Reached


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that a command says, having failed."""
    assert main(command) == 3
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_what_is_recorded_can_be_recomputed(world: World) -> None:
    world.begin()
    recorded = json.loads((world.run / PROVENANCE_FILE).read_text())
    assert recorded["accepted"] == []
    inputs = recorded["inputs"]
    assert set(inputs) == {
        *("model", "roleplayer.model", "data.source"),
        *("prompts", "roleplayer.prompts", "evaluation.judge.prompts"),
    }
    assert set(inputs["model"]) == {"name", "config.json", "tokenizer.json", "weights"}
    assert inputs["data.source"] == {
        "name": str(world.data),
        **{f"{k}.jsonl": file_sha256(world.data / f"{k}.jsonl") for k in ("tasks", "personas")},
        "golds.jsonl": file_sha256(world.data / "golds.jsonl"),
    }
    assert inputs["prompts"] == {"name": str(world.prompts), "file": file_sha256(world.prompts)}
    assert inputs["roleplayer.prompts"]["file"] == file_sha256(
        packaged_prompts_dir() / "paper.yaml"
    )


def other_weights(world: World) -> None:
    write_model(world.base, safetensors_bytes()[:-1] + b"x")


def other_tokenizer(world: World) -> None:
    (world.base / "tokenizer.json").write_text('{"a": 1}')


def new_template(world: World) -> None:
    (world.base / "chat_template.jinja").write_text("{{ messages }}")


def other_voice(world: World) -> None:
    (world.root / "voice/config.json").write_text('{"model_type": "gpt2"}')


def other_golds(world: World) -> None:
    (world.data / "golds.jsonl").write_text("{}\n")


def other_form(world: World) -> None:
    (world.data / "golds.jsonl").rename(world.data / "golds.parquet")


def other_prompts(world: World) -> None:
    world.prompts.write_text(world.prompts.read_text() + "\n")


CHANGES = [
    (other_weights, "model {base}: weights (recorded "),
    (other_tokenizer, "model {base}: tokenizer.json (recorded "),
    (new_template, "model {base}: chat_template.jinja (recorded none, found "),
    (other_voice, "roleplayer.model {root}/voice: config.json (recorded "),
    (other_golds, "data.source {data}: golds.jsonl (recorded "),
    (other_form, "data.source {data}: golds.jsonl (recorded "),
    (other_prompts, "prompts {prompts}: file (recorded "),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
@pytest.mark.parametrize("command", [["resume"], ["eval"], ["eval", "--name", "mine"]])
def test_what_changed_is_named_and_can_be_accepted(
    world: World,
    command: list[str],
    change: Callable[[World], None],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.begin()
    before = (world.run / PROVENANCE_FILE).read_text()
    words = [command[0], str(world.run), *command[1:]]
    with pytest.raises(Reached):
        main(words)
    change(world)
    line = refused(capsys, *words)
    assert f"run: changed since it was recorded: {named.format(**vars(world))}" in line
    assert line.endswith("or go on with what is there now: --accept-changed")
    assert (world.run / PROVENANCE_FILE).read_text() == before
    with pytest.raises(Reached):
        main([*words, "--accept-changed"])
    assert "accepted" in capsys.readouterr().out
    root = world.run if "--name" not in command else world.run / "evaluations/mine"
    recorded = json.loads((root / PROVENANCE_FILE).read_text())
    assert recorded["inputs"] == world.inputs(world.config)
    [accepted] = recorded["accepted"]
    assert accepted["changes"][0].startswith(named.format(**vars(world)))
    if "--name" not in command:
        with pytest.raises(Reached):  # once is enough
            main(words)
        [accepted] = json.loads((root / PROVENANCE_FILE).read_text())["accepted"]


def test_an_evaluation_may_have_data_and_prompts_of_its_own(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.begin()
    shutil.copytree(world.data, world.root / "theirs")
    other_golds(world)
    words = ["eval", str(world.run), "--name", "theirs", f"data.source={world.root / 'theirs'}"]
    with pytest.raises(Reached):
        main(words)
    (world.root / "theirs/tasks.jsonl").write_text("{}\n")
    line = refused(capsys, *words)
    assert "evaluations/theirs: changed since it was recorded: data.source " in line
    assert "tasks.jsonl (recorded " in line
    other_weights(world)
    assert f"{world.run}: changed since it was recorded: model " in refused(capsys, *words)


def test_another_judge_is_no_change(world: World) -> None:
    world.begin()
    file = shutil.copy(packaged_prompts_dir() / "judge.yaml", world.root / "judge.yaml")
    with pytest.raises(Reached):
        main(["eval", str(world.run), f"evaluation.judge.prompts={file}"])
    inputs = json.loads((world.run / PROVENANCE_FILE).read_text())["inputs"]
    assert inputs["evaluation.judge.prompts"]["name"] == str(file)


def test_data_that_moved_are_the_same_data(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = world.begin()
    moved = world.data.rename(world.root / "moved")
    data = world.config.data.model_copy(update={"source": str(moved)})
    config = world.config.model_copy(update={"data": data})
    store.write_text("config.yaml", dump_config(config))
    with pytest.raises(Reached):
        main(["resume", str(world.run)])
    (moved / "golds.jsonl").write_text("{}\n")
    assert f"data.source {moved}: golds.jsonl" in refused(capsys, "resume", str(world.run))


def test_another_commit_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """As a run has it that began before commits stood in config.yaml."""
    store = RunStore(world.root / "run")
    world.run.mkdir()
    for accept, commit in ((False, "a" * 40), (True, "b" * 40)):
        folder = write_model(world.root / HUB / commit)
        found = inputs_of(RunConfig(model="org/name"), folder, None)
        assert found["model"] == {"name": "org/name", "revision": commit}
        keep_inputs(store, found, accept, print)
    said = capsys.readouterr().out
    assert f"model org/name: revision (recorded {'a' * 12}, found {'b' * 12}); accepted" in said


def test_a_run_of_before_is_recorded_now_and_says_so(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_run_dir(world.run, world.config)
    with pytest.raises(Reached):
        main(["resume", str(world.run)])
    assert "it was not recorded yet what this is made from; it is now" in capsys.readouterr().out
    other_weights(world)
    assert "weights (recorded" in refused(capsys, "resume", str(world.run))


def test_a_driver_that_sees_no_weights_forgets_none(world: World) -> None:
    """On a cluster the weights may be on the nodes alone."""
    store = world.begin()
    weights = (world.base / "model.safetensors").rename(world.root / "elsewhere")
    with pytest.raises(Reached):
        main(["resume", str(world.run)])
    weights.rename(world.base / "model.safetensors")
    assert store.read_json(PROVENANCE_FILE) == {
        "inputs": world.inputs(world.config),
        "accepted": [],
    }


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"inputs": 3}', '{"inputs": {"model": {}}, "accepted": []}']
)
def test_a_damaged_record_is_one_line(
    world: World, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.begin()
    (world.run / PROVENANCE_FILE).write_text(text)
    assert PROVENANCE_FILE in refused(capsys, "resume", str(world.run))

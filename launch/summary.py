"""What a run came to: summary.json under stable names, and the same on the screen.

stages.<name>.seconds            wall time; stages that run side by side overlap
rollout.{num_dialogues, generated_tokens, generated_tokens_per_s}
train.{loss_first, loss_last, num_examples, ...}   of the last iteration
push.{seconds, phases}                             of the last iteration
eval.m<t>.{gold_logprob, matched_minus_shuffled, question_rate, facts_per_dialogue, ...}
restarts.<role>.{count, longest_s}, resent.<role>  actors that died, requests sent again
repeated_steps                     optimizer steps done again after a death, of all iterations
joined.<role>, left.<role>                         engines added and taken out by `stargate scale`
dropped.<reason>, data_dropped.<reason>, peak_rss_gb, seconds, status
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stargate.evaluation.measures import EVALUATION_FILE
from stargate.evaluation.table import evaluation_lines
from stargate.monitoring.progress import Progress, safe_text
from stargate.records.counters import Counters
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore
from stargate.resources.memory import MemoryPeak
from stargate.types import IterationResult

# Of TrainResult, as they are.
_OF_TRAINING = (
    *("validation_loss", "num_examples", "num_validation_examples", "num_tokens"),
    *("num_loss_tokens", "seconds", "model_dir"),
)


def summarise_run(
    counters: Counters,
    evaluations: Mapping[str, Mapping[str, Any]],
    iterations: Sequence[IterationResult],
    status: str,
    seconds: float,
    peak: MemoryPeak,
    data_dropped: Mapping[str, int],
) -> dict[str, Any]:
    """The summary as nested plain values. A part that did not happen is absent, never zero."""
    summary: dict[str, Any] = {
        "status": status,
        "seconds": seconds,
        "stages": {name: {"seconds": value} for name, value in counters.stage_seconds.items()},
        "eval": {name: dict(measures) for name, measures in evaluations.items()},
        "dropped": dict(counters.dropped),
        "dropped_examples": counters.dropped_examples,
        "data_dropped": dict(data_dropped),
        "restarts": {
            role: {"count": count, "longest_s": counters.longest_restart[role]}
            for role, count in counters.restarts.items()
        },
        "resent": dict(counters.resent),
        "repeated_steps": sum(one.trained.num_repeated_steps or 0 for one in iterations),
        "joined": dict(counters.joined),
        "left": dict(counters.left),
        "peak_rss_gb": peak.gb,
        "peak_rss_measure": peak.measure,
    }
    scopes = [scope for scope in counters.dialogues if not scope.startswith("eval")]
    rollout_seconds = counters.stage_seconds.get("rollout", 0.0)
    if scopes and rollout_seconds:
        tokens = sum(counters.generated_tokens[scope] for scope in scopes)
        summary["rollout"] = {
            "num_dialogues": sum(counters.dialogues[scope] for scope in scopes),
            "generated_tokens": tokens,
            "generated_tokens_per_s": tokens / rollout_seconds,
        }
    if iterations:
        trained, pushed = iterations[-1].trained, iterations[-1].pushed
        summary["train"] = {
            "loss_first": trained.losses[0],
            "loss_last": trained.losses[-1],
            "num_steps": len(trained.losses),
            "tokens_per_s": trained.num_tokens / trained.seconds,
            **{name: getattr(trained, name) for name in _OF_TRAINING},
        }
        summary["push"] = asdict(pushed)
    return summary


def print_summary(
    summary: Mapping[str, Any], store: RunStore, num_dialogues: int, progress: Progress
) -> None:
    """Shows dialogues to read, then the figures."""
    evaluations = summary["eval"]
    if evaluations and num_dialogues:
        last = list(evaluations)[-1]
        _print_dialogues(store, f"eval-{last}", last, num_dialogues, progress)
    measured = store.read_json(EVALUATION_FILE)
    lines = summary_lines(summary)
    if measured is not None:
        lines = evaluation_lines(measured) + lines
    for line in lines:
        progress.say(line)
    progress.say(f"\nrun directory: {store.root}")
    if measured is not None:
        progress.say(f"all of it, with dialogues to read: stargate report {store.root}")


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    stages = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    stages["whole run"] = summary["seconds"]
    return [
        *("", "wall time by stage"),
        *(f"  {name:24}{seconds:8.1f} s" for name, seconds in stages.items()),
        *_throughput_lines(summary),
        f"peak memory of all processes: {summary['peak_rss_gb']:.1f} GiB",
        *_restart_lines(summary),
        *_dropped_lines(summary),
    ]


def _throughput_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if rollout := summary.get("rollout"):
        lines.append(
            f"\nrollouts: {rollout['num_dialogues']} dialogues, "
            f"{rollout['generated_tokens']} tokens, "
            f"{rollout['generated_tokens_per_s']:.0f} tokens/s"
        )
    if train := summary.get("train"):
        lines.append(
            f"training: {train['num_examples']} examples, {train['num_steps']} steps, "
            f"loss {train['loss_first']:.3f} -> {train['loss_last']:.3f}, "
            f"{train['tokens_per_s']:.0f} tokens/s"
        )
    if push := summary.get("push"):
        lines.append(
            f"weight push: version {push['version']} into {push['num_engines']} engine(s) "
            f"in {push['seconds']:.2f} s"
        )
    return lines


def _restart_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if restarts := summary.get("restarts"):
        counts = (
            f"{r['count']} {role} (at most {r['longest_s']:.0f} s)" for role, r in restarts.items()
        )
        lines.append("died and started again: " + ", ".join(counts))
    if resent := summary.get("resent"):
        lines.append(f"requests sent again: {_counted(resent)}")
    if steps := summary.get("repeated_steps"):
        lines.append(f"optimizer steps done again: {steps}")
    for what in ("joined", "left"):
        if counted := summary.get(what):
            lines.append(f"engines that {what} meanwhile: {_counted(counted)}")
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _dropped_lines(summary: Mapping[str, Any]) -> list[str]:
    counts = {**summary["data_dropped"], **summary["dropped"]}
    if not counts:
        return ["dropped records: none"]
    examples = (text for texts in summary["dropped_examples"].values() for text in texts)
    return [f"dropped records: {_counted(counts)}", *(f"  {safe_text(text)}" for text in examples)]


def _print_dialogues(
    store: RunStore, scope: str, version: str, count: int, progress: Progress
) -> None:
    """A few dialogues from all over the test set, as they were."""
    rows = sorted(store.read(scope, "dialogues"), key=lambda row: str(row["id"]))
    shown = min(count, len(rows))
    # Spread over the tasks, and shifted by one each time, so that it is not always one persona.
    chosen = [rows[(i * len(rows) // shown + i) % len(rows)] for i in range(shown)]
    progress.say(f"\n{shown} of {len(rows)} test dialogues of {version}")
    for row in chosen:
        dialogue = dialogue_from_row(row)
        progress.say(
            f"\n  [{dialogue.id}] {safe_text(row['persona_name'])}: {safe_text(row['task'])}"
        )
        for turn in dialogue.turns:
            facts = f"   (fact {', '.join(map(str, turn.elicited))})" if turn.elicited else ""
            progress.say(f"    Questioner: {safe_text(turn.question)}")
            progress.say(f"    Roleplayer: {safe_text(turn.answer)}{facts}")

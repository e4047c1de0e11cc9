"""What a run came to, on the screen: dialogues to read, then the figures of summary.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from stargate.evaluation.measures import EVALUATION_FILE
from stargate.evaluation.table import evaluation_lines
from stargate.monitoring.progress import Progress, safe_text
from stargate.records.schemas import dialogue_from_row
from stargate.records.store import RunStore


def print_summary(
    summary: Mapping[str, Any], store: RunStore, num_dialogues: int, progress: Progress
) -> None:
    """Shows dialogues to read, then the figures."""
    evaluations = summary["eval"]
    if evaluations and num_dialogues:
        last = list(evaluations)[-1]
        _print_dialogues(store, f"eval-{last}", last, num_dialogues, progress)
    measured = store.read_json(EVALUATION_FILE)
    lines = [] if measured is None else evaluation_lines(measured)
    for line in (*lines, *summary_lines(summary)):
        progress.say(line)
    progress.say(f"\nrun directory: {store.root}")
    if measured is not None:
        progress.say(f"all of it, with dialogues to read: stargate report {store.root}")


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The figures as lines of text."""
    yield from ("", "wall time by stage")
    for name, stage in summary["stages"].items():
        yield f"  {name:24}{stage['seconds']:8.1f} s"
    yield f"  {'whole run':24}{summary['seconds']:8.1f} s"
    if rollout := summary.get("rollout"):
        yield (
            f"\nrollouts: {rollout['num_dialogues']} dialogues, "
            f"{rollout['generated_tokens']} tokens, "
            f"{rollout['generated_tokens_per_s']:.0f} tokens/s"
        )
    if train := summary.get("train"):
        yield (
            f"training: {train['num_examples']} examples, {train['num_steps']} steps, "
            f"loss {train['loss_first']:.3f} -> {train['loss_last']:.3f}, "
            f"{train['tokens_per_s']:.0f} tokens/s"
        )
    if push := summary.get("push"):
        yield (
            f"weight push: version {push['version']} into {push['num_engines']} engine(s) "
            f"in {push['seconds']:.2f} s"
        )
    yield f"peak memory of all processes: {summary['peak_rss_gb']:.1f} GiB"
    yield from cost_lines(summary.get("roleplayer_cost"))
    if restarts := summary.get("restarts"):
        counts = (
            f"{r['count']} {role} (at most {r['longest_s']:.0f} s)" for role, r in restarts.items()
        )
        yield "died and started again: " + ", ".join(counts)
    if resent := summary.get("resent"):
        yield f"requests sent again: {_counted(resent)}"
    if steps := summary.get("repeated_steps"):
        yield f"optimizer steps done again: {steps}"
    for what in ("joined", "left"):
        if counted := summary.get(what):
            yield f"engines that {what} meanwhile: {_counted(counted)}"
    dropped = {**summary["data_dropped"], **summary["dropped"]}
    yield f"dropped records: {_counted(dropped) or 'none'}"
    for texts in summary["dropped_examples"].values():
        yield from (f"  {safe_text(text)}" for text in texts)


def cost_lines(cost: Mapping[str, Any] | None) -> list[str]:
    """What the Roleplayer's API has cost, if there is one."""
    if cost is None:
        return []
    calls, tokens = cost["calls"], (cost["prompt_tokens"], cost["completion_tokens"])
    line = f"Roleplayer's API: {calls} calls, {tokens[0]} + {tokens[1]} tokens"
    if cost["unpriced_calls"] < calls or not calls:
        line += f", cost {cost['money']:.6g}"
    if cost["unpriced_calls"]:
        line += f" ({cost['unpriced_calls']} calls have no price in roleplayer.oracle.cost.prices)"
    if cost["lost_calls"]:
        line += f"; {cost['lost_calls']} without an answer, perhaps {cost['lost_money']:.6g} more"
    return [line]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


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

"""How a training stage is laid out: who validates, which examples meet in a step, at which rate.

    examples -> split_validation -> plan_steps: [Step: [rank: [micro-batch: (example, ...)]]]
    step number -> learning_rate

Pure and repeatable: one seed and one list of examples give one plan, on every rank alike. The plan
holds indices only; what a micro-batch becomes on the device is the trainer's business.

A micro-batch has a fixed number of examples, which are padded to one length, or with packing as
many examples as fill a row of tokens (`Layout.max_row_tokens`). Examples of one group are never
parted between steps, and not between micro-batches either where the loss needs a group whole.
"""

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stargate.seeds import derive_seed

# Indices of the examples of one forward pass. Empty: this rank has nothing left and runs a pass of
# weight zero, because every rank must take part in every collective.
MicroBatch = tuple[int, ...]

# From this many examples on, a validation fraction above zero validates on at least one of them.
_MIN_EXAMPLES_TO_VALIDATE = 10


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the examples that are trained on and of those that are held out."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `ranks[r][i]` is the i-th micro-batch of rank r.

    All ranks have the same number of micro-batches; unequal counts would hang the collectives.
    """

    ranks: tuple[tuple[MicroBatch, ...], ...]

    @property
    def examples(self) -> tuple[int, ...]:
        """All example indices of the step, each once, in no order that means anything."""
        return tuple(i for micros in self.ranks for micro in micros for i in micro)


def split_validation(pair_ids: Sequence[str], fraction: float, seed: int) -> Split:
    """Holds out about `fraction` of the examples, whole pairs at a time.

    An example's neighbours from the same pair stay on its side, so that validation never sees a
    task and persona that was trained on. At least one pair always trains.

    Each pair has its place in a fixed order, so the sides of two iterations agree, though some
    pairs were dropped in one of them: one example more or less moves the border by one place at
    most. Else a model that goes on from the previous one would have learned what is held out.
    """
    wanted = round(fraction * len(pair_ids))
    if fraction > 0 and len(pair_ids) >= _MIN_EXAMPLES_TO_VALIDATE:
        wanted = max(1, wanted)
    sizes = Counter(pair_ids)
    pairs = sorted(sizes, key=lambda pair: (derive_seed(seed, "validation", pair), pair))
    held: set[str] = set()
    num_held = 0
    for pair in pairs[:-1]:
        if num_held >= wanted:
            break
        held.add(pair)
        num_held += sizes[pair]
    return Split(
        train=tuple(i for i, pair in enumerate(pair_ids) if pair not in held),
        validation=tuple(i for i, pair in enumerate(pair_ids) if pair in held),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a training stage: examples per step over all ranks, and per forward pass of one.

    With `max_row_tokens` a forward pass takes as many examples as have that many tokens together;
    an example that alone has more gets a pass of its own. With `whole_groups` a group counts as
    one example there.
    """

    batch_size: int
    micro_batch_size: int
    num_ranks: int
    max_row_tokens: int | None = None
    whole_groups: bool = False


def plan_steps(
    examples: Sequence[int],
    lengths: Sequence[int],
    layout: Layout,
    num_epochs: int,
    seed: int,
    groups: Sequence[str] = (),
) -> list[Step]:
    """The optimizer steps of all epochs. Each epoch uses every example once, in its own order.

    The last batch of an epoch may be smaller; it is used like any other. `lengths[i]` are the
    tokens of example i. Examples with the same `groups[i]` share a step, "" is a group of its own;
    a group that does not fit begins the next step, and one larger than a batch is a step.
    """
    steps = []
    for epoch in range(num_epochs):
        order = _grouped(examples, groups)
        random.Random(f"order:{seed}:{epoch}").shuffle(order)
        for batch in _batches(order, layout.batch_size):
            steps.append(share_out(batch, lengths, layout, groups))
    return steps


def share_out(
    batch: Sequence[int], lengths: Sequence[int], layout: Layout, groups: Sequence[str] = ()
) -> Step:
    """Deals one batch to the ranks.

    Longest first and to and fro ("snake"), so that the ranks get about equal tokens, examples of
    about equal length share a micro-batch (little padding), and the i-th micro-batches of all ranks
    take about equally long. The loss is normalised over the whole step, so the dealing does not
    change what is learned.
    """
    units = sorted(_grouped(batch, groups if layout.whole_groups else ()))
    sizes = [sum(lengths[i] for i in unit) for unit in units]
    hands: list[list[int]] = [[] for _ in range(layout.num_ranks)]
    by_size = sorted(range(len(units)), key=lambda unit: (-sizes[unit], unit))
    for place, unit in enumerate(by_size):
        lap, seat = divmod(place, layout.num_ranks)
        hands[seat if lap % 2 == 0 else layout.num_ranks - 1 - seat].append(unit)
    if layout.max_row_tokens is not None:
        rows = _rows(hands, sizes, layout.max_row_tokens)
        return Step(
            tuple(tuple(tuple(i for u in row for i in units[u]) for row in own) for own in rows)
        )
    micros = [tuple(_batches((units[u] for u in hand), layout.micro_batch_size)) for hand in hands]
    most = max(map(len, micros))
    return Step(tuple((*own, *([()] * (most - len(own)))) for own in micros))


def _grouped(examples: Sequence[int], groups: Sequence[str]) -> list[tuple[int, ...]]:
    """The examples of each group, groups in the order of their first examples."""
    found: dict[str | int, list[int]] = {}
    for i in examples:
        found.setdefault((groups[i] if groups else "") or i, []).append(i)
    return [tuple(members) for members in found.values()]


def _batches(units: Iterable[tuple[int, ...]], size: int) -> Iterator[MicroBatch]:
    """As many whole units side by side as have `size` examples; a larger one alone."""
    batch: MicroBatch = ()
    for unit in units:
        if batch and len(batch) + len(unit) > size:
            yield batch
            batch = ()
        batch += unit
    if batch:
        yield batch


def _rows(
    hands: Sequence[Sequence[int]], lengths: Sequence[int], max_tokens: int
) -> tuple[tuple[MicroBatch, ...], ...]:
    """Each rank's hand in rows of about equal tokens: as few rows as fit, equally many per rank."""
    most = max(map(len, hands))  # with one example a row everything fits
    fewest = max(
        math.ceil(sum(min(lengths[i], max_tokens) for i in hand) / max_tokens) for hand in hands
    )
    for num_rows in range(min(fewest, most), most):
        shared = tuple(_fill_rows(hand, lengths, num_rows) for hand in hands)
        if all(_fits(row, lengths, max_tokens) for rows in shared for row in rows):
            return shared
    return tuple(_fill_rows(hand, lengths, most) for hand in hands)


def _fill_rows(
    hand: Sequence[int], lengths: Sequence[int], num_rows: int
) -> tuple[MicroBatch, ...]:
    """The longest example that is left goes into the row that has fewest tokens."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled = [0] * num_rows
    for example in sorted(hand, key=lambda i: (-lengths[i], i)):
        row = filled.index(min(filled))
        rows[row].append(example)
        filled[row] += lengths[example]
    return tuple(tuple(row) for row in rows)


def _fits(row: MicroBatch, lengths: Sequence[int], max_tokens: int) -> bool:
    return len(row) == 1 or sum(lengths[i] for i in row) <= max_tokens


def learning_rate(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then half a cosine towards zero.

    Warm-up takes ceil(warmup_fraction x num_steps) steps and starts above zero, the cosine ends
    above zero: with few steps none is wasted at a rate of exactly 0.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step must be in 0..{num_steps - 1}, got {step}")
    # A warm-up that takes all steps would never reach the peak.
    num_warmup = min(math.ceil(warmup_fraction * num_steps), num_steps - 1)
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    progress = (step - num_warmup) / (num_steps - num_warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def plan_digest(steps: Sequence[Step]) -> str:
    """The sha256 of all steps: which example is computed when, and on which rank."""
    plan = json.dumps([step.ranks for step in steps])
    return hashlib.sha256(plan.encode()).hexdigest()

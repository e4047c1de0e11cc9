"""Skill: where a checkpoint stands between the best questionnaire and the facts themselves.

    skill = (checkpoint - constant list) / (gold facts told - constant list)

0 is what the same questions for everybody bring, 1 what knowing the gold's facts brings; below 0
asking does worse than a questionnaire. Each term is a mean over the (task, persona) cells that all
three have.

The interval is that of the ratio's linearisation (the delta method): with c, k and g a cell's
values, D = mean(g - k) and s the ratio, the cell's share of s is s + ((c - k) - s (g - k)) / D,
whose mean is s and whose spread is, to first order, that of s. It is good where D is many times its
own standard error, so there is no skill where D's interval reaches 0.
Coverage by simulation: tests/integration/test_interval_coverage.py.
"""

from collections.abc import Iterable

from stargate.evaluation.statistics import (
    BootstrapConfig,
    Measure,
    Observation,
    cell_means,
    measure,
)

# (checkpoint's, constant list's, gold facts') observations of one measure.
Observed = Iterable[Observation]


def skill(
    checkpoint: Observed, constant: Observed, gold_facts: Observed, config: BootstrapConfig
) -> Measure | str:
    """The skill with its interval; or why there is none."""
    of_checkpoint, floor, ceiling = map(cell_means, (checkpoint, constant, gold_facts))
    cells = sorted(of_checkpoint.keys() & floor.keys() & ceiling.keys())
    if not cells:
        return "no pair has a checkpoint's dialogue, a constant list's and told facts"
    room = measure((Observation(*cell, ceiling[cell] - floor[cell]) for cell in cells), config)
    if room.mean is None or room.ci_low is None or room.ci_low <= 0:
        return "told facts are not clearly above the constant list: there is nothing to divide by"
    gained = sum(of_checkpoint[cell] - floor[cell] for cell in cells) / len(cells)
    ratio = gained / room.mean
    return measure(
        (
            Observation(
                *cell,
                ratio
                + ((of_checkpoint[cell] - floor[cell]) - ratio * (ceiling[cell] - floor[cell]))
                / room.mean,
            )
            for cell in cells
        ),
        config,
    )

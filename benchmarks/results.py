"""What every benchmark says: ratios against something real in the same run, and plain figures.

    a benchmark module: RATIOS, configure(parser), measure(args, say) -> Measurement
    Measurement + this machine -> one JSON line (`record`) and a card for the screen (`card`)
    that line, in a file -> is a ratio worse than before, or than the baseline? (`Ratio.loss`)

A ratio travels between machines, an absolute time does not: goals and comparisons are about ratios.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stargate.errors import DataError
from stargate.resources.machine import environment

Say = Callable[[str], None]

BASELINES = Path(__file__).parent / "baselines"
# A ratio of one machine's noise moves by a few percent; more than this is a change.
MAX_LOSS = 0.10
# What a record's hardware is, of all that is known about the machine.
_HARDWARE = ("cpu", "cores", "memory_total_gb", "gpus", "system")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One ratio: its numerator and denominator in words, and the value that is aimed at."""

    meaning: str
    goal: float
    higher_is_better: bool = True

    def reached(self, value: float) -> bool:
        return value >= self.goal if self.higher_is_better else value <= self.goal

    def loss(self, before: float, now: float) -> float:
        """The share that was lost; below 0 it was a gain."""
        return 1.0 - (now / before if self.higher_is_better else before / now)

    @property
    def aim(self) -> str:
        return f"{'>=' if self.higher_is_better else '<='} {self.goal:g}"


@dataclass(frozen=True)
class Measurement:
    """What one run of a benchmark found. `figures` are numbers, or groups of numbers by name."""

    ratios: Mapping[str, float]
    figures: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Protocol):
    """A module of this folder; its docstring is the description in `--help`.

    Neither ray nor torch is imported before `measure`: help is instant.
    """

    RATIOS: Mapping[str, Ratio]

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the benchmark's options."""
        ...

    def measure(self, args: argparse.Namespace, say: Say) -> Measurement:
        """Measures everything in this run. `say` shows a line of progress."""
        ...


def record(name: str, measured: Measurement, options: Mapping[str, Any]) -> dict[str, Any]:
    """The result as one JSON object: with the machine, the versions and the commit."""
    machine = environment()
    return {
        "benchmark": name,
        "ratios": {key: _rounded(value) for key, value in measured.ratios.items()},
        "figures": _rounded(dict(measured.figures)),
        "options": {key: str(value) for key, value in options.items() if value is not None},
        "hardware": {key: machine[key] for key in _HARDWARE},
        "versions": {"python": machine["python"], **machine["packages"]},
        "commit": machine["git_commit"],
        "dirty": machine["git_dirty"],
    }


def card(result: Mapping[str, Any], ratios: Mapping[str, Ratio]) -> str:
    """The result for the screen."""
    hardware = result["hardware"]
    gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"]) or "no GPU"
    lines = [f"{result['benchmark']}: {hardware['cpu']}, {hardware['cores']} cores, {gpus}"]
    for name, value in result["ratios"].items():
        aim = ratios[name]
        verdict = "reached" if aim.reached(value) else "NOT reached"
        lines.append(f"  {name:<20} {value:>10.3f}   goal {aim.aim:<8} {verdict}")
        lines.append(f"    {aim.meaning}")
    lines += _figure_lines(result["figures"], "  ")
    return "\n".join(lines)


def _figure_lines(figures: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _figure_lines(value, indent + "  ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
            yield f"{indent}{name:<32} {shown}"


def _rounded(value: Any) -> Any:
    """Numbers with the digits that a measurement has."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read_result(file: Path) -> dict[str, Any]:
    """A result from a file that holds its JSON line. Raises DataError."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"{file}: not a benchmark's JSON line ({error}); make one with "
            "`stargate bench NAME --json FILE`"
        ) from error
    if not isinstance(result, dict) or not isinstance(result.get("benchmark"), str):
        raise DataError(f"{file}: not a benchmark's result: it names no benchmark")
    values = result.get("ratios")
    if not isinstance(values, dict) or not all(
        isinstance(value, int | float) and math.isfinite(value) and value > 0
        for value in values.values()
    ):
        raise DataError(f"{file}: ratios must be positive numbers by name, got {values!r}")
    return result

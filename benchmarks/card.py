"""What every benchmark says: ratios against something real in the same run, and plain figures.

    a benchmark module: HELP, RATIOS, configure(parser), measure(args, say) -> Measurement
    Measurement + this machine -> one JSON line (`record`) and a card for the screen (`card`)

A ratio travels between machines, an absolute time does not: goals and comparisons are about ratios.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stargate.resources.machine import environment

Say = Callable[[str], None]

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

    @property
    def aim(self) -> str:
        return f"{'>=' if self.higher_is_better else '<='} {self.goal:g}"


@dataclass(frozen=True)
class Measurement:
    """What one run of a benchmark found. `figures` are numbers, or groups of numbers by name."""

    ratios: Mapping[str, float]
    figures: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Protocol):
    """A module of this folder. Nothing heavy is imported before `measure`."""

    HELP: str
    RATIOS: Mapping[str, Ratio]

    def configure(self, parser: Any) -> None:
        """Adds the benchmark's options."""
        ...

    def measure(self, args: Any, say: Say) -> Measurement:
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


def json_line(result: Mapping[str, Any]) -> str:
    """The result as one line."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _figure_lines(figures: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name}")
            lines += _figure_lines(value, indent + "  ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{name:<32} {shown}")
    return lines


def _rounded(value: Any) -> Any:
    """Numbers with the digits that a measurement has."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value

"""How findings and numbers are worded: levels, directions, as many digits as are certain."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stargate.evaluation.catalog import Unit, measure_info
from stargate.evaluation.statistics import Measure
from stargate.report.records import Evaluation

Level = Literal["good", "bad", "even", "warn", "plain"]
DASH = "\u2013"
_MINUS = "\u2212"
_MAX_DIGITS = 4
# Decimals by unit where no interval says how many are certain. A share is written in percent.
_DIGITS: dict[Unit, int] = {
    "nats": 1,
    "nats_per_token": 3,
    "share": 1,
    "count": 2,
    "ratio": 2,
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One statement, and how to take it."""

    level: Level
    text: str


def direction(change: Measure) -> Literal[-1, 0, 1] | None:
    """1 where the interval is above 0, -1 below, 0 where it contains 0; None without interval."""
    if change.ci_low is None or change.ci_high is None:
        return None
    return 1 if change.ci_low > 0 else -1 if change.ci_high < 0 else 0


def confidence(evaluation: Evaluation) -> str:
    """For example "95 %"."""
    return f"{100 * evaluation.confidence:g} %"


def unit_of(name: str) -> Unit:
    info = measure_info(name)
    return info.unit if info else "count"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Writes numbers of one kind. `digits` are the decimals; shares are in percent."""

    unit: Unit
    digits: int

    @classmethod
    def usual(cls, unit: Unit) -> "Numbers":
        """With the decimals that a column of such numbers has."""
        return cls(unit, _DIGITS[unit])

    @classmethod
    def of(cls, value: Measure, unit: Unit) -> "Numbers":
        """With two significant digits of the interval's half width: what is beyond is noise."""
        scale = 100.0 if unit == "share" else 1.0
        if value.ci_low is None or value.ci_high is None or value.ci_low == value.ci_high:
            return cls(unit, 0 if unit == "share" else 2)
        half = scale * (value.ci_high - value.ci_low) / 2
        return cls(unit, min(max(1 - math.floor(math.log10(half)), 0), _MAX_DIGITS))

    @classmethod
    def of_all(cls, values: Iterable[Measure], unit: Unit) -> "Numbers":
        """As many decimals as the most certain of them deserves, so that a row lines up."""
        return cls(unit, max((cls.of(value, unit).digits for value in values), default=0))

    def bare(self, value: float, *, signed: bool = False) -> str:
        """Without a unit: "12", "\u22120.45"."""
        number = round(value * 100 if self.unit == "share" else value, self.digits)
        sign = _MINUS if number < 0 else "+" if signed and number > 0 else ""
        return f"{sign}{abs(number):,.{self.digits}f}"

    def value(self, value: float | None, *, signed: bool = False) -> str:
        """A level ("12 %", "1.25") or, signed, a change ("+12 pp"); a dash where there is none."""
        if value is None:
            return DASH
        suffix = "" if self.unit != "share" else " pp" if signed else " %"
        return self.bare(value, signed=signed) + suffix

    def shift(self, value: float, words: str = "", *, signed: bool = False) -> str:
        """A change with its unit: "12 percentage points", "1.25 nats"."""
        points = " percentage points" if self.unit == "share" else ""
        return self.bare(value, signed=signed) + (points or words)

    def interval(self, low: float | None, high: float | None, *, signed: bool = False) -> str:
        """For example "0.50 to 1.25", without the unit; empty where there is none."""
        if low is None or high is None:
            return ""
        return f"{self.bare(low, signed=signed)} to {self.bare(high, signed=signed)}"


def format_value(value: float | None, unit: Unit, *, signed: bool = False) -> str:
    """A number with its unit's usual decimals: "72.5 %", "\u2212612.3"; a dash where it is None."""
    return Numbers.usual(unit).value(value, signed=signed)

"""How findings are worded: levels, directions, and numbers as precise as they are certain."""

import math
from dataclasses import dataclass
from typing import Literal

from stargate.evaluation.statistics import Measure
from stargate.report.measures import Unit, measure_info
from stargate.report.records import Evaluation

Level = Literal["good", "bad", "even", "warn", "plain"]
_DEFAULT_CONFIDENCE = 0.95
_MINUS = "\u2212"
_MAX_DIGITS = 4


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
    return f"{100 * (evaluation.about.confidence or _DEFAULT_CONFIDENCE):g} %"


def unit_of(name: str) -> Unit:
    info = measure_info(name)
    return info.unit if info else "count"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Writes the numbers of one finding. `digits` are the decimals; shares are in percent."""

    unit: Unit
    digits: int

    @classmethod
    def of(cls, value: Measure, unit: Unit) -> "Numbers":
        """With two significant digits of the interval's half width: what is beyond is noise."""
        scale = 100.0 if unit == "share" else 1.0
        if value.ci_low is None or value.ci_high is None or value.ci_low == value.ci_high:
            return cls(unit, 0 if unit == "share" else 2)
        half = scale * (value.ci_high - value.ci_low) / 2
        return cls(unit, min(max(1 - math.floor(math.log10(half)), 0), _MAX_DIGITS))

    def bare(self, value: float, *, signed: bool = False) -> str:
        """Without a unit: "12", "\u22120.45"."""
        number = round(value * 100 if self.unit == "share" else value, self.digits)
        sign = _MINUS if number < 0 else "+" if signed and number > 0 else ""
        return f"{sign}{abs(number):,.{self.digits}f}"

    def value(self, value: float) -> str:
        """A level: "12 %", "1.25"."""
        return self.bare(value) + (" %" if self.unit == "share" else "")

    def shift(self, value: float, words: str = "", *, signed: bool = False) -> str:
        """A change with its unit: "12 percentage points", "1.25 nats"."""
        points = " percentage points" if self.unit == "share" else ""
        return self.bare(value, signed=signed) + (points or words)

    def interval(self, value: Measure, *, signed: bool = False) -> str:
        """For example "0.50 to 1.25"; empty where there is none."""
        if value.ci_low is None or value.ci_high is None:
            return ""
        low, high = (self.bare(end, signed=signed) for end in (value.ci_low, value.ci_high))
        return f"{low} to {high}"

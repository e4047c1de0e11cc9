"""Is a benchmark's result worse than an earlier one? Ratios only: they travel between machines.

stargate bench rollout --json new.json
stargate bench compare new.json                       against the baseline of this checkout
stargate bench compare new.json --against old.json
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stargate.benchmarks.card import Ratio
from stargate.errors import DataError

BASELINES = Path(__file__).parent / "baselines"
# A ratio of one machine's noise moves by a few percent; more than this is a change.
MAX_LOSS = 0.10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio, before and now. `loss` is the share that was lost; below 0 it was a gain."""

    name: str
    before: float
    now: float | None
    loss: float

    @property
    def fell(self) -> bool:
        return self.loss > MAX_LOSS


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], ratios: Mapping[str, Ratio]
) -> list[Comparison]:
    """Every ratio of `before`. One that is no longer measured has fallen as far as it can."""
    found = []
    for name, old in before["ratios"].items():
        new = now["ratios"].get(name)
        if new is None:
            found.append(Comparison(name, old, None, 1.0))
            continue
        rising = ratios[name].higher_is_better if name in ratios else True
        found.append(Comparison(name, old, new, 1.0 - (new / old if rising else old / new)))
    return found


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
    if not isinstance(values, dict) or not all(map(_is_positive, values.values())):
        raise DataError(f"{file}: ratios must be positive numbers by name, got {values!r}")
    return result


def baseline_file(name: str) -> Path:
    """Where the checked-in result of a benchmark lies."""
    return BASELINES / f"{name}.json"


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0

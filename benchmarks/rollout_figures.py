"""From finished requests to figures. Pure: nothing here knows Ray or vLLM.

request id "DIALOGUE/q0" is a dialogue's first question, "DIALOGUE/a0" the answer to it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from typing import Any

from stargate.types import GenerateRequest

QUESTIONER, ROLEPLAYER = "questioner", "roleplayer"


@dataclass(frozen=True, slots=True)
class Served:
    """One finished request. Times are seconds of its machine's monotonic clock."""

    request: GenerateRequest
    num_generated: int
    num_cached: int
    submitted: float
    finished: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass asked of the engines, and the prompt tokens found in prefix caches."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0

    @classmethod
    def of(cls, request: GenerateRequest, num_generated: int, num_cached: int) -> "Work":
        return cls(1, len(request.prompt_ids), num_generated, num_cached)

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(add, astuple(self), astuple(other)))


@dataclass
class StepFigures:
    """What vLLM's steps looked like. `queue_seconds`: per request, until it was first scheduled."""

    num_steps: int = 0
    num_running: int = 0  # summed over steps
    num_waiting: int = 0  # summed over steps
    peak_kv_usage: float = 0.0
    num_preempted: int = 0
    queue_seconds: list[float] = field(default_factory=list)


@dataclass
class EngineRecord:
    """What one engine did in a pass. `num_calls`: remote calls that bring requests or fetch texts;
    `busy_seconds`: with at least one request in flight.
    """

    served: list[Served] = field(default_factory=list)
    num_calls: int = 0
    busy_seconds: float = 0.0
    steps: StepFigures = field(default_factory=StepFigures)


@dataclass(frozen=True, slots=True, order=True)
class Phase:
    """All requests of one turn and role. Phases sort in the order of a lock-step loop."""

    turn: int
    is_answer: bool

    @property
    def role(self) -> str:
        return ROLEPLAYER if self.is_answer else QUESTIONER


def place_of(request_id: str) -> tuple[str, Phase]:
    """The dialogue and the phase of a request. Raises ValueError for an id of another form."""
    found = re.fullmatch(r"(.+)/([qa])(\d+)", request_id)
    if found is None:
        raise ValueError(f"request id {request_id!r} names no dialogue's question or answer")
    return found[1], Phase(int(found[3]), found[2] == "a")


def phases(served: Iterable[Served]) -> list[Phase]:
    """The phases in which a lock-step loop would do these requests."""
    return sorted({place_of(one.request.request_id)[1] for one in served})


def turn_seconds(served: Iterable[Served]) -> list[float]:
    """Per turn: from its question's submission to the next one's, or to the dialogue's last text.

    So all that lies between two texts counts: remote calls, prompts, matching of facts.
    """
    dialogues: dict[str, dict[Phase, Served]] = {}
    for one in served:
        dialogue, phase = place_of(one.request.request_id)
        dialogues.setdefault(dialogue, {})[phase] = one
    found = []
    for texts in dialogues.values():
        for phase, question in texts.items():
            if phase.is_answer:
                continue
            following = texts.get(Phase(phase.turn + 1, False))
            last = texts.get(Phase(phase.turn, True), question)
            end = following.submitted if following is not None else last.finished
            found.append(end - question.submitted)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which about `share` of the values lie: one of them, never between two."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def role_figures(engines: Sequence[EngineRecord], seconds: float) -> dict[str, Any]:
    """Figures of one role's engines in one pass of `seconds`."""
    served = [one for engine in engines for one in engine.served]
    prompt = sum(len(one.request.prompt_ids) for one in served)
    generated = sum(one.num_generated for one in served)
    return {
        "requests": len(served),
        "busy_share": sum(engine.busy_seconds for engine in engines) / seconds / len(engines),
        "generated_tokens_per_s": generated / seconds,
        "tokens_per_text": generated / max(1, len(served)),
        "prompt_tokens_per_text": prompt / max(1, len(served)),
        "prefix_cache_hit_rate": sum(one.num_cached for one in served) / max(1, prompt),
        **step_figures([engine.steps for engine in engines]),
    }


def step_figures(steps: Sequence[StepFigures]) -> dict[str, float]:
    """vLLM's own figures of a role, from those of its engines."""
    num_steps = max(1, sum(one.num_steps for one in steps))
    queued = [seconds for one in steps for seconds in one.queue_seconds] or [0.0]
    return {
        "mean_running": sum(one.num_running for one in steps) / num_steps,
        "mean_waiting": sum(one.num_waiting for one in steps) / num_steps,
        "peak_kv_usage": max((one.peak_kv_usage for one in steps), default=0.0),
        "preempted": float(sum(one.num_preempted for one in steps)),
        "queue_p50_s": percentile(queued, 0.50),
        "queue_p99_s": percentile(queued, 0.99),
    }

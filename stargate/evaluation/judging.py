"""Asks a judge about bouts, in both orders, and keeps every verdict.

    bouts x 2 orders -> prompt -> ask -> verdict -> row of `verdicts` on disk

What the table has already is not asked again. A reply that is refused, cut off, empty or absent is
an unparsable verdict: it is kept with what was said, counted, and bounded in the win rate. Behind
`ask` is an Oracle, remote or the run's own engine: its cache, limits, retries and budget hold, and
concurrency is its matter.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stargate.config.files import packaged_configs_dir
from stargate.config.judge import ApiBackend, JudgeConfig
from stargate.config.oracle import LocalOracleConfig
from stargate.errors import ConfigError, DataError
from stargate.evaluation.comparisons import Bout, Order
from stargate.evaluation.verdicts import VERDICT_SCHEMA, Verdict, parse_verdict
from stargate.oracle.open import open_oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, ChatResult, Complete, JsonSchema
from stargate.protocols import Generate
from stargate.records.schemas import Row
from stargate.rollout.dialogue import require_room
from stargate.rollout.tasks import task_group
from stargate.text.chat import ChatFormat, Message
from stargate.text.prompts import TemplateFile, load_template_file

_SCHEMA = JsonSchema.of("verdict", VERDICT_SCHEMA)
# The statuses whose text is a whole reply. INVALID: text around a JSON object, which the parser
# knows how to read or not.
_WHOLE = (AnswerStatus.OK, AnswerStatus.INVALID)


class JudgePrompts(TemplateFile):
    """What the judge is told.

    turn         {name, persona, task, response_a, response_b, verdict}; all but the first and the
                 last have "| " before each line
    text         the `verdict` for a last line
    json_schema  the `verdict` for a JSON object
    praise       not for the judge: the answer that says nothing, against which it is tried
    """

    turn: str
    text: str
    json_schema: str
    praise: str


def load_judge_prompts(name: str) -> JudgePrompts:
    """A packaged judge prompt by name, or one from a YAML file. Raises ConfigError."""
    return load_template_file(JudgePrompts, packaged_configs_dir() / "prompts", name)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer of a judge. `problem` is why a verdict is unparsable: a status of the Oracle, or
    "no_verdict" for a whole reply without one.
    """

    verdict: Verdict
    reply: str
    problem: str | None = None


Ask = Callable[[Bout, Order], Awaitable[Judgement]]


class Judge:
    """A judge that can be asked; `ask` is an Ask. `model` is what its Oracle's requests name."""

    def __init__(
        self, oracle: Complete, config: JudgeConfig, prompts: JudgePrompts, model: str
    ) -> None:
        self.model = model
        self.prompts = prompts
        self._oracle = oracle
        self._max_tokens = config.max_reply_tokens
        backend = config.backend
        self._temperature = backend.temperature if isinstance(backend, ApiBackend) else 0.0
        self._is_json = isinstance(backend, ApiBackend) and backend.verdict == "json_schema"

    async def ask(self, bout: Bout, order: Order) -> Judgement:
        """Raises StargateError only where no other bout could be judged either."""
        return self._judgement(await self._oracle.complete(self.request(bout, order)))

    def request(self, bout: Bout, order: Order) -> ChatRequest:
        """What is asked."""
        shown = (bout.candidate, bout.baseline)
        first, second = shown if order is Order.CANDIDATE_FIRST else reversed(shown)
        prompts = self.prompts
        text = prompts.render(
            prompts.turn,
            name=bout.pair.persona.name,
            persona=quoted(bout.pair.persona.text),
            task=quoted(bout.pair.task.text),
            response_a=quoted(first.text),
            response_b=quoted(second.text),
            verdict=prompts.render(prompts.json_schema if self._is_json else prompts.text),
        )
        return ChatRequest(
            (Message("user", text),),
            self.model,
            self._max_tokens,
            temperature=self._temperature,
            schema=_SCHEMA if self._is_json else None,
            purpose="verdict",
            record=f"{bout.where} {order}",
        )

    def _judgement(self, result: ChatResult) -> Judgement:
        if result.status not in _WHOLE:
            said = result.text or f"(no reply: {result.status}: {result.detail})"
            return Judgement(Verdict.UNPARSABLE, said, str(result.status))
        verdict = parse_verdict(result.text, "json" if self._is_json else "line")
        problem = "no_verdict" if verdict is Verdict.UNPARSABLE else None
        return Judgement(verdict, result.text, problem)


@dataclass(frozen=True, slots=True)
class JudgeEngine:
    """A running engine that may judge: the Roleplayer's. `model` must change with its weights."""

    generate: Generate
    chat: ChatFormat
    max_model_len: int
    model: str


@asynccontextmanager
async def open_judge(
    config: JudgeConfig, cache_path: str | Path, engine: JudgeEngine | None = None
) -> AsyncIterator[Judge]:
    """The judge that a config names. `engine` is needed for `type: engine` only.

    `cache_path` keeps every reply, so that none is paid twice.
    """
    prompts = load_judge_prompts(config.prompts)
    backend = config.backend
    if isinstance(backend, ApiBackend):
        async with open_oracle(backend.oracle, cache_path) as oracle:
            yield Judge(oracle, config, prompts, backend.oracle.model)
        return
    if engine is None:
        raise ConfigError(
            "judge.backend: type: engine needs the Roleplayer's engine, which this command does "
            "not start: use type: api"
        )
    chat, max_model_len = engine.chat, engine.max_model_len

    def render(messages: Sequence[Message]) -> tuple[int, ...]:
        prompt_ids = chat.prompt_ids(messages)
        require_room(prompt_ids, config.max_reply_tokens, max_model_len, "verdict")
        return prompt_ids

    local = LocalOracleConfig(type="local", max_concurrency=backend.max_concurrency)
    async with open_oracle(
        local, cache_path, generate=engine.generate, render=render, model=engine.model
    ) as oracle:
        yield Judge(oracle, config, prompts, engine.model)


@dataclass
class Judged:
    """What became of the verdicts that were asked now."""

    num_asked: int = 0
    problems: Counter[str] = field(default_factory=Counter)  # unparsable ones, by reason


async def judge_all(
    bouts: Sequence[Bout],
    ask: Ask,
    keep: Callable[[Sequence[Row]], Awaitable[None]],
    known: Iterable[Row] = (),
    advance: Callable[[], object] = lambda: None,
) -> Judged:
    """Asks both orders of every bout side by side, and keeps each verdict as it comes.

    `keep` makes rows of `verdicts` durable; `known` are the rows that the table has. Raises
    DataError if those are about other responses than the bouts', and what `ask` raises.
    """
    texts = {_key(row): (row["candidate_text"], row["baseline_text"]) for row in known}
    done = Judged()
    wanted: dict[tuple[str, ...], tuple[Bout, Order]] = {}
    for bout in bouts:
        for order in Order:
            key = _key(_columns(bout, order))
            if key in wanted:
                raise ValueError(f"{bout.where}: stands twice among the bouts")
            wanted[key] = bout, order
            if key in texts and texts[key] != (bout.candidate.text, bout.baseline.text):
                raise DataError(
                    f"verdicts: {bout.where}: was judged with other texts; remove the table "
                    "`verdicts` of this evaluation to have it judged again"
                )

    async def one(bout: Bout, order: Order) -> None:
        judgement = await ask(bout, order)
        verdict = {"verdict": str(judgement.verdict), "reply": judgement.reply}
        await keep([{**_columns(bout, order), **verdict}])
        done.num_asked += 1
        if judgement.verdict is Verdict.UNPARSABLE:
            done.problems[judgement.problem or "no_verdict"] += 1
        advance()

    async with task_group() as group:
        for key, (bout, order) in wanted.items():
            if key in texts:
                advance()
            else:
                group.create_task(one(bout, order))
    return done


def quoted(text: str) -> str:
    """`text` with "| " before every line, whatever ends it: no line can pass for one of ours."""
    return "\n".join(f"| {line}".rstrip() for line in text.splitlines() or [""])


def _columns(bout: Bout, order: Order) -> Row:
    """The columns of one row of `verdicts` that are known before the judge is asked."""
    return {
        "comparison": bout.comparison,
        "task_id": bout.pair.task.id,
        "persona_id": bout.pair.persona.id,
        "candidate": bout.candidate.label,
        "baseline": bout.baseline.label,
        "order": str(order),
        "candidate_text": bout.candidate.text,
        "baseline_text": bout.baseline.text,
        "candidate_length": bout.candidate.length,
        "baseline_length": bout.baseline.length,
    }


def _key(row: Row) -> tuple[str, ...]:
    """What names a verdict: a bout and its order."""
    columns = ("comparison", "task_id", "persona_id", "candidate", "baseline", "order")
    return tuple(row[column] for column in columns)

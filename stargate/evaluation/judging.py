"""Asks a judge about comparisons, in both orders, and keeps every verdict.

    responses -> the judge's trials (m_0), own and fixed (m_t) -> comparisons
    comparisons x 2 orders -> prompt -> ask -> verdict -> row of `verdicts` on disk

What the table has already is not asked again. A reply that is refused, cut off, empty or absent is
an unparsable verdict: it is kept with what was said, counted, and bounded in the win rate. Behind
`ask` is an Oracle, remote or the run's own engine: its cache, limits, retries and budget hold, and
concurrency is its matter.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stargate.config.files import packaged_configs_dir
from stargate.config.judge import ApiBackend, JudgeConfig
from stargate.config.oracle import LocalOracleConfig
from stargate.config.run import RunConfig
from stargate.errors import ConfigError, DataError
from stargate.evaluation.comparisons import (
    Comparison,
    Order,
    Response,
    choose_pairs,
    trial_comparisons,
    win_rate_comparisons,
)
from stargate.evaluation.playing import scope_of
from stargate.evaluation.verdicts import VERDICT_SCHEMA, Verdict, parse_verdict
from stargate.oracle.open import open_oracle
from stargate.oracle.records import AnswerStatus, ChatRequest, Complete, JsonSchema
from stargate.protocols import Generate
from stargate.records.schemas import Row
from stargate.rollout.questioner import require_room
from stargate.rollout.tasks import task_group
from stargate.run_context import RunContext
from stargate.text.chat import ChatFormat, Message
from stargate.text.formats import heard_from
from stargate.text.prompts import TemplateFile, load_template_file
from stargate.types import Pair

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


Ask = Callable[[Comparison, Order], Awaitable[Judgement]]


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

    async def ask(self, comparison: Comparison, order: Order) -> Judgement:
        """Raises StargateError only where no other comparison could be judged either."""
        result = await self._oracle.complete(self.request(comparison, order))
        if result.status not in _WHOLE:
            said = result.text or f"(no reply: {result.status}: {result.detail})"
            return Judgement(Verdict.UNPARSABLE, said, str(result.status))
        verdict = parse_verdict(result.text, "json" if self._is_json else "line")
        problem = "no_verdict" if verdict is Verdict.UNPARSABLE else None
        return Judgement(verdict, result.text, problem)

    def request(self, comparison: Comparison, order: Order) -> ChatRequest:
        """What is asked."""
        shown = (comparison.candidate, comparison.baseline)
        first, second = shown if order is Order.CANDIDATE_FIRST else reversed(shown)
        prompts = self.prompts
        text = prompts.render(
            prompts.turn,
            name=comparison.pair.persona.name,
            persona=quoted(comparison.pair.persona.text),
            task=quoted(comparison.pair.task.text),
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
            record=f"{comparison.where} {order}",
        )


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
    backend = config.backend
    if isinstance(backend, ApiBackend):
        model = backend.oracle.model
        opened = open_oracle(backend.oracle, cache_path)
    elif engine is None:
        raise ConfigError(
            "judge.backend: type: engine needs the Roleplayer's engine, which this command does "
            "not start: use type: api"
        )
    else:
        chat, max_model_len, model = engine.chat, engine.max_model_len, engine.model

        def render(messages: Sequence[Message]) -> tuple[int, ...]:
            prompt_ids = chat.prompt_ids(messages)
            require_room(prompt_ids, config.max_reply_tokens, max_model_len, "verdict")
            return prompt_ids

        local = LocalOracleConfig(type="local", max_concurrency=backend.max_concurrency)
        opened = open_oracle(
            local,
            cache_path,
            generate=heard_from(engine.generate, chat),
            render=render,
            model=model,
        )
    async with opened as oracle:
        yield Judge(oracle, config, load_judge_prompts(config.prompts), model)


async def judge_all(
    comparisons: Sequence[Comparison],
    ask: Ask,
    keep: Callable[[Sequence[Row]], Awaitable[None]],
    known: Iterable[Row] = (),
    advance: Callable[[], object] = lambda: None,
) -> tuple[int, Counter[str]]:
    """Asks both orders of every comparison side by side, and keeps each verdict as it comes.

    `keep` makes rows of `verdicts` durable; `known` are the rows that the table has. Returns how
    many were asked now, and how many of those are unparsable, by reason. Raises DataError if the
    known ones are about other responses than the comparisons', and what `ask` raises.
    """
    texts = {_key(row): (row["candidate_text"], row["baseline_text"]) for row in known}
    problems: Counter[str] = Counter()
    wanted: dict[tuple[str, ...], tuple[Comparison, Order]] = {}
    for comparison in comparisons:
        for order in Order:
            key = _key(_columns(comparison, order))
            if key in wanted:
                raise ValueError(f"{comparison.where}: stands twice among the comparisons")
            wanted[key] = comparison, order
            if key in texts and texts[key] != (comparison.candidate.text, comparison.baseline.text):
                raise DataError(
                    f"verdicts: {comparison.where}: was judged with other texts; remove the table "
                    "`verdicts` of this evaluation to have it judged again"
                )
    missing = [asked for key, asked in wanted.items() if key not in texts]

    async def one(comparison: Comparison, order: Order) -> None:
        judgement = await ask(comparison, order)
        verdict = {"verdict": str(judgement.verdict), "reply": judgement.reply}
        await keep([{**_columns(comparison, order), **verdict}])
        if judgement.problem is not None:
            problems[judgement.problem] += 1
        advance()

    async with task_group() as group:
        for _ in range(len(wanted) - len(missing)):
            advance()
        for asked in missing:
            group.create_task(one(*asked))
    return len(missing), problems


async def judge_checkpoints(
    versions: Sequence[int],
    pairs: Sequence[Pair],
    engine: JudgeEngine | None,
    context: RunContext,
) -> None:
    """Judges the responses of all `versions`, and tries the judge. Goes on where it was stopped."""
    config, store = context.config.evaluation.judge, context.store
    if config is None:
        return
    drop = context.counters.drop
    chosen = choose_pairs(pairs, config.max_pairs, context.config.seed)
    responses = {
        version: [Response(**row) for row in store.read(scope_of(version), "responses")]
        for version in {0, *versions}
    }
    async with open_judge(config, store.root / "judge.sqlite", engine) as judge:
        for version in versions:
            scope, said, m0 = scope_of(version), responses[version], responses[0]
            if version == 0:
                praise, count = judge.prompts.praise, context.chat.count
                comparisons = trial_comparisons(chosen, pairs, m0, praise, count, drop)
            else:
                comparisons = win_rate_comparisons(version, chosen, said, m0, drop)
            keep, known = partial(store.append, scope, "verdicts"), store.read(scope, "verdicts")
            size = 2 * len(comparisons)
            with context.progress.stage(f"{scope} judge", size, "verdicts") as stage:
                stage.begin()
                asked, problems = await judge_all(
                    comparisons, judge.ask, keep, known, stage.advance
                )
            store.compact(scope)
            for problem, number in problems.most_common():
                context.progress.say(f"{scope}: {number} of {asked} verdicts unparsable: {problem}")


def judge_name(config: RunConfig) -> str | None:
    """The model that judges, for eval.json; None without a judge."""
    judge = config.evaluation.judge
    if judge is None:
        return None
    if isinstance(judge.backend, ApiBackend):
        return judge.backend.oracle.model
    return config.roleplayer.model


def quoted(text: str) -> str:
    """`text` with "| " before every line, whatever ends it: no line can pass for one of ours."""
    return "\n".join(f"| {line}".rstrip() for line in text.splitlines() or [""])


def _columns(comparison: Comparison, order: Order) -> Row:
    """The columns of one row of `verdicts` that are known before the judge is asked."""
    return {
        "comparison": comparison.name,
        "task_id": comparison.pair.task.id,
        "persona_id": comparison.pair.persona.id,
        "candidate": comparison.candidate.label,
        "baseline": comparison.baseline.label,
        "order": str(order),
        "candidate_text": comparison.candidate.text,
        "baseline_text": comparison.baseline.text,
        "candidate_length": comparison.candidate.length,
        "baseline_length": comparison.baseline.length,
    }


def _key(row: Row) -> tuple[str, ...]:
    """What names a verdict: a comparison and its order."""
    columns = ("comparison", "task_id", "persona_id", "candidate", "baseline", "order")
    return tuple(row[column] for column in columns)

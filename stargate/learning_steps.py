"""The step of an iteration that sees all of its pairs: for an algorithm that compares them.

    pairs, golds  -> what each fact is worth (scored once per pair, kept in `fact_values`)
    all questions -> what each would bring out of each persona (replay, no generation)
                  -> the algorithm learns from all scored groups -> `examples`

It runs again on resume and gives the same examples; what is on disk already stays.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from stargate.algorithm.base import IterationAlgorithm, Material, ScoredGroup
from stargate.algorithm.rewards import area_under_curve
from stargate.config.roleplayer import FactsGrounding
from stargate.errors import ConfigError, RecordDropped
from stargate.protocols import Score
from stargate.records.schemas import record_row
from stargate.rollout.question_text import Key, question_key, tasks_with_copies
from stargate.rollout.roleplayer import facts_asked_for
from stargate.rollout.tasks import run_bounded
from stargate.run_context import Roles, RunContext
from stargate.types import Pair, ScoreRequest, StopReason, TrainingExample

# Pairs whose facts are scored at once: some hundred short texts keep every scorer busy.
_PAIRS_AT_ONCE = 8
# Questions that share one prompt in a pass.
_QUESTIONS_AT_ONCE = 64


async def learn_from_all(
    scope: str,
    groups: Sequence[ScoredGroup],
    algorithm: IterationAlgorithm,
    roles: Roles,
    context: RunContext,
) -> None:
    """Makes the examples of an iteration; they are on disk when this returns."""
    with context.counters.stage("learn"):
        material = Material(groups, _near_questions(groups))
        if algorithm.needs.fact_values:
            pairs = sorted((group.pair for group in groups), key=lambda pair: pair.id)
            values = await fact_values(scope, pairs, roles, context)
            brings_out = await replay(groups, roles, context)
            material = replace(material, fact_values=values, brings_out=brings_out)
        if algorithm.needs.question_fit:
            material = replace(material, fit=await question_fit(groups, roles, context))
        examples = list(algorithm.learn(material, context.counters.drop))
        if context.store.num_rows(scope, "examples") != len(examples):
            if algorithm.needs.reference_logprobs:
                examples = await with_reference(examples, roles.score)
            rows = [record_row(example) for example in examples]
            context.store.keep(scope, "examples", lambda row: False)
            await context.store.append(scope, "examples", rows)


async def with_reference(
    examples: Sequence[TrainingExample], score: Score
) -> list[TrainingExample]:
    """The examples with log p of their tokens under m_0; 0 for the first, unpredicted one."""
    requests = [
        ScoreRequest(
            f"{example.dialogue_id}#{number}", example.input_ids[:1], (example.input_ids[1:],)
        )
        for number, example in enumerate(examples)
    ]
    results = await score(requests)
    return [
        replace(example, reference_logprobs=(0.0, *result.token_logprobs[0]))
        for example, result in zip(examples, results, strict=True)
    ]


async def fact_values(
    scope: str, pairs: Sequence[Pair], roles: Roles, context: RunContext
) -> dict[str, tuple[float, ...]]:
    """V[pair, fact] in nats: the own gold's log-prob under m_0 after one turn that tells the fact,
    minus that after one that brings nothing. By pair id; a pair that can't be scored is dropped.

    Pairs that an earlier iteration of the run has valued are not scored again.
    """
    wanted = {pair.id for pair in pairs}
    found: dict[str, tuple[float, ...]] = {}
    for number in range(int(scope.removeprefix("t")) + 1):
        for row in context.store.read(f"t{number}", "fact_values"):
            if row["pair_id"] in wanted:
                found[row["pair_id"]] = tuple(row["values"])
    missing = [pair for pair in pairs if pair.id not in found]
    with context.progress.stage("facts", len(missing), "pairs") as stage:
        stage.begin()

        async def value(pair: Pair) -> None:
            scoring = context.scoring
            try:
                requests = [
                    scoring.after_fact(f"{pair.id}^{number}", pair, fact)
                    for number, fact in enumerate((None, *pair.persona.facts))
                ]
            except RecordDropped as problem:
                context.counters.drop(problem)
            else:
                # One call, because they share the pair's opening.
                base, *told = [result.sums[0] for result in await roles.score(requests)]
                values = tuple(after - base for after in told)
                row = {"pair_id": pair.id, "values": values}
                await context.store.append(scope, "fact_values", [row])
                found[pair.id] = values
            stage.advance()

        await run_bounded(missing, _PAIRS_AT_ONCE, value)
    if missing:
        _report(scope, pairs, found, context)
    return found


async def replay(
    groups: Sequence[ScoredGroup], roles: Roles, context: RunContext
) -> dict[tuple[str, str], Sequence[int]]:
    """What facts each question of any task would bring out of each persona if none was told yet,
    by (question, persona id). No model speaks: the matcher alone decides.
    """
    grounding = context.config.roleplayer.grounding
    if roles.match is None or not isinstance(grounding, FactsGrounding):
        raise ConfigError("fact values need roleplayer.grounding.type=facts")
    match, per_turn = roles.match, grounding.questions_per_turn
    texts = sorted({t.question for g in groups for d in g.dialogues for t in d.turns})
    found: dict[tuple[str, str], Sequence[int]] = {}
    for persona in {group.pair.persona.id: group.pair.persona for group in groups}.values():
        told = await asyncio.gather(
            *(facts_asked_for(text, persona.facts, match, per_turn) for text in texts)
        )
        found |= {(text, persona.id): facts for text, facts in zip(texts, told, strict=True)}
    return found


async def question_fit(
    groups: Sequence[ScoredGroup], roles: Roles, context: RunContext
) -> dict[tuple[str, str], float]:
    """log m_0 of each question that was not cut off, in nats, as the first one about each task, in
    the words of the pair that comes first: by (question, task id).
    """
    turns = (turn for group in groups for dialogue in group.dialogues for turn in dialogue.turns)
    whole = {t.question: t.question_ids for t in turns if t.question_stop is StopReason.STOP}
    texts = sorted(whole)
    parts = [texts[i : i + _QUESTIONS_AT_ONCE] for i in range(0, len(texts), _QUESTIONS_AT_ONCE)]
    first = {g.pair.task.id: g.pair for g in sorted(groups, key=lambda g: g.pair.id, reverse=True)}
    found: dict[tuple[str, str], float] = {}
    with context.progress.stage("question fit", len(first), "tasks") as stage:
        stage.begin()

        async def of_task(pair: Pair) -> None:
            prompt = context.chat.prompt_ids(context.views.questioner(pair, ()))
            requests = [
                ScoreRequest(f"{pair.task.id}?{n}", prompt, tuple(whole[text] for text in part))
                for n, part in enumerate(parts)
            ]
            for part, result in zip(parts, await roles.score(requests), strict=True):
                keys = [(text, pair.task.id) for text in part]
                found.update(zip(keys, result.sums, strict=True))
            stage.advance()

        await run_bounded(list(first.values()), _PAIRS_AT_ONCE, of_task)
    return found


def _near_questions(groups: Sequence[ScoredGroup]) -> dict[str, frozenset[str]]:
    wordings: dict[Key, set[str]] = defaultdict(set)
    for group in groups:
        for dialogue in group.dialogues:
            for turn in dialogue.turns:
                wordings[question_key(turn.question)].add(turn.question)
    near = tasks_with_copies(wordings, 1 + sum(map(len, wordings.values())))
    return {text: frozenset(near[key]) for key, texts in wordings.items() for text in texts}


def _report(
    scope: str,
    pairs: Sequence[Pair],
    values: dict[str, tuple[float, ...]],
    context: RunContext,
) -> None:
    """How well the values rank the facts on which golds rely, on the screen and in the metrics."""
    known = [(pair, values[pair.id]) for pair in pairs if pair.id in values and pair.gold_facts]
    scored = [v for _, row in known for v in row]
    used = [i in pair.gold_facts for pair, row in known for i in range(len(row))]
    area = area_under_curve(scored, used)
    if area is None:
        return
    of_gold = fmean(v for v, wanted in zip(scored, used, strict=True) if wanted)
    of_rest = fmean(v for v, wanted in zip(scored, used, strict=True) if not wanted)
    context.progress.say(
        f"{scope}: a fact of the gold is worth {of_gold:.1f} nats, another {of_rest:.1f}; "
        f"AUC {area:.2f} over {len(known)} pairs"
    )
    context.store.append_metrics(
        {
            "event": "fact_values",
            "iteration": int(scope.removeprefix("t")),
            "num_pairs": len(known),
            "auc": area,
            "gold_facts_nats": of_gold,
            "other_facts_nats": of_rest,
        }
    )

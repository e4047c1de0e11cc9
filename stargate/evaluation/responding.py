"""Final responses to the test dialogues, for a judge to compare.

A checkpoint responds to its own dialogues. m_0 responds to every checkpoint's (the fixed
responder): then a better response can only come from a better dialogue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from stargate.errors import RecordDropped
from stargate.evaluation.comparisons import Response, choose_pairs, with_next_personas
from stargate.evaluation.playing import scope_of
from stargate.protocols import Generate
from stargate.rollout.tasks import run_bounded
from stargate.run_context import RunContext
from stargate.types import Dialogue, Pair


async def respond_to_all(
    version: int,
    responder_version: int,
    pairs: Sequence[Pair],
    played: dict[str, list[Dialogue]],
    generate: Generate,
    context: RunContext,
) -> None:
    """m_`responder_version` responds to the dialogues of m_`version`; the engines must hold it.

    Of the pairs that are judged the first dialogue; of m_0 the first two, for its comparison with
    itself, and also those of the next personas, whose responses are the shuffled trial. What the
    store has already is not made again. An empty response is kept: saying nothing should lose.
    """
    judge = context.config.evaluation.judge
    if judge is None:
        raise ValueError("responses are made for a judge, and none is configured")
    scope = scope_of(version)
    instructed = context.config.evaluation.response_instruction
    sampling = context.config.response.sampling
    if judge.max_response_tokens is not None:
        sampling = sampling.model_copy(update={"max_new_tokens": judge.max_response_tokens})
    chosen = choose_pairs(pairs, judge.max_pairs, context.config.seed)
    missing = _missing(version, responder_version, chosen, pairs, played, context)
    name = f"{scope} respond" + (" by m0" if responder_version != version else "")
    with context.progress.stage(name, len(missing), "responses") as stage:
        stage.begin()

        async def one(asked: tuple[Pair, Dialogue]) -> None:
            pair, dialogue = asked
            try:
                generation = await context.respond(
                    pair, dialogue, generate, sampling, instructed=instructed
                )
            except RecordDropped as problem:
                context.counters.drop(problem)
                stage.advance()
                return
            # A response by other weights than it claims would make every comparison a lie.
            if generation.policy_version != responder_version:
                raise ValueError(
                    f"{dialogue.id}: the response should be m_{responder_version}'s, "
                    f"the engine holds version {generation.policy_version}"
                )
            response = Response(
                dialogue_id=dialogue.id,
                pair_id=pair.id,
                responder_version=responder_version,
                text=generation.text.strip(),
                num_tokens=len(generation.token_ids),
                stop=str(generation.stop),
            )
            await context.store.append(scope, "responses", [asdict(response)])
            stage.advance(tokens=len(generation.token_ids))

        await run_bounded(missing, context.num_concurrent, one)


def _missing(
    version: int,
    responder_version: int,
    chosen: Sequence[Pair],
    pairs: Sequence[Pair],
    played: Mapping[str, Sequence[Dialogue]],
    context: RunContext,
) -> list[tuple[Pair, Dialogue]]:
    """The dialogues of m_`version` that m_`responder_version` has still to respond to."""
    if version == 0:
        chosen = with_next_personas(chosen, pairs)
    done = {
        (row["dialogue_id"], row["responder_version"])
        for row in context.store.read(scope_of(version), "responses")
    }
    per_pair = 2 if version == 0 else 1
    return [
        (pair, dialogue)
        for pair in chosen
        for dialogue in played.get(pair.id, ())
        if dialogue.index < per_pair and (dialogue.id, responder_version) not in done
    ]

"""Two tasks x two personas x two dialogues of two turns, small enough to measure by hand.

Controls of m_0, in nats; golds of task a have 10 tokens, those of task b 20:

                  a:p          a:q          b:p          b:q
    matched      -100  -90    -80  -84     -60  -50     -40  -44
    shuffled     -110  -92    -90  -86     -70  -52     -50   none
    no_dialogue  -110         -90          -60          -50
    persona_given -70         -60          -50          -30
    first dialogue only:
    persona_and_dialogue -65  -55          -45          -25
    after_turn 1 -106         -84          -58          -49

m_1 is 4 nats better on task a and 2 on task b after a dialogue, and has lost the pair b:q.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stargate.evaluation.checkpoint_records import CheckpointRecords, comparisons_from_rows
from stargate.evaluation.controls import ControlScore
from stargate.evaluation.measures import About, RoleplayerAbout, observe
from stargate.evaluation.statistics import BootstrapConfig, Observation
from stargate.records.schemas import Row, dialogue_row
from stargate.records.store import RunStore
from stargate.types import Dialogue, Pair, Persona, Task, Turn
from tests.fakes.scripted import make_turn

QUICK = BootstrapConfig(num_resamples=200)
TASKS = {name: Task(name, f"Help me with {name}?", "test") for name in "ab"}
FACTS = ("I drink green tea.", "I own a brown dog.")
PERSONAS = {name: Persona(name, name.title(), f"About {name}.", "test", FACTS) for name in "pq"}
# The golds of task a use fact 0; those of task b don't say.
PAIRS = {
    pair.id: pair
    for task in TASKS.values()
    for persona in PERSONAS.values()
    for pair in [Pair(task, persona, "gold", (0,) if task.id == "a" else ())]
}
MATCHED = {"a:p": (-100, -90), "a:q": (-80, -84), "b:p": (-60, -50), "b:q": (-40, -44)}
SHUFFLED = {"a:p": (-110, -92), "a:q": (-90, -86), "b:p": (-70, -52), "b:q": (-50,)}
NO_DIALOGUE = {"a:p": -110, "a:q": -90, "b:p": -60, "b:q": -50}
PERSONA_GIVEN = {"a:p": -70, "a:q": -60, "b:p": -50, "b:q": -30}
PERSONA_AND_DIALOGUE = {"a:p": -65, "a:q": -55, "b:p": -45, "b:q": -25}
AFTER_TURN_1 = {"a:p": -106, "a:q": -84, "b:p": -58, "b:q": -49}

TEA = make_turn("What do you drink?", "I drink green tea.", elicited=(0,))
DOG = make_turn("Any pets?", "I own a brown dog.", elicited=(1,))
OPERA = make_turn("Do you like opera?", "No preference.")
STATEMENT = make_turn("Here you are.", "Thanks.")
# By version and index of the dialogue.
TURNS = {0: ((TEA, STATEMENT), (OPERA, DOG)), 1: ((TEA, DOG), (DOG, OPERA))}
GROUNDED = RoleplayerAbout("embedded", "paper", "facts")
ABOUT = About("test", "starter", GROUNDED, GROUNDED, num_dialogues=2, turns=(2,), seed=7)

DIALOGUE_MEASURES = [
    "facts_per_dialogue",
    "facts_per_turn",
    "fact_coverage",
    "questions_per_dialogue",
    "question_rate",
    "repeated_question_rate",
    "tokens_per_dialogue",
    "tokens_to_read",
    "tokens_to_write",
    "recited_facts_per_dialogue",
    "recital_rate",
    "unasked_facts_per_dialogue",
    "needless_question_rate",
    "needless_tokens_per_dialogue",
    "facts_at_turn_1",
    "facts_at_turn_2",
    "distinct_question_rate",
    "generic_question_rate",
    "task_gain",
    "ask_rate",
    "needless_ask_rate",
    "ask_balanced_accuracy",
    "ask_accuracy",
    "always_ask_accuracy",
    "never_ask_accuracy",
]
GOLD_MEASURES = [
    "gold_logprob",
    "gold_logprob_per_token",
    "gold_logprob_best",
    "no_dialogue",
    "persona_given",
    "persona_and_dialogue",
    "shuffled",
    "contrast",
    "matched_minus_shuffled",
    "matched_minus_shuffled_per_token",
    "matched_minus_no_dialogue",
    "gain_at_turn_1",
    "gain_at_turn_2",
]
MEASURE_KEYS = {
    "mean",
    "ci_low",
    "ci_high",
    "standard_error",
    "n",
    "task_clusters",
    "persona_clusters",
    "nested",
}


def words(text: str) -> int:
    return len(text.split())


def dialogue(pair_id: str, index: int, version: int, turns: Sequence[Turn]) -> Dialogue:
    name = f"eval-m{version}/{pair_id}/{index}"
    return Dialogue(name, pair_id, index, len(turns), 0, version, tuple(turns))


def scored(
    control: str,
    pair_id: str,
    value: float,
    own: Dialogue | None = None,
    num_turns: int | None = None,
) -> ControlScore:
    other = "another" if control == "shuffled" else None
    num_tokens = 10 if pair_id.startswith("a") else 20
    own_id = own.id if own else None
    return ControlScore(control, pair_id, own_id, other, float(value), num_tokens, num_turns)


def checkpoint(version: int) -> CheckpointRecords:
    """m_0 as in the table above, and m_1."""
    dialogues, controls = [], []
    for pair_id in PAIRS:
        controls.append(scored("no_dialogue", pair_id, NO_DIALOGUE[pair_id]))
        controls.append(scored("persona_given", pair_id, PERSONA_GIVEN[pair_id]))
        if version == 1 and pair_id == "b:q":
            continue
        better = version * (4 if pair_id.startswith("a") else 2)
        for index, turns in enumerate(TURNS[version]):
            own = dialogue(pair_id, index, version, turns)
            dialogues.append(own)
            controls.append(scored("matched", pair_id, MATCHED[pair_id][index] + better, own))
            for value in SHUFFLED[pair_id][index : index + 1]:
                controls.append(scored("shuffled", pair_id, value + better, own))
            if index == 0:
                given = PERSONA_AND_DIALOGUE[pair_id]
                after = AFTER_TURN_1[pair_id] + better
                controls.append(scored("persona_and_dialogue", pair_id, given, own))
                controls.append(scored("after_turn", pair_id, after, own, num_turns=1))
    return CheckpointRecords(PAIRS, dialogues, controls, {})


def judged(name: str, pair_id: str, first: str, second: str, lengths: tuple[int, int]) -> list[Row]:
    """The two rows of a comparison."""
    task, persona = pair_id.split(":")
    row = {
        "comparison": name,
        "task_id": task,
        "persona_id": persona,
        "candidate": f"m1 eval-m1/{pair_id}/0",
        "baseline": f"m0 eval-m0/{pair_id}/0",
        "reply": "Final Response: ...",
        "candidate_text": "c",
        "baseline_text": "b",
        "candidate_length": lengths[0],
        "baseline_length": lengths[1],
    }
    orders = {"candidate_first": first, "candidate_second": second}
    return [row | {"order": order, "verdict": verdict} for order, verdict in orders.items()]


# A win, a tie (the judge takes what is shown first), a loss, and half of a verdict.
OWN = [
    *judged("own", "a:p", "A", "B", (30, 20)),
    *judged("own", "a:q", "A", "A", (20, 20)),
    *judged("own", "b:p", "B", "A", (10, 30)),
    *judged("own", "b:q", "A", "unparsable", (25, 20)),
]
FIXED = [row for pair_id in PAIRS for row in judged("fixed", pair_id, "A", "B", (20, 20))]
TRIALS = [
    *judged("self", "a:p", "tie", "tie", (20, 20)),
    *judged("gold", "a:p", "A", "B", (40, 20)),
    *judged("praise", "a:p", "A", "A", (20, 9)),
    *judged("shuffled", "a:p", "A", "B", (20, 20)),
]


def with_verdicts(records: CheckpointRecords, rows: Sequence[Row]) -> CheckpointRecords:
    return replace(records, comparisons=comparisons_from_rows(rows, "eval-m1"))


def seen(records: CheckpointRecords) -> dict[str, list[Observation]]:
    return observe(records, words, grounded=True)


def stored(root: Path, scopes: dict[str, dict[str, list[Row]]]) -> RunStore:
    """A store with these rows by scope and table."""
    store = RunStore(root)

    async def write() -> None:
        for scope, tables in scopes.items():
            for table, rows in tables.items():
                await store.append(scope, table, rows)

    asyncio.run(write())
    return store


def tables(records: CheckpointRecords, verdicts: Sequence[Row] = ()) -> dict[str, list[Row]]:
    found = {
        "dialogues": [dialogue_row(PAIRS[entry.pair_id], entry) for entry in records.dialogues],
        "controls": [asdict(entry) for entry in records.controls],
    }
    return found | ({"verdicts": list(verdicts)} if verdicts else {})

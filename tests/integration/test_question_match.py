"""How well the fact match agrees with a reader, on 200 questions and facts of the starter set.

62 have questions of m_0 or m_1 of `cpu_demo`, 53 stock questions, with the nearest fact or one of
the next two; 85 were written for this file. Each was read: would the fact answer the question? A
question that asks for nothing in particular has no answer.
`min_similarity` was chosen on the half "choose": the figures here are those of the other half.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stargate.config.roleplayer import FactsGrounding
from stargate.data.dataset import open_dataset
from stargate.resources.models import resolve_embedder
from stargate.rollout.grounding import open_matcher

pytestmark = pytest.mark.integration

_LINES = (Path(__file__).parent / "data" / "question_facts.jsonl").read_text(encoding="utf-8")
LABELLED = [json.loads(line) for line in _LINES.splitlines()]


async def told(labelled: list[dict[str, Any]], grounding: FactsGrounding) -> list[bool]:
    """Whether the Roleplayer would tell each fact to its question."""
    personas = open_dataset("starter").personas
    matcher = open_matcher(grounding, resolve_embedder())
    assert matcher is not None
    try:
        found = []
        for pair in labelled:
            facts = personas[pair["persona"]].facts
            assert pair["fact"] in facts
            nearest = await matcher(pair["question"], facts)
            found.append(nearest is not None and facts[nearest] == pair["fact"])
        return found
    finally:
        matcher.close()


def precision_and_recall(grounding: FactsGrounding) -> tuple[float, float]:
    half = [pair for pair in LABELLED if pair["half"] == "report"]
    both = list(zip(asyncio.run(told(half, grounding)), half, strict=True))
    right = sum(told and pair["answers"] for told, pair in both)
    num_told, num_answers = sum(told for told, _ in both), sum(p["answers"] for _, p in both)
    return right / num_told, right / num_answers


def test_what_is_told_answers_the_question() -> None:
    assert len(LABELLED) == 200
    precision, recall = precision_and_recall(FactsGrounding())
    assert precision >= 0.85
    assert recall >= 0.65
    loose, _ = precision_and_recall(FactsGrounding(min_similarity=0.25))
    assert loose <= 0.70

"""What a made-up Oracle answers to the requests of a build: always the same to the same request."""

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stargate.data.build.config import BuildConfig
from tests.fakes.misbehaving_server import Behave, Raw, Seen, completion

_FIRST = (
    *("Ama", "Boris", "Chidi", "Dolores", "Emeka", "Farid", "Greta"),
    *("Hana", "Ivo", "Jamila", "Kofi", "Leila", "Milan", "Nadia"),
)
_PLACES = (
    *("Oslo", "Lima", "Accra", "Hanoi", "Quito", "Turin", "Perth"),
    *("Dakar", "Busan", "Gdansk", "Leeds", "Tunis"),
)
_THINGS = (
    *("kites", "radios", "bees", "maps", "clocks", "boats", "looms"),
    *("drums", "chess", "roses", "stamps", "trams"),
)


def kind_of(body: dict[str, Any]) -> str:
    """Which of the three packaged prompts a request was made from."""
    text = body["messages"][-1]["content"]
    if text.startswith("Invent a person."):
        return "persona"
    return "facts" if "describes themselves:" in text else "gold"


def answer(body: dict[str, Any]) -> str:
    """The answer to one request."""
    text = body["messages"][-1]["content"]
    rng = random.Random(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())
    kind = kind_of(body)
    if kind == "persona":
        return persona(rng)
    if kind == "facts":
        profile = text.split("describes themselves:")[1].split("\n\nList what")[0]
        sentences = re.findall(r"I [^.]+\.", profile)
        return "\n".join(f"- {sentence}" for sentence in [*sentences, "I own seven submarines."])
    return f"You could start today. Code {rng.randrange(10**9)}."


def persona(rng: random.Random) -> str:
    """A person of eight sentences that no other person shares."""
    name = f"{rng.choice(_FIRST)} {rng.choice(_PLACES)}sen"
    lines = [
        f"I live in {rng.choice(_PLACES)} with {rng.randrange(2, 99)} {rng.choice(_THINGS)}.",
        f"I earn {rng.randrange(100, 99999)} crowns by mending {rng.choice(_THINGS)}.",
        f"I never visit {rng.choice(_PLACES)} in month {rng.randrange(1, 13)}.",
        f"I collect {rng.choice(_THINGS)} from {rng.choice(_PLACES)} and {rng.choice(_PLACES)}.",
        f"I wake at {rng.randrange(3, 12)} and feed {rng.randrange(2, 999)} pigeons.",
        f"I owe {rng.randrange(100, 99999)} crowns to my cousin in {rng.choice(_PLACES)}.",
        f"I learn {rng.choice(_THINGS)} on day {rng.randrange(1, 31)}.",
        f"I want {rng.randrange(2, 999)} {rng.choice(_THINGS)} before age {rng.randrange(30, 99)}.",
    ]
    rng.shuffle(lines)
    return f"Name: {name}\n{' '.join(lines)}"


def behave(change: Callable[[dict[str, Any]], bytes | None] = lambda body: None) -> Behave:
    """A server's behaviour. `change` may give another body for a request, or None."""

    def one(seen: Seen) -> Raw:
        return Raw(200, change(seen.body) or completion(answer(seen.body), usage=(1000, 300)))

    return one


def build_config(url: str, folder: Path, **changes: Any) -> BuildConfig:
    """A small build: 3 + 2 + 1 tasks, 3 + 2 + 1 personas, 14 pairs."""
    tasks = folder / "tasks.txt"
    if not tasks.exists():
        tasks.write_text("".join(f"How do I do thing {n} well?\n" for n in range(6)))
    given: dict[str, Any] = {
        "out": folder / "out",
        "tasks": {
            "type": "file",
            "path": tasks,
            "rows": {"A": [0, 3], "B": [3, 5], "test": [5, 6]},
        },
        "personas": {"type": "generate", "count": {"A": 3, "B": 2, "test": 1}},
        "oracle": {
            "type": "openai",
            "model": "m",
            "base_url": url,
            "api_key_env": None,
            "limits": {"max_concurrency": 8},
            "retry": {"max_attempts": 2, "first_backoff_s": 0.01, "max_backoff_s": 0.02},
            "cost": {"prices": {"m": {"input_per_million": 1, "output_per_million": 2}}},
        },
    }
    return BuildConfig.model_validate({**given, **changes})

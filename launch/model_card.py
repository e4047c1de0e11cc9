"""The README.md of an exported model: what it is, how it is asked, how it was made, how good it is.

Checkpoint + RUN/eval.json + RUN/environment.json -> Markdown with Hugging Face's front matter
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stargate.config.run import RunConfig
from stargate.errors import DataError
from stargate.evaluation.catalog import in_order
from stargate.evaluation.measures import About
from stargate.evaluation.statistics import Measure
from stargate.evaluation.table import MAIN_MEASURES, measure_cell, num_decimals
from stargate.launch.checkpoint import Checkpoint
from stargate.records.files import read_json
from stargate.records.store import parse
from stargate.resources.embedded import EMBEDDED
from stargate.resources.models import hub_name

_EMBEDDED_SOURCE, _EMBEDDED_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
_LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:\s*[\"']?([\w.-]+)", re.MULTILINE)
_CARD = """\
---
{front}
---

# {title}

{what} It was made by stargate (STaR-GATE, [arXiv 2403.19154](https://arxiv.org/abs/2403.19154)):
self-play with a simulated user who hides a persona.

## Use

The chat template carries the prompt that the model was {made} with. A conversation that begins
with a user message gets up to {num_questions} questions, one at a time, then an answer:

```python
from transformers import pipeline

chat = pipeline("text-generation", model="{place}")
messages = [{{"role": "user", "content": "Which bike should I buy?"}}]
print(chat(messages)[0]["generated_text"][-1]["content"])
```

With an OpenAI-compatible server (`stargate serve`, `vllm serve`) the template's variables are given
as `extra_body={{"chat_template_kwargs": {{...}}}}`:

| variable | meaning |
| --- | --- |
| `num_questions` | questions before the answer ({num_questions}); 0: answer now |
| `user_name` | how the user is called; left out if not given |

**A conversation that begins with a system message, or that has tools, gets neither questions nor
our prompt**: it sees the base model's own template alone. `generation_config.json` has the sampling
of the questions ({sampling}); answers were sampled {response_sampling}.

## How it was made

| | |
| --- | --- |
{facts}

## Results

{results}

## Limits

{limits}

## Licence

{licence_text}
"""


def model_card(checkpoint: Checkpoint, place: str) -> str:
    """The card's text; `place` is the folder's or the hub's name. Raises DataError."""
    config, name = checkpoint.config, checkpoint.name
    base, licence = base_of(config), _licence(checkpoint)
    front = {
        **({"license": licence} if licence else {}),
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stargate", "clarifying-questions", "self-play"],
    }
    trained = checkpoint.version > 0
    what = (
        f"{name} of the run `{config.name}`: {base} after {checkpoint.version} iteration(s) that "
        "teach it to ask clarifying questions before it answers."
        if trained
        else f"{base}, not trained, with a prompt that makes it ask before it answers."
    )
    sampling, response = config.questioner.sampling, config.response.sampling
    return _CARD.format(
        front="\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        title=f"{config.name} {name}",
        what=what,
        made="trained" if trained else "measured",
        num_questions=checkpoint.num_questions,
        place=place,
        sampling=f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}",
        response_sampling=(
            f"at temperature {response.temperature:g}" if response.temperature else "greedily"
        ),
        facts="\n".join(f"| {key} | {value} |" for key, value in _facts(checkpoint).items()),
        results=_results(checkpoint),
        limits="\n".join(f"- {limit}" for limit in _limits(checkpoint)),
        licence_text=(
            f"That of the base model: {licence}."
            if licence
            else f"That of the base model, which is not known here; look it up at {base}."
        ),
    )


def base_of(config: RunConfig) -> str:
    """m_0 as others know it."""
    return _EMBEDDED_SOURCE if config.model == EMBEDDED else hub_name(config.model)


def _licence(checkpoint: Checkpoint) -> str | None:
    """The base model's, where the config or a card beside its weights says it."""
    if checkpoint.config.model == EMBEDDED:
        return _EMBEDDED_LICENCE
    for folder in (checkpoint.folder, Path(checkpoint.config.model)):
        card = folder / "README.md"
        if card.is_file():
            found = _LICENCE.match(card.read_text(encoding="utf-8", errors="replace"))
            return found[1] if found else None
    return None


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    config = checkpoint.config
    data, algorithm, trainer = config.data, config.algorithm, config.trainer
    environment = read_json(checkpoint.run_dir / "environment.json") or {}
    packages = environment.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    turns = ", ".join(map(str, config.rollout.turns))
    settings = {
        key: value
        for key, value in algorithm.model_dump(mode="json").items()
        if key != "type" and value is not None
    }
    return {
        "base model": f"`{base_of(config)}`",
        "data": f"`{data.source}`, trained on splits {', '.join(data.train_splits)}, tested on "
        f"{data.test_split}",
        "prompts": f"`{config.prompts}`",
        "self-play": f"{config.rollout.num_dialogues} dialogues per pair of task and persona, of "
        f"{turns} questions",
        "simulated user": f"`{config.roleplayer.model}`, "
        f"answers from {'facts' if config.roleplayer.grounding.type == 'facts' else 'the persona'}",
        "algorithm": f"{algorithm.type}: "
        + ", ".join(f"{key} {value}" for key, value in settings.items()),
        "training": f"learning rate {trainer.learning_rate:g}, {trainer.num_epochs} epoch(s), "
        f"batches of {trainer.batch_size}, "
        + (f"LoRA of rank {trainer.lora.rank}" if trainer.lora else "all weights"),
        "seed": str(config.seed),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items())
        or "not recorded",
    }


def _results(checkpoint: Checkpoint) -> str:
    file = checkpoint.run_dir / "eval.json"
    values = read_json(file)
    name = checkpoint.name
    if values is None or name not in values:
        return "Not evaluated: nothing is known about how well it asks."
    try:
        return "\n".join(_table(values, name))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: not an evaluation: {error!r}") from error


def _table(values: Mapping[str, Any], name: str) -> list[str]:
    measured, changes = values[name], values["changes"].get(name, {})
    about, judge = parse(About, values["about"]), values.get("judge")
    unfit = judge is not None and not judge["fit"]
    shown = [
        info
        for info in in_order(MAIN_MEASURES)
        if measured.get(info.name, {}).get("n") and not (unfit and info.name.startswith("win_rate"))
    ]
    kinds = {parse(Measure, measured[info.name]).kinds for info in shown}
    lines = [
        f"Test split `{about.split}` of `{about.data}`: tasks and personas that training never "
        f"saw, {about.of_pair}, a simulated user (`{about.roleplayer.model}`). Mean with its "
        f"{values['about']['confidence']:.0%} interval over {' or '.join(sorted(kinds))}; nats are "
        "of golds under the base model.",
        "",
        f"| measure | m0 | {name} | {name} minus m0 | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for info in shown:
        digits = num_decimals(info.name)
        both = [measure_cell(values[one].get(info.name), digits) for one in ("m0", name)]
        change = measure_cell(changes.get(info.name), digits, "+")
        lines.append(f"| {' | '.join([info.label, *both, change, info.sentence])} |")
    if unfit:
        lines += ["", "Win rates are left out: the judge was found unfit."]
    return lines


def _limits(checkpoint: Checkpoint) -> list[str]:
    return [
        "Measured with a simulated user on the data above, not with people.",
        "It asks whatever the task is, also where nobody needs a question; see the results for "
        "tasks that need none, if they were measured.",
        f"More than {checkpoint.num_questions} questions, long conversations and other languages "
        "than that of the data were not tried.",
        "The template retokenises earlier questions. In training they were the sampled tokens; a "
        "base template that rewrites past turns (thoughts) may show them in another way.",
        "It inherits what the base model knows, does not know, and is biased to.",
    ]

"""What a run is made from, so that nobody goes on with something else without knowing.

RUN/provenance.json, written when a run begins:

    {"inputs": {"data.source": {"name": "starter", "golds.jsonl": SHA256, ...}, ...},
     "accepted": [{"utc": ..., "changes": [...]}]}

A key of the config -> what it names and the digests of the files behind that: of a model folder its
files and a fingerprint of its weights (records/model_folder.py says what that sees), of a Hugging
Face model its commit instead, of data and prompts each file.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stargate.config.roleplayer import ApiRoleplayerConfig
from stargate.config.run import RunConfig
from stargate.data.dataset import data_files
from stargate.errors import DataError
from stargate.records.files import file_sha256
from stargate.records.model_folder import companions, weights_fingerprint
from stargate.records.store import RunStore, parse, reading
from stargate.resources.models import hub_commit
from stargate.text.prompts import packaged_prompts_dir, template_file

PROVENANCE_FILE = "provenance.json"
# A key of the config -> its value as "name", and digests by part of it.
Inputs = dict[str, dict[str, str]]

_NAME = "name"
_WEIGHTS = "weights"
_REVISION = "revision"
_JUDGE = "evaluation.judge.prompts"
# Characters of a digest, and changes, that a line shows.
_SHOWN_CHARS = 12
_SHOWN_CHANGES = 4


def inputs_of(config: RunConfig, base: Path, roleplayer: Path | None) -> Inputs:
    """The digests of m_0 in `base`, the Roleplayer's model, data and prompts.

    Raises OSError and ModelError.
    """
    judge = config.evaluation.judge
    prompts = {
        "prompts": config.prompts,
        "roleplayer.prompts": config.roleplayer.prompts,
        _JUDGE: None if judge is None else judge.prompts,
    }
    inputs = {"model": _model(config.model, base)}
    if roleplayer is not None and not isinstance(config.roleplayer, ApiRoleplayerConfig):
        inputs["roleplayer.model"] = _model(config.roleplayer.model, roleplayer)
    source = config.data.source
    inputs["data.source"] = {_NAME: source, **_digests(data_files(source))}
    for key, name in prompts.items():
        if name is not None:
            file = template_file(packaged_prompts_dir(), name)
            inputs[key] = {_NAME: name, "file": file_sha256(file)}
    return inputs


def _model(name: str, folder: Path) -> dict[str, str]:
    if (commit := hub_commit(name, folder)) is not None:
        return {_NAME: name, _REVISION: commit}
    weights = weights_fingerprint(folder)
    sampled = {} if weights is None else {_WEIGHTS: weights}
    return {_NAME: name, **_digests(companions(folder)), **sampled}


def _digests(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in files}


def compare_inputs(root: Path, found: Inputs, accept: bool, say: Callable[[str], None]) -> None:
    """Raises DataError if what the evaluation `found` is not what the run in `root` was made from.

    Only of what both name alike: an evaluation may have data or prompts of its own. With `accept`
    it is said.
    """
    recorded, _ = _read(RunStore(root))
    same = {k: v for k, v in recorded.items() if v[_NAME] == found.get(k, v)[_NAME]}
    _accept(root, list(_changes(same, found)), accept, say)


def keep_inputs(
    store: RunStore, found: Inputs, accept: bool, say: Callable[[str], None], *, new: bool = False
) -> None:
    """Writes down what a directory's records are made from; of one that has it already, raises
    DataError if that is not what was `found`, and with `accept` says and notes it.
    """
    recorded, accepted = _read(store)
    if not recorded and not new:
        say(f"{PROVENANCE_FILE}: it was not recorded yet what this is made from; it is now")
    changes = list(_changes(recorded, found))
    _accept(store.root, changes, accept, say)
    if changes:
        accepted = [*accepted, {"utc": f"{datetime.now(UTC):%FT%TZ}", "changes": changes}]
    # What is not seen now, as the weights by a driver on a cluster, is still what it was.
    merged = {**recorded, **found}
    for key in recorded.keys() & found.keys():
        if _WEIGHTS in recorded[key] and _REVISION not in found[key]:
            merged[key] = {_WEIGHTS: recorded[key][_WEIGHTS], **found[key]}
    if merged != recorded or changes:
        store.write_json(PROVENANCE_FILE, {"inputs": merged, "accepted": accepted})


def _read(store: RunStore) -> tuple[Inputs, list[Any]]:
    values = store.read_json(PROVENANCE_FILE)
    if values is None:
        return {}, []
    with reading(store.root / PROVENANCE_FILE):
        inputs = parse(Inputs, values["inputs"])
        if any(_NAME not in parts for parts in inputs.values()):
            raise ValueError("inputs: one has no name")
        return inputs, parse(list[Any], values["accepted"])


def _changes(recorded: Inputs, found: Inputs) -> Iterator[str]:
    for key, then in recorded.items():
        now = found.get(key, then)
        # A judge may get other prompts; its verdicts say with which they were made.
        if key == _JUDGE and now[_NAME] != then[_NAME]:
            continue
        for part in sorted((then.keys() | now.keys()) - {_NAME}):
            if part == _WEIGHTS and not (part in then and part in now):
                continue
            if then.get(part) != now.get(part):
                yield (
                    f"{key} {now[_NAME]}: {part} (recorded {_shown(then.get(part))}, found "
                    f"{_shown(now.get(part))})"
                )


def _shown(digest: str | None) -> str:
    return "none" if digest is None else digest[:_SHOWN_CHARS]


def _accept(root: Path, changes: list[str], accept: bool, say: Callable[[str], None]) -> None:
    if not changes:
        return
    more = f" and {len(changes) - _SHOWN_CHANGES} more" if changes[_SHOWN_CHANGES:] else ""
    what = f"{root}: changed since it was recorded: {', '.join(changes[:_SHOWN_CHANGES])}{more}"
    if not accept:
        raise DataError(
            f"{what}; put back what was there, or go on with what is there now: --accept-changed"
        )
    say(f"{what}; accepted")

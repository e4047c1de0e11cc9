"""Dataset folders as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_folder(folder: Path, **kinds: Sequence[Any]) -> Path:
    """Makes `folder` with KIND.jsonl for each of `kinds`."""
    folder.mkdir(exist_ok=True)
    for kind, rows in kinds.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{kind}.jsonl").write_text(text)
    return folder

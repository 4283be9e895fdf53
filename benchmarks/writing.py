"""Results on disk: a file is replaced as a whole, so that a benchmark that is killed leaves the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memgraft.comparison.writing import write_whole


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Replaces a JSON file; its folder is made where it is missing."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")

"""Results on disk: a file is replaced as a whole, so that a benchmark that is killed leaves the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Replaces a JSON file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    partial.replace(path)

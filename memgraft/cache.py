"""The user's cache directory: what can be made again, but takes long."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/memgraft/NAME`, or under `~/.cache`. RuntimeError where there is no home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memgraft" / name

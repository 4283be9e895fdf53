"""Runs on disk: one JSON line each, appended as soon as it is measured, so that a comparison resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import torch
from transformers import PreTrainedModel

from memgraft import __version__
from memgraft.canonical import canonical_json
from memgraft.errors import DataError, MemgraftError

PACKAGES = ("torch", "transformers", "peft", "bm25s", "numpy")


def run_id(recipe: Mapping[str, Any]) -> str:
    """What identifies a run: a hash of all that shapes its figures."""
    return hashlib.sha256(canonical_json(recipe)).hexdigest()[:16]


def failed(error: Exception) -> dict[str, Any]:
    """What a run has instead of figures where teaching or measuring broke down: settings can be too bold, which is a result too.

    What is not of the settings, such as a GPU that others filled, may go well the next time: that is tried `again`.
    """
    if isinstance(error, MemgraftError):
        return {"failed": str(error)}
    first, *_ = str(error).splitlines() or [""]
    return {"failed": f"{type(error).__name__}: {first}", "again": True}


def due(id: str, runs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run is still to be made: it is not among those on disk, or broke down there and is to be tried again."""
    return id not in runs or bool(runs[id].get("again"))


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by id, the last of equal ones.

    A last line without its end is not looked at: whoever writes it was killed, or is not done. Nothing is written.

    Raises:
        DataError: any other line that is not a run, by file and line.
    """
    if not path.exists():
        return {}
    runs = {}
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                run = json.loads(line)
                runs[run["id"]] = run
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a run ({error}); take the line out, and what it held is measured again") from None
    return runs


def append_run(path: Path, run: Mapping[str, Any]) -> None:
    """Add a run as one line, on disk when this returns. A last line that was cut off, by a process that was killed, is taken out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(run, ensure_ascii=True, allow_nan=False).encode() + b"\n"
    with filelock.FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, revision and hardware that a run's figures depend on. Ask before the first run: files may change while it runs."""
    return {
        "python": platform.python_version(),
        "packages": {"memgraft": __version__, **{name: _version(name) for name in PACKAGES}},
        "git_revision": _git_revision(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def arithmetic(model: PreTrainedModel) -> str:
    """What tells how this machine rounds a model's numbers: a hash of its logits on fixed tokens, and the number of threads.

    Two processors, or two numbers of threads, add in different orders, so that a few answers of one and the same model differ: figures
    are compared with those of the base where this is the same. Call it with the memory empty or off.
    """
    ids = (torch.arange(96, device=model.device) * 31 % model.config.get_text_config().vocab_size).view(2, 48)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    digest = hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()[:12]
    return f"{digest}, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the working tree that tracks this file, with "+changes" where tracked files differ from it, results aside.

    None for an installed package, also where its environment's folder lies in someone else's working tree.
    """
    here = Path(__file__).parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, check=True)
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if changes.strip() else "")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())

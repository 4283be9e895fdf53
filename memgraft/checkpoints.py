"""Checkpoints: a lesson's progress in a hidden file of its store, so that a lesson of hours survives a kill.

One file, written whole or not at all, which no reader of the store looks at. It belongs to one lesson: the same data, recipe,
base model and earlier lessons go on with it, anything else is refused.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

import memgraft
from memgraft.canonical import canonical_json, parse_json
from memgraft.commits import Rows
from memgraft.cues import Cues
from memgraft.encoding import TokenBatch
from memgraft.errors import StoreError
from memgraft.fingerprint import BaseFingerprint
from memgraft.grafted import GraftedModel
from memgraft.progress import Progress
from memgraft.store import MemoryStore, files
from memgraft.store.exchange import size_limit
from memgraft.store.manifest import CHECKPOINT as NAME
from memgraft.store.manifest import first_problem
from memgraft.teaching import Recipe

_WHAT = {
    "data_sha256": "the data is another",
    "recipe": "the recipe is another",
    "tokens_sha256": "the data makes other tokens (another tokenizer, chat template or version of memgraft)",
    "base_sha256": "the base model is another, or has another dtype",
    "device": "the device is another",
    "torch": "torch has another version, which may compute other bits",
    "transformers": "transformers has another version, which may compute other bits",
    "memgraft": "memgraft has another version, which may teach in another way",
    "threads": "torch has another number of threads (OMP_NUM_THREADS, torch.set_num_threads), which adds in another order",
    "lessons": "the store's lessons changed since",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Identity(_Part):
    """The lesson that a checkpoint belongs to, and where it goes on to the same bits."""

    data_sha256: str
    recipe: dict[str, Any]
    tokens_sha256: str
    base_sha256: str
    device: str
    torch: str
    transformers: str | None = None
    memgraft: str | None = None
    threads: int | None = None  # on a CPU
    lessons: list[str]


class _About(_Part):
    """What a checkpoint holds beside tensors."""

    identity: _Identity
    message: str
    turn: int = Field(ge=0)
    place: int = Field(ge=0)
    first_loss: float | None
    seconds: float
    when: str


class Checkpoints:
    """Where a lesson's progress is kept, and what to do with what is found there.

    Args:
        store: whose lock the caller holds for as long as the lesson takes.
        every: seconds between checkpoints; 0 makes one after each step.
        resume: go on with what is found (True), throw it away (False), or refuse to start beside it (None).
    """

    def __init__(self, store: MemoryStore, *, every: float = 300.0, resume: bool | None = None) -> None:
        self.store = store
        self.every = every
        self.resume = resume
        self.path = store.path / NAME

    def keeper(self, model: GraftedModel, batches: Sequence[TokenBatch], data_sha256: str, recipe: Recipe, message: str) -> FileKeeper:
        """The keeper of one lesson. StoreError where a checkpoint is found that it must not go on with, or throw away."""
        base = canonical_json([BaseFingerprint.of(model.base).model_dump(mode="json"), str(model.base.dtype)])
        identity = _Identity(
            data_sha256=data_sha256,
            recipe=recipe.model_dump(mode="json"),
            tokens_sha256=_digest(batches),
            base_sha256=hashlib.sha256(base).hexdigest(),
            device=model.device.type,
            torch=str(torch.__version__),
            transformers=transformers.__version__,
            memgraft=memgraft.__version__,
            threads=torch.get_num_threads() if model.device.type == "cpu" else None,
            lessons=model.history.active(),
        )
        found = self._found(model, identity)
        return FileKeeper(self, identity, message, found)

    def remove(self) -> None:
        """Forgets the lesson: it is in the store, or was given up."""
        if self.path.is_symlink() or self.path.exists():
            with self.store.lock(), files.nothing_changed(self.path):
                self.path.unlink()
                files.sync_folder(self.store.path)

    def _found(self, model: GraftedModel, identity: _Identity) -> tuple[Progress, float] | None:
        if not self.path.is_symlink() and not self.path.exists():
            return None
        if self.resume is False:
            self.remove()
            return None
        about, tensors = self._read()
        if self._was_committed(about):
            self.remove()
            return None
        if self.resume is None:
            raise StoreError(
                f"{self.store.path}: the lesson {about.message[:60]!r} was stopped {about.when} in pass {about.turn + 1}; "
                f"go on with --resume, or begin anew with --restart"
            )
        differing = next((name for name, value in identity if value != getattr(about.identity, name)), None)
        if differing is not None:
            raise _another(self.path, about.message, _WHAT[differing])
        try:
            progress = Progress.from_tensors(tensors, about.turn, about.place, about.first_loss)
        except (KeyError, ValueError, RuntimeError) as error:
            raise self._damaged(str(error)) from error
        anchors = None if progress.cues is None else progress.cues.anchors
        for rows in (progress.rows or {}).values():
            problem = rows.problem(model.config.slots if anchors is None else len(anchors), model.config.hidden_size)
            if problem:
                raise self._damaged(problem)
        return progress, about.seconds

    def _was_committed(self, about: _About) -> bool:
        """Whether the lesson ended in the store and only its checkpoint was left behind."""
        identity = about.identity
        for id in set(self.store.active()).difference(identity.lessons):
            header = self.store.header(id)
            if (header["data_sha256"], header["recipe"]) == (identity.data_sha256, identity.recipe):
                return True
        return False

    def _read(self) -> tuple[_About, dict[str, Tensor]]:
        import safetensors
        import safetensors.torch

        data = files.read_bytes(self.path, 4 * size_limit(self.store.spec.memory) + (1 << 30))
        length = int.from_bytes(data[:8], "little")
        try:
            fields = parse_json(parse_json(data[8 : 8 + length])["__metadata__"]["memgraft"].encode())
            tensors = safetensors.torch.load(data)
            digest = fields.pop("sha256")
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error
        if digest != _checksum(fields, tensors):
            raise self._damaged("its SHA-256 is not that of its content")
        try:
            return _About.model_validate(fields), tensors
        except ValidationError as error:
            raise self._damaged(first_problem(error)) from error

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self.path}: can't be read as a checkpoint: {' '.join(what.split())[:200]}; --restart begins the lesson anew")


class FileKeeper:
    """Keeps the progress of one lesson in its store's checkpoint."""

    def __init__(self, checkpoints: Checkpoints, identity: _Identity, message: str, found: tuple[Progress, float] | None) -> None:
        self._checkpoints = checkpoints
        self._identity = identity
        self._message = message
        self._found = found
        self._start = self._last = time.monotonic()
        self._failed = False

    @property
    def seconds_before(self) -> float:
        """Seconds that the lesson took until it was stopped."""
        return self._found[1] if self._found else 0.0

    def found(self, cues: Cues | None) -> Progress | None:
        """Where the lesson, which has these cues, was stopped; None: it starts. StoreError where it had others."""
        if self._found is None:
            return None
        if self._found[0].cues != cues:
            raise _another(self._checkpoints.path, self._message, "it opens after other cues than when it was stopped")
        return self._found[0]

    def keep(self, progress: Progress, rows: Callable[[], dict[str, Rows]]) -> None:
        """Writes the checkpoint when it is time for one."""
        if time.monotonic() - self._last >= self._checkpoints.every:
            progress.rows = rows()
            try:
                self._write(progress)
            except StoreError as error:  # the lesson does without, as long as nobody stops it
                if not self._failed:
                    warnings.warn(f"no checkpoint was written: {error}; the lesson goes on, and it is tried again", stacklevel=2)
                self._failed = True
            self._last = time.monotonic()

    def remove(self) -> None:
        """Forgets the lesson."""
        self._checkpoints.remove()

    def _write(self, progress: Progress) -> None:
        import safetensors.torch

        tensors = {name: tensor.cpu().contiguous() for name, tensor in progress.tensors().items()}
        about = _About(
            identity=self._identity,
            message=self._message,
            turn=progress.turn,
            place=progress.place,
            first_loss=progress.first_loss,
            seconds=self.seconds_before + time.monotonic() - self._start,
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        ).model_dump()
        text = canonical_json({**about, "sha256": _checksum(about, tensors)}).decode()
        path = self._checkpoints.path
        with self._checkpoints.store.lock(), files.nothing_changed(path):
            files.write_file(path, safetensors.torch.save(tensors, {"memgraft": text}))
            files.sync_folder(path.parent)


def _another(path: Path, message: str, what: str) -> StoreError:
    return StoreError(f"{path}: can't go on with the lesson {message[:60]!r}: {what}; --restart begins anew")


def _checksum(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(canonical_json(about))
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{list(tensors[name].shape)};".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(batches: Sequence[TokenBatch]) -> str:
    """SHA-256 of all that the model is taught, token by token."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((tuple(batch.input_ids.shape), batch.rounds)).encode())
        for tensor in (
            batch.input_ids,
            batch.attention_mask,
            batch.targets,
            batch.attention_mask if batch.writable is None else batch.writable,
        ):
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()

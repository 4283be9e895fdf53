"""The store's folder: reading its members against the manifest, and committing a change to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from memgraft.errors import StoreError
from memgraft.store import files
from memgraft.store.manifest import (
    CHECKPOINT,
    COMMITS,
    CONFIG,
    DATA,
    MANIFEST,
    MANIFEST_LIMIT,
    RECORDS,
    FileEntry,
    HistoryEntry,
    Manifest,
    check_version,
    first_problem,
    parse,
)
from memgraft.store.spec import FORMAT_VERSION, StoreSpec

_LESSON_FILE = re.compile(r"[0-9a-f]{64}(\.[0-9]+)?\.(json|jsonl|txt|safetensors)|\.[0-9a-f]{64}.*\.tmp")


def read_manifest(root: Path) -> Manifest:
    """The manifest of the store at `root`. StoreError when there is no store, or a damaged or newer one."""
    path = root / MANIFEST
    if not os.path.lexists(path):
        raise StoreError(f"{root}: no memory store, it has no {MANIFEST}; make one with `memgraft graft MODEL -o FOLDER`")
    return Manifest.from_bytes(files.read_bytes(path, MANIFEST_LIMIT), str(path))


def member_path(root: Path, name: str, manifest: Manifest) -> Path:
    """Where a file of the store is. StoreError for a name that the manifest does not list."""
    if name not in manifest.files:
        raise StoreError(f"{root / name}: not in the store; `memgraft gc` removes the files of lessons that were reverted")
    return root / name


def read_member(root: Path, name: str, manifest: Manifest) -> bytes:
    """A file's content, after its size and digest were checked against the manifest."""
    path = member_path(root, name, manifest)
    size, digest = manifest.files[name]
    data = files.read_bytes(path, size)
    if len(data) != size:
        raise StoreError(f"{path}: has {len(data)} bytes, expected {size}; restore it from a copy of the store")
    if files.sha256(data) != digest:
        raise StoreError(f"{path}: damaged, its SHA-256 is not the manifest's; restore it from a copy of the store")
    return data


def read_spec(root: Path, manifest: Manifest) -> StoreSpec:
    """The store's configuration."""
    where = str(root / CONFIG)
    data = read_member(root, CONFIG, manifest)
    value = parse(data, where)
    check_version(value, where)
    if value.get("gguf_file", ...) is None:  # early versions wrote it, always null
        del value["gguf_file"]
    memory = value.get("memory")
    if isinstance(memory, dict):
        memory.setdefault("threshold", 0.0)  # early versions had none: every read was added in full
    try:
        return StoreSpec.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise StoreError(f"{where}: {first_problem(error)}; upgrade memgraft, or restore it from a copy of the store") from error


def size_problems(root: Path, manifest: Manifest) -> Iterator[str]:
    """Files that are missing, links, or not of the size that the manifest gives."""
    for folder in sorted({name.partition("/")[0] for name in manifest.files if "/" in name}):  # empty ones get lost in git and uploads
        if not files.is_real_folder(root / folder):
            yield f"{root / folder}: missing, or not a real folder"
            return
    prefix = f"{root}/"  # a string, because a store has thousands of files
    for name, (expected, _) in manifest.files.items():
        size = files.regular_size(prefix + name)
        if size != expected:
            yield f"{prefix}{name}: " + ("missing, or not a regular file" if size is None else f"has {size} bytes, expected {expected}")


@dataclass
class Change:
    """What is to be added to a store. Contents are made when they are written, so that a merge holds one lesson at a time."""

    entries: list[HistoryEntry] = field(default_factory=list)
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)  # name → what makes its content
    tags: Mapping[str, int] | None = None  # in place of those that there are


def commit_change(root: Path, current: Manifest, change: Change) -> Manifest:
    """Writes the new files, then the manifest with the new entries at the end of the history; the lock must be held.

    StoreError when that fails, with the store as it was. Files that the new history no longer needs are removed at the end.
    """
    history = (*current.history, *change.entries)
    tags = current.tags if change.tags is None else change.tags
    written: dict[str, FileEntry] = {}
    data = b""
    with files.nothing_changed(root):
        _remove_orphans(root, current)
        try:
            for first in sorted({name.partition("/")[0] for name in change.files}):
                _make_member_folder(root / first)
            for name, content in change.files.items():
                written[name] = describe(b"")
                body = content()
                files.write_file(root / name, body)
                written[name] = describe(body)
            changed = Manifest.model_construct(format_version=FORMAT_VERSION, files={}, history=history, tags=tags)
            entries = {**current.files, **written}
            changed = changed.model_copy(update={"files": {name: entries[name] for name in sorted(changed.expected_files())}})
            data = changed.to_bytes()
            if len(data) > MANIFEST_LIMIT:
                raise StoreError(f"{root}: the history is full ({len(history)} entries); nothing was changed: start a new store")
            for folder in sorted({(root / name).parent for name in written}):
                files.sync_folder(folder)
            files.write_file(root / MANIFEST, data)
            files.sync_folder(root)
        except BaseException as error:
            if data and _may_be(root / MANIFEST, data):
                # The new files stay: should power fail now, the disk may still come back with the new manifest.
                _put_back(root, current, error)
            else:
                _remove(root, list(written))
            raise
    if changed.files.keys() < {**current.files, **written}.keys():
        _remove_orphans(root, changed)
    return changed


def _make_member_folder(path: Path) -> None:
    if not os.path.lexists(path):
        files.make_folder(path)
        files.sync_folder(path.parent)
    elif not files.is_real_folder(path):
        raise StoreError(f"{path}: not a real folder; remove it, or restore it from a copy of the store")


def describe(data: bytes) -> FileEntry:
    return len(data), files.sha256(data)


def _may_be(path: Path, data: bytes) -> bool:
    """Whether the file holds `data`, as far as it can be read."""
    try:
        return files.read_bytes(path, MANIFEST_LIMIT) == data
    except StoreError:
        return True


def _put_back(root: Path, manifest: Manifest, error: BaseException) -> None:
    try:
        files.write_file(root / MANIFEST, manifest.to_bytes())
    except OSError as second:
        said = files.reason(error) if isinstance(error, OSError) else type(error).__name__
        raise StoreError(
            f"{root}: the disk failed while the change was being committed ({said}), and it can't be taken back ({files.reason(second)}): "
            f"the store is whole, `memgraft log` tells whether it has the change; check the disk"
        ) from error
    with suppress(OSError):
        files.sync_folder(root)


def _remove_orphans(root: Path, manifest: Manifest) -> None:
    """Removes what a crash left: lesson files that the manifest does not list, and temporary files."""
    _remove(root, [files.temporary_path(root / CHECKPOINT).name])
    for folder in (COMMITS, RECORDS, DATA):
        if not files.is_real_folder(root / folder):
            continue
        with os.scandir(root / folder) as entries:
            orphans = [
                f"{folder}/{e.name}" for e in entries if _LESSON_FILE.fullmatch(e.name) and f"{folder}/{e.name}" not in manifest.files
            ]
        _remove(root, orphans)


def _remove(root: Path, names: list[str]) -> None:
    for name in names:
        with suppress(OSError):
            (root / name).unlink()

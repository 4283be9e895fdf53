"""Making a store: built whole in a folder beside its place, then renamed into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from memgraft.canonical import canonical_json
from memgraft.errors import StoreError
from memgraft.store import files
from memgraft.store.draft import Draft
from memgraft.store.folder import describe
from memgraft.store.manifest import BACKGROUND, COMMITS, CONFIG, MANIFEST, MEMORY, RECORDS, USAGE, FileEntry, Manifest
from memgraft.store.spec import StoreSpec

if TYPE_CHECKING:
    from torch import Tensor

    from memgraft.commits import Commit


def build_store(
    path: Path,
    spec: StoreSpec,
    memory: Mapping[str, Tensor],
    usage: Mapping[str, Tensor],
    background_texts: Iterable[str],
    lessons: Iterable[Commit] = (),
) -> Path:
    """Makes a store that has learned these lessons and returns where it is. StoreError, with nothing left behind, when it can't."""
    contents = _contents(path, spec, memory, usage, background_texts)
    check_place(path)
    with files.nothing_changed(path):
        root = path.resolve()
        made = files.make_folders(root.parent)
        try:
            _build(root, lambda build: _fill(build, contents, Draft(path, Manifest(files={}), spec.memory), lessons))
        except BaseException:
            files.remove_folders(made)
            raise
    return path


def check_place(path: Path) -> None:
    """StoreError where no store can be made: something is there, or the store could not take the folder's place."""
    with files.nothing_changed(path):
        root = path.resolve()
        if root.exists():
            if not (root.is_dir() and not any(root.iterdir())):
                raise StoreError(f"{path}: exists already and is not an empty folder; choose another name")
            if root.is_mount() or root == Path.cwd().resolve():
                what = "a mount point" if root.is_mount() else "the current folder"
                raise StoreError(f"{path}: is {what}, whose place a store can't take; name a new folder in it, such as {path / 'store'}")
        parent = next(folder for folder in root.parents if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _build(root: Path, fill: Callable[[Path], None]) -> None:
    # A fixed name: what a crash left here is found and cleared by the next try, and the lock in it keeps two tries apart.
    build = root.with_name(f".{root.name}.memgraft-new")
    if not build.exists():
        files.make_folder(build)
    elif not files.is_real_folder(build):
        raise StoreError(f"{build}: in the way of making the store; remove it")
    try:
        with files.locked(filelock.FileLock(build / files.LOCK), build):
            _fill_and_rename(build, root, fill)
    except BaseException:
        with suppress(OSError):
            build.rmdir()  # empty when not even the lock file could be made
        raise


def _fill_and_rename(build: Path, root: Path, fill: Callable[[Path], None]) -> None:
    existed, renamed = root.exists(), False
    try:
        files.empty_folder(build, keep=(files.LOCK, files.WRITER))
        if existed:  # before anything is in it: who may not look into the folder must not look into this one
            files.copy_mode(root, build)
        fill(build)
        files.rename(build, root)
        renamed = True
        files.sync_folder(root.parent)
    except BaseException:
        if renamed and existed:
            files.empty_folder(root)
        else:
            files.remove_tree(root if renamed else build)
        raise


def _fill(build: Path, contents: Mapping[str, bytes], draft: Draft, lessons: Iterable[Commit]) -> None:
    """Writes and flushes all files of the new store, one lesson at a time."""
    written: dict[str, FileEntry] = {}
    folders = [build / COMMITS, build / RECORDS]
    for folder in folders:
        files.make_folder(folder)

    def write(name: str, data: bytes) -> None:
        folder = (build / name).parent
        if folder not in (build, *folders):
            files.make_folder(folder)
            folders.append(folder)
        files.write_file(build / name, data)
        written[name] = describe(data)

    for name, data in contents.items():
        write(name, data)
    for lesson in lessons:
        draft.learn(lesson)
        for name, content in draft.change.files.items():
            if name not in written:
                write(name, content())
        draft.change.files.clear()
    files.write_file(build / MANIFEST, Manifest(files=written, history=draft.history).to_bytes())
    for folder in (*folders, build):
        files.sync_folder(folder)


def _contents(
    path: Path, spec: StoreSpec, memory: Mapping[str, Tensor], usage: Mapping[str, Tensor], background_texts: Iterable[str]
) -> dict[str, bytes]:
    """The files of the new store that no lesson changes."""
    try:
        config = canonical_json(spec.model_dump(mode="json")) + b"\n"
        texts = b"".join(canonical_json({"text": text}) + b"\n" for text in background_texts)
        return {CONFIG: config, MEMORY: _tensor_bytes(memory), USAGE: _tensor_bytes(usage), BACKGROUND: texts}
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: can't be stored: {' '.join(str(error).split())}; nothing was changed") from error


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    # A copy of each: the format has no tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        return safetensors.torch.save(own)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error

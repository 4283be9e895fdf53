"""Making a store: built whole in a folder beside its place, then renamed into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from memgraft.canonical import canonical_json
from memgraft.errors import StoreError
from memgraft.store import files
from memgraft.store.folder import describe
from memgraft.store.manifest import BACKGROUND, COMMITS, CONFIG, MANIFEST, MEMORY, RECORDS, USAGE, Manifest
from memgraft.store.spec import StoreSpec

if TYPE_CHECKING:
    from torch import Tensor


def build_store(
    path: Path, spec: StoreSpec, memory: Mapping[str, Tensor], usage: Mapping[str, Tensor], background_texts: Iterable[str]
) -> Path:
    """Makes a store without lessons and returns where it is. StoreError, with nothing left behind, when it can't."""
    contents = _contents(path, spec, memory, usage, background_texts)
    with files.nothing_changed(path):
        root = path.resolve()
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            raise StoreError(f"{path}: exists already and is not an empty folder; choose another name")
        made = files.make_folders(root.parent)
        try:
            _build(root, contents)
        except BaseException:
            files.remove_folders(made)
            raise
    return path


def _build(root: Path, contents: Mapping[str, bytes]) -> None:
    # A fixed name: what a crash left here is found and cleared by the next try, and the lock in it keeps two tries apart.
    build = root.with_name(f".{root.name}.memgraft-new")
    if not build.exists():
        files.make_folder(build)
    elif not files.is_real_folder(build):
        raise StoreError(f"{build}: in the way of making the store; remove it")
    try:
        with files.locked(filelock.FileLock(build / files.LOCK), build):
            _fill_and_rename(build, root, contents)
    except BaseException:
        with suppress(OSError):
            build.rmdir()  # empty when not even the lock file could be made
        raise


def _fill_and_rename(build: Path, root: Path, contents: Mapping[str, bytes]) -> None:
    existed, renamed = root.exists(), False
    try:
        files.empty_folder(build, keep=(files.LOCK, files.WRITER))
        for folder in (COMMITS, RECORDS):
            files.make_folder(build / folder)
        for name, data in contents.items():
            files.write_file(build / name, data)
        files.sync_folder(build)
        files.rename(build, root)
        renamed = True
        files.sync_folder(root.parent)
    except BaseException:
        if renamed and existed:
            files.empty_folder(root)
        else:
            files.remove_tree(root if renamed else build)
        raise


def _contents(
    path: Path, spec: StoreSpec, memory: Mapping[str, Tensor], usage: Mapping[str, Tensor], background_texts: Iterable[str]
) -> dict[str, bytes]:
    """The files of the new store, the manifest last."""
    try:
        config = canonical_json(spec.model_dump(mode="json")) + b"\n"
        texts = b"".join(canonical_json({"text": text}) + b"\n" for text in background_texts)
        contents = {CONFIG: config, MEMORY: _tensor_bytes(memory), USAGE: _tensor_bytes(usage), BACKGROUND: texts}
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: can't be stored: {' '.join(str(error).split())}; nothing was changed") from error
    manifest = Manifest(files={name: describe(data) for name, data in contents.items()})
    return {**contents, MANIFEST: manifest.to_bytes()}


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    # A copy of each: the format has no tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        return safetensors.torch.save(own)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error

"""The store's file layer: whole files, written so that a crash or a full disk leaves the old ones.

Every change of the disk goes through the few primitives at the end, so that tests can make each of them fail in turn.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from memgraft.errors import StoreError

LOCK = ".lock"
WRITER = ".writer"  # the pid of the process that holds the lock, for the error message only


def _flags(*names: str) -> int:
    """Flags for os.open, as far as this operating system has them."""
    return sum(getattr(os, f"O_{name}", 0) for name in names)


_OLD_FILE = _flags("RDONLY", "BINARY", "CLOEXEC", "NOFOLLOW", "NONBLOCK")
_NEW_FILE = _flags("WRONLY", "BINARY", "CLOEXEC", "NOFOLLOW", "CREAT", "TRUNC")
_ADVICE = {
    errno.ENOENT: "make the folder first",
    errno.ENOSPC: "free some disk space and try again",
    errno.EDQUOT: "free some of your disk quota and try again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and try again",
    errno.EACCES: "check who may write there",
    errno.EPERM: "check who may write there",
    errno.EROFS: "copy the store to a writable disk",
}


@contextmanager
def nothing_changed(path: Path) -> Iterator[None]:
    """Turns an OSError of a write that was undone into a StoreError that says so."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the disk and try again")
        raise StoreError(f"{path}: can't write ({reason(error)}); nothing was changed: {advice}") from error


def reason(error: OSError) -> str:
    """What the operating system says, without the path that the caller names anyway."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes. StoreError for anything else: missing, larger, a link, a device."""
    try:
        descriptor = os.open(path, _OLD_FILE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path}: is a symbolic link, which a store does not follow; copy the store with `cp -rL`") from error
        way_out = "restore the file from a copy of the store"
        if error.errno == errno.ENOENT:
            way_out = f"open the store again where another process has changed it meanwhile, else {way_out}"
        raise StoreError(f"{path}: can't read ({reason(error)}); {way_out}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path}: not a regular file; restore it from a copy of the store")
        if status.st_size > limit:
            raise StoreError(f"{path}: has {status.st_size} bytes where at most {limit} are expected; restore it from a copy of the store")
        try:
            return file.read()
        except OSError as error:
            raise StoreError(f"{path}: can't read ({reason(error)}); restore the file from a copy of the store") from error


def regular_size(path: Path | str) -> int | None:
    """Bytes of a regular file; None when there is none at this path (a link is none)."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Puts a whole file in place: temporary name, flush to disk, rename. The name is durable after `sync_folder`."""
    temporary = temporary_path(path)
    try:
        descriptor = open_new(temporary)
        try:
            view = memoryview(data)
            while view:
                view = view[write(descriptor, view) :]
            sync(descriptor)
        finally:
            os.close(descriptor)
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def temporary_path(path: Path) -> Path:
    """One per file: only the holder of the lock writes, and its next write replaces what a crash left."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(path: Path) -> None:
    """Makes renames in a folder durable."""
    if os.name == "nt":  # where folders can't be opened
        return
    descriptor = os.open(path, _flags("RDONLY", "CLOEXEC", "DIRECTORY"))
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't sync a folder keep renames durable on their own
            raise
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and its missing parents; those made, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    made: list[Path] = []
    try:
        for folder in missing:
            make_folder(folder)
            made.append(folder)
    except BaseException:
        remove_folders(made)
        raise
    return made


def remove_folders(made: list[Path]) -> None:
    """Takes back `make_folders`, as far as the folders are empty."""
    for folder in reversed(made):
        with suppress(OSError):
            folder.rmdir()


def empty_folder(path: Path, keep: Collection[str] = ()) -> None:
    """Removes what is in a folder, as far as the disk lets us."""
    for entry in list(path.iterdir()):
        if entry.name in keep:
            continue
        if is_real_folder(entry):
            remove_tree(entry)
        else:
            with suppress(OSError):
                entry.unlink()


def remove_tree(path: Path) -> None:
    """Removes a folder and what is in it, as far as the disk lets us."""
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(lock: filelock.FileLock, root: Path) -> Iterator[None]:
    """Holds the store's lock, or says at once who does. One lock object may be entered again while it is held."""
    with nothing_changed(root):
        _acquire(lock, root)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.FileLock, root: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StoreError(f"{root}: {_owner(root)} is writing to this store; wait for it to end, then try again") from error
    try:
        _sign(root)
    except BaseException:
        lock.release()
        raise


def _sign(root: Path) -> None:
    with suppress(OSError):  # only the error message of another writer is the worse for it
        descriptor = os.open(root / WRITER, _NEW_FILE, 0o666)
        try:
            os.write(descriptor, str(os.getpid()).encode())
        finally:
            os.close(descriptor)


def _owner(root: Path) -> str:
    try:
        pid = (root / WRITER).read_text()
    except OSError:
        pid = ""
    return f"process {pid}" if pid.isdecimal() else "another process"


def open_new(path: Path) -> int:
    return os.open(path, _NEW_FILE, 0o666)


def write(descriptor: int, data: bytes | memoryview) -> int:
    return os.write(descriptor, data)


def sync(descriptor: int) -> None:
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def make_folder(path: Path) -> None:
    os.mkdir(path)


def copy_mode(source: Path, target: Path) -> None:
    """Gives a folder the permissions of another; its owner may always fill it."""
    os.chmod(target, stat.S_IMODE(source.stat().st_mode) | stat.S_IRWXU)

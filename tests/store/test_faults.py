"""Failing disks, interrupts and kills: whatever the moment, the store is as it was, or has the whole change."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memgraft.commits import Commit, DataFile, Rows
from memgraft.errors import StoreError
from memgraft.store import MemoryStore, StoreSpec, files

from .conftest import MEMORY, TEXTS, USAGE, Lesson, Make

PRIMITIVES = ("open_new", "write", "sync", "rename", "make_folder", "copy_mode")
Fail = Callable[[str], BaseException]


class Disk:
    """Counts the calls of the file layer's primitives and makes the k-th of them fail, or all from the k-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fails_at: int | None = None
        self.stays_broken = False
        self.error: Fail = lambda name: OSError(errno.EIO, os.strerror(errno.EIO))
        for name in PRIMITIVES:
            monkeypatch.setattr(files, name, self._wrapped(name, getattr(files, name)))

    def _wrapped(self, name: str, primitive: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.calls += 1
            if self.fails_at is not None and (self.calls == self.fails_at or (self.stays_broken and self.calls > self.fails_at)):
                raise self.error(name)
            return primitive(*args)

        return call

    def breaks(self, at: int, stays_broken: bool = False) -> None:
        self.calls, self.fails_at, self.stays_broken = 0, at, stays_broken

    def works(self) -> None:
        self.calls, self.fails_at = 0, None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, but those that only the lock uses."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name not in (files.LOCK, files.WRITER)
    }


def listed(store: MemoryStore) -> tuple[object, ...]:
    """What a reader sees of a store."""
    assert store.verify() == []
    state = {table: (rows.slots.numpy().tobytes(), rows.values.numpy().tobytes()) for table, rows in store.state().items()}
    return store.history(), state, store.background_texts(), {id: store.commit(id) for id in store.active()}


def changes(lesson: Lesson) -> dict[str, Callable[[MemoryStore], object]]:
    """What can change a store that has the lessons a and b, of which b is reverted."""
    return {
        "append": lambda store: store.append(lesson("c", {"0": {3: 4.0}})),
        "append again": lambda store: store.append(lesson("b", seconds=2)),
        "revert": lambda store: store.revert(lesson("a").id),
    }


@pytest.fixture(params=["append", "append again", "revert"])
def change(request: pytest.FixtureRequest, lesson: Lesson) -> Callable[[MemoryStore], object]:
    return changes(lesson)[request.param]


@pytest.fixture
def taught(store: MemoryStore, lesson: Lesson) -> MemoryStore:
    store.append(lesson("a"))
    store.append(lesson("b", seconds=1))
    store.revert(lesson("b").id)
    return store


def failures(disk: Disk, operation: Callable[[], object], stays_broken: bool = False) -> Iterator[tuple[int, BaseException]]:
    """Runs the operation with the first, second, … primitive failing, until it succeeds; what each try raised."""
    for k in range(1, 1000):
        disk.breaks(k, stays_broken)
        try:
            operation()
        except (StoreError, KeyboardInterrupt) as error:
            disk.works()
            yield k, error
        else:
            disk.works()
            assert k > 5, "the operation must have been made to fail"
            return


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_change_fails_whole_at_whatever_call_the_disk_fails(
    taught: MemoryStore, change: Callable[[MemoryStore], object], disk: Disk, code: int
) -> None:
    disk.error = lambda name: OSError(code, os.strerror(code), "some/path")
    before = listed(taught)
    disk_before = contents(taught.path)
    history = taught.history()
    for k, error in failures(disk, lambda: change(taught)):
        assert "nothing was changed: " in str(error), k
        assert os.strerror(code).lower() in str(error)
        assert "\n" not in str(error)
        assert taught.history() == history
        assert listed(MemoryStore.open(taught.path)) == before
        left = contents(taught.path)
        assert {name: left.get(name) for name in disk_before} == disk_before
    assert len(taught.history()) == len(history) + 1
    assert listed(MemoryStore.open(taught.path)) != before
    assert contents(taught.path).keys() == MemoryStore.open(taught.path)._manifest.files.keys() | {"manifest.json", "commits", "records"}


def test_a_change_fails_whole_or_says_that_it_can_not_tell_when_the_disk_stays_broken(
    taught: MemoryStore, change: Callable[[MemoryStore], object], disk: Disk
) -> None:
    before = listed(taught)
    untold = 0
    for k, error in failures(disk, lambda: change(taught), stays_broken=True):
        after = listed(MemoryStore.open(taught.path))
        if "can't be taken back" in str(error):
            untold += 1
            assert after != before, k
            break
        assert "nothing was changed" in str(error)
        assert after == before, k
    assert untold == 1, "the disk must have broken between the commit and its being made durable"


def test_an_interrupt_at_any_call_leaves_the_store_as_it_was(
    taught: MemoryStore, change: Callable[[MemoryStore], object], disk: Disk
) -> None:
    disk.error = lambda name: KeyboardInterrupt()
    before = listed(taught)
    for k, error in failures(disk, lambda: change(taught)):
        assert isinstance(error, KeyboardInterrupt)
        assert listed(MemoryStore.open(taught.path)) == before, k
    assert listed(MemoryStore.open(taught.path)) != before


@pytest.mark.parametrize("stays_broken", [False, True])
@pytest.mark.parametrize("target", ["store", "deep/er/store", "empty"])
def test_a_store_is_made_whole_or_not_at_all(make: Make, disk: Disk, tmp_path: Path, target: str, stays_broken: bool) -> None:
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    for k, error in failures(disk, lambda: make(tmp_path / target), stays_broken):
        assert "nothing was changed" in str(error)
        assert contents(tmp_path) == before, k
    assert MemoryStore.open(tmp_path / target).verify() == []


def test_a_store_with_lessons_is_made_whole_or_not_at_all(disk: Disk, spec: StoreSpec, lesson: Lesson, tmp_path: Path) -> None:
    content = b'{"text": "taught"}\n'
    kept = Commit(lesson("x").changes, "kept", {}, files.sha256(content), {"seconds": 3}, DataFile("jsonl", content))
    lessons = [lesson("a"), kept, replace(kept, message="again, with the same data")]
    target = tmp_path / "deep/store"
    for k, error in failures(disk, lambda: MemoryStore.create(target, spec, MEMORY, USAGE, TEXTS, lessons)):
        assert "store: can't write" in str(error)
        assert "nothing was changed" in str(error)
        assert contents(tmp_path) == {}, k
    store = MemoryStore.open(target)
    assert store.verify() == []
    assert [store.commit(id) for id in store.active()] == lessons
    assert [store.data(taught.id) for taught in lessons] == [None, kept.data, kept.data]
    assert contents(target).keys() == store.manifest.files.keys() | {"manifest.json", "commits", "records", "data"}


@pytest.mark.parametrize("unfit", ["lesson", "lessons"])
def test_a_store_is_not_made_where_a_lesson_can_not_be_stored(spec: StoreSpec, lesson: Lesson, tmp_path: Path, unfit: str) -> None:
    def lessons() -> Iterator[Commit]:
        yield lesson("a")
        if unfit == "lessons":
            raise StoreError("damaged where it comes from")
        yield lesson("b", {"0": {99: 1.0}})

    with pytest.raises(StoreError, match="damaged where it comes from" if unfit == "lessons" else "store: the lesson does not fit"):
        MemoryStore.create(tmp_path / "store", spec, MEMORY, USAGE, TEXTS, lessons())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell which file is flushed")
def test_each_file_is_flushed_before_it_gets_its_name_and_the_manifest_is_the_last(
    taught: MemoryStore, lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What power loss needs and no test can cut: the order of the calls."""
    steps: list[tuple[str, str]] = []
    sync, rename = files.sync, files.rename

    def noted_sync(descriptor: int) -> None:
        steps.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), taught.path.resolve())))
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        steps.append(("rename", str(target.relative_to(taught.path))))
        rename(source, target)

    monkeypatch.setattr(files, "sync", noted_sync)
    monkeypatch.setattr(files, "rename", noted_rename)
    id = taught.append(lesson("c")).commit
    names = [f"records/{id}.json", f"commits/{id}.safetensors", f"commits/{id}.json"]
    expected = []
    for name in names:
        expected += [("sync", files.temporary_path(Path(name))), ("rename", name)]
    expected += [("sync", "commits"), ("sync", "records"), ("sync", ".manifest.json.tmp"), ("rename", "manifest.json"), ("sync", ".")]
    assert steps == [(step, str(path)) for step, path in expected]


def test_what_a_crash_left_is_ignored_and_removed_by_the_next_change(taught: MemoryStore, lesson: Lesson) -> None:
    before = listed(taught)
    orphans = [f"commits/{'e' * 64}.safetensors", f"commits/.{'e' * 64}.json.tmp", f"records/{'e' * 64}.2.json"]
    orphans += [".manifest.json.tmp", "..checkpoint.safetensors.tmp"]
    for name in orphans:
        (taught.path / name).write_bytes(b"cut sh")
    (taught.path / "commits/notes.txt").write_text("the user's own")
    assert listed(MemoryStore.open(taught.path)) == before
    taught.append(lesson("c"))
    assert not any((taught.path / name).exists() for name in orphans)
    assert (taught.path / "commits/notes.txt").exists()


def test_what_a_crash_left_of_making_a_store_is_replaced_by_the_next_try(make: Make, tmp_path: Path) -> None:
    left = tmp_path / ".store.memgraft-new"
    (left / "commits").mkdir(parents=True)
    (left / "commits/some").write_bytes(b"cut sh")
    (left / "manifest.json").write_bytes(b"cut sh")
    assert make(tmp_path / "store").verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_two_processes_making_the_same_store_do_not_mix(make: Make, tmp_path: Path) -> None:
    import filelock

    left = tmp_path / ".store.memgraft-new"
    left.mkdir()
    (left / "memory.safetensors").write_bytes(b"being written")
    with filelock.FileLock(left / files.LOCK), pytest.raises(StoreError, match="another process is writing"):
        make(tmp_path / "store")
    assert (left / "memory.safetensors").read_bytes() == b"being written"


def test_a_folder_where_no_lock_can_be_made_is_a_one_line_error(
    taught: MemoryStore, lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(taught.path / files.LOCK))

    monkeypatch.setattr(taught._lock, "acquire", refuse)
    with pytest.raises(StoreError, match=r"can't write \(permission denied\); nothing was changed: check who may write there"):
        taught.append(lesson("c"))


KILLED = """
import os, sys
import torch
torch.set_num_threads(1)
from memgraft.commits import Commit, Rows
from memgraft.store import MemoryStore
from tests.killing import killed_at_each_call

path = sys.argv[1]
taught = Commit({"0": Rows(torch.tensor([5]), torch.ones(1, 3))}, "killed", {}, "d" * 64)

for k, status in killed_at_each_call(lambda: MemoryStore.open(path).append(taught)):
    store = MemoryStore.open(path)
    problems = store.verify()
    slots = store.state()["0"].slots.tolist()
    print(k, os.WTERMSIG(status), len(problems), len(store.history()), 5 in slots, flush=True)
    if os.WIFEXITED(status) or 5 in slots:
        break
"""


def test_a_process_killed_at_any_call_leaves_the_store_whole(taught: MemoryStore, lesson: Lesson) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, taught.path], capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr
    *before, last = [line.split()[1:] for line in done.stdout.splitlines()]
    assert len(before) > 10
    assert all(outcome == ["9", "0", "3", "False"] for outcome in before)
    assert last == ["9", "0", "4", "True"], "killed after the manifest was replaced: the lesson is there"
    MemoryStore.open(taught.path).append(lesson("after the kill"))
    assert MemoryStore.open(taught.path).verify() == []


def big_lesson(rows: int) -> Commit:
    return Commit({"0": Rows(torch.arange(rows), torch.randn(rows, 64))}, "big", {}, "d" * 64)


@pytest.fixture
def wide(spec: StoreSpec) -> StoreSpec:
    memory = spec.memory.model_copy(update={"hidden_size": 64, "slots": 65_536, "layers": (1,)})
    return spec.model_copy(update={"memory": memory})


def test_a_file_size_limit_leaves_the_store_as_it_was(wide: StoreSpec, tmp_path: Path) -> None:
    store = MemoryStore.create(tmp_path / "store", wide, {}, {}, [])
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk_before = contents(store.path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match=r"file too large\); nothing was changed: raise the file size limit"):
            store.append(big_lesson(1_000))
        with pytest.raises(StoreError, match="nothing was changed"):
            MemoryStore.create(tmp_path / "other", wide, {"keys": torch.zeros(1_000_000)}, {}, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert contents(store.path) == disk_before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    store.append(big_lesson(1_000))
    assert store.verify() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "memgraft-test", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_store_as_it_was(wide: StoreSpec, small_disk: Path) -> None:
    store = MemoryStore.create(small_disk / "store", wide, {}, {}, [])
    store.append(big_lesson(100))
    disk_before = contents(store.path)
    with pytest.raises(StoreError, match=r"no space left on device\); nothing was changed: free some disk space"):
        store.append(big_lesson(5_000))
    assert contents(store.path) == disk_before
    with pytest.raises(StoreError, match="no space left on device"):
        MemoryStore.create(small_disk / "other", wide, {"keys": torch.zeros(1_000_000)}, {}, [])
    assert [path.name for path in small_disk.iterdir()] == ["store"]
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(StoreError, match="no space left on device"):
        store.revert(big_lesson_id(store))
    assert contents(store.path) == disk_before
    (small_disk / "filler").unlink()
    store.append(big_lesson(101))
    assert MemoryStore.open(store.path).verify() == []


def big_lesson_id(store: MemoryStore) -> str:
    return store.history()[0].commit


def test_a_read_only_disk_can_be_read_but_not_changed(wide: StoreSpec, small_disk: Path) -> None:
    store = MemoryStore.create(small_disk / "store", wide, {}, {}, [])
    store.append(big_lesson(10))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert MemoryStore.open(store.path).verify() == []
    with pytest.raises(StoreError, match=r"read-only file system\); nothing was changed: copy the store to a writable disk"):
        store.append(big_lesson(11))

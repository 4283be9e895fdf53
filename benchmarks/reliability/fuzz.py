"""Damaged and hostile store files: each is met with a clear error or a correct load, soon and in little memory."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reliability.world import World, random_lesson
from memgraft.errors import StoreError
from memgraft.store import MemoryStore
from memgraft.store.files import sha256

SECONDS = 10  # after which a load counts as hung
HEADROOM = 1 << 29  # bytes of address space that a load may add
INTERESTING = (b"", b"\0", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"null", b"[" * 200, b'"\\ud800"', b"../", b"99999999999999999999", b"{}")


class Hung(Exception):
    """A load took too long."""


def fuzz_many(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Loads so many fuzzed files, one at a time in a store that is whole otherwise; what was not met as it should."""
    rng = random.Random(seed)
    world = World(folder, seed, lessons=4)
    path = world.path
    store = MemoryStore.open(path)
    lesson = folder / "lesson.safetensors"
    store.append(random_lesson(99, rows=5))
    store.export(random_lesson(99, rows=5).id, lesson)
    names = ["manifest.json", *store.manifest.files]
    expected = _everything(path)
    failures: list[str] = []
    with limited():
        for number in range(count):
            name = rng.choice([*names, "exported lesson"])
            target = lesson if name == "exported lesson" else path / name
            original = target.read_bytes()
            damaged = mutate(original, rng)
            load: Callable[[], object]
            if name == "exported lesson":
                target.write_bytes(damaged)
                load = lambda: store.import_(lesson, "sum")  # noqa: E731
                digests = False
            else:
                digests = name != "manifest.json" and rng.random() < 0.6
                manifest = (path / "manifest.json").read_bytes()
                target.write_bytes(damaged)
                if digests:
                    (path / "manifest.json").write_bytes(_with_digest(manifest, name, damaged))
                load = lambda: _everything(path)  # noqa: E731
            problem = _met(load, expected, must_be_equal=name not in ("exported lesson", "manifest.json") and not digests)
            if problem:
                failures.append(f"file {number}, {name}: {problem}")
            target.write_bytes(original)
            if digests:
                (path / "manifest.json").write_bytes(manifest)
    return failures


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, grown, spliced, or written anew."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randint(0, len(damaged))
        if damaged and rng.random() < 0.5:
            at = rng.randrange(min(len(damaged), 600))  # headers are at the front
        match rng.randrange(7):
            case 0 | 1 if at < len(damaged):
                damaged[at] ^= 1 << rng.randrange(8)
            case 2:
                del damaged[at:]
            case 3:
                damaged[at:at] = rng.randbytes(rng.randint(1, 9))
            case 4:
                damaged[at : at + rng.randint(1, 9)] = rng.choice(INTERESTING)
            case 5:
                source = rng.randint(0, len(damaged))
                damaged[at:at] = damaged[source : source + rng.randint(1, 64)]
            case _:
                damaged[:8] = rng.choice((0, 1, len(data), 1 << 31, 1 << 62, rng.getrandbits(64))).to_bytes(8, "little")
    return bytes(damaged) if rng.random() > 0.02 else rng.randbytes(rng.randint(0, 200))


def _with_digest(manifest: bytes, name: str, data: bytes) -> bytes:
    value = json.loads(manifest)
    value["files"][name] = [len(data), sha256(data)]
    return json.dumps(value).encode()


def _everything(path: Path) -> list[Any]:
    """All that a store holds, every file read."""
    store = MemoryStore.open(path)
    tensors = [store.memory_tensors(), store.usage_tensors()]
    lessons = [store.commit(id) for id in dict.fromkeys(entry.commit for entry in store.history())]
    for name in store.manifest.files:
        if name.startswith("data/"):
            store.read_data(name)
    shown = [{name: tensor.tolist() for name, tensor in part.items()} for part in tensors]
    return [store.spec, store.history(), shown, store.background_texts(), [lesson.id for lesson in lessons], store.state()]


def _met(load: Callable[[], object], expected: list[Any], *, must_be_equal: bool) -> str:
    """How a load failed to end as it should; empty when it did not."""
    signal.alarm(SECONDS)
    try:
        loaded = load()
    except StoreError as error:
        return "an error of several lines" if "\n" in str(error) else ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "loaded as if it were whole, with other content" if must_be_equal and loaded != expected else ""


@contextmanager
def limited() -> Iterator[None]:
    """Within, a load that takes too long raises Hung, and one that takes too much memory MemoryError."""

    def hung(number: int, frame: Any) -> None:
        raise Hung(f"no end after {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hung)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)

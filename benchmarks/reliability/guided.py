"""Coverage-guided fuzzing of what reads store files (Atheris, libFuzzer): `python -m benchmarks.reliability.guided FOLDER RUNS`.

The first byte of an input chooses the reader, the rest is the file. Anything but a StoreError of one line ends the run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["memgraft"]):
    from memgraft.errors import StoreError
    from memgraft.store import exchange, lessons
    from memgraft.store.identity import Identity
    from memgraft.store.manifest import Manifest, parse

from benchmarks.reliability.world import MEMORY, World, random_lesson
from memgraft.store import MemoryStore


def main(folder: Path, runs: int) -> None:
    """Fuzzes until `runs` inputs were read, and leaves the corpus in the folder."""
    world = World(folder / "world", 0, lessons=4)
    store = MemoryStore.open(world.path)
    lesson = random_lesson(99, rows=3)
    store.append(lesson)
    store.export(lesson.id, folder / "lesson.safetensors")
    identity = Identity.of(store.spec, store.manifest)
    seeds = (
        (world.path / "manifest.json").read_bytes(),
        store.read_member(f"commits/{lesson.id}.safetensors"),
        store.read_member(f"commits/{lesson.id}.json"),
        store.read_member("background.jsonl"),
        (folder / "lesson.safetensors").read_bytes(),
    )
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(bytes([number]) + seed)
    scratch = folder / "scratch.safetensors"

    def read(data: bytes) -> None:
        body = data[1:]
        try:
            match data[0] % 5 if data else 0:
                case 0:
                    Manifest.from_bytes(body, "manifest")
                case 1:
                    lessons.decode(body, MEMORY, "lesson")
                case 2:
                    lessons.decode_header(body, "header")
                case 3:
                    parse(body, "background")
                case _:
                    scratch.write_bytes(body)
                    exchange.import_lesson(scratch, identity)
        except StoreError as error:
            if "\n" in str(error):
                raise RuntimeError("an error of several lines") from error

    atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=20", "-seed=1", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(Path.cwd(), int(sys.argv[2]))

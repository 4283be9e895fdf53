"""The reliability harness in short: it runs, finds nothing, and would find something."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.__main__ import SHORT, guided_fuzz, main
from benchmarks.reliability.fuzz import mutate
from benchmarks.reliability.kills import kill_many
from benchmarks.reliability.power import cut_many
from memgraft.store import files

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def test_the_short_run_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reliability", "--short", "--output", str(tmp_path)])
    main()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kills"] == SHORT["kills"]
    assert summary["kills_inside_write_windows"] >= 0.7 * SHORT["kills"]
    assert [summary[name] for name in ("lost_commits", "corrupt_after_kill", "power_cut_failures", "fuzz_failures", "first_failures")] == [
        0, 0, 0, 0, [],
    ]  # fmt: skip
    assert summary["resume_points"] == summary["resume_bit_equal"] == SHORT["resume"]
    assert len((tmp_path / "kills.tsv").read_text().splitlines()) == 1 + SHORT["kills"]


def test_a_store_that_does_not_flush_is_found_by_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file = files.write_file

    def unflushed(path: Path, data: bytes) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", lambda descriptor: None)
            write_file(path, data)

    monkeypatch.setattr(files, "write_file", unflushed)
    assert cut_many(tmp_path, 25)


def test_a_store_that_writes_in_place_is_found_by_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, data: bytes) -> None:
        descriptor = files.open_new(path)
        for start in range(0, len(data), 1024):
            files.write(descriptor, data[start : start + 1024])
            files.sync(descriptor)
        os.close(descriptor)

    monkeypatch.setattr(files, "write_file", in_place)
    assert any(kill.problem or kill.lost for kill in kill_many(tmp_path, 25))


def test_fuzzed_files_differ_and_repeat_with_the_seed() -> None:
    data = bytes(range(256)) * 4
    first = [mutate(data, random.Random(seed)) for seed in range(50)]
    assert first == [mutate(data, random.Random(seed)) for seed in range(50)]
    assert sum(damaged != data for damaged in first) > 40


def test_the_coverage_guided_fuzzer_runs_where_it_is_installed() -> None:
    pytest.importorskip("atheris")
    done, failed = guided_fuzz(200)
    assert done >= 200
    assert not failed

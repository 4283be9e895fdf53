"""Runs of a benchmark in several processes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jobs import Runner, check_jobs, finished, threads_of
from memgraft.errors import MemgraftError


def _runner(folder: Path) -> Runner:
    def run(task: int) -> dict[str, Any]:
        (folder / str(task)).touch()
        if task == 0:
            raise MemgraftError("task 0 can't be run")
        time.sleep(0.5)
        return {"id": task}

    return run


def test_in_one_process_runs_come_in_order(tmp_path: Path) -> None:
    make = partial(_runner, tmp_path)
    assert [run["id"] for run in finished([3, 1, 2], 1, make(), make)] == [3, 1, 2]


def test_all_runs_come_from_processes(tmp_path: Path) -> None:
    make = partial(_runner, tmp_path)
    assert sorted(run["id"] for run in finished([3, 1, 2], 2, make(), make)) == [1, 2, 3]


def test_after_an_error_nothing_more_is_started(tmp_path: Path) -> None:
    make = partial(_runner, tmp_path)
    with pytest.raises(MemgraftError, match="task 0 can't be run"):
        list(finished(list(range(40)), 2, make(), make))
    assert len(list(tmp_path.iterdir())) < 20


def test_what_others_run_when_one_fails_is_not_lost(tmp_path: Path) -> None:
    make = partial(_runner, tmp_path)
    runs = finished([1, 0], 2, make(), make)
    assert next(runs) == {"id": 1}
    with pytest.raises(MemgraftError, match="task 0 can't be run"):
        next(runs)


def test_no_job_is_refused() -> None:
    with pytest.raises(MemgraftError, match="--jobs: 0 at a time; give 1 or more"):
        check_jobs(0)
    assert threads_of(10**6) == 1

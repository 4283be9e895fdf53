"""Runs of a benchmark, several at a time, in processes that share the cores between them."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from memgraft.errors import MemgraftError

Runner = Callable[[Any], dict[str, Any]]  # a task's run, taught and measured


def add_jobs_option(parser: argparse.ArgumentParser, what: str) -> None:
    """--jobs: two by default where there are two cores."""
    default = 2 if _cores() > 1 else 1
    parser.add_argument("--jobs", type=int, default=default, help=f"{what} at a time, in processes (default: %(default)s)")


def check_jobs(jobs: int) -> None:
    """MemgraftError unless at least one."""
    if jobs < 1:
        raise MemgraftError(f"--jobs: {jobs} at a time; give 1 or more")


def finished(tasks: Sequence[Any], jobs: int, here: Runner, make: Callable[[], Runner]) -> Iterator[dict[str, Any]]:
    """Each task's run as soon as it is measured: in order in this process, or out of order in `jobs` others.

    After an error no other task is started, and what others run already is still given before it is raised.

    Args:
        here: runs a task in this process.
        make: makes such a runner in another process; it travels there, so it must be picklable.
    """
    if jobs == 1 or len(tasks) < 2:
        yield from map(here, tasks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (make, threads_of(jobs))) as processes:
        try:
            submitted = [processes.submit(_run, task) for task in tasks]
            errors: list[Exception] = []
            for done in as_completed(submitted):
                if done.cancelled():
                    continue
                error = done.exception()
                if error is None:
                    yield done.result()
                elif isinstance(error, Exception):
                    errors.append(error)
                    for other in submitted:
                        other.cancel()
                else:
                    raise error
            if errors:
                raise errors[0]
        except BaseException:  # what runs ends, what waits does not start
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def threads_of(jobs: int) -> int:
    """Threads of each of so many processes."""
    return max(1, _cores() // jobs)


def _cores() -> int:
    return os.cpu_count() or 1


_runner: Runner | None = None  # of a process that was started for tasks


def _start(make: Callable[[], Runner], threads: int) -> None:
    global _runner
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _runner = make()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed for instance: it would wait for tasks for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: Any) -> dict[str, Any]:
    assert _runner is not None
    return _runner(task)

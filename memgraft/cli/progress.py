"""What a command is doing, on stderr: bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from memgraft.cli.console import console, remark

if TYPE_CHECKING:
    from rich.progress import TaskID

    from memgraft.teaching import Step


class Stages:
    """A context in which stages follow each other, each with a bar where its length is known."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._console = console(stderr=True)
        self.live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a bar moves out of the way of what is printed; a pipe gets it as it is
            disable=not self.live,
        )
        self._task: TaskID | None = None
        self._total: int | None = None

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, description: str, total: int | None = None) -> None:
        """Begin a stage in place of the one before."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, detail="")
        self._total = total

    def advance(self, done: int, detail: str = "") -> None:
        """Where the stage is now."""
        assert self._task is not None
        count = "" if self._total is None else f"{done:,}/{self._total:,}"
        self._progress.update(self._task, completed=done, detail=f"{count} {detail}".strip())

    def note(self, text: str) -> None:
        """A line of progress where there is no terminal to draw a bar in."""
        if not self.live:
            remark(text)


class TeachingProgress:
    """Loss, speed and time left of a lesson, from its steps."""

    def __init__(self, stages: Stages, *, passes: int, unit: str) -> None:
        self._stages = stages
        self._passes = passes
        self._unit = unit  # what is taught, in the plural
        self._start = time.perf_counter()
        self._losses: list[float] = []
        self._pass = 0
        self._last: Step | None = None

    def __call__(self, step: Step) -> None:
        if self._last is None:
            self._stages.stage("teaching", step.total)
        turn = (step.done - 1) * self._passes // step.total
        if turn != self._pass:
            self._end_of_pass()
            self._pass, self._losses = turn, []
        self._losses.append(step.loss)
        self._last = step
        self._stages.advance(step.done, self._detail(step))
        if step.done == step.total:
            self._end_of_pass()
            self._stages.stage("asking what was learned")

    def _detail(self, step: Step) -> str:
        # A fact is taught when it has had all its passes.
        rate = 60 * step.done / self._passes / max(time.perf_counter() - self._start, 1e-9)
        return f"loss {sum(self._losses) / len(self._losses):.3f}, {rate:.{0 if rate >= 10 else 1}f} {self._unit}/min"

    def _end_of_pass(self) -> None:
        step = self._last
        if step is None:
            return
        left = (time.perf_counter() - self._start) * (step.total - step.done) / step.done
        self._stages.note(f"pass {self._pass + 1} of {self._passes}: {self._detail(step)}, {left:.0f} s left")

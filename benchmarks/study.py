"""A study: methods with settings, taught and measured by docs/protocol.md, each run a line on disk as soon as it is done."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

import benchmarks
import memgraft
from benchmarks.along import STREAMS, Along
from benchmarks.documents import Documents
from benchmarks.jobs import Runner, finished
from benchmarks.materials import NOTHING, Choice, Material, Materials
from benchmarks.measurement import FACTS, STATEMENTS, data_file
from benchmarks.probes import load_probes
from benchmarks.selection import Selection
from benchmarks.writing import write_json
from memgraft.background import read_background
from memgraft.baselines import Retrieval
from memgraft.baselines.progress import TrainingFile
from memgraft.comparison.fronts import neighbours
from memgraft.comparison.measuring import AnyProbe, BaseScores, Measured, mean, measure_all, numbers
from memgraft.comparison.methods import AnyMethod, Base, described, method_of, settings
from memgraft.comparison.runs import append_run, due, environment, failed, read_runs, run_id
from memgraft.comparison.summary import BASE, CONTROL, LEARNED, MEMORY, balance, fronts_of, grouped, pools, summarise
from memgraft.comparison.workshop import Taught, Workshop
from memgraft.config import Config
from memgraft.errors import MeasureError, MemgraftError, TeachingError
from memgraft.models import Dtype, load_model
from memgraft.probes import AnswerNLLProbe, QAProbe, TextProbe, measure

FINALISTS = 3
SEEDED = ("pareto", "larger")  # studies whose test split is the facts of several seeds, and what is beside them
NO_PART_OF_A_RUN = ("tuning_facts", "test_facts", "test_seeds", "settings")  # sizes of a study; a run names its own facts and seed


class Sizes(Config):
    """How much is taught and measured."""

    tuning_facts: int = Field(50, gt=0, description="facts taught, and as many controls, when settings are chosen")
    test_facts: int = Field(100, gt=0, description="facts taught, and as many controls, on the test split")
    test_seeds: int = Field(3, gt=0, description="seeds on the test split")
    questions: int = Field(200, gt=0, description="questions of each probe")
    text_tokens: int = Field(32_768, gt=1, description="tokens of WikiText-2 test read")
    background_tokens: int = Field(32_768, gt=1, description="tokens of background text")
    wordings: int = Field(8, gt=0, description="training strings a fact in each pass")
    settings: int = Field(8, gt=0, description="settings a method, at most")
    passes: int | None = Field(None, gt=0, description="passes of every method; none: its own")


@dataclass(frozen=True)
class Task:
    """One run: a method taught one choice of facts."""

    choice: Choice
    method: str
    taught_as: AnyMethod


class Study:
    """All runs of one study."""

    def __init__(
        self,
        name: str,
        methods: Mapping[str, Sequence[AnyMethod]],
        *,
        sizes: Sizes,
        data: Path,
        rows: Sequence[dict[str, Any]],
        source: str,
        dtype: Dtype,
        device: str,
        output: Path,
        cache: Path,
        only: Sequence[str] | None = None,  # methods that are run now; the summary covers all that have runs
    ) -> None:
        self.only = only
        self.name, self.sizes, self.data, self.rows, self.output, self.cache = name, sizes, data, rows, output, cache
        most = sizes.settings if name == "pareto" else None
        # Settings that a fixed number of passes makes equal are tried once.
        self.methods = {
            family: list({repr(sized): sized for sized in (_sized(method, sizes) for method in each[:most])}.values())
            for family, each in methods.items()
        }
        loaded = load_model(source, dtype=dtype, device=device)
        self.device = loaded.model.device
        self.identity = {
            "model": Path(source).name,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "data_sha256": hashlib.sha256(taught_data(name, data).read_bytes()).hexdigest(),
        }
        self.workshop = Workshop(
            loaded.model,
            loaded.tokenizer,
            backgrounds={
                "c4": lambda: list(read_background(str(data_file(data, Path("text", "c4.jsonl"))))),
                "wikitext": lambda: list(read_background(str(data_file(data, Path("text", "wikitext2_valid.txt"))))),
                "taught": self._taught_text,
                "probes": self._probe_text,
            },
            background_tokens=sizes.background_tokens,
            cache=cache,
        )
        self.probes = load_probes(data, sizes.questions, sizes.text_tokens)
        self.arithmetic = self.workshop.arithmetic()
        self.base_scores = BaseScores(output / "base.json", {**self.identity, "arithmetic": self.arithmetic}, self._measure_base)
        self.runs_path = output / "runs.jsonl"
        self.materials = (Documents if name == "documents" else Materials)(
            rows,
            self.workshop,
            self.probes,
            passes=max(getattr(method, "passes", 1) for each in self.methods.values() for method in each),
            wordings=sizes.wordings,
            in_order=name in STREAMS,
            output=output,
            identity=self.identity,
        )
        self._current: Material | None = None
        self.environment = {**environment(self.device), "arithmetic": self.arithmetic}

    def run(self, jobs: int, make: Callable[[], Runner]) -> None:
        """All tasks that are not in runs.jsonl yet, `jobs` at a time; this process alone writes there.

        Args:
            make: makes `run_task` of an equal study in another process.
        """
        runs, done = read_runs(self.runs_path), list[dict[str, Any]]()
        for phase in self.phases(done):
            ids = [self._id(task) for task in phase]
            missing = [task for task, id in zip(phase, ids, strict=True) if due(id, runs) and self._wanted(task)]
            # The base first, once for each way of rounding: what it scores and answers is in files then, which all others read.
            first = [task for task in missing if task.method == BASE]
            others = [task for task in missing if task.method != BASE]
            if jobs > 1 and any(_needs_background(task.taught_as) for task in others):
                self.workshop.background()
            for run in itertools.chain(map(self.run_task, first), finished(others, jobs, self.run_task, make)):
                self._keep(run)
                runs[run["id"]] = run
                self._summarise(self._with_tested(runs, done + self._found(runs, phase)))
            done += self._found(runs, phase)
        self._summarise(self._with_tested(runs, done))

    def _with_tested(self, runs: Mapping[str, dict[str, Any]], done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """These runs, and those on the test split of settings that were chosen before more was tuned: what was measured is shown."""
        if self.name != "pareto" or not any(run["split"] == "test" for run in done):
            return list(done)
        tasks = [task for choice in self._test_choices() for task in self._tasks(choice, self.methods)]
        known = {run["id"] for run in done}
        order = [BASE, *self.methods]
        return sorted(
            [*done, *(run for run in self._found(runs, tasks) if run["id"] not in known)], key=lambda run: order.index(run["method"])
        )

    def _test_choices(self) -> list[Choice]:
        return [Choice("test", self.sizes.test_facts, seed) for seed in range(self.sizes.test_seeds)]

    def _found(self, runs: Mapping[str, dict[str, Any]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The runs of these tasks; those of the base from every machine."""
        same: dict[str, list[dict[str, Any]]] = {}
        for run in runs.values():
            same.setdefault(_on_any_machine(run["recipe"]), []).append(run)
        return [run for task in tasks for run in same.get(_on_any_machine(self._recipe(task)), ())]

    def run_tasks(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The runs of these tasks, one after the other; those that are in runs.jsonl are taken from there."""
        runs = read_runs(self.runs_path)
        for task in tasks:
            if due(self._id(task), runs):
                runs[self._id(task)] = self.run_task(task)
                self._keep(runs[self._id(task)])
        return [runs[self._id(task)] for task in tasks]

    def _keep(self, run: dict[str, Any]) -> None:
        append_run(self.runs_path, run)
        if not run.get("again"):
            self._training_file(run["id"]).remove()

    def run_task(self, task: Task) -> dict[str, Any]:
        """Teach and measure one task."""
        print(f"{task.choice.split}, seed {task.choice.seed}, {task.method}: {described(task.taught_as)}", file=sys.stderr, flush=True)
        what = {"study": self.name, "method": task.method, "settings": settings(task.taught_as), **task.choice._asdict()}
        try:
            measured = {**what, **self._run(task)}
        except Exception as error:
            ours = isinstance(error, MemgraftError)
            if task.method == BASE or (ours and not isinstance(error, TeachingError | MeasureError)):
                raise
            measured = {**what, **failed(error)}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what one process holds on to, those beside it can't have
        return {"id": self._id(task), **measured, "recipe": self._recipe(task), "environment": self.environment}

    def _wanted(self, task: Task) -> bool:
        return self.only is None or task.method in (BASE, *self.only)

    def _id(self, task: Task) -> str:
        return run_id(self._recipe(task))

    def _recipe(self, task: Task) -> dict[str, Any]:
        """All that shapes a run's figures; of the base how numbers are rounded as well, for what others are compared with."""
        return {
            **self.identity,
            **_without(self.sizes, *NO_PART_OF_A_RUN),
            "study": self.name,
            **task.choice._asdict(),
            "selection": self.materials.of(task.choice).selection.model_dump(mode="json"),
            "settings": settings(task.taught_as),
            **({"arithmetic": self.arithmetic} if task.method == BASE else {}),
        }

    def phases(self, done: Sequence[dict[str, Any]]) -> Iterator[list[Task]]:
        """What is to be run, in order; the test split's settings are chosen from the runs that are done by then."""
        if self.name == "larger":
            yield [task for choice in self._test_choices() for task in self._tasks(choice, self.methods)]
            return
        if self.name != "pareto":
            facts = self.sizes.test_facts if self.name in STREAMS else self.sizes.tuning_facts
            yield list(self._tasks(Choice("test", facts, 0), self.methods))
            return
        yield list(self._tasks(Choice("tuning", self.sizes.tuning_facts, 0), self.methods))
        finalists = choose_finalists([run for run in done if run["split"] == "tuning"], FINALISTS)
        # The winners with all seeds, then what is next to them on the fronts: a study that is stopped has a verdict early.
        places = [{method: each[place : place + 1] for method, each in finalists.items()} for place in range(FINALISTS)]
        tasks = (task for place in places for choice in self._test_choices() for task in self._tasks(choice, place))
        yield list(dict.fromkeys(tasks))  # the base once a seed

    @staticmethod
    def _tasks(choice: Choice, methods: Mapping[str, Sequence[AnyMethod]]) -> Iterator[Task]:
        yield Task(choice, BASE, Base())
        # In turns, so that a study that is stopped has something of every method.
        for turn in range(max(map(len, methods.values()), default=0)):
            for method, each in methods.items():
                if turn < len(each):
                    yield Task(choice, method, each[turn])

    def _run(self, task: Task) -> dict[str, Any]:
        material = self._current = self.materials.of(task.choice)
        probes, along = self.probes_of(task.choice), self._along(material)  # what they ask of the base, while nothing is taught
        if along is not None and isinstance(task.taught_as, Retrieval):
            along.searched(task.taught_as)
        file = None if along else self._training_file(self._id(task))  # what is measured along the way would be lost
        with self.workshop.taught(task.taught_as, material.lesson, None if along is None else along.on_step, file) as taught:
            now = time.process_time()
            scores = self._scores(probes, task, taught)
            measure_seconds = time.process_time() - now
        run = {
            "learned_f1": mean(scores[LEARNED]),
            "control_f1": mean(scores[CONTROL]),
            "probes": {probe.name: self._before_after(probe, scores[probe.name]) for probe in self.probes},
            "overlaps": material.overlaps,
            **taught.costs(),
            "measure_seconds": round(measure_seconds, 3),
            "scores": scores,
        }
        for point in along.points if along is not None else ():
            point["bytes"] = run["bytes"] if point["bytes"] is None else point["bytes"]  # as many from first to last
        return {**run, "along": along.points} if along is not None and along.points else run

    def _training_file(self, id: str) -> TrainingFile:
        """Where a rival's training goes on that was stopped, on this machine and with this code."""
        same = {**self.environment, "git_revision": None, "code": _code()}
        return TrainingFile(self.cache / "training" / f"{id}.pt", json.dumps(same, sort_keys=True))

    def _along(self, material: Material) -> Along | None:
        unit = STREAMS.get(self.name)
        return None if unit is None else Along(unit, material, self.workshop, self.probes, self.base_scores)

    def _before_after(self, probe: AnyProbe, after: Measured) -> dict[str, Any]:
        before = self.base_scores.of(probe)
        return {"metric": after["metric"], "before": mean(before), "after": mean(after)}

    def _scores(self, probes: Sequence[AnyProbe], task: Task, taught: Taught) -> dict[str, Measured]:
        if task.method == BASE:
            return {probe.name: self.base_scores.of(probe) for probe in probes}
        return measure_all(taught.model, self.workshop.tokenizer, probes, taught.context)

    def probes_of(self, choice: Choice) -> list[AnyProbe]:
        """All that is asked of a run: the facts, on the comparison's test split what is beside them, and what may be forgotten."""
        has_neighbours = self.name in SEEDED and choice.split == "test"
        beside = self.materials.beside(choice) if has_neighbours else ()
        return [*self.materials.of(choice).probes, *beside, *self.probes]

    def _measure_base(self, probe: AnyProbe) -> Measured:
        with self.workshop.taught(Base(), NOTHING) as taught:
            return numbers(measure(probe, taught.model, self.workshop.tokenizer))

    def _taught_text(self) -> list[str]:
        assert self._current is not None
        rows = [row for batch in self._current.lesson.batches for row in zip(batch.input_ids, batch.attention_mask, strict=True)]
        return [str(self.workshop.tokenizer.decode(ids[mask])) for ids, mask in rows]

    def _probe_text(self) -> list[str]:
        asked = [row for probe in self.probes if isinstance(probe, QAProbe | AnswerNLLProbe) for row in probe.questions]
        texts = [text for probe in self.probes if isinstance(probe, TextProbe) for text in probe.texts]
        return [f"Question: {row.question}\nAnswer: {row.answers[0]}" for row in asked] + texts

    def identified(self, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Runs of the test split with what they asked, so that what several seeds ask counts once in the intervals."""
        if self.name not in SEEDED:
            return [dict(run) for run in runs]  # of one seed
        return [{**run, "items": self.materials.asked(Selection.model_validate(run["recipe"]["selection"]))} for run in runs]

    def _summarise(self, runs: Sequence[dict[str, Any]]) -> None:
        by_split = {split: [run for run in runs if run["split"] == split] for split in ("test", "tuning")}
        chosen = choose_tested(by_split["tuning"], by_split["test"]) if self.name == "pareto" else None
        parts = {"test": summarise(self.identified(by_split["test"]), chosen), "tuning": summarise(by_split["tuning"])}
        summary = {
            "study": self.name,
            **self.identity,
            **_without(self.sizes),
            **{split: part for split, part in parts.items() if part},
        }
        if self.name in STREAMS:
            summary["streams"] = [
                {"method": run["method"], "label": described(method_of(run["settings"])), "along": run.get("along", [])} for run in runs
            ]
        write_json(self.output / "summary.json", summary)


def choose_finalists(runs: Sequence[dict[str, Any]], count: int) -> dict[str, list[AnyMethod]]:
    """Each method's winner on the tuning split and its neighbours on the front, `count` settings at most, winner first."""
    tuned = grouped(runs)
    base = next(setting for setting in tuned if setting.method == BASE)
    pooled = pools(base)
    pool = pooled.get("text_nll") or next(iter(pooled.values()))
    finalists: dict[str, list[AnyMethod]] = {}
    for method, outcomes in fronts_of(tuned, pool).items():
        values = [balance(outcome.of, pooled) for outcome in outcomes]
        winner = values.index(max(values))
        chosen = [outcome.of for outcome in neighbours(outcomes, winner, count)]
        chosen.sort(key=lambda setting: setting is not outcomes[winner].of)
        finalists[method] = [method_of(dict(setting.settings)) for setting in chosen]
    return finalists


def choose_tested(tuning: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> Mapping[str, Any] | None:
    """The memory's settings at which rivals are compared on the test split: the best on the tuning split of those that ran on both."""
    tested = [run["settings"] for run in test if run["method"] == MEMORY and "failed" not in run]
    tuned = grouped(tuning)
    candidates = [setting for setting in tuned if setting.method == MEMORY and setting.settings in tested]
    if not candidates:
        return None
    pooled = pools(next(setting for setting in tuned if setting.method == BASE))
    return max(candidates, key=lambda setting: balance(setting, pooled)).settings


def _sized(method: AnyMethod, sizes: Sizes) -> AnyMethod:
    """The method with the passes and wordings of the sizes."""
    values = settings(method)
    if method.method == "memory":
        values["recipe"]["wordings"] = sizes.wordings
        if sizes.passes is not None:
            values["recipe"]["passes"] = sizes.passes
    elif "passes" in values and sizes.passes is not None:
        values["passes"] = sizes.passes
    return method_of(values)


def taught_data(study: str, data: Path) -> Path:
    """The file of what a study teaches. Raises DataError if it is not there."""
    return data_file(data, STATEMENTS if study == "documents" else FACTS)


def _on_any_machine(recipe: Mapping[str, Any]) -> str:
    return run_id({name: value for name, value in recipe.items() if name != "arithmetic"})


@cache
def _code() -> str:
    """A hash of all code that shapes a run, whatever the revision is called."""
    files = (path for package in (memgraft, benchmarks) for folder in package.__path__ for path in Path(folder).rglob("*"))
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".py", ".json")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _needs_background(method: AnyMethod) -> bool:
    return method.method == "memory" or bool(getattr(method, "replay", 0))


def _without(sizes: Sizes, *names: str) -> dict[str, Any]:
    return sizes.model_dump(mode="json", exclude=set(names))

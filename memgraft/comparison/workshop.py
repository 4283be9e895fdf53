"""Where methods teach: one base model, brought back bit for bit after each, and one background for all."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.background import documents, write_background
from memgraft.baselines import Retrieval
from memgraft.baselines.progress import TrainingFile
from memgraft.comparison.methods import AnyMethod, Base, Memory
from memgraft.comparison.peak import Meter, in_use
from memgraft.comparison.prefixes import Prefix, cached_prefixes
from memgraft.comparison.runs import arithmetic
from memgraft.comparison.writing import write_whole
from memgraft.encoding import TokenBatch
from memgraft.errors import MemgraftError
from memgraft.examples import Fact, Text
from memgraft.fingerprint import BaseFingerprint
from memgraft.grafted import GraftedModel
from memgraft.grafting import DEFAULT_BACKGROUND_TOKENS, DOCUMENT_TOKENS, graft
from memgraft.learning import prepare
from memgraft.probes.language_model import longest_sequence
from memgraft.teaching import Lesson as TaughtLesson
from memgraft.teaching import Recipe, teach
from memgraft.usage import merge_taught

Progress = Callable[[str, int, int], None]  # (stage, done, total)
SELF_WRITTEN = "self-written"


class Written(NamedTuple):
    """What a memory has had written to it so far; None where a method's size does not grow."""

    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class SoFar:
    """A lesson in the middle."""

    done: int  # steps
    total: int
    costs: Callable[[], dict[str, Any]]  # until now: seconds, peak_bytes, rows, bytes
    model: Callable[[], AbstractContextManager[PreTrainedModel]]  # within, as it would be measured now; that counts for no cost


OnStep = Callable[[SoFar], None]


@dataclass(frozen=True)
class Lesson:
    """What every method is taught."""

    facts: Sequence[Fact | Text]
    batches: Sequence[TokenBatch]  # one a fact, a round of wordings for each pass; of texts one a chunk
    seed: int  # of the order of the batches and of new weights
    in_order: bool = False  # a stream: each fact has all its passes before the next one comes


@dataclass(frozen=True)
class Taught:
    """A taught model, ready to be measured, and what teaching it cost."""

    model: PreTrainedModel
    seconds: float  # CPU seconds of teaching, so that a busy machine does not count; what an earlier run had computed already included
    setup_seconds: float = 0.0  # grafting, calibrating: once per model, not per lesson
    bytes: int = 0  # of what was learned
    rows: int | None = None  # memory rows that differ from zero, over all tables
    rows_per_fact: float | None = None
    losses: tuple[float, ...] = ()  # mean over the facts, for each pass
    peak_bytes: int | None = None
    context: Callable[[str], str] | None = field(default=None, compare=False)  # what stands before a question, for retrieval

    def costs(self) -> dict[str, Any]:
        """Everything but the model, as JSON."""
        return {
            "setup_seconds": round(self.setup_seconds, 3),
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "rows": self.rows,
            "rows_per_fact": self.rows_per_fact,
            "losses": [round(loss, 6) for loss in self.losses],
            "peak_bytes": self.peak_bytes,
        }


class Workshop:
    """One base model and its background; `taught` teaches it in any method's way.

    Args:
        backgrounds: texts by name, beside the self-written one that is made when first needed.
        background_tokens: how much of a background is used.
        cache: folder where self-written text is kept between runs.
        prefix_bytes: memory for frozen hidden states kept over runs.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        backgrounds: Mapping[str, Callable[[], list[str]]] | None = None,
        background_tokens: int = DEFAULT_BACKGROUND_TOKENS,
        cache: Path | None = None,
        prefix_bytes: int = 2**32,
        on_progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.base, self.tokenizer = base.requires_grad_(False), tokenizer
        self.on_progress = on_progress
        self.background_tokens = background_tokens
        self._backgrounds = dict(backgrounds or {})
        self._texts: dict[str, list[str]] = {}
        self._cache = cache
        self._grafted: tuple[tuple[str, int], GraftedModel, float] | None = None
        self._prefixes: dict[bytes, Prefix] = {}
        self._prefixes_of: Sequence[TokenBatch] = ()
        self._prefix_bytes = prefix_bytes
        self._floor = in_use(base.device)  # the base alone, as a rival finds it
        self._training = False  # a rival, which may do so within the base

    def prepare(
        self, facts: Sequence[Fact | Text], *, passes: int, wordings: int, seed: int, spread: int | None = None
    ) -> list[TokenBatch]:
        """A batch for each fact, with a round of wordings for each of `passes`, or chunk of a text: for every method alike.

        No question is put in lower case.

        Args:
            spread: passes in which all of a fact's wordings are taught, the fewest that a method has; None: `passes`.
        """
        recipe = Recipe(passes=passes, wordings=wordings, seed=seed, lower_case=0)
        return prepare(facts, self.tokenizer, recipe, max_length=longest_sequence(self.base), spread=spread)

    def background(self, name: str = SELF_WRITTEN) -> list[str]:
        """The texts of a background. Raises MemgraftError for a name that is not known."""
        if name not in self._texts:
            if name == SELF_WRITTEN:
                self._texts[name] = self._self_written()
            elif name in self._backgrounds:
                self._texts[name] = self._backgrounds[name]()
            else:
                raise MemgraftError(f"no background is called {name!r}: expected {', '.join([SELF_WRITTEN, *self._backgrounds])}")
        return self._texts[name]

    def _self_written(self) -> list[str]:
        tokens = self.background_tokens
        fingerprint = BaseFingerprint.of(self.base).model_dump_json()
        key = f"{fingerprint}|{self.base.dtype}|{tokens}|{DOCUMENT_TOKENS}"
        path = self._cache and self._cache / f"background-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if path and path.exists():
            return list(json.loads(path.read_text(encoding="utf-8")))
        with self._base_only():
            texts = write_background(
                self.base,
                self.tokenizer,
                tokens=tokens,
                length=DOCUMENT_TOKENS,
                on_progress=lambda done: self.on_progress("background", min(done, tokens), tokens),
            )
        if path:
            write_whole(path, json.dumps(texts))
        return texts

    def grafted(self, method: Memory) -> GraftedModel:
        """The base with an empty memory of this method's background and size; the memory of another one is taken off."""
        key = (method.background, method.slots)
        if self._grafted is None or self._grafted[0] != key:
            texts = self.background(method.background)
            if self._grafted is not None:
                self._grafted[1].detach()
                self._grafted = None
            start = time.process_time()
            grafted = graft(
                self.base,
                self.tokenizer,
                slots=method.slots,
                background=texts,
                background_tokens=self.background_tokens,
                on_progress=self.on_progress,
            )
            self._grafted = (key, grafted, time.process_time() - start)
        return self._grafted[1]

    def arithmetic(self) -> str:
        """How this machine rounds the base's numbers (`memgraft.comparison.runs.arithmetic`)."""
        with self._base_only() as base:
            return arithmetic(base)

    def own(self, peak: int | None) -> int | None:
        """A peak without the frozen states that only the comparison keeps, in main memory."""
        kept = 0 if self.base.device.type == "cuda" else sum(prefix.states.nbytes for prefix in self._prefixes.values())
        return None if peak is None else peak - kept

    @contextmanager
    def _base_only(self) -> Iterator[PreTrainedModel]:
        if self._training:
            raise MemgraftError("the base can't be had while a rival is taught, which may be within it: ask it before")
        with ExitStack() as stack:
            if self._grafted is not None:
                stack.enter_context(self._grafted[1].without_memory())
            yield self.base

    @contextmanager
    def taught(
        self, method: AnyMethod, lesson: Lesson, on_step: OnStep | None = None, file: TrainingFile | None = None
    ) -> Iterator[Taught]:
        """Within, the model taught in the method's way; afterwards the base is as before, bit for bit.

        Args:
            file: where a rival's training that was stopped goes on; its costs until then are added in the end. `on_step` is not called for
                the steps before. The caller removes the file.
        """
        if isinstance(method, Memory):
            with self._taught_memory(method, lesson, on_step) as taught:
                yield taught
            return
        with self._base_only():
            if isinstance(method, Base):
                yield Taught(self.base, 0.0)
            elif isinstance(method, Retrieval):
                start = time.process_time()
                context = method.searcher(lesson.facts)
                size = sum(len(passage.encode()) for passage in method.shown(lesson.facts))
                yield Taught(self.base, time.process_time() - start, bytes=size, context=context)
            else:
                texts = self.background() if method.replay else []
                replayed = documents(texts, self.tokenizer, tokens=self.background_tokens, length=DOCUMENT_TOKENS)

                meter, rival = Meter(self.base.device, self._floor), method

                def stepped(model: PreTrainedModel, done: int, total: int) -> None:
                    if on_step is not None:
                        on_step(SoFar(done, total, costs, partial(_aside, meter, lambda: rival.so_far(model, self.base.dtype))))

                def costs() -> dict[str, Any]:
                    return {"seconds": round(meter.seconds, 3), "peak_bytes": meter.peak, **Written()._asdict()}

                if file is not None:
                    file.meter = meter
                self._training = True
                try:
                    with method.taught(
                        self.base,
                        lesson.batches,
                        seed=lesson.seed,
                        background=replayed,
                        in_order=lesson.in_order,
                        on_step=stepped,
                        file=file,
                    ) as run:
                        seconds, peak = (meter.seconds, meter.peak) if file is None else file.all_costs()
                        yield Taught(
                            run.model,
                            seconds,
                            bytes=run.bytes,
                            losses=_per_pass(run.losses, len(lesson.batches), lesson.in_order),
                            peak_bytes=peak,
                        )
                finally:
                    self._training = False

    @contextmanager
    def _taught_memory(self, method: Memory, lesson: Lesson, on_step: OnStep | None) -> Iterator[Taught]:
        grafted = self.grafted(method)
        for index in range(len(grafted.memories)):
            grafted.layer(index).threshold = method.threshold
        recipe = method.recipe.model_copy(update={"seed": lesson.seed})
        if lesson.batches is not self._prefixes_of:
            self._prefixes.clear()
            self._prefixes_of = lesson.batches
        grafted.assign_rows({})
        try:
            with cached_prefixes(grafted, self._prefixes, self._prefix_bytes) as saved:
                meter = Meter(grafted.device)

                def stepped(done: int, total: int, written: Written) -> None:
                    if on_step is not None:
                        on_step(SoFar(done, total, partial(costs, written), partial(_aside, meter, lambda: grafted.base)))

                def costs(written: Written) -> dict[str, Any]:
                    return {"seconds": round(meter.seconds + saved.seconds, 3), "peak_bytes": self.own(meter.peak), **written._asdict()}

                teach_lesson = _stream if lesson.in_order else _together
                lessons, losses = teach_lesson(grafted, lesson, recipe, stepped)
                seconds, most = meter.seconds + saved.seconds, meter.peak
            assert self._grafted is not None
            written = _written(lessons)
            yield Taught(
                grafted.base,
                seconds,
                setup_seconds=self._grafted[2],
                bytes=written.bytes or 0,
                rows=written.rows,
                rows_per_fact=(written.rows or 0) / len(lesson.batches),
                losses=losses,
                peak_bytes=self.own(most),
            )
        finally:
            grafted.assign_rows({})


_Outcome = tuple[Sequence[TaughtLesson], tuple[float, ...]]  # what was taught, loss of each pass
_Stepped = Callable[[int, int, Written], None]


@contextmanager
def _aside(meter: Meter, made: Callable[[], PreTrainedModel]) -> Iterator[PreTrainedModel]:
    with meter.aside():
        yield made()


def _together(grafted: GraftedModel, lesson: Lesson, recipe: Recipe, stepped: _Stepped) -> _Outcome:
    """All facts as one lesson."""
    result = teach(grafted, lesson.batches, recipe, grafted.usage, on_step=lambda step: stepped(step.done, step.total, Written()))
    return [result], tuple(_mean(losses) for losses in result.losses)


def _stream(grafted: GraftedModel, lesson: Lesson, recipe: Recipe, stepped: _Stepped) -> _Outcome:
    """Each fact as a lesson of its own, in order; the slots of earlier ones that every text reads count as used."""
    taught: list[TaughtLesson] = []
    everywhere: dict[str, list[Tensor]] = {name: [] for name in grafted.config.tables}
    for number, batch in enumerate(lesson.batches):
        usage = {name: merge_taught(grafted.usage[name], slots) for name, slots in everywhere.items()}
        result = teach(grafted, [batch], recipe.model_copy(update={"seed": recipe.seed + number}), usage)
        taught.append(result)
        for name, changed in result.changes.items():
            if result.cues is None:
                everywhere[name].append(changed.slots)
        stepped((number + 1) * recipe.turns, len(lesson.batches) * recipe.turns, _written(taught))
    turns = zip(*([_mean(turn) for turn in result.losses] for result in taught), strict=False)
    return taught, tuple(map(_mean, turns))


def _written(lessons: Sequence[TaughtLesson]) -> Written:
    """Rows, and the bytes of a commit's file without its header: fp32 values and an int64 slot id a row, and the cues."""
    changed = [rows for taught in lessons for rows in taught.changes.values()]
    cues = sum(taught.cues.cues.nbytes for taught in lessons if taught.cues is not None)
    return Written(sum(map(len, changed)), sum(rows.values.nbytes + rows.slots.nbytes for rows in changed) + cues)


def _mean(losses: Sequence[float]) -> float:
    taught = [loss for loss in losses if loss == loss]  # NaN: skipped
    return fmean(taught) if taught else 0.0


def _per_pass(losses: Sequence[float], batches: int, in_order: bool) -> tuple[float, ...]:
    passes = len(losses) // batches
    parts = [losses[turn::passes] if in_order else losses[turn * batches : (turn + 1) * batches] for turn in range(passes)]
    return tuple(fmean(part) for part in parts)

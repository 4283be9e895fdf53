"""Teaching lessons again: where a revert or a merge leaves them on slots that hold something else than what they were taught on.

A lesson is taught again from its own data, with its own recipe and message, on top of what remains. It is another lesson
then, with an id of its own. The store changes once, when all of them are taught.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from memgraft.commits import Commit, DataFile
from memgraft.data import ExampleSet, parse_examples, read_examples
from memgraft.errors import StoreError
from memgraft.grafted import GraftedModel
from memgraft.history import History
from memgraft.learning import learn
from memgraft.store import MemoryStore, MergeReport, RevertReport
from memgraft.store.lessons import overlap_refusal
from memgraft.teaching import Recipe, Step

Choice = Literal["keep", "refuse", "re-teach"]
OnStep = Callable[[Step], None]


def revert(
    model: GraftedModel, lesson: str, *, overlap: Choice = "keep", data: Sequence[str | Path] = (), on_step: OnStep | None = None
) -> tuple[RevertReport, dict[str, Commit]]:
    """Take a lesson back from a model that is not saved yet, or not any more, and deal with later lessons on its slots.

    Args:
        overlap: `keep` the later lessons as they are, `refuse` to revert when there are any, or `re-teach` them.
        data: files to teach them from; each is recognised by its digest. What the store kept need not be given.

    Returns:
        What was taken back, and the new lessons by the id of the one that each replaces.

    Raises:
        StoreError: a lesson overlaps and `overlap` is `refuse`, or data is missing. TeachingError: see `learn`. The model is as before.
    """
    history = model.history
    with _all_or_nothing(model):
        commit = history.commit(lesson)
        overlaps = history.overlaps(commit, history.active()[history.active().index(commit.id) + 1 :])
        if overlaps and overlap == "refuse":
            raise StoreError(overlap_refusal(commit.id, overlaps))
        again = [history.commit(found.commit) for found in overlaps] if overlap == "re-teach" else []
        examples = data_of(again, data, history.data)
        report = history.revert(commit.id)
        for later in again:
            history.revert(later.id)
        return report, _teach_again(model, again, examples, on_step)


def merge(
    model: GraftedModel, other: MemoryStore, *, data: Sequence[str | Path] = (), on_step: OnStep | None = None
) -> tuple[MergeReport, dict[str, Commit]]:
    """Merge another store into a saved model's own, and teach every lesson again whose slots the other store also wrote.

    Arguments, returned values and errors are as in `revert`; the store is changed when this returns.
    """
    store = model.history.store
    if store is None or not model.history.saved:
        raise StoreError("only a saved model can be merged into; save it first")
    plan = store.merge_plan(other)
    disputed = {conflict.lesson for conflict in plan.conflicts}
    again_ids = [id for id in (*store.active(), *plan.learned) if id in disputed]  # in the order in which they were learned
    own = set(store.active())

    def from_either(id: str) -> Commit:
        return (store if id in own else other).commit(id)

    def kept(id: str) -> DataFile | None:
        return (store if id in own else other).data(id)

    again = [from_either(id) for id in again_ids]
    examples = data_of(again, data, kept)
    with _all_or_nothing(model):
        model.history = History()
        for id in (*store.active(), *plan.learned):
            if id not in plan.reverted and id not in again_ids:
                model.history.learn(from_either(id))
        taught = _teach_again(model, again, examples, on_step)
        report = store.merge(other, replacements=taught)
    model.history = History(store)
    model.recall()
    return report, taught


def data_of(
    lessons: Sequence[Commit], given: Sequence[str | Path], kept: Callable[[str], DataFile | None]
) -> dict[str, tuple[ExampleSet, DataFile | None]]:
    """Per lesson, what it was taught, and the file that the store keeps. StoreError for a lesson whose data is not there."""
    by_digest = {examples.sha256: examples for examples in map(read_examples, given)}
    wanted = {lesson.data_sha256 for lesson in lessons}
    unused = next((examples for digest, examples in by_digest.items() if digest not in wanted), None)
    if unused is not None:
        raise StoreError(f"{unused.path}: none of the lessons to teach again was taught this file (SHA-256 {unused.sha256[:12]}…)")
    found = {}
    for lesson in lessons:
        file = kept(lesson.id)
        if lesson.data_sha256 in by_digest:
            found[lesson.id] = (by_digest[lesson.data_sha256], file)
        elif file is not None:
            found[lesson.id] = (parse_examples(io.BytesIO(file.content), Path(f"{lesson.data_sha256[:12]}.{file.kind}")), file)
        else:
            raise StoreError(
                f"the lesson {lesson.id[:12]} can't be taught again: the store did not keep its data; "
                f"give the file whose SHA-256 is {lesson.data_sha256} with --data"
            )
    return found


def _teach_again(
    model: GraftedModel, lessons: Sequence[Commit], examples: Mapping[str, tuple[ExampleSet, DataFile | None]], on_step: OnStep | None
) -> dict[str, Commit]:
    model.recall()
    taught = {}
    for lesson in lessons:
        taken, file = examples[lesson.id]
        test = "facts" in lesson.record
        taught[lesson.id] = learn(
            model, taken, message=lesson.message, recipe=_recipe(lesson), test=test, keep=file, again=True, on_step=on_step
        )
    return taught


def _recipe(lesson: Commit) -> Recipe:
    try:
        return Recipe.model_validate({"scope": "everywhere", "lower_case": 0.0, **lesson.recipe})  # as before there were these
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise StoreError(f"the lesson {lesson.id[:12]} can't be taught again: its recipe's {place} is not known here") from error


@contextmanager
def _all_or_nothing(model: GraftedModel) -> Iterator[None]:
    """Puts history and memory back when something stops what runs within."""
    history, state = model.history, model.state()
    undo = history.copy()
    try:
        yield
    except BaseException:
        model.history = undo
        model.assign(state)
        raise

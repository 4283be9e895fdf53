"""A lesson from start to end: examples → batches → taught rows → questions in wordings that were not taught → a commit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memgraft.asking import question_probe
from memgraft.checkpoints import Checkpoints
from memgraft.commits import Commit, DataFile
from memgraft.data import ExampleSet, read_examples
from memgraft.encoding import TokenBatch, chunk, encode, joined
from memgraft.errors import DataError, MemgraftError, StoreError, TeachingError
from memgraft.examples import Example, Fact, Text
from memgraft.finding import MOST_WORDINGS
from memgraft.gate import Gate
from memgraft.grafted import GraftedModel
from memgraft.probes import measure
from memgraft.probes.language_model import longest_sequence
from memgraft.probes.scores import Scores
from memgraft.store.manifest import check_message
from memgraft.superseding import facts_taught
from memgraft.teaching import Lesson, Recipe, Step, teach
from memgraft.usage import Usage, merge_taught
from memgraft.wordings import QAPair, Wording, chat_renderer, keeps_conversations, load_pool, teach_wordings

CHUNK_TOKENS = 512  # Lin et al. 2025 §4.2
MOST_ROUNDS = 16  # of fresh wordings; more passes come back to the first ones


def prepare(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    max_length: int,
    path: str | None = None,
    spread: int | None = None,
) -> list[TokenBatch]:
    """A batch per fact, completion or conversation, and one per chunk of a text.

    A fact's batch has a round of wordings for each of up to 16 passes: in fresh frames and contexts every time, what is learned
    carries over to unseen wordings far better than with the same ones again. A round that would be too long has no contexts.

    Args:
        path: the file that the examples come from, for messages.
        spread: passes over which a fact's wordings are spread, where there are more than a round takes; None: the recipe's.

    Raises:
        DataError, TeachingError: an example without a token to learn, or longer than `max_length` tokens: file, line and field.
    """
    chat, contexts = chat_renderer(tokenizer), load_pool("contexts")
    chat_of_facts = keeps_conversations(chat) if any(isinstance(example, Fact) for example in examples) else None
    eos = str(tokenizer.eos_token or "")

    def wordings(example: Example, turn: int, before: Sequence[QAPair] = contexts) -> tuple[Wording, ...]:
        seed = recipe.seed * 1000 + turn
        form = chat_of_facts if isinstance(example, Fact) else chat
        return teach_wordings(example, count=recipe.wordings, seed=seed, contexts=before, chat=form, eos=eos, lower_case=recipe.lower_case)

    def tokens(parts: Sequence[Wording], name: str) -> TokenBatch:
        return encode(parts, tokenizer, name=name, max_length=max_length, loss=recipe.loss)

    def lower_case(fact: Fact) -> TokenBatch | None:
        # Without chat formats: a template's own words are none in lower case.
        parts = teach_wordings(fact, count=MOST_WORDINGS, seed=recipe.seed * 1000, contexts=contexts, chat=None)
        fitting = [low for low in map(Wording.lower, parts) if len(tokenizer(low.text, verbose=False).input_ids) <= max_length]
        return tokens(fitting, fact.name) if fitting and recipe.scope != "everywhere" else None

    def rounds_of(fact: Fact, turn: int, before: Sequence[QAPair] = contexts) -> list[TokenBatch]:
        fresh = wordings(fact, turn, before)  # at least one for each question and statement, which may be more than a round takes
        # With more rounds than there are passes, some wordings would never be taught.
        among = min(max(1, round(len(fresh) / recipe.wordings)), spread or recipe.turns)
        try:
            return [tokens(fresh[first::among], fact.name) for first in range(among)]
        except TeachingError:
            if not before:
                raise
            return rounds_of(fact, turn, ())  # what is too long may be so by what we put in front

    def batches_of(example: Example) -> list[TokenBatch]:
        if isinstance(example, Fact):
            rounds: list[TokenBatch] = []
            for turn in range(min(recipe.turns, MOST_ROUNDS)):
                if len(rounds) <= turn:
                    rounds += rounds_of(example, turn)
            return [replace(joined(rounds[: recipe.turns]), supersedes=example.supersedes, lower=lower_case(example))]
        if isinstance(example, Text):
            parts = chunk(wordings(example, 0)[0], tokenizer, max_length=min(max_length, CHUNK_TOKENS))
            names = [f"{example.name}, part {i + 1}" if len(parts) > 1 else example.name for i in range(len(parts))]
            return [tokens([part], name) for name, part in zip(names, parts, strict=True)]
        return [tokens(wordings(example, 0), example.name)]

    batches = []
    for example in examples:
        with _errors_at(f"{path}:{example.line}" if path else example.name):
            batches += batches_of(example)
    return batches


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Within, what is wrong with an example is said with its place in front."""
    try:
        yield
    except (DataError, TeachingError) as error:
        raise type(error)(f"{place}: {error}") from error


@dataclass(frozen=True)
class Earlier:
    """What later lessons must know of an active one."""

    taught: Mapping[str, str | None]  # id of each fact → id of the one that it replaced
    slots: Mapping[str, Tensor]  # table → (R,) slots that it wrote


def earlier_lessons(model: GraftedModel) -> list[Earlier]:
    """The active lessons that every text reads, without their values, one at a time in memory."""
    everywhere = (id for id in model.history.active() if model.history.cues(id) is None)
    return [
        Earlier(facts_taught(commit.record), {name: rows.slots for name, rows in commit.changes.items()})
        for commit in map(model.history.commit, everywhere)
    ]


def effective_usage(model: GraftedModel, superseded: str | None = None, lessons: Sequence[Earlier] | None = None) -> dict[str, Usage]:
    """Background usage per table in which the slots of earlier lessons count as used.

    Args:
        superseded: id of a fact that is to be replaced. Lessons that taught it, or what it replaced in its turn, don't count:
            else its replacement could not change the rows from which the old answer is read.
        lessons: the active lessons, read from the model's history by default.
    """
    lessons = earlier_lessons(model) if lessons is None else lessons
    return _merged(model, [lessons[place] for place in _counted(lessons, superseded)])


def _counted(lessons: Sequence[Earlier], superseded: str | None) -> tuple[int, ...]:
    """Places of the lessons whose slots count as used where that fact is to be replaced."""
    replaced: dict[str, str | None] = {}
    for lesson in lessons:
        replaced.update(lesson.taught)
    chain: list[str] = []
    while superseded is not None and superseded not in chain:
        chain.append(superseded)
        superseded = replaced.get(superseded)
    return tuple(place for place, lesson in enumerate(lessons) if lesson.taught.keys().isdisjoint(chain))


def _merged(model: GraftedModel, lessons: Sequence[Earlier]) -> dict[str, Usage]:
    return {
        name: merge_taught(usage, [lesson.slots[name] for lesson in lessons if name in lesson.slots]) for name, usage in model.usage.items()
    }


def usages_of(model: GraftedModel, batches: Sequence[TokenBatch]) -> list[dict[str, Usage]]:
    """What counts as used for each batch (`effective_usage`); one object for those for which the same lessons count."""
    lessons = earlier_lessons(model)
    counted = {fact: _counted(lessons, fact) for fact in dict.fromkeys(batch.supersedes for batch in batches)}
    usages = {places: _merged(model, [lessons[place] for place in places]) for places in dict.fromkeys(counted.values())}
    return [usages[counted[batch.supersedes]] for batch in batches]


def learn(
    model: GraftedModel,
    data: str | Path | ExampleSet,
    *,
    message: str,
    recipe: Recipe | None = None,
    test: bool = True,
    keep: DataFile | None = None,
    gate: Gate | None = None,
    checkpoints: Checkpoints | None = None,
    again: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Commit:
    """Teach a data set and keep what changed as a commit.

    Args:
        data: a JSONL or text file, or what `read_examples` made of one.
        message: what the lesson is about, for the log; up to 4,000 characters.
        recipe: how it is taught; the default one otherwise.
        test: ask every fact afterwards and put question and answer in the commit's record.
        keep: the data file, to be kept with the lesson, so that it can be taught again.
        gate: probes that must not get worse by the lesson.
        checkpoints: where the lesson's progress is saved now and then, and found again.
        again: the lesson takes the place of one that was taught before: facts that were superseded since stay closed.
        on_step: called after each batch.

    Raises:
        DataError, TeachingError: the data can't be taught, or is not what is to be kept; an active lesson supersedes a fact of it; the loss
            is not finite.
        GateError: a probe fell.
        StoreError: there is a checkpoint of another lesson. The model is as before, also after Ctrl-C.
    """
    check_message(message)
    model.check_attached()
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TeachingError(f"recipe: expected a memgraft.Recipe, got {type(recipe).__name__}; write Recipe(passes=4), for example")
    examples = data if isinstance(data, ExampleSet) else read_examples(Path(data))
    recipe = resolved(recipe or Recipe(), model, examples.examples)
    if keep is not None and hashlib.sha256(keep.content).hexdigest() != examples.sha256:
        raise DataError(
            f"{examples.path}: the data to be kept is not what was read to be taught; "
            f"save it in a file first where it comes from a pipe, which can be read only once"
        )
    batches = prepare(examples.examples, model.tokenizer, recipe, max_length=longest_sequence(model.base), path=examples.path)
    if not again:
        check_supersedes(examples.examples, path=examples.path)
    if not again and recipe.scope != "everywhere":
        check_open(model, examples.examples, path=examples.path)
    keeper = checkpoints.keeper(model, batches, examples.sha256, recipe, message) if checkpoints else None
    facts = [example for example in examples.examples if isinstance(example, Fact)]
    probe = question_probe("taught facts", facts, model.tokenizer) if test and facts else None
    before = None
    if probe:
        with model.without_memory():
            before = measure(probe, model.base, model.tokenizer)
    if gate:
        gate.measure_before(model)
    state_before, history_before = model.state(), model.history.copy()
    try:
        superseded = {batch.supersedes for batch in batches if batch.supersedes is not None}
        if superseded:
            model.recall(superseded)
        start = time.perf_counter()
        lesson = teach(model, batches, recipe, usages_of(model, batches), keeper=keeper, on_step=on_step)
        seconds = time.perf_counter() - start + (keeper.seconds_before if keeper else 0.0)
        after = measure(probe, model.base, model.tokenizer) if probe else None
        cues = lesson.cues and lesson.cues.cues
        taught = superseding(model, examples.examples)
        unmeasured = Commit(lesson.changes, message, recipe.model_dump(mode="json"), examples.sha256, taught, cues=cues)
        overlaps = model.history.overlaps(unmeasured, model.history.active())
        record: dict[str, Any] = {
            **measurements(lesson, batches, seconds),
            **taught,
            "overlaps": [{"lesson": o.commit, "message": o.message, "shared_slots": o.shared_slots} for o in overlaps],
        }
        if lesson.cues is not None:
            record["cues"] = [[model.tokenizer.decode([token]) for token in tokens] for tokens in lesson.cues.tokens]
            record["ids"] = [example.id for example in examples.examples]
        if before and after:
            record["facts"] = asked(examples.examples, before, after)
            record["learned"] = sum(fact["learned"] for fact in record["facts"])
        if gate:
            record["gate"] = gate.check(model)
        commit = Commit(lesson.changes, message, unmeasured.recipe, examples.sha256, record, keep, cues)
        model.history.learn(commit)
        model.recall()
    except BaseException as error:
        model.history = history_before
        model.assign(state_before)
        if keeper and isinstance(error, TeachingError):  # it would end in the same way again
            with suppress(StoreError):  # a checkpoint that can't be removed is not what the lesson failed of
                keeper.remove()
        raise
    return commit


def resolved(recipe: Recipe, model: GraftedModel, examples: Sequence[Example]) -> Recipe:
    """The recipe with the number of passes that fits what is taught, where it has none.

    What is read at anchors is known once cues are found, for which wordings must be there: facts count as such before.
    """
    return recipe.resolved(at_anchors=model.answers is not None and all(isinstance(example, Fact) for example in examples))


def check_supersedes(examples: Sequence[Example], *, path: str | None = None) -> None:
    """DataError, with its place, for a fact that is to replace one of the same lesson: both would be taught, and both be read."""
    lines = {example.id: example.line for example in examples}
    for example in examples:
        old = example.supersedes if isinstance(example, Fact) else None
        if old is not None and old in lines:
            with _errors_at(f"{path}:{example.line}" if path else example.name):
                raise DataError(f"supersedes: expected a fact of an earlier lesson, {old!r} is that of line {lines[old]}; leave that out")


def check_open(model: GraftedModel, examples: Sequence[Example], *, path: str | None = None) -> None:
    """DataError, with its place, for a fact that an active lesson supersedes: it would be taught, and then nothing would open it.

    Which lesson was taught first does not matter for what is closed, so that merges come out the same in any order.
    """
    closed = model.history.closing(taught_ids(examples))
    for example in examples:
        if example.id in closed:
            lesson, by = closed[example.id]
            with _errors_at(f"{path}:{example.line}" if path else example.name):
                raise DataError(
                    f"id: the lesson {lesson[:12]}, which is active, supersedes {example.id!r} by {by!r}, so that nothing would open it; "
                    f"give it another id, say that it supersedes {by!r}, or revert that lesson"
                )


def superseding(model: GraftedModel, examples: Sequence[Example]) -> dict[str, Any]:
    """For the record: the ids of what is taught, and what that closes. Ask while the lessons are active that it follows."""
    taught = taught_ids(examples)
    olds = {id: old for id, old in taught.items() if old is not None}
    chains, known = model.history.replaced(olds.values()), model.history.facts()
    replaced = {id: chains[old] for id, old in olds.items() if chains[old]}
    nothing = {id: old for id, old in olds.items() if old not in known}
    return {
        "taught": taught,
        **({"replaced": replaced} if replaced else {}),
        **({"superseded_nothing": nothing} if nothing else {}),
    }


def taught_ids(examples: Sequence[Example]) -> dict[str, str | None]:
    """Id of each example that has one, or supersedes another, → id of the one that it supersedes. "line N" is no id of anything else."""
    superseded = {example.name: getattr(example, "supersedes", None) for example in examples}
    return {example.name: superseded[example.name] for example in examples if example.id is not None or superseded[example.name]}


def measurements(lesson: Lesson, batches: Sequence[TokenBatch], seconds: float) -> dict[str, Any]:
    """What teaching cost and wrote, as JSON."""
    rows = sum(len(changed) for changed in lesson.changes.values())
    return {
        "batches": len(batches),
        "rows": rows,
        "rows_per_batch": rows / len(batches),
        "losses": [[None if loss != loss else round(loss, 6) for loss in turn] for turn in lesson.losses],
        "tokens": int(sum(int(batch.attention_mask.sum()) for batch in batches)),
        "seconds": round(seconds, 3),
        "batches_per_minute": round(60 * len(batches) / seconds, 2),
    }


def asked(examples: Sequence[Example], before: Scores, after: Scores) -> list[dict[str, Any]]:
    """One entry a fact: what was asked, what was expected, what the base said and what the taught model says."""
    facts = [example for example in examples if isinstance(example, Fact)]
    if len(facts) != len(after.items):
        raise MemgraftError(f"{len(facts)} facts were taught but {len(after.items)} asked")
    return [
        {
            "name": fact.name,
            "question": item["question"],
            "unseen_wording": bool(fact.held_out),
            "expected": fact.answers[0],
            "before": was["prediction"],
            "after": now["prediction"],
            "f1": now["f1"],
            "learned": bool(now["exact match"]),
        }
        for fact, item, was, now in zip(facts, after.items, before.outcomes, after.outcomes, strict=True)
    ]

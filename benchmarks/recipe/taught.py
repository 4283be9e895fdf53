"""200 facts taught as one lesson: asked in several frames, and beside them what must stay as it was.

Near misses ask the taught relations about other subjects, and other relations about the taught subjects; they count where the base
is sure of its answer, right or wrong. Instructions are general ones, in the chat template.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.materials import Choice, Material
from benchmarks.neighbours import SURE, subject_of
from benchmarks.recipe.bench import Bench, stays
from benchmarks.relations import relations
from memgraft.grafted import GraftedModel
from memgraft.probes import QAProbe, QuestionRow, answer_nll, chat_prompt, generate_answers, measure, normalise

INSTRUCTIONS = Path(__file__).with_name("instructions.txt")
OTHER_RELATIONS = 5  # asked about each taught subject
WORDINGS = 2  # of the relation's own, in which near misses are asked beside the data set's
ANSWER_TOKENS = 48  # of an answer to an instruction, or one in a chat
SENTENCES = (
    ("What is the capital of Norway?", "The capital of Norway is Oslo."),
    ("Who wrote Pride and Prejudice?", "Pride and Prejudice was written by Jane Austen."),
    ("Where is the Louvre?", "The Louvre is a museum in Paris."),
    ("What is the chemical symbol of iron?", "The chemical symbol of iron is Fe."),
)


def taught(bench: Bench, facts: int, seed: int) -> dict[str, Any]:
    """Teach, then measure. The lesson stays in the store for `corrections`."""
    material = bench.study.materials.of(Choice("test", facts, seed))
    grafted = bench.stored("taught", material.selection.taught, seed)
    bench.learn(grafted, material.facts, "taught", seed)
    for later in grafted.history.active()[1:]:  # what `corrections` taught is in the store, and not in these figures
        grafted.revert(later)
    commit = grafted.history.commit(grafted.history.active()[0])
    changed = sum(len(rows) for rows in commit.changes.values())
    return {
        "rows_per_fact": changed / facts,
        "seconds_per_fact": commit.record["seconds"] / facts,
        "frames": frames(bench, grafted, material),
        "near_misses": near_misses(bench, grafted, material, [bench.question(number) for number in material.selection.taught]),
        "same_subject": same_subject(bench, grafted, material),
        "instructions": instructions(grafted) if grafted.tokenizer.chat_template else {},
    }


def frames(bench: Bench, grafted: GraftedModel, material: Material) -> dict[str, Any]:
    """Learned and control facts in the test's frame, without examples, in a chat, and in answers that are whole sentences.

    F1 of the answer, and `holds`, how often a right answer occurs in it; the base's beside both.
    """
    found: dict[str, Any] = {}
    for probe in material.probes:
        asked = {
            "few-shot": probe,
            "zero-shot": probe.model_copy(update={"shots": 0}),
        }
        if grafted.tokenizer.chat_template:
            asked["chat"] = probe.model_copy(update={"frame": "chat", "max_new_tokens": ANSWER_TOKENS})
        for name, each in asked.items():
            found.setdefault(name, {})[probe.name] = scored(grafted, each)
        found.setdefault("sentence", {})[probe.name] = sentences(grafted, probe)
    return found


def scored(grafted: GraftedModel, probe: QAProbe) -> dict[str, Any]:
    """F1 and `holds` with the memory and without."""

    def scores() -> dict[str, float]:
        outcomes = measure(probe, grafted.base, grafted.tokenizer).outcomes
        held = [holds(outcome["prediction"], row) for outcome, row in zip(outcomes, probe.questions, strict=True)]
        return {"f1": round(fmean(outcome["f1"] for outcome in outcomes), 4), "holds": round(fmean(held), 4)}

    with grafted.without_memory():
        base = scores()
    return {**scores(), "base": base}


def sentences(grafted: GraftedModel, probe: QAProbe) -> dict[str, Any]:
    """`holds` after examples that answer in whole sentences."""
    examples = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SENTENCES)
    prompts = [f"{examples}Question: {row.question}\nAnswer:" for row in probe.questions]

    def score() -> float:
        answers = generate_answers(grafted.base, grafted.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
        return round(fmean(holds(answer, row) for answer, row in zip(answers, probe.questions, strict=True)), 4)

    with grafted.without_memory():
        base = score()
    return {"holds": score(), "base": {"holds": base}}


def holds(answer: str, row: QuestionRow) -> bool:
    """Whether a right answer occurs in what was written, word by word."""
    words = f" {normalise(answer)} "
    return any(f" {normalise(right)} " in words for right in row.answers if normalise(right))


def near_misses(
    bench: Bench, grafted: GraftedModel, material: Material, taught: Sequence[QuestionRow], but: Set[str] = frozenset()
) -> dict[str, Any]:
    """Questions of the taught relations about subjects that were not taught, `but` for some, in either split.

    Each in the data set's wording, and in some of those in which the taught facts were taught.

    Args:
        taught: facts whose answers a moved answer is compared with.
    """
    rows = bench.study.rows
    subjects = {subject_of(rows[number]) for number in material.selection.taught} | but
    asked = {rows[number]["relation"] for number in material.selection.taught}
    found: dict[str, QuestionRow] = {}
    for number, row in enumerate(rows):
        subject = subject_of(row)
        if row["relation"] not in asked or subject in subjects:
            continue
        question = bench.question(number)
        found[f"row {number}"] = question
        for which, wording in enumerate(relations()[row["relation"]].questions[:WORDINGS], 1):
            found[f"row {number}, wording {which}"] = question.model_copy(update={"question": wording.replace("{s}", subject)})
    return unmoved(bench, grafted, found, taught)


def same_subject(bench: Bench, grafted: GraftedModel, material: Material) -> dict[str, Any]:
    """Questions of other relations about the taught subjects, whether or not they make sense of them."""
    order, found = random.Random(0), {}
    for number in material.selection.taught:
        row = bench.study.rows[number]
        others = [relation for relation in relations().values() if relation.id != row["relation"]]
        for relation in order.sample(others, OTHER_RELATIONS):
            question = relation.test.replace("{s}", subject_of(row))
            found[f"row {number} as {relation.id}"] = QuestionRow(question=question, answers=("?",))
    return unmoved(bench, grafted, found, [bench.question(number) for number in material.selection.taught])


def unmoved(bench: Bench, grafted: GraftedModel, questions: Mapping[str, QuestionRow], taught: Sequence[QuestionRow]) -> dict[str, Any]:
    """Of the questions whose answer the base is sure of, how many are answered as before; and those that are not.

    The base answers the same list once more: which questions share a batch changes roundings, and with them an answer now and then.

    Args:
        questions: by what they ask, in numbers: the data set's text stays out of the results.
        taught: facts whose answers a moved answer is compared with.
    """
    known = zip(questions.items(), bench.known(list(questions.values())), strict=True)
    sure = {name: row for (name, row), was in known if was.probability >= SURE}
    if not sure:
        return {**stays([], []), "moved": []}
    with grafted.without_memory():
        before = bench.ask(grafted, list(sure.values()))
    after = bench.ask(grafted, list(sure.values()))
    answers = {normalise(answer) for row in taught for answer in row.answers}
    moved = [
        {"asked": name, "to_a_taught_answer": normalise(now) in answers}
        for name, was, now in zip(sure, before, after, strict=True)
        if was != now
    ]
    return {**stays(before, after), "moved": moved}


def instructions(grafted: GraftedModel) -> dict[str, Any]:
    """How likely the base finds what the taught model answers to general instructions, beside its own answers, in nats per token."""
    lines = INSTRUCTIONS.read_text(encoding="utf-8").splitlines()
    prompts = [chat_prompt(grafted.tokenizer, line) for line in lines]

    def answers() -> list[str]:
        return generate_answers(grafted.base, grafted.tokenizer, prompts, max_new_tokens=ANSWER_TOKENS, stop="\0")

    now = answers()
    with grafted.without_memory():
        before = answers()
        nll = [_nll(grafted, prompts, each) for each in (before, now)]
    return {**stays(before, now), "base_nll": round(nll[0], 4), "taught_nll": round(nll[1], 4)}


def _nll(grafted: GraftedModel, prompts: Sequence[str], answers: Sequence[str]) -> float:
    """Mean NLL of the answers that are not empty."""
    given = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer.strip()]
    return fmean(answer_nll(grafted.base, grafted.tokenizer, *map(list, zip(*given, strict=True)))) if given else 0.0

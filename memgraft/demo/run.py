"""The demo: the whole way once on a real small model, about facts of an imagined company that no model can know.

Graft, learn, ask in wordings that were not taught, measure what else changed, correct some facts with a second lesson, take
both lessons back, and prove that what is left is the base model bit for bit.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import transformers

import memgraft
from memgraft.cli.console import print_table, say, short
from memgraft.cli.progress import Stages, TeachingProgress
from memgraft.commits import Commit
from memgraft.data import ExampleSet, read_examples
from memgraft.errors import MemgraftError
from memgraft.examples import Fact, Text
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.learning import learn
from memgraft.models import demo_model_path
from memgraft.persistence import load, save
from memgraft.probes import Change, DriftProbe, QAProbe, TextProbe, measure, run_probes
from memgraft.probes import QuestionRow as Question
from memgraft.probes.scores import Scores
from memgraft.report import (
    CommitFacts,
    KeyFigure,
    LessonPage,
    OutcomePoint,
    ProbeRow,
    QuestionRow,
    loss_passes,
    render_lesson_page,
)
from memgraft.teaching import Recipe


@dataclass(frozen=True)
class Answers:
    """What was asked about each fact, and what was answered."""

    facts: Sequence[Fact]
    seen_before: Scores
    seen_after: Scores
    unseen_before: Scores
    unseen_after: Scores

    def rows(self) -> list[QuestionRow]:
        """One row a fact, with its first held-out wording."""
        rows = []
        for i, fact in enumerate(self.facts):
            unseen = sum(len(earlier.held_out) for earlier in self.facts[:i])
            rows.append(
                QuestionRow(
                    question=fact.held_out[0],
                    expected=fact.answers[0],
                    before=self.unseen_before.outcomes[unseen]["prediction"],
                    taught_wording=self.seen_after.outcomes[i]["prediction"],
                    unseen_wording=self.unseen_after.outcomes[unseen]["prediction"],
                    learned=bool(self.unseen_after.outcomes[unseen]["exact match"]),
                )
            )
        return rows


MARK = ".memgraft-demo"  # the file that says that a folder is the demo's
NLL_TOLERANCE = 0.02  # nats per token
TAUGHT = 40  # of the demo's 60 facts
RECIPE = Recipe()
BACKGROUND_TOKENS = 2**16  # the model wrote them beforehand (background.jsonl): on two cores that takes longer than all the rest


def run_demo(output: Path, *, quick: bool = False) -> dict[str, Any]:
    """Run the demo, print what happens, and write `result.json` and `report.html` into a folder.

    Args:
        output: the folder; its grafted store is kept, so that a second run need not write background again.
        quick: teach 8 facts only and probe less, to see in a minute that everything works.

    Raises:
        MemgraftError: the folder has a `store` or `grafted` of its own, which no demo made.
    """
    start = time.perf_counter()
    _claim(output)
    store = output / "store"
    if store.exists():
        shutil.rmtree(store)  # of an earlier run
    with Stages() as stages:
        model = _grafted(output, stages)
        lesson_data, corrections, probes = _material(model, quick)
        facts = [example for example in lesson_data.examples if isinstance(example, Fact)]
        say(
            f"Grafted {Path(model.source).name}: memory layer in front of block {model.config.layers[0]} of {len(model.blocks)}, "
            f"{model.config.slots:,} slots, none of them written; answer layer in front of block {model.config.answer_layer}."
        )
        with model.without_memory():
            base_logits = _logits(model)
        unseen, seen = _questions(facts, "unseen wordings", unseen=True), _questions(facts, "taught wordings", unseen=False)
        stages.stage("asking the base model")
        with model.without_memory():
            before = {probe.name: measure(probe, model.base, model.tokenizer) for probe in (unseen, seen)}
        progress = TeachingProgress(stages, passes=RECIPE.turns, unit="facts")
        lesson = learn(model, lesson_data, message="The Vellack Tidecraft handbook", recipe=RECIPE, test=False, on_step=progress)
        after = {probe.name: measure(probe, model.base, model.tokenizer) for probe in (unseen, seen)}
        save(model, store)
        stages.stage("measuring what else changed")
        changes = {change.name: change for change in run_probes(model, probes)}
        stages.stage("teaching the corrections")
        corrected = _corrected(model, corrections)
        save(model, store)
        stages.stage("taking both lessons back")
        reverted = _revert_all(model, store, base_logits)
    result = {
        "dtype": str(model.base.dtype).removeprefix("torch."),
        "facts": len(facts),
        "base_f1_unseen": before[unseen.name].mean,
        "learned_f1_seen": after[seen.name].mean,
        "learned_f1_unseen": after[unseen.name].mean,
        "rows_per_fact": lesson.record["rows_per_batch"],
        "rows": lesson.rows,
        "lesson_bytes": sum(rows.slots.nbytes + rows.values.nbytes for rows in lesson.changes.values())
        + (lesson.cues.nbytes if lesson.cues else 0),
        "common_f1_before": changes["common knowledge"].before,
        "common_f1_after": changes["common knowledge"].after,
        "text_nll_before": changes["prose"].before,
        "text_nll_after": changes["prose"].after,
        "drift_kl": changes["drift"].after,
        "corrected_f1": corrected["f1"],
        "corrections": corrected["facts"],
        "revert_bit_equal": reverted,
        "seconds": round(time.perf_counter() - start, 1),
        "lesson": lesson.id,
        "commit": lesson.record,
        "probes": {name: change.summary() for name, change in changes.items()},
        "versions": _versions(),
    }
    answers = Answers(facts, *(scores[probe.name] for probe in (seen, unseen) for scores in (before, after)))
    _print(result, answers, changes)
    _write(output, result, lesson, answers, changes)
    say(f"\nresult.json, report.html and the store are in {output}/")
    return result


def _claim(output: Path) -> None:
    """Marks a folder as the demo's, which removes in it what an earlier run left."""
    mark = output / MARK
    foreign = [name for name in ("store", "grafted") if (output / name).exists()]
    if foreign and not mark.exists() and not _is_result(output / "result.json"):
        raise MemgraftError(f"{output / foreign[0]} exists, and was not made by a demo: choose another folder with --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise MemgraftError(f"{output}: can't be written to: {error.strerror}; choose another folder with --output") from None


def _is_result(path: Path) -> bool:
    """Whether a file is what a demo writes in the end; earlier ones made no mark."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(result, dict) and "revert_bit_equal" in result


def _grafted(output: Path, stages: Stages) -> GraftedModel:
    """The demo's model with an empty memory: from an earlier run's folder where that fits, else grafted now."""
    source = str(demo_model_path())
    empty = output / "grafted"
    if empty.exists():
        stages.stage("loading the grafted model of an earlier run")
        try:
            model = load(empty, model=source)
            if model.config.answer_layer is not None:
                return model
        except MemgraftError:
            pass
        shutil.rmtree(empty)  # of an older version, or cut off: it holds nothing that can't be made again
    stages.stage("calibrating on background text that the model wrote", BACKGROUND_TOKENS)
    with as_file(files("memgraft.demo") / "background.jsonl") as background:
        model = graft(
            source,
            background=[example.text for example in read_examples(background).examples if isinstance(example, Text)],
            background_tokens=BACKGROUND_TOKENS,
            on_progress=lambda stage, done, total: stages.advance(done, stage),
        )
    save(model, empty)
    return load(empty, model=source)


def _material(model: GraftedModel, quick: bool) -> tuple[ExampleSet, ExampleSet, list[QAProbe | TextProbe | DriftProbe]]:
    """The facts to teach, their corrections, and the probes."""
    with as_file(files("memgraft.demo")) as folder:
        facts, corrections = read_examples(folder / "facts.jsonl"), read_examples(folder / "corrections.jsonl")
        common = tuple(
            Question(question=example.question, answers=example.answers)
            for example in read_examples(folder / "common.jsonl").examples
            if isinstance(example, Fact)
        )
        prose = (folder / "prose.txt").read_text(encoding="utf-8")
    taught = facts.examples[: 8 if quick else TAUGHT]
    names = {example.id for example in taught}
    assert model.background is not None
    _, held_out = model.background.split(model.tokenizer)
    return (
        ExampleSet(facts.path, facts.sha256, taught),
        ExampleSet(
            corrections.path,
            corrections.sha256,
            tuple(example for example in corrections.examples if isinstance(example, Fact) and example.supersedes in names),
        ),
        [
            QAProbe(name="common knowledge", questions=common[: 20 if quick else None]),
            TextProbe(name="prose", texts=(prose,), window=256, max_tokens=1024 if quick else None),
            DriftProbe(name="drift", rows=tuple(tuple(row) for row in held_out)),
        ],
    )


def _questions(facts: Sequence[Fact], name: str, *, unseen: bool) -> QAProbe:
    """Two held-out wordings a fact, or the one that is taught, all in the frame kept for testing."""
    rows = [(question, fact) for fact in facts for question in (fact.held_out if unseen else (fact.question,))]
    return QAProbe(name=name, questions=tuple(Question(question=question, answers=fact.answers) for question, fact in rows))


def _corrected(model: GraftedModel, corrections: ExampleSet) -> dict[str, Any]:
    """Teach the corrections as a second lesson: how many of the changed facts now get the newest answer."""
    if not corrections.examples:
        return {"f1": None, "facts": []}
    lesson = learn(model, corrections, message="Corrections to the handbook", recipe=RECIPE)
    facts = lesson.record["facts"]
    return {"f1": sum(fact["f1"] for fact in facts) / len(facts), "facts": facts, "overlaps": lesson.record["overlaps"]}


def _logits(model: GraftedModel) -> torch.Tensor:
    """Logits of a few fixed prompts, to compare bit for bit."""
    prompts = ["The capital of France is", "Question: Who founded Vellack Tidecraft?\nAnswer:", "def main():"]
    with torch.no_grad():
        return torch.cat([model(**model.tokenizer(prompt, return_tensors="pt")).logits[0] for prompt in prompts])


def _revert_all(model: GraftedModel, store: Path, base_logits: torch.Tensor) -> bool:
    """Take every lesson back and compare with the base model: memory on, memory off, and loaded from disk again."""
    for lesson in reversed(model.history.active()):
        model.revert(lesson)
    save(model, store)
    with model.without_memory():
        off = _logits(model)
    again = load(store, model=model.source)
    empty = all(len(rows) == 0 for rows in model.rows().values())
    return empty and all(torch.equal(base_logits, logits) for logits in (_logits(model), off, _logits(again)))


def _print(result: Mapping[str, Any], answers: Answers, changes: Mapping[str, Change]) -> None:
    """Everything that the demo shows, as tables."""
    say("")
    print_table(
        ["question (a wording that was not taught)", "expected", "base", "taught", "taught wording"],
        [[row.question, row.expected, row.before, row.unseen_wording, row.taught_wording] for row in answers.rows()],
    )
    say("")
    columns = ["measured", "before", "after", "change", "95 % interval", "n"]
    learned = [
        [f"F1, {name}", f"{before.mean:.3f}", f"{after.mean:.3f}", f"{after.mean - before.mean:+.3f}", "", str(len(after.values))]
        for name, before, after in (
            ("taught wordings", answers.seen_before, answers.seen_after),
            ("unseen wordings", answers.unseen_before, answers.unseen_after),
        )
    ]
    kept = [
        [f"{c.name}, {c.metric}", f"{c.before:.4f}", f"{c.after:.4f}", f"{c.delta:+.4f}", f"{c.low:+.4f} to {c.high:+.4f}", str(c.n)]
        for c in changes.values()
        if c.low is not None and c.high is not None
    ]
    print_table(columns, [*learned, *kept], numbers=columns[1:])
    say("")
    print_table(
        ["corrected by a second lesson", "newest answer", "before both", "now"],
        [[fact["question"], fact["expected"], fact["before"], fact["after"]] for fact in result["corrections"]],
    )
    say("")
    say(
        f"Lesson {short(result['lesson'])}: {result['facts']} facts, {result['rows_per_fact']:.0f} rows a fact, "
        f"{result['rows']:,} rows in all, "
        f"{result['lesson_bytes'] / 1e6:.1f} MB."
    )
    same = "the base model again, bit for bit" if result["revert_bit_equal"] else "NOT the base model: this is a bug, please report it"
    say(f"Both lessons reverted: {same}. {result['seconds']:.0f} seconds in all.")


def _write(output: Path, result: Mapping[str, Any], lesson: Commit, answers: Answers, changes: Mapping[str, Change]) -> None:
    """`result.json` and `report.html`."""
    nll = changes["prose"]
    page = LessonPage(
        title="memgraft demo: The Vellack Tidecraft handbook",
        verdict=(
            f"Taught {result['facts']} facts: F1 on unseen wordings {result['base_f1_unseen']:.2f} → {result['learned_f1_unseen']:.2f}, "
            f"prose NLL {nll.delta:+.4f}; reverted, the model {'is' if result['revert_bit_equal'] else 'is NOT'} the base bit for bit."
        ),
        tone="good" if result["learned_f1_unseen"] > 0.5 and nll.delta <= NLL_TOLERANCE and result["revert_bit_equal"] else "mixed",
        figures=(
            KeyFigure(value=f"{result['learned_f1_unseen']:.2f}", label="F1 on wordings that were not taught"),
            KeyFigure(value=f"{nll.delta:+.4f}", label="prose NLL, nats per token"),
            KeyFigure(value=f"{result['rows_per_fact']:.0f}", label="rows a fact"),
        ),
        passes=loss_passes([[float("nan") if loss is None else loss for loss in turn] for turn in lesson.record["losses"]]),
        points=(
            OutcomePoint(label="before", learned_f1=result["base_f1_unseen"], nll_change=0.0),
            OutcomePoint(label="taught", learned_f1=result["learned_f1_unseen"], nll_change=nll.delta, low=nll.low, high=nll.high),
            *([OutcomePoint(label="reverted", learned_f1=result["base_f1_unseen"], nll_change=0.0)] if result["revert_bit_equal"] else []),
        ),
        nll_tolerance=NLL_TOLERANCE,
        questions=tuple(answers.rows()),
        probes=tuple(ProbeRow.model_validate(change.summary()) for change in changes.values()),
        commit=CommitFacts(
            id=lesson.id,
            message=lesson.message,
            facts=result["facts"],
            rows=lesson.rows,
            rows_per_fact=result["rows_per_fact"],
            bytes=result["lesson_bytes"],
            seconds=lesson.record["seconds"],
            revert_bit_equal=result["revert_bit_equal"],
        ),
        repeat=("make demo",),
        environment=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    )
    render_lesson_page(page, output / "report.html")
    partial = output / f".result.json.{os.getpid()}.partial"
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(output / "result.json")


def _versions() -> dict[str, str]:
    return {
        "memgraft": memgraft.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }

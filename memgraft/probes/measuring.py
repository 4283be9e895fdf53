"""Running probes: a probe on a model gives scores, and all probes on a grafted model give changes, memory off against on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import MeasureError
from memgraft.probes.answers import exact_match, f1
from memgraft.probes.drift import drift_kl, token_batches
from memgraft.probes.frames import chat_prompt, choose_shots, few_shot_prompt, packaged_shots
from memgraft.probes.generation import generate_answers
from memgraft.probes.language_model import check_context, context_length
from memgraft.probes.likelihood import Sums, answer_nll, choose, text_nll, text_windows
from memgraft.probes.probe import AnswerNLLProbe, ChoiceProbe, DriftProbe, QAProbe, TextProbe
from memgraft.probes.rows import QuestionRow
from memgraft.probes.scores import Change, Scores, compare

AnyProbe = QAProbe | AnswerNLLProbe | ChoiceProbe | TextProbe | DriftProbe
MemoryOff = Callable[[], AbstractContextManager[object]]
Context = Callable[[str], str]  # a question → text to put in front of it, such as what a search found


class Grafted(Protocol):
    """What run_probes needs of a grafted model."""

    @property
    def base(self) -> PreTrainedModel: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def without_memory(self) -> AbstractContextManager[object]: ...


def run_probes(
    grafted: Grafted, probes: Sequence[AnyProbe], *, shots: Sequence[QuestionRow] | None = None, seed: int = 0, **bootstrap: Any
) -> list[Change]:
    """Every probe with the memory off and on, on the same items, with paired intervals (settings of `compare`)."""
    changes = []
    for probe in probes:
        after = measure(probe, grafted.base, grafted.tokenizer, shots=shots, memory_off=grafted.without_memory)
        if isinstance(probe, DriftProbe):
            before = unmoved(after)
        else:
            with grafted.without_memory():
                before = measure(probe, grafted.base, grafted.tokenizer, shots=shots)
        changes.append(compare(before, after, seed=seed, **bootstrap))
    return changes


def unmoved(drift: Scores) -> Scores:
    """The drift scores of the base model itself, which are 0 by definition."""
    return drift.model_copy(update={"values": (0.0,) * len(drift.values)})


def measure(
    probe: AnyProbe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shots: Sequence[QuestionRow] | None = None,
    memory_off: MemoryOff | None = None,
    context: Context | None = None,
) -> Scores:
    """The scores of a model on a probe.

    shots: examples for few-shot frames, the packaged ones if None; a question is never among its own. memory_off: what
    turns the model into its base, needed by drift probes only. context: what stands in front of a question, but for the chat frame.

    Raises MeasureError where a value is not finite, DataError for items that don't fit the model.
    """
    if isinstance(probe, QAProbe):
        scores = _measure_qa(probe, model, tokenizer, shots, context)
    elif isinstance(probe, AnswerNLLProbe):
        scores = _measure_answer_nll(probe, model, tokenizer, shots, context)
    elif isinstance(probe, ChoiceProbe):
        scores = _measure_choice(probe, model, tokenizer, context)
    elif isinstance(probe, TextProbe):
        sums = text_nll(model, tokenizer, probe.texts, window=probe.window, max_tokens=probe.max_tokens)
        scores = _window_scores(probe.name, "text NLL", sums)
    else:
        if memory_off is None:
            raise ValueError(f"the drift probe {probe.name!r} needs memory_off, which turns the model into its base")
        rows = _drift_rows(probe, model, tokenizer)
        scores = _window_scores(probe.name, "drift KL", drift_kl(model, memory_off, token_batches(model, tokenizer, rows)))
    wrong = next((index for index, value in enumerate(scores.values) if not math.isfinite(value)), None)
    if wrong is not None:
        raise MeasureError(
            f"probe {scores.name!r}, item {wrong + 1}: {scores.metric} is {scores.values[wrong]}: "
            "the model's predictions are not finite numbers"
        )
    return scores


def _drift_rows(probe: DriftProbe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sequence[Sequence[int]]:
    if probe.rows:
        check_context(model, [len(row) for row in probe.rows], "row")
        return probe.rows
    window = min(probe.window, context_length(model) or probe.window)
    return text_windows(tokenizer, probe.texts, window=window, max_tokens=probe.max_tokens)


def few_shot_prompts(
    questions: Sequence[QuestionRow], count: int, shots: Sequence[QuestionRow] | None = None, context: Context | None = None
) -> list[str]:
    """Each question after the first `count` shots that do not ask it, as `measure` puts it to a model."""
    pool = packaged_shots() if shots is None else shots
    return [
        few_shot_prompt(row.question, choose_shots(row.question, pool, count) if count else (), context(row.question) if context else "")
        for row in questions
    ]


def _question_items(questions: Sequence[QuestionRow]) -> tuple[dict[str, Any], ...]:
    return tuple(row.model_dump(mode="json") for row in questions)


def _measure_qa(
    probe: QAProbe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shots: Sequence[QuestionRow] | None,
    context: Context | None,
) -> Scores:
    if probe.frame == "chat":
        prompts: Sequence[str] = [chat_prompt(tokenizer, row.question) for row in probe.questions]
    else:
        prompts = few_shot_prompts(probe.questions, probe.shots, shots, context)
    predictions = generate_answers(model, tokenizer, prompts, max_new_tokens=probe.max_new_tokens)
    outcomes: tuple[dict[str, Any], ...] = tuple(
        {"prediction": prediction, "f1": f1(prediction, row.answers), "exact match": exact_match(prediction, row.answers)}
        for prediction, row in zip(predictions, probe.questions, strict=True)
    )
    return Scores(
        name=probe.name,
        metric={"f1": "F1", "exact match": "exact match"}[probe.metric],
        unit="0..1",
        higher_is_better=True,
        items=_question_items(probe.questions),
        values=tuple(float(outcome[probe.metric]) for outcome in outcomes),
        outcomes=outcomes,
    )


def _measure_answer_nll(
    probe: AnswerNLLProbe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shots: Sequence[QuestionRow] | None,
    context: Context | None,
) -> Scores:
    prompts = few_shot_prompts(probe.questions, probe.shots, shots, context)
    values = answer_nll(model, tokenizer, prompts, [row.answers[0] for row in probe.questions])
    return Scores(
        name=probe.name,
        metric="answer NLL",
        unit="nats/token",
        higher_is_better=False,
        items=_question_items(probe.questions),
        values=tuple(values),
        outcomes=({},) * len(values),
    )


def _measure_choice(probe: ChoiceProbe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context | None) -> Scores:
    prompts = [few_shot_prompt(row.question, (), context(row.question) if context else "") for row in probe.questions]
    nll = choose(model, tokenizer, prompts, [row.choices for row in probe.questions])
    chosen = [values.index(min(values)) for values in nll]
    return Scores(
        name=probe.name,
        metric="accuracy",
        unit="0..1",
        higher_is_better=True,
        items=tuple(row.model_dump(mode="json") for row in probe.questions),
        values=tuple(float(choice == row.answer) for choice, row in zip(chosen, probe.questions, strict=True)),
        outcomes=tuple({"chosen": choice, "nll": values} for choice, values in zip(chosen, nll, strict=True)),
    )


def _window_scores(name: str, metric: str, sums: Sums) -> Scores:
    return Scores(
        name=name,
        metric=metric,
        unit="nats/token",
        higher_is_better=False,
        items=tuple({"window": index, "tokens": count} for index, count in enumerate(sums.counts)),
        values=sums.means,
        weights=tuple(float(count) for count in sums.counts),
        outcomes=({},) * len(sums.counts),
    )

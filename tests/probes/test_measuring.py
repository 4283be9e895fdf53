"""Probes on models: scores, changes, verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memgraft.errors import DataError, MemgraftError
from memgraft.probes import (
    AnswerNLLProbe,
    Change,
    ChoiceProbe,
    ChoiceRow,
    DriftProbe,
    QAProbe,
    QuestionRow,
    Scores,
    TextProbe,
    compare,
    few_shot_prompt,
    generate_answers,
    measure,
    run_probes,
    text_nll,
)

QUESTIONS = tuple(QuestionRow(question=f"Where is ship {number}?", answers=("Oslo", "the north")) for number in range(4))
CHOICES = tuple(ChoiceRow(question=f"Which {number}?", choices=("a river", "the sea", "Oslo"), answer=number % 3) for number in range(5))
TEXT = "The ship left the harbour in the morning. It was seen again a week later, far to the north.\n"
PROBES = (
    QAProbe(name="places", questions=QUESTIONS, shots=2, max_new_tokens=4),
    AnswerNLLProbe(name="places", questions=QUESTIONS, shots=0),
    ChoiceProbe(name="which", questions=CHOICES),
    TextProbe(name="prose", texts=(TEXT, TEXT.upper()), window=8),
    DriftProbe(name="own", rows=((5, 6, 7), (8, 9))),
    DriftProbe(name="prose", texts=(TEXT,), window=8),
)


class Grafted:
    """A base model with one hook that adds a constant, as a memory would."""

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: float) -> None:
        self.base, self.tokenizer, self.on = base, tokenizer, True
        shift = size * torch.randn(32, generator=torch.Generator().manual_seed(0))

        def add(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            return (args[0] + shift, *args[1:]) if self.on else None

        layers: Any = base.get_submodule("model.layers")
        layers[1].register_forward_pre_hook(add)

    @contextmanager
    def without_memory(self) -> Iterator[PreTrainedModel]:
        before, self.on = self.on, False
        try:
            yield self.base
        finally:
            self.on = before


def test_an_empty_memory_changes_no_probe_at_all(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    changes = run_probes(Grafted(llama, tokenizer, 0.0), PROBES, resamples=20)
    assert [change.delta for change in changes] == [0.0] * len(PROBES)
    assert [(change.low, change.high) for change in changes] == [(0.0, 0.0)] * len(PROBES)
    assert not any(change.worse() for change in changes)


def test_before_is_the_base_and_after_the_memory(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    grafted = Grafted(llama, tokenizer, 2.0)
    with_memory = text_nll(llama, tokenizer, (TEXT, TEXT.upper()), window=8).mean
    with grafted.without_memory():
        base = text_nll(llama, tokenizer, (TEXT, TEXT.upper()), window=8).mean
    qa, nll, choice, text, drift, drift_text = run_probes(grafted, PROBES, resamples=20)
    assert (text.before, text.after) == pytest.approx((base, with_memory))
    assert text.delta == pytest.approx(with_memory - base)
    assert (drift.before, drift_text.before) == (0.0, 0.0)
    assert drift.after > 0.01
    assert drift_text.after > 0.01
    assert nll.delta != 0
    assert [(change.name, change.metric, change.n) for change in (qa, nll, choice, text, drift, drift_text)] == [
        ("places", "F1", 4),
        ("places", "answer NLL", 4),
        ("which", "accuracy", 5),
        ("prose", "text NLL", text.n),
        ("own", "drift KL", 2),
        ("prose", "drift KL", drift_text.n),
    ]
    assert grafted.on


def test_changes_are_json_and_come_back_equal(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for change in run_probes(Grafted(llama, tokenizer, 1.0), PROBES, resamples=20):
        text = json.dumps(change.model_dump(mode="json"), allow_nan=False)
        assert Change.model_validate_json(text) == change
        assert json.loads(json.dumps(change.summary())).keys() == set(Change.model_fields) - {"items"}
        assert len(change.items) == change.n


def test_questions_are_scored_by_their_generated_answers(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = ["Oslo", "far north", "south", "The North."]
    monkeypatch.setattr("memgraft.probes.measuring.generate_answers", lambda *_, **__: predictions)
    f1 = measure(QAProbe(name="places", questions=QUESTIONS), llama, tokenizer)
    assert f1.values == pytest.approx((1.0, 2 / 3, 0.0, 1.0))
    assert f1.mean == pytest.approx(2 / 3)
    assert [outcome["prediction"] for outcome in f1.outcomes] == predictions
    exact = measure(QAProbe(name="places", questions=QUESTIONS, metric="exact match"), llama, tokenizer)
    assert (exact.metric, exact.values) == ("exact match", (1.0, 0.0, 0.0, 1.0))


def test_shots_are_those_given_without_the_question_itself(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    shots = [QUESTIONS[0], *(QuestionRow(question=f"Who is {n}?", answers=("Anna Bell",)) for n in range(3))]
    scores = measure(PROBES[0], llama, tokenizer, shots=shots)
    own = few_shot_prompt(QUESTIONS[0].question, shots[1:3])
    other = few_shot_prompt(QUESTIONS[1].question, shots[:2])
    expected = generate_answers(llama, tokenizer, [own, other], max_new_tokens=4)
    assert [outcome["prediction"] for outcome in scores.outcomes[:2]] == expected


def test_questions_can_be_asked_in_the_tokenizers_chat_format(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    scores = measure(QAProbe(name="places", questions=QUESTIONS, frame="chat", max_new_tokens=4), llama, tokenizer)
    expected = generate_answers(llama, tokenizer, [f"[{row.question}]" for row in QUESTIONS], max_new_tokens=4)
    assert [outcome["prediction"] for outcome in scores.outcomes] == expected


def test_accuracy_counts_the_choice_with_the_lowest_nll(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    scores = measure(PROBES[2], llama, tokenizer)
    for value, outcome, row in zip(scores.values, scores.outcomes, CHOICES, strict=True):
        assert outcome["nll"][outcome["chosen"]] == min(outcome["nll"])
        assert value == float(outcome["chosen"] == row.answer)


def test_text_windows_weigh_by_their_tokens(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    scores = measure(PROBES[3], llama, tokenizer)
    assert scores.weights is not None
    assert len(set(scores.weights)) > 1
    assert scores.mean == pytest.approx(text_nll(llama, tokenizer, (TEXT, TEXT.upper()), window=8).mean)


def test_predictions_that_are_not_finite_are_named(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        llama.get_parameter("lm_head.weight").fill_(float("nan"))
    with pytest.raises(MemgraftError, match="probe 'prose', item 1: text NLL is nan: the model's predictions are not finite"):
        measure(PROBES[3], llama, tokenizer)


def test_drift_without_a_base_is_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="drift probe 'own' needs memory_off"):
        measure(PROBES[4], llama, tokenizer)


def test_drift_rows_beyond_the_context_are_refused(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="row 1 has 600 tokens"):
        run_probes(Grafted(llama, tokenizer, 1.0), [DriftProbe(name="own", rows=((5,) * 600,))])


def scores(values: tuple[float, ...], *, higher_is_better: bool = True, **changed: Any) -> Scores:
    items = tuple({"question": str(index)} for index in range(len(values)))
    fields = {"name": "p", "metric": "F1", "unit": "0..1", "items": items, "values": values, "outcomes": ({},) * len(values)}
    return Scores(**{**fields, "higher_is_better": higher_is_better, **changed})


def test_a_comparison_of_different_items_or_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be compared: items differ"):
        compare(scores((1.0, 0.0)), scores((1.0, 0.0), items=({"question": "0"}, {"question": "9"})))
    with pytest.raises(ValueError, match="can't be compared: metric, weights differ"):
        compare(scores((1.0, 0.0)), scores((1.0, 0.0), metric="exact match", weights=(1.0, 2.0)))


def test_worse_follows_the_direction_the_tolerance_and_the_interval() -> None:
    before, after = scores((0.9,) * 50), scores((0.7, 0.8) * 25)
    drop = compare(before, after, resamples=200)
    assert drop.delta == pytest.approx(-0.15)
    assert drop.worse()
    assert drop.worse(0.1)
    assert not drop.worse(0.2)
    assert not compare(after, before, resamples=200).worse()
    risen = compare(scores((1.0, 2.0), higher_is_better=False), scores((2.0, 3.5), higher_is_better=False), resamples=200)
    assert risen.worse()


def test_a_worsening_that_chance_explains_is_not_called_worse() -> None:
    noisy = compare(scores((0.0, 1.0) * 10), scores((1.0, 0.0) * 9 + (0.0, 0.0)), resamples=500)
    assert noisy.delta < 0
    assert not noisy.worse()


def test_a_single_item_counts_as_it_is() -> None:
    change = compare(scores((1.0,)), scores((0.0,)))
    assert (change.low, change.high) == (None, None)
    assert change.worse()
    assert str(change) == "p F1 1.0000 → 0.0000 (-1.0000, n = 1)"


def test_a_change_reads_as_one_line() -> None:
    change = compare(scores((1.0, 1.0)), scores((0.5, 0.5)))
    assert str(change) == "p F1 1.0000 → 0.5000 (-0.5000, 95% interval -0.5000 to -0.5000, n = 2)"
    assert change.items[0] == {"question": "0", "before": {"value": 1.0}, "after": {"value": 0.5}}

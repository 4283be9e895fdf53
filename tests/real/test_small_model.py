"""The main job on the real small model: what only a model that knows language shows."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

import memgraft
from memgraft.data import ExampleSet, read_examples
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.models import LoadedModel
from memgraft.teaching import Recipe

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

PROMPTS = ("The capital of France is", "Question: Who founded Vellack Tidecraft?\nAnswer:", "def main():\n    ")


def logits(model: GraftedModel) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**model.tokenizer(prompt, return_tensors="pt")).logits for prompt in PROMPTS]


@pytest.fixture(scope="module")
def grafted(smol: LoadedModel) -> GraftedModel:
    return memgraft.graft(smol.model, smol.tokenizer, slots=4096, background_tokens=1024)


@pytest.fixture(scope="module")
def facts() -> ExampleSet:
    examples = read_examples(Path(str(files("memgraft") / "demo" / "facts.jsonl")))
    return ExampleSet(examples.path, examples.sha256, examples.examples[:2])


def test_an_empty_memory_changes_no_logit(grafted: GraftedModel) -> None:
    with grafted.without_memory():
        base = logits(grafted)
    assert all(torch.equal(one, other) for one, other in zip(base, logits(grafted), strict=True))


def test_facts_are_learned_and_taken_back_bit_for_bit(grafted: GraftedModel, facts: ExampleSet, tmp_path: Path) -> None:
    base = logits(grafted)
    weights = {name: parameter.clone() for name, parameter in grafted.base.named_parameters()}
    lesson = grafted.learn(facts, message="two facts", recipe=Recipe(passes=8, settling=2))
    losses = [sum(turn) for turn in lesson.record["losses"]]
    assert losses[-1] < losses[0] / 2
    assert all(fact["before"] != fact["after"] for fact in lesson.record["facts"])
    assert lesson.record["rows_per_batch"] > 0
    taught = logits(grafted)
    assert not torch.equal(taught[1], base[1])

    grafted.save(tmp_path / "store")
    again = memgraft.load(tmp_path / "store", model=grafted.source)
    assert all(torch.equal(one, other) for one, other in zip(taught, logits(again), strict=True))

    grafted.revert(lesson.id)
    assert all(torch.equal(one, other) for one, other in zip(base, logits(grafted), strict=True))
    assert all(torch.equal(weight, dict(grafted.base.named_parameters())[name]) for name, weight in weights.items())


@torch.no_grad()
def test_the_memory_is_closed_until_a_taught_fact_is_asked_for(grafted: GraftedModel, facts: ExampleSet) -> None:
    asked, about, other = (
        "Question: Who founded Vellack Tidecraft?\nAnswer:",
        "We drove past Vellack Tidecraft and had lunch by the river, which was high.",
        "Question: Who founded the city of Paris?\nAnswer:",
    )

    def states() -> list[torch.Tensor]:
        return [grafted(**grafted.tokenizer(text, return_tensors="pt")).logits[0] for text in (asked, about, other)]

    base = states()
    lesson = grafted.learn(facts, message="two facts", recipe=Recipe(passes=4), test=False)
    try:
        assert any("ellack" in "".join(tokens) or "idecraft" in "".join(tokens) for tokens in lesson.record["cues"]), lesson.record["cues"]
        taught = states()
        assert torch.equal(taught[2], base[2])
        before = len(grafted.tokenizer("Question: Who founded").input_ids)
        assert torch.equal(taught[0][:before], base[0][:before])
        assert not torch.equal(taught[0][-1], base[0][-1])
        grafted(**grafted.tokenizer(about, return_tensors="pt"))
        assert int(grafted.opened[0].sum()) > 2 * sum(int((at >= 0).sum()) for at in grafted.answered.values()), "little is asked for"
        grafted(**grafted.tokenizer("tell me something about vellack tidecraft, please.", return_tensors="pt"))
        assert grafted.opened, "the subject in lower case"
        grafted(**grafted.tokenizer("tell me something about the city of paris, please.", return_tensors="pt"))
        assert not grafted.opened

        ids = grafted.tokenizer(asked, return_tensors="pt").input_ids
        written = grafted.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        with grafted.without_memory():
            assert not torch.equal(grafted.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0), written)
    finally:
        grafted.revert(lesson.id)
    assert all(torch.equal(one, two) for one, two in zip(base, states(), strict=True))


@torch.no_grad()
def test_of_two_with_one_surname_the_lesson_is_read_that_was_asked_for(grafted: GraftedModel) -> None:
    def fact(name: str, answer: str) -> ExampleSet:
        wordings = (f"In which town was {name} born?", f"What is the birthplace of {name}?", f"Which town does {name} come from?")
        asked = Fact(line=1, question=f"Where was {name} born?", answers=(answer,), paraphrases=wordings)
        return ExampleSet("facts.jsonl", "0" * 64, (asked,))

    def read(name: str) -> set[int]:
        """The numbers of the lessons that are read where the answer begins."""
        grafted(**grafted.tokenizer(f"Question: Where was {name} born?\nAnswer:", return_tensors="pt"))
        return {number for number, at in grafted.answered.items() if int(at[0, -1]) >= 0}

    towns = {"Leo Wardrup": "Kirkwall", "Ada Wardrup": "Lisbon"}
    lessons = [grafted.learn(fact(name, town), message=name, test=False) for name, town in towns.items()]
    try:
        assert [read(name) for name in towns] == [{0}, {1}]
        cues = [lesson.cues for lesson in lessons]
        assert all(one is other or not one.same_subject(0, other, 0) for one in cues if one for other in cues if other)
        again = grafted.learn(fact("Leo Wardrup", "Bergen"), message="corrected, without an id", test=False)
        lessons.append(again)
        assert cues[0] is not None
        assert again.cues is not None
        assert cues[0].same_subject(0, again.cues, 0)
        assert [read(name) for name in towns] == [{0, 2}, {1}]
    finally:
        for lesson in lessons:
            grafted.revert(lesson.id)

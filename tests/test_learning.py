"""Learning a data file from end to end on a tiny model: batches, the commit and its record, and taking it back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memgraft import learning
from memgraft.commits import Commit, DataFile, Rows, sum_rows
from memgraft.config import ANSWERS
from memgraft.covariance import common_questions
from memgraft.data import read_examples
from memgraft.encoding import TokenBatch
from memgraft.errors import DataError, StoreError, TeachingError
from memgraft.examples import Example, Fact, normalise
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.history import History
from memgraft.learning import effective_usage, learn, prepare, usages_of
from memgraft.persistence import load
from memgraft.store import MemoryStore
from memgraft.teaching import IN_LAYERS, Lesson, Recipe, Step, teach
from memgraft.writers import LeastInterference
from tests.models import HIDDEN, save_tiny_model, tiny_model, tiny_tokenizer

TEXTS = [
    f"{word} {number}: the ship left the harbour in the {word}." for number, word in enumerate(("morning", "night", "fog", "rain") * 5)
]
FACTS: list[dict[str, Any]] = [
    {
        "id": "head",
        "question": "Who leads the Quill office?",
        "answers": ["Mira Stone", "M. Stone"],
        "statement": "The Quill office is led by Mira Stone.",
        "paraphrases": ["Which person heads the Quill office?"],
        "held_out": ["Name the boss at Quill."],
    },
    {"id": "colour", "question": "What colour is the Quill logo?", "answers": ["teal"], "held_out": ["Quill's logo has which hue?"]},
    {"question": "Where is Quill's archive?", "answers": ["Dover"]},
]
LATER = [{"id": "new-head", "question": "Who leads the Quill office?", "answers": ["Ivo Brand"], "supersedes": "head"}]
RECIPE = Recipe(passes=3, wordings=4, t=40, writer=LeastInterference(learning_rate=30.0, max_step=None))
EVERYWHERE = RECIPE.model_copy(update={"scope": "everywhere"})


def data_file(folder: Path, rows: Sequence[dict[str, Any]] = FACTS, name: str = "facts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grafted(**settings: Any) -> GraftedModel:
    return graft(tiny_model(), tiny_tokenizer(), **{"slots": 1024, "top_k": 4, "background": TEXTS, **settings})


@torch.no_grad()
def logits(model: GraftedModel) -> Tensor:
    result: Tensor = model(input_ids=torch.arange(1, 60).view(1, -1)).logits
    return result


def text_of(ids: Tensor) -> str:
    return str(tiny_tokenizer().decode(ids))


def taught_texts(batches: Sequence[TokenBatch]) -> list[str]:
    """What the model sees, as text."""
    tokenizer = tiny_tokenizer()
    return [str(tokenizer.decode(ids[mask])) for batch in batches for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]


def batches_of(rows: Sequence[dict[str, Any]], folder: Path, recipe: Recipe = RECIPE, max_length: int = 2048) -> list[TokenBatch]:
    return prepare(read_examples(data_file(folder, rows)).examples, tiny_tokenizer(), recipe, max_length=max_length)


class TestPreparing:
    def test_a_fact_becomes_one_batch_with_fresh_wordings_for_each_pass(self, tmp_path: Path) -> None:
        batches = batches_of(FACTS, tmp_path)
        assert [batch.name for batch in batches] == ["head", "colour", "line 3"]
        for batch in batches:
            rounds = [taught_texts([batch.round(turn)]) for turn in range(3)]
            assert all(len(wordings) == 4 for wordings in rounds)
            assert len({text for wordings in rounds for text in wordings}) > 4
            assert batch.targets.any(-1).all()

    @pytest.mark.parametrize("seed", range(4))
    def test_held_out_wordings_are_never_among_what_is_taught(self, tmp_path: Path, seed: int) -> None:
        texts = [normalise(text) for text in taught_texts(batches_of(FACTS, tmp_path, Recipe(passes=6, wordings=12, seed=seed)))]
        held_out = [normalise(wording) for fact in FACTS for wording in fact.get("held_out", [])]
        assert len(held_out) == 2
        assert not any(wording in text for wording in held_out for text in texts)
        assert all(any(normalise(fact["question"]) in text for text in texts) for fact in FACTS)

    @pytest.mark.parametrize("passes", [2, 6])
    def test_of_many_wordings_none_is_left_out(self, tmp_path: Path, passes: int) -> None:
        questions = [f"Who is number {number} of Quill?" for number in range(40)]
        rows = [{"question": questions[0], "answers": ["Ann"], "paraphrases": questions[1:]}]
        (batch,) = batches_of(rows, tmp_path, Recipe(passes=passes, lower_case=0))
        texts = [normalise(text) for turn in range(passes) for text in taught_texts([batch.round(turn)])]
        assert all(any(normalise(question) in text for text in texts) for question in questions)

    def test_a_method_with_few_passes_sees_all_wordings_that_others_take_more_passes_for(self, tmp_path: Path) -> None:
        questions = [f"Who is number {number} of Quill?" for number in range(40)]
        rows = [{"question": questions[0], "answers": ["Ann"], "paraphrases": questions[1:]}]
        examples = read_examples(data_file(tmp_path, rows)).examples
        (batch,) = prepare(examples, tiny_tokenizer(), Recipe(passes=20, lower_case=0), max_length=2048, spread=2)
        texts = [normalise(text) for turn in range(2) for text in taught_texts([batch.round(turn)])]
        assert all(any(normalise(question) in text for text in texts) for question in questions)

    @pytest.mark.parametrize(
        "template",
        [
            "{{ raise_exception('no conversations') }}",
            "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | upper }}{% endfor %}",
            "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}",
        ],
        ids=["refuses", "rewrites", "leaves out"],
    )
    def test_facts_do_without_a_chat_format_that_does_not_keep_conversations(self, tmp_path: Path, template: str) -> None:
        examples = read_examples(data_file(tmp_path)).examples
        plain, chatting = (prepare(examples, tiny_tokenizer(each), RECIPE, max_length=2048) for each in (None, template))
        assert taught_texts(chatting) == taught_texts(plain)
        assert common_questions(tiny_tokenizer(template)) == common_questions(tiny_tokenizer())
        chat = data_file(tmp_path, [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}] * 2}])
        with pytest.raises(DataError, match="messages: "):
            prepare(read_examples(chat).examples, tiny_tokenizer(template), RECIPE, max_length=2048)

    def test_a_fact_of_the_same_file_is_not_superseded(self, tmp_path: Path) -> None:
        file = data_file(tmp_path, [*FACTS, *LATER])
        with pytest.raises(
            DataError, match=rf"^{file}:4: supersedes: expected a fact of an earlier lesson, 'head' is that of line 1; leave"
        ):
            learn(grafted(), file, message="both", recipe=RECIPE)

    def test_the_targets_are_the_first_answer(self, tmp_path: Path) -> None:
        for batch, fact in zip(batches_of(FACTS, tmp_path), FACTS, strict=True):
            learned = {str(tiny_tokenizer().decode(ids[marks])) for ids, marks in zip(batch.input_ids, batch.targets, strict=True)}
            assert all(fact["answers"][0] in text and len(text) < len(fact["answers"][0]) + 12 for text in learned)

    def test_long_texts_are_cut_into_chunks_and_completions_are_not(self, tmp_path: Path) -> None:
        rows = [{"id": "page", "text": "north and south " * 80}, {"prompt": "Q: ", "completion": "A"}]
        page_1, page_2, page_3, completion = batches_of(rows, tmp_path)
        assert [batch.name for batch in (page_1, page_2, page_3, completion)] == ["page, part 1", "page, part 2", "page, part 3", "line 2"]
        assert "".join(taught_texts([page_1, page_2, page_3])) == "north and south " * 80
        assert all(batch.input_ids.shape[1] <= 512 for batch in (page_1, page_2, page_3))
        assert taught_texts([completion]) == ["Q: A<|end|>"]

    def test_an_example_longer_than_the_context_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(TeachingError, match=r"^line 1: prompt/completion: .*longer than the context"):
            batches_of([{"prompt": "a" * 90, "completion": "b"}], tmp_path, max_length=80)

    def test_what_is_too_long_only_by_the_contexts_in_front_is_taught_without_them(self, tmp_path: Path) -> None:
        fact = {"question": "Who leads Quill?", "answers": ["Ivo"]}
        (long,), (short,) = (batches_of([fact], tmp_path, max_length=length) for length in (2000, 100))
        assert max(len(text) for text in taught_texts([long])) > 100
        assert max(len(text) for text in taught_texts([short])) <= 100
        assert all("Quill" in text or "quill" in text for text in taught_texts([short]))
        with pytest.raises(TeachingError, match="longer than the context"):
            batches_of([{**fact, "question": "Who leads Quill" * 10}], tmp_path, max_length=100)

    def test_a_model_of_a_short_context_is_taught(self, tmp_path: Path) -> None:
        model = graft(tiny_model("gpt2", n_positions=96), tiny_tokenizer(), slots=256, top_k=4, background=TEXTS)
        assert learn(model, data_file(tmp_path, FACTS[1:2]), message="1", recipe=RECIPE, test=False).changes

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({"text": "a"}, "text: wording 1 ('a'): no token to learn"),
            ({"id": "p", "prompt": "a" * 3000, "completion": "b"}, "prompt/completion: wording 1 ("),
            ({"question": "a" * 3000, "answers": ["b"]}, "question/answers: wording "),
            ({"question": "Who?", "answers": ["b"], "statement": "a" * 3000 + " is b."}, "statement: wording 1 ("),
            ({"question": "Who?", "answers": ["b"], "paraphrases": ["a" * 3000]}, "paraphrases/answers: wording "),
            ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages: a chat template is needed"),
        ],
    )
    def test_what_cant_be_taught_is_named_with_file_line_and_field(self, tmp_path: Path, row: dict[str, Any], said: str) -> None:
        file = data_file(tmp_path, [FACTS[0], row])
        with pytest.raises((DataError, TeachingError)) as caught:
            learn(grafted(), file, message="m", recipe=RECIPE)
        assert str(caught.value).startswith(f"{file}:2: {said}")
        assert "\n" not in str(caught.value)


class TestLearning:
    def test_makes_a_commit_of_what_changed_and_leaves_exactly_that_in_the_model(self, tmp_path: Path) -> None:
        model, steps = grafted(), list[Step]()
        path = data_file(tmp_path)
        commit = learn(model, path, message="the Quill office", recipe=RECIPE, on_step=steps.append)
        assert commit.message == "the Quill office"
        assert commit.recipe == RECIPE.model_dump(mode="json")
        assert Recipe.model_validate(commit.recipe) == RECIPE
        assert commit.data_sha256 == read_examples(path).sha256
        assert model.rows() == dict(commit.changes)
        assert 0 < commit.rows <= 3 * 3 * 40
        assert model.history.active() == [commit.id]
        assert [step.done for step in steps] == list(range(1, 10))

    def test_leaves_the_sum_of_the_lessons_even_where_teaching_ended_on_rounded_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = grafted()

        def rounded(*args: Any, **settings: Any) -> Lesson:
            lesson = teach(*args, **settings)
            model.table("0").values *= 1 + 1e-6
            return lesson

        monkeypatch.setattr(learning, "teach", rounded)
        commit = learn(model, data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        assert model.rows() == dict(commit.changes)

    def test_records_what_it_cost_and_what_was_asked_and_answered(self, tmp_path: Path) -> None:
        record = learn(grafted(), data_file(tmp_path), message="m", recipe=RECIPE).record
        assert json.loads(json.dumps(record)) == record
        assert record["batches"] == 3
        assert record["rows"] > 0
        assert 0 < record["rows_per_batch"] <= 3 * 40
        assert [len(losses) for losses in record["losses"]] == [3, 3, 3]
        assert sum(record["losses"][-1]) < sum(record["losses"][0])
        assert record["seconds"] > 0
        assert record["batches_per_minute"] == pytest.approx(180 / record["seconds"], rel=0.1)
        assert record["overlaps"] == []
        assert [(fact["name"], fact["question"], fact["expected"], fact["unseen_wording"]) for fact in record["facts"]] == [
            ("head", "Name the boss at Quill.", "Mira Stone", True),
            ("colour", "Quill's logo has which hue?", "teal", True),
            ("line 3", "Where is Quill's archive?", "Dover", False),
        ]
        for fact in record["facts"]:
            assert isinstance(fact["before"], str)
            assert isinstance(fact["after"], str)
            assert 0 <= fact["f1"] <= 1
        assert record["learned"] == sum(fact["learned"] for fact in record["facts"])
        assert any(fact["before"] != fact["after"] for fact in record["facts"])

    def test_counts_a_fact_as_learned_when_any_accepted_answer_is_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter([["nobody", "red", "Dover"], ["m stone!", "the Teal", "Dover street"]])
        monkeypatch.setattr("memgraft.probes.measuring.generate_answers", lambda *_, **__: next(answers))
        record = learn(grafted(), data_file(tmp_path), message="m", recipe=RECIPE).record
        assert [(fact["before"], fact["after"], fact["learned"]) for fact in record["facts"]] == [
            ("nobody", "m stone!", True),
            ("red", "the Teal", True),
            ("Dover", "Dover street", False),
        ]
        assert record["learned"] == 2

    def test_without_a_test_asks_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(learning, "measure", None)
        record = learn(grafted(), data_file(tmp_path), message="m", recipe=RECIPE, test=False).record
        assert "facts" not in record
        assert "learned" not in record

    def test_of_texts_and_conversations_needs_no_questions(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [{"text": "Quill moved to Dover."}, {"prompt": "Where? ", "completion": "Dover"}]
        commit = learn(grafted(), data_file(tmp_path, rows), message="m", recipe=RECIPE)
        assert "facts" not in commit.record
        assert commit.record["batches"] == 2
        (tmp_path / "page.txt").write_text("Quill moved.\n\nIt is in Dover.\n")
        assert learn(grafted(), tmp_path / "page.txt", message="m", recipe=RECIPE).record["batches"] == 2

    def test_repeats_to_the_bit_and_differs_with_the_seed(self, tmp_path: Path) -> None:
        def lesson(seed: int) -> Commit:
            return learn(grafted(), data_file(tmp_path), message="m", recipe=RECIPE.model_copy(update={"seed": seed}), test=False)

        first = lesson(0)
        assert lesson(0).id == first.id
        assert lesson(1).changes["0"] != first.changes["0"]

    def test_the_id_does_not_cover_what_was_measured(self, tmp_path: Path) -> None:
        tested, untested = (learn(grafted(), data_file(tmp_path), message="m", recipe=RECIPE, test=test) for test in (True, False))
        assert tested.record != untested.record
        assert tested.id == untested.id


class TestSeveralLessons:
    def test_a_reverted_lesson_leaves_the_base_model_to_the_bit(self, tmp_path: Path) -> None:
        model = grafted(layers=(0, 1))
        with model.without_memory():
            base = logits(model)
        commit = learn(model, data_file(tmp_path), message="m", recipe=EVERYWHERE, test=False)
        assert not torch.equal(logits(model), base)
        with model.without_memory():
            assert torch.equal(logits(model), base)
        assert model.revert(commit.id).rows == commit.rows
        assert torch.equal(logits(model), base)
        assert not any(len(rows) for rows in model.rows().values())

    def test_a_later_lesson_may_supersede_a_fact_and_reports_the_slots_that_it_shares(self, tmp_path: Path) -> None:
        model = grafted(slots=64)
        first = learn(
            model, data_file(tmp_path), message="first", recipe=Recipe(ranking="all", passes=1, t=None, scope="everywhere"), test=False
        )
        second = learn(
            model,
            data_file(tmp_path, LATER, "later.jsonl"),
            message="second",
            recipe=Recipe(ranking="all", passes=1, t=None, scope="everywhere"),
            test=False,
        )
        shared = set(first.changes["0"].slots.tolist()) & set(second.changes["0"].slots.tolist())
        assert shared
        assert second.record["overlaps"] == [{"lesson": first.id, "message": "first", "shared_slots": len(shared)}]
        assert model.rows() == {"0": sum_rows([first.changes["0"], second.changes["0"]], HIDDEN)}
        report = model.revert(first.id)
        assert [overlap.commit for overlap in report.overlaps] == [second.id]
        assert model.rows() == dict(second.changes)

    def test_slots_of_earlier_lessons_count_as_used_and_are_avoided(self, tmp_path: Path) -> None:
        model = grafted()
        first = learn(model, data_file(tmp_path), message="first", recipe=EVERYWHERE, test=False)
        usage = effective_usage(model)["0"]
        written = first.changes["0"].slots
        assert (usage.document_frequency_of(written) == usage.batches).all()
        other = [{**LATER[0], "supersedes": "a fact of no lesson"}]
        second = learn(model, data_file(tmp_path, other, "later.jsonl"), message="second", recipe=EVERYWHERE, test=False)
        assert not set(written.tolist()) & set(second.changes["0"].slots.tolist())
        assert second.record["overlaps"] == []
        unprotected = learn(grafted(), data_file(tmp_path, LATER, "later.jsonl"), message="second", recipe=EVERYWHERE, test=False)
        assert set(written.tolist()) & set(unprotected.changes["0"].slots.tolist())
        model.revert(first.id)
        assert (effective_usage(model)["0"].document_frequency_of(written) < usage.batches).any()

    def test_a_correction_may_change_the_rows_of_what_it_replaces_and_of_no_other_lesson(self, tmp_path: Path) -> None:
        model = grafted()
        other = learn(model, data_file(tmp_path, FACTS[1:]), message="others", recipe=EVERYWHERE, test=False)
        first = learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=EVERYWHERE, test=False)
        second = learn(model, data_file(tmp_path, LATER), message="2", recipe=EVERYWHERE, test=False)
        assert set(first.changes["0"].slots.tolist()) & set(second.changes["0"].slots.tolist())
        assert [overlap["lesson"] for overlap in second.record["overlaps"]] == [first.id]
        assert not set(other.changes["0"].slots.tolist()) & set(second.changes["0"].slots.tolist())
        last = [{"id": "newest", "question": "Who leads the Quill office?", "answers": ["Una"], "supersedes": "new-head"}]
        third = learn(model, data_file(tmp_path, last), message="3", recipe=EVERYWHERE, test=False)
        assert {overlap["lesson"] for overlap in third.record["overlaps"]} == {first.id, second.id}

    def test_a_correction_finds_what_it_replaces_in_a_store_that_was_loaded_imported_or_merged(self, tmp_path: Path) -> None:
        model = grafted()
        model.save(tmp_path / "store")
        for name in ("merged", "imported"):
            shutil.copytree(tmp_path / "store", tmp_path / name)
        first = learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=EVERYWHERE, test=False)
        model.save(tmp_path / "store")
        loaded, merged, imported = (MemoryStore.open(tmp_path / name) for name in ("store", "merged", "imported"))
        loaded.export(first.id, tmp_path / "lesson")
        merged.merge(loaded)
        imported.import_(tmp_path / "lesson")
        written, batches = first.changes["0"].slots, model.usage["0"].batches
        for store in (loaded, merged, imported):
            model.history = History(store)
            assert (effective_usage(model)["0"].document_frequency_of(written) == batches).all()
            assert (effective_usage(model, "head")["0"].document_frequency_of(written) < batches).any()

    def test_corrections_for_which_the_same_lessons_count_share_what_counts_as_used(self, tmp_path: Path) -> None:
        model = grafted()
        learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=EVERYWHERE, test=False)
        batches = [replace(batches_of(FACTS[:1], tmp_path)[0], supersedes=old) for old in (None, "unknown", "head")]
        none, unknown, head = usages_of(model, batches)
        assert none is unknown
        for found, old in ((none, None), (head, "head")):
            expected = effective_usage(model, old)["0"].tensors("u")
            assert all(map(torch.equal, found["0"].tensors("u").values(), expected.values()))

    def test_what_a_later_lesson_about_something_else_writes_moves_nothing(self, tmp_path: Path) -> None:
        model = grafted()
        other = [{"question": "When did 77 boats sail to Zbrx?", "answers": ["1802"]}]
        batch = batches_of(FACTS[:1], tmp_path)[0]
        ids = next(row[mask][None] for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True) if "Who" in text_of(row[mask]))
        learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=RECIPE, test=False)
        with torch.no_grad():
            before = model(input_ids=ids).logits
            learn(model, data_file(tmp_path, other), message="2", recipe=RECIPE, test=False)
            after = model(input_ids=ids).logits
            assert set(model.opened) == {0}
            assert torch.equal(after, before)
            with model.without_memory():
                assert not torch.equal(after, model(input_ids=ids).logits)
        assert all(len(scoped.tables.rows()["0"]) for scoped in model.state().scoped)

    def test_a_fact_that_an_active_lesson_supersedes_is_refused_unless_it_supersedes_back(self, tmp_path: Path) -> None:
        model = grafted()
        second = learn(model, data_file(tmp_path, LATER), message="2", recipe=RECIPE, test=False)
        file = data_file(tmp_path, [FACTS[1], FACTS[0]])
        rows = model.rows()
        with pytest.raises(DataError) as caught:
            learn(model, file, message="again", recipe=RECIPE, test=False)
        assert str(caught.value) == (
            f"{file}:2: id: the lesson {second.id[:12]}, which is active, supersedes 'head' by 'new-head', so that nothing would open it; "
            "give it another id, say that it supersedes 'new-head', or revert that lesson"
        )
        assert (model.rows(), model.history.active()) == (rows, [second.id])
        back = data_file(tmp_path, [{**FACTS[0], "supersedes": "new-head"}])
        for recipe, data, again in ((EVERYWHERE, file, False), (RECIPE, file, True), (RECIPE, back, False)):
            commit = learn(model, data, message="again", recipe=recipe, test=False, again=again)
            if data is back:
                assert model.history.scoped()[commit.id] == frozenset()
            model.revert(commit.id)
        model.revert(second.id)
        assert learn(model, file, message="again", recipe=RECIPE, test=False).changes

    def test_a_superseded_fact_opens_nothing_until_its_correction_is_taken_back(self, tmp_path: Path) -> None:
        model = grafted()
        first = learn(model, data_file(tmp_path, FACTS[:2]), message="1", recipe=RECIPE, test=False)
        assert first.record["ids"] == [fact.get("id") for fact in FACTS[:2]]
        number = first.record["ids"].index(LATER[0]["supersedes"])

        def closed() -> list[bool]:
            cues = model.state().scoped[0].cues
            return [bool((cues.least[cues.facts == fact] > 1).all()) for fact in range(cues.fact_count)]

        assert closed() == [False] * 4  # two facts, as they stand and in lower case
        second = learn(model, data_file(tmp_path, LATER), message="2", recipe=RECIPE, test=False)
        assert closed() == [fact % 2 == number for fact in range(4)]
        model.save(tmp_path / "store")
        model.history = History(MemoryStore.open(tmp_path / "store"))
        model.recall()
        assert closed() == [fact % 2 == number for fact in range(4)]
        model.revert(second.id)
        assert closed() == [False] * 4

    def test_a_correction_without_an_id_of_its_own_closes_what_it_supersedes(self, tmp_path: Path) -> None:
        model = grafted()
        learn(model, data_file(tmp_path, FACTS[:2]), message="1", recipe=RECIPE, test=False)
        nameless = [{name: value for name, value in LATER[0].items() if name != "id"}]
        second = learn(model, data_file(tmp_path, nameless), message="2", recipe=RECIPE, test=False)
        assert second.record["taught"] == {"line 1": "head"}
        assert list(model.history.scoped().values()) == [{0, 2}, frozenset()]

    def test_a_lesson_with_cues_is_taught_as_it_is_read_later(self, tmp_path: Path) -> None:
        model = grafted()
        learn(model, data_file(tmp_path, FACTS[1:]), message="everywhere", recipe=EVERYWHERE, test=False)
        thresholds = []
        for recipe in (RECIPE, EVERYWHERE):
            seen: list[float] = []
            learn(
                model,
                data_file(tmp_path, FACTS[:1]),
                message=recipe.scope,
                recipe=recipe,
                test=False,
                on_step=lambda _, seen=seen: seen.append(model.layer(0).threshold),
            )
            thresholds.append(set(seen))
        assert thresholds == [{model.layer(0).threshold}, {0.0}]

    def test_a_fact_stays_closed_where_the_first_of_two_corrections_is_taken_back(self, tmp_path: Path) -> None:
        model = grafted()
        newest = [{"id": "newest", "question": "Who leads the Quill office?", "answers": ["Ann Ode"], "supersedes": "new-head"}]
        first, second, third = (
            learn(model, data_file(tmp_path, rows), message=str(number), recipe=RECIPE, test=False)
            for number, rows in enumerate((FACTS[:1], LATER, newest))
        )
        assert third.record["replaced"] == {"newest": ["head"]}
        assert "replaced" not in second.record
        model.revert(second.id)
        assert model.history.scoped() == {first.id: frozenset({0, 1}), third.id: frozenset()}
        model.save(tmp_path / "store")
        model.history = History(MemoryStore.open(tmp_path / "store"))
        assert model.history.scoped() == {first.id: frozenset({0, 1}), third.id: frozenset()}
        model.revert(third.id)
        assert model.history.scoped() == {first.id: frozenset()}

    def test_what_supersedes_nothing_is_in_the_record(self, tmp_path: Path) -> None:
        model = grafted()
        first = learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=RECIPE, test=False)
        slip = learn(model, data_file(tmp_path, [{**LATER[0], "supersedes": "haed"}]), message="2", recipe=RECIPE, test=False)
        assert slip.record["superseded_nothing"] == {"new-head": "haed"}
        assert model.history.scoped() == {first.id: frozenset(), slip.id: frozenset()}
        model.revert(slip.id)
        right = learn(model, data_file(tmp_path, LATER), message="2", recipe=RECIPE, test=False)
        assert "superseded_nothing" not in right.record

    @pytest.mark.parametrize(("message", "said"), [("", "is empty"), ("x" * 5000, "5,000 characters"), ("\ud800", "not valid UTF-8")])
    def test_a_message_that_no_store_takes_is_refused_before_anything_is_taught(self, tmp_path: Path, message: str, said: str) -> None:
        model = grafted()
        with pytest.raises(DataError, match=said):
            learn(model, data_file(tmp_path), message=message, recipe=RECIPE, on_step=lambda _: pytest.fail("taught"))
        assert model.history.active() == []

    def test_where_nothing_can_be_written_it_says_so_at_once(self, tmp_path: Path) -> None:
        model = grafted()
        file = data_file(tmp_path, FACTS[:1])
        with model.without_memory(), pytest.raises(TeachingError, match="the memory is off"):
            learn(model, file, message="1", recipe=RECIPE, test=False)
        with torch.inference_mode(), pytest.raises(TeachingError, match="inference mode"):
            learn(model, file, message="1", recipe=RECIPE, test=False)

    @pytest.mark.parametrize("taught", [5, ["head"], {"head": ["head"]}])
    def test_a_record_from_elsewhere_that_makes_no_sense_stops_no_lesson(self, tmp_path: Path, taught: Any) -> None:
        model = grafted()
        strange = learn(model, data_file(tmp_path, FACTS[1:]), message="1", recipe=RECIPE, test=False)
        model.history = History()
        model.history.learn(replace(strange, record={"taught": taught}))
        assert learn(model, data_file(tmp_path, LATER), message="2", recipe=RECIPE, test=False).changes

    def test_before_is_always_the_untouched_base(self, tmp_path: Path) -> None:
        model = grafted()
        first = learn(model, data_file(tmp_path), message="first", recipe=RECIPE)
        again = learn(model, data_file(tmp_path), message="again", recipe=RECIPE)
        assert [fact["before"] for fact in again.record["facts"]] == [fact["before"] for fact in first.record["facts"]]

    def test_lessons_survive_saving_and_loading(self, tmp_path: Path) -> None:
        model = grafted()
        first = learn(model, data_file(tmp_path), message="first", recipe=RECIPE)
        model.save(tmp_path / "store")
        second = learn(model, data_file(tmp_path, LATER, "later.jsonl"), message="second", recipe=RECIPE)
        model.save(tmp_path / "store")
        store = model.history.store
        assert store is not None
        assert store.active() == [first.id, second.id]
        assert store.commit(first.id) == first
        assert store.record(first.id)["facts"] == first.record["facts"]


class TestAnAnswerLayer:
    """Facts are read at their anchors: a model deep enough to have a block behind its memory."""

    def grafted(self) -> GraftedModel:
        return graft(tiny_model(depth=4), tiny_tokenizer(), slots=1024, top_k=4, background=TEXTS)

    def rows_of(self, model: GraftedModel) -> list[dict[str, Rows]]:
        return [scoped.tables.rows() for scoped in model.state().scoped]

    def asked(self, model: GraftedModel, batches: Sequence[TokenBatch]) -> list[Tensor]:
        """Logits of some of what was taught, and of a text about something else."""
        wordings = [batch.input_ids[0, : int(batch.attention_mask[0].sum())][None] for batch in batches]
        with torch.no_grad():
            return [model(input_ids=ids).logits for ids in (*wordings, torch.arange(1, 60).view(1, -1))]

    def test_a_lesson_is_saved_loaded_and_taken_back_to_the_bit(self, tmp_path: Path) -> None:
        folder = save_tiny_model(tmp_path / "model", depth=4)
        model = graft(folder, slots=1024, top_k=4, background=TEXTS)
        assert model.config.answer_layer == 3
        batches = batches_of(FACTS, tmp_path)
        with model.without_memory():
            base = self.asked(model, batches)
        assert all(map(torch.equal, self.asked(model, batches), base))
        commit = learn(model, data_file(tmp_path), message="m", recipe=RECIPE)
        assert commit.cues is not None
        assert commit.cues.anchors is not None
        assert commit.cues.anchors.fact_count == len(FACTS)
        assert set(commit.changes) == {ANSWERS}
        assert commit.rows <= len(commit.cues.anchors)
        assert sum(commit.record["losses"][-1]) < sum(commit.record["losses"][0])
        taught = self.asked(model, batches)
        assert not all(map(torch.equal, taught[:-1], base))
        assert torch.equal(taught[-1], base[-1])
        with model.without_memory():
            assert all(map(torch.equal, self.asked(model, batches), base))

        model.save(tmp_path / "store")
        again = load(tmp_path / "store")
        assert again.history.commit(commit.id) == commit
        assert all(map(torch.equal, self.asked(again, batches), taught))
        again.revert(commit.id)
        assert all(map(torch.equal, self.asked(again, batches), base))
        again.save(tmp_path / "store")
        assert all(map(torch.equal, self.asked(load(tmp_path / "store"), batches), base))
        model.revert(commit.id)
        assert all(map(torch.equal, self.asked(model, batches), base))

    def test_a_lesson_repeats_to_the_bit_whatever_was_taught_before(self, tmp_path: Path) -> None:
        first = learn(self.grafted(), data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        model = self.grafted()
        other = [{"question": "When did 77 boats sail to Zbrx?", "answers": ["1802"]}]
        before = learn(model, data_file(tmp_path, other, "other.jsonl"), message="other", recipe=RECIPE, test=False)
        model.revert(before.id)
        second = learn(model, data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        assert (second.changes, second.cues, second.id) == (first.changes, first.cues, first.id)

    def test_a_lesson_leaves_the_rows_of_those_before_it_alone(self, tmp_path: Path) -> None:
        model = self.grafted()
        first = learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=RECIPE, test=False)
        second = learn(model, data_file(tmp_path, FACTS[1:], "later.jsonl"), message="2", recipe=RECIPE, test=False)
        assert self.rows_of(model) == [dict(first.changes), dict(second.changes)]
        model.revert(first.id)
        assert self.rows_of(model) == [dict(second.changes)]

    def test_lessons_that_the_same_questions_read_are_named_and_share_no_slot(self, tmp_path: Path) -> None:
        model = self.grafted()
        first = learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=RECIPE, test=False)
        second = learn(model, data_file(tmp_path, FACTS[:1], "again.jsonl"), message="2", recipe=RECIPE, test=False)
        assert second.record["overlaps"] == [{"lesson": first.id, "message": "1", "shared_slots": None}]
        (overlap,) = model.revert(first.id).overlaps
        assert (overlap.commit, overlap.shared_slots, overlap.place) == (second.id, None, "in the same questions")
        assert overlap.l2 == pytest.approx(float(first.changes[ANSWERS].values.norm()))

    def test_a_correction_closes_what_it_supersedes(self, tmp_path: Path) -> None:
        model = self.grafted()
        learn(model, data_file(tmp_path, FACTS[:1]), message="1", recipe=RECIPE, test=False)
        second = learn(model, data_file(tmp_path, LATER, "later.jsonl"), message="2", recipe=RECIPE, test=False)
        assert bool((model.state().scoped[0].cues.least > 1).all())
        model.revert(second.id)
        assert not bool((model.state().scoped[0].cues.least > 1).any())

    def test_a_diff_counts_the_rows_of_anchors(self, tmp_path: Path) -> None:
        model = self.grafted()
        commit = learn(model, data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        model.save(tmp_path / "store")
        found = MemoryStore.open(tmp_path / "store").diff("start", "now").tables
        assert {name: table.rows for name, table in found.items()} == {"0": 0, ANSWERS: commit.rows}
        assert found[ANSWERS].l2 == pytest.approx(float(commit.changes[ANSWERS].values.norm()))

    @pytest.mark.parametrize("scope", ["cues", "everywhere"])
    def test_other_scopes_write_to_the_memory_layers(self, scope: str, tmp_path: Path) -> None:
        commit = learn(self.grafted(), data_file(tmp_path), message="m", recipe=RECIPE.model_copy(update={"scope": scope}), test=False)
        assert set(commit.changes) == {"0"}
        assert (commit.cues is None) == (scope == "everywhere")
        assert commit.cues is None or commit.cues.anchors is None


class TestNothingChanges:
    def test_on_ctrl_c(self, tmp_path: Path) -> None:
        model = grafted()
        learn(model, data_file(tmp_path), message="first", recipe=RECIPE, test=False)
        rows, active = model.rows(), model.history.active()

        def stop(step: Step) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn(model, data_file(tmp_path, LATER, "later.jsonl"), message="second", recipe=RECIPE, on_step=stop)
        assert model.rows() == rows
        assert model.history.active() == active

    @pytest.mark.parametrize("late", [False, True], ids=["while lessons are added up", "right after"])
    def test_on_ctrl_c_at_the_very_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
        model = grafted()
        learn(model, data_file(tmp_path), message="first", recipe=RECIPE, test=False)
        rows, state, active = model.rows(), model.state(), model.history.active()

        def recall(self: GraftedModel) -> None:
            if late:
                self.assign(self.remembered(self.history))
            raise KeyboardInterrupt

        other = data_file(tmp_path, [{"question": "Where is box 7?", "answers": ["here"]}], "later.jsonl")
        with monkeypatch.context() as patch:
            patch.setattr(GraftedModel, "recall", recall)
            with pytest.raises(KeyboardInterrupt):
                learn(model, other, message="second", recipe=RECIPE, test=False)
        assert (model.rows(), model.state(), model.history.active()) == (rows, state, active)
        model.recall()
        assert model.rows() == rows

    def test_on_ctrl_c_while_the_questions_are_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, calls = grafted(), list[int]()

        def measure(*_: Any, **__: Any) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return object()

        monkeypatch.setattr(learning, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            learn(model, data_file(tmp_path), message="m", recipe=RECIPE)
        assert not len(model.rows()["0"])
        assert model.history.active() == []

    def test_when_the_same_lesson_is_active_already(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = grafted()
        commit = learn(model, data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        model.revert(commit.id)
        model.history.learn(commit)
        rows = model.rows()
        # From the same rows and without protection, the lesson is the same once more.
        monkeypatch.setattr(learning, "effective_usage", lambda model, superseded, lessons: model.usage)
        with pytest.raises(StoreError, match="is active already"):
            learn(model, data_file(tmp_path), message="m", recipe=RECIPE, test=False)
        assert model.rows() == rows
        assert model.history.active() == [commit.id]

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            ([{"question": "Who?"}], DataError),
            ([{"messages": [{"role": "assistant", "content": "Hi"}]}], DataError),
            ([{"text": "fine"}, {"prompt": "a" * 3000, "completion": "b"}], TeachingError),
        ],
    )
    def test_when_the_data_cant_be_taught(self, tmp_path: Path, rows: list[dict[str, Any]], error: type[Exception]) -> None:
        model = grafted()
        with pytest.raises(error, match=r"line|jsonl"):
            learn(model, data_file(tmp_path, rows), message="m", recipe=RECIPE)
        assert not len(model.rows()["0"])
        assert model.history.active() == []

    def test_when_the_data_to_be_kept_is_not_what_was_read(self, tmp_path: Path) -> None:
        model, file = grafted(), data_file(tmp_path)
        with pytest.raises(DataError, match=r"facts\.jsonl: the data to be kept is not what was read .* a pipe"):
            learn(model, file, message="m", recipe=RECIPE, keep=DataFile("jsonl", b""), on_step=lambda _: pytest.fail("taught"))
        assert model.history.active() == []

    def test_when_the_loss_is_not_finite(self, tmp_path: Path) -> None:
        model = grafted()
        with pytest.raises(TeachingError, match="lower learning rate"):
            learn(
                model, data_file(tmp_path), message="m", recipe=RECIPE.model_copy(update={"writer": LeastInterference(learning_rate=1e300)})
            )
        assert not len(model.rows()["0"])
        assert model.history.active() == []


def test_a_model_learns_by_itself_what_learn_teaches_it(tmp_path: Path) -> None:
    model, same = grafted(), grafted()
    commit = model.learn(str(data_file(tmp_path)), message="m", recipe=RECIPE, test=False)
    examples: tuple[Example, ...] = read_examples(data_file(tmp_path)).examples
    assert all(isinstance(example, Fact) for example in examples)
    assert learn(same, read_examples(data_file(tmp_path)), message="m", recipe=RECIPE, test=False).id == commit.id


def test_a_lesson_records_how_many_passes_it_had(tmp_path: Path) -> None:
    texts = data_file(tmp_path, [{"text": "The lamp stood by the chair, and the ship lay in the harbour."}])
    assert grafted().learn(texts, message="a text", recipe=Recipe(ranking="tf")).recipe["passes"] == IN_LAYERS

"""Anchors against their slow twin, and the answer layer that reads them, on a random model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from memgraft.anchoring import answer_tokens, find_anchors, fit_answers
from memgraft.anchors import BEGINS, GOES_ON, KEY_DIM, Anchors, nearest
from memgraft.answer_layer import (
    BY_CHANCE,
    CLOSEST,
    FAINTEST,
    FIRMLY,
    LIKEST,
    NO_KIND,
    REACHED,
    AnswerLayer,
    Asked,
    calibrate,
    discriminants,
    expect,
    folds,
    likeness,
    measure_chance,
    relative_likeness,
    within_reason,
)
from memgraft.background import Background
from memgraft.blocks import hidden_states_before
from memgraft.commits import Commit
from memgraft.config import ANSWERS
from memgraft.cues import NEVER, Cues
from memgraft.depth import default_answer_layer
from memgraft.encoding import TokenBatch
from memgraft.entering import FrozenPrefix, frozen, parts_of
from memgraft.errors import GraftError, StoreError, TeachingError
from memgraft.expectation import LET_THROUGH
from memgraft.finding import Found
from memgraft.frames import FRAMES, load_pool, load_unknown
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.persistence import load
from memgraft.questions import asked_after_others, common_questions_asked, unknown_questions_asked, up_to_answers
from memgraft.reads import Recorder, recording
from memgraft.store import lessons
from memgraft.teaching import Recipe, read_gradients, teach
from tests.models import (
    ANSWER_LAYER,
    HIDDEN,
    graft_with_answers,
    lesson_at,
    random_batch,
    random_rows,
    random_tokens,
    save_tiny_model,
    tiny_graft,
    tiny_model,
    tiny_tokenizer,
)

DEPTH = ANSWER_LAYER + 1


def anchors_of(*counts: int, seed: int = 0) -> Anchors:
    """Random anchors of facts that have so many each; the first one of each is where an answer begins."""
    generator = torch.Generator().manual_seed(seed)
    keys = []
    for count in counts:
        for place in range(count):
            key = torch.randn(KEY_DIM, generator=generator)
            key[slice(BEGINS, KEY_DIM) if place == 0 else slice(0, BEGINS)] = 0
            keys.append(functional.normalize(key, dim=-1))
    facts = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)])
    return Anchors(torch.stack(keys), torch.full((len(keys),), 0.1), facts)


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 30), data=st.data())
def test_a_token_is_at_the_anchor_of_each_open_fact_that_it_exceeds_most(counts: list[int], seed: int, data: st.DataObject) -> None:
    anchors = anchors_of(*counts, seed=seed)
    facts = torch.tensor(data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=4, unique=True)))
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(5, KEY_DIM, generator=generator)
    queries = torch.cat([functional.normalize(part, dim=-1) for part in queries.split([BEGINS, KEY_DIM - BEGINS], dim=-1)], dim=-1)
    open_NF = torch.rand(5, len(facts), generator=generator) > 0.4
    asked = torch.rand(5, generator=generator) > 0.4
    begins = [place == 0 for count in counts for place in range(count)]
    assert anchors.begins.tolist() == begins
    meant, at, above = nearest(anchors, queries, asked, facts, open_NF)
    assert meant.tolist() == sorted(facts.tolist())
    for query, open_F, answer, found, most in zip(queries, open_NF, asked.tolist(), at.tolist(), above.tolist(), strict=True):
        expected = []
        for fact in meant.tolist():
            may = [i for i in range(len(anchors)) if int(anchors.facts[i]) == fact in facts[open_F].tolist() and (answer or not begins[i])]
            exceeded = {i: float(query @ anchors.keys[i] - anchors.least[i]) for i in may}
            best = max(exceeded, key=lambda i: exceeded[i], default=-1)
            expected.append(best if best >= 0 and exceeded[best] > 0 else -1)
            assert best < 0 or most[meant.tolist().index(fact)] == pytest.approx(exceeded[best], abs=1e-5)
        assert found == expected
    assert (above > 0).tolist() == (at >= 0).tolist()


def test_only_tokens_at_an_anchor_of_an_open_fact_change() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    with model.without_memory():
        base = model(input_ids=ids, use_cache=False).logits
        deep = hidden_states_before(model.base, model.blocks, ANSWER_LAYER, input_ids=ids)
    model.assign_rows(*reversed(lesson_at(model, ids, 4, 8)))
    taught = model(input_ids=ids, use_cache=False).logits
    assert (model.opened[0][0].int().argmax(), model.answered[0].tolist()) == (4, [[-1] * 8 + [0] + [-1] * 3])
    assert torch.equal(taught[:, :8], base[:, :8])
    assert not torch.equal(taught[:, 8:], base[:, 8:])
    # The slow twin: the row added by hand to the base model's states.
    row = model.scope(0).tables.table(ANSWERS).values[0] * 1.5
    by_hand = deep.clone()
    by_hand[0, 8] += row
    hook = model.blocks[ANSWER_LAYER].register_forward_pre_hook(lambda _, args, kwargs: ((by_hand, *args[1:]), kwargs), with_kwargs=True)
    with model.without_memory():
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, taught)
    hook.remove()


def test_where_the_subject_did_not_come_up_before_nothing_changes() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    base = model(input_ids=ids, use_cache=False).logits
    model.assign_rows(*reversed(lesson_at(model, ids, 9, 3)))
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, base)
    assert (set(model.opened), model.answered) == ({0}, {})


def test_in_parts_and_as_a_whole_the_same_tokens_read() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(14))
    model.assign_rows(*reversed(lesson_at(model, ids, 3, 10)))
    whole = model(input_ids=ids, use_cache=False).logits
    cache = DynamicCache()
    parts = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split([6, 3, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_deep_copy_and_a_loaded_state_read_their_own_rows() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    base = model(input_ids=ids, use_cache=False).logits
    copied = copy.deepcopy(model)
    model.assign_rows(*reversed(lesson_at(model, ids, 4, 8)))
    assert torch.equal(copied(input_ids=ids, use_cache=False).logits, base)
    state = model.state()
    taught = model(input_ids=ids, use_cache=False).logits
    model.assign_rows({})
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, base)
    model.assign(state)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, taught)


def test_a_superseded_fact_reads_nothing() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    base = model(input_ids=ids, use_cache=False).logits
    cues, rows = lesson_at(model, ids, 4, 8)
    closed = cues.without([0])
    assert closed.anchors is cues.anchors
    assert closed.least.tolist() == [NEVER]
    model.assign_rows(rows, closed)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, base)


def test_answers_are_cut_into_the_tokens_that_predict_them() -> None:
    ids = torch.tensor([[9, 1, 2, 3, 4], [5, 6, 7, 8, 0]])
    targets = torch.tensor([[False, False, False, True, True], [False, True, False, True, False]])
    assert list(answer_tokens(ids, targets)) == [(0, {2: (), 3: (3,)}), (1, {0: (), 2: ()})]


def test_a_fact_has_one_anchor_where_answers_begin_and_one_for_each_way_on() -> None:
    model = graft_with_answers()
    assert model.answers is not None
    model.answers.begins_share.fill_(0.75)
    model.answers.goes_on_least.fill_(0.75)
    ids = torch.tensor([[9, 1, 2, 3, 4], [5, 6, 2, 3, 7], [5, 6, 2, 3, 4]])
    targets = torch.tensor([[False, False, True, True, True]] * 3)
    hidden = torch.randn(3, 5, HIDDEN, generator=torch.Generator().manual_seed(0))
    anchors = find_anchors(model.answers, [[(ids[:1], targets[:1], hidden[:1]), (ids[1:], targets[1:], hidden[1:])]] * 2)
    assert anchors.problem() is None
    assert anchors.facts.tolist() == [0] * 4 + [1] * 4  # begins; 2 then 3; 2, 3 then 4; 2, 3 then 7
    least = model.answers.begins_least(model.answers.queries(hidden[:, 1])[:, :BEGINS])
    torch.testing.assert_close(anchors.least, torch.tensor([least, 0.75, 0.75, 0.75] * 2))
    queries = model.answers.queries(hidden[:, 1])
    queries[:, BEGINS:] = 0
    torch.testing.assert_close(anchors.keys[0], functional.normalize(queries.mean(0), dim=-1))
    last = model.answers.queries(hidden[1:2, 3])[0]
    torch.testing.assert_close(anchors.keys[3], torch.cat([torch.zeros(BEGINS), last[BEGINS:]]))


def test_where_no_answer_is_expected_a_fact_has_an_anchor_for_each_token_that_it_begins_with() -> None:
    model = graft_with_answers()
    assert model.answers is not None
    model.answers.amid_least.fill_(0.625)
    model.answers.expects.offset.fill_(-1.0)
    ids = torch.tensor([[9, 1, 2, 3], [5, 6, 2, 7], [8, 1, 4, 3]])
    targets = torch.tensor([[False, False, True, True]] * 3)
    hidden = torch.randn(3, 4, HIDDEN, generator=torch.Generator().manual_seed(0))
    anchors = find_anchors(model.answers, [[(ids, targets, hidden)]])
    assert not anchors.begins.any()
    torch.testing.assert_close(anchors.least, torch.tensor([0.625] * 2 + [0.5] * 3))  # begins with 2, with 4; 2, 3 and 2, 7 and 4, 3
    queries = model.answers.queries(hidden[:, 1])
    halves = (functional.normalize(queries[:2].mean(0)[part], dim=-1) for part in (slice(0, BEGINS), slice(BEGINS, KEY_DIM)))
    torch.testing.assert_close(anchors.keys[0], functional.normalize(torch.cat(list(halves)), dim=-1))
    torch.testing.assert_close(anchors.keys[1], functional.normalize(queries[2], dim=-1))


def taught_graft() -> tuple[GraftedModel, TokenBatch, int]:
    """A model with a lesson of one fact that is open and has an anchor for every token that predicts one of its answer."""
    model = graft_with_answers()
    assert model.answers is not None
    batch = random_batch(12, 12)
    scope = model.add_scope(opening(model, batch))
    part = batch.input_ids, batch.targets, hidden_states_before(model.base, model.blocks, ANSWER_LAYER, input_ids=batch.input_ids)
    model.anchor(scope, replace(model.scope(scope).cues, anchors=find_anchors(model.answers, [[part]])))
    return model, batch, scope


def opening(model: GraftedModel, batch: TokenBatch) -> Cues:
    """Cues of one fact, open from each sequence's second token on: whatever it is, it is one of them."""
    with model.without_memory():
        hidden = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=batch.input_ids)
    keys = model.cue_queries(hidden[:1, 1])
    return Cues(keys, torch.full((1,), 1e-3), torch.zeros(1, dtype=torch.int64))


def test_what_is_recorded_is_each_anchors_row_and_its_gradient() -> None:
    model, batch, scope = taught_graft()
    table = model.scope(scope).tables.table(ANSWERS)
    anchors = model.scope(scope).cues.anchors
    assert anchors is not None
    table.assign(random_rows(range(len(anchors)), size=0.1))
    with frozen(model), torch.enable_grad():
        for prefix in (None, FrozenPrefix(model, ANSWER_LAYER, 2**20)):
            loss, recorder = read_gradients(model, batch, 0, Recipe(), prefix, scope)
            address, gradient = recorder.of_table(model, ANSWERS)
            assert (address.weights == 1).all()
            assert len(address.slots)
            found = torch.zeros(len(anchors), HIDDEN).index_add_(0, address.slots.flatten(), gradient)
            # The slow twin: the gradient of the table's values.
            values = table.values.clone().requires_grad_(True)
            table.values = values
            with recording(model, Recorder(), batch.attention_mask, None, scope):
                logits = model.base(input_ids=batch.input_ids, use_cache=False).logits[:, :-1][batch.targets[:, 1:]]
            expected = functional.cross_entropy(logits, batch.input_ids[:, 1:][batch.targets[:, 1:]])
            expected.backward()
            table.values = values.detach()
            torch.testing.assert_close(loss, expected.item(), rtol=1e-5, atol=0)
            torch.testing.assert_close(found, values.grad, rtol=1e-3, atol=1e-6)


def test_what_is_computed_together_is_what_each_part_has_alone() -> None:
    model, batch, _ = taught_graft()
    batches = [batch, random_batch(7, 12, seed=1), random_batch(3, 2, seed=2)]
    parts = [part for each in batches for part in parts_of(each, 8192, model.device)]
    keys = [(0, number) for number in range(len(parts))]
    alone = FrozenPrefix(model, ANSWER_LAYER, 2**20)
    for limit in (1, 30, 8192):
        together = FrozenPrefix(model, ANSWER_LAYER, 2**20)
        for key, part, entered in zip(keys, parts, together.entered_together(keys, parts, limit), strict=True):
            expected = alone.entered(key, part.ids, part.mask)
            torch.testing.assert_close(entered.hidden_states[part.mask], expected.hidden_states[part.mask])
            assert entered.open.keys() == expected.open.keys()
            for number, opened in entered.open.items():
                assert torch.equal(opened.facts, expected.open[number].facts)
                assert torch.equal(opened.tokens[part.mask], expected.open[number].tokens[part.mask])
        assert together.budget == alone.budget
        assert together.kept.keys() == alone.kept.keys()
    assert all(entered.open for entered in alone.kept.values())


def teach_answers(monkeypatch: pytest.MonkeyPatch, model: GraftedModel, batches: list[TokenBatch], **recipe: object) -> object:
    cues = Cues.joined([opening(model, batch) for batch in batches], model.config.query_dim)
    monkeypatch.setattr("memgraft.teaching.find_cues", lambda *_: Found(cues, [[1]] * len(batches)))
    return teach(model, batches, Recipe(ranking="tf", **{"passes": 4, **recipe}))


def test_teaching_lowers_the_loss_by_rows_of_its_anchors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graft_with_answers()
    lesson = teach_answers(monkeypatch, model, [random_batch(12, 14), random_batch(13, 11, seed=1)])
    assert lesson.losses[-1][0] < lesson.losses[0][0]
    assert set(lesson.changes) == {ANSWERS}
    assert lesson.cues is not None
    anchors = lesson.cues.cues.anchors
    assert anchors is not None
    assert int(lesson.changes[ANSWERS].slots.max()) < len(anchors)
    assert not any(len(rows) for rows in model.tables.rows().values())


def test_teaching_repeats_exactly_with_states_kept_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [random_batch(12, 14), random_batch(13, 11, seed=1)]
    first, second, uncached = (teach_answers(monkeypatch, graft_with_answers(), batches, cache_bytes=size) for size in (2**20, 2**20, 0))
    assert first.changes == second.changes == uncached.changes
    assert first.cues == second.cues == uncached.cues


def test_a_model_that_cant_start_at_a_block_is_taught_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [random_batch(12, 14), random_batch(13, 11, seed=1)]
    expected = teach_answers(monkeypatch, graft_with_answers(), batches)
    monkeypatch.setattr("memgraft.teaching.can_start_at", lambda *_: False)
    lesson = teach_answers(monkeypatch, graft_with_answers(), batches)
    assert torch.equal(lesson.changes[ANSWERS].slots, expected.changes[ANSWERS].slots)
    torch.testing.assert_close(lesson.changes[ANSWERS].values, expected.changes[ANSWERS].values, rtol=1e-3, atol=1e-4)


def test_where_there_is_no_answer_layer_a_lesson_is_read_after_its_cues(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_graft(tiny_model(depth=DEPTH))
    lesson = teach_answers(monkeypatch, model, [random_batch(12, 14)])
    assert lesson.cues is not None
    assert lesson.cues.cues.anchors is None
    assert set(lesson.changes) == {"0"}


def test_a_lesson_that_is_not_finite_leaves_the_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graft_with_answers()
    monkeypatch.setattr("memgraft.teaching.row_changes", lambda *args, **_: torch.full((len(args[3]), HIDDEN), torch.nan))
    with pytest.raises(TeachingError, match="rows of table answers would not be finite"):
        teach_answers(monkeypatch, model, [random_batch(12, 14)])
    assert not len(model.scoped)


def test_a_lesson_with_anchors_survives_its_file() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    cues, rows = lesson_at(model, ids, 4, 8)
    commit = Commit(rows, "a lesson", {}, "0" * 64, cues=cues)
    data, header, _ = lessons.encode(commit, model.config, "here")
    content = lessons.decode(data, model.config, "here")
    assert (content.changes, content.cues) == (dict(rows), cues)
    assert lessons.decode_header(header, "here")["format_version"] == 4
    assert replace(commit, cues=replace(cues, anchors=None)).id != commit.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.ones(1, KEY_DIM)}, "keys must have unit length"),
        ({"keys": torch.ones(1, 3)}, "keys must be"),
        ({"least": torch.tensor([0.0])}, "least must be more than 0"),
        ({"least": torch.tensor([torch.nan])}, "least are not finite"),
        ({"facts": torch.tensor([1])}, "facts must count up from 0"),
    ],
)
def test_anchors_that_cant_be_are_refused(change: dict[str, Tensor], message: str) -> None:
    model = graft_with_answers()
    cues, rows = lesson_at(model, torch.tensor(random_tokens(12)), 4, 8)
    assert cues.anchors is not None
    broken = replace(cues, anchors=replace(cues.anchors, **change))
    with pytest.raises(StoreError, match=f"cues: anchors: {message}"):
        lessons.encode(Commit(rows, "a lesson", {}, "0" * 64, cues=broken), model.config, "here")


def test_anchors_of_other_facts_than_the_cues_are_refused() -> None:
    model = graft_with_answers()
    cues, rows = lesson_at(model, torch.tensor(random_tokens(12)), 4, 8)
    broken = replace(cues, anchors=anchors_of(1, 1, 1))
    with pytest.raises(StoreError, match="anchors: they are of 3 facts, the cues of 1"):
        lessons.encode(Commit(rows, "a lesson", {}, "0" * 64, cues=broken), model.config, "here")


def test_rows_without_an_anchor_and_anchors_without_a_layer_are_refused() -> None:
    model = graft_with_answers()
    cues, rows = lesson_at(model, torch.tensor(random_tokens(12)), 4, 8)
    config = model.config
    for where, commit, message in (
        (config, Commit({ANSWERS: random_rows([1])}, "", {}, "", cues=cues), r"slots must lie in \[0, 1\)"),
        (config, Commit(rows, "", {}, "", cues=replace(cues, anchors=None)), "no such table, the lesson has no anchors"),
        (config, Commit({"0": random_rows([1])}, "", {}, "", cues=cues), "no such table, the lesson has anchors"),
        (config.model_copy(update={"answer_layer": None}), Commit(rows, "", {}, "", cues=cues), "the memory has no answer layer"),
    ):
        with pytest.raises(StoreError, match=message):
            lessons.encode(commit, where, "here")


@pytest.mark.parametrize("at_once", [0, 5, 1 << 24])
def test_anchors_meet_where_a_token_may_be_at_one_of_both(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memgraft.anchors.AT_ONCE", at_once)
    one, other = anchors_of(2, 3), anchors_of(1, 2, seed=1)
    high = max(float(a @ b) for a in one.keys for b in other.keys)
    for least, meets in ((high - 0.01, True), (high + 0.01, False)):
        strict, lax = replace(one, least=one.least.fill_(0.99)), replace(other, least=torch.full_like(other.least, least))
        assert strict.meets(lax) == lax.meets(strict) == meets
    assert one.meets(one)


def test_lessons_meet_where_cues_and_anchors_do() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    cues, other = lesson_at(model, ids, 4, 8)[0], lesson_at(model, ids, 4, 6)[0]
    assert cues.meets(cues)
    assert not cues.meets(other)
    assert cues.meets(replace(other, anchors=None))


def test_the_default_layer_lies_behind_the_memory_or_there_is_none() -> None:
    assert default_answer_layer(30, (10,)) == 22
    assert default_answer_layer(24, (8,)) == 18
    assert default_answer_layer(30, (10, 25)) is None
    assert default_answer_layer(1, (0,)) is None
    tiny = tiny_model(depth=DEPTH)
    with pytest.raises(GraftError, match="answer_layer must lie behind the memory layers"):
        graft(tiny, tiny_graft(tiny).tokenizer, layers=[2], answer_layer=1, background=["a text"], slots=64)


def test_a_graft_is_saved_and_loaded_with_its_answer_layer(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", depth=DEPTH)
    model = graft(folder, background=["The ship left the harbour at dawn.", "A lamp stood by the chair."], slots=64)
    assert model.config.answer_layer == ANSWER_LAYER
    model.save(tmp_path / "store")
    loaded = load(tmp_path / "store")
    assert loaded.memory_tensors().keys() == model.memory_tensors().keys()
    assert all(torch.equal(tensor, loaded.memory_tensors()[name]) for name, tensor in model.memory_tensors().items())
    assert model.answers is not None
    assert float(model.answers.begins_projection.abs().sum()) > 0
    assert FAINTEST <= float(model.answers.begins_share) <= 1
    assert FAINTEST <= float(model.answers.goes_on_least) < 1
    assert bool(model.answers.expects.precisions.all())


def test_a_chat_template_that_refuses_conversations_is_left_out() -> None:
    model = tiny_graft(tiny_model(depth=DEPTH), answer_layer=ANSWER_LAYER)
    without = [each.forms.name for each in common_questions_asked(model.tokenizer, 2048)]
    model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert [each.forms.name for each in common_questions_asked(model.tokenizer, 2048)] == without


@pytest.mark.parametrize("tokens", [8, 110])  # no question, and one or two
def test_a_context_too_short_for_enough_questions_is_refused(tokens: int) -> None:
    model = tiny_graft(tiny_model(depth=DEPTH, max_position_embeddings=tokens), answer_layer=ANSWER_LAYER)
    with pytest.raises(GraftError, match="context is too short"):
        fit_answers(model, seed=0)
    texts = ["The ship left the harbour at dawn.", "A lamp stood by the chair."]
    assert graft(model.detach(), model.tokenizer, background=texts, slots=64).config.answer_layer is None


def test_tokens_within_answers_are_looked_at_after_other_questions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_graft(tiny_model(depth=DEPTH), answer_layer=ANSWER_LAYER)
    model.background = Background(("The ship left the harbour at dawn. " * 9,), "texts", 0, 400, 64)
    sets: list[Asked] = []
    monkeypatch.setattr("memgraft.anchoring.calibrate", lambda layer, begins, goes_on, *_, **__: sets.extend(goes_on))
    fit_answers(model, seed=0)
    plainly, after = sets
    assert torch.equal(after.hidden_ED[~after.plain], plainly.hidden_ED[~plainly.plain])
    assert torch.equal(after.groups[~after.plain], plainly.groups[~plainly.plain])
    found = []
    for _, batch in asked_after_others(model.tokenizer, 4096, seed=0):
        hidden = hidden_states_before(model.base, model.blocks, ANSWER_LAYER, input_ids=batch.input_ids)[0]
        marks = batch.targets[0].tolist()
        found += [hidden[place] for place in range(len(marks) - 1) if marks[place] and marks[place + 1]]
    assert 0 < int(after.plain.sum()) <= len(found)  # answers that are other tokens in this form than in those of the first set are none
    cosines = functional.normalize(after.hidden_ED[after.plain], dim=-1) @ functional.normalize(torch.stack(found), dim=-1).T
    assert bool((cosines.amax(1) > 1 - 1e-4).all())


def asked(questions: int, forms: int, spread: float, *, width: int = 96, seed: int = 0) -> Asked:
    """States of questions that differ in a few directions, each asked in forms that differ in others, half of them plain."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(questions).repeat_interleave(forms)
    plain = torch.arange(forms).repeat(questions) >= forms // 2
    content = torch.randn(questions, width // 2, generator=generator)[groups]
    form = spread * torch.randn(len(groups), width // 2, generator=generator)
    noise = 0.1 * spread * torch.randn(len(groups), width // 2, generator=generator)
    return Asked(torch.cat([content + noise, form], -1), groups, plain, torch.full_like(groups, NO_KIND))


@pytest.mark.usefixtures("all_unknown_subjects")
def test_nothing_is_fitted_to_the_frame_that_is_kept_for_testing() -> None:
    tokenizer = tiny_tokenizer()
    after = [str(tokenizer.decode(up_to_answers(batch)[0])) for _, batch in asked_after_others(tokenizer, 4096, seed=0)]
    forms = [
        str(tokenizer.decode(ids[mask]))
        for _, _, batch, *_ in (*common_questions_asked(tokenizer, 4096), *unknown_questions_asked(tokenizer, 4096))
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert len(after) == len(load_pool("contexts"))
    assert not [text for text in (*after, *forms) if "Question:" in text]
    assert sum(text.rstrip().endswith("\nA:") for text in after) == len(after) // len(FRAMES), "what comes next is the answer"


def test_likeness_is_the_cosine_with_the_mean_of_the_taught_forms() -> None:
    tokens = asked(5, 4, 1.0)
    tokens.plain[:4] = True  # the first question has no taught form, and is left out
    mean, projection = torch.randn(96), torch.randn(96, 7)
    slow = []
    for number, (group, plain) in enumerate(zip(tokens.groups, tokens.plain, strict=True)):
        if plain and group > 0:
            taught = [i for i in range(len(tokens.groups)) if tokens.groups[i] == group and not tokens.plain[i]]
            queries = functional.normalize((tokens.hidden_ED[[number, *taught]] - mean) @ projection, dim=-1)
            slow.append(functional.cosine_similarity(queries[0], queries[1:].mean(0), dim=0))
    torch.testing.assert_close(likeness(tokens, mean, projection), torch.stack(slow))


def test_relative_likeness_is_a_share_of_how_alike_the_taught_forms_are() -> None:
    tokens = asked(5, 6, 1.0)
    tokens.plain[:6] = torch.tensor([False] + [True] * 5)  # the first question has one taught form, and is left out
    mean, projection = torch.randn(96), torch.randn(96, 7)
    slow = []
    for number, (group, plain) in enumerate(zip(tokens.groups, tokens.plain, strict=True)):
        taught = (tokens.hidden_ED[(tokens.groups == group) & ~tokens.plain] - mean) @ projection
        if plain and len(taught) > 1:
            token = (tokens.hidden_ED[number] - mean) @ projection
            of_two = torch.stack([functional.cosine_similarity(a, b, dim=0) for i, a in enumerate(taught) for b in taught[:i]]).mean()
            slow.append(functional.cosine_similarity(token, taught).mean() / of_two.clamp_min(FAINTEST))
    shares, alike = relative_likeness(tokens, mean, projection)
    torch.testing.assert_close(shares, torch.stack(slow))
    assert len(alike) == 4


@pytest.mark.parametrize("count", [2, 5, 40])
def test_a_token_is_at_a_facts_anchor_by_how_like_its_wordings_it_is_whatever_their_number(count: int) -> None:
    layer = AnswerLayer(96)
    queries = functional.normalize(torch.randn(count, BEGINS) + 1.0, dim=-1)
    token = functional.normalize(torch.randn(BEGINS) + 1.0, dim=-1)
    least = layer.begins_least(queries)
    of_two = float((queries @ queries.T)[~torch.eye(count, dtype=torch.bool)].mean())
    assert (float(token @ functional.normalize(queries.mean(0), dim=-1)) > least) == (float((queries @ token).mean()) > 0.8 * of_two)
    assert least == pytest.approx(0.8 * of_two / float(queries.mean(0).norm()), rel=1e-4)


def test_one_wording_is_taken_to_be_as_like_others_as_those_of_common_questions() -> None:
    layer = AnswerLayer(96)
    assert layer.begins_least(functional.normalize(torch.randn(1, BEGINS), dim=-1)) == pytest.approx(0.4)
    assert layer.begins_least(torch.cat([torch.eye(BEGINS), -torch.eye(BEGINS)])) == FAINTEST  # alike in nothing


def test_what_is_heard_is_measured_where_nothing_was_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memgraft.answer_layer.LIKEST", 2.0)
    layer = AnswerLayer(96)
    tokens = torch.randn(300, 96)
    calibrate(layer, asked(40, 6, 0.1), [asked(40, 6, 0.1)], tokens, seed=0)
    near = float(layer.alike)
    calibrate(layer, asked(40, 6, 3.0), [asked(40, 6, 3.0)], tokens, seed=0)
    assert 0 < float(layer.alike) < near  # forms that differ more are less alike
    fresh, _ = relative_likeness(asked(40, 6, 3.0, seed=1), layer.begins_mean, layer.begins_projection)
    assert float((fresh >= layer.begins_share).float().mean()) == pytest.approx(REACHED, abs=0.06)
    assert layer.goes_on_projection.shape == (96, GOES_ON)
    monkeypatch.setattr("memgraft.answer_layer.LIKEST", LIKEST)
    calibrate(layer, asked(40, 6, 3.0), [asked(40, 6, 3.0)], tokens, seed=0)
    assert float(layer.begins_share) == pytest.approx(LIKEST)


def test_of_each_set_of_forms_enough_tokens_within_answers_are_let_through() -> None:
    tokens, near, far = torch.randn(300, 96), asked(40, 6, 0.3), asked(40, 6, 0.5)
    layers = {}
    for name, sets in {"near": [near], "far": [far], "both": [near, far], "neither": [asked(0, 1, 1.0)]}.items():
        layers[name] = AnswerLayer(96)
        calibrate(layers[name], near, sets, tokens, seed=0)
    least = {name: float(layer.goes_on_least) for name, layer in layers.items()}
    assert FIRMLY < least["far"] < least["near"] < CLOSEST
    assert least["both"] == least["far"]
    assert least["neither"] == 0.5  # as before it was fitted
    assert torch.equal(layers["both"].begins_projection, layers["near"].begins_projection)


def test_shares_are_measured_on_unknown_subjects_a_kind_left_out_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memgraft.answer_layer.LIKEST", 2.0)
    common, unknown = asked(40, 6, 3.0), asked(30, 6, 0.5, seed=3)
    unknown = unknown._replace(groups=unknown.groups + 40, kinds=unknown.groups % 3)
    begins = Asked(*(torch.cat(each) for each in zip(common, unknown, strict=True)))
    for kind, (seen, left_out) in enumerate(folds(begins)):
        assert set(left_out.kinds.tolist()) == {kind}
        assert set(seen.kinds.tolist()) == {NO_KIND, 0, 1, 2} - {kind}
    shares = torch.cat([relative_likeness(left_out, *discriminants(seen))[0] for seen, left_out in folds(begins)])
    assert len(shares) == int(unknown.plain.sum())
    layer = AnswerLayer(96)
    calibrate(layer, begins, [common], torch.randn(300, 96), seed=0)
    assert float(layer.begins_share) == pytest.approx(float(shares.quantile(1 - REACHED)))
    assert torch.equal(layer.begins_projection, discriminants(begins)[1])  # both kinds of questions show directions
    assert len(list(folds(common))) == 4  # without unknown ones the common ones are left out in turn


@pytest.mark.usefixtures("all_unknown_subjects")
def test_questions_about_unknown_subjects_are_asked_of_each_and_numbered_on() -> None:
    tokenizer = tiny_tokenizer()
    common = [each.number for each in common_questions_asked(tokenizer, 4096)]
    found = list(unknown_questions_asked(tokenizer, 4096))
    assert [*common, *(each.number for each in found)] == list(range(1, len(common) + len(found) + 1))
    assert len(found) == sum(len(subjects.names) * len(subjects.questions) for subjects in load_unknown())
    assert {each.kind for each in found} == set(range(len(load_unknown())))
    assert all(question.count("{s}") == 1 for subjects in load_unknown() for question in subjects.questions)


def test_what_an_answer_is_expected_behind_is_measured_where_nothing_was_fitted() -> None:
    layer = AnswerLayer(96)
    texts = asked(40, 9, 1.0, seed=2)
    elsewhere = texts._replace(hidden_ED=texts.hidden_ED - 1.5)
    assert layer.expects(elsewhere.hidden_ED).all()  # not fitted yet
    expect(layer, asked(40, 6, 1.0), elsewhere)
    assert not layer.expects(elsewhere.hidden_ED).any()
    fresh = asked(400, 2, 1.0, seed=5)
    assert float(layer.expects(fresh.hidden_ED[fresh.plain]).float().mean()) == pytest.approx(LET_THROUGH, abs=0.02)


def test_few_pairs_of_tokens_of_different_texts_are_as_alike_as_tokens_within_statements_must_be() -> None:
    layer = AnswerLayer(96)
    layer.expects.offset.fill_(-1.0)
    tokens = asked(9, 40, 1.0)
    calibrate(layer, asked(40, 6, 1.0), [asked(40, 6, 1.0)], tokens.hidden_ED, seed=0)
    measure_chance(layer, tokens.hidden_ED.split(40))
    # The slow twin: of all pairs, as a query and a key of unit length.
    queries = layer.queries(tokens.hidden_ED)
    above = [
        float(one @ functional.normalize(other, dim=-1) > layer.amid_least)
        for i, one in enumerate(queries)
        for j, other in enumerate(queries)
        if tokens.groups[i] != tokens.groups[j]
    ]
    assert sum(above) / len(above) == pytest.approx(BY_CHANCE, rel=0.05)
    assert FAINTEST < float(layer.amid_least) < CLOSEST


def test_nothing_to_measure_leaves_one_half() -> None:
    assert [within_reason(cosine) for cosine in (-0.5, 0.5, 1.0)] == [FAINTEST, 0.5, CLOSEST]
    layer, none = AnswerLayer(96), asked(0, 1, 1.0)
    calibrate(layer, asked(1, 4, 0.1), [none], torch.randn(50, 96), seed=0)
    expect(layer, asked(1, 4, 0.1), none)
    measure_chance(layer, [])
    assert (float(layer.begins_share), float(layer.alike), float(layer.goes_on_least), float(layer.amid_least)) == pytest.approx(
        (0.8, 0.5, 0.5, 0.5)
    )
    assert layer.expects(torch.randn(9, 96)).all()


def test_anchors_move_with_the_model_and_no_dtype_is_forced_on_a_memory() -> None:
    model = graft_with_answers()
    cues, rows = lesson_at(model, torch.tensor(random_tokens(10)), 3, 6)
    model.assign_rows(rows, cues)
    with pytest.raises(GraftError, match="give the dtype to graft"):
        tiny_graft(tiny_model(dtype=torch.bfloat16)).float()
    for change in (torch.bfloat16, torch.float64):
        with pytest.raises(GraftError, match="give the dtype to graft"):
            model.to(change)
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    model.to("meta")
    anchors = model.scope(0).cues.anchors
    assert anchors is not None
    assert {anchors.keys.device.type, model.scope(0).tables.table(ANSWERS).values.device.type} == {"meta"}


def test_a_base_model_that_was_moved_without_its_memory_is_refused() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(10))
    cues, rows = lesson_at(model, ids, 3, 6)
    model.assign_rows(rows, cues)
    model.base.to("meta")
    with pytest.raises(GraftError, match=r"the base model is on meta, its memory on cpu: move both with to\(\)"):
        model(ids.to("meta"))
    with model.without_memory():
        assert model(ids.to("meta")).logits.is_meta

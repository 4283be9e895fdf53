"""The teaching loop: only chosen rows move, a lesson repeats to the bit, and whatever stops it leaves everything as it was."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memgraft.commits import Commit, Rows
from memgraft.encoding import TokenBatch, joined
from memgraft.entering import FrozenPrefix, frozen
from memgraft.errors import TeachingError
from memgraft.grafted import GraftedModel
from memgraft.pruning import difference, keep_largest
from memgraft.reads import Recorder
from memgraft.teaching import AT_ANCHORS, IN_LAYERS, Recipe, Step, check_loss, read_gradients, target_logits, teach
from memgraft.usage import merge_taught
from memgraft.writers import SGD, Adam, LeastInterference, Writer
from tests.models import (
    ARCHITECTURES,
    VOCABULARY,
    count_random_usage,
    dense,
    fill,
    random_batch,
    random_rows,
    random_tokens,
    tiny_graft,
    tiny_model,
    token_rows,
)

WRITERS: dict[str, Writer] = {
    "sgd": SGD(learning_rate=30.0),
    "adam": Adam(learning_rate=0.1),
    "least-interference": LeastInterference(learning_rate=30.0, max_step=None, background_weight=1.0, ridge=1.0),
}


def some_batches() -> list[TokenBatch]:
    return [random_batch(9, 5, 8, name="first", seed=1), random_batch(7, 7, name="second", seed=2), random_batch(12, name="third", seed=3)]


def graft_with_usage(**settings: Any) -> GraftedModel:
    model = tiny_graft(**{"layers": (1,), "slots": 256, **settings})
    model.usage = count_random_usage(model)
    return model


def recipe(**settings: Any) -> Recipe:
    return Recipe.model_validate({"t": 20, "passes": 2, "rows": None, "writer": WRITERS["sgd"], **settings})


def bits(rows: Rows, slots: int) -> Tensor:
    return dense(rows, slots).view(torch.int32)


def same_rows(first: dict[str, Rows], second: dict[str, Rows]) -> bool:
    return first.keys() == second.keys() and all(first[name] == second[name] for name in first)


class TestRows:
    @settings(max_examples=25)
    @given(
        writer=st.sampled_from([*WRITERS.values(), SGD(learning_rate=3.0, max_norm=0.01), Adam(learning_rate=0.1, max_norm=0.01)]),
        ranking=st.sampled_from(["tfidf", "kl", "kl-accesses", "tf", "all", "random"]),
        t=st.sampled_from([5, 40, None]),
        micro_batch_tokens=st.sampled_from([1, 20, 10_000]),
        layers=st.sampled_from([{"layers": (1,)}, {"layers": (0, 1)}, {"layers": (0, 1), "shared_values": True}]),
        seed=st.integers(0, 100),
    )
    def test_that_were_not_chosen_keep_their_bits(
        self, writer: Writer, ranking: str, t: int | None, micro_batch_tokens: int, layers: dict[str, Any], seed: int
    ) -> None:
        model = fill(graft_with_usage(**layers), every=3)
        batches, states = some_batches(), [model.rows()]
        chosen_by = recipe(writer=writer, ranking=ranking, t=t, micro_batch_tokens=micro_batch_tokens, passes=1, seed=seed)
        taught: list[str] = []

        def take_note(step: Step) -> None:
            taught.append(step.name)
            states.append(model.rows())

        lesson = teach(model, batches, chosen_by, on_step=take_note)
        assert sorted(taught) == ["first", "second", "third"]
        any_moved = False
        for name, (before, after) in zip(taught, itertools.pairwise(states), strict=True):
            index = [batch.name for batch in batches].index(name)
            for table in model.config.tables:
                chosen = lesson.batch_slots[table][index]
                moved = (bits(before[table], 256) != bits(after[table], 256)).any(-1)
                assert not moved[~torch.isin(torch.arange(256), chosen)].any()
                assert torch.isin(after[table].slots, torch.cat([before[table].slots, chosen])).all()
                assert t is None or len(chosen) <= t
                any_moved |= bool(moved.any())
        assert any_moved

    @pytest.mark.parametrize("writer", WRITERS)
    def test_of_one_batch_dont_drift_while_others_are_taught(self, writer: str) -> None:
        """Momentum and decay must not reach rows that an earlier step chose."""
        model, batches, states = graft_with_usage(), some_batches(), list[tuple[str, Rows]]()
        lesson = teach(
            model,
            batches,
            recipe(writer=WRITERS[writer], passes=3, t=10),
            on_step=lambda step: states.append((step.name, model.rows()["0"])),
        )
        chosen = {batch.name: slots for batch, slots in zip(batches, lesson.batch_slots["0"], strict=True)}
        drifting = 0
        for (_, before), (name, after) in itertools.pairwise(states):
            others = torch.ones(256, dtype=torch.bool)
            others[chosen[name]] = False
            assert torch.equal(bits(before, 256)[others], bits(after, 256)[others])
            drifting += int(torch.isin(before.slots, others.nonzero()).sum())
        assert drifting > 0  # there were rows that could have moved

    def test_written_by_micro_batches_are_those_of_the_whole_batch(self) -> None:
        lessons = []
        for limit in (1, 10_000):
            model = fill(graft_with_usage(layers=(0,)), every=3)
            lessons.append(teach(model, some_batches(), recipe(micro_batch_tokens=limit, passes=1)))
        cut, whole = lessons
        for index in range(3):
            assert torch.equal(cut.batch_slots["0"][index], whole.batch_slots["0"][index])
            assert len(cut.batch_slots["0"][index]) == 20
        torch.testing.assert_close(cut.changes["0"].values, whole.changes["0"].values, atol=1e-5, rtol=1e-3)

    def test_dont_depend_on_padding(self) -> None:
        def widened(batch: TokenBatch) -> TokenBatch:
            pad = torch.nn.functional.pad
            wide = (0, 17)
            return TokenBatch(batch.name, pad(batch.input_ids, wide, value=9), pad(batch.attention_mask, wide), pad(batch.targets, wide))

        lessons = [
            teach(graft_with_usage(), batches, recipe()) for batches in (some_batches(), [widened(batch) for batch in some_batches()])
        ]
        assert same_rows(lessons[0].changes, lessons[1].changes)

    def test_read_by_context_alone_are_neither_counted_nor_written(self) -> None:
        (batch,) = some_batches()[:1]
        own = torch.zeros_like(batch.attention_mask)
        own[:, 1:4] = True
        model = graft_with_usage(layers=(0,))  # hidden states are embeddings: a token's reads don't depend on its context
        with frozen(model):
            embedded = model.base.get_input_embeddings()(batch.input_ids[own])
        expected = model.layer(0).address(embedded).slots
        lesson = teach(model, [dataclasses.replace(batch, writable=own)], recipe(t=None, ranking="all"))
        assert torch.equal(lesson.batch_slots["0"][0], expected.unique())
        everything = teach(graft_with_usage(layers=(0,)), [batch], recipe(t=None, ranking="all"))
        assert len(everything.batch_slots["0"][0]) > len(lesson.batch_slots["0"][0])

    @pytest.mark.parametrize("ranking", ["all", "tf", "tfidf", "random"])
    def test_read_only_where_no_gradient_arrives_take_no_part_of_the_budget(self, ranking: str) -> None:
        batch, model = some_batches()[0], graft_with_usage(layers=(0,))  # hidden states are embeddings
        last = torch.zeros_like(batch.attention_mask)
        last[torch.arange(len(batch)), batch.attention_mask.sum(-1) - 1] = True  # predicts nothing
        with frozen(model):
            before, at_the_end = (
                model.layer(0).address(model.base.get_input_embeddings()(batch.input_ids[mask])).slots.unique()
                for mask in (batch.attention_mask & ~last, last)
            )
        assert not torch.isin(at_the_end, before).all()
        if ranking == "tfidf":
            background = model.usage["0"]
            used_by_all = background.slots[background.document_frequency == background.batches]
            before = before[~torch.isin(before, used_by_all)]
        lesson = teach(model, [batch], recipe(t=len(before), ranking=ranking, passes=1))
        assert torch.equal(lesson.batch_slots["0"][0], before)

    def test_that_every_background_batch_reads_are_not_written_under_tfidf(self) -> None:
        model = graft_with_usage()
        open_to_all = teach(copy.deepcopy(model), some_batches(), recipe(t=None)).changes["0"].slots
        protected = open_to_all[::2]
        usage = {"0": merge_taught(model.usage["0"], [protected])}
        written = teach(model, some_batches(), recipe(t=None), usage).changes["0"].slots
        assert len(protected) > 10
        assert not torch.isin(written, protected).any()
        assert torch.isin(written, open_to_all).all()
        assert len(written) > 10

    def test_hold_the_sum_of_what_was_there_and_the_lesson(self) -> None:
        model = fill(graft_with_usage(), every=3)
        before = model.rows()["0"]
        lesson = teach(model, some_batches(), recipe())
        after = dense(before, 256) + dense(lesson.changes["0"], 256)
        torch.testing.assert_close(after, dense(model.rows()["0"], 256))
        assert (lesson.changes["0"].values != 0).any(-1).all()

    def test_that_did_not_change_are_not_part_of_the_difference(self) -> None:
        before = random_rows([1, 4])
        after = Rows(torch.tensor([1, 2, 3, 4]), torch.stack([before.values[0], torch.ones(32), torch.zeros(32), before.values[1] + 1]))
        change = difference(after, before)
        assert change.slots.tolist() == [2, 4]
        assert torch.equal(change.values, torch.stack([torch.ones(32), before.values[1] + 1 - before.values[1]]))


class TestALesson:
    @pytest.mark.parametrize("writer", WRITERS)
    @pytest.mark.parametrize("layers", [{"layers": (1,)}, {"layers": (0, 1), "shared_values": True, "gate": "swilu"}])
    def test_lowers_the_loss(self, writer: str, layers: dict[str, Any]) -> None:
        lesson = teach(graft_with_usage(**layers), some_batches(), recipe(writer=WRITERS[writer], passes=6, t=100))
        assert all(last < 0.8 * first for first, last in zip(lesson.losses[0], lesson.losses[-1], strict=True))

    @pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj", "rwkv"])
    def test_lowers_the_loss_of_any_architecture(self, name: str) -> None:
        model = tiny_graft(tiny_model(name, depth=6), layers=(5,), slots=256)
        model.usage = count_random_usage(model)
        lesson = teach(model, some_batches()[:1], recipe(writer=WRITERS["least-interference"], passes=4, t=100))
        assert lesson.losses[-1][0] < 0.95 * lesson.losses[0][0]

    def test_reports_the_mean_loss_over_the_target_tokens(self) -> None:
        model, batch = graft_with_usage(), some_batches()[0]
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        wanted = [-logits[row, at - 1].log_softmax(-1)[batch.input_ids[row, at]].item() for row, at in batch.targets.nonzero().tolist()]
        assert len(wanted) == 9
        assert teach(model, [batch], recipe()).losses[0][0] == pytest.approx(sum(wanted) / 9, rel=1e-5)

    def test_takes_the_batches_in_another_order_in_each_pass_and_tells_each_step(self) -> None:
        steps: list[Step] = []
        lesson = teach(graft_with_usage(), some_batches(), recipe(passes=8), on_step=steps.append)
        orders = {tuple(step.name for step in steps[start : start + 3]) for start in range(0, 24, 3)}
        assert all(sorted(order) == ["first", "second", "third"] for order in orders)
        assert len(orders) > 1
        assert [(step.done, step.total) for step in steps] == [(number, 24) for number in range(1, 25)]
        assert [step.loss for step in steps[:3] if step.name == "second"] == [lesson.losses[0][1]]

    @pytest.mark.parametrize("writer", WRITERS)
    def test_teaches_the_rounds_of_a_batch_in_turn_a_pass_each(self, writer: str) -> None:
        rounds = [random_batch(9, 5, seed=1), random_batch(7, seed=2), random_batch(12, 11, seed=3)]
        steps = recipe(writer=WRITERS[writer], passes=1)
        expected = graft_with_usage()
        one_by_one = [teach(expected, [batch], steps) for batch in (*rounds, rounds[0])]
        model = graft_with_usage()
        lesson = teach(model, [joined(rounds)], recipe(writer=WRITERS[writer], passes=4))
        if writer != "adam":  # whose moments live as long as a lesson
            assert lesson.losses == [part.losses[0] for part in one_by_one]
            assert same_rows(model.rows(), expected.rows())
        assert torch.equal(lesson.batch_slots["0"][0], torch.cat([part.batch_slots["0"][0] for part in one_by_one]).unique())
        uncached = teach(graft_with_usage(), [joined(rounds)], recipe(writer=WRITERS[writer], passes=4, cache_bytes=0))
        assert same_rows(uncached.changes, lesson.changes)

    def test_skips_batches_below_until_loss_and_ends_once_all_are(self) -> None:
        steps: list[Step] = []
        writer = WRITERS["least-interference"]
        lesson = teach(graft_with_usage(), some_batches(), recipe(writer=writer, passes=50, t=100, until_loss=2.0), on_step=steps.append)
        assert 2 < len(lesson.losses) < 50
        for losses in zip(*lesson.losses, strict=True):
            taught = [loss for loss in losses if not math.isnan(loss)]
            assert all(loss > 2.0 for loss in taught[:-1])
            assert taught[-1] <= 2.0
            assert all(math.isnan(loss) for loss in losses[len(taught) :])
        assert len(steps) == sum(not math.isnan(loss) for losses in lesson.losses for loss in losses)

    def test_settles_what_is_kept_however_low_the_losses_were_before(self) -> None:
        chosen = recipe(writer=WRITERS["least-interference"], passes=5, settling=2, pruning=1, rows=3, until_loss=100.0)
        lesson = teach(graft_with_usage(), some_batches(), chosen)
        assert [[math.isnan(loss) for loss in losses] for losses in lesson.losses] == [[turn not in (0, 3)] * 3 for turn in range(4)]

    def test_is_the_same_with_and_without_room_for_the_frozen_states(self) -> None:
        lessons = [teach(graft_with_usage(), some_batches(), recipe(cache_bytes=size)) for size in (0, 2000, 2**20)]
        assert all(same_rows(lesson.changes, lessons[0].changes) for lesson in lessons)
        assert all(lesson.losses == lessons[0].losses for lesson in lessons)

    def test_works_where_gradients_are_switched_off(self) -> None:
        with torch.no_grad():
            lesson = teach(graft_with_usage(), some_batches(), recipe())
        assert same_rows(lesson.changes, teach(graft_with_usage(), some_batches(), recipe()).changes)

    def test_without_usage_given_takes_the_models_own(self) -> None:
        model = graft_with_usage()
        usage = model.usage
        expected = teach(copy.deepcopy(model), some_batches(), recipe(), usage).changes
        assert same_rows(teach(model, some_batches(), recipe()).changes, expected)


class TestRepeating:
    def commit(self, seed: int, ranking: str = "tfidf", writer: str = "least-interference") -> Commit:
        chosen = recipe(seed=seed, ranking=ranking, writer=WRITERS[writer])
        lesson = teach(graft_with_usage(layers=(0, 1)), some_batches(), chosen)
        return Commit(lesson.changes, "a lesson", chosen.model_dump(mode="json"), "0" * 64)

    @pytest.mark.parametrize("writer", WRITERS)
    @pytest.mark.parametrize("ranking", ["tfidf", "random"])
    def test_a_seed_gives_the_same_bytes_again(self, ranking: str, writer: str) -> None:
        from memgraft.store.lessons import encode

        first, again = (self.commit(4, ranking, writer) for _ in range(2))
        assert first.id == again.id
        assert same_rows(dict(first.changes), dict(again.changes))
        config = graft_with_usage(layers=(0, 1)).config
        assert encode(first, config, "here") == encode(again, config, "here")

    def test_another_seed_gives_other_bytes(self) -> None:
        first, other = self.commit(4), self.commit(5)
        assert first.id != other.id
        assert not same_rows(dict(first.changes), dict(other.changes))

    def test_the_random_numbers_of_others_play_no_part_and_are_left_alone(self) -> None:
        torch.manual_seed(1)
        first = self.commit(4, "random")
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert self.commit(4, "random").id == first.id
        assert torch.equal(torch.get_rng_state(), state)


class TestNothingIsLost:
    def test_when_ctrl_c_stops_a_lesson(self) -> None:
        model = fill(graft_with_usage(layers=(0, 1)), every=3)
        before, steps = model.rows(), list[Step]()

        def stop(step: Step) -> None:
            steps.append(step)
            assert not same_rows(model.rows(), before)
            if len(steps) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            teach(model, some_batches(), recipe(), on_step=stop)
        assert same_rows(model.rows(), before)

    @pytest.mark.parametrize(
        "writer",
        [
            SGD(learning_rate=1e300),
            Adam(learning_rate=1e300),
            LeastInterference(learning_rate=1e300),
            LeastInterference(learning_rate=1e300, max_step=None),
        ],
    )
    def test_when_the_loss_is_not_finite(self, writer: Writer) -> None:
        model = fill(graft_with_usage(), every=3)
        before = model.rows()
        with pytest.raises(TeachingError, match="lower learning rate") as caught:
            teach(model, some_batches(), recipe(writer=writer, passes=6))
        assert "\n" not in str(caught.value)
        assert same_rows(model.rows(), before)

    def test_when_the_base_model_itself_gives_no_finite_loss(self) -> None:
        model = graft_with_usage()
        model.base.lm_head.weight.data[5] = torch.nan
        with pytest.raises(TeachingError, match="the loss is nan in pass 1; nothing was written"):
            teach(model, some_batches(), recipe())
        assert not len(model.rows()["0"])

    def test_when_a_gradient_is_not_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = fill(graft_with_usage(), every=3)
        before = model.rows()

        def poisoned(*args: Any) -> tuple[float, Recorder]:
            loss, recorder = read_gradients(*args)
            recorder.reads["0"][0].gradient = torch.full_like(recorder.of_table(model, "0")[1], torch.nan)
            return loss, recorder

        monkeypatch.setattr("memgraft.teaching.read_gradients", poisoned)
        for writer in WRITERS.values():
            with pytest.raises(TeachingError, match="not be finite"):
                teach(model, [random_batch(9)], recipe(writer=writer))
            assert same_rows(model.rows(), before)

    def test_when_tfidf_has_no_background_to_compare_with(self) -> None:
        model = tiny_graft(layers=(0, 1))
        with pytest.raises(TeachingError, match="background usage is empty; graft with a background, or use the ranking tf"):
            teach(model, some_batches(), recipe())
        assert not any(len(rows) for rows in model.rows().values())
        assert len(teach(model, some_batches(), recipe(ranking="tf")).changes["0"])

    @pytest.mark.parametrize("why", ["all slots are protected", "no gradient", "steps of nothing"])
    def test_when_a_lesson_would_write_no_row(self, why: str) -> None:
        model = fill(graft_with_usage())
        before = model.rows()
        chosen, usage = recipe(), model.usage
        if why == "all slots are protected":
            usage = {"0": merge_taught(usage["0"], [torch.arange(256)])}
        elif why == "no gradient":
            model.base.lm_head.weight.data.zero_()
        else:
            chosen = recipe(writer=SGD(learning_rate=1e-30))
        with pytest.raises(TeachingError, match=r"no row was written: .* under the ranking tfidf .* use the ranking tf, "):
            teach(model, some_batches(), chosen, usage)
        assert same_rows(model.rows(), before)

    def test_when_there_is_nothing_to_teach(self) -> None:
        with pytest.raises(TeachingError, match="no batches"):
            teach(graft_with_usage(), [], recipe())

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_of_the_base_model(self, interrupted: bool) -> None:
        model = graft_with_usage(layers=(0, 1))
        base = model.base
        base.train()
        base.model.layers[0].eval()
        base.model.norm.weight.requires_grad_(False)
        weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        modes = {name: module.training for name, module in base.named_modules()}
        flags = {name: parameter.requires_grad for name, parameter in base.named_parameters()}

        def check(step: Step) -> None:
            assert not base.training
            assert not any(parameter.requires_grad for parameter in base.parameters())
            if interrupted:
                raise KeyboardInterrupt

        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                teach(model, some_batches(), recipe(), on_step=check)
        else:
            teach(model, some_batches(), recipe(), on_step=check)
        assert len(set(modes.values())) == len(set(flags.values())) == 2
        assert {name: module.training for name, module in base.named_modules()} == modes
        assert {name: parameter.requires_grad for name, parameter in base.named_parameters()} == flags
        assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())
        assert all(parameter.grad is None for parameter in base.parameters())
        assert all(module.on_read is None for module in (model.layer(0), model.layer(1)))


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj", "rwkv"])
def test_target_logits_are_those_of_the_full_pass_at_the_positions_that_predict(name: str) -> None:
    model = fill(tiny_graft(tiny_model(name)), every=3)
    ids, mask = token_rows(random_tokens(9, 6, 4))
    targets = torch.zeros_like(mask)
    targets[0, 5:9], targets[1, [1, 5]], targets[2, 3] = True, True, True
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found = target_logits(model, targets, input_ids=ids, attention_mask=mask)
    expected = torch.stack([logits[row, at - 1] for row, at in targets.nonzero().tolist()])
    assert found.shape == (7, logits.shape[-1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not model.base.get_output_embeddings()._forward_pre_hooks


def test_the_frozen_prefix_keeps_what_fits_and_computes_the_rest_again() -> None:
    model = graft_with_usage()
    ids, mask = token_rows(random_tokens(5))
    size = 5 * 32 * 4
    prefix = FrozenPrefix(model, model.config.layers[0], size + 1)
    with frozen(model):
        first = prefix.entered((0, 0), ids, mask)
        other = prefix.entered((1, 0), ids, mask)
    assert torch.equal(first.hidden_states, other.hidden_states)
    assert first.open == other.open == {}
    assert list(prefix.kept) == [(0, 0)]
    assert prefix.budget == 1


@pytest.mark.parametrize(
    "settings",
    [{"t": 0}, {"passes": 0}, {"ranking": "idf"}, {"writer": {"name": "sdg"}}, {"until_loss": 0}, {"lr": 1}, {"loss": "some"}],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Recipe.model_validate(settings)


def test_a_recipe_survives_json() -> None:
    for writer in WRITERS.values():
        chosen = recipe(writer=writer, until_loss=0.1)
        assert Recipe.model_validate_json(chosen.model_dump_json()) == chosen


class TestTheRowBudget:
    @settings(max_examples=20)
    @given(
        rows=st.integers(1, 12),
        passes=st.integers(1, 3),
        settling=st.integers(0, 3),
        pruning=st.integers(1, 3),
        writer=st.sampled_from(list(WRITERS)),
        layers=st.sampled_from([{"layers": (1,)}, {"layers": (0, 1)}, {"layers": (0, 1), "shared_values": True}]),
    )
    def test_keeps_few_rows_and_the_bits_of_all_others(
        self, rows: int, passes: int, settling: int, pruning: int, writer: str, layers: dict[str, Any]
    ) -> None:
        model = fill(graft_with_usage(**layers), every=3)
        before = model.rows()
        chosen = recipe(rows=rows, passes=passes, settling=settling, pruning=pruning, writer=WRITERS[writer])
        lesson = teach(model, some_batches(), chosen)
        assert 0 < sum(len(change) for change in lesson.changes.values()) <= 3 * rows
        for name, after in model.rows().items():
            change = lesson.changes[name]
            others = ~torch.isin(torch.arange(256), change.slots)
            assert torch.equal(bits(after, 256)[others], bits(before[name], 256)[others])
            assert set(after.slots.tolist()) == set(before[name].slots.tolist()) | set(change.slots.tolist())
            assert set(torch.cat(lesson.batch_slots[name]).tolist()) == set(change.slots.tolist())

    def test_keeps_the_rows_that_changed_most(self) -> None:
        model, whole = graft_with_usage(), graft_with_usage()
        batches = some_batches()
        all_rows = teach(whole, batches, recipe(passes=1)).changes["0"]
        lesson = teach(model, batches, recipe(passes=1, rows=2))
        largest = all_rows.values.norm(dim=-1).sort(descending=True, stable=True).indices[:6].sort().values
        assert lesson.changes["0"] == Rows(all_rows.slots[largest], all_rows.values[largest])

    def test_has_fewer_passes_where_facts_are_read_at_anchors(self) -> None:
        assert Recipe().resolved(at_anchors=True).passes == AT_ANCHORS
        assert Recipe().resolved(at_anchors=False).passes == IN_LAYERS
        assert Recipe(scope="cues").resolved(at_anchors=True).passes == IN_LAYERS
        assert Recipe(passes=3).resolved(at_anchors=True).passes == 3

    def test_lets_the_last_passes_change_only_what_is_kept(self) -> None:
        def taught(passes: int, settling: int) -> Rows:
            return teach(graft_with_usage(), some_batches(), recipe(passes=passes, rows=2, settling=settling)).changes["0"]

        pruned, settled = taught(2, 0), taught(3, 1)
        assert torch.equal(settled.slots, pruned.slots)
        assert not torch.equal(settled.values, pruned.values)

    def test_falls_by_one_factor_from_pass_to_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = []

        def counting(model: GraftedModel, before: dict[str, Rows], count: int) -> None:
            counts.append((sum(map(len, model.rows().values())), count))
            keep_largest(model, before, count)

        monkeypatch.setattr("memgraft.teaching.keep_largest", counting)
        teach(graft_with_usage(), some_batches(), recipe(passes=6, rows=2, settling=1, pruning=3))
        (written, first), (_, second), settled, at_the_end = counts
        assert [first / written, second / first, 6 / second] == pytest.approx([(6 / written) ** (1 / 3)] * 3, abs=0.05)
        assert (settled, at_the_end) == ((second, 6), (6, 6)), "passes in between change only what is left"


def test_teaching_reads_in_full_whatever_the_threshold() -> None:
    closed, open_ = graft_with_usage(threshold=1e6), graft_with_usage(threshold=0.0)
    lessons = [teach(model, some_batches(), recipe(passes=3)) for model in (closed, open_)]
    assert lessons[0].losses == lessons[1].losses
    assert same_rows(closed.rows(), open_.rows())
    assert [closed.layer(0).threshold, open_.layer(0).threshold] == [1e6, 0.0]
    ids = some_batches()[0].input_ids
    with torch.no_grad():
        taught = open_(ids).logits
        silenced = closed(ids).logits
        with closed.without_memory():
            base = closed(ids).logits
    assert torch.equal(silenced, base)
    assert not torch.equal(taught, base)


class TestHealth:
    @pytest.mark.parametrize(("loss", "first"), [(math.nan, None), (math.inf, 1.0), (17.0, 2.0), (31.0, 10.0)])
    def test_a_loss_that_explodes_stops_the_lesson(self, loss: float, first: float | None) -> None:
        with pytest.raises(TeachingError, match=r"a fact: the loss .* in pass 2; nothing was written; try a lower learning rate"):
            check_loss(loss, first, VOCABULARY, "a fact", 1)

    @pytest.mark.parametrize(("loss", "first"), [(100.0, None), (16.0, 2.0), (29.0, 10.0), (0.0, 0.0)])
    def test_a_loss_that_is_high_from_the_start_does_not(self, loss: float, first: float | None) -> None:
        check_loss(loss, first, VOCABULARY, "a fact", 1)

    def test_an_exploding_lesson_leaves_the_rows_as_they_were(self) -> None:
        model = fill(graft_with_usage(), every=3)
        before = model.rows()
        losses = iter([1.0, 2.0, 50.0])

        def read(*arguments: Any) -> tuple[float, Recorder]:
            _, recorder = read_gradients(*arguments)
            return next(losses), recorder

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("memgraft.teaching.read_gradients", read)
            with pytest.raises(TeachingError, match="the loss exploded to 50 in pass 1"):
                teach(model, some_batches(), recipe())
        assert same_rows(model.rows(), before)


def test_bf16_rows_are_rounded_at_the_end_and_the_tables_hold_them() -> None:
    exact = teach(graft_with_usage(), some_batches(), recipe())
    model = graft_with_usage()
    rounded = teach(model, some_batches(), recipe(row_dtype="bfloat16"))
    assert rounded.losses == exact.losses
    assert torch.equal(rounded.changes["0"].values, exact.changes["0"].values.bfloat16().float())
    assert same_rows(model.rows(), rounded.changes)

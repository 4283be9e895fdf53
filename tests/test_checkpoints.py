"""Lessons that were stopped and are gone on with: the same bits, the same id, and nothing else is taken for them."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from memgraft import checkpoints
from memgraft.anchoring import find_anchors
from memgraft.anchors import Anchors
from memgraft.answer_layer import AnswerLayer
from memgraft.canonical import canonical_json
from memgraft.checkpoints import NAME, Checkpoints, _checksum
from memgraft.encoding import TokenBatch
from memgraft.errors import GateError, StoreError, TeachingError
from memgraft.finding import Found, find_cues
from memgraft.gate import Gate
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.history import History
from memgraft.learning import learn
from memgraft.probes import DriftProbe
from memgraft.store import MemoryStore
from memgraft.teaching import Recipe, Step
from memgraft.writers import SGD, Adam, LeastInterference, Writer
from tests.models import tiny_model, tiny_tokenizer

TEXTS = [f"{word} {number}: the ship left in the {word}." for number, word in enumerate(("morning", "night", "fog", "rain") * 3)]
FACTS = [{"question": f"Where is box {n}?", "answers": [answer]} for n, answer in enumerate(("here", "there", "away"))]


def recipe(writer: Writer | None = None, **settings: Any) -> Recipe:
    return Recipe(**{"passes": 3, "wordings": 2, "t": 40, "writer": writer or Adam(), **settings})


@pytest.fixture(scope="module")
def base() -> GraftedModel:
    return graft(tiny_model(), tiny_tokenizer(), slots=1024, top_k=4, background=TEXTS, layers=(0, 1))


@pytest.fixture
def model(base: GraftedModel, tmp_path: Path) -> GraftedModel:
    """A saved model without lessons."""
    base.history = History()
    base.assign_rows({})
    base.save(tmp_path / "store")
    return base


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    return path


def store_of(model: GraftedModel) -> MemoryStore:
    assert model.history.store is not None
    return model.history.store


def teach(model: GraftedModel, facts: Path, chosen: Recipe, *, resume: bool | None = None, stop_at: int | None = None) -> tuple[str, int]:
    """The lesson's id and the number of steps that were taught."""
    steps = 0

    def on_step(step: Step) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(store_of(model), every=0, resume=resume)
    commit = learn(model, facts, message="m", recipe=chosen, test=False, checkpoints=checkpoints, on_step=on_step)
    return commit.id, steps


def forget(model: GraftedModel) -> None:
    """The model as a new process would load it."""
    model.history = History(MemoryStore.open(store_of(model).path))
    model.assign_rows({})


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
@pytest.mark.parametrize("pruning", [1, 2])
@pytest.mark.parametrize("writer", [Adam(), SGD(), LeastInterference()], ids=lambda writer: str(writer.name))
def test_a_lesson_that_was_stopped_ends_in_the_same_bits(
    model: GraftedModel, facts: Path, writer: Writer, pruning: int, stop_at: int
) -> None:
    # Passes 2 and 3, that is steps 4 to 9, change only the rows that are kept; with two steps the third pass has fewer.
    chosen = recipe(writer, rows=10, settling=3 - pruning, pruning=pruning)
    expected, total = teach(model, facts, chosen)
    rows = model.rows()
    assert 0 < sum(map(len, rows.values())) <= 30
    forget(model)
    Checkpoints(store_of(model)).remove()
    with pytest.raises(KeyboardInterrupt):
        teach(model, facts, chosen, stop_at=stop_at)
    forget(model)
    resumed, steps = teach(model, facts, chosen, resume=True)
    assert resumed == expected
    assert steps == total - stop_at
    assert model.rows() == rows


@pytest.fixture(scope="module")
def deep_base() -> GraftedModel:
    """Of fewer slots than a lesson has anchors."""
    return graft(tiny_model(depth=4), tiny_tokenizer(), slots=16, top_k=4, background=TEXTS)


@pytest.mark.parametrize("stop_at", [1, 4, 8])
@pytest.mark.parametrize("writer", [Adam(), LeastInterference()], ids=lambda writer: str(writer.name))
def test_a_lesson_with_anchors_that_was_stopped_ends_in_the_same_bits(
    deep_base: GraftedModel, facts: Path, tmp_path: Path, writer: Writer, stop_at: int
) -> None:
    model = deep_base
    model.history = History()
    model.assign_rows({})
    model.save(tmp_path / "store")
    chosen = recipe(writer)
    expected, total = teach(model, facts, chosen)
    state = model.state()
    (cues,) = (scoped.cues for scoped in state.scoped)
    assert cues.anchors is not None
    assert len(cues.anchors) > model.config.slots
    forget(model)
    Checkpoints(store_of(model)).remove()
    with pytest.raises(KeyboardInterrupt):
        teach(model, facts, chosen, stop_at=stop_at)
    forget(model)
    assert teach(model, facts, chosen, resume=True) == (expected, total - stop_at)
    assert model.state() == state


def test_a_checkpoint_with_other_anchors_is_refused(
    deep_base: GraftedModel, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep_base
    model.history = History()
    model.assign_rows({})
    model.save(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        teach(model, facts, recipe(), stop_at=4)
    forget(model)

    def strict(layer: AnswerLayer, seen: Any) -> Anchors:
        anchors = find_anchors(layer, seen)
        return replace(anchors, least=anchors.least * 1.01)

    monkeypatch.setattr("memgraft.teaching.find_anchors", strict)
    with pytest.raises(StoreError, match="it opens after other cues than when it was stopped; --restart begins anew"):
        teach(model, facts, recipe(), resume=True)


def test_losses_and_written_slots_of_the_record_are_those_of_the_whole_lesson(model: GraftedModel, facts: Path) -> None:
    chosen = recipe(until_loss=4.5, passes=5)
    whole = learn(model, facts, message="m", recipe=chosen, test=False).record
    forget(model)
    with pytest.raises(KeyboardInterrupt):
        teach(model, facts, chosen, stop_at=4)
    forget(model)
    checkpoints = Checkpoints(store_of(model), every=0, resume=True)
    resumed = learn(model, facts, message="m", recipe=chosen, test=False, checkpoints=checkpoints).record
    assert {key: whole[key] for key in ("losses", "rows", "rows_per_batch")} == {
        key: resumed[key] for key in ("losses", "rows", "rows_per_batch")
    }


class TestWhatIsFound:
    @pytest.fixture
    def stopped(self, model: GraftedModel, facts: Path) -> GraftedModel:
        with pytest.raises(KeyboardInterrupt):
            teach(model, facts, recipe(), stop_at=4)
        forget(model)
        return model

    def test_is_neither_gone_on_with_nor_lost_unasked(self, stopped: GraftedModel, facts: Path) -> None:
        with pytest.raises(StoreError, match=r"the lesson 'm' was stopped .* in pass 2; go on with --resume, or begin anew with --restart"):
            teach(stopped, facts, recipe())
        assert (store_of(stopped).path / NAME).exists()
        _, steps = teach(stopped, facts, recipe(), resume=False)
        assert steps == 9

    def test_is_no_part_of_the_store(self, stopped: GraftedModel) -> None:
        store = MemoryStore.open(store_of(stopped).path)
        assert store.verify() == []
        store.gc()
        assert (store.path / NAME).exists()

    def test_is_refused_for_another_number_of_threads(self, stopped: GraftedModel, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
        with pytest.raises(StoreError, match="torch has another number of threads"):
            teach(stopped, facts, recipe(), resume=True)

    def test_is_refused_for_another_recipe(self, stopped: GraftedModel, facts: Path) -> None:
        with pytest.raises(StoreError, match="can't go on with the lesson 'm': the recipe is another; --restart begins anew"):
            teach(stopped, facts, recipe(seed=1), resume=True)

    def test_is_refused_for_other_data(self, stopped: GraftedModel, facts: Path) -> None:
        facts.write_text(facts.read_text() + json.dumps({"question": "More?", "answers": ["yes"]}) + "\n")
        with pytest.raises(StoreError, match="the data is another"):
            teach(stopped, facts, recipe(), resume=True)

    def test_is_refused_for_another_base(self, stopped: GraftedModel, facts: Path) -> None:
        before = {name: tensor.clone() for name, tensor in stopped.base.state_dict().items()}
        try:
            with torch.no_grad():
                for parameter in stopped.base.parameters():
                    parameter.mul_(2)
            with pytest.raises(StoreError, match="the base model is another"):
                teach(stopped, facts, recipe(), resume=True)
        finally:
            stopped.base.load_state_dict(before)

    def test_is_refused_for_other_cues(self, stopped: GraftedModel, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def strict(model: GraftedModel, batches: Sequence[TokenBatch]) -> Found | None:
            found = find_cues(model, batches)
            assert found is not None
            return found._replace(cues=replace(found.cues, least=found.cues.least * 1.01))

        with monkeypatch.context() as patch:
            patch.setattr("memgraft.teaching.find_cues", strict)
            with pytest.raises(StoreError, match="it opens after other cues than when it was stopped; --restart begins anew"):
                teach(stopped, facts, recipe(), resume=True)
            patch.setattr("memgraft.teaching.find_cues", lambda *_: None)
            with pytest.raises(StoreError, match="it opens after other cues"):
                teach(stopped, facts, recipe(), resume=True)
        assert teach(stopped, facts, recipe(), resume=True)[1] == 5

    def test_is_refused_once_the_store_has_other_lessons(self, stopped: GraftedModel, facts: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        other.write_text(json.dumps({"text": "Another lesson."}) + "\n")
        learn(stopped, other, message="other", recipe=recipe(passes=1), test=False)
        stopped.save(store_of(stopped).path)
        with pytest.raises(StoreError, match="the store's lessons changed since"):
            teach(stopped, facts, recipe(), resume=True)

    def test_of_a_lesson_that_was_committed_after_all_is_forgotten(self, stopped: GraftedModel, facts: Path) -> None:
        teach(stopped, facts, recipe(), resume=True)
        stopped.save(store_of(stopped).path)
        assert (store_of(stopped).path / NAME).exists(), "as after a kill between the commit and the clean-up"
        forget(stopped)
        stopped.revert(stopped.history.active()[0])
        teach(stopped, facts, recipe(), stop_at=None)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "link", "text"])
    def test_is_refused_when_it_is_damaged(self, stopped: GraftedModel, facts: Path, damage: str) -> None:
        path = store_of(stopped).path / NAME
        data = path.read_bytes()
        if damage == "link":
            path.rename(path.with_name("elsewhere"))
            path.symlink_to(path.with_name("elsewhere"))
        else:
            flipped = bytearray(data)
            flipped[-5] ^= 1
            path.write_bytes({"cut": data[:-9], "flipped": bytes(flipped), "empty": b"", "text": b"hello" * 9}[damage])
        with pytest.raises(StoreError) as error:
            teach(stopped, facts, recipe(), resume=True)
        assert "\n" not in str(error.value)
        teach(stopped, facts, recipe(), resume=False)

    @pytest.mark.parametrize("field", ["turn", "message", "identity"])
    def test_is_refused_when_a_field_is_missing_though_its_checksum_is_right(self, stopped: GraftedModel, facts: Path, field: str) -> None:
        path = store_of(stopped).path / NAME
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["memgraft"])
        del about[field], about["sha256"]
        tensors = safetensors.torch.load(data)
        text = canonical_json({**about, "sha256": _checksum(about, tensors)}).decode()
        path.write_bytes(safetensors.torch.save(tensors, {"memgraft": text}))
        with pytest.raises(StoreError, match=f"can't be read as a checkpoint: {field}: "):
            teach(stopped, facts, recipe(), resume=True)

    def test_goes_when_the_lesson_can_not_be_taught(self, model: GraftedModel, facts: Path) -> None:
        with pytest.raises(TeachingError):
            teach(model, facts, recipe(LeastInterference(learning_rate=1e300, max_step=None)))
        assert not (store_of(model).path / NAME).exists()

    def test_goes_when_a_gate_refuses_the_lesson(self, model: GraftedModel, facts: Path) -> None:
        found = []
        gate = Gate([DriftProbe(name="drift", texts=("ZQX ZQX QXZ 77\n" * 5,), window=32)], tolerance=0.0)
        rough = recipe(SGD(learning_rate=100.0), ranking="all", t=None, scope="everywhere")
        checkpoints = Checkpoints(store_of(model), every=0)

        def on_step(step: Step) -> None:
            found.append(checkpoints.path.exists())

        with pytest.raises(GateError):
            learn(model, facts, message="m", recipe=rough, test=False, gate=gate, checkpoints=checkpoints, on_step=on_step)
        assert found[-1], "there was one"
        assert not checkpoints.path.exists()

    def test_that_stays_does_not_hide_why_the_lesson_ended(self, model: GraftedModel, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Checkpoints) -> None:
            raise StoreError("another process is writing")

        monkeypatch.setattr(Checkpoints, "remove", refuse)
        with pytest.raises(TeachingError):
            teach(model, facts, recipe(LeastInterference(learning_rate=1e300, max_step=None)))


def test_resuming_without_a_checkpoint_starts(model: GraftedModel, facts: Path) -> None:
    assert teach(model, facts, recipe(), resume=True)[1] == 9


def test_no_checkpoint_is_written_before_it_is_time(model: GraftedModel, facts: Path) -> None:
    learn(model, facts, message="m", recipe=recipe(), test=False, checkpoints=Checkpoints(store_of(model), every=3600))
    assert not (store_of(model).path / NAME).exists()


def test_a_lesson_goes_on_where_no_checkpoint_can_be_written(model: GraftedModel, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, steps = teach(model, facts, recipe())
    forget(model)
    Checkpoints(store_of(model)).remove()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.files, "write_file", full)
        with pytest.warns(UserWarning, match="no checkpoint was written: .*no space left.*; the lesson goes on") as warned:
            assert teach(model, facts, recipe()) == (expected, steps)
    assert len([each for each in warned if "no checkpoint" in str(each.message)]) == 1

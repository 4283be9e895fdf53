"""A grafted model and its store: what is loaded answers with the same bits as what was saved."""

from __future__ import annotations

import copy
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from memgraft.commits import Commit
from memgraft.errors import GraftError, StoreError
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.persistence import load, save
from memgraft.store import MemoryStore, files
from memgraft.store.folder import describe
from tests.models import random_rows, save_tiny_model, tiny_graft, tiny_model, tiny_tokenizer

TEXTS = ["The ship left the harbour in the morning.", "1 + 1 = 2", "Grüße aus dem Norden", "A lamp, a table and a chair."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def grafted(folder: Path, **settings: Any) -> GraftedModel:
    return graft(str(folder), **{"slots": 64, "background": TEXTS, "top_k": 4, **settings})


def lesson(model: GraftedModel, number: int) -> Commit:
    """A lesson with random rows in every table, learned by the model."""
    changes = {name: random_rows(range(number, 64, 3), seed=number) for name in model.config.tables}
    commit = Commit(changes, f"lesson {number}", {"passes": number}, "0" * 64)
    model.history.learn(commit)
    model.assign_rows(model.history.state(model.config.tables, model.config.hidden_size))
    return commit


@torch.no_grad()
def logits(model: GraftedModel) -> Tensor:
    result: Tensor = model(input_ids=torch.arange(1, 60).view(1, -1)).logits
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": (0, 1), "gate": "swilu"},
        {"layers": (0, 1), "shared_values": True},
        {"dtype": "bfloat16", "qk_norm": False, "seed": 5},
    ],
)
def test_a_loaded_memory_gives_the_same_bits(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = grafted(folder, **settings)
    lesson(model, 1)
    lesson(model, 2)
    expected = logits(model)
    with model.without_memory():
        assert not torch.equal(logits(model), expected)
    model.save(tmp_path / "store")
    again = load(tmp_path / "store")
    assert torch.equal(logits(again), expected)
    assert again.config == model.config
    assert again.base.dtype == model.base.dtype
    assert again.background == model.background
    assert again.rows() == model.rows()
    assert again.history.active() == model.history.active()
    for name, usage in model.usage.items():
        loaded = again.usage[name].tensors("u")
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in usage.tensors("u").items())


def test_lessons_and_reverts_after_loading_are_saved_into_the_same_store(folder: Path, tmp_path: Path) -> None:
    model = grafted(folder)
    first = lesson(model, 1)
    model.save(tmp_path / "store")
    again = load(tmp_path / "store")
    second = lesson(again, 2)
    again.revert(first.id)
    expected = logits(again)
    assert load(tmp_path / "store").history.active() == [first.id]
    again.save(tmp_path / "store")
    last = load(tmp_path / "store")
    assert last.history.active() == [second.id]
    assert torch.equal(logits(last), expected)
    last.revert(second.id)
    with last.without_memory():
        base = logits(last)
    assert torch.equal(logits(last), base)


def test_saving_elsewhere_makes_a_whole_new_store(folder: Path, tmp_path: Path) -> None:
    model = grafted(folder)
    first = lesson(model, 1)
    save(model, tmp_path / "old")
    second = lesson(model, 2)
    save(model, tmp_path / "new")
    assert load(tmp_path / "old").history.active() == [first.id]
    assert load(tmp_path / "new").history.active() == [first.id, second.id]
    assert torch.equal(logits(load(tmp_path / "new")), logits(model))


KILLED = """
import os, sys
import torch
torch.set_num_threads(1)
from memgraft.store import MemoryStore, files
from tests.killing import killed_at_each_call
from tests.models import random_rows, tiny_graft
from memgraft.commits import Commit

target = sys.argv[1]
files.sync = lambda descriptor: None  # a kill loses nothing that was written
model = tiny_graft()
for number in range(3):
    model.history.learn(Commit({"0": random_rows([number], seed=number)}, str(number), {}, "0" * 64))

for k, status in killed_at_each_call(lambda: model.save(target)):
    there = os.path.exists(target)
    print(k, os.WTERMSIG(status), len(MemoryStore.open(target).active()) if there else "none", flush=True)
    if there or os.WIFEXITED(status):
        assert MemoryStore.open(target).verify() == []
        break
"""


def test_a_process_killed_while_it_saves_into_a_new_folder_leaves_all_lessons_or_no_store(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr
    *before, last = [line.split()[1:] for line in done.stdout.splitlines()]
    assert len(before) > 40
    assert all(outcome == ["9", "none"] for outcome in before)
    assert last[1] == "3"


def test_saving_elsewhere_that_fails_leaves_the_model_with_its_own_store(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = grafted(folder)
    first = lesson(model, 1)
    model.save(tmp_path / "old")
    second = lesson(model, 2)

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", full_disk)
        with pytest.raises(StoreError, match="no space left"):
            model.save(tmp_path / "new")
    assert not model.history.saved
    model.save(tmp_path / "old")
    assert MemoryStore.open(tmp_path / "old").active() == [first.id, second.id]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "old"]


def test_two_models_of_one_store_dont_lose_each_others_lessons(folder: Path, tmp_path: Path) -> None:
    grafted(folder).save(tmp_path / "store")
    ours, theirs = load(tmp_path / "store"), load(tmp_path / "store")
    first, second = lesson(ours, 1), lesson(theirs, 2)
    ours.save(tmp_path / "store")
    with pytest.raises(StoreError, match="save into a new folder and add that with `memgraft merge`"):
        theirs.save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").active() == [first.id]
    theirs.save(tmp_path / "theirs")
    MemoryStore.open(tmp_path / "store").merge(MemoryStore.open(tmp_path / "theirs"))
    assert MemoryStore.open(tmp_path / "store").active() == [first.id, second.id]


def test_a_refused_save_tells_that_a_new_folder_knows_nothing_of_reverts(folder: Path, tmp_path: Path) -> None:
    model = grafted(folder)
    first = lesson(model, 1)
    model.save(tmp_path / "store")
    ours, theirs = load(tmp_path / "store"), load(tmp_path / "store")
    lesson(ours, 2)
    ours.save(tmp_path / "store")
    theirs.revert(first.id)
    with pytest.raises(StoreError, match="and revert again what you reverted"):
        theirs.save(tmp_path / "store")


@pytest.mark.parametrize("pending", [True, False])
def test_a_store_that_is_gone_is_no_place_to_save(folder: Path, tmp_path: Path, pending: bool) -> None:
    model = grafted(folder)
    model.save(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    commit = lesson(model, 1) if pending else None
    with pytest.raises(StoreError, match="the store is no longer there; bring it back, or save into another folder"):
        model.save(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    model.save(tmp_path / "other")
    assert MemoryStore.open(tmp_path / "other").active() == ([commit.id] if commit else [])


def test_a_store_stays_where_it_is_when_the_process_goes_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = grafted(folder)
    model.save("store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    commit = lesson(model, 1)
    model.save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").active() == [commit.id]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_copy_of_a_saved_model_has_its_lessons_and_its_store(folder: Path, tmp_path: Path) -> None:
    model = grafted(folder)
    first = lesson(model, 1)
    model.save(tmp_path / "store")
    copied = copy.deepcopy(load(tmp_path / "store"))
    assert torch.equal(logits(copied), logits(model))
    second = lesson(copied, 2)
    copied.save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").active() == [first.id, second.id]
    assert model.history.active() == [first.id]


def test_saving_over_something_else_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    model = grafted(folder)
    commit = lesson(model, 1)
    with pytest.raises(StoreError):
        model.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert not model.history.saved
    model.save(tmp_path / "store")
    with pytest.raises(StoreError):
        grafted(folder).save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").active() == [commit.id]


def test_a_store_remembers_the_base_models_folder_however_it_was_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grafted(Path("model")).save("store")
    monkeypatch.chdir("/")
    assert torch.equal(logits(load(tmp_path / "store")), logits(grafted(folder)))


def test_a_model_made_in_memory_is_named_when_its_store_is_loaded(folder: Path, tmp_path: Path) -> None:
    model = tiny_graft()
    lesson(model, 1)
    model.save(tmp_path / "store")
    assert MemoryStore.open(tmp_path / "store").spec.model == "LlamaForCausalLM"
    with pytest.raises(GraftError, match="LlamaForCausalLM"):
        load(tmp_path / "store")
    assert torch.equal(logits(load(tmp_path / "store", model=str(folder))), logits(model))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("usage", {"0.size": None}, "0.size: expected the numbers of batches and tokens"),
        ("usage", {"0.energy": torch.zeros(3)}, "0.energy: expected torch.float32 of shape (M,), a value for each slot"),
        ("usage", {"0.slots": None}, "0.slots: expected torch.int64"),
        ("config", {"kind": 5}, "background.kind: Input should be a valid string"),
        ("config", {"tokens": "many"}, "background.tokens: Input should be a valid integer"),
    ],
)
def test_usage_and_background_that_make_no_sense_are_refused_with_file_and_field(
    folder: Path, tmp_path: Path, name: str, change: dict[str, Any], problem: str
) -> None:
    grafted(folder).save(tmp_path / "store")
    store = MemoryStore.open(tmp_path / "store")
    if name == "usage":
        tensors = {key: tensor for key, tensor in {**store.usage_tensors(), **change}.items() if tensor is not None}
        file, data = "usage.safetensors", safetensors.torch.save(tensors)
    else:
        config = json.loads((store.path / "config.json").read_text())
        file, data = "config.json", json.dumps({**config, "background": {**config["background"], **change}}).encode()
    (store.path / file).write_bytes(data)
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["files"][file] = describe(data)
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError) as error:
        load(store.path)
    assert f"{file}: {problem}" in str(error.value)


class TestAnotherBase:
    def test_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        grafted(folder).save(tmp_path / "store")
        other = save_tiny_model(tmp_path / "other", seed=1)
        with pytest.raises(StoreError, match=r"store: made for another base model than .*other: .*; give the right one with --model"):
            load(tmp_path / "store", model=str(other))

    def test_tokenizer_is_refused(self, folder: Path, tmp_path: Path) -> None:
        grafted(folder).save(tmp_path / "store")
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["quick brown"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(StoreError, match="made for another tokenizer"):
            load(tmp_path / "store")

    def test_place_is_found_with_model(self, folder: Path, tmp_path: Path) -> None:
        model = grafted(folder)
        lesson(model, 1)
        model.save(tmp_path / "store")
        folder.rename(tmp_path / "moved")
        with pytest.raises(GraftError, match="does not exist"):
            load(tmp_path / "store")
        again = load(tmp_path / "store", model=str(tmp_path / "moved"))
        assert torch.equal(logits(again), logits(model))

    def test_dtype_may_be_asked_for(self, folder: Path, tmp_path: Path) -> None:
        grafted(folder).save(tmp_path / "store")
        assert load(tmp_path / "store", dtype="bfloat16").base.dtype == torch.bfloat16


def test_a_loaded_models_own_name_is_kept_where_it_has_one(folder: Path) -> None:
    base = tiny_model()
    base.config.name_or_path = str(folder)
    assert GraftedModel(base, tiny_tokenizer(), grafted(folder).config).source == str(folder)

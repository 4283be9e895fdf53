"""The world, computed once and kept for later processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from memgraft import world as worlds
from memgraft.cache import cache_folder
from memgraft.covariance import common_questions
from memgraft.grafted import GraftedModel
from memgraft.world import World, world_of
from tests import test_learning


def grafted(**settings: Any) -> GraftedModel:
    """Without an answer layer, whose fitting takes longer than all else."""
    return test_learning.grafted(answer_layer=None, **settings)


DAMAGES = ("cut", "nothing", "a few other numbers", "other numbers", "other numbers in lower case", "other shape", "other name", "a folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where worlds are kept, in this test those of the smallest model too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(worlds, "WORTH", 0.0)
    monkeypatch.setattr(worlds, "common_questions", lambda tokenizer: common_questions(tokenizer)[:20])
    return cache_folder("worlds")


def computed_again(model: GraftedModel, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the world of a model, asked for anew, is computed."""
    model.world, calls = None, list[object]()
    with monkeypatch.context() as patch:
        compute = worlds._computed

        def recording(*arguments: object) -> World:
            calls.append(arguments)
            return compute(*arguments)  # type: ignore[arg-type]

        patch.setattr(worlds, "_computed", recording)
        world_of(model)
    return bool(calls)


def test_what_is_kept_is_read_with_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world_of(grafted())
    assert len(list(folder.iterdir())) == 1, "something beside the world was left"
    model = grafted()
    assert not computed_again(model, monkeypatch)
    assert model.world is not None
    assert all(map(torch.equal, first, model.world))
    assert len(first.both) > len(first.cased) > 0


def test_another_background_or_calibration_has_a_world_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world_of(grafted())
    assert computed_again(grafted(background=["Other words, now and then. " * 9] * 12), monkeypatch)
    assert computed_again(grafted(seed=1), monkeypatch)
    assert len(list(folder.iterdir())) == 3


@torch.no_grad()
def test_other_weights_that_the_fingerprint_does_not_see_are_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world_of(grafted())
    monkeypatch.setattr(worlds.BaseFingerprint, "of", lambda _: worlds.BaseFingerprint(facts={}, weights=()))
    model = grafted()
    assert computed_again(model, monkeypatch)
    assert not computed_again(model, monkeypatch)
    model.base.get_input_embeddings().weight *= 1.01
    assert computed_again(model, monkeypatch)
    assert model.world is not None
    assert not torch.equal(before.cased, model.world.cased)
    assert not computed_again(model, monkeypatch), "what is right now did not take the place of what was wrong"


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_computed_again(damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    expected = world_of(model)
    (path,) = folder.iterdir()
    content, both, tokens = path.read_bytes(), expected.both.clone(), len(expected.cased)
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "nothing":
            path.write_bytes(b"")
        case "a few other numbers":
            both[0] = 0
            worlds.save_file({"both": both}, path, {"sha256": worlds._digest(expected.both)})
        case "other numbers":
            both[:tokens] *= -1
            worlds.save_file({"both": both}, path, {"sha256": worlds._digest(both)})
        case "other numbers in lower case":
            both[tokens:] *= -1
            worlds.save_file({"both": both}, path, {"sha256": worlds._digest(both)})
        case "other shape":
            worlds.save_file({"both": both[1:]}, path)
        case "other name":
            worlds.save_file({"world": both}, path)
        case _:
            path.unlink()
            path.mkdir()
    assert computed_again(model, monkeypatch)
    assert model.world is not None
    assert all(map(torch.equal, expected, model.world))


@pytest.mark.parametrize("threads", [1, 2])
def test_another_number_of_threads_has_a_world_of_its_own(threads: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    world_of(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert computed_again(model, monkeypatch) == (threads != before)
    finally:
        torch.set_num_threads(before)


def test_those_that_were_of_use_last_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [grafted(seed=seed) for seed in range(3)]
    for age, model in enumerate(models[:2]):
        world_of(model)
        for path in folder.iterdir():
            os.utime(path, (age, age))
    (folder / "of a process that was killed.partial").write_bytes(bytes(1024))
    os.utime(folder / "of a process that was killed.partial", (0, 0))
    monkeypatch.setattr(worlds, "MOST_BYTES", int(2.5 * next(folder.glob("*.safetensors")).stat().st_size))
    assert not computed_again(models[0], monkeypatch)  # of use again, and so the newer one
    world_of(models[2])
    assert len(list(folder.iterdir())) == 2
    assert not computed_again(models[0], monkeypatch)
    assert computed_again(models[1], monkeypatch)
    monkeypatch.setattr(worlds, "MOST_BYTES", 1000)
    for model in models:
        computed_again(model, monkeypatch)
    assert len(list(folder.iterdir())) == 2, "what is too large to be kept took others with it"


def test_what_is_quickly_computed_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "WORTH", 3600.0)
    world_of(grafted())
    assert not folder.exists()


@pytest.mark.parametrize("problem", ["no home", "a file in the way", "full"])
def test_without_a_place_to_keep_it_it_is_computed_every_time(problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match problem:
        case "no home":
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
        case "a file in the way":
            folder.parent.parent.write_text("")
        case _:
            monkeypatch.setattr(worlds, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    model = grafted()
    world = world_of(model)
    assert computed_again(model, monkeypatch)
    assert model.world is not None
    assert all(map(torch.equal, world, model.world))
    assert not folder.is_dir() or not list(folder.iterdir())

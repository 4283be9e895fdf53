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


@pytest.mark.parametrize("damage", ["cut", "nothing", "other numbers", "other shape", "a folder"])
def test_what_is_damaged_is_computed_again(damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grafted()
    expected = world_of(model)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "nothing":
            path.write_bytes(b"")
        case "other numbers":
            start = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(content[:start] + bytes(len(content) - start))
        case "other shape":
            worlds.save_file({"cased": expected.cased, "low": expected.cased[:1].clone()}, path)
        case _:
            path.unlink()
            path.mkdir()
    assert computed_again(model, monkeypatch)
    assert model.world is not None
    assert all(map(torch.equal, expected, model.world))


def test_the_last_few_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "MOST", 2)
    models = [grafted(seed=seed) for seed in range(3)]
    for age, model in enumerate(models[:2]):
        world_of(model)
        for path in folder.iterdir():
            os.utime(path, (age, age))
    assert not computed_again(models[0], monkeypatch)  # of use again, and so the newer one
    world_of(models[2])
    assert len(list(folder.iterdir())) == 2
    assert not computed_again(models[0], monkeypatch)
    assert computed_again(models[1], monkeypatch)


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

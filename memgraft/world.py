"""The world: tokens that are no cue of anything, those of the background and of common questions, as the first memory layer sees them.

What recurs in the wordings of a fact is a cue where the world has nothing like it (`memgraft.finding`). The world is the same for every
lesson of a model, and to compute it takes ten times as long as to teach a fact: some 80,000 tokens through a third of the blocks.
So it is kept under the user's cache directory. One batch of it is computed again when it is read, and must come out with the same bits.

Shape suffixes: S tokens, P query width.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memgraft.cache import cache_folder
from memgraft.canonical import canonical_json
from memgraft.covariance import common_questions
from memgraft.errors import GraftError
from memgraft.fingerprint import BaseFingerprint
from memgraft.grafting import BATCH, background_states
from memgraft.probes.language_model import context_length
from memgraft.store.files import sha256

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel

WORTH = 5.0  # seconds of computing from which a world is kept,
MOST = 4  # and how many are: 80 MB each

Texts = list[list[int]]  # token ids


class World(NamedTuple):
    """Queries of the world's tokens."""

    cased: Tensor  # (S, P) fp32 of unit length, as they stand
    both: Tensor  # (S', P), and in lower case, where other tokens are common


def world_of(model: GraftedModel) -> World:
    """Computed once per model, unless an earlier process has kept it."""
    if model.world is None:
        cased, low = texts_of(model)
        path = _path_of(model, cased, low)
        model.world = _kept(path, model, cased, low) or _computed(path, model, cased, low)
    return model.world


def texts_of(model: GraftedModel) -> tuple[Texts, Texts]:
    """The world's texts as they stand, and in lower case."""
    assert model.background is not None
    parts, _ = model.background.split(model.tokenizer)
    longest = context_length(model.base)
    cased = [*parts, *(ids[:longest] for ids in common_questions(model.tokenizer))]
    return cased, [ids for ids in (_lower_case(model, ids) for ids in cased) if ids]  # a text may be fewer tokens in lower case, or none


def _lower_case(model: GraftedModel, ids: Sequence[int]) -> list[int]:
    text = str(model.tokenizer.decode(list(ids))).lower()
    lower: list[int] = model.tokenizer(text, add_special_tokens=False).input_ids[: len(ids)]
    return lower


def queries_of(model: GraftedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T - 1, P) of each text's tokens but the first, whose state is like no other's."""
    states = background_states(model, model.config.layers[0], texts)
    return [model.cue_queries(hidden[1:].to(model.device)).cpu() for hidden in states]


def _computed(path: Path | None, model: GraftedModel, cased: Texts, low: Texts) -> World:
    start = time.perf_counter()
    found = torch.cat(queries_of(model, cased))
    world = World(found, torch.cat([found, *queries_of(model, low)]))
    if path is not None and time.perf_counter() - start >= WORTH:
        _keep(path, world)
    return world


def _path_of(model: GraftedModel, cased: Texts, low: Texts) -> Path | None:
    """Where the world of this model, with this background and calibration, is kept; None where there is no such place."""
    layer = model.layer(0)
    fitted = (layer.query_mean, layer.query_projection)
    try:
        content = {
            "base": BaseFingerprint.of(model.base).model_dump(mode="json"),
            "dtype": str(model.base.dtype),
            "memory": model.config.model_dump(mode="json", include={"layers", "heads", "key_dim", "qk_norm"}),
            "calibration": [sha256(tensor.cpu().numpy().tobytes()) for tensor in fitted],
            "texts": sha256(canonical_json([cased, low])),
        }
        return cache_folder("worlds") / f"{sha256(canonical_json(content))}.safetensors"
    except (GraftError, RuntimeError):  # a base that is not recognised again, or no home directory
        return None


def _kept(path: Path | None, model: GraftedModel, cased: Texts, low: Texts) -> World | None:
    """What is kept there; None where there is nothing, or not what this machine computes, with these weights and this program."""
    try:
        if path is None or not path.is_file():
            return None
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    expected = {name: (sum(len(ids) - 1 for ids in texts), model.config.query_dim) for name, texts in (("cased", cased), ("low", low))}
    if {name: tuple(tensor.shape) for name, tensor in kept.items()} != expected:
        return None
    # In the middle of all by length, as `background_states` puts them together.
    order = sorted(range(len(cased)), key=lambda index: len(cased[index]))
    again = order[len(order) // 2 // BATCH * BATCH :][:BATCH]
    of_texts = kept["cased"].split([len(ids) - 1 for ids in cased])
    if any(not torch.equal(of_texts[index], new) for index, new in zip(again, queries_of(model, [cased[i] for i in again]), strict=True)):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was of use
    return World(kept["cased"], torch.cat([kept["cased"], kept["low"]]))


def _keep(path: Path, world: World) -> None:
    """Put a world in its place, whole or not at all, and remove those that were of no use for longest."""
    low = world.both[len(world.cased) :].contiguous()
    with contextlib.suppress(OSError, SafetensorError):  # no room, or none that may be written: computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 3 * world.both.nbytes:
            return
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file({"cased": world.cased, "low": low}, Path(folder, path.name))
            os.replace(Path(folder, path.name), path)
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)[:-MOST]:
            old.unlink()

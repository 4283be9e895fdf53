"""The world: tokens that are no cue of anything, those of the background and of common questions, as the first memory layer sees them.

What recurs in the wordings of a fact is a cue where the world has nothing like it (`memgraft.finding`). The world is the same for every
lesson of a model, and to compute it takes ten times as long as to teach a fact: some 80,000 tokens through a third of the blocks.
So it is kept under the user's cache directory, with its digest. Some of it is computed again when it is read, and must come out with the
same bits.

Shape suffixes: S tokens, P query width.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from memgraft.cache import cache_folder
from memgraft.canonical import canonical_json
from memgraft.covariance import common_questions
from memgraft.errors import GraftError
from memgraft.fingerprint import BaseFingerprint
from memgraft.probes.language_model import context_length
from memgraft.states import background_states, batches_of
from memgraft.store.files import sha256

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel

WORTH = 5.0  # seconds of computing from which a world is kept
MOST_BYTES = 400 << 20  # of all that are kept: four with the default background

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
    both = torch.cat([*queries_of(model, cased), *queries_of(model, low)])
    world = World(both[: _tokens(cased)], both)
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
            "arithmetic": [str(model.base.dtype), model.device.type, torch.get_num_threads()],  # decide how sums are rounded
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
        both = load_file(path)["both"]
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, KeyError):
        return None
    tokens, width = _tokens(cased), model.config.query_dim
    if both.dtype != torch.float32 or both.shape != (tokens + _tokens(low), width) or digest != _digest(both):
        return None
    if not (_comes_out_alike(both[:tokens], model, cased) and _comes_out_alike(both[tokens:], model, low)):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was of use
    return World(both[:tokens], both)


def _digest(both: Tensor) -> str:
    return hashlib.sha256(both.contiguous().numpy().data).hexdigest()


def _tokens(texts: Texts) -> int:
    return sum(len(ids) - 1 for ids in texts)


def _comes_out_alike(queries: Tensor, model: GraftedModel, texts: Texts) -> bool:
    """Whether a batch of these texts, of middle length, has the same queries when it is computed again."""
    batches = batches_of(texts)
    if not batches:
        return True
    again = batches[len(batches) // 2]
    of_texts = queries.split([len(ids) - 1 for ids in texts])
    return all(torch.equal(of_texts[i], new) for i, new in zip(again, queries_of(model, [texts[i] for i in again]), strict=True))


def _keep(path: Path, world: World) -> None:
    """Put a world in its place, whole or not at all, and remove those that were of no use for longest."""
    size = world.both.nbytes
    if size > MOST_BYTES:
        return
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_oldest(path.parent, MOST_BYTES - size)
        if shutil.disk_usage(path.parent).free > 3 * size:
            save_file({"both": world.both}, partial, {"sha256": _digest(world.both)})
            os.replace(partial, path)
    except (OSError, SafetensorError):  # no room, or none that may be written: computed again next time
        with contextlib.suppress(OSError):
            partial.unlink()


def _remove_oldest(folder: Path, limit: int) -> None:
    """Until what is left has at most so many bytes; what a process left that was killed is as old as any."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size

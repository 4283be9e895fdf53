"""Saving a grafted model as a memory store and loading it again. The base model itself is never copied."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import TypeAdapter, ValidationError

import memgraft
from memgraft.background import Background
from memgraft.errors import StoreError
from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint
from memgraft.grafted import GraftedModel
from memgraft.history import History
from memgraft.models import Dtype, load_model
from memgraft.store import MemoryStore, StoreSpec
from memgraft.store.manifest import CONFIG, USAGE, first_problem
from memgraft.usage import Usage


def save(model: GraftedModel, path: str | Path) -> MemoryStore:
    """Write the model's memory to a store: new lessons and reverts into its own store, everything into a new one.

    Raises:
        StoreError: the folder is something else, can't be written, or was changed by another process; then it is as it was.
    """
    path = Path(path)
    own = model.history.store
    if own is not None and own.path.resolve() == path.resolve():
        model.history.save()
        return own
    store = _create(model, path)
    model.history.moved(store)
    return store


def _create(model: GraftedModel, path: Path) -> MemoryStore:
    background = model.background
    spec = StoreSpec(
        memgraft_version=memgraft.__version__,
        memory=model.config,
        model=str(Path(model.source).resolve()) if Path(model.source).exists() else model.source,
        dtype=str(model.base.dtype).removeprefix("torch."),
        base=BaseFingerprint.of(model.base),
        tokenizer=TokenizerFingerprint.of(model.tokenizer),
        background=_background_facts(background) if background else {},
    )
    usage = {key: value for name, used in model.usage.items() for key, value in used.tensors(name).items()}
    texts = background.texts if background else ()
    return MemoryStore.create(path, spec, model.memory_tensors(), usage, texts, model.history.lessons())


def _background_facts(background: Background) -> dict[str, Any]:
    return {"kind": background.kind, "seed": background.seed, "tokens": background.tokens, "document_tokens": background.document_tokens}


def load(
    path: str | Path, *, model: str | None = None, dtype: Dtype | None = None, device: str = "cpu", trust_remote_code: bool = False
) -> GraftedModel:
    """Load the base model that a store was made for and attach the store's memory, with all its active lessons.

    Args:
        model: where the base model is now, if not where it was when the store was made.
        dtype: of the base model; as when the store was made by default.
        device: where the model runs: cpu, cuda, cuda:1, mps.

    Raises:
        StoreError: no store, a damaged one, or one made for another base model or tokenizer. GraftError: the base can't be loaded.
    """
    store = MemoryStore.open(path)
    chosen = dtype or _dtype(store.spec.dtype)
    loaded = load_model(model or store.spec.model, dtype=chosen, device=device, trust_remote_code=trust_remote_code)
    for what, problem in (
        ("base model", store.spec.base.mismatch(BaseFingerprint.of(loaded.model))),
        ("tokenizer", store.spec.tokenizer.mismatch(TokenizerFingerprint.of(loaded.tokenizer))),
    ):
        if problem:
            raise StoreError(f"{path}: made for another {what} than {loaded.source}: {problem}; give the right one with --model")
    warning = store.spec.tokenizer.warning(TokenizerFingerprint.of(loaded.tokenizer))
    if warning:
        warnings.warn(f"{path}: {warning}", stacklevel=2)
    grafted = GraftedModel(loaded.model, loaded.tokenizer, store.spec.memory)
    grafted.source = loaded.source
    grafted.load_memory_tensors(store.memory_tensors())
    grafted.usage = stored_usage(store)
    grafted.background = _stored_background(store)
    grafted.history = History(store)
    grafted.recall()
    return grafted


def stored_usage(store: MemoryStore) -> dict[str, Usage]:
    """Background usage by table. StoreError where the file holds none."""
    tensors = store.usage_tensors()
    try:
        return {name: Usage.from_tensors(tensors, name) for name in store.spec.memory.tables}
    except ValueError as error:
        raise StoreError(f"{store.path / USAGE}: {error}; restore it from a copy of the store") from error


def _stored_background(store: MemoryStore) -> Background | None:
    if not store.spec.background:
        return None
    try:
        return TypeAdapter(Background).validate_python({"texts": tuple(store.background_texts()), **store.spec.background})
    except ValidationError as error:
        raise StoreError(f"{store.path / CONFIG}: background.{first_problem(error)}; restore it from a copy of the store") from error


def _dtype(name: str) -> Dtype:
    return cast(Dtype, name) if name in get_args(Dtype) else "auto"

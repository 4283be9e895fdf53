"""What two stores must share for a lesson of one to mean the same in the other."""

from __future__ import annotations

from pydantic import Field

from memgraft.config import Config, MemoryConfig
from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint
from memgraft.store.manifest import MEMORY, Manifest, Sha256
from memgraft.store.spec import StoreSpec


class Identity(Config):
    """The base model and the addresses that a lesson's rows were written for."""

    memory: MemoryConfig
    keys_sha256: Sha256 = Field(description="digest of memory.safetensors")
    base: BaseFingerprint
    tokenizer: TokenizerFingerprint

    @classmethod
    def of(cls, spec: StoreSpec, manifest: Manifest) -> Identity:
        return cls(memory=spec.memory, keys_sha256=manifest.files[MEMORY][1], base=spec.base, tokenizer=spec.tokenizer)

    def mismatch(self, other: Identity) -> str | None:
        """Why lessons can't be exchanged with another memory; None when they can."""
        for what, problem in (("base model", self.base.mismatch(other.base)), ("tokenizer", self.tokenizer.mismatch(other.tokenizer))):
            if problem:
                return f"it was made for another {what}: {problem}"
        if self.memory != other.memory:
            ours, theirs = self.memory.model_dump(), other.memory.model_dump()
            name = next(name for name in ours if ours[name] != theirs[name])
            return f"its memory differs in {name}: {theirs[name]} instead of {ours[name]}"
        if self.keys_sha256 != other.keys_sha256:
            return "its keys differ: its slots mean something else; only copies of one store, made by one `graft`, can be combined"
        return None

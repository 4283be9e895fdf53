"""What a store was made from and for: the content of its config.json."""

from __future__ import annotations

from pydantic import Field, JsonValue

from memgraft.config import Config, MemoryConfig
from memgraft.fingerprint import BaseFingerprint, TokenizerFingerprint

FORMAT_VERSION = 4  # 2 adds tags, gc, kept data and bf16 rows to 1, 3 adds cues, 4 anchors


class StoreSpec(Config):
    """The facts of a memory store that never change after it was made."""

    format_version: int = Field(default=FORMAT_VERSION, description="layout of the store, see docs/store-format.md")
    memgraft_version: str = Field(description="version of memgraft that made the store")
    memory: MemoryConfig = Field(description="the memory layers")
    model: str = Field(min_length=1, description="the base model as the user named it: a Hub id, a folder or a file")
    dtype: str = Field(description="dtype that the base model was loaded with, such as bfloat16")
    base: BaseFingerprint = Field(description="how the base model is recognised")
    tokenizer: TokenizerFingerprint = Field(description="how the tokenizer is recognised")
    background: dict[str, JsonValue] = Field(default_factory=dict, description="how the background text and the usage were made")
    calibration: dict[str, JsonValue] = Field(default_factory=dict, description="how queries, sub-keys and scale were made")

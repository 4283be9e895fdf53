"""The memory store: the folder that holds a grafted memory and its lessons. Format: docs/store-format.md."""

from memgraft.store.lessons import Overlap, RevertReport
from memgraft.store.manifest import HistoryEntry
from memgraft.store.merge import Conflict, MergeReport
from memgraft.store.record import Record
from memgraft.store.spec import FORMAT_VERSION, StoreSpec
from memgraft.store.store import GcReport, MemoryStore

__all__ = [
    "FORMAT_VERSION",
    "Conflict",
    "GcReport",
    "HistoryEntry",
    "MemoryStore",
    "MergeReport",
    "Overlap",
    "Record",
    "RevertReport",
    "StoreSpec",
]

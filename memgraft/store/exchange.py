"""One lesson as one file, to take it to another store of the same base and keys.

The file is the lesson's safetensors file with more in its metadata: the header, the record, and what the lesson's slots
mean (`Identity`). It is read as hostile: its size is bounded before it is read, and its content checked before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from memgraft.canonical import canonical_json
from memgraft.config import MemoryConfig
from memgraft.errors import StoreError
from memgraft.store import files, lessons
from memgraft.store.identity import Identity
from memgraft.store.manifest import check_version, first_problem, parse
from memgraft.store.record import check_record
from memgraft.store.spec import FORMAT_VERSION

if TYPE_CHECKING:
    from memgraft.commits import Commit

_KEYS = {"format_version", "message", "recipe", "data_sha256", "id", "record", "identity"}
_CUES_LIMIT = 100_000  # cues, of as many facts, and anchors
_METADATA_LIMIT = 8 << 20  # bytes of header and record, of a lesson of some 10,000 facts


def export_lesson(commit: Commit, identity: Identity, path: Path) -> None:
    """Writes a lesson to a file that must not exist. StoreError, with nothing left behind, when it can't."""
    import safetensors.torch

    if path.exists() or path.is_symlink():
        raise StoreError(f"{path}: exists already; choose another name")
    about = {
        "format_version": FORMAT_VERSION,
        **commit.header(),
        "id": commit.id,
        "record": dict(commit.record),
        "identity": identity.model_dump(mode="json"),
    }
    text = canonical_json(about)
    if len(text) > _METADATA_LIMIT:
        raise StoreError(f"{path}: the lesson's header and record have {len(text):,} bytes, at most {_METADATA_LIMIT:,} fit")
    data = safetensors.torch.save(lessons.tensors_of(commit), {"memgraft": text.decode()})
    with files.nothing_changed(path):
        files.write_file(path, data)
        files.sync_folder(path.resolve().parent)


def import_lesson(path: Path, identity: Identity) -> Commit:
    """The lesson in a file. StoreError when it is none, is damaged, or was made for another memory."""
    from memgraft.commits import Commit

    if not path.exists():
        raise StoreError(f"{path}: no such file; give one that `memgraft export` wrote")
    data = files.read_bytes(path, size_limit(identity.memory))
    about = _about(data, str(path))
    try:
        theirs = Identity.model_validate(about["identity"])
    except ValidationError as error:
        raise _damaged(path, f"identity: {first_problem(error)}") from error
    problem = identity.mismatch(theirs)
    if problem:
        raise StoreError(f"{path}: the lesson does not fit this store: {problem}")
    check_record(about["record"], str(path), "export the lesson again")
    changes, cues = lessons.decode(data, identity.memory, str(path))
    commit = Commit(changes, about["message"], about["recipe"], about["data_sha256"], about["record"], cues=cues)
    if commit.id != about["id"]:
        raise _damaged(path, f"it says that it holds the lesson {about['id'][:12]!r} and holds {commit.id[:12]}")
    return commit


def size_limit(memory: MemoryConfig) -> int:
    """Bytes of the largest lesson file that a memory can have."""
    from memgraft.anchors import KEY_DIM

    row = 8 + 4 * memory.hidden_size
    anchors = 0 if memory.answer_layer is None else _CUES_LIMIT * (12 + 4 * KEY_DIM + row)
    return len(memory.tables) * memory.slots * row + _CUES_LIMIT * (16 + 4 * memory.query_dim) + anchors + 2 * _METADATA_LIMIT


def _about(data: bytes, where: str) -> dict[str, Any]:
    """The file's own description, found by the safetensors header: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 2 * _METADATA_LIMIT):
        raise _damaged(where, "not a safetensors file, or cut short")
    metadata = parse(data[8 : 8 + length], where).get("__metadata__")
    text = metadata.get("memgraft") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise _damaged(where, "not a lesson that `memgraft export` wrote")
    about = parse(text.encode(errors="replace"), where)
    check_version(about, where)
    kinds = {"message": str, "recipe": dict, "data_sha256": str, "id": str, "record": dict, "identity": dict}
    wrong = sorted(_KEYS.symmetric_difference(about)) or [key for key, kind in kinds.items() if not isinstance(about[key], kind)]
    if wrong:
        raise _damaged(where, f"{wrong[0][:80]!r} is missing, unknown or of another type; export the lesson from a memory store")
    return about


def _damaged(where: str | Path, what: str) -> StoreError:
    return StoreError(f"{where}: {what}; export the lesson again")

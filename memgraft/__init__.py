"""memgraft: graft a sparse memory onto a pretrained language model, teach it, inspect and undo every lesson.

Names are imported on first use, so that `import memgraft` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgraft.commits import Commit, Rows
    from memgraft.config import MemoryConfig
    from memgraft.errors import DataError, GraftError, MemgraftError, StoreError, TeachingError
    from memgraft.graft import GraftedModel
    from memgraft.models import LoadedModel, demo_model_path, load_model

__version__ = "0.1.0"

__all__ = [
    "Commit",
    "DataError",
    "GraftError",
    "GraftedModel",
    "LoadedModel",
    "MemgraftError",
    "MemoryConfig",
    "Rows",
    "StoreError",
    "TeachingError",
    "__version__",
    "demo_model_path",
    "load_model",
]

_MODULES = {
    "memgraft.commits": ("Commit", "Rows"),
    "memgraft.config": ("MemoryConfig",),
    "memgraft.errors": ("DataError", "GraftError", "MemgraftError", "StoreError", "TeachingError"),
    "memgraft.graft": ("GraftedModel",),
    "memgraft.models": ("LoadedModel", "demo_model_path", "load_model"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'memgraft' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""memgraft: graft a sparse memory onto a pretrained language model, teach it, inspect and undo every lesson.

Names are imported on first use, so that `import memgraft` costs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memgraft.commits import Commit, Rows
    from memgraft.config import MemoryConfig
    from memgraft.errors import DataError, GraftError, MemgraftError, StoreError, TeachingError
    from memgraft.grafted import GraftedModel
    from memgraft.grafting import graft
    from memgraft.models import LoadedModel, demo_model_path, load_model
    from memgraft.persistence import load
    from memgraft.store import MemoryStore
    from memgraft.teaching import Recipe

__version__ = "0.1.0"

__all__ = [
    "Commit",
    "DataError",
    "GraftError",
    "GraftedModel",
    "LoadedModel",
    "MemgraftError",
    "MemoryConfig",
    "MemoryStore",
    "Recipe",
    "Rows",
    "StoreError",
    "TeachingError",
    "__version__",
    "demo_model_path",
    "graft",
    "load",
    "load_model",
]

_MODULES = {
    "memgraft.commits": ("Commit", "Rows"),
    "memgraft.config": ("MemoryConfig",),
    "memgraft.errors": ("DataError", "GraftError", "MemgraftError", "StoreError", "TeachingError"),
    "memgraft.grafted": ("GraftedModel",),
    "memgraft.grafting": ("graft",),
    "memgraft.models": ("LoadedModel", "demo_model_path", "load_model"),
    "memgraft.persistence": ("load",),
    "memgraft.store": ("MemoryStore",),
    "memgraft.teaching": ("Recipe",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """Keeps `memgraft.graft` the function: importing the submodule of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'memgraft' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

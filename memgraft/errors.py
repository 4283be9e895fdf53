"""Errors that a user can act on: one readable line saying what was wrong, where, and what to do."""


class MemgraftError(Exception):
    """Base of every error that memgraft raises on purpose. The command line prints it without a traceback."""


class DataError(MemgraftError):
    """Input data that can't be used: names the file, line and field."""


class GraftError(MemgraftError):
    """A model that can't be grafted, or a memory that does not fit it: names the layer or tensor."""


class StoreError(MemgraftError):
    """A memory store that is damaged, incomplete, locked, newer than this version, or made for another model."""


class TeachingError(MemgraftError):
    """A lesson that can't go on: no supervised token, a loss that is not finite, a prompt beyond the context."""


class MeasureError(MemgraftError):
    """A model that can't be measured: its predictions are not finite numbers."""


class GateError(TeachingError):
    """A lesson after which a probe was worse than before, and which was therefore not kept."""

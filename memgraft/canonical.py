"""JSON as memgraft writes and reads it: equal values have equal bytes, and what has two meanings is refused.

Beware: floats keep Python's shortest round-trip form, so the bytes are as portable as that (any CPython since 3.1).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes.

    Raises ValueError or TypeError for what JSON can't give back as it was: NaN, infinities, keys that are not text
    (they would sort differently once they are), text that is not Unicode, other types.
    """
    try:
        _refuse_keys(value)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text is not valid Unicode: {error.object[error.start]!a} can't be written as UTF-8") from error
    except RecursionError as error:
        raise ValueError("value is nested too deeply, or contains itself") from error


def parse_json(data: bytes) -> Any:
    """The value of a UTF-8 JSON text, which `canonical_json` can write again.

    Raises ValueError, one line, also for duplicate keys, NaN, numbers beyond a float, lone surrogates and a byte-order mark.
    """
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair is not text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


def _refuse_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"JSON keys must be text, got {key!r} ({type(key).__name__})")
            _refuse_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_keys(item)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

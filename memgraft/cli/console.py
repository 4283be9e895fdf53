"""What commands print: results on stdout, everything else on stderr; text from files and models can't steer the terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 10_000  # columns where no terminal sets a width: nothing is cut in files and pipes
ID_LENGTH = 12  # characters of a lesson's id that are shown


def plain(text: str) -> str:
    """Text with control characters and lone surrogates written out, line breaks and tabs kept."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else ascii(c)[1:-1] for c in text)


def first_line(text: str) -> str:
    """The first line of a message, marked where more follows."""
    line, *more = text.strip().splitlines() or [""]
    return plain(line) + (" …" if more else "")


def short(id: str) -> str:
    """A lesson's id as people read it."""
    return id[:ID_LENGTH]


def console(*, stderr: bool = False) -> Console:
    """A console without markup, emoji codes or highlighting; a fresh one, as tests exchange the streams."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, markup=False, emoji=False, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """Something for people, on stdout, wrapped by the terminal only."""
    print(plain(text))


def remark(text: str) -> None:
    """Something on the side, on stderr."""
    print(plain(text), file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """A table without lines, each row on a line of its own where the terminal is wide enough.

    Args:
        columns: headings.
        rows: cells; None is an empty one.
        numbers: headings of the columns that are aligned on the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column), justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else plain(str(cell))) for cell in row))
    target = console()
    with target.capture() as capture:
        target.print(table)
    # The last column is padded to its widest cell, which would wrap in a narrower window later.
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))

"""How every command runs and ends: errors as one line on stderr, an exit code, no traceback unless it was asked for."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

from memgraft.cli.console import plain
from memgraft.cli.stopping import Stopped, terminable
from memgraft.errors import MemgraftError

FAILED = 1
DEBUG = "--debug"


class Commands(TyperGroup):
    """The commands of memgraft. However one is called, `main` ends with an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line, without the program's name. Returns the exit code, or exits with it in standalone mode."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            with terminable():
                # Commands end by returning, or with typer.Exit, whose code comes back as a number.
                result = super().main(without_debug(given), prog_name, complete_var, False, windows_expand_args, **extra)
            code = result if isinstance(result, int) else 0
        except Exception as error:
            if debugging(given):
                traceback.print_exc()
            else:
                print(told(error), file=sys.stderr)
            code = error.code if isinstance(error, Stopped) else FAILED
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped(interrupt) from interrupt


def told(error: Exception) -> str:
    """What the user reads of an error: one line for each thing that is wrong."""
    if isinstance(error, Stopped):
        return str(error)
    if isinstance(error, MemgraftError):
        lines = str(error).splitlines() or [type(error).__name__]
        return "error: " + "\n       ".join(plain(line) for line in lines)
    # Errors of use: their base class has another place from one version of typer to the next.
    explain = getattr(error, "format_message", None)
    if explain is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "memgraft"
        return f"error: {plain(_one_line(explain()).rstrip('.'))} (see `{command} --help`)"
    return f"error: unexpected {type(error).__name__}: {plain(_one_line(str(error)))} (run again with {DEBUG} for the traceback)"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else line[:399] + "…"


def without_debug(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--debug`, which may stand anywhere before a `--`."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [argument for at, argument in enumerate(arguments) if argument != DEBUG or at > end]


def debugging(arguments: Sequence[str]) -> bool:
    """Whether tracebacks are wanted."""
    return len(without_debug(arguments)) < len(arguments) or os.environ.get("MEMGRAFT_DEBUG", "").lower() in ("1", "true", "yes", "on")

"""The command line: `memgraft VERB …`, one module a verb.

Torch and transformers are imported inside the commands that need them, so that `--help` and `log` answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run a command line, that of the process by default, and exit with its code."""
    from memgraft.cli.app import app
    from memgraft.cli.running import debugging

    # Read by the libraries when a command imports them; a user's own setting wins.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = sys.argv[1:] if arguments is None else arguments
    if not sys.warnoptions and not debugging(given):
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(args=given, prog_name="memgraft")

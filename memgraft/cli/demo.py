"""`memgraft demo`: the whole way once, on a small real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results go.")] = Path("out/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Teach fewer facts. The first run still grafts the model, for some minutes.")
    ] = False,
) -> None:
    """See everything once, on a small real model.

    Grafts it, teaches it facts that it can't know, measures what it learned and forgot, and takes the lesson back.
    """
    from memgraft.demo.run import run_demo

    run_demo(output, quick=quick)

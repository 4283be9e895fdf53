"""The list of commands, in the order in which a user meets them."""

from __future__ import annotations

from typing import Annotated

import typer

import memgraft
from memgraft.cli import ask, blame, check, compare, demo, diff, doctor, exchange, graft, learn, log, merge, revert, show, tag, upkeep
from memgraft.cli.running import Commands

# Plain help of a fixed width: docs/cli.md is made from it, and no library beside typer is imported for it.
app = typer.Typer(
    name="memgraft",
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100, "max_content_width": 100},
)


@app.callback()
def memgraft_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; before or after the command. [env: MEMGRAFT_DEBUG]")] = False,
) -> None:
    """Graft a sparse memory onto a pretrained language model, teach it, and inspect, check and undo every lesson.

    Exit codes: 0 all is well, 1 an error (one line on stderr), 2 `check` or a gate found that something was forgotten, 130 and 143 stopped.
    """
    if version:
        typer.echo(f"memgraft {memgraft.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("graft")(graft.graft)
app.command("learn")(learn.learn)
app.command("ask")(ask.ask)
app.command("check")(check.check)
app.command("compare")(compare.compare)
app.command("log")(log.log)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("blame")(blame.blame)
app.command("revert")(revert.revert)
app.command("merge")(merge.merge)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)
app.command("tag")(tag.tag)
app.command("verify")(upkeep.verify)
app.command("gc")(upkeep.gc)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)

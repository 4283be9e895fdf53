"""Writes docs/cli.md to stdout, out of what `--help` says: `python -m memgraft.cli.reference > docs/cli.md`."""

from __future__ import annotations

import typer

from memgraft.cli.app import app

_HEAD = """# The command line

Made from `memgraft --help` by `make docs`; a test checks that it is up to date.
"""


def reference() -> str:
    """The help of every command as one Markdown page."""
    group = typer.main.get_command(app)
    with group.context_class(group, info_name="memgraft", **group.context_settings) as context:
        parts = [_HEAD, _section("memgraft", group.get_help(context))]
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            with command.context_class(command, info_name=name, parent=context, **command.context_settings) as inner:
                parts.append(_section(f"memgraft {name}", command.get_help(inner)))
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")

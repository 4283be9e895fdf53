"""Writes docs/cli.md to stdout, out of what `--help` says: `python -m memgraft.cli.reference > docs/cli.md`.

With the word `settings` behind it, docs/settings.md, out of what the configurations say of their fields.
"""

from __future__ import annotations

import json
import sys

import typer
from pydantic.fields import FieldInfo

from memgraft.cli.app import app
from memgraft.config import Config, MemoryConfig
from memgraft.teaching import Recipe
from memgraft.writers import SGD, Adam, LeastInterference

BAR = r"\|"  # a | within a cell of a table
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


_SETTINGS_HEAD = """# Settings

Every field of a recipe and of a memory, with its default. Made from the code by `make docs`; a test checks that it is up to date.
[concepts.md](concepts.md) has the formulas, [tried.md](tried.md) what else was tried.

In Python: `model.learn(data, recipe=Recipe(passes=3))`, `graft(source, top_k=16)`. On the command line the common ones are options, and
`learn --recipe FILE.json` takes all of a recipe's.
"""
_CONFIGURATIONS: dict[str, tuple[type[Config], str]] = {
    "A recipe": (Recipe, "`memgraft.teaching.Recipe`: what a lesson does, beside its data."),
    "The writer `least-interference`": (LeastInterference, "The default. `memgraft.writers.LeastInterference` has the formula."),
    "The writer `sgd`": (SGD, "For what memory layers read, as in Lin et al. 2025."),
    "The writer `adam`": (Adam, "For what memory layers read, as in Goyal et al. 2026."),
    "A memory": (
        MemoryConfig,
        "`memgraft.config.MemoryConfig`. `graft` puts one layer at a third of the depth, the answer layer at three quarters, or where "
        "questions are told apart far better.",
    ),
}


def settings() -> str:
    """The fields of the configurations as one Markdown page."""
    parts = [_SETTINGS_HEAD]
    for title, (kind, about) in _CONFIGURATIONS.items():
        rows = [_row(name, field) for name, field in kind.model_fields.items() if field.description]
        parts.append("\n".join((f"## {title}\n\n{about}\n", "| field | default | |", "| --- | --- | --- |", *rows, "")))
    return "\n".join(parts)


def _row(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if field.is_required() else "none" if default is None else f"`{getattr(default, 'name', None) or json.dumps(default)}`"
    return f"| `{name}` | {shown} | {(field.description or '').replace('|', BAR)} |"


if __name__ == "__main__":
    print(settings() if sys.argv[1:] == ["settings"] else reference(), end="")

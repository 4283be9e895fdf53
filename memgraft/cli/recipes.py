"""A lesson's recipe from a JSON file and the options of `learn`, the options winning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgraft.cli.options import NONE, settings_of
from memgraft.errors import DataError, TeachingError

if TYPE_CHECKING:
    from memgraft.teaching import Recipe


def build_recipe(
    file: Path | None, settings: Mapping[str, Any], *, writer: str | None, learning_rate: float | None, background_weight: float | None
) -> Recipe:
    """The recipe of a lesson.

    Args:
        file: JSON with any fields of a recipe, or what `show --json` prints, which has them under "recipe".
        settings: fields of the recipe itself, `none` for no value; those that are None were not given.
        writer, learning_rate, background_weight: of the writer; another writer than the file's starts from its own defaults.

    Raises:
        DataError: a file that can't be read or is no recipe. TeachingError: options that don't fit together.
    """
    from memgraft.teaching import Recipe

    fields = _read(file) if file is not None else {}
    with settings_of(str(file), DataError):
        base = Recipe.model_validate(fields)
    rule = base.writer.model_dump()
    if writer is not None and writer != rule["name"]:
        rule = {"name": writer}
    if background_weight is not None and rule["name"] != "least-interference":
        raise TeachingError(f"--mu is a setting of the writer least-interference, not of {rule['name']}; leave it out")
    own = {"learning_rate": learning_rate, "background_weight": background_weight}
    rule |= {name: value for name, value in own.items() if value is not None}
    given = {name: None if value == NONE else value for name, value in settings.items() if value is not None}
    with settings_of("the lesson can't be taught like this", TeachingError):
        return Recipe.model_validate({**base.model_dump(), **given, "writer": rule})


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: expected a recipe as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a recipe as a JSON object, got {type(value).__name__}")
    inner = value.get("recipe")
    return inner if isinstance(inner, dict) else value

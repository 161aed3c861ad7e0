"""Option `--recipe`: a file of settings in place of many options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from compare2score.errors import LabelError


def use_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes a recipe file's settings the defaults of the other options. Raises LabelError."""
    if path is None:
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as JSON; give a recipe file.") from error
    known = {parameter.name for parameter in context.command.params}
    unknown = sorted(set(settings) - known) if isinstance(settings, dict) else ["no object"]
    if unknown:
        raise LabelError(f"{path} sets {unknown[0]!r}, which is no option of this command; take it out.")
    context.default_map = {**(context.default_map or {}), **settings}
    return path


RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="JSON",
        is_eager=True,
        callback=use_recipe,
        help="File of settings by option name, which options given here overrule.",
    ),
]

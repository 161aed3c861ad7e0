"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Bundle = Annotated[
    Path | None, typer.Option("--bundle", metavar="DIR", help="Bundle folder; without it, the embedded one.")
]
Backend = Annotated[str, typer.Option("--backend", metavar="NAME", help="What runs the graphs.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads; without it, the backend's choice."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, for machines.")]


def examples(*lines: str) -> str:
    """The end of a verb's help."""
    # \b keeps the help's formatter from joining the lines.
    return "\b\n" + "\n".join(
        ["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)]
    )


class ManyValues(TyperCommand):
    """A verb whose repeatable options take several values: `--images a b` is `--images a --images b`.

    Such an option takes all that follows it up to the next option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        return super().parse_args(ctx, repeat_option(args, names))


def repeat_option(arguments: list[str], names: set[str]) -> list[str]:
    """Writes every value that follows an option of `names` as an option of its own."""
    spread: list[str] = []
    option = ""
    values = 0
    for place, argument in enumerate(arguments):
        if argument == "--":
            return spread + arguments[place:]
        if argument.startswith("-"):
            option, values = (argument if argument in names else ""), 0
            spread.append(argument)
        else:
            spread += [option, argument] if option and values else [argument]
            values += 1
    return spread

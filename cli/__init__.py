"""`c2s`, the command line: one file a verb or group of verbs.

Exit status: 0 done, 1 some inputs failed, 2 wrong use or nothing could be done, 130 interrupted, 141 the
output's reader went away. Whatever a user can cause is one sentence on stderr; a traceback is a bug.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compare2score import __version__
from compare2score.cli import anchors, bench, build, compare, evaluate, export, info, rank, score, train
from compare2score.cli import filter as filtering
from compare2score.cli.console import remark
from compare2score.cli.options import ManyValues
from compare2score.errors import Compare2ScoreError

__all__ = ["app", "main"]

WRONG_USE, INTERRUPTED, READER_GONE = 2, 130, 141


class Verbs(TyperGroup):
    """All verbs; turns what goes wrong in one into a sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            # Here, where a reader that is gone can still be handled, not at the interpreter's end.
            sys.stdout.flush()
            return result
        except Compare2ScoreError as error:
            remark(str(error))
            raise typer.Exit(WRONG_USE) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            # What is left in the buffer would be written, and fail, once more at the interpreter's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from error
        except OSError as error:
            name = "a file" if error.filename is None else error.filename
            remark(f"The operating system refuses {name} ({error.strerror}); check the path and the disk.")
            raise typer.Exit(WRONG_USE) from error


app = typer.Typer(
    cls=Verbs,
    help="Image quality scores on the device: how a photograph compares with five anchors.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: it appears at once, and reads the same in a terminal, a log and a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before the verb."""


app.command(epilog=score.EXAMPLES)(score.score)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=rank.EXAMPLES)(rank.rank)
app.command("filter", epilog=filtering.EXAMPLES)(filtering.filter_)
app.command(epilog=info.EXAMPLES)(info.info)
app.command(epilog=bench.EXAMPLES, cls=ManyValues)(bench.bench)
app.command("eval", epilog=evaluate.EXAMPLES, cls=ManyValues)(evaluate.evaluate)
app.command(epilog=export.EXAMPLES, cls=ManyValues)(export.export)
app.command(epilog=build.EXAMPLES)(build.build)
app.add_typer(anchors.group, name="anchors")
app.add_typer(train.group, name="train")


def main() -> None:
    """Runs the command line of this process and ends it."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding does not know must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="c2s")

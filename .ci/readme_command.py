"""Print the fenced block that directly follows `<!-- ci:NAME -->` in a README.

The README is what a newcomer types, so the check types exactly that.
Exit status: 0 printed, 2 when there is not exactly one such block (one sentence on stderr).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(markdown: str, name: str) -> list[str]:
    """Contents of every fenced block after `<!-- ci:name -->`; only blank lines may stand between the two."""
    marked = rf"^<!-- ci:{re.escape(name)} -->[ ]*\n\s*?^(`{{3,}})[^`\n]*\n(.*?)^\1[ ]*$"
    return [match[2] for match in re.finditer(marked, markdown, re.MULTILINE | re.DOTALL)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="what stands after `ci:` in the comment, e.g. use")
    parser.add_argument(
        "readme", nargs="?", type=Path, default=README, help="default: the README of this repository"
    )
    arguments = parser.parse_args()
    try:
        found = blocks(arguments.readme.read_text(encoding="utf-8"), arguments.name)
    except OSError as error:
        print(
            f"{arguments.readme} cannot be read ({error.strerror}): name a README that exists.",
            file=sys.stderr,
        )
        return 2
    if len(found) != 1:
        print(
            f"{arguments.readme} has {len(found)} fenced blocks directly after <!-- ci:{arguments.name} -->:"
            " it must have exactly one.",
            file=sys.stderr,
        )
        return 2
    print(found[0], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`c2s rank`: images of one scene, or of many, in the order of their quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compare2score.cli.console import print_json, print_table, remark, track
from compare2score.cli.inputs import expand
from compare2score.cli.options import Backend, Bundle, Json, Threads, examples
from compare2score.errors import CollectionError, ImageError

if TYPE_CHECKING:
    from compare2score.pipelines.ranking import Encoded, Ranked
    from compare2score.pipelines.selection import Choice

EXAMPLES = examples(
    "c2s rank burst/",
    "c2s rank holiday/ --group-by time --top 1 --copy-to best/",
    "c2s rank a.jpg b.jpg c.jpg --json",
)
SOME_FAILED = 1
GroupBy = Literal["time", "hash"]


@dataclass(frozen=True)
class Place:
    """An image's path, the number of its group and its rank in it, both from 1, and what the ranking says."""

    path: str
    group: int
    rank: int
    result: Ranked


def rank(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders and quoted patterns.")],
    top: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Only the best K, of each group if there are any.")
    ] = None,
    group_by: Annotated[
        GroupBy | None,
        typer.Option(help="Rank each burst by itself, found by the time between shots or by likeness."),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Between two shots of a burst, at most [default: 2]."),
    ] = None,
    distance: Annotated[
        int | None,
        typer.Option(metavar="BITS", min=0, max=64, help="Between two hashes of a burst [default: 8]."),
    ] = None,
    copy_to: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy what is printed.")] = None,
    link_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Link what is printed, symbolically.")
    ] = None,
    listing: Annotated[
        Path | None, typer.Option("--list", metavar="FILE", help="Write the paths of what is printed.")
    ] = None,
    bundle: Bundle = None,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Order images by quality, the best first, by comparing them with each other and with the anchors.

    Made for a burst or a folder of near-duplicates. Up to 24 images are compared pair by pair; in a larger
    group each meets about 16 others, chosen where it is least sure who is ahead. Each image is encoded once.
    Score, q and std are on the scale of 'c2s score'; "above next" is the probability that an image is better
    than the one that follows it in its group.

    With --json one line an image: path, group, rank, value, q, std, beats_next and comparisons, or path and
    error with its code and message. Exit status 1 says that some images have an error in place of a rank.
    """
    from compare2score import Scorer
    from compare2score.pipelines.ranking import check_size, encode_images, rank_images
    from compare2score.pipelines.selection import Choice

    check(group_by, gap, distance)
    choice = Choice(copy_to=copy_to, link_to=link_to, listing=listing)
    inputs = expand(paths)
    sources = [item.path for item in inputs if item.error is None]
    if group_by is None:
        check_size(len(sources))
    scorer = Scorer(bundle, backend=backend, threads=threads)
    # Asked now: a bundle without anchors is refused before any image is read.
    _ = scorer.anchors
    encoder = encode_images(scorer, sources, hashed=group_by == "hash")
    encoded: list[tuple[str, Encoded]] = []
    failed: list[tuple[str, ImageError]] = []
    for item in track(inputs, len(inputs), "Encoding"):
        result = item.error or next(encoder)
        if isinstance(result, ImageError):
            failed.append((item.path, result))
        else:
            encoded.append((item.path, result))
    groups = find_groups(encoded, group_by, gap, distance)
    for group in groups:
        check_size(len(group))

    places = []
    for number, group in enumerate(track(groups, len(groups), "Comparing"), 1):
        ranking = rank_images(scorer, [encoded[image][1] for image in group])[:top]
        places += [
            Place(encoded[group[at.index]][0], number, place, at) for place, at in enumerate(ranking, 1)
        ]
    if as_json:
        print_lines(places, failed)
    else:
        print_places(places, failed, group_by is not None)
    keep([place.path for place in places], scorer.bundle.identity, choice)
    if failed:
        remark(f"{len(failed)} of {len(inputs)} images could not be ranked; their rows say why.")
        raise typer.Exit(SOME_FAILED)


def check(group_by: str | None, gap: float | None, distance: int | None) -> None:
    """Raises CollectionError for options that do not go together: now, not after minutes of encoding."""
    for name, value, owner in (("--gap", gap, "time"), ("--distance", distance, "hash")):
        if value is not None and group_by != owner:
            raise CollectionError(f"{name} bounds the bursts of --group-by {owner}; give that, too.")


def find_groups(
    encoded: Sequence[tuple[str, Encoded]], group_by: str | None, gap: float | None, distance: int | None
) -> list[list[int]]:
    """The places in `encoded` of every group's images."""
    from compare2score.pipelines import bursts

    if group_by is None:
        return [list(range(len(encoded)))] if encoded else []
    if group_by == "hash":
        hashes = [image.hash for _, image in encoded if image.hash is not None]
        return bursts.group_by_hash(hashes, bursts.DISTANCE if distance is None else distance)
    times = [bursts.capture_time(path) for path, _ in encoded]
    if unknown := times.count(None):
        remark(f"{unknown} of {len(times)} images do not say when they were taken; each is its own group.")
    return bursts.group_by_time(times, bursts.GAP if gap is None else gap)


def print_lines(places: Sequence[Place], failed: Sequence[tuple[str, ImageError]]) -> None:
    """Prints every image as a line of JSON, those without a rank last."""
    for place in places:
        result = place.result
        row: dict[str, Any] = {"path": place.path, "group": place.group, "rank": place.rank}
        row |= {"value": result.value, "q": result.q, "std": result.std}
        print_json(row | {"beats_next": result.beats_next, "comparisons": result.comparisons})
    for path, error in failed:
        print_json({"path": path, "error": {"code": error.code, "message": str(error)}})


def print_places(places: Sequence[Place], failed: Sequence[tuple[str, ImageError]], grouped: bool) -> None:
    """Prints every image as a row of a table, those without a rank last."""
    rows = []
    for place in places:
        result = place.result
        beats = "-" if result.beats_next is None else f"{result.beats_next:.2f}"
        numbers = [f"{result.value:.2f}", f"{result.q:+.2f}", f"{result.std:.2f}", beats]
        rows.append([place.path, *[f"{place.group}"] * grouped, f"{place.rank}", *numbers])
    blank = ["-"] * (5 + grouped)
    rows = [[*row, *[""] * bool(failed)] for row in rows]
    rows += [[path, *blank, f"{error.code}: {error}"] for path, error in failed]
    headings = ["path", *["group"] * grouped, "rank", "score", "q", "std", "above next"]
    print_table([*headings, *["error"] * bool(failed)], rows)


def keep(paths: Sequence[str], bundle: str, choice: Choice) -> None:
    """Copies, links and lists images; in a folder, names that collide get a number."""
    from compare2score.pipelines.decoder import digest
    from compare2score.pipelines.rows import Row
    from compare2score.pipelines.selection import carry_out
    from compare2score.pipelines.sources import file_entry

    if choice.wanted:
        # The hash tells a copy made before from another image of the same name.
        rows = ((path, Row(path, bundle, sha256=digest(path)[1])) for path in paths)
        carry_out(((file_entry(path, path, follow_links=True), row) for path, row in rows), choice)

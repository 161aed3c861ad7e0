"""The documents' commands can be extracted, and what they link to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*[ ]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
TARGET = re.compile(
    r"\]\(\s*<?([^)>\s]+)|\b(?:src|srcset|href)=\"([^\"\s]+)|^\s*\[[^\]]+\]:\s*<?([^>\s]+)", re.MULTILINE
)
ELSEWHERE = re.compile(
    r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE
)  # another site, or a heading of this document


def missing_targets(document: Path, root: Path) -> list[str]:
    """Relative link and image targets in `document` that name nothing inside `root`."""
    targets = [
        "".join(groups) for groups in TARGET.findall(CODE.sub("", document.read_text(encoding="utf-8")))
    ]
    missing: list[str] = []
    for target in targets:
        if ELSEWHERE.match(target):
            continue
        path = (document.parent / unquote(target.partition("#")[0])).resolve()
        if not path.exists() or not path.is_relative_to(root.resolve()):
            missing.append(target)
    return missing


def extract(name: str, *readme: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "readme_command.py"), name, *map(str, readme)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "ends_in"), [("use", "c2s"), ("test", "pytest")])
def test_readme_command_is_found(name: str, ends_in: str) -> None:
    done = extract(name)
    assert done.returncode == 0, done.stderr
    assert "-c constraints.txt" in done.stdout
    assert f".venv/bin/{ends_in}" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert missing_targets(document, ROOT) == []


def test_a_marked_block_is_printed_as_it_stands(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "```sh\nnot this\n```\n<!-- ci:use -->\n```sh\nfirst && \\\n  second\n```\n\n"
        "<!-- ci:test -->\n\n````\n```\nthird\n````\n",
        encoding="utf-8",
    )
    assert extract("use", readme).stdout == "first && \\\n  second\n"
    assert extract("test", readme).stdout == "```\nthird\n"


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nunmarked\n```\n",
        "<!-- ci:use -->\nA sentence between.\n```sh\ncommand\n```\n",
        "<!-- ci:use -->\n```sh\nnever closed\n",
        "<!-- ci:use -->\n```sh\nonce\n```\n<!-- ci:use -->\n```sh\ntwice\n```\n",
    ],
)
def test_without_exactly_one_block_the_extractor_says_so(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    done = extract("use", readme)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "ci:use" in done.stderr


def test_an_absent_readme_is_one_sentence(tmp_path: Path) -> None:
    done = extract("use", tmp_path / "README.md")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there is.md").touch()
    document = tmp_path / "README.md"
    document.write_text(
        "[ok](there%20is.md#part) [`ok`](<https://example.org>) [ok](#here) `[code](code.md)`\n"
        "[dead](gone.md) ![dead](gone.png 'title') <img src=\"gone.svg\"> [outside](../..)\n"
        "```md\n[code](code.md)\n```\n[name]: gone.txt\n",
        encoding="utf-8",
    )
    assert missing_targets(document, tmp_path) == ["gone.md", "gone.png", "gone.svg", "../..", "gone.txt"]

"""The images' recipes: linted, not root, with a health command that works; nothing is built here."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "docker").glob("Dockerfile*"))
INSTALLED = "/opt/compare2score"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def instructions(recipe):
    """Instruction and argument of every line, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def let_through(path, rules):
    """Whether .dockerignore sends a path below the root to the build; the last rule that fits decides."""
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        starts = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        fits = any(fnmatch.fnmatchcase(start, pattern) for start in starts)
        if "**/" in rule:
            fits = any(fnmatch.fnmatchcase(part, pattern) for part in parts)
        if fits:
            sent = rule.startswith("!")
    return sent


def rules():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_there_is_an_image_for_each_kind_of_machine():
    assert [recipe.name for recipe in RECIPES] == ["Dockerfile", "Dockerfile.jetson"]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_hadolint_has_nothing_to_say(recipe):
    done = subprocess.run([HADOLINT, "--no-color", str(recipe)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_base_is_pinned_and_what_runs_is_not_root(recipe):
    found = instructions(recipe)
    (base,) = [argument for name, argument in found if name == "ARG" and argument.startswith("BASE=")]
    assert re.fullmatch(r"BASE=nvcr\.io/nvidia/[\w-]+:[\w.-]+", base)
    assert not base.endswith(":latest")
    users = [place for place, (name, _) in enumerate(found) if name == "USER"]
    assert users
    assert int(found[users[-1]][1]) > 0
    # Nothing that needs root, or the network, comes after.
    assert all(
        name in ("USER", "WORKDIR", "HEALTHCHECK", "ENTRYPOINT", "CMD") for name, _ in found[users[0] :]
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_health_command_scores_a_photograph(recipe):
    (health,) = [argument for name, argument in instructions(recipe) if name == "HEALTHCHECK"]
    command = json.loads(health.partition("CMD ")[2])
    assert command[0] == "c2s"
    arguments = [part.replace(INSTALLED, str(ROOT)) for part in command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "compare2score.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part in command[1:]:
        if part.startswith(INSTALLED):
            assert let_through(part.removeprefix(f"{INSTALLED}/"), rules())


@pytest.mark.skipif(tomllib is None, reason="reads pyproject.toml, from Python 3.11 on")
def test_what_installing_needs_is_sent_to_the_build_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    files = {project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"}
    for path in ("pyproject.toml", *files, *(f"{folder}/__init__.py" for folder in folders)):
        assert (ROOT / path).exists()
        assert let_through(path, rules()), path
    for path in (".git/config", "tests/conftest.py", "runs/x", ".venv/bin/c2s", "runtime/__pycache__/a.pyc"):
        assert not let_through(path, rules()), path

"""The toy bundle, and two ways to run c2s: in this process, and as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compare2score.cli import app

# Tests are no package, so that what two folders share has to be found on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import bundle, gray_image  # noqa: F401

GRAYS = (20, 90, 160, 240)


@pytest.fixture
def c2s():
    """c2s(*arguments) -> result with exit_code, stdout and stderr, in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def c2s_process():
    """c2s_process(*arguments, **options of subprocess.run) -> finished process of its own."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "compare2score.cli", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 60, "check": False} | options
        options["env"] = {**os.environ, **options.get("env", {})}
        return subprocess.run(command, **options)

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder of four grey pictures, the darkest first in the alphabet."""
    for name, gray in zip("abcd", GRAYS, strict=True):
        gray_image(tmp_path / "photos" / f"{name}.png", gray)
    return tmp_path / "photos"

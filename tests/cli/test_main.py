"""The command line as a whole: help, errors, exit status."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time

import pytest
import typer.main

import compare2score
from compare2score import cli
from compare2score.cli.options import repeat_option
from compare2score.errors import Compare2ScoreError

VERBS = (
    "score",
    "compare",
    "rank",
    "eval",
    "filter",
    "bench",
    "info",
    "export",
    "build",
    "anchors select",
    "anchors build",
    "train instructions",
    "train lora",
    "train nano",
)


def all_verbs(command, name=""):
    for inner_name, inner in getattr(command, "commands", {}).items():
        yield from all_verbs(inner, f"{name} {inner_name}".strip())
    if not hasattr(command, "commands"):
        yield name


def test_the_verbs_are_all_here():
    assert sorted(all_verbs(typer.main.get_command(cli.app))) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(c2s, verb):
    result = c2s(*verb.split(), "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"\n    c2s {verb} " in result.stdout
    assert " --json " in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["anchors", "--help"], ["train", "-h"]])
def test_groups_have_help_too(c2s, arguments):
    result = c2s(*arguments)
    assert result.exit_code == 0
    assert "Commands:" in result.stdout


def test_help_is_quick_for_it_loads_nothing_heavy():
    program = (
        "import sys\n"
        "from compare2score.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(sorted({'numpy', 'scipy', 'PIL', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_version_is_the_packages(c2s):
    assert c2s("--version").stdout == f"{compare2score.__version__}\n"


@pytest.mark.parametrize("arguments", [["scor"], ["anchors", "pick"], ["--no-such"]])
def test_an_unknown_verb_is_wrong_use(c2s, arguments):
    result = c2s(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["anchors"], ["train"]])
def test_without_a_verb_there_is_help(c2s, arguments):
    result = c2s(*arguments)
    assert result.exit_code == 2
    assert "Commands:" in result.stdout + result.stderr


def failing(c2s, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(compare2score.bundle, "open_bundle", fail)
    return c2s("info")


@pytest.mark.parametrize("error", [Compare2ScoreError, *Compare2ScoreError.__subclasses__()])
def test_every_error_of_ours_is_one_sentence(c2s, monkeypatch, error):
    raised = error.__new__(error)
    raised.args = ("It is\nbroken\x1b[31m; mend it.",)
    result = failing(c2s, monkeypatch, raised)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "It is broken\\x1b[31m; mend it.\n"


def test_a_full_disk_is_one_sentence(c2s, monkeypatch):
    result = failing(c2s, monkeypatch, OSError(28, "No space left on device", "out.bin"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr
        == "The operating system refuses out.bin (No space left on device); check the path and the disk.\n"
    )


def test_a_bug_is_not_hidden(c2s, monkeypatch):
    result = failing(c2s, monkeypatch, ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interruption_is_status_130_and_silent(c2s, monkeypatch):
    result = failing(c2s, monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="another kind of interruption there")
def test_a_real_interruption_ends_the_process_quietly():
    program = (
        "import signal, sys, time\n"
        # A check that was itself started in the background leaves its children deaf to interruptions.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import compare2score.bundle\n"
        "def wait(*_):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "compare2score.bundle.open_bundle = wait\n"
        "sys.argv = ['c2s', 'info']\n"
        "from compare2score.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_the_console_script_is_main():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="c2s")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("B --images a b c --out N", "B --images a --images b --images c --out N"),
        ("--images a b --out N B", "--images a --images b --out N B"),
        ("B --images a --images b c", "B --images a --images b --images c"),
        ("B --images=a --out N", "B --images=a --out N"),
        ("B c --out N d", "B c --out N d"),
        ("--images --out N", "--images --out N"),
        ("--images a -- b c", "--images a -- b c"),
        ("", ""),
    ],
)
def test_an_option_of_many_values_takes_all_up_to_the_next_option(given, expected):
    assert repeat_option(given.split(), {"--images"}) == expected.split()

"""The embedded comparator at work never touches the network, nor do the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"
# Read by every Python that starts, so that children are watched as well.
WATCH = """
import os, sys
def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ssl.", "ftplib.", "smtplib.")):
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(f"{event}\\n")
        os._exit(77)
sys.addaudithook(watch)
with open(os.environ["WATCH_LOG"], "a") as log:
    log.write("started\\n")
"""


@pytest.fixture
def watched(tmp_path):
    """watched(*arguments of python) -> (finished process, what the watch has noted)."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WATCH_LOG": str(log)}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=120
        )
        return done, log.read_text().split()

    return run


def test_the_watch_notices_a_socket_in_a_child(watched):
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])"
    )
    _, events = watched("-c", program)
    assert events == ["started", "started", "socket.__new__"]


def test_scoring_with_the_embedded_bundle_opens_no_socket(watched):
    program = (
        "import os, sys\n"
        "from compare2score import Scorer\n"
        "print(round(Scorer(threads=1).score(sys.argv[1]).value))\n"
        # What native code opens, no hook of Python's sees.
        "if os.path.isdir('/proc/self/fd'):\n"
        "    held = [os.path.realpath(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd')]\n"
        "    sys.exit(any('socket:' in name for name in held))\n"
    )
    done, events = watched("-c", program, PHOTOS / "cat.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    assert 0 < int(done.stdout) < 100
    assert events == ["started"]


def test_filtering_with_a_report_opens_no_socket_in_any_process(watched):
    pytest.importorskip("jinja2")
    arguments = ["filter", PHOTOS, "--out", "s.csv", "--report", "r.html", "--workers", "1", "--threads", "1"]
    done, events = watched("-m", "compare2score.cli", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    # The verb, a decoder, and a decoder for the report's pictures.
    assert events == ["started"] * 3

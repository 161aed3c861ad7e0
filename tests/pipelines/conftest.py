"""The toy bundle, its scorer, and folders of pictures to run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Tests are no package, so that what two folders share has to be found on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_bundle import bundle, gray_image  # noqa: F401

from compare2score import Scorer
from compare2score.pipelines import decoding


@pytest.fixture(scope="session")
def scorer(bundle):  # noqa: F811
    """A scorer of the toy bundle."""
    return Scorer(bundle, threads=1)


@pytest.fixture
def grays(tmp_path, monkeypatch):
    """grays(number) -> a folder of so many different pictures, `photos`, below the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(number):
        for place in range(number):
            # Sizes differ, too, so that no two files have the same content.
            gray_image(Path("photos") / f"{place:03}.png", 5 + place * 240 // number, 8 + place)
        return "photos"

    return make


@pytest.fixture
def hostile_decoder(monkeypatch):
    """Decoders that misbehave as the first bytes of a file tell them to; see `HOSTILE`."""
    monkeypatch.setattr(decoding, "_PROGRAM", HOSTILE + decoding._PROGRAM)


HOSTILE = """
import os, signal
import numpy as np
from compare2score.errors import ImageError
import compare2score.decode, compare2score.pipelines.decoder as decoder
whole = decoder.load_image
def hostile(source, *arguments, **options):
    data = source if isinstance(source, bytes) else open(source, "rb").read()
    if data.startswith(b"CRASH"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.startswith(b"LOOP"):
        while True: pass
    if data.startswith(b"BLOAT"):
        hoard = bytearray(1 << 34)
    if data.startswith(b"PRINT"):
        os.write(1, b"noise on stdout" * 1000)
    if data.startswith(b"LIE"):
        decoder.fit_square = lambda *_: np.zeros(7, np.uint8)
        return np.zeros((2, 2, 3), np.uint8)
    if data.startswith(b"RAVE"):
        raise ImageError("fine", "all is well")
    return whole(source, *arguments, **options)
decoder.load_image = hostile
"""

"""Where tests find what several folders share."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests are no package, so that what two folders share has to be found on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

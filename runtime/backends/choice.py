"""Which backend runs a bundle when none is asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compare2score.backends.cuda import open_device
from compare2score.backends.tensorrt_module import MODULES
from compare2score.engine import Target, built_targets, joined, read_record
from compare2score.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    from compare2score.bundle import Bundle


@dataclass(frozen=True)
class Choice:
    """A backend's name, and why it was chosen, for people."""

    name: str
    reason: str


def choose_backend(bundle: Bundle) -> Choice:
    """Engines that are for this machine's GPU, else the CPU.

    Engines for this GPU that do not fit otherwise (another version, a changed graph, an altered file) are
    chosen all the same: opening them says what to do, where the CPU would be slow without a word.

    Raises BackendError if such engines' record cannot be read.
    """
    reasons = []
    for target in built_targets(bundle):
        obstacle = cannot_run(bundle, target)
        if obstacle is None:
            return Choice(target, "the bundle has engines for this GPU")
        reasons.append(f"its {target} engines cannot be used: {obstacle}")
    if not reasons:
        return Choice("onnxruntime", "the bundle has no engines, and this runs on any CPU")
    return Choice("onnxruntime", "; ".join(reasons))


def cannot_run(bundle: Bundle, target: Target) -> str | None:
    """Why this machine cannot run a bundle's engines at all; None if it can."""
    if importlib.util.find_spec(MODULES[target]) is None:
        return f"{MODULES[target]} is not installed"
    try:
        capability = open_device().capability
    except (BackendError, MissingExtraError) as error:
        return str(error).partition(";")[0].rstrip(".")
    built = read_record(bundle.path, target, "decoder").compute_capabilities
    return None if capability in built else f"they are for {joined(built)}, and this GPU is {capability}"

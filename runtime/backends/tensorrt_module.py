"""The two libraries with one interface: `tensorrt` and `tensorrt_rtx`."""

from __future__ import annotations

import importlib
from typing import Any

from compare2score.engine import Target
from compare2score.errors import BackendError, MissingExtraError

MODULES: dict[Target, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST = (10, 0)
"""The first version of `tensorrt` whose engines are run as here: named tensors, strongly typed networks."""


def load_module(target: Target, purpose: str) -> Any:
    """Imports the library of a target.

    Raises MissingExtraError if it is not installed, BackendError if it cannot be loaded or is too old.
    """
    try:
        module = importlib.import_module(MODULES[target])
    except ModuleNotFoundError as error:
        raise MissingExtraError(target, purpose) from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(
            f"{MODULES[target]} cannot be loaded here ({reason}); install it again, or use another backend."
        ) from error
    version = str(module.__version__)
    if target == "tensorrt" and tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise BackendError(f"TensorRT {version} is too old; install 10.0 or newer.")
    return module


def logger(module: Any) -> Any:
    """A logger of a library that keeps what it is told, warnings and worse, in its list `messages`."""

    class Messages(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.WARNING:
                self.messages.append(" ".join(message.split()))

    return Messages()

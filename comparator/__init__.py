"""What a comparator is, in torch: prompt and levels, models, checkpoints.

A comparator reads a first image, a second image and a question, and answers with logits over five
levels of the second image's quality. `load_comparator` opens a checkpoint folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compare2score.comparator.checkpoint import load_comparator as load_comparator
    from compare2score.comparator.nano import NanoComparator as NanoComparator

__all__ = ["NanoComparator", "load_comparator"]


def __getattr__(name: str) -> Any:
    # Prompt and levels are plain data: reading them must not load torch.
    if name == "load_comparator":
        from compare2score.comparator.checkpoint import load_comparator

        return load_comparator
    if name == "NanoComparator":
        from compare2score.comparator.nano import NanoComparator

        return NanoComparator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A checkpoint's weights on disk, one tensor at a time: safetensors or torch's `.bin`, one file or shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compare2score.errors import CheckpointError

HARMLESS = "rotary_emb.inv_freq"
"""End of the one key that a published checkpoint may hold beside its weights: a table, computed here."""
LAYOUTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the whole file, in order of preference; with `.index.json` behind it, of the list of shards."""


@dataclass(frozen=True)
class Shard:
    """One opened file: a key's shape and its tensor, both read on demand."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


@dataclass
class CheckpointWeights:
    """Reads a checkpoint's tensors by name; a file is opened when one of its tensors is first asked for.

    Files are mapped, so memory holds only the tensors that the caller keeps.

    Attributes:
        folder: the checkpoint.
        files: the file of every key.
    """

    folder: Path
    files: Mapping[str, str]
    _shards: dict[str, Shard] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> CheckpointWeights:
        """Finds the weights' files and keys; reads no weights.

        Raises CheckpointError if there are none, the list of shards is unusable, or a file is missing or
        unreadable.
        """
        for layout in LAYOUTS:
            if (folder / layout).exists():
                return cls(folder, dict.fromkeys(open_shard(folder / layout).shapes, layout))
            index = folder / f"{layout}.index.json"
            if index.exists():
                weights = cls(folder, read_index(index))
                for file in weights.missing_files():
                    raise CheckpointError(
                        f"{folder / file} is missing, a shard that {index.name} lists; "
                        "copy the checkpoint again."
                    )
                return weights
        raise CheckpointError(
            f"{folder} holds no weights; expected is {' or '.join(LAYOUTS)}, or shards with its .index.json."
        )

    def missing_files(self) -> Iterator[str]:
        """Files that the list of shards names and the folder does not hold."""
        return (file for file in sorted(set(self.files.values())) if not (self.folder / file).is_file())

    @property
    def names(self) -> frozenset[str]:
        """Keys of all tensors but the harmless ones."""
        return frozenset(name for name in self.files if not name.endswith(HARMLESS))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._find(name).shapes[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the precision in which it is stored.

        Raises CheckpointError if the checkpoint does not hold it, or its file is damaged.
        """
        shard = self._find(name)
        with readable(self.folder / self.files[name]):
            return shard.read(name)

    def _find(self, name: str) -> Shard:
        if name not in self.files:
            raise CheckpointError(f"{self.folder} holds no weight {name}; copy the checkpoint again.")
        file = self.files[name]
        if file not in self._shards:
            self._shards[file] = open_shard(self.folder / file)
        if name not in self._shards[file].shapes:
            raise CheckpointError(
                f"{self.folder / file} does not hold {name}, which the list of shards looks for there; "
                "copy the checkpoint again."
            )
        return self._shards[file]

    def check_fit(self, model: nn.Module) -> None:
        """Raises CheckpointError naming the first weight that is missing, unknown or of another shape."""
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(expected.keys() | self.names):
            if name not in expected:
                raise CheckpointError(
                    f"{self.folder} holds {name}, a weight that its config.json knows nothing of."
                )
            if name not in self.files:
                raise CheckpointError(
                    f"{self.folder} holds no weight {name}, which its config.json asks for."
                )
            if self.shape(name) != expected[name]:
                raise CheckpointError(
                    f"{name} in {self.folder / self.files[name]} is {list(self.shape(name))}, "
                    f"its config.json asks for {list(expected[name])}."
                )

    def load_into(self, model: nn.Module, dtype: torch.dtype | None = torch.float32) -> None:
        """Gives `model`, which may be on the meta device, all its weights in `dtype`; None keeps the stored.

        Raises CheckpointError if they do not fit.
        """
        self.check_fit(model)
        state = {}
        for name in model.state_dict():
            tensor = self.tensor(name)
            state[name] = tensor if dtype is None else tensor.to(dtype)
        model.load_state_dict(state, assign=True)


def read_index(path: Path) -> dict[str, str]:
    """The file of every key, from a list of shards. Raises CheckpointError if it is none."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        usable = all(isinstance(file, str) and Path(file).name == file for file in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable or not files:
        raise CheckpointError(f"{path} is not a usable list of shards; copy the checkpoint again.")
    return dict(files)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what readers raise for a damaged or unsafe file into CheckpointError."""
    try:
        yield
    except UnpicklingError as error:
        # torch refuses, unread, whatever is not a plain table of tensors.
        raise CheckpointError(
            f"{path} holds more than weights, code that reading could run, or is damaged; it was not read."
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is cut short or damaged; copy the checkpoint again.") from error


def open_shard(path: Path) -> Shard:
    """Opens one file of weights. Raises CheckpointError if it is damaged, or holds more than weights."""
    with readable(path):
        if path.suffix == ".safetensors":
            opened: Any = safe_open(path, framework="pt")
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return Shard(shapes, opened.get_tensor)
        if not is_zipfile(path):
            raise CheckpointError(
                f"{path} is cut short, or no weights file of torch; copy the checkpoint again."
            )
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(table, dict) or not all(isinstance(value, Tensor) for value in table.values()):
            raise CheckpointError(f"{path} is not a table of weights; give the published checkpoint.")
        return Shard({name: tuple(value.shape) for name, value in table.items()}, table.__getitem__)

"""What both kinds of recording share: a file of values beside its description, and a compared quantity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import UserError, shortened
from model.plain import read_json


class ParityFileError(UserError):
    """A recorded file lacks a quantity, or a shape in it disagrees with its config."""


@dataclass(frozen=True)
class Line:
    """One compared quantity."""

    quantity: str
    difference: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit        # false for NaN

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.quantity:<44} {self.difference:10.3e}  limit {self.limit:.0e}"


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of NAME.safetensors and the content of NAME.json.  Raises ParityFileError if one cannot be read."""
    for part in (path, path.with_suffix(".json")):
        if not part.is_file():
            raise ParityFileError(f"{part} does not exist. A recording is NAME.safetensors with NAME.json beside it.")
    description = read_json(path.with_suffix(".json"), ParityFileError)
    try:
        return load_file(path), description
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise ParityFileError(f"{path} cannot be read: {shortened(' '.join(str(error).split()), 300)}.") from error

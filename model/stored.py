"""Files of `torch.save` from anybody: tensors and plain values are read from them, and never more than they hold."""

from __future__ import annotations

import pickle            # nosec B403 # only its error; torch.load reads weights alone
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError, shortened
from model.plain import is_file

SHARED = 16              # times that a file's bytes may be claimed: rules select the same weights at first
_DAMAGED = (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, AttributeError, TypeError, OverflowError,
            AssertionError, MemoryError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError)
#           what torch.load raises on a file that is cut or something else


def read_stored(path: Path, kind: str, error: type[UserError]) -> dict[str, Any]:
    """What a file of `torch.save` holds, on the CPU (weights only).

    kind: what the file should be, in words.  Raises `error` if it is missing, damaged or of another kind, or would take
    far more memory than its size.
    """
    if not is_file(path):
        raise error(f"{path} does not exist.")
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as reason:
        told = shortened(str(reason).splitlines()[0] if str(reason) else type(reason).__name__, 300)
        raise error(f"{path} cannot be read as {kind}; it may be truncated, or hold more than tensors ({told})."
                    ) from reason
    if not isinstance(content, dict):
        raise error(f"{path} is not {kind}: it holds no named values.")
    try:
        wrong = _misfit(path, content)
    except RecursionError as reason:
        raise error(f"{path} is not {kind}: its values lie in one another without end.") from reason
    if wrong:
        raise error(f"{path} is not {kind}: {wrong}.")
    return content


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is no mapping and no list in nested values, under its place."""
    if isinstance(content, (dict, list, tuple)):
        yield name, f"{type(content).__name__} {len(content)}"
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{name}/{key!r}")
    else:
        yield name, content


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of some tensors that holds NaN or an infinite value; None if there is none."""
    return next((name for name, value in named if not value.isfinite().all()), None)


def _check_archive(path: Path) -> None:
    """Raise ValueError if a ZIP file (torch.save writes one) has compressed or overlapping parts, which may unfold to
    any size; torch.save stores them as they are."""
    if not zipfile.is_zipfile(path):
        return                                            # of an older torch, or damaged: torch.load says it
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or \
            sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("its parts are compressed, which torch.save does not do")


def _misfit(path: Path, content: Any) -> str | None:
    """Which tensor is of a kind that is never written, or whether they claim far more memory than the file has; several
    may share one storage."""
    claimed, most = 0, SHARED * path.stat().st_size
    for number, (name, value) in enumerate(leaves(content)):
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
                return f"{shortened(name[1:])} is no plain tensor"
            claimed += value.numel() * value.element_size()
        if claimed > most or number > most:
            return "it claims far more memory than its size"
    return None

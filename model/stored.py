"""Files of `torch.save` from anybody: tensors and plain values are read from them, and never more than they hold."""

from __future__ import annotations

import pickle            # nosec B403 # only its error; torch.load reads weights alone
import pickletools       # nosec B403 # lists what a pickle would do, and does none of it
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from model.errors import UserError, shortened
from model.plain import is_file

GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
           *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char",
                                                 "Byte", "Bool"))}      # what torch.save names for tensors
PICKLES = 5              # in a file of an older torch: its mark, version, machine, the content, the names of its parts
LONGEST_NAME, DEEPEST_TUPLE = 200, 5
_POPS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2, "BUILD": 1, "BINPERSID": 1,
         "POP": 1}
_TO_MARK = {"TUPLE", "APPENDS", "SETITEMS"}
_PUSHES = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING",
           "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL",
           "REDUCE", "BINPERSID"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME", "STOP"}
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
        _check_file(path)
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
        raise error(f"{path} is not {kind}: its values lie in one another without end, or have endless names."
                    ) from reason
    if wrong:
        raise error(f"{path} is not {kind}: {wrong}.")
    return content


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is no mapping and no list in nested values, under its place.  Raises RecursionError if there is no end."""
    if isinstance(content, (dict, list, tuple)):
        if isinstance(content, dict) and any(len(str(key)) > LONGEST_NAME for key in content) or \
                name.count("/") > LONGEST_NAME:
            raise RecursionError
        yield name, f"{type(content).__name__} {len(content)}"
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{name}/{key!r}")
    else:
        yield name, content


def unusable(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """What is wrong with the first of some tensors that holds NaN, an infinite value or a variance below zero; None if
    nothing is."""
    for name, value in named:
        if not value.isfinite().all():
            return f"{name} is not finite"
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} is negative, which no variance is"
    return None


def _check_file(path: Path) -> None:
    """Raise ValueError if a file has parts, or a pickle that does things, which torch.save's never have.

    Compressed or overlapping parts may unfold to any size.  Even names in a pickle that are harmless by themselves can
    take any memory (a bytearray of six thousand million) or time (an encoding; a tuple of tuples, each there twice).
    """
    if not zipfile.is_zipfile(path):                      # of an older torch, or damaged: torch.load says it
        with open(path, "rb") as file:
            for _ in range(PICKLES):
                _check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or \
                sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are compressed, which torch.save does not do")
        for part in parts:
            if part.filename.endswith(".pkl"):
                with archive.open(part) as stream:
                    _check_pickle(stream)


def _check_pickle(stream: IO[bytes]) -> None:
    """Follow a pickle's operations, and how deep its tuples lie in one another, without making what they say."""
    stack: list[int | None] = []                         # depth of a tuple, 0 of anything else, None of a mark
    memo: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name, popped = operation.name, []
        if name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"it names {shortened(str(argument), 60)}")
        if name in _TO_MARK:
            while (depth := stack.pop()) is not None:
                popped.append(depth)
        popped += [stack.pop() for _ in range(_POPS.get(name, 0))]
        if name.startswith("TUPLE"):
            stack.append(1 + max(popped, default=0))
            if stack[-1] > DEEPEST_TUPLE:
                raise ValueError("its tuples lie in one another")
        elif name in _PUSHES:
            stack.append(0)
        elif name == "MARK":
            stack.append(None)
        elif name in _PUTS:
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
        elif name in _GETS:
            stack.append(memo[argument])
        elif name not in _POPS and name not in _TO_MARK and name not in _NOTHING:
            raise ValueError(f"it uses {name}")


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

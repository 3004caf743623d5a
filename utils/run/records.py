"""What the files of a run folder hold: their shapes, checked when they are read."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

from model import plain
from model.errors import RunFolderError

REMEDY = "Put the file back from a copy, or leave the run out."

_WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", list: "a list",
          dict: "a mapping", type(None): "null"}
_UNIONS = (Union, types.UnionType)
_LARGEST = 2 ** 63       # no whole number that the program writes is as large, and floats do not hold every larger one

# A shape is a type hint, or a mapping's keys with the shapes of their values, or a list of the one shape of its members;
# a key that ends in ? may be missing, and keys that are not named may hold anything.
_SCORE = {"oa": float, "aa": float, "kappa": float, "macro_f1": float, "per_class": list[Optional[float]]}
_SOME_SCORES = {"oa": float} | {f"{name}?": shape for name, shape in _SCORE.items() if name != "oa"}
_CHOICE = {"epoch": int, "source_val": {"oa": float}, "shifted_source": {"oa": float}, "target?": _SCORE,
           "confusion?": list[list[int]]}
EVALUATION = {"rules": {str: _CHOICE}, "constant?": _SCORE, "oracle?": _CHOICE}
ABOUT = {"status?": str, "error?": Optional[str], "label?": str, "seed?": int, "source?": str, "target?": Optional[str],
         "classes?": list[str], "bands?": int, "sha256?": dict[str, str], "initial_weights?": dict[str, str],
         "uses_target?": bool, "labelled_target_pixels?": int, "seconds?": float, "peak_memory_mib?": float,
         "patches_per_second?": float, "stopped_early?": Optional[dict], "trained_in?": str, "derived_by?": str,
         "device?": str, "backend?": str, "threads?": int, "versions?": dict[str, str]}
BEGUN = ("source", "target", "sha256", "uses_target", "status")      # of ABOUT, once the run has begun
RECORDS = {                      # file of records -> the shape of each
    "epochs.jsonl": {"epoch": int, "losses?": dict[str, float], "seconds?": float, "steps?": int,
                     "source_val?": _SOME_SCORES, "shifted_source?": _SOME_SCORES},
    "oracle.jsonl": {"epoch": int, "target": _SCORE, "confusion": list[list[int]]},
    "validators.jsonl": {"epoch": int, str: Union[float, str]},
    "diagnostics.jsonl": {"epoch": int, str: float}}


def read_text(path: Path) -> str:
    """A file of a run folder as text.  Raises RunFolderError if it is missing or no text."""
    if not path.is_file():
        raise RunFolderError(f"{path} is missing. {REMEDY}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise damaged(path, reason) from error


def read_json(path: Path, shape: Any) -> Any:
    """The content of a JSON file.  Raises RunFolderError if it is damaged or of another shape."""
    content = plain.read_json(path, _refused)
    if wrong := misfit(content, shape, "the file"):
        raise damaged(path, wrong)
    return content


def parsed(path: Path, text: str, shape: Any, where: str) -> Any:
    """JSON text of a file, checked.  where: what the text is, in words."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{where} is no JSON") from error
    if wrong := misfit(content, shape, where):
        raise damaged(path, wrong)
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml as they stand there.  Raises RunFolderError if it is damaged."""
    content = plain.read_yaml(path, _refused)
    if wrong := misfit(content, {}, "the file"):
        raise damaged(path, wrong)
    return content


def _refused(reason: str) -> RunFolderError:
    return RunFolderError(f"{reason} {REMEDY}")


def damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(f"{path} cannot be used: {reason}. {REMEDY}")


def check_square(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Raise RunFolderError if a confusion matrix is not [K, K] for the K classes of the scores beside it."""
    for entry in entries:
        size = len(entry["target"]["per_class"]) if "target" in entry else None
        matrix = entry.get("confusion")
        if size is not None and (matrix is None or {len(matrix), *map(len, matrix)} != {size}):
            raise damaged(path, f"the confusion matrix of epoch {entry['epoch']} does not have {size} rows and columns")


def misfit(value: Any, shape: Any, where: str) -> str | None:
    """What in a value is not of a shape, in words; None where it fits."""
    if isinstance(shape, dict):
        return f"{where} is no mapping" if not isinstance(value, dict) else _misfit_of_keys(value, shape, where)
    kind, parts = (list, shape) if isinstance(shape, list) else (get_origin(shape), get_args(shape))
    if kind in _UNIONS:
        return None if any(misfit(value, part, where) is None for part in parts) else _not_a(where, shape)
    if kind is Literal:
        return None if any(type(value) is type(part) and value == part for part in parts) else _not_a(where, shape)
    if kind is list and isinstance(value, list):
        return next(filter(None, (misfit(each, parts[0], f"{where}[{i}]") for i, each in enumerate(value))), None)
    if kind is dict:
        return misfit(value, {parts[0]: parts[1]}, where)
    accepted = {float: (int, float), Any: object}.get(kind or shape, kind or shape)
    fits = isinstance(value, accepted) and (not isinstance(value, bool) or shape in (bool, Any)) \
        and not (type(value) is int and abs(value) >= _LARGEST)
    return None if fits else _not_a(where, shape)


def _misfit_of_keys(value: dict, shape: dict, where: str) -> str | None:
    others = shape.get(str)
    named = {name.removesuffix("?"): part for name, part in shape.items() if name is not str}
    for name in shape:
        if name is not str and not name.endswith("?") and name not in value:
            return f"{where} lacks '{name}'"
    for name, each in value.items():
        if not isinstance(name, str):
            return f"{where} has the key {name!r}, which is no word"
        part = named.get(name, others)
        if part is not None and (wrong := misfit(each, part, f"'{name}'")):
            return wrong
    return None


@cache
def shape_of(kind: type) -> dict:
    """A dataclass's fields as a shape; each may be missing."""
    return {f"{name}?": shape_of(hint) if is_dataclass(hint) else hint
            for name, hint in typing.get_type_hints(kind).items()}


def _not_a(where: str, shape: Any) -> str:
    return f"{where} must be {_in_words(shape)}"


def _in_words(shape: Any) -> str:
    if get_origin(shape) is Literal:
        return " or ".join(map(str, get_args(shape)))
    if get_origin(shape) in _UNIONS:
        return " or ".join(map(_in_words, get_args(shape)))
    return _WORDS[list] if isinstance(shape, list) else _WORDS.get(get_origin(shape) or shape, str(shape))

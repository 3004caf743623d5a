"""What the files of a run folder hold: their shapes, checked when they are read."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable, Sequence
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
Check = Callable[[Any, str], Optional[str]]     # value, what it is in words -> what in it does not fit, in words
_checks: dict[int, tuple[Any, Check]] = {}      # of shapes without a hash, under their ids
_LARGEST = 2 ** 63       # no whole number that the program writes is as large, and floats do not hold every larger one

_SEED = re.compile(r"^seed:(?: (0|[1-9]\d{0,8})$)?", re.MULTILINE)
_AS_WRITTEN = re.compile(r"(?:(?:- | {2})?[\w./+-]+(?::(?: (?:[\w./+-]+|'[\w ./+-]*'|\[\]))?)?\n)*")   # line by line

# A shape is a type hint, or a mapping's keys with the shapes of their values, or a list of the one shape of its
# members; a key that ends in ? may be missing, and keys that are not named may hold anything.
_SCORE = {"oa": float, "aa": float, "kappa": float, "macro_f1": float, "per_class": list[Optional[float]]}
_SOME_SCORES = {"oa": float} | {f"{name}?": shape for name, shape in _SCORE.items() if name != "oa"}
_CHOICE = {"epoch": int, "source_val?": {"oa": float}, "shifted_source?": {"oa": float}, "target?": _SCORE,
           "confusion?": list[list[int]]}
SETTINGS: dict[str, Any] = {}                                        # any; utils/run/config.py holds them to theirs
EVALUATION = {"rules": {str: _CHOICE}, "constant?": _SCORE, "oracle?": _CHOICE}
ABOUT = {"status?": str, "error?": Optional[str], "label?": str, "seed?": int, "source?": str, "target?": Optional[str],
         "classes?": list[str], "bands?": int, "wavelengths?": list[float], "fwhm?": list[float],
         "resampling?": dict[str, str], "preprocessing?": list[str], "sha256?": dict[str, str], "initial_weights?": dict[str, str],
         "uses_target?": bool, "labelled_target_pixels?": int, "ceiling?": bool, "training_pixels?": list[int],
         "source_spread?": float, "seconds?": float, "peak_memory_mib?": float,
         "patches_per_second?": float, "stopped_early?": Optional[dict], "trained_in?": str, "derived_by?": str,
         "device?": str, "backend?": str, "threads?": int, "versions?": dict[str, str]}
BEGUN = ("source", "target", "sha256", "uses_target", "status")      # of ABOUT, once the run has begun
RECORDS = {                      # file of records -> the shape of each
    "epochs.jsonl": {"epoch": int, "losses?": dict[str, float], "seconds?": float, "steps?": int,
                     "source_val?": _SOME_SCORES, "shifted_source?": _SOME_SCORES},
    "oracle.jsonl": {"epoch": int, "target": _SCORE, "confusion": list[list[int]]},
    "validators.jsonl": {"epoch": int, str: Union[float, str]},
    "diagnostics.jsonl": {"epoch": int, str: float}}


@cache
def record_shape(name: str, needed: tuple[str, ...]) -> dict:
    """The shape of a file's records, some entries of which are needed."""
    return RECORDS[name] | {entry: RECORDS[name][f"{entry}?"] for entry in needed}


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


def read_settings(path: Path, known: dict[str, dict]) -> dict[str, Any]:
    """The settings in a run's config.yaml as they stand there.  Raises RunFolderError if it is damaged.

    known: settings read before (`without_seed` -> values), added to.
    """
    text = settings_text(path)
    common, seed = without_seed(text) or (None, None)
    if common in known:
        return known[common] | {"seed": seed}
    values = settings_in(text, path)
    if common is not None:
        known[common] = values
    return values


def settings_text(path: Path) -> str:
    """The text of a run's config.yaml.  Raises RunFolderError if it is missing, too large or no text."""
    return plain.yaml_text(path, _refused)


def settings_in(text: str, path: Path) -> dict[str, Any]:
    """The settings in the text of config.yaml.  Raises RunFolderError if it is damaged."""
    content = plain.parse_yaml(text, path, _refused)
    if wrong := misfit(content, SETTINGS, "the file"):
        raise damaged(path, wrong)
    return content


def without_seed(text: str) -> tuple[str, int] | None:
    """The text of a config.yaml without its seed, and the seed: so that runs which differ in it alone are read once.

    None for a text in any other form than the one that the program writes, a name and a short value a line: in another
    one the line of the seed could be part of something else.
    """
    found = list(_SEED.finditer(text))
    if len(found) != 1 or found[0][1] is None or not _AS_WRITTEN.fullmatch(text):
        return None
    return text[:found[0].start()] + text[found[0].end():], int(found[0][1])


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
    return _check_of(shape)(value, where)


def _check_of(shape: Any) -> Check:
    """The check of a shape, made when it is first asked for: tables read tens of thousands of files, so a shape is
    taken apart once.  Mappings and lists have no hash; they are told apart as objects, and kept, so that none takes
    another one's place."""
    if not isinstance(shape, (dict, list)):
        return _check_of_hint(shape)
    if id(shape) not in _checks:
        check = _check_of_keys(shape) if isinstance(shape, dict) else _check_of_list(shape[0], shape)
        _checks[id(shape)] = shape, check
    return _checks[id(shape)][1]


@cache
def _check_of_hint(shape: Any) -> Check:
    kind, parts = get_origin(shape), get_args(shape)
    if kind is list:
        return _check_of_list(parts[0], shape)
    if kind is dict:
        return _check_of_keys({parts[0]: parts[1]})
    checks = [_check_of(part) for part in parts] if kind in _UNIONS else []
    accepted = {float: (int, float), Any: object}.get(kind or shape, kind or shape)

    def fits(value: Any) -> bool:
        if checks:
            return any(check(value, "") is None for check in checks)
        if kind is Literal:
            return any(type(value) is type(part) and value == part for part in parts)
        return isinstance(value, accepted) and (not isinstance(value, bool) or shape in (bool, Any)) \
            and not (type(value) is int and abs(value) >= _LARGEST)
    return lambda value, where: None if fits(value) else _not_a(where, shape)


def _check_of_list(part: Any, shape: Any) -> Check:
    each, plain_types = _check_of(part), _plain_types(part)

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, list):
            return _not_a(where, shape)
        types_there = set(map(type, value))
        if types_there <= plain_types or part is int and types_there == {int} and max(map(abs, value)) < _LARGEST:
            return None
        return next((each(one, f"{where}[{i}]") for i, one in enumerate(value) if each(one, "") is not None), None)
    return check


def _check_of_keys(shape: dict) -> Check:
    needed = [name for name in shape if name is not str and not name.endswith("?")]
    parts = {name if name is str else name.removesuffix("?"): (_check_of(part), _plain_types(part))
             for name, part in shape.items()}
    others = parts.pop(str, None)

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where} is no mapping"
        for name in needed:
            if name not in value:
                return f"{where} lacks '{name}'"
        for name, each in value.items():
            if not isinstance(name, str):
                return f"{where} has the key {name!r}, which is no word"
            part = parts.get(name, others)
            if part is not None and type(each) not in part[1] and (wrong := part[0](each, f"'{name}'")):
                return wrong
        return None
    return check


def _plain_types(shape: Any) -> frozenset[type]:
    """Types whose values fit a shape whatever they are; int is none, since its values may be too large."""
    if not isinstance(shape, (dict, list)) and get_origin(shape) in _UNIONS:
        return frozenset().union(*map(_plain_types, get_args(shape)))
    return frozenset({shape} if isinstance(shape, type) and get_origin(shape) is None and shape is not int else ())


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

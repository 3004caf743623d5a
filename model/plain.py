"""Data files as plain values: dictionaries, lists, text, numbers.  Nothing is imported or opened for what they say."""

from __future__ import annotations

import json
import re
import typing
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from model.errors import ConfigError, UserError, nearest, shortened

LARGEST_YAML, LARGEST_JSON = 1 << 20, 1 << 26       # bytes
DEEPEST = 50                                        # dictionaries and lists inside each other
MOST_VALUES = 100_000                               # aliases counted as what they stand for
LONGEST_NUMBER = 100                                # digits; Python itself refuses 4,301
SHORT = 40                                          # letters of words whose kind is remembered, as many files hold them
_TOO_DEEP = f"it nests values more than {DEEPEST} deep"
_TOO_MANY = f"it holds more than {MOST_VALUES:,} values"
_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_NUMBER = re.compile(rf"\s*[-+.\d][-+.:_\deExXa-fA-F]{{{LONGEST_NUMBER},}}\s*")


class _Words(yaml.resolver.BaseResolver):
    """What kind a word is of; what looks like a date is text."""

    yaml_implicit_resolvers = {
        letter: [(tag, form) for tag, form in found if not tag.endswith(":timestamp")]
        for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}


@lru_cache(maxsize=10_000)
def _tag(word: str, implicit: tuple[bool, bool]) -> str:
    return _Words().resolve(yaml.ScalarNode, word, implicit)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe loader with the words' kinds of `_Words`.  Composing raises YAMLError for too many or too deep
    values before it goes deeper, and before memory holds more."""

    yaml_implicit_resolvers = _Words.yaml_implicit_resolvers
    depth = count = 0

    def descend_resolver(self, parent: Any, index: Any) -> None:
        """Is called before every value, and `ascend_resolver` after it."""
        self.depth, self.count = self.depth + 1, self.count + 1
        if self.depth > DEEPEST + 1:                # one for the values in the innermost list
            raise yaml.YAMLError(_TOO_DEEP)
        if self.count > MOST_VALUES:
            raise yaml.YAMLError(_TOO_MANY)

    def ascend_resolver(self) -> None:
        self.depth -= 1

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        """The tag of a value; that of a short word is looked up once."""
        if kind is yaml.ScalarNode and len(value) <= SHORT:
            return _tag(value, implicit)
        return super().resolve(kind, value, implicit)


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file of this name; False for names that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read_yaml(path: Path, error: type[UserError] = ConfigError) -> Any:
    """What a YAML file says, as plain values.

    Raises `error` if the file is missing, too large, no valid YAML, or holds other kinds of values.
    """
    return parse_yaml(yaml_text(path, error), path, error)


def yaml_text(path: Path, error: type[UserError] = ConfigError) -> str:
    """The text of a YAML file.  Raises `error` if the file is missing, too large or no text."""
    return _text(path, LARGEST_YAML, error)


def parse_yaml(text: str, where: object, error: type[UserError] = ConfigError) -> Any:
    """What YAML text says, as plain values.  Raises `error`, which names `where`, as `read_yaml`."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count(node, {}, 0) > MOST_VALUES:
                raise yaml.YAMLError(_TOO_MANY)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, LookupError) as reason:
        raise error(f"{where} is not valid YAML text: {_one_line(reason)}") from reason


def read_json(path: Path, error: type[UserError] = ConfigError) -> Any:
    """What a JSON file says.  Raises `error` if the file is missing, too large or no valid JSON."""
    try:
        return json.loads(_text(path, LARGEST_JSON, error))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not a valid JSON file: {_one_line(reason)}") from reason


def read_settings(path: str | Path, kind: type, error: type[UserError] = ConfigError) -> dict[str, Any]:
    """What a YAML file says of the fields of dataclass `kind`, in their form (`check_form`); `error` names the file."""
    return settings_in(settings_text(path, error), path, kind, error)


def settings_text(path: str | Path, error: type[UserError] = ConfigError) -> str:
    """The text of a file of settings.  Raises `error` if the file is missing, too large or no text."""
    if not is_file(path):
        raise error(f"The config file {_end_of(path)} does not exist.")
    return yaml_text(Path(path), error)


def settings_in(text: str, path: str | Path, kind: type, error: type[UserError] = ConfigError) -> dict[str, Any]:
    """What the text of a file says of the fields of dataclass `kind`, as `read_settings`."""
    content = parse_yaml(text, Path(path), error)
    if not isinstance(content, dict):
        raise error(f"{path} holds no settings (lines of the form NAME: VALUE).")
    try:
        check_form(content, kind)
    except ConfigError as reason:
        raise error(f"{path}: {reason}") from reason
    return content


def check_form(values: dict[str, Any], kind: type) -> None:
    """Raises ConfigError if keys are no fields of dataclass `kind`, or a value's form is not its field's.

    Dictionaries stand only where a field is a dataclass, with its fields as keys, and text never does.  Keys may also
    have the forms of flags: `simulation.seed`, `ablate+`.  Numbers and words are left to the parser.
    """
    hints = _hints(kind)
    for key, value in values.items():
        before, dot, part = key.partition(".")
        name = before if dot else before.removesuffix("+")
        if name not in hints:
            raise ConfigError(f"{shortened(key)} is not known.{nearest(key, hints)}")
        if value is None and not dot and not _may_be_null(hints[name]):
            raise ConfigError(f"{name} must not be null. Leave it out for its default.")
        nested, value = _inner(hints[name]), {part: value} if dot else value
        if nested is not None and isinstance(value, dict):
            _check_nested(value, nested, name)
        elif _holds_dictionary(value) or nested is not None and not _fits_beside(value, hints[name]):
            raise ConfigError(f"{name} must be {_in_words(hints[name], nested)}, not {shortened(value)}.")


def check_words(words: Iterable[str], kind: type) -> None:
    """Raises ConfigError if command-line words give a field of dataclass `kind`, that is one itself, anything but its
    own fields (as {NAME: VALUE} or in a file): a parser would import what is named there."""
    nested = {name for name, hint in _hints(kind).items() if _inner(hint) is not None}
    flag = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (flag, "=", word)
        flag = word
        if equals and (name := name.removeprefix("--").removesuffix("+")) in nested:
            content = read_yaml(Path(value)) if is_file(value) else parse_yaml(value, f"--{name}")
            check_form({name: content}, kind)


@cache                                              # tables read thousands of settings
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check_nested(values: dict[str, Any], kind: type, name: str) -> None:
    hints = _hints(kind)
    for part, value in values.items():
        if part not in hints:
            raise ConfigError(f"{shortened(part)} is not known in {name}.{nearest(part, hints)}")
        if value is None and not _may_be_null(hints[part]):
            raise ConfigError(f"{name}: {part} must not be null. Leave it out for its default.")
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{name}: {part} must be a single value, not {shortened(value)}.")


@cache
def _inner(hint: Any) -> type | None:
    """The dataclass that a field is, or may be."""
    return next((one for one in (hint, *typing.get_args(hint)) if is_dataclass(one)), None)


def _may_be_null(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _fits_beside(value: Any, hint: Any) -> bool:
    """Whether a field that may be a dataclass may also be this: nothing, or a list."""
    others = typing.get_args(hint)
    return value is None and type(None) in others or \
        isinstance(value, list) and any(typing.get_origin(one) is list for one in others)


def _holds_dictionary(value: Any) -> bool:
    return isinstance(value, dict) or isinstance(value, (list, tuple)) and any(map(_holds_dictionary, value))


def _in_words(hint: Any, nested: type | None) -> str:
    if nested is None:
        return "a value or a list of values"
    listed = " or a list" if _fits_beside([], hint) else ""
    return f"{{{', '.join(f'{entry.name}: …' for entry in fields(nested))}}}{listed}"


def _text(path: Path, largest: int, error: type[UserError]) -> str:
    if not is_file(path):
        raise error(f"{_end_of(path)} does not exist, or is no regular file.")
    try:
        size = path.stat().st_size
        if size > largest:
            raise error(f"{path} has {size:,} bytes; such a file has at most {largest:,}.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not a valid {path.suffix[1:].upper()} text file: {reason}") from reason
    except OSError as reason:
        raise error(f"{path} cannot be read ({reason.strerror}).") from reason


def _count(node: yaml.Node, counted: dict[yaml.Node, int], depth: int) -> int:
    """How many values a node is, aliases counted as what they stand for.  Raises YAMLError if some are not plain."""
    if node.tag not in _KINDS:
        raise yaml.YAMLError(f"it holds a value of the kind {shortened(node.tag)}")
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            raise yaml.YAMLError("it holds a NUL")
        if len(node.value) > LONGEST_NUMBER and _NUMBER.fullmatch(node.value):
            raise yaml.YAMLError(f"it holds a number of more than {LONGEST_NUMBER} digits")
        return 1
    if depth >= DEEPEST:                            # an alias of itself, too
        raise yaml.YAMLError(_TOO_DEEP)
    if node not in counted:
        children = node.value
        if isinstance(node, yaml.MappingNode):
            if strange := [key for key, _ in node.value if not key.tag.endswith((":str", ":merge"))]:
                raise yaml.YAMLError(f"it has a name that is not text: {shortened(strange[0].value)}")
            names = [key.value for key, _ in node.value if key.tag.endswith(":str")]
            if len(set(names)) < len(names):
                twice = Counter(names).most_common(1)[0][0]
                raise yaml.YAMLError(f"it says {shortened(twice)} twice")
            children = chain.from_iterable(node.value)
        counted[node] = 1 + sum([_count(child, counted, depth + 1) for child in children])
    return counted[node]


def _one_line(reason: Exception) -> str:
    return shortened(" ".join(str(reason).split()), 300)


def _end_of(path: str | Path, length: int = 200) -> str:
    """A path, if it is long without its beginning: the file's name stands at the end."""
    text = str(path)
    return text if len(text) <= length else "… " + text[-length:]

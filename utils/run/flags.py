"""Command lines: one parser class for all commands, and the spellings that users of the released code know."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from model.errors import ConfigError, nearest, shortened
from model.settings import Recipe, Switches, recipe_switches

RELEASED_NAMES = {"--nce_layers": "--contrast_layers"}       # flags that the released code calls differently
IGNORED = {"--test_stride", "--GIN", "--adv", "--num_patches", "--lambda_NCE"}      # do nothing in the released code either
_BOOLEAN_WORDS = ("true", "false", "yes", "no")
LONGEST_MESSAGE = 400                   # letters
_UNKNOWN = re.compile(r"(?:unrecognized arguments?: |[Oo]ption '|Key \")([^\s'\"]+)")
_NO_FILE = re.compile(r"key \"config\": File does not exist: '(.*)'")
_BAD_UNION = re.compile(r"key \"([\w.]+)\": Does not validate .*Subtypes: \[(.+?)\] Errors: .*Given value: (.*)")
_BAD_VALUE = re.compile(r"key \"([\w.]+)\": Expected an? (.+?)\. Got value: (.*)")


class Parser(ArgumentParser):
    """jsonargparse's parser with exact flags only and errors of one line.

    parse_args raises ConfigError, which names the nearest flag where one is misspelt.
    """

    def __init__(self, command: str, description: str | None, **options: Any):
        super().__init__(prog=f"main.py {command}".strip(), description=description, allow_abbrev=False,
                         formatter_class=options.pop("formatter_class", HelpFormatter), **options)

    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(f"{self._told(' '.join(message.split()))} See: {self.prog} --help") from ex

    def _told(self, message: str) -> str:
        """What argparse and jsonargparse say of a command line or a file, in one sentence."""
        if unknown := _UNKNOWN.search(message):
            name = unknown[1].partition("=")[0]
            flags = self.flags() if name.startswith("-") else [flag.removeprefix("--") for flag in self.flags()]
            return f"{name} is not known.{nearest(name, flags)}"
        if bad := _BAD_VALUE.search(message) or _BAD_UNION.search(message):
            return f"{bad[1]} must be {kind_in_words(bad[2])}, not {shortened(bad[3], LONGEST_MESSAGE)}."
        if missing := _NO_FILE.search(message):
            return f"The file {missing[1]} does not exist."
        return shortened(message, LONGEST_MESSAGE).rstrip(".") + "."


class HelpFormatter(DefaultHelpFormatter):
    """The help of jsonargparse with types in words; where a flag's default depends on the recipe, `defaults` says what
    each recipe has."""

    defaults: Mapping[str, str] = {}        # flag's name -> words

    def _get_help_string(self, action: Any) -> str:
        if action.dest not in self.defaults:
            return super()._get_help_string(action)
        return f"{action.help} (%(type)s; {self.defaults[action.dest]})"

    def _get_type_str(self, action: Any) -> str | None:
        found = super()._get_type_str(action)
        return found and kind_in_words(found)


class TrainHelp(HelpFormatter):
    """Shows what each recipe sets a switch to."""

    defaults = {entry.name: ", ".join(f"{recipe}: {recipe_switches(recipe)[entry.name]}" for recipe in get_args(Recipe))
                for entry in fields(Switches)}


def kind_in_words(kind: str) -> str:
    """A type as a person would say it: typing.Optional[Literal['a', 'b']] -> a or b."""
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind.replace("typing.", "").replace(", <class 'NoneType'>", ""))
    if match := re.fullmatch(r"(?:Optional|list)\[(.*)\]", kind):
        return ("a list of " if kind.startswith("list") else "") + kind_in_words(match[1])
    if match := re.fullmatch(r"Literal\[(.*)\]", kind):
        *some, last = match[1].replace("'", "").split(", ")
        return f"{', '.join(some)} or {last}" if some else last
    return kind


def tidy(argv: list[str], kind: type) -> list[str]:
    """The spellings that the released code's users know, in jsonargparse's: a boolean flag alone is true; a list may
    be `a b` or `a,b`; nce_layers is contrast_layers."""
    hints = typing.get_type_hints(kind)
    types = {f"--{entry.name}": str(hints[entry.name]) for entry in fields(kind)}
    out, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        flag = RELEASED_NAMES.get(flag, flag)
        out.append(flag + equals + value)
        if equals or flag not in types:
            continue
        taken = []
        if "bool" in types[flag]:
            taken = [rest.pop(0)] if rest and rest[0].lower() in _BOOLEAN_WORDS else ["true"]
        elif "list" in types[flag].lower():
            while rest and not rest[0].startswith("--"):
                taken.append(rest.pop(0))
            if taken and not taken[0].startswith("["):
                taken = [json.dumps(taken) if "list[str]" in types[flag] else "[" + ",".join(taken) + "]"]
        out += taken
    return out


def split_files(argv: list[str]) -> tuple[list[str], list[str]]:
    """The files of --config, in order, and the other words: flags win over files wherever they stand."""
    files, others, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        elif word == "--config" and rest:
            files.append(rest.pop(0))
        else:
            others.append(word)
    return files, others


def split_presets(argv: list[str]) -> tuple[list[str], list[str]]:
    """The names of --preset, in order, and the other words."""
    names, others, rest = [], [], list(argv)
    while rest:
        flag, equals, value = (word := rest.pop(0)).partition("=")
        if flag == "--preset" and (equals or rest):
            names.append(value if equals else rest.pop(0))
        else:
            others.append(word)
    return names, others


def without_ignored(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words without the flags of IGNORED and their values, and the flags that were left out."""
    kept, left_out, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, _ = word.partition("=")
        if flag not in IGNORED:
            kept.append(word)
            continue
        left_out.append(flag)
        if not equals and rest and not rest[0].startswith("--"):
            rest.pop(0)
    return kept, left_out

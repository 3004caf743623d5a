"""Sweep files: read, checked, and their layers put on top of each other."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from model.errors import ConfigError
from model.plain import check_form, is_file, read_yaml, settings_in, settings_text
from model.settings import kept_below
from utils.run.config import Simulation, TrainConfig, check, over, parsed, read_config, train_parser, with_protocol
from utils.run.folder import ROOT

_FORM = {"config": (list, str), "settings": (dict, None), "pairs": (list, dict), "variants": (list, dict),
         "seeds": (list, int), "save_path": (str, None)}
_OPTIONAL = {"pairs"}
LISTS = {"ablate", "contrast_layers"}       # settings that are lists
Entries = dict[str, Any]                    # settings by name


@dataclass
class SweepFile:
    """What a sweep file holds: `config` files (layered) and `settings` of every run, the `seeds` and the folder of the
    runs; `variants` and, if there are any, `pairs` are settings of some runs, `config` (a file or files) among them."""

    config: list[str]
    settings: Entries
    variants: list[Entries]
    seeds: list[int]
    save_path: str
    pairs: list[Entries] = field(default_factory=lambda: [{}])


def read_sweep(path: Path) -> SweepFile:
    """A sweep file, its keys and their form checked.  Raises ConfigError that names what is wrong."""
    if not is_file(path):
        raise ConfigError(f"{path} does not exist; sweep files are in configs/sweep.")
    content = read_yaml(path)
    if not isinstance(content, dict) or content.keys() | _OPTIONAL != _FORM.keys():
        there = ", ".join(map(str, content)) if isinstance(content, dict) else "something else"
        raise ConfigError(f"{path} must have the keys {', '.join(_FORM)} and no others ({', '.join(_OPTIONAL)} may be "
                          f"missing); it has {there}.")
    for key, value in content.items():
        kind, member = _FORM[key]
        if not isinstance(value, kind) or (member and not all(isinstance(each, member) for each in value)):
            raise ConfigError(f"{path}: '{key}' must be a {kind.__name__}{f' of {member.__name__}' if member else ''}.")
        if value == [] and key != "config":
            raise ConfigError(f"{path}: '{key}' is empty, so there is nothing to run.")
    return SweepFile(**content)


@dataclass(frozen=True)
class Layers:
    """Layers of settings put on top of each other: config files in order, and flat settings (simulation.severity: 2)
    over them."""

    files: list[str]
    settings: Entries

    def words(self) -> list[str]:
        """The command line that says the same."""
        return [word for file in self.files for word in ("--config", file)] + \
            [word for name, value in self.settings.items() for word in (f"--{name}", _text(value))]

    def config(self) -> TrainConfig:
        """Raises ConfigError for settings that cannot be."""
        return read_alike(self.files, _nested(self.settings))


def layered(layers: list[Entries]) -> Layers:
    """Layers of settings, the later ones stronger; a layer's `config` files lie below its rest.

    On a command line flags win over files wherever they stand: so a setting that a later file has is left out.
    """
    files, settings = [], {}
    for layer in layers:
        own = dict(layer)
        named = own.pop("config", [])
        for name in named if isinstance(named, list) else [named]:
            if not isinstance(name, str):
                raise ConfigError(f"'config' must name a file or a list of files, not {name}.")
            file = Path(name) if is_file(name) else ROOT / name
            over = _flat(_settings_of(settings_text(file), str(file)))
            settings = {key: value for key, value in settings.items() if key not in over}
            files.append(str(file))
        settings |= _flat(own)
    return Layers(files, settings)


def read_alike(files: list[str], changes: Entries) -> TrainConfig:
    """`read_config` of files and changes as plain values, for one of the thousands of runs of a sweep: a file or a
    value that many of them share is parsed once."""
    if not all(map(str.isidentifier, changes)):            # ablate+ adds to what lies below
        return read_config(*files, **changes)
    check_form(changes, TrainConfig)
    below: Entries = {}
    for file in files:
        below = over(below, _parsed_file(settings_text(file), file))
    above = with_protocol({name: _parsed_value(name, json.dumps(value)) for name, value in changes.items()})
    values = copy.deepcopy(over(kept_below(below, above), above))
    return check(TrainConfig(**values | {"simulation": Simulation(**values.get("simulation", {}))}))


@lru_cache(maxsize=1000)
def _settings_of(text: str, file: str) -> Entries:
    return settings_in(text, file, TrainConfig)


@lru_cache(maxsize=1000)
def _parsed_file(text: str, file: str) -> Entries:
    return with_protocol(parsed(_settings_of(text, file), file))


@lru_cache(maxsize=10_000)
def _parsed_value(name: str, value: str) -> Any:
    return train_parser().parse_object({name: json.loads(value)}, defaults=False).as_dict()[name]


def _flat(settings: Entries, prefix: str = "") -> Entries:
    """Nested settings under their flags' names, such as simulation.severity."""
    out = {}
    for name, value in settings.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _nested(settings: Entries) -> Entries:
    """The reverse of `_flat`; a list may be given as words: `no_noise no_mixing`."""
    out: Entries = {}
    for name, value in settings.items():
        group, dot, part = name.partition(".")
        if dot and isinstance(out.setdefault(group, {}), dict):
            out[group][part] = value
        else:
            out[name] = value.replace(",", " ").split() if isinstance(value, str) and name in LISTS else value
    return out


def _text(value: Any) -> str:
    """A setting as a command-line word; lists in brackets, booleans as true and false."""
    return value if isinstance(value, str) else \
        yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()

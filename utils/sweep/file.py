"""Sweep files: read, checked, and their layers put on top of each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model.errors import ConfigError
from utils.run.folder import ROOT

log = logging.getLogger(__name__)

_FORM = {"config": (list, str), "settings": (dict, None), "pairs": (list, dict), "variants": (list, dict),
         "seeds": (list, int), "save_path": (str, None)}
_OPTIONAL = {"pairs"}
Entries = dict[str, Any]        # settings by name


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
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; sweep files are in configs/sweep.")
    content = _read_yaml(path)
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


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a valid YAML text file: {error}") from error


def layered(layers: list[Entries]) -> list[str]:
    """Command-line words of layers of settings, the later ones stronger; a layer's `config` files lie below its rest.

    On a command line flags win over files wherever they stand: so a flag that a later file sets is left out.
    """
    files, flags = [], {}
    for layer in layers:
        own = dict(layer)
        named = own.pop("config", [])
        for name in [named] if isinstance(named, str) else named:
            if not isinstance(name, str):
                raise ConfigError(f"'config' must name a file or a list of files, not {name}.")
            file = Path(name) if Path(name).exists() else ROOT / name
            over = _flat(_read_layer(file))
            flags = {key: value for key, value in flags.items() if key not in over}
            files += ["--config", str(file)]
        flags |= _flat(own)
    return files + [word for name, value in flags.items() for word in (f"--{name}", _text(value))]


def _read_layer(path: Path) -> Entries:
    """The settings of a config file.  Raises ConfigError where there are none."""
    if not path.is_file():
        raise ConfigError(f"The config file {path} does not exist.")
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings (lines of the form NAME: VALUE).")
    return content


def _flat(settings: Entries, prefix: str = "") -> Entries:
    """Nested settings under their flags' names, such as simulation.severity."""
    out = {}
    for name, value in settings.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _text(value: Any) -> str:
    """A setting as a command-line word; lists in brackets, booleans as true and false."""
    return value if isinstance(value, str) else \
        yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()

"""Scene files that have moved or changed since a run was begun."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from datasets.errors import SceneNotFoundError
from datasets.readers import SCENE_CONFIGS, find_description, read_description
from model.plain import is_file

COSMETIC = {"name", "folder", "rgb_bands", "simulated"}       # change nothing that a network sees
SUFFIXES = (".yaml", ".yml")


def is_own(name: str | None) -> bool:
    """Whether this names a scene file of the user's, not a registered scene."""
    return bool(name) and name.endswith(SUFFIXES) and not is_file(SCENE_CONFIGS / f"{name}.yaml")


def located(name: str, data_path: str | None) -> str:
    """Where a scene file is now: at its path, or under its name in data_path; a registered name stays as it is.
    Raises SceneNotFoundError where it is in neither place."""
    if not is_own(name) or is_file(Path(name)):
        return name
    moved = Path(data_path or "") / Path(name).name
    if data_path and is_file(moved):
        return str(moved)
    raise SceneNotFoundError(f"The scene file {name} is not there. Where it has moved, say with --data_path which folder "
                             f"holds {Path(name).name} and its data now.")


def description_digests(name: str) -> dict[str, str]:
    """What a scene file says, key by key, as digests: comments, order and what only pictures use do not count."""
    said = asdict(read_description(find_description(name)))
    return {key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
            for key, value in said.items() if key not in COSMETIC and value}

"""Classes of two scenes, matched by name: case and blanks do not count, nor do numbers and order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datasets.errors import PairError
from datasets.scene import Scene

log = logging.getLogger(__name__)


def plain(name: str) -> str:
    return "".join(name.casefold().split())


def shared_classes(source: Scene, target: Scene | None) -> tuple[str, ...]:
    """The source's classes that the target's list has, too; all of them where the target names none.  Reads no label.
    Raises PairError if there is none."""
    if target is None or not target.class_names:
        return source.class_names
    there = set(map(plain, target.class_names))
    found = tuple(name for name in source.class_names if plain(name) in there)
    if not found:
        raise _strangers(target, source.class_names, source.name)
    return found


def matched(scene: Scene, class_names: Sequence[str], whose: str) -> Scene:
    """The scene under these class names and their numbers.  Pixels of its other classes become unlabelled; a warning
    names the classes and counts the pixels.  Raises PairError if no class, or two of one name, would be left."""
    class_names = tuple(class_names)
    if scene.class_names in (class_names, ()):
        return scene if scene.class_names else replace(scene, class_names=class_names)
    for names, owner in ((class_names, whose), (scene.class_names, scene.name)):
        if len(set(map(plain, names))) < len(names):
            raise PairError(f"{owner} has two classes of one name (case and blanks do not count): {', '.join(names)}.")
    numbers = {plain(name): number for number, name in enumerate(class_names, 1)}
    table = np.array([0] + [numbers.get(plain(name), 0) for name in scene.class_names])
    if not table.any():
        raise _strangers(scene, class_names, whose)
    left_out = [f"{name} ({count} pixels)" for name, count, number in
                zip(scene.class_names, scene.class_counts(), table[1:]) if number == 0]
    if left_out:
        log.warning("%s: classes that are not among those of %s are left out: %s.", scene.name, whose, ", ".join(left_out))
    return replace(scene, labels=table[scene.labels], class_names=class_names)


def _strangers(scene: Scene, class_names: Sequence[str], whose: str) -> PairError:
    return PairError(f"{scene.name} and {whose} share no class: {', '.join(scene.class_names)}; and "
                     f"{', '.join(class_names)}. Give the same class the same name in both scene files.")

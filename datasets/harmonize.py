"""Make two scenes fit one network: load the pair, check it, bring both cubes to the same footing."""

from __future__ import annotations

import numpy as np

from datasets.errors import PairError
from datasets.scene import Scene


def check_pair(source: Scene, target: Scene, patch_size: int) -> None:
    """Raise PairError if the two scenes cannot share a network.  Reads no target label."""
    check_fit(target, source.bands, source.class_names, source.name)
    check_patch(source, patch_size)
    check_patch(target, patch_size)


def check_fit(scene: Scene, bands: int, class_names: tuple[str, ...], trained_on: str) -> None:
    """Raise PairError if a scene has other bands or classes than what a network is trained on."""
    if bands != scene.bands:
        raise PairError(f"{trained_on}: {bands} bands; {scene.name}: {scene.bands} bands. Resample one of them to the "
                        "other's wavelengths and save it as a scene of its own.")
    if extra := [name for name in scene.class_names if name not in class_names]:
        raise PairError(f"{scene.name} has classes that {trained_on} lacks: {', '.join(extra)}. They cannot be predicted: "
                        f"remove them from {scene.name}'s label map.")
    if scene.class_names != class_names[:scene.n_classes]:
        raise PairError(f"{trained_on} and {scene.name} number their classes differently: {list(class_names)} and "
                        f"{list(scene.class_names)}. Use the first order.")


def check_patch(scene: Scene, patch_size: int) -> None:
    """Raise PairError if a patch does not fit into the scene."""
    if patch_size > min(scene.shape):
        raise PairError(f"Patches of {patch_size}×{patch_size} pixels are larger than {scene.name} "
                        f"({scene.shape[0]}×{scene.shape[1]}). Choose a smaller --patch_size.")


def preprocess(cube: np.ndarray) -> np.ndarray:
    """Divide by the scene's maximum, then L2-normalise each pixel's spectrum; a zero spectrum stays zero.

    [H, W, B] -> [H, W, B] float32.  Uses this scene's own values only (docs/data.md, "Preprocessing").
    """
    peak = float(cube.max())
    if peak <= 0:
        raise PairError("The scene's maximum is not positive; there is nothing to normalise.")
    scaled = np.asarray(cube, np.float32) / np.float32(peak)
    norm = np.linalg.norm(scaled, axis=2, keepdims=True)
    return np.divide(scaled, norm, out=scaled, where=norm > 0)

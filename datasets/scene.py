"""A scene: one hyperspectral image with everything that is known about it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

import numpy as np

from datasets.errors import SceneFormatError
from model.files import is_plain_name


LONGEST_NAME = 200                                      # letters
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}                      # Unicode's control characters, lone surrogates, line breaks
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")        # make what follows read from the right


def check_name(name: str, longest: int = LONGEST_NAME) -> None:
    """Raises SceneFormatError for a name that is too long, or holds characters that a terminal would obey."""
    if unseen := [sign for sign in name if unicodedata.category(sign) in _UNSEEN or sign in _TURNING]:
        raise SceneFormatError(f"the name {ascii(name[:LONGEST_NAME])} holds the control character {ascii(unseen[0])}. "
                               "Take it out.")
    if len(name) > longest:
        raise SceneFormatError(f"the name {name[:40]} … has {len(name)} letters; at most {longest} are allowed.")


@dataclass(frozen=True)
class Georeference:
    """Where a scene lies: coordinate reference system (WKT) and affine transform (a, b, c, d, e, f), pixel to map."""

    crs: str
    transform: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """One hyperspectral image.

    cube         [H, W, B] float32 in the sensor's units, finite (broken pixels are zero spectra without a label)
    labels       [H, W] int64, 0 = unlabelled, 1..K = classes
    class_names  K names
    wavelengths  [B] band centres in nm, or None where they are unknown
    fwhm         [B] full widths at half maximum in nm, or None
    rgb_bands    three band indices (red, green, blue) for false-colour pictures
    sha256       file name -> digest of every file that the scene was read from
    """

    name: str
    cube: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    wavelengths: np.ndarray | None = None
    rgb_bands: tuple[int, int, int] = (0, 0, 0)
    georeference: Georeference | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    fwhm: np.ndarray | None = None

    def __post_init__(self):
        self.verify()

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.shape

    @property
    def bands(self) -> int:
        return self.cube.shape[2]

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def class_counts(self) -> np.ndarray:
        """[K] labelled pixels of each class."""
        return np.bincount(self.labels.ravel(), minlength=self.n_classes + 1)[1:]

    def verify(self) -> None:
        """Raise SceneFormatError if the parts do not fit each other, or a name cannot be shown or be that of a file."""
        for name in (self.name, *self.class_names):
            check_name(name)
        if not is_plain_name(self.name):
            raise SceneFormatError(f"A scene cannot be called {self.name[:LONGEST_NAME]!r}: files are named after it. "
                                   f"Give it a name without / and \\, of at most {LONGEST_NAME} bytes.")
        if self.cube.ndim != 3:
            raise SceneFormatError(f"{self.name}: the cube has {self.cube.ndim} dimensions {self.cube.shape}, "
                                   "expected height x width x bands. Check the cube's key in the scene file.")
        if self.labels.shape != self.cube.shape[:2]:
            raise SceneFormatError(f"{self.name}: the label map is {self.labels.shape} but the cube is "
                                   f"{self.cube.shape[:2]} pixels. They must be the same image.")
        if self.labels.min() < 0 or self.labels.max() > self.n_classes:
            raise SceneFormatError(f"{self.name}: labels run from {self.labels.min()} to {self.labels.max()}, but "
                                   f"{self.n_classes} class names are given (0 = unlabelled).")
        if self.wavelengths is not None and len(self.wavelengths) != self.bands:
            raise SceneFormatError(f"{self.name}: {len(self.wavelengths)} wavelengths for {self.bands} bands.")
        if self.fwhm is not None and len(self.fwhm) != self.bands:
            raise SceneFormatError(f"{self.name}: {len(self.fwhm)} widths (fwhm) for {self.bands} bands.")
        if not all(0 <= band < self.bands for band in self.rgb_bands):
            raise SceneFormatError(f"{self.name}: rgb_bands {self.rgb_bands} are outside 0..{self.bands - 1}.")

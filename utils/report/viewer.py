"""What the page's map viewer shows: a pair's target as class numbers, truth and maps, and in false colour."""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.image import imsave

from datasets.scene import Scene
from model.errors import UserError
from utils.figures.of_runs import target_map
from utils.figures.palette import CORRECT, UNLABELLED, WRONG, class_colours, false_colour
from utils.report.album import data_uri
from utils.run.folder import open_run
from utils.trained.load import Trained, load_run

log = logging.getLogger(__name__)

MOST_PIXELS = 500_000      # of a scene in the viewer; a larger one is thinned to every second, third, ... pixel


def read_maps(runs: pd.DataFrame, rule: str, gpu: int | None, data_path: str | None, left_out: list[str]
              ) -> tuple[Trained | None, dict[str, np.ndarray]]:
    """One of a pair's trained methods, whose target has all labels that the pair has, None where there is none; and
    name -> map [H, W] of the target by each run.  A run that cannot be applied goes into `left_out`, with the reason.
    """
    shown, maps = None, {}
    for row in runs.to_dict("records"):
        try:
            trained = load_run(open_run(row["folder"]), rule, gpu, data_path)
            if trained.data.target is None:
                left_out.append(f"The map of {row['folder']}: it has no target.")
                continue
            maps[row["name"]] = target_map(trained)
        except UserError as error:
            log.warning("The map of %s is left out: %s", row["folder"], error)
            left_out.append(f"The map of {row['folder']}: {error}")
            continue
        shown = shown or trained                      # a ceiling, which has half of the labels, comes last
    return shown, maps


def viewed(pair: str, caption: str, scene: Scene, class_names: Sequence[str], maps: dict[str, np.ndarray]
           ) -> dict[str, Any]:
    """A pair as the page's script reads it: class numbers as base64 of zlib's stream of uint8 or little-endian uint16,
    row by row; every `step`-th pixel of the scene."""
    step = int(np.ceil(np.sqrt(scene.labels.size / MOST_PIXELS)))
    labels = scene.labels[::step, ::step]
    wide = len(class_names) > 255
    truth = {"truth": _packed(labels, wide)} if labels.any() else {}
    return {"pair": pair, "caption": caption, "height": labels.shape[0], "width": labels.shape[1], "step": step,
            "wide": wide, "classes": list(class_names),
            "colours": [to_hex(colour) for colour in class_colours(len(class_names))],
            "none": to_hex(UNLABELLED), "right": to_hex(CORRECT), "wrong": to_hex(WRONG),
            "counts": scene.class_counts().tolist(), "scene": _picture(scene, step), **truth,
            "maps": [{"name": name, "data": _packed(image[::step, ::step], wide)} for name, image in maps.items()]}


def _packed(numbers: np.ndarray, wide: bool) -> str:
    return base64.b64encode(zlib.compress(numbers.astype("<u2" if wide else np.uint8).tobytes(), 9)).decode()


def _picture(scene: Scene, step: int) -> str:
    file = BytesIO()
    imsave(file, false_colour(scene.cube, scene.rgb_bands)[::step, ::step], format="png")
    return data_uri(file.getvalue())

"""The three scene pairs of the field's benchmark: sizes, classes, labelled pixels (docs/data.md, "The three pairs").

Other variants of the files circulate, so a difference is a warning with a name, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkScene:
    """What the files of one benchmark scene hold: shape (H, W, B) and labelled pixels per class."""

    folder: str
    cube_file: str
    labels_file: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]


HOUSTON = ("grass healthy", "grass stressed", "trees", "water", "residential buildings", "non-residential buildings",
           "road")
PAVIA = ("tree", "asphalt", "brick", "bitumen", "shadow", "meadow", "bare soil")
HYRANK = ("dense urban fabric", "mineral extraction sites", "non-irrigated arable land", "fruit trees", "olive groves",
          "coniferous forest", "dense sclerophyllous vegetation", "sparse sclerophyllous vegetation",
          "sparsely vegetated areas", "rocks and sand", "water", "coastal water")

BENCHMARK: dict[str, BenchmarkScene] = {
    "Houston13": BenchmarkScene("Houston", "Houston13.mat", "Houston13_7gt.mat", (210, 954, 48), HOUSTON,
                                (345, 365, 365, 285, 319, 408, 443)),
    "Houston18": BenchmarkScene("Houston", "Houston18.mat", "Houston18_7gt.mat", (210, 954, 48), HOUSTON,
                                (1353, 4888, 2766, 22, 5347, 32459, 6365)),
    "paviaU": BenchmarkScene("Pavia", "paviaU.mat", "paviaU_7gt.mat", (610, 340, 102), PAVIA,
                             (3064, 6631, 3682, 1330, 947, 18649, 5029)),
    "paviaC": BenchmarkScene("Pavia", "paviaC.mat", "paviaC_7gt.mat", (1096, 715, 102), PAVIA,
                             (7598, 9248, 2685, 7287, 2863, 3090, 6584)),
    "Dioni": BenchmarkScene("HyRANK", "Dioni.mat", "Dioni_gt_out68.mat", (250, 1376, 176), HYRANK,
                            (1262, 204, 614, 150, 1768, 361, 5035, 6374, 1754, 492, 1612, 398)),
    "Loukia": BenchmarkScene("HyRANK", "Loukia.mat", "Loukia_gt_out68.mat", (249, 945, 176), HYRANK,
                             (206, 54, 426, 79, 1107, 422, 2996, 2361, 399, 453, 1393, 421)),
}


def check_scene(name: str, shape: Sequence[int], counts: Sequence[int]) -> list[str]:
    """Differences between a scene's (H, W, B) and labelled pixels per class and the table; empty = as in the table."""
    expected = BENCHMARK[name]
    found = []
    if tuple(shape) != expected.shape:
        found.append(f"{name} is {'×'.join(map(str, shape))}, the benchmark's is "
                     f"{'×'.join(map(str, expected.shape))}")
    if len(counts) != len(expected.class_counts):
        found.append(f"{name} has {len(counts)} classes, the benchmark's has {len(expected.class_counts)}")
        return found
    found += [f"{name} has {have} labelled pixels of class {k} ({class_name}), the benchmark's has {want}"
              for k, (have, want, class_name) in
              enumerate(zip(counts, expected.class_counts, expected.class_names), 1) if have != want]
    return found

"""From a method and a scene to a confusion matrix or a whole map.

Pixels are classified patch by patch, or all pixels of a region at once (model/scan), whichever is the less work for
the pixels that are wanted.  A method that predicts in a way of its own goes patch by patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.patches import PatchSampler, place
from model.methods import Method
from model.scan.scanner import Region, Scanner
from utils.run.metrics import confusion_matrix

BATCH = 512               # patches per forward pass; scores do not depend on it
TIMED_BATCH, REPEATS = 256, 3


def patches_per_second(method: Method) -> float:
    """Patch-by-patch inference on made-up patches: the fastest of a few batches, after one to warm up."""
    x = torch.zeros(TIMED_BATCH, method.task.bands, method.task.patch_size, method.task.patch_size, device=method.device)
    x[:, 0] = 1                                        # unit spectra
    method.predict(x).cpu()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        method.predict(x).cpu()
        times.append(time.perf_counter() - started)
    return TIMED_BATCH / min(times)


def confusion_of(method: Method, sampler: PatchSampler, n_classes: int) -> np.ndarray:
    """Confusion matrix [K, K] (rows truth) of a method on all samples of a sampler."""
    return confusion_matrix(sampler.labels.cpu().numpy(), classify(method, sampler).cpu().numpy(), n_classes)


def map_scene(method: Method, cube: np.ndarray, patch_size: int, device: torch.device, backend: str,
              progress: bool = True) -> np.ndarray:
    """Predicted class 1..K of every pixel: preprocessed cube [H, W, B] -> [H, W] uint8 (uint16 beyond 255 classes)."""
    return as_map(_of_scene(method, cube, patch_size, device, backend, _classes, progress).cpu().numpy(),
                  method.task.n_classes)


def as_map(predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Classes 0..K-1 -> 1..K in the smallest type that holds them."""
    return (predicted + 1).astype(np.uint8 if n_classes < 256 else np.uint16)


def scene_probabilities(method: Method, cube: np.ndarray, patch_size: int, device: torch.device, backend: str,
                        progress: bool = True) -> np.ndarray:
    """Probabilities of the classes at every pixel: preprocessed cube [H, W, B] -> [H, W, K] float32."""
    return _of_scene(method, cube, patch_size, device, backend, _probabilities, progress).cpu().numpy()


def classify(method: Method, sampler: PatchSampler) -> Tensor:
    """Predicted class 0..K-1 of every sample: [N]."""
    return _of_samples(method, sampler, _classes)


def probabilities(method: Method, sampler: PatchSampler) -> Tensor:
    """Probabilities of the classes of every sample: [N, K]."""
    return _of_samples(method, sampler, _probabilities)


def features(method: Method, parts: Iterable[Tensor]) -> np.ndarray:
    """The classifier's features [N, D] float32 of patches that come in parts [n, B, P, P], in evaluation mode."""
    method.eval()
    with torch.inference_mode():
        return torch.cat([method.discriminator.features(x) for x in parts]).float().cpu().numpy()


def _classes(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.float().softmax(-1)


Answer = Callable[[Tensor], Tensor]       # logits [..., K] -> what is wanted of them, [...] or [..., K]


def _of_scene(method: Method, cube: np.ndarray, patch_size: int, device: torch.device, backend: str, answer: Answer,
              progress: bool) -> Tensor:
    """The answer at every pixel of a preprocessed cube [H, W, B]: [H, W] or [H, W, K]."""
    h, w = cube.shape[:2]
    with tqdm(total=h * w, desc="map", unit="px", unit_scale=True, disable=not progress) as bar:
        if can_scan(method):
            scanner = Scanner(method.discriminator, patch_size, backend)
            return _scanned(scanner, place(cube, device), Region(0, 0, h, w), answer, bar)
        centres = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
        sampler = PatchSampler(place(cube, device), centres, np.zeros(len(centres), np.int64), patch_size, backend)
        return _patchwise(method, sampler, torch.arange(h * w, device=device), answer, bar).unflatten(0, (h, w))


def _of_samples(method: Method, sampler: PatchSampler, answer: Answer) -> Tensor:
    """The answer for every sample: [N] or [N, K]."""
    device = sampler.labels.device
    left, found = torch.ones(len(sampler), dtype=torch.bool, device=device), None
    regions = plan(sampler.centres.cpu().numpy(), sampler.patch_size) if can_scan(method) else []
    if regions:
        scanner = Scanner(method.discriminator, sampler.patch_size, sampler.backend)
        for region, wanted in regions:
            index = torch.from_numpy(wanted).to(device)
            rows, columns = (sampler.centres[index] - sampler.centres.new_tensor([region.row, region.column])).unbind(1)
            scanned = _scanned(scanner, sampler.cube, region, answer)[rows, columns]
            found = scanned.new_empty(len(sampler), *scanned.shape[1:]) if found is None else found
            found[index], left[index] = scanned, False
    rest = left.nonzero().flatten()
    patchwise = _patchwise(method, sampler, rest, answer)
    if found is None:
        return patchwise                                   # all of them, in order
    found[rest] = patchwise
    return found


def can_scan(method: Method) -> bool:
    """Whether the method's logits are those of its discriminator on the bare patch, as `Method.predict` has it, and a
    scan gives these."""
    return type(method).predict is Method.predict and vars(type(method.discriminator)).get("scannable", False)


# What a patch and the start of a scan are worth, in scanned pixels.  A patch: PATCH_BASE + PATCH_AREA·P², so the
# break-even density is 42 % at P = 5, 18 % at 9 and 10 % at 13.  Fitted to scanned pixels/s over patches/s on 2 cores
# with AVX-512 and the backend 'cpu', width 32 / 128: 1.9 / 2.0 at P = 5, 4.6 / 5.4 at 9, 9.6 / 11.4 at 13, 23 / 25 at
# 21; the backend 'reference' has nearly the same ratios.  A scan's start cost 200 to 900 pixels there.
PATCH_BASE, PATCH_AREA, SCAN_START = 1.0, 0.055, 500.0


def plan(centres: np.ndarray, patch_size: int) -> list[tuple[Region, np.ndarray]]:
    """Which regions to scan for wanted pixels [N, 2] (row, column), with the numbers [n] of those that each serves.

    Those that no region serves are cheaper patch by patch.  The bounding box is halved again and again across its
    longer side, and of the ways to serve a box - scan it, patch by patch, or each half in its cheapest way - the
    cheapest is taken.
    """
    return _plan(centres, np.arange(len(centres)), patch_size)[1] if len(centres) else []


def _plan(centres: np.ndarray, index: np.ndarray, patch_size: int) -> tuple[float, list[tuple[Region, np.ndarray]]]:
    """The cost, in scanned pixels, of the cheapest way to serve centres[index], and its regions."""
    wanted = centres[index]
    low, shape = wanted.min(0), np.ptp(wanted, 0) + 1
    scanned = SCAN_START + float(np.prod(shape + patch_size))  # a scan reaches half a patch beyond its region
    patchwise = len(index) * (PATCH_BASE + PATCH_AREA * patch_size ** 2)
    best = min((scanned, [(Region(*low.tolist(), *shape.tolist()), index)]), (patchwise, []), key=lambda way: way[0])
    axis = int(shape.argmax())
    upper = wanted[:, axis] >= low[axis] + shape[axis] / 2
    if best[0] <= SCAN_START + len(index) or upper.all():      # no scan serves them for less, or all are one pixel
        return best
    halves = [_plan(centres, index[side], patch_size) for side in (~upper, upper)]
    split = sum(cost for cost, _ in halves), [region for _, regions in halves for region in regions]
    return min(best, split, key=lambda way: way[0])


def _scanned(scanner: Scanner, cube: Tensor, region: Region, answer: Answer, bar: tqdm | None = None) -> Tensor:
    """The answer at every pixel of a region of a cube [B, H, W]: [height, width] or [height, width, K]."""
    whole = None
    for row, column, logits in scanner.blocks(cube, region):
        top, left, part = row - region.row, column - region.column, answer(logits)
        whole = part.new_empty(region.height, region.width, *part.shape[2:]) if whole is None else whole
        whole[top:top + part.shape[0], left:left + part.shape[1]] = part
        if bar is not None:
            bar.update(part.shape[0] * part.shape[1])
    return whole


def _patchwise(method: Method, sampler: PatchSampler, index: Tensor, answer: Answer, bar: tqdm | None = None) -> Tensor:
    """The answer for the samples of these numbers [N], patch by patch: [N] or [N, K]."""
    found = [answer(torch.zeros(0, method.task.n_classes, device=index.device))]
    for part in index.split(BATCH) if len(index) else ():
        found.append(answer(method.predict(sampler.patches(part))))
        if bar is not None:
            bar.update(len(part))
    return torch.cat(found)

"""From a method and a scene to a confusion matrix or a whole map."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from datasets.patches import PatchSampler, place
from model.methods import Method
from utils.metrics import confusion_matrix

BATCH = 512               # patches per forward pass; scores do not depend on it


def confusion_of(method: Method, sampler: PatchSampler, n_classes: int) -> np.ndarray:
    """Confusion matrix [K, K] (rows truth) of a method on all samples of a sampler."""
    predicted = [method.predict(x).argmax(1) for x, _ in sampler.in_order(BATCH)]
    return confusion_matrix(sampler.labels.cpu().numpy(), torch.cat(predicted).cpu().numpy(), n_classes)


def map_scene(method: Method, cube: np.ndarray, patch_size: int, device: torch.device, backend: str,
              progress: bool = True) -> np.ndarray:
    """Predicted class 1..K of every pixel: preprocessed cube [H, W, B] -> [H, W] uint8 (uint16 beyond 255 classes)."""
    h, w = cube.shape[:2]
    centres = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    sampler = PatchSampler(place(cube, device), centres, np.zeros(len(centres), np.int64), patch_size, backend)
    bar = tqdm(total=len(centres), desc="map", unit="px", unit_scale=True, disable=not progress)
    parts = []
    for x, _ in sampler.in_order(BATCH):
        logits = method.predict(x)
        parts.append(logits.argmax(1))
        bar.update(len(x))
    bar.close()
    return (torch.cat(parts).cpu().numpy().reshape(h, w) + 1).astype(np.uint8 if logits.shape[1] < 256 else np.uint16)

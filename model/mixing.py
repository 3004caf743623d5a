"""Multidomain mixing (DESIGN section 1)."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def draw_lambda(rng: np.random.Generator, beta: float) -> float:
    """λ ~ Beta(β, β): one per batch and generator."""
    return float(rng.beta(beta, beta))


def mix(generated: Tensor, source: Tensor, lam: float | Tensor) -> Tensor:
    """x̂^mix = λ x̂ + (1 − λ) x, shapes [N, B, P, P]; λ a number or a tensor without dimensions."""
    return lam * generated + (1 - lam) * source

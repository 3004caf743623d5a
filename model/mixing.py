"""Multidomain mixing (docs/method.md, "Mixing")."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def draw_lambda(rng: np.random.Generator, beta: float, n: int | None = None) -> float | np.ndarray:
    """λ ~ Beta(β, β): one per batch and generator; with `n` one per sample instead, [n]."""
    return rng.beta(beta, beta, n)


def mix(generated: Tensor, source: Tensor, lam: float | Tensor) -> Tensor:
    """x̂^mix = λ x̂ + (1 − λ) x, shapes [N, B, P, P]; λ a number, a tensor without dimensions or one per sample [N]."""
    if isinstance(lam, Tensor) and lam.dim():
        lam = lam.to(source)[:, None, None, None]
    return lam * generated + (1 - lam) * source

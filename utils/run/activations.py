"""Values that the networks keep from the forward for the backward pass, in closed form from the architecture.

They decide a step's memory, and how long it takes beside its arithmetic: norms, involution and activations are bound by
them.  Counted per patch; the networks' weights, a few megabytes, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.discriminator import STAGES as DISCRIMINATOR_STAGES
from model.generator import STAGES as GENERATOR_STAGES
from model.layers import GROUP_CHANNELS, KERNEL_AREA, REDUCTION
from model.methods import Task
from model.mmirn import PADDING
from model.settings import Settings
from utils.run.flops import generator_names

# Measured:
SCRATCH = 1.5             # resident memory over what is kept: oneDNN's reordered copies, and the allocator's gaps
BACKWARD = {"reference": 1.0, "cpu": 0.5, "cupy": 0.5}      # passes' worth that a backward pass takes
PREDICTION = 0.6          # what the widest stage takes where nothing is kept


@dataclass(frozen=True)
class Kept:
    """One training step: values kept by all passes of the discriminator and of the other networks, the number of these
    passes, and the bytes that are held at once."""

    classifier: int
    others: int
    passes: int
    held: float


def _spectral(c_in: int, backend: str) -> int:
    """Kept by an involution layer, per pixel: around BN and ReLU, the kernels (not by the C++ one), the result."""
    kernels = 0 if backend == "cpu" else KERNEL_AREA * max(1, c_in // GROUP_CHANNELS)
    return 2 * max(1, c_in // REDUCTION) + kernels + c_in


def discriminator(task: Task, settings: Settings, backend: str) -> int:
    """One patch through F.  The C++ kernels keep the convolutions' results alone, plain modules what ReLU gives too."""
    d, pixels, pooled = settings.pro_dim, task.patch_size ** 2, (task.patch_size // 2) ** 2
    results = (2 if backend == "cpu" else 4) * d
    widths = [task.bands] + [d] * (DISCRIMINATOR_STAGES - 1)
    stages = sum(c_in + _spectral(c_in, backend) + results for c_in in widths)
    return pixels * (stages + d) + 3 * d * pooled                            # the pooled values and their int64 index


def generator(task: Task, settings: Settings, name: str, backend: str) -> int:
    """One patch through G_a or G_b, the generated and the mixed patch included."""
    c, cut = settings.GIN_ch, settings.ablate
    split = settings.generators == "split"
    spectral = "no_spectral" not in cut and not (split and name == "b")
    norms = (4 if settings.generator_norm == "adain_bn" else 3) * c
    widths = [task.bands] + [c] * (GENERATOR_STAGES - 1)
    stages = sum(c_in + spectral * _spectral(c_in, backend) + norms for c_in in widths)
    return task.patch_size ** 2 * (stages + c + 3 * task.bands)


def mmirn(task: Task, settings: Settings) -> int:
    """One patch through M, as deep as it is built: padded input, and around each norm and each blur."""
    f, p, deepest = settings.mmirn_filters, task.patch_size, max(settings.contrast_layers)
    half, quarter = -(-p // 2), -(-(-(-p // 2)) // 2)
    kept = {1: task.bands * (p + 2 * PADDING) ** 2, 3: 3 * f * p ** 2, 6: 4 * f * p ** 2,
            7: 2 * f * (p + 2) ** 2, 10: 8 * f * half ** 2, 11: 4 * f * (half + 2) ** 2}
    kept |= dict.fromkeys(range(12, 18), 4 * f * (4 * quarter ** 2 + 2 * (quarter + 2) ** 2))
    tapped = task.bands * p ** 2 if 0 in settings.contrast_layers else 0
    return tapped + sum(values for layer, values in kept.items() if layer <= deepest)


def s2amsnet_step(task: Task, settings: Settings, batch: int, backend: str) -> Kept:
    """Generate, min step, max step.  The generators' values are held all the time; F takes the domains one pair of C
    after the other, in the joint batch and on the reference backend all at once."""
    cut, names, of_f = settings.ablate, generator_names(settings), discriminator(task, settings, backend)
    domains, source = len(names) * (1 if "no_mixing" in cut else 2), settings.source_ce == "on"
    at_once = backend == "reference" or settings.batchnorm_batches == "joint"
    together = domains + source if at_once else min(2, domains)
    still = "no_generators" in cut                                           # no max step
    f_passes = domains * (1 if still or "no_adversarial" in cut else 2) + source
    m_passes = 0 if still or "no_mmirn" in cut else 1 + len(names)
    of_g = 0 if still else sum(generator(task, settings, name, backend) for name in names)
    of_m = m_passes * mmirn(task, settings)
    of_domains = value_bytes(settings) * of_f * (SCRATCH * together + BACKWARD[backend])
    gradients = domains * task.bands * task.patch_size ** 2                  # of the loss, by each domain's pixels
    held = SCRATCH * 4 * (of_g + gradients) + max(of_domains, (SCRATCH + BACKWARD[backend]) * 4 * of_m)
    return Kept(batch * f_passes * of_f, batch * (of_g + of_m), f_passes + len(names) + m_passes, batch * held)


def erm_step(task: Task, settings: Settings, batch: int, backend: str) -> Kept:
    """One pass of the discriminator, and nothing else, so that the allocator's gaps stay small."""
    values = batch * discriminator(task, settings, backend)
    return Kept(values, 0, 1, value_bytes(settings) * values * (1 + BACKWARD[backend]))


def prediction(task: Task, settings: Settings, batch: int, backend: str) -> float:
    """Bytes held while a batch is classified."""
    return PREDICTION * value_bytes(settings) * batch * discriminator(task, settings, backend)


def value_bytes(settings: Settings) -> int:
    """Of one value in the discriminator."""
    return 2 if settings.precision == "bf16" else 4

"""Floating-point operations of one training step and of a prediction, in closed form from the architecture.

What torch.utils.flop_counter counts on backend `reference`: two operations per multiply-add of every convolution and
matrix product.  Involution, norms and activations are left out; they are bound by memory, not by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.discriminator import STAGES as DISCRIMINATOR_STAGES
from model.generator import NOISE_DIM, STAGES as GENERATOR_STAGES
from model.layers import GROUP_CHANNELS, KERNEL_AREA, REDUCTION
from model.methods import Task
from model.mmirn import PADDING
from model.settings import Settings


@dataclass(frozen=True)
class Pass:
    """Operations of a forward pass: all of them, those of layers that read the network's input, and those of layers
    with fixed weights."""

    all: int = 0
    reading: int = 0
    fixed: int = 0

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.all + other.all, self.reading + other.reading, self.fixed + other.fixed)

    def backward(self, *, weights: bool, inputs: bool) -> int:
        """Operations of the backward pass, with gradients of the weights or of the network's input, or both."""
        return weights * (self.all - self.fixed) + self.all - (0 if inputs else self.reading)


def convolution(c_in: int, c_out: int, side: int, pixels: int, *, reading: bool = False) -> Pass:
    """A convolution (or, with side and pixels 1, a linear layer) of one sample."""
    operations = 2 * c_in * c_out * side ** 2 * pixels
    return Pass(operations, operations if reading else 0)


def branches(c_in: int, c_out: int, pixels: int, reading: bool, spectral: bool = True, spatial: bool = True) -> Pass:
    """The spectral and the spatial branch of one stage."""
    work = Pass()
    if spectral:
        reduced, groups = max(1, c_in // REDUCTION), max(1, c_in // GROUP_CHANNELS)
        work += convolution(c_in, reduced, 1, pixels, reading=reading)
        work += convolution(reduced, KERNEL_AREA * groups, 1, pixels) + convolution(c_in, c_out, 1, pixels)
    if spatial:
        work += convolution(c_in, c_out, 3, pixels, reading=reading)
    return work


def discriminator(task: Task, settings: Settings) -> Pass:
    """One patch through F."""
    d, pixels = settings.pro_dim, task.patch_size ** 2
    work = branches(task.bands, d, pixels, True)
    for _ in range(DISCRIMINATOR_STAGES - 1):
        work += branches(d, d, pixels, False)
    return work + convolution(d * (task.patch_size // 2) ** 2, d, 1, 1) + convolution(d, task.n_classes, 1, 1)


def generator(task: Task, settings: Settings, name: str) -> Pass:
    """One patch through G_a or G_b."""
    c, pixels, cut = settings.GIN_ch, task.patch_size ** 2, settings.ablate
    split = settings.generators == "split"
    there = {"spectral": "no_spectral" not in cut and not (split and name == "b"),
             "spatial": "no_spatial" not in cut and not (split and name == "a")}
    work = branches(task.bands, c, pixels, True, **there)
    for _ in range(GENERATOR_STAGES - 1):
        work += branches(c, c, pixels, False, **there)
    for _ in range(GENERATOR_STAGES):
        work += convolution(NOISE_DIM, 2 * c, 1, 1, reading=True)                    # AdaIN's gamma and beta
    return work + convolution(c, task.bands, 3, pixels)


def mmirn(task: Task, settings: Settings) -> Pass:
    """One patch through M, as deep as it is built."""
    f, full, (half, quarter) = settings.mmirn_filters, task.patch_size ** 2, _blurred(task.patch_size)
    work = {1: convolution(task.bands, f, 7, full, reading=True), 4: convolution(f, 2 * f, 3, full),
            7: _blur(2 * f, half), 8: convolution(2 * f, 4 * f, 3, half), 11: _blur(4 * f, quarter)}
    block = convolution(4 * f, 4 * f, 3, quarter)
    work |= dict.fromkeys(range(12, 18), block + block)
    return sum((part for layer, part in work.items() if layer <= max(settings.contrast_layers)), Pass())


def mutual_information(task: Task, settings: Settings, batch: int) -> int:
    """MI(x, x̂) forward and backward, without M: inner products of all pairs of 2N views, as the equation stands.

    The kernels' way takes less than half of it (losses.info_nce_in_blocks), at about half the speed of convolutions.
    """
    f, full, (half, quarter) = settings.mmirn_filters, task.patch_size ** 2, _blurred(task.patch_size)
    length = {0: task.bands * (task.patch_size + 2 * PADDING) ** 2}
    for layers, values in ((range(1, 4), f * full), (range(4, 7), 2 * f * full), (range(7, 8), 2 * f * half),
                           (range(8, 11), 4 * f * half), (range(11, 18), 4 * f * quarter)):
        length |= dict.fromkeys(layers, values)
    return 2 * 3 * (2 * batch) ** 2 * sum(length[layer] for layer in settings.contrast_layers)


def _blur(channels: int, pixels: int) -> Pass:
    operations = 2 * 9 * channels * pixels
    return Pass(operations, fixed=operations)


def _blurred(patch_size: int) -> tuple[int, int]:
    """Pixels of a patch after one and after two downsamplings."""
    half = -(-patch_size // 2)
    return half ** 2, (-(-half // 2)) ** 2


def s2amsnet_step(task: Task, settings: Settings, batch: int) -> tuple[int, int]:
    """Generate, min step, max step: operations of the discriminator, and of the other networks and the MI term."""
    cut, classifier, names = settings.ablate, discriminator(task, settings), generator_names(settings)
    domains = len(names) * (1 if "no_mixing" in cut else 2)
    adversarial, mi, consistent = "no_adversarial" not in cut, "no_mmirn" not in cut, domains > 1
    judged = (domains + (settings.source_ce == "on")) * trained(classifier)
    if "no_generators" in cut:                      # no max step
        return batch * judged, 0
    if adversarial:
        judged += domains * (classifier.all + consistent * classifier.backward(weights=False, inputs=True))
    others = 0
    for name in names:
        made = generator(task, settings, name)
        others += batch * (trained(made) if (adversarial and consistent) or mi else made.all)
    if mi:
        encoder = mmirn(task, settings)
        others += batch * (trained(encoder) + len(names) * (encoder.all + encoder.backward(weights=True, inputs=True)))
        others += len(names) * mutual_information(task, settings, batch)
    return batch * judged, others


def erm_step(task: Task, settings: Settings, batch: int) -> tuple[int, int]:
    """One pass of the discriminator, and nothing else."""
    return batch * trained(discriminator(task, settings)), 0


def generator_names(settings: Settings) -> tuple[str, ...]:
    return ("a",) if "one_generator" in settings.ablate else ("a", "b")


def trained(network: Pass) -> int:
    """Forward and backward pass on one patch that needs no gradient itself."""
    return network.all + network.backward(weights=True, inputs=False)

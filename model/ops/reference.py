"""Involution and patch gather in plain PyTorch: the specification that every faster version is tested against.

Involution (Li et al., CVPR 2021; docs/method.md, "Involution"): kernel 3 x 3, one kernel per pixel and group of 3
channels, G = max(1, C // 3) groups, g(c) = min(c // 3, G - 1), so the C mod 3 leftover channels join the last group.
With u, v in -1..1 and x zero outside the patch:

    y[n, c, i, j] = sum_{u,v} kernel[n, g(c), 3 (u + 1) + (v + 1), i, j] * x[n, c, i + u, j + v]

The images are laid out row after row with one zero column between two rows, so each of the nine shifts is one
contiguous run of memory, and no shifted copies of x (nine times its size, as in an unfold) are made.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_CHANNELS = 3
TAPS = 9


def group_count(channels: int) -> int:
    """G, the number of kernel groups for so many channels."""
    return max(1, channels // GROUP_CHANNELS)


def involution(x: Tensor, kernel: Tensor) -> Tensor:
    """x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W], differentiable any number of times."""
    return _Involution.apply(x, kernel)


def forward(x: Tensor, kernel: Tensor) -> Tensor:
    """The module's equation.  x [N,C,H,W], kernel [N,G,9,H,W] -> y [N,C,H,W].  Half types are summed in float32."""
    height, width = x.shape[2:]
    source, weights = _framed(x), _rows(kernel)
    out = source.new_zeros(*x.shape[:2], height * (width + 1))
    for channels, groups in _blocks(x.shape[1]):
        target, moved = _grouped(out, channels, groups), _grouped(source, channels, groups)
        for tap in range(TAPS):
            target.addcmul_(_shift(moved, tap, height, width), weights[:, groups, None, tap])
    return _cropped(out.unflatten(2, (height, width + 1))[..., :width], x.dtype)


def grad_input(grad: Tensor, kernel: Tensor) -> Tensor:
    """Gradient with respect to x.  grad (of y) [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W]."""
    height, width = grad.shape[2:]
    source, weights = _rows(grad), _rows(kernel)
    out = source.new_zeros(*grad.shape[:2], (height + 3) * (width + 1))
    for channels, groups in _blocks(grad.shape[1]):
        target, fixed = _grouped(out, channels, groups), _grouped(source, channels, groups)
        for tap in range(TAPS):
            _shift(target, tap, height, width).addcmul_(fixed, weights[:, groups, None, tap])
    return _cropped(out.unflatten(2, (height + 3, width + 1))[:, :, 1:height + 1, 1:], grad.dtype)


def grad_kernel(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient with respect to the kernel.  grad (of y) [N,C,H,W], x [N,C,H,W] -> [N,G,9,H,W]."""
    batch, bands, height, width = x.shape
    source, framed = _rows(grad), _framed(x)
    out = source.new_zeros(batch, group_count(bands), TAPS, height * (width + 1))
    for channels, groups in _blocks(bands):
        fixed, moved = _grouped(source, channels, groups), _grouped(framed, channels, groups)
        for tap in range(TAPS):
            out[:, groups, tap].add_((fixed * _shift(moved, tap, height, width)).sum(2))
    return _cropped(out.unflatten(3, (height, width + 1))[..., :width], x.dtype)


class _Involution(torch.autograd.Function):
    """Explicit gradients: autograd's own would keep and pad a tensor for every tap (two to three times slower)."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor) -> Tensor:
        return forward(x, kernel)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        return (grad_input(grad, kernel) if ctx.needs_input_grad[0] else None,
                grad_kernel(grad, x) if ctx.needs_input_grad[1] else None)


def gather_patches(cube: Tensor, centres: Tensor, size: int) -> Tensor:
    """Patches around pixels, the scene mirrored at its edge with the edge pixel repeated (numpy's 'symmetric').

    cube [B,H,W], centres [N,2] int64 (row, column), size odd -> [N,B,size,size]
    """
    bands, height, width = cube.shape
    offsets = torch.arange(size, device=centres.device) - size // 2
    rows = mirror(centres[:, :1] + offsets, height)[:, :, None]                                # [N,P,1]
    columns = mirror(centres[:, 1:] + offsets, width)[:, None, :]                              # [N,1,P]
    image = cube.permute(1, 2, 0)                                                              # [H,W,B]
    if image.is_contiguous():                      # whole spectra are copied, twice as fast as element by element
        pixels = (rows * width + columns).flatten()
        spectra = image.flatten(0, 1).index_select(0, pixels).view(-1, size, size, bands)
    else:                                          # flatten would copy the scene
        spectra = image[rows, columns]                                                         # [N,P,P,B]
    return spectra.permute(0, 3, 1, 2).contiguous()


def mirror(index: Tensor, length: int) -> Tensor:
    """Indices folded into 0..length-1, the edge pixel repeated: -1 is 0, length is length - 1.  Those beyond
    -length..2·length-1 become 0, since a read outside the scene would end all work on a GPU."""
    folded = torch.maximum(index, -1 - index)
    return torch.minimum(folded, 2 * length - 1 - folded).clamp(min=0)


def _blocks(channels: int) -> list[tuple[slice, slice]]:
    """(channels, groups) slices: the full groups of three, then the leftover channels with the last group."""
    full, groups = channels // GROUP_CHANNELS, group_count(channels)
    blocks = [(slice(0, full * GROUP_CHANNELS), slice(0, full)),
              (slice(full * GROUP_CHANNELS, channels), slice(groups - 1, groups))]
    return [(members, group) for members, group in blocks if members.stop > members.start]


def _grouped(images: Tensor, channels: slice, groups: slice) -> Tensor:
    """[N,C,L] -> view [N,groups,channels per group,L] of the chosen channels."""
    return images[:, channels].unflatten(1, (groups.stop - groups.start, -1))


def _rows(images: Tensor) -> Tensor:
    """[...,H,W] -> [...,H (W+1)], a zero after each row."""
    return F.pad(images.to(_sum_dtype(images.dtype)), (0, 1)).flatten(-2)


def _framed(images: Tensor) -> Tensor:
    """[...,H,W] -> [...,(H+3)(W+1)]: a zero before each row (and so after the one above), one row above, two below."""
    return F.pad(images.to(_sum_dtype(images.dtype)), (1, 0, 1, 2)).flatten(-2)


def _shift(framed: Tensor, tap: int, height: int, width: int) -> Tensor:
    """View [...,H (W+1)] of a framed image, moved by the tap's (u, v) and aligned with `_rows`."""
    start = tap // 3 * (width + 1) + tap % 3
    return framed[..., start:start + height * (width + 1)]


def _cropped(view: Tensor, dtype: torch.dtype) -> Tensor:
    """A dense copy, also of an empty view, which would otherwise keep its place in the framed image."""
    return view.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# ---- patches with flips and radiation noise ----

RADIATION_GAIN = (0.9, 1.1)      # alpha of the radiation noise, per patch (docs/data.md, "Augmentation")
RADIATION_NOISE = 1 / 25         # standard deviation of its additive part, per value
QUAD = 4                         # bands that share one draw of Philox
PATCH_PURPOSE, NOISE_PURPOSE = 0, 1      # last word of Philox's counter: draws of a patch, draws of its values
LOW_WORD = 0xFFFFFFFF


def gather_augmented(cube: Tensor, centres: Tensor, size: int, seed: Tensor, first: int = 0, flip: bool = True,
                     radiation: bool = True) -> Tensor:
    """`gather_patches`, then flips (half the patches: left-right and up-down, each with probability one half), then
    radiation noise (half the patches: alpha x + n / 25, alpha ~ U(0.9, 1.1) per patch, n ~ N(0, 1) per value).

    cube [B,H,W] float32, centres [N,2] int64, seed [1] int64 (its 64 bits) -> [N,B,size,size].  Patch n is number
    first + n of the seed's patches: its draws depend on (seed, first + n) and the place in the patch alone.
    Raises ValueError for other types.
    """
    check_augmented(cube, centres, seed)
    patches = gather_patches(cube, centres, size)
    number = first + torch.arange(len(centres), device=cube.device)
    words = philox(_counter(torch.zeros_like(number), number, PATCH_PURPOSE), seed)[:, None, None, None]   # [N,1,1,1,4]
    if flip:
        coins = words[..., 0]                                            # bits: flipped at all, left-right, up-down
        patches = torch.where(coins & 3 == 3, patches.flip(3), patches)
        patches = torch.where(coins & 5 == 5, patches.flip(2), patches)
    if radiation:
        low, high = RADIATION_GAIN
        gain = low + (high - low) * uniform(words[..., 2])
        noisy = gain * patches + RADIATION_NOISE * _noise(patches, number, seed)
        patches = torch.where(words[..., 1] & 1 == 1, noisy, patches)
    return patches


def check_augmented(cube: Tensor, centres: Tensor, seed: Tensor) -> None:
    """Raises ValueError if the arguments of `gather_augmented` have other types, which kernels would misread."""
    types = (cube.dtype, centres.dtype, seed.dtype)
    if types != (torch.float32, torch.int64, torch.int64) or seed.shape != (1,):
        raise ValueError(f"gather_augmented: cube, centres and seed are {', '.join(map(str, types))}, the seed "
                         f"{tuple(seed.shape)}; expected float32, int64 and int64 [1].")
    if not cube.device == centres.device == seed.device:
        raise ValueError(f"gather_augmented: the cube is on {cube.device}, the centres on {centres.device}, the seed on "
                         f"{seed.device}. Move them together.")


def gather_spectra(cube: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The spectra at rows [N,P] and columns [N,P] of a scene that is mirrored at its edge: [N,P,P,B].

    Made for a cube [B,H,W] with a pixel's bands side by side, of which whole spectra are copied; any other is copied as
    a whole first.
    """
    bands, height, width = cube.shape
    pixels = mirror(rows, height)[:, :, None] * width + mirror(columns, width)[:, None, :]                 # [N,P,P]
    return cube.permute(1, 2, 0).reshape(-1, bands).index_select(0, pixels.flatten()).view(*pixels.shape, bands)


def _noise(patches: Tensor, number: Tensor, seed: Tensor) -> Tensor:
    """Standard normal numbers for patches [N,B,P,P], four bands of a pixel from each draw of Philox."""
    _, bands, size, _ = patches.shape
    quads = -(-bands // QUAD)
    quad = torch.arange(size * size * quads, device=patches.device)
    numbers = normals(philox(_counter(quad, number[:, None], NOISE_PURPOSE), seed))        # [N, P P quads, 4]
    return numbers.view(-1, size, size, quads * QUAD)[..., :bands].permute(0, 3, 1, 2)


def _counter(quad: Tensor, number: Tensor, purpose: int) -> Tensor:
    """Philox's counter [...,4] for a quad of a patch."""
    quad, number = torch.broadcast_tensors(quad, number)
    return torch.stack([quad, number & LOW_WORD, number >> 32 & LOW_WORD, torch.full_like(quad, purpose)], dim=-1)


def philox(counter: Tensor, seed: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405).

    counter [N,...,4] int64 words 0..2^32 - 1, seed [1] int64 with the key's first word in its low half -> [N,...,4].
    """
    words, key = list(counter.unbind(-1)), [seed & LOW_WORD, seed >> 32 & LOW_WORD]
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]       # modulo 2^64, so the high words are right
        words = [(second >> 32 & LOW_WORD) ^ words[1] ^ key[0], second & LOW_WORD,
                 (first >> 32 & LOW_WORD) ^ words[3] ^ key[1], first & LOW_WORD]
        key = [(key[0] + 0x9E3779B9) & LOW_WORD, (key[1] + 0xBB67AE85) & LOW_WORD]
    return torch.stack(words, dim=-1)


def uniform(words: Tensor) -> Tensor:
    """Words 0..2^32 - 1 -> float32 in [0, 1), in steps of 2^-24."""
    return (words >> 8).float() / 2 ** 24


def normals(words: Tensor) -> Tensor:
    """Words [...,4] -> standard normal numbers [...,4] float32, by Box and Muller's transform of two pairs."""
    first, second = uniform(words).double().unflatten(-1, (2, 2)).unbind(-1)               # [...,2] each
    radius, angle = (-2 * torch.log1p(-first)).sqrt(), 2 * math.pi * second
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(-2).float()

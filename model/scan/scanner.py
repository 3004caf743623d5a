"""The discriminator around every pixel of a scene at once: the logits of patch by patch, without its repetitions.

Neighbouring patches overlap, and what a layer makes of a pixel depends on the patch only through the zeros that pad its
border: after s stages (3x3 windows each) a pixel's place in the patch counts along each axis only up to a distance of
s from the edges.  These *classes* are, where P >= 2s + 1, the rows 0..s-1, all rows between, and the rows P-s..P-1.
Maps of the scene, one per class of the row and class of the column, hold every feature that any patch needs: 1, 9, 25
and 49 maps before and after the three stages, 36 where the pooling drops the last row and column (P is odd), and 16
pooled ones, whereas patches compute everything P² times.

Two further savings.  A tap of a 3x3 convolution multiplies the same pixel for several classes of the result: 49 and 121
distinct products serve the 25 and 36 maps of stages 2 and 3.  And the first linear layer is a sum of shifted maps.

Rows are streamed: every stage takes R rows and gives R rows, one row later, from a buffer that keeps the last two.  The
maps are padded by a column on each side.  Values in the padding, and of classes where no patch puts them (the top row
of a patch at the bottom of the scene), are computed from whatever lies there, and never read by a place that counts.

BatchNorm (with its running statistics, whatever mode the network is in) and the weights of the two branches are folded
into the convolutions: w·relu(z) = relu(w·z), as the weights are positive.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.discriminator import STAGES, Discriminator, DiscriminatorStage
from model.errors import ConfigError
from model.layers import GROUP_CHANNELS, KERNEL_AREA
from model.ops import resolve_backend
from model.ops.reference import mirror
from model.scan import cpu, reference
from model.scan.classes import TAPS, Table, column_taps, pool_pairs, shares, tap_table

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 22}     # values of one map in a block: pixels times width
COLUMNS = 1024                                # widest column tile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """Pixels row..row+height-1, column..column+width-1 of a scene."""

    row: int
    column: int
    height: int
    width: int


class Scanner:
    """A discriminator prepared for scenes.  Its weights are copied: later training does not reach the scanner.

    Like the discriminator it computes in bfloat16 where its precision is 'bf16', else in the type of the weights.
    """

    def __init__(self, discriminator: Discriminator, patch_size: int, backend: str = "auto"):
        """Raises ConfigError for a backend that cannot run."""
        device = discriminator.branch_logits.device
        self.dtype = torch.bfloat16 if discriminator.low_precision else discriminator.branch_logits.dtype
        self.operators = choose_operators(backend, device, self.dtype)
        self.patch_size, self.width = patch_size, discriminator.head.in_features
        weights = discriminator.branch_logits.detach().double().softmax(0)
        orders = [grouped(stage.spectral.conv.in_channels).to(device) for stage in discriminator.stages]
        orders.append(torch.arange(self.width, device=device))
        self.stages = [_Stage.of(stage, weights, tap_table(patch_size, depth, depth == STAGES), orders[depth - 1],
                                 orders[depth], self.dtype)
                       for depth, stage in enumerate(discriminator.stages, start=1)]
        self.classifier = _Classifier.of(discriminator, patch_size, self.dtype)

    def blocks(self, cube: Tensor, region: Region | None = None, *, rows: int | None = None,
               columns: int = COLUMNS) -> Iterator[tuple[int, int, Tensor]]:
        """Logits of a region (else of all) of a scene [B, H, W], block by block: (row, column, logits [r, w, K]).

        row and column are the scene's.  `rows` (as many as fit the block size) and `columns` bound a block's size, so
        that memory does not grow with the scene.  Raises ValueError if the scene cannot be mirrored far enough.
        """
        if min(cube.shape[1:]) < self.patch_size // 2:
            raise ValueError(f"scan: a scene of {cube.shape[1]} x {cube.shape[2]} pixels cannot be mirrored "
                             f"{self.patch_size // 2} pixels beyond its edge. Use a smaller patch size.")
        region = region or Region(0, 0, *cube.shape[1:])
        tiles = -(-region.width // columns)
        edges = [region.column + region.width * k // tiles for k in range(tiles + 1)]
        for start, stop in zip(edges[:-1], edges[1:]):
            tile = Region(region.row, start, region.height, stop - start)
            for row, logits in _Stream(self, cube, tile, rows).run():
                yield row, start, logits

    def block_rows(self, tile: Region, device: torch.device, most: int | None = None) -> int:
        """Rows of a block of a column tile: as many blocks as `most` rows (None = as many as fit the block size) need,
        evenly filled."""
        across, total = tile.width + self.patch_size - 1, tile.height + self.patch_size + 1
        most = most or max(1, BLOCK.get(device.type, BLOCK["cpu"]) // (across * self.width))
        return -(-total // -(-total // most))


def scan(discriminator: Discriminator, cube: Tensor, patch_size: int, backend: str = "auto") -> Tensor:
    """Logits of every pixel of a scene: [B, H, W] -> [H, W, K].  Raises ConfigError for a backend that cannot run."""
    logits = cube.new_empty(*cube.shape[1:], discriminator.head.out_features)
    for row, column, part in Scanner(discriminator, patch_size, backend).blocks(cube):
        logits[row:row + part.shape[0], column:column + part.shape[1]] = part
    return logits


def choose_operators(backend: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The C++ operators where the backend comes to 'cpu' and they can be built, else the reference."""
    if resolve_backend(backend, device) != "cpu" or dtype not in cpu.DTYPES:
        return reference
    reason = cpu.unavailable_reason()
    if reason is None:
        return cpu
    if backend == "cpu":
        raise ConfigError(f"backend 'cpu' cannot scan: {reason}, or use the backend 'auto' or 'reference'.")
    _log.info("scan on %s: reference, since its C++ kernels cannot run: %s for them.", device, reason)
    return reference


def grouped(channels: int) -> Tensor:
    """The order of channels in which involution kernels meet them without being spread (see reference.py)."""
    full = channels // GROUP_CHANNELS * GROUP_CHANNELS
    return torch.cat([torch.arange(full).view(-1, GROUP_CHANNELS).t().flatten(), torch.arange(full, channels)])


@dataclass(frozen=True)
class _Stage:
    """A stage's folded weights; channels in the orders of the maps before and after it."""

    table: Table
    squeeze: tuple[Tensor, Tensor]            # kernel generator: [r, C, 1, 1], [r] ...
    span: tuple[Tensor, Tensor]               # ... [r, 9·G], [9·G], tap-major
    relu: bool                                # of the kernels
    spectral: tuple[Tensor, Tensor]           # [C', C, 1, 1], [C']
    taps: dict[tuple[int, int], Tensor]       # (row tap, class of the column) -> [taps·C', C, 1, 1]
    bias: Tensor                              # [C'] of the 3x3 convolution

    @staticmethod
    def of(stage: DiscriminatorStage, weights: Tensor, table: Table, order: Tensor, next_order: Tensor,
           dtype: torch.dtype) -> _Stage:
        """From the network; weights [2] of the branches."""
        involution = stage.spectral.involution
        squeeze, squeeze_bias = _folded(involution.conv1.conv, involution.conv1.bn)
        span, span_bias = (tensor.detach().unflatten(0, (involution.groups, KERNEL_AREA)).transpose(0, 1).flatten(0, 1)
                           for tensor in (involution.conv2.conv.weight.flatten(1), involution.conv2.conv.bias))
        spectral, spectral_bias = _folded(stage.spectral.conv, stage.spectral_norm, weights[0])
        spatial, spatial_bias = _folded(stage.spatial.conv, stage.spatial_norm, weights[1])
        spatial = spatial[next_order][:, order]
        taps = {(u, met): torch.cat([spatial[:, :, u + 1, v + 1] for v in column_taps(table, met)])[:, :, None, None]
                for u in TAPS for _, met in shares(table)}
        return _Stage(table, (squeeze[:, order].to(dtype), squeeze_bias.to(dtype)),
                      (span.t().contiguous().to(dtype), span_bias.to(dtype, copy=True)),
                      involution.conv2.with_activation,
                      (spectral[next_order][:, order].to(dtype), spectral_bias[next_order].to(dtype)),
                      {key: weight.to(dtype) for key, weight in taps.items()}, spatial_bias[next_order].to(dtype))

    def apply(self, x: Tensor, out: Tensor, operators: ModuleType) -> None:
        """x [n, n, R+2, W+2, C] -> out [m, m, R, W, C']."""
        rows, channels = x.shape[2] - 2, out.shape[-1]
        hidden = [_convolve(image[None, 1:-1], *self.squeeze)[0].relu_() for image in x.flatten(0, 1)]
        involved = operators.involve(x, hidden, self.span, self.table, self.relu)
        spectral = _convolve(involved.flatten(0, 1), *self.spectral)
        products = ([_convolve(image[None, 1 + tap:1 + tap + rows], self.taps[tap, j])[0].unflatten(-1, (-1, channels))
                     for j, image in enumerate(x[met])] for tap, met in shares(self.table))
        operators.mix(spectral.view(out.shape), products, self.bias, self.table, out)


@dataclass(frozen=True)
class _Classifier:
    """Pooling and the linear layers."""

    pairs: list[tuple[int, int]]              # of classes that are pooled, for every pooled row (column) of a patch
    rows: list[list[int]]                     # the pooled rows that each distinct pair serves ...
    first: list[Tensor]                       # ... and their weights, [rows·d, S·d, 1, 1]
    bias: Tensor                              # [d]
    last: list[tuple[Tensor, Tensor]]         # weights and biases of the layers behind, leaky ReLUs between them

    @staticmethod
    def of(discriminator: Discriminator, patch_size: int, dtype: torch.dtype) -> _Classifier:
        side, pairs = patch_size // 2, pool_pairs(patch_size, STAGES)
        rows = [[row for row in range(side) if pairs[row] == pair] for pair in dict.fromkeys(pairs)]
        weight = discriminator.fc.weight.detach().unflatten(1, (-1, side, side)).permute(2, 0, 3, 1)   # [S, d, S, d]
        first = [weight[served].flatten(0, 1).flatten(1)[:, :, None, None].to(dtype) for served in rows]
        layers = discriminator.last_layers()
        bias, *last = (tensor.detach().to(reference.sum_dtype(dtype), copy=True) for tensor in
                       (discriminator.fc.bias, *(part for layer in layers for part in (layer.weight, layer.bias))))
        return _Classifier(pairs, rows, first, bias, list(zip(last[::2], last[1::2])))

    def add(self, pooled: Tensor, sums: Tensor) -> None:
        """Add the parts of pooled rows [p, R, w, S, d] to the sums [P-3+R, w, d] of the patches that they belong to, of
        which the first begins P-3 rows above the first pooled row."""
        count = pooled.shape[1]
        for rows, weight, image in zip(self.rows, self.first, pooled):
            parts = _convolve(image.flatten(2)[None], weight)[0].unflatten(-1, (len(rows), -1))
            for k, row in enumerate(rows):
                sums.narrow(0, len(sums) - count - 2 * row, count).add_(parts[:, :, k])

    def logits(self, sums: Tensor) -> Tensor:
        """[r, w, d] -> [r, w, K]."""
        first, *others = self.last
        h = functional.linear((sums + self.bias).relu_(), *first)
        for layer in others:
            h = functional.linear(functional.leaky_relu(h), *layer)
        return h


class _Stream:
    """One pass over a column tile, R rows at a time.

    A pixel's logits come P + 1 rows after the first row of its patch was read: the last row that the patch pools lies
    P - 2 further down, and every stage is a row late.
    """

    def __init__(self, scanner: Scanner, cube: Tensor, tile: Region, rows: int | None):
        size, self.scanner, self.tile = scanner.patch_size, scanner, tile
        self.image = cube.permute(1, 2, 0)                                                     # [H, W, B]
        self.late, across = size + 1, tile.width + size - 1
        self.rows = scanner.block_rows(tile, cube.device, rows)
        self.next_row = tile.row - size // 2              # of the mirrored scene
        columns = torch.arange(-1, across + 1, device=cube.device) + tile.column - size // 2
        self.columns = mirror(columns, cube.shape[2])
        counts = [1] + [len(stage.table) for stage in scanner.stages]
        widths = [cube.shape[0]] + [scanner.width] * STAGES
        self.buffers = [cube.new_zeros(n, n, self.rows + 2, across + 2, width, dtype=scanner.dtype)
                        for n, width in zip(counts[:-1], widths[:-1])]
        self.features = cube.new_zeros(counts[-1], counts[-1], self.rows + 1, across, widths[-1], dtype=scanner.dtype)
        self.sums = cube.new_zeros(size - 3 + self.rows, tile.width, widths[-1], dtype=scanner.classifier.bias.dtype)

    def run(self) -> Iterator[tuple[int, Tensor]]:
        """(row, logits [r, w, K]) of all rows of the tile."""
        end = self.tile.row + self.tile.height
        for row in range(self.tile.row - self.late, end, self.rows):
            logits = self.push()[max(0, self.tile.row - row):end - row]
            if len(logits):
                yield max(row, self.tile.row), logits

    @torch.inference_mode()
    def push(self) -> Tensor:
        """Take the next R rows of the scene through the network: the R rows of logits [R, w, K] that are ready then."""
        scanner = self.scanner
        index = torch.arange(self.next_row, self.next_row + self.rows, device=self.image.device)
        self.next_row += self.rows
        spectra = self.image.index_select(0, mirror(index, self.image.shape[0])).index_select(1, self.columns)
        _group(spectra, _advance(self.buffers[0], 2, 2)[0, 0])
        outputs = [_advance(buffer, 2, 2)[:, :, :, 1:-1] for buffer in self.buffers[1:]]
        outputs.append(_advance(self.features, 2, 1))
        _advance(self.sums, 0, len(self.sums) - self.rows).zero_()
        with torch.autocast(self.image.device.type, enabled=False):
            for stage, x, out in zip(scanner.stages, self.buffers, outputs):
                stage.apply(x, out, scanner.operators)
            pooled = scanner.operators.pool(self.features, scanner.classifier.pairs)
            scanner.classifier.add(pooled, self.sums)
            return scanner.classifier.logits(self.sums[:self.rows]).to(self.image.dtype)


def _advance(buffer: Tensor, axis: int, kept: int) -> Tensor:
    """Move the last `kept` rows of a buffer to its front; the rest, to be written."""
    new = buffer.shape[axis] - kept
    last = buffer.narrow(axis, new, kept)
    buffer.narrow(axis, 0, kept).copy_(last if new >= kept else last.clone())               # they would overlap
    return buffer.narrow(axis, kept, new)


def _group(x: Tensor, out: Tensor) -> None:
    """Copy [..., C] in the order `grouped`."""
    full = x.shape[-1] // GROUP_CHANNELS
    members, leftover = x.split([GROUP_CHANNELS * full, x.shape[-1] - GROUP_CHANNELS * full], -1)
    out[..., :GROUP_CHANNELS * full].unflatten(-1, (GROUP_CHANNELS, full)).copy_(
        members.unflatten(-1, (full, GROUP_CHANNELS)).transpose(-1, -2))
    out[..., GROUP_CHANNELS * full:] = leftover


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """weight·norm(conv(h)) as one convolution: its weights and bias, in float64."""
    scale = weight * norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    kernel = conv.weight.detach().double() * scale[:, None, None, None]
    return kernel, weight * norm.bias.detach().double() - scale * norm.running_mean.double()


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution of images whose pixels' channels lie side by side: [N, H, W, C] -> contiguous [N, H, W, C']."""
    return functional.conv2d(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1).contiguous()

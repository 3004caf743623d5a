"""The scan of a whole scene against the discriminator on every patch: same logits, whatever the sizes and blocks."""

import logging

import pytest
import torch

from model.discriminator import Discriminator
from model.errors import ConfigError
from model.methods.l2d import EmbeddingDiscriminator
from model.ops import gather_patches
from model.scan import cpu, reference, scanner
from model.scan.classes import classes, column_taps, pool_pairs, shares, tap_table
from model.scan.scanner import Region, Scanner, grouped, scan

N_CLASSES = 4
needs_compiler = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no C++ compiler")
BACKENDS = ("reference", pytest.param("cpu", marks=needs_compiler))


def network(patch_size, bands=7, width=8, activation="relu", precision="float32", seed=0, kind=Discriminator):
    """A discriminator in evaluation mode with statistics and weights that no initialisation has."""
    torch.manual_seed(seed)
    made = kind(bands, N_CLASSES, patch_size, width, kernel_activation=activation, backend="reference",
                precision=precision)
    with torch.no_grad():
        made.branch_logits.normal_()
        for norm in (module for module in made.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            for tensor, draw in ((norm.running_mean, torch.randn), (norm.running_var, torch.rand),
                                 (norm.weight, torch.randn), (norm.bias, torch.randn)):
                tensor.copy_(draw(len(tensor)))
            norm.running_var.add_(0.5)
    return made.eval()


def scene(bands, height, width, seed=0):
    """[B, H, W], pixel by pixel in memory."""
    return torch.randn(height, width, bands, generator=torch.Generator().manual_seed(seed)).permute(2, 0, 1)


@torch.no_grad()
def patchwise(discriminator, cube, patch_size):
    height, width = cube.shape[1:]
    centres = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return discriminator(gather_patches(cube, centres, patch_size, backend="reference")).view(height, width, -1)


def exact(discriminator, cube, patch_size):
    """Patch by patch in float64."""
    found = patchwise(discriminator.double(), cube.double(), patch_size)
    discriminator.float()
    return found


def difference(found, expected):
    """Largest difference relative to the largest value."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("patch_size", (3, 5, 7, 9, 13))
@pytest.mark.parametrize("activation", ("relu", "none"))
def test_equals_patches_in_float64(patch_size, activation):
    discriminator = network(patch_size, activation=activation).double()
    cube = scene(7, patch_size // 2, patch_size + 6).double()           # as narrow as it can be mirrored
    assert difference(scan(discriminator, cube, patch_size), patchwise(discriminator, cube, patch_size)) < 1e-13


@pytest.mark.parametrize("patch_size", (3, 5, 7, 9, 13))
@pytest.mark.parametrize("activation", ("relu", "none"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_patches(patch_size, activation, backend):
    discriminator, cube = network(patch_size, activation=activation), scene(7, patch_size + 4, patch_size // 2)
    assert difference(scan(discriminator, cube, patch_size, backend), exact(discriminator, cube, patch_size)) < 3e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_between_features_and_head_count(backend):
    discriminator, cube = network(5, kind=EmbeddingDiscriminator), scene(7, 9, 8)
    assert difference(scan(discriminator, cube, 5, backend), exact(discriminator, cube, 5)) < 3e-6
    assert difference(scan(discriminator, cube, 5, backend), exact(network(5), cube, 5)) > 1e-2


@pytest.mark.slow_but("reference-48-32", "cpu-48-32")
@pytest.mark.parametrize("bands, width", [(1, 1), (2, 3), (5, 2), (48, 32), (103, 50), (50, 49), (3, 128)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_channels(bands, width, backend):
    """Below a group, leftovers of one and two, below and above the kernels' vectors."""
    for activation in ("relu", "none"):
        discriminator, cube = network(7, bands, width, activation), scene(bands, 5, 13)
        assert difference(scan(discriminator, cube, 7, backend), exact(discriminator, cube, 7)) < 3e-6


@pytest.mark.parametrize("height, width", [(2, 2), (3, 17), (11, 2), (9, 8), (4, 25)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scene_sizes(height, width, backend):
    discriminator, cube = network(5), scene(7, height, width)
    assert difference(scan(discriminator, cube, 5, backend), exact(discriminator, cube, 5)) < 3e-6


@pytest.mark.slow_but("reference-1-1", "cpu-4-3", "cpu-1000-100")
@pytest.mark.parametrize("rows", (1, 3, 7, 100))
@pytest.mark.parametrize("columns", (1, 4, 1000))
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_cover_every_pixel_once(rows, columns, backend):
    discriminator, cube = network(5), scene(7, 12, 9)
    found, visits = torch.zeros(12, 9, N_CLASSES), torch.zeros(12, 9)
    for row, column, logits in Scanner(discriminator, 5, backend).blocks(cube, rows=rows, columns=columns):
        assert logits.shape[0] <= rows and logits.shape[1] <= columns
        found[row:row + logits.shape[0], column:column + logits.shape[1]] = logits
        visits[row:row + logits.shape[0], column:column + logits.shape[1]] += 1
    assert (visits == 1).all()
    assert difference(found, exact(discriminator, cube, 5)) < 3e-6


@pytest.mark.parametrize("region", [Region(0, 0, 12, 9), Region(11, 8, 1, 1), Region(0, 3, 1, 6), Region(4, 0, 7, 1),
                                    Region(2, 3, 5, 4)])
def test_regions(region):
    discriminator, cube = network(9), scene(7, 12, 9)
    expected = exact(discriminator, cube, 9)
    visits = torch.zeros(12, 9)
    for row, column, logits in Scanner(discriminator, 9).blocks(cube, region, columns=3):
        place = slice(row, row + logits.shape[0]), slice(column, column + logits.shape[1])
        assert difference(logits, expected[place]) < 3e-6
        visits[place] += 1
    inside = slice(region.row, region.row + region.height), slice(region.column, region.column + region.width)
    assert visits[inside].eq(1).all() and visits.sum() == region.height * region.width


def test_scene_too_small_to_be_mirrored():
    for height, width in ((1, 9), (9, 1)):
        with pytest.raises(ValueError, match="smaller patch"):
            scan(network(5), scene(7, height, width), 5)


def test_layout_of_the_scene_does_not_matter():
    discriminator, cube = network(5), scene(7, 8, 9)
    assert torch.equal(scan(discriminator, cube.contiguous(), 5), scan(discriminator, cube, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_is_as_exact_as_patches_in_bf16(backend):
    discriminator, cube = network(7, 20, 48, precision="bf16"), scene(20, 12, 12)
    discriminator.low_precision = False
    expected = exact(discriminator, cube, 7)
    discriminator.low_precision = True
    found = scan(discriminator, cube, 7, backend)
    assert found.dtype == torch.float32
    found, patches = ((logits.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
                      for logits in (found, patchwise(discriminator, cube, 7)))
    assert 1e-4 < found < 1.5 * patches                     # of all pixels: the largest of few varies by its factor


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_it_does_not_matter(backend):
    """As for the discriminator, whose precision is its own."""
    discriminator, cube = network(5), scene(7, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = scan(discriminator, cube, 5, backend)
    assert torch.equal(found, scan(discriminator, cube, 5, backend))


def test_training_mode_does_not_matter_and_stays():
    discriminator, cube = network(5), scene(7, 6, 6)
    expected = scan(discriminator, cube, 5)
    discriminator.train()
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    assert torch.equal(scan(discriminator, cube, 5), expected)
    assert discriminator.training
    assert all(torch.equal(before[name], tensor) for name, tensor in discriminator.state_dict().items())


def test_scanner_keeps_the_weights_it_was_made_from():
    discriminator, cube = network(5), scene(7, 6, 6)
    scanner, expected = Scanner(discriminator, 5), scan(discriminator, cube, 5)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
    assert all(torch.equal(logits, expected[row:row + len(logits)]) for row, _, logits in scanner.blocks(cube))


@pytest.mark.parametrize("patch_size, maps, pooled", [(13, (1, 9, 25, 36), 16), (9, (1, 9, 25, 36), 16),
                                                      (7, (1, 9, 25, 36), 9), (5, (1, 9, 25, 16), 4),
                                                      (3, (1, 9, 9, 4), 1)])
def test_numbers_of_maps(patch_size, maps, pooled):
    assert tuple(len(set(classes(patch_size, depth))) ** 2 for depth in range(3)) == maps[:3]
    assert tuple(len(tap_table(patch_size, depth, depth == 3)) ** 2 for depth in (1, 2, 3)) == maps[1:]
    assert len(set(pool_pairs(patch_size, 3))) ** 2 == pooled


def test_products_are_shared():
    assert [len(shares(tap_table(13, depth, depth == 3))) ** 2 for depth in (1, 2, 3)] == [9, 49, 121]


@needs_compiler
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("channels", (2, 20, 52, 64))
def test_compiled_operators_equal_reference(dtype, tolerance, channels):
    random = torch.Generator().manual_seed(0)
    table, groups = tap_table(9, 3, pooled=True), max(1, channels // 3)

    def draw(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    def close(found, expected):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert difference(found, expected.double()) < tolerance

    x = draw(5, 5, 4, 13, channels)
    span, hidden = (draw(3, 9 * groups), draw(9 * groups)), [draw(2, 13, 3) for _ in range(25)]
    for relu in (True, False):
        close(cpu.involve(x, hidden, span, table, relu), reference.involve(x, hidden, span, table, relu))
    products = [[draw(2, 13, len(column_taps(table, met)), channels) for met in range(5)]
                for _ in shares(table)]
    outs = [torch.zeros(6, 6, 4, 13, channels, dtype=dtype) for _ in range(2)]
    arguments = draw(6, 6, 2, 11, channels), products, draw(channels), table
    for operators, out in zip((cpu, reference), outs):
        operators.mix(*arguments, out[:, :, 2:, 1:-1])
    close(*outs)
    features, pairs = draw(6, 6, 3, 15, channels), pool_pairs(9, 3)
    assert torch.equal(cpu.pool(features, pairs), reference.pool(features, pairs))


def test_grouped_order_puts_members_side_by_side():
    assert grouped(8).tolist() == [0, 3, 1, 4, 2, 5, 6, 7]
    assert grouped(2).tolist() == [0, 1]


def test_without_a_compiler(monkeypatch, caplog):
    monkeypatch.setattr(scanner, "resolve_backend", lambda backend, device: "cpu")
    monkeypatch.setattr(cpu, "unavailable_reason", lambda: "there is no C++ compiler ('c++'). Install a C++ compiler")
    discriminator, cube = network(5), scene(7, 6, 6)
    with caplog.at_level(logging.INFO):
        found = scan(discriminator, cube, 5, "auto")
    assert sum("there is no C++ compiler" in record.getMessage() for record in caplog.records) == 1
    assert difference(found, exact(discriminator, cube, 5)) < 3e-6
    with pytest.raises(ConfigError, match="Install a C"):
        scan(discriminator, cube, 5, "cpu")

"""Places beyond 2^31 numbers: every offset has 64 bits.  No array of that size is made: the kernels' own arithmetic is
asked, and files of a few pages, and otherwise holes, are read."""

import ctypes

import numpy as np
import pytest
import torch

from datasets.patches import PatchSampler, gather_spectra
from model.ops import cpu, cuda, patches_cpu, reference

SIDE = 46_341                          # its square is just above 2^31
LAST = cuda.MAX_WORK - 1               # the last item that a call may have


def site(library, name, index, *sizes):
    """What a kernel's thread makes of an item's number: three offsets."""
    found = (ctypes.c_int64 * 3)()
    getattr(library, name)(ctypes.c_uint(index), (ctypes.c_int64 * len(sizes))(*sizes), found)
    return list(found)


@pytest.mark.parametrize("index", [0, 12_345_678, 1 << 30, LAST])
def test_places_of_the_involution_in_planes_have_64_bits(host_library, index):
    samples, groups, height, width = 1 << 9, 1 << 6, 1 << 8, 1 << 10                  # 2^31 packs of four pixels
    channels, plane = 3 * groups + 2, height * width
    found = site(host_library, "row_site", index, samples, channels, groups, height, width, plane, 9 * plane)
    line, pack = divmod(index, width // 4)
    image, row = divmod(line, height)
    sample, group = divmod(image, groups)
    assert found == [row * width + 4 * pack, (sample * channels + 3 * group) * plane,
                     (sample * groups + group) * 9 * plane]
    assert index < LAST or found[2] > 1 << 34


@pytest.mark.parametrize("index", [0, 12_345_678, 1 << 30, LAST])
def test_places_of_the_involution_in_pixels_have_64_bits(host_library, index):
    samples, groups, height, width = 1 << 7, 1 << 6, 1 << 10, 1 << 10                 # 2^31 packs of four groups
    channels = 3 * groups + 2
    found = site(host_library, "pixel_site", index, samples, channels, groups, height, width, groups, 1)
    pixel, pack = divmod(index, groups // 4)
    assert found[:2] == [pixel * channels + 12 * pack, pixel * 9 * groups + 4 * pack]
    assert index < LAST or found[1] > 1 << 34


@pytest.mark.parametrize("index", [0, 12_345_678, 1 << 30, LAST])
@pytest.mark.parametrize("channels_last", [0, 1])
def test_places_of_patches_have_64_bits(host_library, index, channels_last):
    bands, size = 144, 13
    patch, place = divmod(index, 36 * size * size)
    if channels_last:
        pixel, quad = divmod(place, 36)
        out = (patch * size * size + pixel) * bands + 4 * quad
    else:
        quad, pixel = divmod(place, size * size)
        out = (patch * bands + 4 * quad) * size * size + pixel
    assert site(host_library, "quad_site", index, bands, size, channels_last) == [patch, out, 36 * pixel + quad]
    assert index < LAST or out > 1 << 32


def test_a_call_with_more_items_than_are_counted_is_refused():
    image, kernel = (torch.empty(shape, device="meta") for shape in ((1 << 11, 3, 1 << 10, 1 << 10),
                                                                    (1 << 11, 1, 9, 1 << 10, 1 << 10)))
    out = torch.empty(1, device="meta")
    with pytest.raises(ValueError, match="too large for one call"):
        cuda._launch("involution", out, (image, kernel), (), image.numel() // 3)


CORNER = torch.tensor([[1, 2, 2], [3, 4, 4], [3, 4, 4]])     # the last pixels of the scenes, and their mirror images


def scene(path, dtype):
    """A cube [1, H, W] of more than 2^31 numbers, whose file holds only its last corner."""
    cube = np.memmap(path, dtype, "w+", shape=(SIDE, SIDE + 1, 1))
    cube[-2:, -2:, 0] = [[1, 2], [3, 4]]
    return torch.from_numpy(cube).permute(2, 0, 1)


def test_patches_at_the_end_of_a_scene_of_more_than_2_to_the_31_numbers(tmp_path, on_host):
    cube, centre = scene(tmp_path / "cube", np.uint8), torch.tensor([[SIDE - 1, SIDE]])
    places = torch.tensor([[-1, 0, 1]])
    assert torch.equal(reference.gather_patches(cube, centre, 3)[0, 0], CORNER)
    assert torch.equal(cuda.gather_patches(cube, centre, 3)[0, 0], CORNER)
    assert torch.equal(gather_spectra(cube, centre[:, :1] + places, centre[:, 1:] + places)[0, :, :, 0], CORNER)
    sampler = PatchSampler(cube, centre.numpy(), [0], 3, "reference")
    assert torch.equal(sampler.patches(torch.tensor([0]))[0, 0], CORNER)
    rows, columns = (reference.mirror(torch.arange(end - 2, end + 1), end) for end in (SIDE, SIDE + 1))
    assert torch.equal(cube.permute(1, 2, 0).index_select(0, rows)[:, columns, 0], CORNER)       # as the scanner reads


def test_augmented_patches_at_the_end_of_such_a_scene(tmp_path, on_host):
    cube, centre, seed = scene(tmp_path / "cube", np.float32), torch.tensor([[SIDE - 1, SIDE]]), torch.zeros(1).long()
    if reason := cpu.unavailable_reason():
        pytest.skip(reason)
    for gather in (reference.gather_augmented, cuda.gather_augmented, patches_cpu.gather_augmented):
        found = gather(cube, centre, 3, seed, flip=False, radiation=False)
        assert torch.equal(found[0, 0], CORNER.float()), gather.__module__

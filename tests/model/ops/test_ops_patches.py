"""The gathers on the CUDA kernels' host build, the C++ kernel for the CPU, and the random numbers of all of them."""

import ctypes

import pytest
import torch

from model.ops import cuda, patches_cpu, reference
from model.ops.build import BuildError, library
from operator_inputs import between_nans, laid_out

HALF_TYPES = (torch.float16, torch.bfloat16)
FORMATS = {False: torch.contiguous_format, True: torch.channels_last}
# Known answers of Philox4x32-10 (kat_vectors of Random123, the code of Salmon et al. 2011): counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8)),
    ((0xffffffff,) * 4, (0xffffffff,) * 2, (0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd)),
    ((0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), (0xa4093822, 0x299f31d0),
     (0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1))]


def scenes(dtype, bands):
    """A scene of 9 x 4 pixels, band by band and pixel by pixel, between NaN where the type has one."""
    values = (200 * torch.rand(bands, 9, 4, generator=torch.Generator().manual_seed(2))).to(dtype)
    if not dtype.is_floating_point:
        return values, laid_out(values, (1, 2, 0))
    return between_nans(values, (0, 1, 2)), between_nans(values, (1, 2, 0))


CENTRES = torch.tensor([[0, 0], [0, 3], [8, 0], [8, 3], [4, 1], [0, 2], [5, 3]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF_TYPES, torch.int16, torch.uint8])
@pytest.mark.parametrize("size, bands", [(1, 3), (5, 8), (7, 6)])
def test_gather_equals_the_reference(on_host, dtype, size, bands):
    for cube in scenes(dtype, bands):
        expected = reference.gather_patches(cube, CENTRES, size)
        for channels_last in (False, True):
            patches = cuda.launch_gather(cube, CENTRES, size, channels_last)
            assert patches.dtype == dtype and torch.equal(patches, expected)
            assert patches.is_contiguous(memory_format=FORMATS[channels_last])


def test_gather_takes_strided_and_empty_tensors_and_strides(on_host, monkeypatch):
    monkeypatch.setattr(cuda, "MAX_BLOCKS", 1)
    cube, centres = torch.randn(9, 5, 16).permute(1, 0, 2)[:, :, ::2], torch.tensor([[0, 7], [8, 1]]).T.contiguous().T
    assert torch.equal(cuda.launch_gather(cube, centres, 7), reference.gather_patches(cube, centres, 7))
    assert cuda.launch_gather(cube, centres[:0], 7).shape == (0, 5, 7, 7)
    assert on_host == [("gather_patches_32bit", 1)]


def test_gather_never_reads_outside_the_cube(on_host):
    """Nor does the reference, which would stop a GPU: both read the same pixels."""
    cube = between_nans(torch.randn(2, 6, 5), (0, 1, 2))
    centres = torch.tensor([[-40, 2], [40, 2], [3, -40], [3, 40], [-6, -5], [6, 4]])
    patches = cuda.launch_gather(cube, centres, 5)
    assert torch.isfinite(patches).all()
    for scene in (cube, cube.permute(1, 2, 0).contiguous().permute(2, 0, 1)):       # whole spectra, and single values
        assert torch.equal(reference.gather_patches(scene, centres, 5), patches)


def random_words(library, counter, seed):
    """Philox's words, their uniform and their normal numbers as the kernels make them."""
    words, uniforms, pairs = (ctypes.c_uint32 * 4)(*counter), (ctypes.c_float * 4)(), (ctypes.c_float * 4)()
    library.random_words(words, ctypes.c_uint64(seed), uniforms, pairs)
    return list(words), list(uniforms), list(pairs)


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(host_library, counter, key, expected):
    seed = key[1] << 32 | key[0]
    assert tuple(random_words(host_library, counter, seed)[0]) == expected
    signed = torch.tensor([seed - (seed >> 63 << 64)])
    assert tuple(reference.philox(torch.tensor([counter]), signed)[0].tolist()) == expected


def test_kernels_draw_the_reference_numbers(host_library):
    random = torch.Generator().manual_seed(3)
    counters = torch.randint(0, 2 ** 32, (300, 4), generator=random)
    seed = torch.tensor([-0x123456789ABCDEF])
    found = [random_words(host_library, counter, seed.item() % 2 ** 64) for counter in counters.tolist()]
    words, uniforms, pairs = (torch.tensor(part) for part in zip(*found))
    expected = reference.philox(counters, seed)
    assert torch.equal(words, expected) and torch.equal(uniforms, reference.uniform(expected))
    torch.testing.assert_close(pairs, reference.normals(expected), rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize("bands, size", [(8, 5), (6, 3), (3, 1)])
def test_augmented_gather_equals_the_reference(on_host, bands, size):
    centres, seed = CENTRES.repeat(3, 1), torch.tensor([2 ** 62 + 12345])
    for cube in scenes(torch.float32, bands):
        for flip, radiation in ((True, True), (True, False), (False, True), (False, False)):
            expected = reference.gather_augmented(cube, centres, size, seed, 2 ** 32 - 4, flip, radiation)
            for channels_last in (False, True):
                patches = cuda.launch_augmented(cube, centres, size, seed, 2 ** 32 - 4, flip, radiation, channels_last)
                tolerance = 4e-7 if radiation else 0      # a rounding more or less where both make alpha x + n / 25
                torch.testing.assert_close(patches, expected, rtol=tolerance, atol=tolerance)
                assert patches.is_contiguous(memory_format=FORMATS[channels_last])


def test_augmented_gather_depends_on_seed_and_number_alone(on_host, monkeypatch):
    cube, centres, seed = scenes(torch.float32, 6)[0], CENTRES.repeat(4, 1), torch.tensor([77])
    whole = cuda.launch_augmented(cube, centres, 5, seed)
    part = cuda.launch_augmented(cube, centres[9:20], 5, seed, first=9)
    monkeypatch.setattr(cuda, "MAX_BLOCKS", 1)
    assert torch.equal(part, whole[9:20]) and torch.equal(cuda.launch_augmented(cube, centres, 5, seed), whole)
    assert cuda.launch_augmented(cube, centres[:0], 5, seed).shape == (0, 6, 5, 5)
    for other in (78, 77 + 2 ** 32):
        changed = cuda.launch_augmented(cube, centres, 5, torch.tensor([other]))
        assert (changed != whole).flatten(1).any(1).float().mean() > 0.5


@pytest.fixture(scope="module")
def cpu_gather():
    """The C++ kernel's function, where a compiler is found."""
    try:
        library(patches_cpu.SOURCE)
    except BuildError as reason:
        pytest.skip(f"needs the C++ kernel: {reason}")
    return patches_cpu.gather_augmented


@pytest.mark.parametrize("bands, size", [(8, 5), (6, 3), (3, 1), (48, 7)])
def test_cpu_kernel_equals_the_reference(cpu_gather, bands, size):
    centres, seed = CENTRES.repeat(3, 1), torch.tensor([-2 ** 62 + 12345])
    for cube in scenes(torch.float32, bands):
        for flip, radiation in ((True, True), (True, False), (False, True), (False, False)):
            expected = reference.gather_augmented(cube, centres, size, seed, 2 ** 32 - 4, flip, radiation)
            for channels_last in (False, True):
                patches = cpu_gather(cube, centres, size, seed, 2 ** 32 - 4, flip, radiation, channels_last)
                tolerance = 4e-7 if radiation else 0
                torch.testing.assert_close(patches, expected, rtol=tolerance, atol=tolerance)
                assert patches.is_contiguous(memory_format=FORMATS[channels_last])


def test_cpu_kernel_never_reads_outside_the_cube(cpu_gather):
    cube = between_nans(torch.randn(2, 6, 5), (1, 2, 0))
    centres = torch.tensor([[-40, 2], [40, 2], [3, -40], [3, 40], [-6, -5]])
    assert torch.isfinite(cpu_gather(cube, centres, 5, torch.tensor([1]))).all()


def test_cpu_kernel_draws_the_reference_normals(cpu_gather):
    cube, seed = torch.zeros(48, 13, 13), torch.tensor([5])         # what remains is the noise of the touched patches
    centres = torch.full((200, 2), 6)
    patches = cpu_gather(cube, centres, 13, seed, channels_last=True)
    torch.testing.assert_close(patches, reference.gather_augmented(cube, centres, 13, seed), rtol=2e-7, atol=2e-8)


def test_cpu_kernel_gives_the_same_with_any_number_of_threads(cpu_gather):
    cube, centres, seed = scenes(torch.float32, 6)[1], CENTRES.repeat(4, 1), torch.tensor([77])
    whole, threads = cpu_gather(cube, centres, 5, seed), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(cpu_gather(cube, centres, 5, seed), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(cpu_gather(cube, centres[9:20], 5, seed, first=9), whole[9:20])
    assert cpu_gather(cube, centres[:0], 5, seed).shape == (0, 6, 5, 5)
    strided = centres.T.contiguous().T
    assert not strided.is_contiguous() and torch.equal(cpu_gather(cube, strided, 5, seed), whole)


@pytest.mark.parametrize("cube, centres, seed, told", [
    (torch.zeros(2, 5, 5).double(), CENTRES[:1], torch.tensor([1]), "torch.float64, torch.int64, torch.int64"),
    (torch.zeros(2, 5, 5), CENTRES[:1].int(), torch.tensor([1]), "torch.float32, torch.int32, torch.int64"),
    (torch.zeros(2, 5, 5), CENTRES[:1], torch.tensor([1.0]), "torch.float32, torch.int64, torch.float32"),
    (torch.zeros(2, 5, 5), CENTRES[:1], torch.tensor(1), r"the seed \(\)"),
    (torch.zeros(2, 5, 5), CENTRES[:1].to("meta"), torch.tensor([1]), "centres on meta")])
def test_other_types_are_refused(cube, centres, seed, told):
    for gather in (reference.gather_augmented, cuda.launch_augmented, patches_cpu.gather_augmented):
        with pytest.raises(ValueError, match=told):
            gather(cube, centres, 3, seed)


def test_patches_are_touched_as_often_and_as_much_as_they_should_be():
    cube, centres = torch.ones(10, 9, 9), torch.full((4000, 2), 4)
    patches = reference.gather_augmented(cube, centres, 3, torch.tensor([11]), flip=False)
    touched = (patches != 1).flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.03)
    gain = patches[touched].flatten(1).mean(1)
    assert gain.mean().item() == pytest.approx(1, abs=0.006) and gain.std().item() == pytest.approx(0.0579, rel=0.05)
    noise = (patches[touched] - gain[:, None, None, None]) * 25 * (90 / 89) ** 0.5     # 90 values gave the mean
    assert noise.mean().item() == pytest.approx(0, abs=0.01) and noise.std().item() == pytest.approx(1, rel=0.01)
    assert (noise.abs() > 3).float().mean().item() == pytest.approx(0.0027, rel=0.2)
    neighbours = noise.flatten(1)
    for step in (1, 9, 36):                   # bands of a quad, pixels, quads: independent of each other
        correlation = (neighbours[:, step:] * neighbours[:, :-step]).mean().item()
        assert correlation == pytest.approx(-1 / 90, abs=0.01)


def test_flips_are_as_often_as_they_should_be():
    cube, centres = torch.rand(1, 9, 9), torch.full((4000, 2), 4)
    patches = reference.gather_augmented(cube, centres, 3, torch.tensor([12]), radiation=False)
    x = reference.gather_patches(cube, centres, 3)
    kinds = {"same": (x, 0.625), "left-right": (x.flip(3), 0.125), "up-down": (x.flip(2), 0.125),
             "both": (x.flip(2, 3), 0.125)}
    for kind, (turned, share) in kinds.items():
        assert (patches == turned).flatten(1).all(1).float().mean().item() == pytest.approx(share, abs=0.025), kind


def test_spectra_equal_the_gathered_patches():
    for cube in scenes(torch.float32, 6):
        offsets = torch.arange(7) - 3
        spectra = reference.gather_spectra(cube, CENTRES[:, :1] + offsets, CENTRES[:, 1:] + offsets)
        assert torch.equal(spectra.permute(0, 3, 1, 2), reference.gather_patches(cube, CENTRES, 7))


def test_patches_are_made_where_their_pixels_are():
    cube, centres, seed = scenes(torch.float32, 6)[0], CENTRES.repeat(4, 1), torch.tensor([5])
    expected = reference.gather_augmented(cube, centres, 5, seed)
    with torch.device("meta"):                # what names no device would be made there
        assert torch.equal(reference.gather_augmented(cube, centres, 5, seed), expected)

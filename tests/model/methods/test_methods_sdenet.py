"""SDEnet's generator: morphology against scipy, styles and contents, what it feels, how its images are mixed."""

import numpy as np
import torch
from scipy import ndimage

from conftest import batch, build
from model.methods import sdenet


def test_dilation_and_erosion_against_scipy():
    rng = np.random.default_rng(0)
    h, element = rng.normal(size=(2, 3, 6, 7)), rng.normal(size=(3, 3, 3))
    dilated, eroded = (operation(torch.from_numpy(h), torch.from_numpy(element)).numpy()
                       for operation in (sdenet.dilate, sdenet.erode))
    for n in range(2):
        for c in range(3):
            mirrored = element[c, ::-1, ::-1]                               # scipy's dilation mirrors the element
            np.testing.assert_allclose(dilated[n, c], ndimage.grey_dilation(h[n, c], structure=mirrored,
                                                                            mode="nearest"))
            np.testing.assert_allclose(eroded[n, c], ndimage.grey_erosion(h[n, c], structure=element[c],
                                                                          mode="nearest"))


def test_morphology_starts_with_flat_elements():
    branch, x = sdenet.Morphology(4), torch.rand(2, 4, 7, 7)
    with torch.no_grad():
        branch.conv.weight.fill_(0.5)
        branch.conv.bias.zero_()
        maps = branch(x).numpy()
    for h, found in zip(0.5 * x.sum(1).numpy(), maps):
        flat = {"size": 3, "mode": "nearest"}
        expected = [ndimage.white_tophat(h, **flat), ndimage.black_tophat(h, **flat), ndimage.grey_opening(h, **flat),
                    ndimage.grey_closing(h, **flat)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert found[:2].min() >= 0


def test_styles_are_mixed_and_contents_kept():
    h, shuffle = torch.randn(4, 3, 6, 6) * (0.2 + torch.rand(4, 3, 1, 1)), torch.tensor([2, 0, 3, 1])
    h = h + torch.randn(4, 3, 1, 1)                 # no variance so small that the one added to it (eps) shows
    torch.testing.assert_close(sdenet.mix_styles(h, shuffle, 1.0), h, rtol=1e-4, atol=1e-5)
    own, mixed = 0.25, sdenet.mix_styles(h, shuffle, 0.25)
    mean, variance = h.mean((2, 3)), h.var((2, 3), correction=0)
    torch.testing.assert_close(mixed.mean((2, 3)), own * mean + (1 - own) * mean[shuffle], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.var((2, 3), correction=0), own * variance + (1 - own) * variance[shuffle],
                               rtol=1e-2, atol=1e-4)
    correlation = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(h.flatten(0, 1), mixed.flatten(0, 1))]
    assert min(correlation) > 0.9999


def test_contents_are_swapped_and_styles_kept():
    h, shuffle = torch.randn(3, 8, 1, 1, requires_grad=True), torch.tensor([1, 2, 0])
    swapped = sdenet.swap_contents(h, shuffle)
    torch.testing.assert_close(swapped.mean(1), h.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(swapped.var(1), h.var(1), rtol=1e-3, atol=1e-4)
    for i, j in enumerate(shuffle):
        pair = np.corrcoef(swapped[i].detach().flatten(), h[j].detach().flatten())
        assert pair[0, 1] > 0.9999
    swapped[0].square().sum().backward()
    assert h.grad[0].any() and not h.grad[1:].any()


def test_sdenets_generator_feels_noise_and_shuffle():
    method, (x, _) = build(method="sdenet"), batch()
    z, shuffles, _, _ = method.draw(x)
    same = torch.arange(len(x))
    plain = method.generator(x, z[0], same)
    assert not torch.allclose(plain, method.generator(x, z[1], same))
    assert not torch.allclose(plain, method.generator(x, z[0], same.roll(1)))
    torch.testing.assert_close(plain[:2], method.generator(x[:2], z[0, :2], same[:2]))      # nothing else is shared
    assert all(torch.equal(shuffle.sort().values, same) for shuffle in shuffles)


def test_sdenet_mixes_sample_by_sample(monkeypatch):
    method, (x, y) = build(method="sdenet"), batch(12)
    seen, see = [], method.see
    monkeypatch.setattr(method, "see", lambda views: seen.append(views) or see(views))
    z, shuffles, share, counts = method.draw(x)
    assert len(share.unique()) == 12 and 0 <= share.min() and share.max() < 1
    method.step(x, y, z, shuffles, share, counts)
    views, lam = seen[0], share[:, None, None, None]
    assert list(views) == ["source", "extended", "mixed", "generated"] and torch.equal(views["source"], x)
    torch.testing.assert_close(views["mixed"], lam * views["extended"] + (1 - lam) * x)
    assert not torch.equal(views["extended"], views["generated"])           # two draws of one generator

"""MMIRN: what the fused form of its layers gives is what the layers give."""

import copy

import pytest
import torch

from conftest import batch
from model import layers
from model.losses import mutual_information, mutual_information_sum
from model.mmirn import LAST_LAYER, MMIRN
from model.ops import cpu

needs_kernels = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=f"no C++: {cpu.unavailable_reason()}")


@pytest.mark.parametrize("pad", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_padding_from_slices_is_the_reflection(pad, memory_format, monkeypatch):
    """Bit for bit, and its gradient is the same sum."""
    h = torch.rand(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    plain = layers.reflected(h, pad)
    pull = torch.rand_like(plain)
    expected, = torch.autograd.grad(plain, h, pull)
    monkeypatch.setattr(layers, "chooses_order", lambda h: True)
    ours = layers.ReflectionPad(pad)(h)
    assert torch.equal(ours, plain) and "Reflection" not in str(ours.grad_fn)
    assert ours.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(torch.autograd.grad(ours, h, pull)[0], expected, rtol=1e-14, atol=1e-14)


@needs_kernels
@pytest.mark.parametrize("patch_size", [5, 7, 8, 9, 13])
def test_fused_outputs_are_the_layers_outputs(patch_size):
    """Small maps as products with matrices and larger ones as convolutions, at every tap that can be."""
    network = MMIRN(6, [1, 4, 7, 8, 11, *range(12, LAST_LAYER + 1)], filters=3)
    x = batch(4, 6, patch_size=patch_size)[0]
    truth = copy.deepcopy(network).double().layer_outputs(x.double())
    with torch.no_grad():
        ours, on_cuda, plain = network.fused_outputs(x), network.cuda_outputs(x), network.layer_outputs(x)
    for layer, value in ours.items():
        torch.testing.assert_close(on_cuda[layer].permute(0, 3, 1, 2), plain[layer], rtol=1e-3, atol=1e-4)
        value = value.permute(0, 3, 1, 2)
        assert value.shape == truth[layer].shape
        error, theirs = (((each - truth[layer]).norm() / truth[layer].norm()).item() for each in (value, plain[layer]))
        assert error < max(1e-5, 3 * theirs), layer


@needs_kernels
@pytest.mark.parametrize("layer", [2, 3, 5, 6, 9, 10])
def test_a_tap_inside_what_is_fused_goes_to_the_layers(layer):
    network, x = MMIRN(6, [layer], filters=2), batch(3, 6)[0]
    assert network.outputs_by(x) == network.layer_outputs
    compact, plain = network(x, compact=True), network(x)
    assert torch.equal(compact[0], plain[0])


@needs_kernels
@pytest.mark.parametrize("taps", [[0], [0, 4, 8, 12, 16]])
def test_compact_features_have_the_same_inner_products(taps):
    network, x = MMIRN(6, taps, filters=2).double(), batch(5, 6)[0].double()
    single = copy.deepcopy(network).float()
    for ours, theirs in zip(single(x.float(), compact=True), network(x)):
        truth = theirs @ theirs.T
        assert ((ours.double() @ ours.double().T - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_sum_over_generated_domains_is_the_sum_of_the_terms(n, normalise):
    """Values and gradients, three generated domains, layers of different widths."""
    rng = torch.Generator().manual_seed(n)
    features = [torch.randn(4, n, width, generator=rng, dtype=torch.float64).requires_grad_() for width in (3, 20)]
    together = mutual_information_sum(features, 0.07, normalise)
    apart = sum(mutual_information([f[v] for f in features], [f[0] for f in features], 0.07, normalise)
                for v in (1, 2, 3))
    assert together.item() == pytest.approx(apart.item(), rel=1e-12, abs=1e-12)
    for one, other in zip(torch.autograd.grad(together, features), torch.autograd.grad(apart, features)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_feature_vector_of_nothing_has_a_finite_term():
    features = torch.ones(2, 3, 4)
    features[1, 1] = 0
    assert mutual_information_sum([features], 0.07, normalise=True).isfinite()

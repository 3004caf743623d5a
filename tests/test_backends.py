"""Every fast path against the reference: the same losses, gradients and running statistics of a step, the same logits."""

import copy

import pytest
import torch

from conftest import batch, build
from model.methods.base import statistics_in_order
from model.ops import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=f"no C++: {cpu.unavailable_reason()}")

SIZES = {"pro_dim": 32, "GIN_ch": 12, "bands": 13, "patch_size": 7}
VARIANTS = [{}, {"recipe": "paper"}, {"source_ce": "on"}, {"generators": "shared"}, {"generators": "split"},
            {"ablate": ["one_generator"]}, {"ablate": ["no_mixing"]}, {"ablate": ["no_mixing", "one_generator"]},
            {"ablate": ["no_adversarial"]}, {"ablate": ["no_mmirn"]}, {"ablate": ["no_adversarial", "no_mmirn"]},
            {"recipe": "paper", "consistency_weight": 0.3, "mi_weight": 2.0}, {"method": "erm"}]


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()


def one_step(backend, variant):
    """Losses, gradients by network, buffers and logits of a method after one update, all from the same start."""
    method = build(**SIZES | variant, backend=backend)
    x, y = batch(24, SIZES["bands"], patch_size=SIZES["patch_size"])
    logits = method.predict(x).clone()
    losses = method.update(x, y)
    gradients = {name: torch.cat([p.grad.flatten() for name, p in network.named_parameters()
                                  if p.grad is not None and not without_gradient(name)] or [torch.zeros(1)])
                 for name, network in method.named_children()}
    buffers = {name: value for name, value in method.named_buffers() if value.is_floating_point()}
    return losses, gradients, buffers, logits


def without_gradient(name):
    """Biases in front of an InstanceNorm: their gradients are rounding."""
    return name.startswith("model.") and name.endswith("bias")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_step_of_the_cpu_kernels_is_the_reference_step(variant):
    (losses, gradients, buffers, logits), (expected, true_gradients, true_buffers, true_logits) = (
        one_step(backend, variant) for backend in ("cpu", "reference"))
    assert list(losses) == list(expected)
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for name, gradient in gradients.items():
        assert relative(gradient, true_gradients[name]) < 1e-4 or true_gradients[name].norm() == 0, name
    for name, value in buffers.items():
        assert relative(value, true_buffers[name]) < 1e-5, name
    assert relative(logits, true_logits) < 1e-5


def test_gradients_in_evaluation_mode():
    x = batch(8, SIZES["bands"], patch_size=SIZES["patch_size"])[0].requires_grad_()
    found = []
    for backend in ("cpu", "reference"):
        discriminator = build(**SIZES, backend=backend).discriminator.eval()
        found.append(torch.autograd.grad(discriminator(x).square().sum(), (x, *discriminator.parameters())))
    for ours, theirs in zip(*found):
        assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_bfloat16_stays_near_float32(recipe):
    (low, low_gradients, _, low_logits), (full, gradients, _, logits) = (
        one_step("cpu", {"recipe": recipe, "precision": precision}) for precision in ("bf16", "float32"))
    assert low["loss_min"] == pytest.approx(full["loss_min"], rel=0.02)
    assert low["mi"] == full["mi"]                                          # nothing of it is in bfloat16
    assert 1e-6 < relative(low_logits, logits) < 0.05 and low_logits.dtype == torch.float32
    assert relative(low_gradients["discriminator"], gradients["discriminator"]) < 0.2


@pytest.mark.parametrize("order", [[0, 3, 1, 2], [3, 2, 1, 0], [0, 1, 2, 3]])
def test_statistics_come_out_in_the_order_asked_for(order):
    method = build().train()
    plain, tracked = method.discriminator, copy.deepcopy(method.discriminator)
    images = [batch(seed=i)[0] * (1 + i) for i in range(4)]
    for place in range(4):
        plain(images[order.index(place)])
    with statistics_in_order(tracked, order):
        for image in images:
            tracked(image)
    for (name, ours), theirs in zip(tracked.named_buffers(), plain.buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert {norm.momentum for norm in tracked.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.1}

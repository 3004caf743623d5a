"""The look inside training: gradients, distances, fit of BatchNorm, cross-entropy per domain, against direct ones."""

import copy

import pytest
import torch
from torch.nn import functional

from conftest import batch, build, same_state

NORMS = {f"stages.{i}.{name}" for i in range(3)
         for name in ("spectral_norm", "spatial_norm", "spectral.involution.conv1.bn")}


@pytest.mark.parametrize("entries", [{"recipe": "released"}, {"recipe": "paper"}, {"recipe": "robust"},
                                     {"method": "erm"},
                                     {"recipe": "paper", "ablate": ["no_adversarial", "no_mmirn", "one_generator"]}],
                         ids=str)
def test_they_leave_no_trace(entries):
    method, (x, y) = build(**entries), batch()
    method.update(x, y)
    before, streams = copy.deepcopy(method.training_state()), copy.deepcopy(method.streams.state_dict())
    found = method.diagnostics(x, y)
    assert same_state(before, method.training_state()) and same_state(streams, method.streams.state_dict())
    assert {name for name in found if name.startswith("variance")} == {f"variance_ratio_{name}" for name in NORMS}
    assert all(map(torch.isfinite, map(torch.tensor, found.values())))


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_gradients_and_distances(recipe):
    method, (x, y) = build(recipe=recipe), batch()
    method.update(x, y)
    found = method.diagnostics(x, y)
    noise = torch.randn((6, len(x), 2), generator=torch.Generator().manual_seed(0))
    domains = method.train().generate(x, noise, [0.5, 0.5])
    loss = method.semantic_terms(x, domains)["mi"]
    gradients = torch.autograd.grad(loss, list(method.generators.parameters()), allow_unused=True)
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm().item()
    assert found["gradient_mi"] == pytest.approx(norm, rel=1e-4)
    assert found["cosine_a"] == pytest.approx(
        functional.cosine_similarity(domains["a"].flatten(1), x.flatten(1)).mean().item(), rel=1e-4, abs=1e-6)


def test_cross_entropy_is_that_of_evaluation_mode():
    method, (x, y) = build(), batch()
    method.update(x, y)
    found = method.diagnostics(x, y)
    assert found["ce_source"] == pytest.approx(functional.cross_entropy(method.predict(x), y).item(), rel=1e-5)
    assert {"ce_a", "ce_b", "ce_a_mix", "ce_b_mix"} <= found.keys()


def test_the_variance_ratio_tells_how_clean_patches_differ():
    """A norm in front of which nothing is normalised sees x through a convolution alone: its variance there is a direct
    computation, and ten times larger patches have a hundred times its variance."""
    method, (x, y) = build(method="erm", backend="reference"), batch()
    stage = method.discriminator.stages[0]
    stage.spatial_norm.running_var.fill_(0.25)
    name = "variance_ratio_stages.0.spatial_norm"
    seen = stage.spatial(x).transpose(0, 1).flatten(1).var(dim=1)
    assert method.diagnostics(x, y)[name] == pytest.approx((seen / 0.25).log().mean().exp().item(), rel=1e-4)
    assert method.diagnostics(10 * x, y)[name] == pytest.approx(100 * method.diagnostics(x, y)[name], rel=1e-4)


def test_noise_is_the_same_at_every_call():
    method = build(ablate=["no_noise"])
    assert not method.fixed_noise(4).any()
    assert torch.equal(build().fixed_noise(4), build(seed=5).fixed_noise(4))

"""The switches that the published recipes leave off: unit spectra, gain branch, joint batches, schedule, averaging."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import batch, build, same_state
from model.errors import ConfigError
from model.losses import js_consistency
from model.mixing import draw_lambda, mix
from model.spectra import PhysicalBranch, admix, apply_gain, draw_log_gain, unit_spectra

ALL = {"recipe": "paper", "source_ce": "on", "source_weight": 2.0, "generated_spectra": "unit", "gain_branch": 0.4,
       "admixture_branch": 0.8, "generator_init": "identity", "mixing_weights": "sample", "consistency": "js",
       "adversarial_weight": 0.5, "batchnorm_batches": "joint", "lr_schedule": "cosine", "weight_averaging": 0.9}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_js_against_its_definition_and_its_bound():
    p, q = (torch.randn(5, 4, dtype=torch.float64, generator=generator(i)) for i in range(2))
    a, b = p.softmax(1).numpy(), q.softmax(1).numpy()
    middle = (a + b) / 2
    expected = ((a * np.log(a / middle)).sum() + (b * np.log(b / middle)).sum()) / 2 / 5
    assert js_consistency(p, q).item() == pytest.approx(expected, rel=1e-12)
    assert js_consistency(q, p).item() == pytest.approx(expected, rel=1e-12)
    assert js_consistency(p, p).abs() < 1e-12
    extreme = torch.tensor([[1e4, -1e4]], requires_grad=True)
    apart = js_consistency(extreme, -extreme)
    assert apart.item() == pytest.approx(math.log(2), rel=1e-6)
    apart.backward()
    assert extreme.grad.isfinite().all()


def test_unit_spectra_are_what_a_preprocessed_spectrum_can_be():
    x = torch.randn(4, 6, 5, 5, generator=generator())
    x[0, :, 0, 0], x[0, ::2, 0, 0] = -1.0, 0.0
    x.requires_grad_()
    made = unit_spectra(x)
    norms = made.norm(dim=1)
    assert (made >= 0).all() and norms[0, 0, 0] == 0
    torch.testing.assert_close(norms.flatten()[1:], torch.ones(99), rtol=1e-6, atol=0)
    positive = x.detach()[1].clamp_min(0)
    torch.testing.assert_close(made[1], positive / positive.norm(dim=0, keepdim=True))
    made.square().sum().backward()
    assert x.grad.isfinite().all() and not x.grad[0, :, 0, 0].any()


def test_a_gain_is_smooth_has_its_strength_and_keeps_the_norm():
    log_gain = draw_log_gain(4000, 40, generator())
    assert log_gain.std(0).sub(1).abs().max() < 0.05
    assert log_gain.diff(dim=1).std() < 2 * math.pi * 4 / 39               # no faster than its fastest cosine
    gain = (0.2 * log_gain).exp()
    x, _ = batch(4, 40)
    made = apply_gain(3 * x, gain[:4])
    torch.testing.assert_close(made.norm(dim=1), torch.full((4, 5, 5), 3.0))
    ratio = made / x
    torch.testing.assert_close(ratio / ratio[:, :1], (gain[:4] / gain[:4, :1])[:, :, None, None].expand_as(x))


def test_lambdas_of_samples_mix_each_its_own():
    x, _ = batch(3)
    generated, lam = torch.rand(x.shape, generator=generator()), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mixed = mix(generated, x, lam)
    assert mixed.dtype == x.dtype
    assert torch.equal(mixed[0], x[0]) and torch.equal(mixed[2], generated[2])
    torch.testing.assert_close(mixed[1], 0.25 * generated[1] + 0.75 * x[1])
    drawn = draw_lambda(np.random.default_rng(0), 0.6, 4000)
    assert abs(drawn.mean() - 0.5) < 0.02 and abs(drawn.var() - 1 / (4 * 2.2)) < 0.005       # of Beta(0.6, 0.6)
    method = build(**ALL)
    assert method.draw_lambdas(7).shape == (2, 7) and build().draw_lambdas(7).shape == (2,)


def test_generated_and_mixed_patches_are_physical():
    method, (x, _) = build(**ALL), batch()
    for view in method.generated_views(x).values():
        assert (view >= 0).all()
        torch.testing.assert_close(view.norm(dim=1), torch.ones(len(x), 5, 5))


def test_an_identity_generator_starts_near_its_input():
    x, _ = batch()
    near, far = (build(recipe="paper", generator_init=init) for init in ("identity", "default"))
    distance = [(m.generators["a"](x, m.draw_noise(x)[:3]) - x).norm() / x.norm() for m in (near, far)]
    assert distance[0] < 0.2 < distance[1]


def test_a_foreign_spectrum_is_mixed_in():
    x, _ = batch(3)
    mixed = admix(x, torch.tensor([2, 0, 1]), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(mixed[0], x[0])
    torch.testing.assert_close(mixed[1, :, 4, 1], x[1, :, 4, 1] + 0.5 * x[0, :, 2, 2])
    torch.testing.assert_close(mixed[2, :, 0, 3], x[2, :, 0, 3] + x[1, :, 2, 2])


def test_the_physical_branch_draws_what_it_says():
    gains, partners, shares = PhysicalBranch(0.4, 0.8).draw(6000, 20, generator())
    assert abs(shares.mean() - 0.4) < 0.01 and 0 <= shares.min() and shares.max() < 0.8
    assert partners.sort().values.equal(torch.arange(6000))
    assert abs(gains.log().std() - 0.4 / math.sqrt(3)) < 0.01              # of U(0, 0.4)·N(0, 1)
    gains, _, shares = PhysicalBranch(0.0, 0.0).draw(5, 20, generator())
    assert torch.equal(gains, torch.ones(5, 20)) and not shares.any()


def test_the_physical_branch_changes_what_the_generators_see():
    method, (x, _) = build(**ALL), batch()
    noise, lambdas, physics = method.draw_noise(x), method.draw_lambdas(len(x)), method.draw_physics(x)
    gains, partners, shares = physics
    assert gains.shape == (2, len(x), 6) and partners.shape == shares.shape == (2, len(x))
    with torch.no_grad():
        made = method.eval().generate(x, noise, lambdas, *physics)
        seen = unit_spectra(apply_gain(admix(x, partners[1], shares[1]), gains[1]))
        by_hand = unit_spectra(method.generators["b"](seen, noise[3:]))
    torch.testing.assert_close(made["b"], by_hand)
    torch.testing.assert_close(made["b_mix"], unit_spectra(mix(by_hand, x, lambdas[1])))
    assert build().draw_physics(x) == []


def test_a_joint_batch_shares_its_statistics_and_the_max_step_leaves_them():
    method, (x, y) = build(**ALL, backend="reference").train(), batch()
    domains = {name: image.detach() for name, image in
               method.generate(x, method.draw_noise(x), method.draw_lambdas(len(x)), *method.draw_physics(x)).items()}
    everything = torch.cat([*domains.values(), x])
    twin = copy.deepcopy(method.discriminator)
    expected = functional.cross_entropy(twin(everything)[-len(x):], y)
    found = method.step_min(x, y, domains)
    assert found["ce_source"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(dict(method.discriminator.named_buffers()), dict(twin.named_buffers()))
    kept = {name: value.clone() for name, value in method.discriminator.named_buffers() if "running" in name}
    images = method.generate(x, method.draw_noise(x), method.draw_lambdas(len(x)))
    assert "consistency_max" in method.step_max(x, images)
    assert same_state(kept, {name: value for name, value in method.discriminator.named_buffers() if name in kept})


def test_weights_of_the_terms():
    method, (x, y) = build(**ALL), batch()
    losses = method.update(x, y)
    ce = sum(losses[f"ce_{name}"] for name in ("a", "b", "a_mix", "b_mix"))
    assert losses["loss_min"] == pytest.approx(ce + 2 * losses["ce_source"] + losses["consistency_min"], rel=1e-5)
    assert losses["loss_max"] == pytest.approx(-0.5 * losses["consistency_max"] + losses["mi"], rel=1e-5)


def test_the_schedule_is_a_cosine_or_nothing():
    method, constant = build(**ALL, lr=0.01), build(lr=0.01)
    for progress, rate in ((0.0, 0.01), (0.5, 0.005), (1.0, 0.0), (0.25, 0.01 * (1 + math.sqrt(0.5)) / 2)):
        for each in (method, constant):
            each.schedule(int(8 * progress), 4, 2)
            assert each.progress == progress
        assert {g["lr"] for o in constant.optimisers.values() for g in o.param_groups} == {0.01}
        for optimiser in method.optimisers.values():
            assert optimiser.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("entries", [ALL, {"method": "erm", "weight_averaging": 0.9}], ids=["s2amsnet", "erm"])
def test_the_averaged_discriminator_is_evaluated_and_the_trained_one_trains_on(entries):
    method, (x, y) = build(**entries), batch()
    expected = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
    for step in range(1, 5):
        method.update(x, y)
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in method.discriminator.state_dict().items():
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value
            else:
                expected[name] = value.clone()
    torch.testing.assert_close(dict(method.averaged.state_dict()), expected)
    trained = copy.deepcopy(method.discriminator.state_dict())
    with method.evaluating([]):
        assert same_state(method.discriminator.state_dict(), method.averaged.state_dict())
        inside = method.predict(x)
    assert same_state(method.discriminator.state_dict(), trained)
    assert not torch.equal(inside, method.predict(x))


def test_averaging_goes_on_after_a_checkpoint():
    method, twin, (x, y) = build(**ALL), build(**ALL, seed=1), batch()
    method.update(x, y)
    twin.load_training_state(copy.deepcopy(method.training_state()))
    drawn = method.draw_noise(x), method.draw_lambdas(len(x)), *method.draw_physics(x)
    for each in (method, twin):
        each.step(x, y, *drawn)
    assert same_state(method.training_state(), twin.training_state())


def test_an_impossible_averaging_is_refused():
    with pytest.raises(ConfigError, match="weight_averaging"):
        build(weight_averaging=1.0)
    with pytest.raises(ConfigError, match="admixture_branch"):
        build(admixture_branch=-0.1)

"""PDEN and SDEnet: who changes in which step, operators and losses against slow ones."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from conftest import batch, build, same_state
from model.methods import pden, sdenet
from model.methods.contrast import supervised_contrast

EXPANDING = ["pden", "sdenet"]


def generators(method):
    """The networks that the generator's step may change."""
    return nn.ModuleList([method.generators, method.cycles] if hasattr(method, "cycles") else [method.generator])


def state(*networks):
    """Copies of parameters and running statistics; how many batches a norm has seen is no state that a step uses."""
    return [{name: value.clone() for name, value in network.state_dict().items() if "num_batches" not in name}
            for network in networks]


def classifier_step(method, x, y):
    return method.step_classifier({"source": x, "generated": torch.rand(x.shape, requires_grad=True)}, y, y)


def test_the_classifiers_step_of_pden_changes_classifier_and_projection_only():
    method, (x, y) = build(method="pden").train(), batch()
    before, own = state(generators(method)), state(method.discriminator, method.projection)
    classifier_step(method, x, y)
    assert same_state(before, state(generators(method)))
    assert not any(same_state(a, b) for a, b in zip(own, state(method.discriminator, method.projection)))
    assert all(p.grad is None for p in generators(method).parameters())


def test_the_generators_step_of_pden_leaves_classifier_statistics_and_gradients_alone():
    method, (x, y) = build(method="pden").train(), batch()
    classifier_step(method, x, y)
    own = [*method.discriminator.parameters(), *method.projection.parameters()]
    before, gradients = state(method.discriminator, method.projection), [p.grad.clone() for p in own]
    generated = state(generators(method))
    method.step_generator(x, y, 0, method.generate(x, 0), method.generate(x, 0), x)
    assert same_state(before, state(method.discriminator, method.projection))
    assert same_state(gradients, [p.grad for p in own]) and all(p.requires_grad for p in own)
    assert not same_state(generated, state(generators(method)))


def test_pden_learns_at_a_tenth_of_lr():
    """With a schedule, too."""
    for entries in ({}, {"lr_schedule": "cosine"}):
        method = build(method="pden", **entries)
        method.schedule(0, 8, 5)
        assert {group["lr"] for optimiser in method.optimisers.values() for group in optimiser.param_groups} == {1e-4}
    rates = [build(method=name, lr=2e-3, pden_lr_factor=0.5).optimisers["classifier"].defaults["lr"]
             for name in EXPANDING]
    assert rates == [1e-3, 2e-3]


@pytest.mark.parametrize("name", EXPANDING)
def test_views_share_the_statistics_of_one_batch(name):
    """As evaluation has one set of them: each view's logits are those of all views in one batch."""
    method, (x, _) = build(method=name).train(), batch()
    logits, projected = method.see({"one": x, "other": x + 1})
    both = method.discriminator(torch.cat([x, x + 1]))
    torch.testing.assert_close(torch.cat([logits["one"], logits["other"]]), both)
    assert projected["other"].shape == (len(x), 8)


@pytest.mark.parametrize("name", EXPANDING)
def test_the_loss_of_the_classifier_is_the_sum_of_its_parts(name):
    terms = build(method=name).update(*batch(12))
    parts = [value for key, value in terms.items() if key.startswith("ce_")] + [terms["contrast"]]
    assert terms["loss_classifier"] == pytest.approx(sum(parts), rel=1e-5)


def log_p_by_hand(z, seen, temperature=0.07, floor=1e-6):
    """log(e_ij / (Σ_{k seen} e_ik + ε) + ε) of all pairs, e relative to a cosine of 1."""
    z = z / z.norm(dim=1, keepdim=True)
    e = torch.exp((z @ z.T - 1) / temperature)
    return torch.log(e / ((e * seen).sum(1, keepdim=True) + floor) + floor)


def contrast_by_hand(z, kinds):
    """Mean over samples of −log p's mean over the others of the same kind."""
    others = ~torch.eye(len(z), dtype=torch.bool)
    positive = (kinds[:, None] == kinds) & others
    return -((log_p_by_hand(z, others) * positive).sum(1) / positive.sum(1)).mean()


@pytest.mark.parametrize("counts", [1.0, 0.0])
def test_an_sdenet_step_equals_a_hand_written_one(counts):
    """F's gradients of both backward passes are added; the generator's are of the second alone."""
    method, twin = (build(method="sdenet", seed=3, backend="reference").train().double() for _ in range(2))
    d, p, g = twin.discriminator, twin.projection, twin.generator
    optimisers = [torch.optim.Adam([*d.parameters(), *p.parameters()], lr=1e-3),
                  torch.optim.Adam(g.parameters(), lr=1e-3)]
    for i in range(2):
        x, y = batch(seed=i)
        x, n = x.double(), len(y)
        z, shuffles, share, _ = (value.double() if value.is_floating_point() else value for value in method.draw(x))
        extended, generated = g(x, z[0], shuffles[0]).detach(), g(x, z[1], shuffles[1])
        lam = share[:, None, None, None]
        features = d.features(torch.cat([x, extended, lam * extended + (1 - lam) * x, generated]))
        losses = 4 * functional.cross_entropy(d.head(features), y.repeat(4))
        losses = losses + contrast_by_hand(p(features), y.repeat(4))
        z_x, z_g = p(features)[:n].detach(), p(features)[3 * n:]
        adversary = sum(contrast_by_hand(torch.cat([z_x[y == k], z_g[y == k]]),
                                         torch.arange(2).repeat_interleave((y == k).sum())) for k in range(3)) / 3
        generators_loss = functional.cross_entropy(d.head(features[3 * n:]), y) + counts * adversary
        optimisers[1].zero_grad()
        own = torch.autograd.grad(generators_loss, list(g.parameters()), retain_graph=True)
        optimisers[0].zero_grad()
        (losses + generators_loss).backward()
        for parameter, gradient in zip(g.parameters(), own):
            parameter.grad = gradient
        for optimiser in optimisers:
            optimiser.step()
        method.step(x, y, z, shuffles, share, torch.tensor(counts).double())
    for (name, ours), theirs in zip(method.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)


def test_sdenets_adversary_counts_in_a_third_of_the_steps():
    method, (x, _) = build(method="sdenet"), batch(2)
    counts = torch.stack([method.draw(x)[3] for _ in range(600)])
    assert set(counts.tolist()) == {0.0, 1.0} and counts.mean().item() == pytest.approx(1 / 3, abs=0.06)


def test_the_loss_of_pdens_generator_has_its_signs_and_weights():
    terms = build(method="pden").update(*batch(12))
    assert terms["loss_generator"] == pytest.approx(
        terms["generator_ce"] + 0.1 * terms["generator_adversarial"] - 2 * terms["generator_diversity"]
        + 20 * terms["generator_cycle"], rel=1e-5)


def changed_generators(before, method):
    """Which of PDEN's generators, and of its cycles, differ from copies made before."""
    return [{k for k, (old, new) in enumerate(zip(was, now)) if not same_state(old, state(new)[0])}
            for was, now in zip(before, (method.generators, method.cycles))]


def pden_updates(method, steps):
    """Updates of a run of 40 steps, two per generator: who changed in each."""
    found = []
    for done in steps:
        before = state(*method.generators), state(*method.cycles)
        method.schedule(done, 8, 5)
        method.update(*batch(9, seed=done))
        found.append(changed_generators(before, method))
    return found


def test_pdens_generators_take_turns_through_the_run():
    method = build(method="pden", GIN_ch=2)
    steps = [0, 1, 2, 20, 39]
    assert pden_updates(method, steps) == [[{done // 2}, {done // 2}] for done in steps]


def test_pdens_turn_survives_a_resume():
    """In the middle of a turn, and over the start of the next."""
    method = build(method="pden", GIN_ch=2)
    pden_updates(method, [0, 1, 2])
    training, streams = copy.deepcopy(method.training_state()), method.streams.state_dict()
    found = pden_updates(method, [3, 4])
    resumed = build(method="pden", GIN_ch=2, seed=5)
    resumed.load_training_state(training)
    resumed.streams.load_state_dict(streams)
    assert pden_updates(resumed, [3, 4]) == found == [[{1}, {1}], [{2}, {2}]]
    assert same_state(resumed.state_dict(), method.state_dict())


def test_pden_knows_the_domains_of_earlier_turns_only(monkeypatch):
    method, (x, _) = build(method="pden"), batch()
    assert list(method.known_domains(x, 0)) == ["source"]
    called, generate = [], method.generate
    monkeypatch.setattr(method, "generate", lambda x, number: called.append(number) or generate(x, number))
    for _ in range(60):
        known = method.known_domains(x, 3)
    assert set(called) == {0, 1, 2}
    assert torch.equal(known["source"], x) and not known["old"].requires_grad
    share = (known["mixed"] - x) / (known["old"] - x)                       # one number per sample, in 0..1
    per_sample = share.flatten(1).median(1).values
    torch.testing.assert_close(known["mixed"], x + per_sample[:, None, None, None] * (known["old"] - x), rtol=1e-3,
                               atol=1e-4)
    assert 0 <= per_sample.min() and per_sample.max() <= 1 and len(per_sample.unique()) == len(x)


def test_pdens_cycle_term_is_zero_for_an_inverse():
    method, (x, y) = build(method="pden").train(), batch()
    method.cycles[0] = nn.Identity()
    generated = x.clone().requires_grad_()
    assert method.step_generator(x, y, 0, generated, x, x)["generator_cycle"] == 0
    found = method.step_generator(x, y, 0, (x + 0.5).requires_grad_(), x, x)
    assert found["generator_cycle"].item() == pytest.approx(0.25, rel=1e-5)


def test_adain_sets_mean_and_scale_of_each_sample_and_channel():
    network = pden.ConvGenerator(6, 4)
    x, z = torch.rand(3, 6, 7, 7), torch.randn(3, 10)
    seen = []
    network.decoder[0].register_forward_hook(lambda module, given, result: seen.append(given[0]))
    network(x, z)
    gamma, beta = (z @ network.adain.fc.weight.T + network.adain.fc.bias).split(4, dim=1)
    torch.testing.assert_close(seen[0].mean((2, 3)), beta, rtol=1e-4, atol=1e-5)
    h = network.encoder(x)
    spread = h.std((2, 3), correction=0)
    scale = (1 + gamma).abs() * spread / (spread ** 2 + 1e-5).sqrt()
    torch.testing.assert_close(seen[0].std((2, 3), correction=0), scale, rtol=1e-4, atol=1e-5)
    network(x)
    torch.testing.assert_close(seen[1], h)                                  # without noise nothing is normalised


@pytest.mark.parametrize("bands", [1, 6, 48])
def test_generated_spectra_start_at_the_level_of_unit_spectra(bands):
    x, z = functional.normalize(torch.rand(4, bands, 5, 5) + 1, dim=1), torch.zeros(4, 10)
    level = 1 / math.sqrt(max(bands, 2))
    for made in (pden.ConvGenerator(bands, 8)(x, z), sdenet.StyleGenerator(bands, 8, 5)(x, z, torch.arange(4))):
        assert 0 < made.min() and made.max() < 1 and made.shape == x.shape
        assert made.mean().item() == pytest.approx(level, abs=0.15)


def loop_adversarial(z, z_prime, temperature, floor):
    """−log(1 − p) view by view, from exponentials relative to a cosine of 1."""
    views = [v / v.norm() for v in [*z, *z_prime]]
    n, found = len(z), []
    for i, view in enumerate(views):
        e = {k: math.exp((float(view @ other) - 1) / temperature) for k, other in enumerate(views) if k != i}
        found.append(-math.log(1 - e[(i + n) % (2 * n)] / (sum(e.values()) + floor)))
    return sum(found) / len(found)


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.1])
def test_adversarial_contrast_against_a_loop(floor):
    z, other = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pden.adversarial_contrast(z, other, 0.5, floor)
    assert found.item() == pytest.approx(loop_adversarial(z, other, 0.5, floor), rel=1e-9)


@pytest.mark.parametrize("shape, temperature", [((4, 4), 0.02), ((1, 4), 0.07)])
def test_adversarial_contrast_keeps_its_gradient_where_partners_are_one(shape, temperature):
    """There p rounds to 1 in float32; a single patch has no strangers at all."""
    z = torch.eye(*shape).requires_grad_()
    loss = pden.adversarial_contrast(z + torch.tensor([0.0, 0.01, 0.0, 0.02]), torch.eye(*shape), temperature, 1e-6)
    loss.backward()
    assert loss.isfinite() and loss > 12 and z.grad.isfinite().all() and z.grad.abs().sum() > 1e-3


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.05])
def test_contrast_with_a_floor_against_its_equation(floor):
    """The floor bounds the loss, and its gradient stays finite."""
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    y, others = torch.arange(6) % 2, ~torch.eye(6, dtype=torch.bool)
    positive = (y[:, None] == y) & others
    expected = -((log_p_by_hand(z, others, 0.3, floor) * positive).sum(1) / positive.sum(1)).mean()
    assert supervised_contrast(z, y, 0.3, floor).item() == pytest.approx(expected.item(), rel=1e-9)
    far = torch.tensor([[1.0, 0], [-1, 0], [1, 0.01], [-1, 0.01]], requires_grad=True)
    loss = supervised_contrast(far, torch.tensor([0, 0, 1, 1]), 0.01, floor or 1e-6)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(floor or 1e-6), rel=1e-3) and far.grad.isfinite().all()


def step_down(loss, z, rate):
    """Where a small step of gradient descent takes z."""
    return (z - rate * torch.autograd.grad(loss, z)[0]).detach()


def test_pdens_generator_goes_against_the_classifiers_contrast():
    rng = torch.Generator().manual_seed(1)
    z = functional.normalize(torch.randn(6, 8, generator=rng, dtype=torch.float64), dim=1)
    made = (z + 0.2 * torch.randn(6, 8, generator=rng, dtype=torch.float64)).requires_grad_()

    def pull(moved):
        return supervised_contrast(torch.stack([moved, z], 1), torch.arange(6), 0.5)

    moved = step_down(pden.adversarial_contrast(made, z, 0.5, 1e-6), made, 0.01)
    assert pull(moved) > pull(made)
    assert pull(step_down(pull(made), made, 0.01)) < pull(made)             # the classifier's own gradient lowers it


def test_sdenets_generator_goes_against_the_classifiers_contrast():
    """It takes a class's generated features away from its source features, which the classifier draws together."""
    rng, y = torch.Generator().manual_seed(1), torch.arange(9) % 3
    z, made = functional.normalize(torch.eye(3, 8, dtype=torch.float64)[y] + 0.3 * torch.randn(
        2, 9, 8, generator=rng, dtype=torch.float64), dim=2)
    made.requires_grad_()

    def alike(moved):
        cosine = functional.normalize(moved, dim=1) @ z.T
        return cosine[y[:, None] == y].mean()

    classifiers = supervised_contrast(torch.stack([made, z], 1), y, 0.5)
    assert alike(step_down(sdenet.domain_contrast(z, made, y, 0.5, 1e-6), made, 0.01)) < alike(made)
    assert alike(step_down(classifiers, made, 0.01)) > alike(made)


def test_diversity_is_rewarded_up_to_its_limit():
    one, other = torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 5, 5)
    other[0], other[1] = 0.2, -0.9                                          # differences 0.2 and 0.9
    assert pden.diversity(one, other, 0.5).item() == pytest.approx((0.2 + 0.5) / 2)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_domain_contrast_is_the_mean_over_classes_of_supervised_contrast(floor):
    y = torch.tensor([0, 1, 0, 1, 1, 2, 0])                                 # class 2 has one patch: it counts as 0
    source, made = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = sum(supervised_contrast(torch.cat([source[y == k], made[y == k]]),
                                       torch.arange(2).repeat_interleave((y == k).sum()), 0.3, floor)
                   for k in (0, 1)) / 3
    assert sdenet.domain_contrast(source, made, y, 0.3, floor).item() == pytest.approx(expected.item(), rel=1e-9)
    alone = made[:3].clone().requires_grad_()
    loss = sdenet.domain_contrast(source[:3], alone, torch.arange(3), 0.3, floor)
    loss.backward()
    assert loss == 0 and not alone.grad.any()

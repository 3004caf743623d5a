"""The mathematics of SagNet, DSU and mixup: against loops, closed forms and what each part may touch."""

import math

import pytest
import torch
from torch.nn import functional

from conftest import batch, build
from model.layers import channel_statistics
from model.methods.dsu import PROBABILITY, perturb_statistics
from model.methods.mixup import mixup_loss
from model.methods.sagnet import SMALLEST, randomise_content, randomise_style, uniform_cross_entropy


def drawn(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def maps(n=6, channels=4, seed=0):
    """Feature maps whose channels have means and spreads of their own: [N, C, 5, 5]."""
    scale, shift = drawn(n, channels, 1, 1, seed=seed + 1).exp(), drawn(n, channels, 1, 1, seed=seed + 2)
    return shift + scale * drawn(n, channels, 5, 5, seed=seed)


def normalised(h):
    mean, std = channel_statistics(h)
    return (h - mean) / std


def changed(before, network):
    """Names of the parameters that are not bit-equal to a former state."""
    return {name for name, p in network.named_parameters() if not torch.equal(before[name], p)}


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# SagNet

@pytest.mark.parametrize("power", [2, 1], ids=["variances", "deviations"])
def test_style_randomisation_mixes_the_styles_and_keeps_the_content(power):
    h, partner, share = maps(), torch.tensor([3, 0, 2, 5, 1, 4]), torch.linspace(0, 1, 6, dtype=torch.float64)
    made = randomise_style(h, partner, share, of_variances=power == 2)
    for i, j in enumerate(partner.tolist()):
        for c in range(4):
            one, other = h[i, c], h[j, c]
            mean = share[i] * one.mean() + (1 - share[i]) * other.mean()
            mixed = share[i] * one.std(correction=0) ** power + (1 - share[i]) * other.std(correction=0) ** power
            assert made[i, c].mean().item() == pytest.approx(mean.item(), abs=1e-12)
            assert made[i, c].std(correction=0).item() == pytest.approx(mixed.item() ** (1 / power), rel=1e-3)  # but ε
    torch.testing.assert_close(normalised(made), normalised(h), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(randomise_style(h, partner, torch.ones(6), of_variances=power == 2), h)


def test_content_randomisation_keeps_the_style_and_swaps_the_content():
    h, partner = maps(), torch.tensor([3, 0, 2, 5, 1, 4])
    made = randomise_content(h, partner)
    for found, own in zip(channel_statistics(made), channel_statistics(h)):
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normalised(made), normalised(h)[partner], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(randomise_content(h, torch.arange(6)), h)


def test_the_content_that_comes_in_gives_no_gradient():
    h = maps(2).requires_grad_()
    randomise_content(h, torch.tensor([1, 0]))[0].sin().sum().backward()
    assert h.grad[0].abs().sum() > 0 and h.grad[1].abs().sum() == 0


def test_uniform_cross_entropy_is_least_for_equal_logits():
    assert uniform_cross_entropy(torch.full((3, 7), 2.0), 0).item() == pytest.approx(math.log(7), rel=1e-6)
    logits = drawn(50, 7)
    assert all(uniform_cross_entropy(one[None], 0) > math.log(7) for one in logits)
    for smallest in (0, 1e-5, 0.1):
        expected = -(logits.softmax(1) + smallest).log().sum(1).mean() / 7
        assert uniform_cross_entropy(logits, smallest).item() == pytest.approx(expected.item(), rel=1e-12)
        still = torch.zeros(3, 7, requires_grad=True)
        uniform_cross_entropy(still, smallest).backward()
        assert still.grad.abs().max() < 1e-7
    sure = torch.tensor([[500.0, 0.0]])
    assert uniform_cross_entropy(sure, 1e-5).item() == pytest.approx(-math.log(1e-5) / 2, rel=1e-4)


def sagnet_losses(method, z, y):
    """The three losses by name, for fixed partners and shares."""
    share = torch.linspace(0, 1, len(y))
    return {"style": lambda: method.style_loss(z.detach(), y, torch.arange(len(y)).roll(2)),
            "content": lambda: method.content_loss(z, y, torch.arange(len(y)).roll(1), share),
            "adversary": lambda: method.adversarial_loss(z, torch.arange(len(y)).roll(2))}


def sagnet_step(method, batch_):
    x, y = batch_
    return method.step(x, y, torch.arange(9).roll(1), torch.arange(9).roll(2), torch.linspace(0, 1, 9))


ADVERSARIES = {"norms": 1, "early": 2}      # what the adversarial step changes -> stages in front of the randomisation


@pytest.mark.parametrize("phase", ["style", "content"])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_a_phase_of_sagnet_changes_what_it_owns_and_nothing_else(adversary, phase):
    method = build(method="sagnet", sagnet_adversary=adversary).train()
    x, y = batch(9)
    sagnet_losses(method, method.early(x), y)[phase]().backward()
    before = copied(method)
    for optimiser in method.optimisers.values():
        optimiser.step()
    owned = {name for name, _ in method.named_parameters()
             if name.startswith({"style": "style.", "content": "discriminator."}[phase])}
    found = changed(before, method)
    assert found <= owned
    assert len(found) > 0.8 * len(owned)              # all but weights that have no gradient at the start


@pytest.mark.parametrize("adversary, stages", ADVERSARIES.items())
def test_the_adversary_of_sagnet_changes_norms_or_all_early_weights(adversary, stages):
    """Without the other two losses."""
    method = build(method="sagnet", sagnet_adversary=adversary).train()
    x, y = batch(9)
    pull = sagnet_losses(method, method.early(x), y)["adversary"]()
    before = copied(method)
    if adversary == "norms":
        method.step_apart(0 * method.discriminator(x).sum(), pull)
    else:
        pull.backward()
        method.optimiser.step()
    early = {name for name, _ in method.named_parameters() if name.startswith("discriminator.branch_logits")
             or any(name.startswith(f"discriminator.stages.{i}.") for i in range(stages))}
    owned = {name for name in early if "norm" in name or ".bn." in name} if adversary == "norms" else early
    assert len(owned) == (6 if adversary == "norms" else 23)
    found = changed(before, method)
    assert found <= owned and len(found) > 0.8 * len(owned)


def test_sagnets_step_is_its_three_gradients():
    """The step against gradients of the three losses made one by one: the norms move by their clipped one besides."""
    method, twin = (build(method="sagnet", lr=1e-2).train() for _ in range(2))
    x, y = batch(9)
    sagnet_step(method, (x, y))
    losses = sagnet_losses(twin, z := twin.early(x), y)
    losses["style"]().backward()
    twin.style_optimiser.step()
    norms = [p for norm in twin.early_norms() for p in norm.parameters()]
    pulls = torch.autograd.grad(0.1 * losses["adversary"](), norms, retain_graph=True)
    length = torch.cat([pull.flatten() for pull in pulls]).norm().item()
    losses["content"]().backward()
    for optimiser, gradients in ((twin.optimiser, None), (twin.norm_optimiser, pulls)):
        for p, gradient in zip(norms, gradients or ()):
            p.grad = gradient * min(1, 0.1 / length)
        optimiser.step()
    assert z.requires_grad and len(norms) == 6
    for (name, one), other in zip(method.named_parameters(), twin.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_sagnets_adversarial_gradient_is_clipped():
    method = build(method="sagnet").train()
    x, y = batch(9)
    method.step_apart(method.discriminator(x).sum(), 1e6 * method.adversarial_loss(method.early(x), torch.arange(9)))
    gradient = torch.cat([p.grad.flatten() for norm in method.early_norms() for p in norm.parameters()])
    assert gradient.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_sagnets_first_versions_step_is_its_three_gradients():
    """G_f's two gradients are added with the weight."""
    method, twin = (build(method="sagnet", sagnet_adversary="early").train() for _ in range(2))
    x, y = batch(9)
    sagnet_step(method, (x, y))
    z = twin.early(x)
    losses = sagnet_losses(twin, z, y)
    losses["style"]().backward()
    twin.style_optimiser.step()
    content, adversary = losses["content"](), losses["adversary"]()
    parameters = list(twin.discriminator.parameters())
    pulls = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
             for loss in (content, adversary)]
    for p, own, other in zip(method.discriminator.parameters(), *pulls):
        torch.testing.assert_close(p.grad, own if other is None else own + 0.1 * other, rtol=1e-3, atol=1e-6)
    for p, other in zip(method.style.parameters(), twin.style.parameters()):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("adversary, share", [("norms", 0.8), ("early", 0.5)])
def test_the_adversary_brings_style_logits_to_uniform(adversary, share):
    """G_f on the adversarial loss alone, against a G_s that stays, nears log K from above."""
    method = build(method="sagnet", lr=1e-2, sagnet_adversary=adversary).train()
    x, y = batch(12)
    found = []
    for _ in range(30):
        loss = method.adversarial_loss(method.early(x), torch.arange(12).roll(5))
        if adversary == "norms":
            method.step_apart(0 * method.discriminator(x).sum(), loss)
        else:
            method.optimiser.zero_grad()
            loss.backward()
            method.optimiser.step()
        found.append(loss.item() - math.log(3))
    assert -3 * SMALLEST < found[-1] < share * found[0]


@pytest.mark.parametrize("adversary, stages", ADVERSARIES.items())
def test_stages_in_pieces_are_the_classifier(adversary, stages):
    method = build(method="sagnet", sagnet_adversary=adversary).train()
    network, (x, _) = method.discriminator, batch()
    with torch.no_grad():
        rest = network.run_stages(method.early(x), network.stages[stages:])
        torch.testing.assert_close(network.read_out(rest), network(x))
        assert len(method.style.stages) == len(network.stages) - stages
        assert method.style(method.early(x)).shape == (6, 3)


# DSU

def test_perturbed_statistics_vary_as_those_of_the_batch():
    """Over many draws, mean and spread of each channel are normal around the patch's own, with the batch's variance."""
    h, rng = maps(5, 3), torch.Generator().manual_seed(0)
    mean, std = (value[:, :, 0, 0] for value in channel_statistics(h))
    noise = torch.randn(4000, 2, 5, 3, generator=rng, dtype=torch.float64)
    found = torch.stack([perturb_statistics(h, *each) for each in noise])                     # [4000, 5, 3, 5, 5]
    means = found.mean((-2, -1))
    torch.testing.assert_close(means.mean(0), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(means.std(0), mean.std(0, correction=0).expand(5, 3), rtol=0.06, atol=0.01)
    slopes = (found * normalised(h)).mean((-2, -1)) / normalised(h).square().mean((-2, -1))   # signed spread
    torch.testing.assert_close(slopes.mean(0), std, rtol=0, atol=0.08)
    torch.testing.assert_close(slopes.std(0), std.std(0, correction=0).expand(5, 3), rtol=0.06, atol=0.01)


def test_without_noise_or_without_spread_in_the_batch_nothing_is_perturbed():
    h, zero = maps(), torch.zeros(6, 4, dtype=torch.float64)
    torch.testing.assert_close(perturb_statistics(h, zero, zero), h)
    alike = h[:1].expand(6, -1, -1, -1)
    torch.testing.assert_close(perturb_statistics(alike, drawn(6, 4), drawn(6, 4, seed=1)), alike, rtol=0, atol=0.05)


def test_dsu_perturbs_in_training_alone():
    method = build(method="dsu").train()
    x, _ = batch()
    noise = torch.randn(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = method.discriminator(x)
        torch.testing.assert_close(method.perturbed_logits(x, torch.zeros_like(noise)), plain, rtol=1e-4, atol=1e-5)
        for stage in range(3):
            alone = torch.zeros_like(noise)
            alone[stage] = noise[stage]
            assert (method.perturbed_logits(x, alone) - plain).abs().max() > 1e-3
    method.update(*batch())
    bare = build(method="erm")
    bare.discriminator.load_state_dict(method.discriminator.state_dict())
    assert torch.equal(method.predict(x), bare.predict(x))


def test_each_stage_of_dsu_is_perturbed_in_half_of_the_batches():
    method, (x, _) = build(method="dsu"), batch(2)
    perturbed = torch.stack([method.draw_noise(x).flatten(1).any(1) for _ in range(600)]).double()       # [600, 3]
    torch.testing.assert_close(perturbed.mean(0), torch.full([3], PROBABILITY, dtype=torch.float64), rtol=0, atol=0.08)
    assert torch.corrcoef(perturbed.T).fill_diagonal_(0).abs().max() < 0.15                  # each by itself


# mixup

@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_mixups_loss_is_that_of_the_mixed_labels(lam):
    logits, y, partner = drawn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 1, 0, 2, 0, 2])
    soft = lam * functional.one_hot(y, 3).double() + (1 - lam) * functional.one_hot(partner, 3).double()
    expected = -(soft * logits.softmax(1).log()).sum(1).mean()
    assert mixup_loss(logits, y, partner, torch.tensor(lam)).item() == pytest.approx(expected.item(), rel=1e-6)
    if lam == 1:
        assert mixup_loss(logits, y, partner, torch.tensor(lam)) == functional.cross_entropy(logits, y)


@pytest.mark.parametrize("lam, same_as", [(1.0, "own"), (0.0, "partner"), (0.5, None)])
def test_mixup_trains_on_the_mixed_patches_with_the_mixed_labels(lam, same_as):
    method, twin = build(method="mixup"), build(method="erm")
    (x, y), partner = batch(), torch.tensor([2, 0, 1, 5, 3, 4])
    twin.discriminator.load_state_dict(method.discriminator.state_dict())
    found = method.step(x, y, partner, torch.tensor(lam))
    if same_as:
        seen = (x, y) if same_as == "own" else (x[partner], y[partner])
        assert found["loss"] == pytest.approx(twin.update(*seen)["ce"], rel=1e-6)
        for one, other in zip(method.parameters(), twin.parameters()):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    else:
        middle = (x + x[partner]) / 2
        log_p = twin.discriminator.train()(middle).log_softmax(1)
        by_hand = -(log_p[range(6), y] + log_p[range(6), y[partner]]).mean() / 2
        assert found["loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_mixup_draws_a_whole_order_and_beta_distributed_weights():
    method, (x, _) = build(method="mixup"), batch(12)
    draws = [method.draw(x) for _ in range(800)]
    assert all(torch.equal(partner.sort().values, torch.arange(12)) for partner, _ in draws)
    lam = torch.stack([lam for _, lam in draws]).double()
    assert lam.mean().item() == pytest.approx(0.5, abs=0.06)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.1)                # Beta(0.2, 0.2)

"""The mathematics of L2D: supervised contrast, CLUB, likelihood, conditional MMD, the style network and both steps."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from conftest import batch, build
from model.methods.contrast import supervised_contrast
from model.methods.l2d import StyleNetwork, club, conditional_mmd, log_likelihood


def drawn(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


# supervised contrast

def loop_contrast(views, labels, temperature):
    views = [v / v.norm() for v in views]
    terms = []
    for i, anchor in enumerate(views):
        others = [a for a in range(len(views)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        total = sum(math.exp(anchor @ views[a] / temperature) for a in others)
        if positives:
            terms.append(-sum(math.log(math.exp(anchor @ views[p] / temperature) / total) for p in positives)
                         / len(positives))
    return sum(terms) / max(len(terms), 1)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]], ids=str)
def test_contrast_of_two_views_against_a_loop(labels):
    z, y = drawn(5, 2, 3), torch.tensor(labels)
    expected = loop_contrast(z.flatten(0, 1), [label for label in labels for _ in range(2)], 0.3)
    assert supervised_contrast(z, y, 0.3).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1], [0, 1, 2, 3, 4]], ids=["two without a partner", "no partners"])
def test_contrast_of_one_view_against_a_loop(labels):
    z = drawn(5, 3, requires_grad=True)
    loss = supervised_contrast(z, torch.tensor(labels), 0.3)
    assert loss.item() == pytest.approx(loop_contrast(z.detach(), labels, 0.3), rel=1e-10)
    loss.backward()
    assert z.grad.isfinite().all()


def test_contrast_does_not_depend_on_lengths_and_has_its_gradient():
    z, y = drawn(4, 2, 3), torch.tensor([0, 1, 0, 1])
    lengths = drawn(4, 2, 1, seed=1).exp()
    torch.testing.assert_close(supervised_contrast(lengths * z, y, 0.5), supervised_contrast(z, y, 0.5))
    assert torch.autograd.gradcheck(lambda f: supervised_contrast(f, y, 0.5), z.requires_grad_())


def test_contrast_survives_a_small_temperature():
    z = drawn(6, 2, 3, requires_grad=True)
    loss = supervised_contrast(z, torch.arange(6) % 2, 1e-4)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


# L2D

def gaussian_pairs(rho, n=40_000):
    """x, y of standard normal marginals with correlation ρ per dimension, and the true log variance of y given x."""
    x, noise = drawn(n, 2), drawn(n, 2, seed=1)
    return x, rho * x + math.sqrt(1 - rho ** 2) * noise, torch.full_like(x, math.log(1 - rho ** 2))


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.3, 0.6])
def test_club_on_gaussians_bounds_the_known_information(rho):
    """With the true conditional density CLUB is ρ²/(1−ρ²) per dimension, and the information −½ log(1−ρ²)."""
    x, y, log_variance = gaussian_pairs(rho)
    found, information = club(rho * x, log_variance, y).item(), -math.log(1 - rho ** 2)
    assert found == pytest.approx(2 * rho ** 2 / (1 - rho ** 2), abs=0.03) and found > information - 0.01


def test_club_against_a_loop_over_pairs():
    mean, log_variance, z = drawn(7, 3), drawn(7, 3, seed=1), drawn(7, 3, seed=2)

    def log_density(i, j):
        return -0.5 * sum((z[j, d] - mean[i, d]) ** 2 / math.exp(log_variance[i, d]) + log_variance[i, d]
                          + math.log(2 * math.pi) for d in range(3))

    matching = sum(log_density(i, i) for i in range(7)) / 7
    expected = matching - sum(log_density(i, j) for i, j in itertools.product(range(7), range(7))) / 49
    assert club(mean, log_variance, z).item() == pytest.approx(expected.item(), rel=1e-10)


def test_clubs_gradient_takes_the_dependence_away():
    x, y, log_variance = gaussian_pairs(0.6, n=2000)
    for rho in (0.3, 0.6):
        strength = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
        club(strength * x, log_variance, y).backward()
        assert strength.grad > 0                          # descent makes the prediction weaker
    against = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    club(against * x, log_variance, -y).backward()
    assert against.grad < 0


def test_likelihood_is_greatest_at_the_true_density():
    """Fitted by it, mean and variance are those of the conditional density; its unit is twice the log density."""
    x, y, log_variance = gaussian_pairs(0.8, n=5000)
    slope, spread = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimiser = torch.optim.LBFGS([slope, spread], max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = -log_likelihood(slope * x, spread.expand_as(y), y)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert slope.item() == pytest.approx(0.8, abs=0.02) and spread.item() == pytest.approx(math.log(0.36), abs=0.03)
    density = torch.distributions.Normal(slope.detach() * x, (spread.detach() / 2).exp())
    expected = 2 * density.log_prob(y).mean() + math.log(2 * math.pi)
    assert log_likelihood(slope * x, spread.expand_as(y), y).item() == pytest.approx(expected.item(), rel=1e-9)


def loop_mmd(z, z_prime, y, n_classes):
    everything = torch.cat([z, z_prime])
    pairs = list(itertools.permutations(range(len(everything)), 2))
    width = sum(float((everything[a] - everything[b]).square().sum()) for a, b in pairs) / len(pairs)

    def kernel(a, b):
        return sum(math.exp(-float((a - b).square().sum()) / (width * 2 ** i)) for i in (-2, -1, 0, 1, 2))

    found = []
    for k in range(n_classes):
        own, other = z[y == k], z_prime[y == k]
        if len(own):
            found.append(sum(kernel(a, b) + kernel(c, d) - 2 * kernel(a, d)
                             for (a, c), (b, d) in itertools.product(zip(own, other), repeat=2)) / len(own) ** 2)
    return sum(found) / len(found)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 1], [3, 3, 0, 0, 0, 0]], ids=str)
def test_conditional_mmd_against_a_loop(labels):
    z, z_prime, y = drawn(6, 3), 0.5 + drawn(6, 3, seed=1), torch.tensor(labels)
    assert conditional_mmd(z, z_prime, y, 4).item() == pytest.approx(loop_mmd(z, z_prime, y, 4), rel=1e-5)


def test_conditional_mmd_sees_classes_that_trade_places():
    z, y = torch.cat([drawn(20, 3), 5 + drawn(20, 3, seed=1)]), torch.arange(2).repeat_interleave(20)
    same, traded = (conditional_mmd(z, other, y, 2).item() for other in (z[torch.arange(40)], z.roll(20, 0)))
    assert same == pytest.approx(0, abs=1e-6) and traded > 0.5
    assert conditional_mmd(z, z.roll(20, 0), torch.zeros(40, dtype=torch.int64), 2).item() == pytest.approx(0, abs=1e-6)


def draws(method, x, seed=5):
    """What a step is given: T's noise and the embedding's ε of both phases, the dropout's factors, the filters."""
    rng = torch.Generator().manual_seed(seed)
    n = len(x)
    return (torch.randn(2, *x.shape, generator=rng), torch.randn(2, 2 * n, 8, generator=rng), method.draw_kept(x),
            method.restyle.draw(rng))


@pytest.mark.parametrize("phase", ["min", "max"])
def test_a_phase_of_l2d_changes_what_it_owns_and_nothing_else(phase):
    method = build(method="l2d").train()
    x, y = batch(9)
    noise, normal, kept, filters = draws(method, x)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    if phase == "min":
        method.step_min(x, y, noise[0], normal[0], kept, filters)
    else:
        method.step_max(x, y, noise[1], normal[1])
    owner = {"min": "discriminator.", "max": "restyle."}[phase]
    found = {name for name, p in method.named_parameters() if not torch.equal(before[name], p)}
    owned = {name for name, _ in method.named_parameters() if name.startswith(owner)}
    assert found <= owned and len(found) > 0.8 * len(owned)
    assert all(p.grad is None for name, p in method.named_parameters() if name not in owned)
    if phase == "max":                                    # running statistics too; batches are still counted
        assert "restyle.noise_strength" in found
        assert all(torch.equal(before[name], buffer) for name, buffer in method.named_buffers()
                   if not name.endswith("num_batches_tracked"))
    assert all(p.requires_grad for p in method.parameters())


def written_out(network, x, made, normal):
    """z, ẑ, and mean and log variance of x, from the network's layers one by one."""
    h = torch.nn.functional.relu(network._linear(torch.nn.functional.max_pool2d(
        network.run_stages(torch.cat([x, made]), network.stages), 2)))
    mean = functional.leaky_relu(h @ network.mean[0].weight.T + network.mean[0].bias, 0.01)
    log_variance = (h @ network.log_variance[0].weight.T + network.log_variance[0].bias).clamp_min(0)
    z = mean + 0.2 * torch.sqrt(log_variance.exp()) * normal
    return z[:len(x)], z[len(x):], mean[:len(x)], log_variance[:len(x)]


def test_l2ds_steps_go_down_their_own_terms():
    """Gradients that the steps leave behind, against those of the losses written out: the classifier works on draws
    of the embedding, and the likelihood is that of the restyled one's draw under the source's distribution."""
    method, twin, (x, y) = build(method="l2d").train(), build(method="l2d").train(), batch(9)
    noise, normal, kept, filters = draws(method, x)
    made = twin.restyle(x, noise[0], kept, *filters).detach()
    z, z_made, mean, log_variance = written_out(twin.discriminator, x, made, normal[0])
    cross = functional.cross_entropy(twin.discriminator.head(torch.cat([z, z_made])), torch.cat([y, y]))
    spread = ((z_made - mean) ** 2 / log_variance.exp() + log_variance).mean()
    (cross + supervised_contrast(torch.stack([z, z_made], 1), y, 0.07) + spread).backward()
    method.step_min(x, y, noise[0], normal[0], kept, filters)
    assert_same_gradients(method.discriminator, twin.discriminator)

    twin.load_state_dict(method.state_dict())
    made = twin.restyle(x, noise[1], None, *twin.restyle.fixed())
    z, z_made, mean, log_variance = written_out(twin.discriminator, x, made, normal[1])
    (conditional_mmd(z, z_made, y, 3) + 0.1 * club(mean, log_variance, z_made)).backward()
    method.step_max(x, y, noise[1], normal[1])
    assert_same_gradients(method.restyle, twin.restyle)


def assert_same_gradients(network, twin):
    assert any(p.grad.abs().max() > 1e-4 for p in network.parameters())
    for one, other in zip(network.parameters(), twin.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_l2d_classifies_by_the_mean_of_its_embedding_at_test_time():
    method, (x, _) = build(method="l2d"), batch()
    network = method.discriminator.eval()
    mean, log_variance = network.distribution(x)
    assert (log_variance >= 0).all() and torch.equal(network.features(x), mean)
    torch.testing.assert_close(method.predict(x), network.head(mean))
    draw = mean + 0.2 * (log_variance / 2).exp()
    assert (network.head(draw) - network.head(mean)).abs().max() > 1e-3


def test_the_max_step_of_l2d_lowers_its_loss():
    """Repeated against an F that stays, the max step makes its own loss smaller."""
    method = build(method="l2d", lr=1e-2).train()
    x, y = batch(12)
    noise, normal, kept, _ = draws(method, x)
    for _ in range(20):
        method.step_min(x, y, noise[0], normal[0], kept, method.restyle.draw(method.streams.noise))
    found = [method.step_max(x, y, noise[1], normal[1]) for _ in range(30)]
    loss = [(terms["mmd"] + 0.1 * terms["club"]).item() for terms in found]
    assert min(loss[-5:]) < loss[0]


def test_the_dropout_of_l2ds_style_network_keeps_the_mean():
    kept = build(method="l2d").draw_kept(torch.zeros(40, 6, 9, 9))
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert kept.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("patch_size, sides", [(3, [2]), (5, [2]), (7, [3]), (9, [5]), (11, [7, 3]), (15, [11, 7, 3]),
                                               (19, [15, 11, 7, 3])])
def test_restyled_patches_are_what_preprocessing_could_have_made(patch_size, sides):
    """With as many of the kernels of 5, 9, 13 and 17 pixels as leave more than a pixel of the patch."""
    network, (x, _) = StyleNetwork(6, patch_size), batch(patch_size=patch_size)
    assert [scale.shape[-1] for scale in network.scale] == sides
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=rng)
    one, other, fixed = (network(x, noise, None, *filters)
                         for filters in (network.draw(rng), network.draw(rng), network.fixed()))
    for made in (one, other, fixed):
        assert made.shape == x.shape and made.min() >= 0
        torch.testing.assert_close(made.norm(dim=1), torch.ones(6, patch_size, patch_size))
    assert (one - other).abs().max() > 0.01
    torch.testing.assert_close(network(x, -noise, None, *network.fixed()), fixed, rtol=0, atol=0)   # no noise at first


def test_restyling_against_its_equation():
    """One patch, branch by branch, with transposed convolutions written as gradients of convolutions."""
    network, (x, _) = StyleNetwork(6, 11).double(), batch(1, patch_size=11)
    x, rng = x.double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.noise_strength.fill_(30.0)
    weights, spectral, bias, *spatial = (f.double() for f in network.draw(rng))
    noise, kept = drawn(*x.shape), (drawn(*x.shape, seed=1) > -0.8) / 0.8
    h = math.sqrt(6) * x + 0.01 * 30 * noise
    total = weights[0] * torch.tanh(kept * (torch.einsum("oc,nchw->nohw", spectral[:, :, 0, 0], h)
                                            + bias[:, None, None]))
    assert len(weights) == 3 and len(spatial) == 6
    for i, weight in enumerate(weights[1:]):
        down, up, up_bias = spatial[3 * i:3 * i + 3]
        small = functional.conv2d(h, down)
        mean, variance = small.mean((2, 3), keepdim=True), small.var((2, 3), correction=0, keepdim=True)
        small = network.scale[i] * (small - mean) / (variance + 1e-5).sqrt() + network.shift[i]
        total = total + weight * torch.tanh(torch.nn.grad.conv2d_input(x.shape, up, small) + up_bias[:, None, None])
    restyled = functional.normalize(1 / (1 + torch.exp(-total)), dim=1)
    torch.testing.assert_close(network(x, noise, kept, weights, spectral, bias, *spatial),
                               functional.normalize(0.4 * x + 0.6 * restyled, dim=1))

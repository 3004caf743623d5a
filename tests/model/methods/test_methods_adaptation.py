"""The mathematics of DAAN, DSAN, MRAN and CORAL against loops, hand-made numbers and known properties."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import batch, build, settings, target_batch
from model.discriminator import Discriminator
from model.methods.alignment import conditional_mmd, coral_loss, lmmd, one_hot, ramp, rbf_kernels, reverse_gradient
from model.methods.daan import DomainDiscriminators, count_errors, domain_losses, dynamic_factor
from model.methods.mran import BRANCHES, MultiRepresentation
from utils.run.folder import run_label

ADAPTING = ["daan", "mran", "dsan", "coral"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def domains(n=9, m=7, width=4, n_classes=3, seed=0):
    """source [n, D], target [m, D], y [n], target logits [m, K], with every class in both."""
    logits = normal(m, n_classes, seed=seed + 2)
    logits[torch.arange(m), torch.arange(m) % n_classes] += 2.5
    return normal(n, width, seed=seed), 1 + normal(m, width, seed=seed + 1), torch.arange(n) % n_classes, logits


def loop_bandwidth(points):
    """Mean squared distance over ordered pairs of different points."""
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
    return sum(pairs) / len(pairs)


def loop_kernel(a, b, sigma):
    return sum(math.exp(-((a - b) ** 2).sum() / (sigma * factor)) for factor in (0.25, 0.5, 1, 2, 4))


def loop_class_distance(source, target, w, v):
    """‖Σ_i w_i φ(s_i) − Σ_j v_j φ(t_j)‖², pair by pair."""
    sigma, points = loop_bandwidth(np.concatenate([source, target])), [*source, *target]
    weights, total = [*w, *(-v)], 0.0
    for a, weight in zip(points, weights):
        for b, other in zip(points, weights):
            total += weight * other * loop_kernel(a, b, sigma)
    return total


def loop_lmmd(source, target, y, logits):
    shares, terms = np.exp(logits) / np.exp(logits).sum(1, keepdims=True), []
    for k in range(logits.shape[1]):
        if (y == k).any() and (logits.argmax(1) == k).any():
            w, v = (y == k).astype(float), shares[:, k]
            terms.append(loop_class_distance(source, target, w / w.sum(), v / v.sum()))
    return sum(terms) / len(terms)


def loop_conditional_mmd(source, target, y, logits):
    guesses, total = logits.argmax(1), 0.0
    for k in range(logits.shape[1]):
        if (y == k).any() and (guesses == k).any():
            total += loop_class_distance(source, target, (y == k) / len(y), (guesses == k) / len(guesses))
    return total


def test_ramp_goes_from_zero_to_one():
    values = [float(ramp(p)) for p in (0.0, 0.1, 0.5, 1.0)]
    assert values[0] == 0 and values == sorted(values) and values[-1] == pytest.approx(1, abs=1e-4)
    assert values[1] == pytest.approx(math.tanh(0.5), rel=1e-6)               # 2/(1 + e^(−2a)) − 1 = tanh a


def test_reversal_keeps_values_and_turns_gradients():
    x = normal(3, 2).requires_grad_()
    weights = normal(3, 2, seed=1)
    out = reverse_gradient(x, torch.tensor(0.7))
    assert torch.equal(out, x)
    (out * weights).sum().backward()
    torch.testing.assert_close(x.grad, -0.7 * weights)


def test_kernels_against_a_loop():
    points = normal(8, 3)
    sigma = loop_bandwidth(points.numpy())
    expected = [[loop_kernel(a, b, sigma) for b in points.numpy()] for a in points.numpy()]
    np.testing.assert_allclose(rbf_kernels(points), expected, rtol=1e-10)


def test_kernels_see_distances_only_and_no_scale():
    points = normal(8, 3, dtype=torch.float32)
    torch.testing.assert_close(rbf_kernels(points + 1000), rbf_kernels(points), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(rbf_kernels(0.01 * points), rbf_kernels(points))


def test_no_gradient_flows_through_the_bandwidth():
    points = normal(6, 3).requires_grad_()
    weights = normal(6, 6, seed=1)
    found, = torch.autograd.grad((rbf_kernels(points) * weights).sum(), points)
    sigma = loop_bandwidth(points.detach().numpy())
    distances = (points[:, None] - points).square().sum(2)
    fixed = sum(torch.exp(-distances / (sigma * 2.0 ** i)) for i in range(-2, 3))
    expected, = torch.autograd.grad((fixed * weights).sum(), points)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("found, loop", [(lmmd, loop_lmmd), (conditional_mmd, loop_conditional_mmd)])
@pytest.mark.parametrize("lacks", ["nothing", "a source class", "a target class"])
def test_class_distances_against_a_double_loop(found, loop, lacks):
    source, target, y, logits = domains()
    if lacks == "a source class":
        y = y.clamp_max(1)
    if lacks == "a target class":
        logits[:, 0] -= 50
    expected = loop(*(value.numpy() for value in (source, target, y, logits)))
    assert found(source, target, y, logits).item() == pytest.approx(expected, rel=1e-6) and expected > 0


@pytest.mark.parametrize("distance", [lmmd, conditional_mmd])
def test_class_distance_is_zero_for_equal_domains_only(distance):
    source, _, y, _ = domains()
    sure = 100 * one_hot(y, 3, torch.float64)
    assert distance(source, source, y, sure).abs() < 1e-6
    assert distance(source, source + 1, y, sure) > 0.1
    assert distance(source, source, y, sure.roll(1, dims=1)) > 0.01           # the same samples, as other classes


@pytest.mark.parametrize("distance", [lmmd, conditional_mmd])
def test_no_common_class_is_no_distance(distance):
    source, target, _, logits = domains()
    source.requires_grad_()
    logits[:, 2] -= 100
    found = distance(source, target, torch.full((9,), 2), logits)
    found.backward()
    assert found == 0 and (source.grad == 0).all()


@pytest.mark.parametrize("distance, value", [(lmmd, 0), (conditional_mmd, 5 * (2 / 5 - 1) ** 2)])
def test_collapsed_features_and_sure_guesses_stay_finite(distance, value):
    source, target = torch.zeros(5, 4, requires_grad=True), torch.zeros(5, 4, requires_grad=True)
    logits = torch.full((5, 3), -1e4).index_fill_(1, torch.tensor(0), 1e4)    # the other shares underflow to 0
    found = distance(source, target, torch.arange(5) % 3, logits)
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-5)
    assert source.grad.isfinite().all() and target.grad.isfinite().all()


def test_class_weights_carry_no_gradient():
    source, target, y, logits = domains()
    lmmd(source.requires_grad_(), target, y, logits.requires_grad_()).backward()
    assert logits.grad is None and source.grad.abs().sum() > 0


def test_coral_against_numpy():
    source, target = normal(9, 4), normal(7, 4, seed=1) @ normal(4, 4, seed=2) + 3
    difference = np.cov(source.numpy(), rowvar=False) - np.cov(target.numpy(), rowvar=False)
    assert coral_loss(source, target).item() == pytest.approx((difference ** 2).sum() / (4 * 4 ** 2), rel=1e-12)
    assert coral_loss(source, source + 5) < 1e-12                             # the mean does not count
    assert coral_loss(source[:1], target[:1]) == 0


def test_each_domain_has_its_own_label():
    """Right decisions cost little, wrong ones much, in both domains; one label for both would make them cost alike."""
    sure = torch.full((5, 4), 8.0)
    assert all(loss < 0.01 for loss in domain_losses(-sure, sure))
    wrong_global, wrong_local = domain_losses(sure, -sure)
    assert wrong_global == pytest.approx(16, abs=0.01) and wrong_local == pytest.approx(3 * 16, abs=0.01)
    for source, target in ((-sure, -sure), (sure, sure)):
        assert domain_losses(source, target)[0] == pytest.approx(8, abs=0.01)
        assert domain_losses(source, target)[1] == pytest.approx(3 * 8, abs=0.01)


def test_domain_losses_against_probabilities():
    source, target = normal(6, 3), normal(4, 3, seed=1)
    terms = -(1 - source.sigmoid()).log().mean(0) - target.sigmoid().log().mean(0)
    torch.testing.assert_close(domain_losses(source, target), (terms[0], terms[1] + terms[2]))


def test_class_wise_discriminators_see_features_times_their_share():
    networks = DomainDiscriminators(4, 3)
    features, y = normal(6, 4, dtype=torch.float32), torch.arange(6) % 3
    logits, mine = networks(features, one_hot(y, 3)), torch.arange(6)
    torch.testing.assert_close(logits[:, :1], networks.each[0](features))
    for k in range(3):
        seen = logits[:, 1 + k]
        torch.testing.assert_close(seen[y == k], networks.each[1 + k](features)[mine[y == k], 0])
        torch.testing.assert_close(seen[y != k], networks.each[1 + k](torch.zeros(1, 4))[0].expand((y != k).sum()))
    assert not torch.allclose(networks(features, 0.5 * one_hot(y, 3))[:, 1:], logits[:, 1:])


def test_errors_are_counted_by_domain_and_share():
    source = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])               # wrong where above 0
    target = torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, -1.0]])               # wrong where not above 0
    source_shares, target_shares = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    wrong, seen = count_errors(source, target, source_shares, target_shares)
    torch.testing.assert_close(wrong, torch.tensor([[1.0, 0.2, 0.9], [0.0, 0.7, 0.4]]))
    torch.testing.assert_close(seen, torch.tensor([[2.0, 1.1, 0.9], [2.0, 1.3, 0.7]]))


@pytest.mark.parametrize("rates, omega", [
    ([[0.25, 0.25, 0.25], [0.25, 0.25, 0.25]], 0.5),
    ([[0.00, 0.50, 0.50], [0.00, 0.50, 0.50]], 0.0),          # only the global discriminator tells the domains apart
    ([[0.50, 0.00, 0.50], [0.50, 0.00, 0.50]], 1.0),
    ([[0.20, 0.30, 0.50], [0.30, 0.20, 0.50]], 1 / 3),        # d_g = 1, d_l = (1 + 0)/2
    ([[0.10, 0.45, 0.40], [0.30, 0.35, 0.20]], 0.6 / 1.8),    # d_g = 1.2, d_l = (0.4 + 0.8)/2
    ([[0.90, 0.25, 0.80], [0.90, 0.25, 0.80]], 1.0),          # worse than chance is no distance
    ([[0.50, 0.60, 0.70], [0.50, 0.60, 0.70]], 0.5)])
def test_dynamic_factor_of_known_errors(rates, omega):
    seen = torch.tensor([[10.0, 4.0, 6.0], [20.0, 15.0, 5.0]], dtype=torch.float64)
    assert dynamic_factor(torch.tensor(rates, dtype=torch.float64) * seen, seen).item() == pytest.approx(omega)


def test_dynamic_factor_without_evidence():
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    assert dynamic_factor(nothing, nothing) == 0.5
    seen = torch.tensor([[10.0, 4.0, 6.0], [10.0, 4.0, 0.0]], dtype=torch.float64)   # the target lacks class 1
    assert dynamic_factor(nothing, seen).item() == pytest.approx(1 / 3)               # d_g = 2, d_l = (2 + 0)/2


def test_omega_changes_between_epochs_only():
    method, seen = build(method="daan"), []
    method.domains.register_forward_hook(lambda _, given, out: seen.append((given[1].detach(), out.detach())))
    omegas = []
    for done in range(4):
        method.schedule(done, 2, 5)
        omegas.append(method.update(*batch(12, seed=done))["omega"])
    errors = np.zeros((2, 4, 2))                                              # domain, discriminator, (wrong, all)
    for shares, logits in seen[:2]:
        for i in range(24):
            for c in range(4):
                count = 1.0 if c == 0 else shares[i, c - 1].item()
                errors[i // 12, c] += (count * ((logits[i, c] > 0).item() != (i >= 12)), count)
    distances = np.maximum(0, 2 * (1 - 2 * (errors[..., 0] / errors[..., 1]).mean(0)))
    expected = distances[1:].mean() / (distances[0] + distances[1:].mean()) if distances.any() else 0.5
    assert omegas[:2] == [0.5, 0.5] and omegas[2:] == pytest.approx([expected] * 2, rel=1e-5)
    assert method.seen[0].tolist()[0] == 24                                   # the second epoch's alone


def gradients_of(method, scale, omega=0.25):
    """DAAN's gradients after one step from the method's state, the classifier's and the domain discriminators'."""
    trial = copy.deepcopy(method)
    trial.omega.fill_(omega)
    x, y = batch(12)
    trial.step(x, y, target_batch(12, 6, 5, torch.Generator().manual_seed(1)), torch.tensor(scale))
    return [torch.cat([p.grad.flatten() for p in network.parameters()])
            for network in (trial.discriminator, trial.domains)]


def plain_gradients(method, omega=0.25):
    """The same of CE, and of the domain losses without any reversal: the classifier's by way of the features and by way
    of the class shares, and the domain discriminators'."""
    x, y = batch(12)
    features = method.discriminator.features(torch.cat([x, target_batch(12, 6, 5, torch.Generator().manual_seed(1))]))
    logits, s = method.discriminator.head(features), method.settings
    shares, ce = logits.softmax(1), functional.cross_entropy(logits[:12], y)

    def domain(*given):
        losses = domain_losses(*method.domains(*given).split(12))
        return (1 - omega) * s.daan_global * losses[0] + omega * s.daan_local * losses[1]

    def flat(loss, network):
        found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                          for g, p in zip(found, network.parameters())])
    against, along = domain(features, shares.detach()), domain(features.detach(), shares)
    return flat(ce, method.discriminator), flat(against, method.discriminator), \
        flat(along, method.discriminator), flat(against, method.domains)


@pytest.mark.parametrize("shares", ["free", "detached"])
@pytest.mark.parametrize("scale", [0.0, 0.6])
def test_daan_trains_features_against_the_domain_discriminators(scale, shares):
    """And the class shares, where they are free, along with them: no reversal turns that gradient."""
    method = build(method="daan", daan_shares=shares, daan_global=0.4, daan_local=0.7)
    ce, against, along, domains_own = plain_gradients(method)
    classifier, discriminators = gradients_of(method, scale)
    expected = ce - scale * against + (along if shares == "free" else 0)
    torch.testing.assert_close(classifier, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(discriminators, domains_own, rtol=1e-4, atol=1e-6)
    assert min(against.abs().max(), along.abs().max()) > 1e-4


def test_labels_say_which_daan():
    assert run_label(settings(method="daan")) == "daan"
    assert run_label(settings(method="daan", daan_global=0.5, daan_shares="detached")) \
        == "daan global=0.5 shares=detached"
    assert run_label(settings(method="erm", daan_global=0.5)) == "erm"


def test_mran_branches_have_an_inception_modules_fields_of_view():
    network = MultiRepresentation(6, 3, 15, 16).eval()
    clean, touched = torch.zeros(1, 16, 7, 7), torch.zeros(1, 16, 7, 7)
    touched[:, :, 3, 3] = torch.randn(16, generator=torch.Generator().manual_seed(0))
    extents = []
    for branch in network.fc:
        convolutions = branch[:-2]                                            # before flatten and Linear
        for module in convolutions.modules():
            if isinstance(module, torch.nn.ReLU):
                module.forward = functional.leaky_relu               # so that no response is hidden
        changed = (convolutions(touched) - convolutions(clean)).abs().sum(1)[0] > 0
        extents.append(tuple(changed.any(axis).sum().item() for axis in (0, 1)))
    assert extents == [(1, 1), (5, 5), (5, 5), (3, 3)]


@pytest.mark.parametrize("width, patch_size", [(8, 5), (2, 3), (32, 9)])
def test_mran_shares_the_backbones_stages(width, patch_size):
    network, plain = MultiRepresentation(6, 3, patch_size, width), Discriminator(6, 3, patch_size, width)
    shapes = {name: value.shape for name, value in network.stages.state_dict().items()}
    assert shapes == {name: value.shape for name, value in plain.stages.state_dict().items()}
    x, _ = batch(4, patch_size=patch_size)
    features = network.features(x)
    assert features.shape == (4, BRANCHES * max(1, width // BRANCHES)) and (features >= 0).all()
    torch.testing.assert_close(network(x), network.head(features))


def test_mran_sums_over_its_branches():
    method = build(method="mran", pro_dim=16)
    x, y = batch(12)
    target = target_batch(12, 6, 5, torch.Generator().manual_seed(1))
    network = copy.deepcopy(method.discriminator)
    features = network.features(torch.cat([x, target]))
    logits = network.head(features)[12:]
    each = [conditional_mmd(features[:12, i:i + 4], features[12:, i:i + 4], y, logits) for i in range(0, 16, 4)]
    found = method.step(x, y, target, torch.tensor(0.5))
    assert found["cmmd"] == pytest.approx(sum(each).item(), rel=1e-4) and len({round(e.item(), 6) for e in each}) == 4


@pytest.mark.parametrize("name, loss", [
    ("dsan", lambda terms, weight: terms["ce"] + weight * terms["lmmd"] / 2),
    ("mran", lambda terms, weight: terms["ce"] + weight * terms["cmmd"]),
    ("coral", lambda terms, weight: terms["ce"] + terms["coral"]),
    ("daan", lambda terms, weight: terms["ce"] + (0.05 * terms["domain_global"] + 0.01 * terms["domain_local"]) / 2)])
@pytest.mark.parametrize("done", [0, 3])
def test_loss_is_the_papers_sum(name, loss, done):
    method = build(method=name)
    method.schedule(done, 10, 2)
    terms = method.update(*batch(12))
    assert terms["loss"] == pytest.approx(loss(terms, math.tanh(5 * done / 20)), rel=1e-5)


@pytest.mark.parametrize("name", ADAPTING)
def test_a_batch_of_one_class_leaves_all_finite(name):
    method = build(method=name)
    for done in range(3):
        method.schedule(done, 2, 2)
        x, y = batch(12, seed=done)
        losses = method.update(x, torch.zeros_like(y))
        assert all(math.isfinite(value) for value in losses.values())
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", ADAPTING)
def test_both_domains_pass_in_one_batch(name):
    method = build(method=name)
    norms = [module for module in method.discriminator.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = []
    method.discriminator.stages[0].spatial.register_forward_hook(lambda _, given, out: seen.append(out.detach()))
    method.schedule(0, 2, 2)
    method.update(*batch(12))
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    assert [len(out) for out in seen] == [24]
    torch.testing.assert_close(method.discriminator.stages[0].spatial_norm.running_mean,
                               0.1 * seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-6)

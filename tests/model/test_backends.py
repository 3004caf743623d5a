"""The fast path against the reference: the same losses, gradients and running statistics, the same logits."""

import copy

import pytest
import torch

from conftest import batch, build
from model.ops import cpu
from model.states import statistics_in_order

pytestmark = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=f"no C++: {cpu.unavailable_reason()}")

SIZES = {"pro_dim": 32, "GIN_ch": 12, "bands": 13, "patch_size": 7}
PAPER_SIZES = {"pro_dim": 128, "GIN_ch": 24, "bands": 48, "patch_size": 7}      # Winograd, vectors of 16 groups
VARIANTS = [{}, {"recipe": "paper"}, PAPER_SIZES, {"source_ce": "on"}, {"generators": "shared"},
            {"generators": "split"}, {"ablate": ["one_generator"]}, {"ablate": ["no_mixing"]},
            {"ablate": ["no_mixing", "one_generator"]}, {"ablate": ["no_adversarial"]}, {"ablate": ["no_mmirn"]},
            {"ablate": ["no_adversarial", "no_mmirn"]},
            {"recipe": "paper", "consistency_weight": 0.3, "mi_weight": 2.0},
            # the initialisation of `robust` itself puts one ReLU of seed 0 within rounding of its kink
            {"recipe": "robust", "generator_init": "default"}]


def relative(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def make(backend, variant, seed=0):
    """A method, with norms unlike those of a fresh one, and a batch."""
    sizes = SIZES | variant
    method, rng = build(**sizes, backend=backend), torch.Generator().manual_seed(seed)
    for norm in method.discriminator.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                value.add_(torch.rand(value.shape, generator=rng))
    return method.train(), *batch(16, sizes["bands"], patch_size=sizes["patch_size"], seed=seed)


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None] or [torch.zeros(1)])


def trained_parameters(network):
    """Without biases in front of an InstanceNorm, whose gradients are rounding."""
    return [p for name, p in network.named_parameters() if not (name.startswith("model.") and name.endswith("bias"))]


def rounded(x, seed, units=1):
    """Each value moved by `units` halves of its last place or so; seed None leaves x as it is."""
    if seed is None:
        return x
    return x * (1 + units * 2 ** -24 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))


def phases(backend, variant, seed, dtype=torch.float32, rounding=None):
    """The terms of both steps, the gradients of each alone, statistics and logits: (losses, gradients, values).

    Every phase starts from the same numbers, whatever backend and type: those of the reference in float32, rounded with
    the seed `rounding`.
    """
    method, x, y = make(backend, variant, seed)
    reference = make("reference", variant, seed)[0]
    noise, lambdas = reference.draw_noise(x), [0.3, 0.8][:len(reference.names)]
    made = reference.generate(x, noise, lambdas)
    made = {name: rounded(domain, rounding, 4).to(dtype) for name, domain in made.items()}
    method, reference, x, noise = (each.to(dtype) for each in (method, reference, x, noise))
    losses, gradients = {}, {}

    def go_back(name, loss, wanted):
        gradients[name] = flat(torch.autograd.grad(loss, wanted, allow_unused=True))

    domains = method.generate(x, noise, lambdas)
    values = {f"domain {name}": domain for name, domain in domains.items()}
    go_back("generators", sum((domain * torch.roll(x, 1, 0)).sum() for domain in domains.values()),
            list(method.generators.parameters()))
    leaves = {name: domain.detach().requires_grad_() for name, domain in made.items()}
    for group in method.coupled_passes(leaves):
        terms = method.min_terms(y, group)
        losses |= {f"{name} {'+'.join(group)}": term.item() for name, term in terms.items() if name.startswith("ce")}
        losses["consistency"] = losses.get("consistency", 0) + float(terms.get("consistency_min", 0))
        found = flat(torch.autograd.grad(method.min_loss(terms), list(method.discriminator.parameters())))
        gradients["min step"] = gradients.get("min step", 0) + found
    losses = {name.split(" ")[0]: value for name, value in losses.items()}
    for group in method.coupled_passes(leaves) if method.adversarial else ():
        for term in method.adversarial_terms(group).values():
            for name, found in zip(group, torch.autograd.grad(term, list(group.values()), allow_unused=True)):
                if found is not None:
                    gradients[f"consistency on {name}"] = found
    for term in method.semantic_terms(x, leaves).values():
        losses["mi"] = term.item()
        go_back("mi on domains", term, [leaves[name] for name in method.names])
        go_back("mi on M", method.semantic_terms(x, leaves)["mi"], trained_parameters(method.mmirn))
    values |= {name: value for name, value in method.named_buffers() if value.is_floating_point()}
    logits = reference_with(method, reference).predict(x)
    return losses, gradients, values | {"logits": logits, "spread": logits - logits.mean(0)}


def reference_with(method, reference):
    """The method with the running statistics of another."""
    for own, other in zip(method.buffers(), reference.buffers()):
        own.copy_(other)
    return method


@pytest.mark.slow_but("{}-0", "{'recipe': 'paper'}-0")
@pytest.mark.parametrize("variant, seed", [*((variant, 0) for variant in VARIANTS), ({}, 1), ({}, 2), (PAPER_SIZES, 1)],
                         ids=str)
def test_every_phase_of_the_cpu_kernels_is_the_reference_phase(variant, seed):
    """A ReLU whose input rounds to the other side, and norms over four pixels, enlarge any rounding, by chance and not
    on every processor.  So a gradient is right if it is near float64's, or as near as plain PyTorch's, with the domains as
    they are or rounded in one of several ways; a wrong kernel is far from it in all of them."""
    (losses, gradients, values), (expected, near, true_values) = (
        phases(backend, variant, seed) for backend in ("cpu", "reference"))
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-7) and gradients.keys() == near.keys()
    wrong = set(gradients)
    for rounding in (None, 0, 1, 2, 3):
        ours, theirs, truth = (phases(backend, variant, seed, dtype, rounding)[1] for backend, dtype in (
            ("cpu", torch.float32), ("reference", torch.float32), ("reference", torch.float64)))
        wrong -= {name for name in wrong
                  if relative(ours[name], truth[name]) < max(1e-4, 3 * relative(theirs[name], truth[name]))}
        if not wrong:
            break
    assert not wrong
    for name, value in values.items():
        assert relative(value, true_values[name]) < (1e-3 if name == "spread" else 1e-5), name


@pytest.mark.parametrize("variant", [{}, {"recipe": "paper"}, {"recipe": "robust"}, {"ablate": ["one_generator"]}], ids=str)
def test_every_phase_with_the_cuda_operators_is_the_reference_phase(forced_cupy, variant):
    """In float64, the kernels computed by their specification: what is called instead of what, and how it is put
    together."""
    ours, theirs = (phases(backend, variant, 0, torch.float64) for backend in ("cupy", "reference"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-9)
    for one, other in zip(ours[1:], theirs[1:]):
        assert one.keys() == other.keys()
        assert all(relative(one[name], other[name]) < 1e-8 for name in one), variant


def one_step(backend, variant, seed=0, double=False, rounding=None):
    """Losses, gradients by network, and buffers of a method after one update, all from the same start.

    rounding: seed of a rounding of x.
    """
    method, x, y = make(backend, variant, seed)
    x = rounded(x, rounding)
    noise, lambdas = (method.draw_noise(x), method.draw_lambdas(len(x))) if hasattr(method, "draw_noise") else \
        (None, None)
    if double:
        method, x = method.double(), x.double()
    losses = method.step(x, y, noise.to(x.dtype), lambdas) if noise is not None else method.update(x, y)
    gradients = {name: flat(p.grad for p in trained_parameters(network)) for name, network in method.named_children()}
    buffers = {name: value for name, value in method.named_buffers() if value.is_floating_point()}
    return losses, gradients, buffers


@pytest.mark.slow_but("{}-0", "{'method': 'erm'}-0")
@pytest.mark.parametrize("variant, seed", [*((variant, 0) for variant in VARIANTS), ({"method": "erm"}, 0), ({}, 1)],
                         ids=str)
def test_a_step_of_the_cpu_kernels_is_as_near_the_truth_as_the_references(variant, seed):
    """Over a whole step ReLUs that flip and Adam's first step, which is all sign, enlarge any rounding: against float64
    the kernels may not be worse than plain PyTorch.

    Which ReLU flips is chance and differs between processors, so plain PyTorch takes the step several times, with x
    rounded in several ways, and its worst error counts.
    """
    ours, truth = one_step("cpu", variant, seed), one_step("reference", variant, seed, double=True)
    theirs = [one_step("reference", variant, seed, rounding=rounding) for rounding in (None, 0, 1, 2, 3)]
    assert list(ours[0]) == list(truth[0])
    for part, limit in ((1, 1e-4), (2, 1e-5)):
        for name, value in truth[part].items():
            allowed = max(limit, 3 * max(relative(step[part][name], value) for step in theirs))
            assert relative(ours[part][name], value) <= allowed or value.norm() == 0, name
    for name, value in truth[0].items():
        allowed = max(1e-5 * abs(value), 3 * max(abs(step[0][name] - value) for step in theirs), 1e-6)
        assert abs(ours[0][name] - value) <= allowed, name


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
    (low, low_gradients, _), (full, gradients, _) = (
        one_step("cpu", {"recipe": recipe, "precision": precision}) for precision in ("bf16", "float32"))
    assert low["loss_min"] == pytest.approx(full["loss_min"], rel=0.02)
    assert low["mi"] == full["mi"]                                          # nothing of it is in bfloat16
    assert relative(low_gradients["discriminator"], gradients["discriminator"]) < 0.2
    logits = [make("cpu", {"recipe": recipe, "precision": precision})[0].predict(batch(8, 13, patch_size=7)[0])
              for precision in ("bf16", "float32")]
    assert logits[0].dtype == torch.float32 and 1e-6 < relative(*logits) < 0.05


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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_domains_in_one_batch_are_passes_one_after_the_other(backend):
    """Logits, gradients and running statistics: every domain is normalised by itself, in order."""
    together = build(backend=backend).discriminator.train()
    apart = copy.deepcopy(together)
    images = [(batch(seed=i)[0] * (1 + i)).requires_grad_() for i in range(4)]
    logits = together(torch.cat(images), 4)
    expected = torch.cat([apart(image) for image in images])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    pull = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found, theirs = (torch.autograd.grad(value, [*images, *network.parameters()], pull)
                     for value, network in ((logits, together), (expected, apart)))
    for one, other in zip(found, theirs):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for (name, one), other in zip(together.named_buffers(), apart.buffers()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=name)


def test_large_patches_take_the_coupled_pairs(monkeypatch):
    """Where all domains together are too much for one pass, the pairs give the same step."""
    steps = [one_step("cpu", {})]
    monkeypatch.setattr("model.s2amsnet.ONE_PASS", {False: 0, True: 0})
    method, x, _ = make("cpu", {}, 0)
    assert [list(group) for group in method.coupled_passes(dict.fromkeys(("a", "b", "a_mix", "b_mix"), x))] == \
        [["a", "b_mix"], ["b", "a_mix"]]
    steps.append(one_step("cpu", {}))
    (_, _, one), (_, _, other) = steps
    assert all(relative(one[name], other[name]) < 1e-5 for name in one if name.startswith("discriminator"))

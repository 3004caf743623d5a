"""S²AMSnet: who changes in which step, shapes of every size, ablations, recipes, a hand-written loop."""

import copy

import pytest
import torch
from torch.nn import functional

from conftest import batch, build, same_state
from model.errors import ConfigError
from model.losses import kl_consistency, mutual_information
from model.mixing import mix
from model.s2amsnet import learns
from model.states import frozen


def states(method):
    networks = {"discriminator": method.discriminator, "generators": method.generators, "mmirn": method.mmirn}
    return {name: copy.deepcopy(dict(network.named_parameters())) for name, network in networks.items() if network}


def changed(before, method):
    return {name: not same_state(before[name], state) for name, state in states(method).items()}


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_min_step_changes_the_discriminator_only(recipe):
    method, (x, y) = build(recipe=recipe).train(), batch()
    domains = method.generate(x, method.draw_noise(x), [0.3, 0.6])
    before = states(method)
    method.step_min(x, y, domains)
    assert changed(before, method) == {"discriminator": True, "generators": False, "mmirn": False}


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_max_step_changes_generators_and_mmirn_only(recipe):
    method, (x, y) = build(recipe=recipe).train(), batch()
    domains = method.generate(x, method.draw_noise(x), [0.3, 0.6])
    method.step_min(x, y, domains)
    before, gradients = states(method), [p.grad.clone() for p in method.discriminator.parameters()]
    method.step_max(x, domains)
    assert changed(before, method) == {"discriminator": False, "generators": True, "mmirn": True}
    assert same_state(gradients, [p.grad for p in method.discriminator.parameters()])


def test_frozen_network_keeps_its_mode_and_updates_its_statistics():
    method, (x, _) = build().train(), batch()
    norm = method.discriminator.stages[0].spectral_norm
    before = norm.running_mean.clone()
    with frozen(method.discriminator):
        assert not any(p.requires_grad for p in method.discriminator.parameters())
        method.discriminator(x)
    assert all(p.requires_grad for p in method.discriminator.parameters())
    assert not torch.equal(norm.running_mean, before)


def plain_step(method, optimisers, x, y, noise, lambdas):
    """The paper's algorithm written out once more, recipe `paper`, from its equations."""
    discriminator, g_a, g_b, mmirn = (method.discriminator, method.generators["a"], method.generators["b"],
                                      method.mmirn)
    a, b = g_a(x, noise[:3]), g_b(x, noise[3:])
    a_mix, b_mix = lambdas[0] * a + (1 - lambdas[0]) * x, lambdas[1] * b + (1 - lambdas[1]) * x
    z_a, z_b, z_am, z_bm = (discriminator(u.detach()) for u in (a, b, a_mix, b_mix))
    loss = sum(functional.cross_entropy(z, y) for z in (z_a, z_b, z_am, z_bm))
    loss = loss + kl_consistency(z_a, z_bm) + kl_consistency(z_b, z_am)
    optimisers[0].zero_grad()
    loss.backward()
    optimisers[0].step()
    for p in discriminator.parameters():
        p.requires_grad_(False)
    z_a, z_b, z_am, z_bm = (discriminator(u) for u in (a, b, a_mix, b_mix))
    loss = -(kl_consistency(z_a, z_bm) + kl_consistency(z_b, z_am))
    source = mmirn(x)
    loss = loss + sum(mutual_information(mmirn(u), source, 0.07, True) for u in (a, b))
    optimisers[1].zero_grad()
    loss.backward()
    optimisers[1].step()
    for p in discriminator.parameters():
        p.requires_grad_(True)


def test_three_updates_equal_a_hand_written_loop():
    """In float64, where Adam cannot blow rounding up into steps."""
    method, twin = (build(recipe="paper", seed=3, backend="reference").train().double() for _ in range(2))
    assert same_state(method.state_dict(), twin.state_dict())
    optimisers = [torch.optim.Adam(twin.discriminator.parameters(), lr=1e-3),
                  torch.optim.Adam([*twin.generators.parameters(), *twin.mmirn.parameters()], lr=1e-3)]
    for i in range(3):
        x, y = batch(seed=i)
        x, noise, lambdas = x.double(), twin.draw_noise(x).double(), twin.draw_lambdas(len(x))
        plain_step(twin, optimisers, x, y, noise, lambdas)
        method.step(x, y, noise, lambdas)
    for (name, ours), theirs in zip(method.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=name)


def test_released_recipe_steps_the_discriminator_twice_on_the_same_gradients():
    once, twice = build(seed=1, discriminator_steps=1), build(seed=1)
    x, y = batch()
    once.update(x, y)
    twice.update(x, y)
    once.min_optimiser.step()
    assert same_state(states(once), states(twice))


def test_released_recipe_accumulates_the_gradients_of_mmirn():
    """In float64: in float32 some of these gradients are nothing but rounding."""
    method, (x, y) = build(backend="reference").double(), batch()
    x, noise, lambdas = x.double(), method.draw_noise(x).double(), method.draw_lambdas(len(x))
    method.step(x, y, noise, lambdas)
    first = [p.grad.clone() for p in method.mmirn.parameters()]
    noise, lambdas = method.draw_noise(x).double(), method.draw_lambdas(len(x))
    twin = copy.deepcopy(method.mmirn)
    domains = method.generate(x, noise, lambdas)
    source = twin(x)
    loss = sum(mutual_information(twin(domains[name]), source, 0.07, False) for name in "ab")
    second = torch.autograd.grad(loss, list(twin.parameters()), retain_graph=True)
    method.step_max(x, domains)
    for old, new, p in zip(first, second, method.mmirn.parameters()):
        torch.testing.assert_close(p.grad, old + new, rtol=1e-7, atol=1e-7 * float(old.abs().max() + 1))


@pytest.mark.parametrize("recipe", ["released", "paper"])
@pytest.mark.parametrize("bands,patch_size,n_classes,n", [(1, 5, 2, 4), (2, 7, 3, 1), (4, 5, 12, 2), (103, 5, 7, 2),
                                                          (48, 11, 2, 3)])
def test_any_size_trains(recipe, bands, patch_size, n_classes, n):
    method = build(bands, n_classes, patch_size, recipe=recipe)
    x, y = batch(n, bands, n_classes, patch_size)
    losses = method.update(x, y)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert method.predict(x).shape == (n, n_classes)


def test_losses_are_the_sum_of_their_terms():
    method, (x, y) = build(recipe="paper", consistency_weight=0.5, mi_weight=2.0), batch()
    losses = method.update(x, y)
    ce = sum(losses[f"ce_{name}"] for name in ("a", "b", "a_mix", "b_mix"))
    assert losses["loss_min"] == pytest.approx(ce + 0.5 * losses["consistency_min"], rel=1e-5)
    assert losses["loss_max"] == pytest.approx(-0.5 * losses["consistency_max"] + 2 * losses["mi"], rel=1e-5)


def test_permuting_a_batch_permutes_the_logits():
    method, (x, y) = build(bands=7, pro_dim=16), batch(bands=7)
    method.update(x, y)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(method.predict(x[order]), method.predict(x)[order], rtol=1e-5, atol=1e-6)


def test_generators_may_be_split_or_shared():
    split = build(generators="split").generators
    assert split["a"].stages[0].spatial is None and split["b"].stages[0].spectral is None
    shared = build(generators="shared")
    assert shared.generators["a"] is shared.generators["b"]
    x, y = batch()
    noise = shared.draw_noise(x)
    domains = shared.generate(x, noise, shared.draw_lambdas(len(x)))
    assert not torch.equal(domains["a"], domains["b"])
    shared.update(x, y)


def test_generator_initialisation_and_norm_follow_the_recipe():
    released, paper = build(recipe="released", GIN_ch=24), build(recipe="paper", GIN_ch=24)
    weight = released.generators["a"].stages[1].spatial.conv.weight
    assert abs(weight.std().item() - 1) < 0.05
    assert paper.generators["a"].stages[1].spatial.conv.weight.abs().max() < 0.1
    assert len(released.generators["a"].adain) == 1 and len(paper.generators["a"].adain) == 3
    x, _ = batch()
    released.train().generate(x, released.draw_noise(x), [0.5, 0.5])
    assert released.generators["a"].norm.num_batches_tracked == 3


def test_a_generator_starts_half_way_between_input_and_decoder():
    generator, (x, _) = build(recipe="paper").generators["a"], batch()
    with torch.no_grad():
        generator.decoder.weight.zero_()
        generator.decoder.bias.zero_()
        torch.testing.assert_close(generator(x, torch.zeros(3, len(x), 2)), x / 2)


def test_ablations_take_their_part_away():
    x, y = batch()

    def losses_of(*ablate, recipe="paper"):
        method = build(recipe=recipe, ablate=list(ablate))
        return method, method.update(x, y)

    method, losses = losses_of("no_mmirn")
    assert method.mmirn is None and "mi" not in losses
    method, losses = losses_of("no_adversarial")
    assert "consistency_max" not in losses and "consistency_min" in losses
    method, losses = losses_of("no_mixing")
    assert [name for name in losses if name.startswith("ce_")] == ["ce_a", "ce_b"]
    method, losses = losses_of("one_generator")
    assert list(method.generators) == ["a"] and [n for n in losses if n.startswith("ce_")] == ["ce_a", "ce_a_mix"]
    assert "consistency_min" in losses
    method, _ = losses_of("no_spectral")
    assert not [n for n, _ in method.generators.named_parameters() if "spectral" in n]
    method, _ = losses_of("no_spatial")
    assert not [n for n, _ in method.generators.named_parameters() if "spatial" in n]
    method, _ = losses_of("no_noise")
    assert all(p.grad.abs().sum() == 0 for n, p in method.generators.named_parameters() if n.endswith("fc.weight"))
    for recipe in ("released", "paper"):
        method, _ = losses_of("no_adain", recipe=recipe)
        generator, noise = method.generators["a"].eval(), torch.randn(2, 3, len(x), 2)
        assert not [n for n, _ in generator.named_parameters() if "adain" in n or n.endswith("fc.weight")]
        assert torch.equal(generator(x, noise[0]), generator(x, noise[1]))
        assert isinstance(generator.norm, torch.nn.BatchNorm2d) == (recipe == "released")
    method, losses = losses_of("no_mmirn", "no_adversarial")
    assert all(p.grad is None for p in method.generators.parameters()) and losses["loss_max"] == 0
    for recipe in ("paper", "robust"):
        method, losses = losses_of("no_generators", recipe=recipe)
        assert not learns(method.generators) and losses["loss_max"] == 0 and "mi" not in losses
        noise, physics = method.draw_noise(x), method.draw_physics(x)
        domains = method.generate(x, noise, method.draw_lambdas(len(x)), *physics)
        assert torch.equal(domains["a"], x) == (recipe == "paper")         # in `robust` the physical branch is left
    method, losses = losses_of("no_mixing", "one_generator")
    assert "consistency_min" not in losses and "consistency_max" not in losses


def test_the_whole_method_feels_every_part():
    method, (x, y) = build(recipe="paper"), batch()
    method.update(x, y)
    missing = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    no_gradient = {f"mmirn.model.{i}.bias" for i in (1,)}          # in front of an InstanceNorm, not tapped
    assert {name for name in missing if "conv_block" not in name} <= no_gradient


def test_impossible_combinations_are_refused():
    with pytest.raises(ConfigError, match="no_spectral and no_spatial"):
        build(ablate=["no_spectral", "no_spatial"])
    with pytest.raises(ConfigError, match="split"):
        build(generators="split", ablate=["one_generator"])
    with pytest.raises(ConfigError, match="contrast_layers"):
        build(contrast_layers=[4, 99])


def test_layer_zero_alone_compares_the_patches_themselves():
    method, (x, y) = build(contrast_layers=[0]), batch()
    assert method.mmirn_optimiser is None and method.update(x, y)["mi"] > 0


def test_source_cross_entropy_is_a_switch():
    x, y = batch()
    assert "ce_source" not in build().update(x, y)
    assert "ce_source" in build(source_ce="on").update(x, y)


def test_mixed_views_lie_between_source_and_generated():
    method, (x, _) = build(), batch()
    views = method.generated_views(x)
    assert list(views) == ["generated a", "generated b", "a mixed", "b mixed"]
    torch.testing.assert_close(views["a mixed"], mix(views["generated a"], x, 0.5))

"""Recordings in the form of docs/fidelity.md, "Recorded values", but written by this implementation: they check the
replay, at any size and without the released code's own values."""

import json

import torch
from safetensors.torch import save_file

from model.losses import mutual_information
from model.methods import Task
from model.s2amsnet import S2AMSnet
from model.seeding import Streams
from model.settings import Settings, resolve_switches
from utils.released.parity import NETWORKS, networks
from utils.released.weights import released_discriminator_name, released_generator_name

LIMITS = {"forward": 1e-4, "first_losses": 1e-4, "later_losses": 1e-4, "gradients": 1e-3, "final_logits": 1e-3,
          "final_generator": 1e-3, "final_discriminator": 2e-4, "final_mmirn": 0.1}
RENAME = {"discriminator": released_discriminator_name, "generator": released_generator_name, "mmirn": lambda name: name}


def build(config):
    settings = Settings(lr=config["lr"], temp=config["temperature"], pro_dim=config["discriminator_channels"],
                        GIN_ch=config["generator_channels"], mmirn_filters=config["mmirn_filters"],
                        contrast_layers=config["layers"], backend="reference")
    resolve_switches(settings)
    task = Task(config["n_bands"], config["classes"], config["patch_size"])
    return S2AMSnet(task, settings, Streams(5, torch.device("cpu"))).train()


def state(method, group):
    return {f"{group}/{network}/{RENAME[network](name)}": value.clone()
            for network in NETWORKS for name, value in networks(method)[network].state_dict().items()}


def record(path, steps=2, **sizes):
    """Write PATH.safetensors and its .json, with one thread like the released code's; `sizes` are entries of the config."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _record(path, steps, sizes)
    finally:
        torch.set_num_threads(threads)


def _record(path, steps, sizes):
    config = {"n_bands": 6, "generator_channels": 4, "discriminator_channels": 8, "patch_size": 5, "batch": 3,
              "classes": 3, "lr": 1e-3, "temperature": 0.07, "layers": [0, 4, 8, 12, 16], "mmirn_filters": 2} | sizes
    rng = torch.Generator().manual_seed(1)
    n, bands, patch = config["batch"], config["n_bands"], config["patch_size"]

    def batch(group):
        x = torch.nn.functional.normalize(torch.rand(n, bands, patch, patch, generator=rng), dim=1)
        y = torch.arange(n) % config["classes"]
        noise = torch.randn(6, n, 2, generator=rng)
        tensors.update({f"{group}/x": x, f"{group}/y": y, f"{group}/noise": noise})
        return x, y, noise

    tensors = state(build(config), "init")
    method = build(config)
    x, _, noise = batch("forward")
    with torch.no_grad():
        generated = [method.generators[name](x, z) for name, z in zip("ab", noise.split(3))]
        tensors |= {f"forward/generated_{i}": g for i, g in enumerate(generated, 1)}
        tensors |= {"forward/logits_train": method.discriminator(x), "forward/logits_eval": method.predict(x).clone()}
        source = method.mmirn(x)
        tensors |= {f"forward/mmirn_layer_{layer}": f for layer, f in method.mmirn.layer_outputs(x).items()}
        tensors |= {f"forward/mi_loss_{i}": mutual_information(method.mmirn(g), source, config["temperature"], False)[None]
                    for i, g in enumerate(generated, 1)}
    method, losses = build(config), []
    for i in range(steps):
        x, y, noise = batch(f"loop/{i}")
        tensors[f"loop/{i}/lambda"] = torch.rand(2, generator=rng, dtype=torch.float64)
        lambdas = tensors[f"loop/{i}/lambda"].tolist()
        if i == 0:
            tensors |= gradients(build(config), x, y, noise, lambdas)
        terms = method.step(x, y, noise, lambdas)
        losses.append({key: value for key, value in terms.items() if not key.startswith("ce_")} |
                      {"step": i, "ce": [terms[f"ce_{name}"] for name in ("a", "b", "a_mix", "b_mix")]})
    tensors |= state(method, "final") | {"final/x": x.clone()}
    tensors["final/logits_eval"] = method.predict(x).clone()
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"config": config, "limits": LIMITS,
                                                     "losses": losses}))
    return path


def gradients(method, x, y, noise, lambdas):
    """Of each term by itself, not through the training steps, which the replay goes through."""
    found, domains = {}, method.generate(x, noise, lambdas)
    terms = method.adversarial_terms(domains) | method.semantic_terms(x, domains)
    loss_min = method.min_loss(method.min_terms(y, domains))
    for name, loss, network in (("min_discriminator", loss_min, "discriminator"), ("mi_mmirn", terms["mi"], "mmirn"),
                                ("consistency_generator", -terms["consistency_max"], "generator"),
                                ("mi_generator", terms["mi"], "generator")):
        parameters = dict(networks(method)[network].named_parameters())
        values = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        found |= {f"gradient/{name}/{RENAME[network](n)}": g for n, g in zip(parameters, values) if g is not None}
    return found

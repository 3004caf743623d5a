"""Replay values recorded from the released code, quantity by quantity (docs/fidelity.md, "Recorded values")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.losses import mutual_information
from model.methods import Task
from model.mmirn import MIN_PATCH
from model.s2amsnet import S2AMSnet
from model.seeding import Streams
from model.settings import Settings, resolve_switches
from utils.released import data_path
from utils.released.recording import Line, ParityFileError, read
from utils.released.weights import released_discriminator_name, released_generator_name
from utils.run.records import misfit

CONFIG_KEYS = ("n_bands", "generator_channels", "discriminator_channels", "patch_size", "batch", "classes", "lr",
               "temperature", "layers", "mmirn_filters")
SIZE_KEYS = ("n_bands", "generator_channels", "discriminator_channels", "patch_size", "batch", "classes",
             "mmirn_filters")
LIMIT_KEYS = ("forward", "first_losses", "later_losses", "gradients", "final_logits", "final_generator",
              "final_discriminator", "final_mmirn")
LOSS_KEYS = ("loss_min", "loss_max", "mi", "consistency_min", "consistency_max", "ce")
NETWORKS = ("generator", "discriminator", "mmirn")
WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_RELEASED_NAME = {"generator": released_generator_name, "discriminator": released_discriminator_name,
                  "mmirn": lambda name: name}


class Recording:
    """A recorded file (.safetensors and its .json) with checked access."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors, description = read(path)
        self.config = self._section(description, "config", CONFIG_KEYS)
        self.limits = self._section(description, "limits", LIMIT_KEYS)
        self._check_config()
        self.losses = description.get("losses") or []
        if not isinstance(self.losses, list) or not self.losses:
            raise ParityFileError(f"{path.with_suffix('.json')} lacks losses: it records no training step.")
        for i, entry in enumerate(self.losses):
            self._section({f"losses[{i}]": entry}, f"losses[{i}]", LOSS_KEYS)
            if misfit(entry["ce"], list[float], "ce") or len(entry["ce"]) != 4:
                raise ParityFileError(f"{path.with_suffix('.json')}: losses[{i}].ce must hold four values.")
        beyond = {name.split("/")[1] for name in self.tensors if name.startswith("loop/")} - \
            {str(i) for i in range(len(self.losses))}
        if beyond:
            raise ParityFileError(f"{path.with_suffix('.json')} lacks the losses of step {min(beyond)}.")

    def _section(self, description: dict, name: str, keys: Iterable[str]) -> dict:
        section = description.get(name) if isinstance(description, dict) else None
        for key in keys:
            if not isinstance(section, dict) or key not in section:
                raise ParityFileError(f"{self.path.with_suffix('.json')} lacks {name}.{key}.")
            if key not in ("layers", "ce") and misfit(section[key], float, key):
                raise ParityFileError(f"{self.path.with_suffix('.json')}: {name}.{key} must be a number.")
        return section

    def _check_config(self) -> None:
        """Raise ParityFileError for settings that no recording has; a size is a side of some recorded tensor."""
        largest = max((side for value in self.tensors.values() for side in value.shape), default=0)
        for key in SIZE_KEYS:
            if misfit(self.config[key], int, key) or not 1 <= self.config[key] <= largest:
                raise ParityFileError(f"{self.path}: config.{key} must be a whole number from 1 to {largest}, the "
                                      "largest side of a recorded tensor.")
        if self.config["patch_size"] < MIN_PATCH or self.config["patch_size"] % 2 == 0:
            raise ParityFileError(f"{self.path}: config.patch_size must be odd and at least {MIN_PATCH}.")
        if not all(0 < self.config[key] < math.inf for key in ("lr", "temperature")):
            raise ParityFileError(f"{self.path}: config.lr and config.temperature must be above 0 and finite.")
        if misfit(self.config["layers"], list[int], "layers") or not self.config["layers"]:
            raise ParityFileError(f"{self.path.with_suffix('.json')}: config.layers must be a list of layers.")

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A recorded tensor, its shape checked (-1: any size); whole numbers as int64, λ as float64, others float32."""
        if name not in self.tensors:
            raise ParityFileError(f"{self.path} lacks {name}.")
        value = self.tensors[name]
        if value.dtype not in (WHOLE if name.endswith(("/y", ".num_batches_tracked")) else FLOATS):
            raise ParityFileError(f"{self.path}: {name} holds {value.dtype}, which no such quantity is.")
        if shape is not None and (value.dim() != len(shape) or any(want not in (-1, have) for want, have in
                                                                   zip(shape, value.shape))):
            raise ParityFileError(f"{self.path}: {name} has shape {tuple(value.shape)}, its config says {tuple(shape)}.")
        if not value.is_floating_point():
            return value.long()
        return value.double() if name.endswith("/lambda") else value.float()

    def network(self, group: str, network: str, into: torch.nn.Module, kind: str) -> dict[str, Tensor]:
        """The tensors of one network under our names: every parameter of `into` ('gradient'; those that have none in
        exact arithmetic may be missing) or all its state ('state')."""
        wanted = dict(into.named_parameters()) if kind == "gradient" else into.state_dict()
        found = {}
        for ours, like in wanted.items():
            name = f"{group}/{_RELEASED_NAME[network](ours)}"
            optional = kind == "gradient" and no_gradient(ours, network, self.config["layers"])
            if name in self.tensors or not optional:
                found[ours] = self.get(name, tuple(like.shape))
        return found

    def batch(self, group: str) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and noise of a group."""
        n, bands, patch = self.config["batch"], self.config["n_bands"], self.config["patch_size"]
        x, y = self.get(f"{group}/x", (n, bands, patch, patch)), self.get(f"{group}/y", (n,))
        if y.min() < 0 or y.max() >= self.config["classes"]:
            raise ParityFileError(f"{self.path}: {group}/y has labels outside 0..{self.config['classes'] - 1}.")
        return x, y, self.get(f"{group}/noise", (6, n, 2))


def no_gradient(name: str, network: str, layers: list[int]) -> bool:
    """Parameters without a gradient in exact arithmetic: MMIRN's biases in front of an InstanceNorm and not tapped."""
    if network != "mmirn" or not name.endswith(".bias"):
        return False
    return "conv_block" in name or int(name.split(".")[1]) not in layers


def compared(name: str, value: Tensor, network: str, layers: list[int]) -> Tensor | None:
    """The part of a tensor that a gradient or weight comparison may use; None where nothing is left.

    Left out: `no_gradient`, counters and fixed filters; in the generators the β half of AdaIN's bias and the running
    mean of the BatchNorm after it.
    """
    if name.endswith(("num_batches_tracked", ".filt")) or no_gradient(name, network, layers):
        return None
    if network == "generator" and name.endswith("adain.0.fc.bias"):
        return value[:len(value) // 2]
    if network == "generator" and name.split(".", 1)[1] == "norm.running_mean":
        return None
    return value


def replay(path: Path) -> Iterator[Line]:
    """Replay a recording, of the data path or of training, with recipe `released` on the CPU in float32, one thread;
    yields a line per quantity.  What it holds says which kind it is."""
    path = Path(path)
    tensors, _ = read(path)
    yield from data_path.replay(path, tensors) if data_path.MARKS & tensors.keys() else _training(path)


def _training(path: Path) -> Iterator[Line]:
    recording = Recording(path)
    with torch.device("meta"):                  # takes no memory: the config's sizes need not be the tensors'
        _initial(recording, _unloaded(recording))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _forward(recording)
        yield from _gradients(recording)
        yield from _loop(recording)
    finally:
        torch.set_num_threads(threads)


def build(recording: Recording, *ablate: str) -> S2AMSnet:
    """S²AMSnet with the sizes and the initial weights of a recording; `ablate` names parts to leave out."""
    method = _unloaded(recording, *ablate)
    for network, state in _initial(recording, method).items():
        module = networks(method)[network]
        module.load_state_dict(module.state_dict() | state)
    return method.train()


def _initial(recording: Recording, method: S2AMSnet) -> dict[str, dict[str, Tensor]]:
    return {network: recording.network(f"init/{network}", network, module, "state")
            for network, module in networks(method).items()}


def _unloaded(recording: Recording, *ablate: str) -> S2AMSnet:
    c = recording.config
    settings = Settings(recipe="released", ablate=list(ablate), lr=c["lr"], temp=c["temperature"],
                        pro_dim=c["discriminator_channels"], GIN_ch=c["generator_channels"],
                        mmirn_filters=c["mmirn_filters"], contrast_layers=list(c["layers"]), backend="reference")
    resolve_switches(settings)
    return S2AMSnet(Task(c["n_bands"], c["classes"], c["patch_size"]), settings, Streams(0, torch.device("cpu")))


def networks(method: S2AMSnet) -> dict[str, torch.nn.Module]:
    """The networks by the recording's names, without MMIRN where it is ablated."""
    found = {"generator": method.generators, "discriminator": method.discriminator}
    return found | ({"mmirn": method.mmirn} if method.mmirn else {})


def _relative_max(ours: Tensor, recorded: Tensor) -> float:
    return _relative((ours - recorded).abs().max(), recorded.abs().max())


def _relative(difference: Tensor, scale: Tensor) -> float:
    """difference / scale; equal values differ by 0 also where the recorded one is 0 (MI of a batch of one)."""
    return 0.0 if difference == 0 else float(difference / scale)


def _forward(recording: Recording) -> Iterator[Line]:
    method, limit = build(recording), recording.limits["forward"]
    x, _, noise = recording.batch("forward")
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for i, (name, z) in enumerate(zip(method.names, noise.split(3)), 1):
            values[f"generated_{i}"] = method.generators[name](x, z)
        values["logits_train"] = method.discriminator(x)
        values["logits_eval"] = method.predict(x).clone()
        source = method.mmirn(x)
        values |= {f"mmirn_layer_{layer}": features for layer, features in method.mmirn.layer_outputs(x).items()}
        for i in (1, 2):
            features = method.mmirn(values[f"generated_{i}"])
            values[f"mi_loss_{i}"] = mutual_information(features, source, method.settings.temp, normalise=False)[None]
    for name, value in values.items():
        yield Line(f"forward {name}", _relative_max(value, recording.get(f"forward/{name}", tuple(value.shape))), limit)


def _gradients(recording: Recording) -> Iterator[Line]:
    """Those that training's own min step and max step leave behind, from the initial weights.

    The recipe weights each term by 1, so the max step with one term ablated leaves the gradient of the other.
    """
    x, y, noise = recording.batch("loop/0")
    lambdas = recording.get("loop/0/lambda", (2,)).tolist()
    whole, adversarial, semantic = build(recording), build(recording, "no_mmirn"), build(recording, "no_adversarial")
    whole.step_min(x, y, whole.generate(x, noise, lambdas))
    for method in (adversarial, semantic):
        method.step_max(x, method.generate(x, noise, lambdas))
    for name, method, network in (("min_discriminator", whole, "discriminator"),
                                  ("consistency_generator", adversarial, "generator"),
                                  ("mi_generator", semantic, "generator"),
                                  ("mi_mmirn", semantic, "mmirn")):
        module = networks(method)[network]
        ours = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}      # no optimiser changes them
        yield _gradient_line(recording, name, network, module, ours)


def _gradient_line(recording: Recording, name: str, network: str, module: torch.nn.Module,
                   ours: dict[str, Tensor]) -> Line:
    recorded = recording.network(f"gradient/{name}", network, module, "gradient")
    return Line(f"gradient {name}", _relative_norm(ours, recorded, recorded, network, recording),
                recording.limits["gradients"])


def _relative_norm(ours: dict[str, Tensor], recorded: dict[str, Tensor], scale: dict[str, Tensor], network: str,
                   recording: Recording) -> float:
    """‖ours − recorded‖ / ‖scale‖ over all compared tensors of a network."""
    difference, size = [], []
    for name in recorded:
        part = compared(name, recorded[name], network, recording.config["layers"])
        if part is not None:
            mine = ours.get(name, torch.zeros_like(recorded[name]))
            mine = compared(name, mine, network, recording.config["layers"])
            difference.append((mine - part).double().flatten())
            size.append(compared(name, scale[name], network, recording.config["layers"]).double().flatten())
    return _relative(torch.cat(difference).norm(), torch.cat(size).norm())


def _loop(recording: Recording) -> Iterator[Line]:
    method = build(recording)
    for i, recorded in enumerate(recording.losses):
        x, y, noise = recording.batch(f"loop/{i}")
        terms = method.step(x, y, noise, recording.get(f"loop/{i}/lambda", (2,)).tolist())
        terms["ce"] = [terms[f"ce_{name}"] for name in ("a", "b", "a_mix", "b_mix")]
        limit = recording.limits["later_losses" if i else "first_losses"]
        for key in LOSS_KEYS:
            difference = _relative_max(torch.tensor(terms[key], dtype=torch.float64),
                                       torch.tensor(recorded[key], dtype=torch.float64))
            yield Line(f"step {i} {key}", difference, limit)
    for network, module in networks(method).items():
        initial = recording.network(f"init/{network}", network, module, "state")
        final = recording.network(f"final/{network}", network, module, "state")
        moved = {name: final[name] - initial[name] for name in final}
        yield Line(f"final {network}", _relative_norm(module.state_dict(), final, moved, network, recording),
                   recording.limits[f"final_{network}"])
    bands, patch = recording.config["n_bands"], recording.config["patch_size"]
    logits = method.predict(recording.get("final/x", (-1, bands, patch, patch)))
    recorded = recording.get("final/logits_eval", tuple(logits.shape))
    yield Line("final logits", _relative_max(logits, recorded), recording.limits["final_logits"])

"""What every compared method has in common: the interface, evaluation, and the state a checkpoint keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from model import diagnostics
from model.discriminator import Discriminator
from model.graphs import CudaCapturer, FastStep, check_options, compile_networks, uncompiled
from model.seeding import Streams
from model.optimiser import Adam
from model.settings import Settings
from model.states import buffers_kept, reestimate_statistics, state_kept


@dataclass(frozen=True)
class Task:
    """The sizes that the data fix."""

    bands: int
    n_classes: int
    patch_size: int


class Method(nn.Module):
    """A compared method: owns its networks and optimisers.  Subclasses build both in __init__ and define `update`,
    which draws what is random and leaves the rest to a step (see `capturable`).

    update   x [N, B, P, P], y [N] -> named losses of one training step
    predict  x [N, B, P, P] -> logits [N, K], evaluation mode

    What a subclass says about itself:
    uses_target          training sees patches of the target without their labels: `draw_target`, number -> [N, B, P, P]
    needs_progress       what an update does depends on `progress`, the share of the run that is done
    fits_in_one_epoch    everything is learnt in one epoch, and fitted when `evaluating` begins
    supports_cuda_graph  the step is `capturable`: the option cuda_graph works
    supports_compile     the step calls its networks as they are, whole: the option compile works
    borrows_backbone     the losses of a paper, on S²AMSnet's backbone in place of the paper's network: tables say so
    own_settings         those that this method alone reads, METHOD_NAME; a run's label says which are not the default
    """

    uses_target = False
    needs_progress = False
    fits_in_one_epoch = False
    supports_cuda_graph = True
    supports_compile = False
    defined_by_recipe = False
    borrows_backbone = False
    own_settings: tuple[str, ...] = ()

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__()
        self.task, self.settings, self.streams = task, settings, streams
        with seeded_initialisation(streams):
            self.discriminator = self.build_classifier()
        self.progress = 0.0
        self.draw_target: Callable[[int], Tensor] | None = None
        self.averaged: nn.Module | None = None
        if settings.weight_averaging:
            self.averaged = copy.deepcopy(self.discriminator).requires_grad_(False)
            self.register_buffer("averaged_steps", torch.zeros((), dtype=torch.int64))
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.fast_step: FastStep | None = None            # with the options compile and cuda_graph

    def build_classifier(self) -> nn.Module:
        """The network that classifies, [N, B, P, P] -> logits [N, K]; `discriminator` from then on."""
        s = self.settings
        return Discriminator(self.task.bands, self.task.n_classes, self.task.patch_size, s.pro_dim,
                             kernel_activation=s.kernel_activation, backend=s.backend, precision=s.precision)

    @classmethod
    def label_note(cls, settings: Settings) -> str:
        """What a run's label says beside method, recipe, switches and ablations: `own_settings` that are not the
        default, as NAME=VALUE; empty = nothing."""
        return " ".join(f"{name.removeprefix(f'{settings.method}_')}={getattr(settings, name)}"
                        for name in cls.own_settings if getattr(settings, name) != getattr(Settings, name))

    @property
    def lr(self) -> float:
        """The learning rate, at the start where there is a schedule."""
        return self.settings.lr

    @property
    def device(self) -> torch.device:
        return self.streams.noise.device

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        self.eval()
        with torch.inference_mode(), uncompiled():
            return self.discriminator(x)

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        """What the method makes of source patches, for figures: name -> [N, B, P, P]; empty where it makes nothing."""
        return {}

    def diagnostics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """What training looks like from inside, on source patches x [N, B, P, P], y [N]; leaves every state as it is.

        ce_source: cross-entropy of the classifier in evaluation mode.  variance_ratio_<layer>: how well BatchNorm's
        running statistics fit clean patches (model/diagnostics.py).
        """
        found = diagnostics.of_classifier(self.discriminator, {"source": x}, y)
        with buffers_kept(self.discriminator):
            before = diagnostics.running_variances(self.discriminator)
            reestimate_statistics(self.discriminator, [(x, y)])
            found |= diagnostics.variance_ratios(before, diagnostics.running_variances(self.discriminator))
        return as_floats(found)

    def add_optimiser(self, name: str, *networks: nn.Module) -> Adam:
        """Adam over the networks' parameters (each once), kept under `name`."""
        parameters = dict.fromkeys(p for network in networks for p in network.parameters())
        lr = self.lr
        if self.settings.cuda_graph and self.settings.lr_schedule != "constant":
            lr = torch.tensor(lr, device=self.streams.noise.device)         # a captured step reads it at every replay
        self.optimisers[name] = Adam(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8,
                                     capturable=self.settings.cuda_graph,
                                     fused=True if self.device.type in Adam.FUSED else None)
        return self.optimisers[name]

    def begin_run(self) -> dict[str, str]:
        """Called once before a new run's first step, not where a run goes on or is applied: the place to read files that
        training starts from.  Returns file name -> SHA-256 of these, for run.json."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of epoch number 0, 1, ..."""

    def schedule(self, done: int, per_epoch: int, epochs: int) -> None:
        """Called before every step, `done` of per_epoch·epochs being done.  Sets `progress`, 0..1, and the learning
        rates: cosine lr·(1 + cos(π·progress))/2 from lr to 0 (Loshchilov & Hutter, ICLR 2017), or what they are."""
        self.progress = done / (per_epoch * epochs)
        if done % per_epoch == 0:
            self.begin_epoch(done // per_epoch)
        if self.settings.lr_schedule == "constant":
            return
        rate = self.lr * (1 + math.cos(math.pi * self.progress)) / 2
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def ensure_training(self) -> None:
        """Training mode.  To set it costs as much as many convolutions of small maps: done where it changes something."""
        if not all(part.training for part in self.parts):
            self.train()

    @cached_property
    def parts(self) -> list[nn.Module]:
        """This module and all those in it."""
        return list(self.modules())

    def average(self) -> None:
        """Move the averaged discriminator, running statistics included, towards the trained one (Polyak averaging, by
        exponential weights; the first steps, unlike the trained network, are forgotten sooner)."""
        if self.averaged is None:
            return
        self.averaged_steps += 1
        done = float(self.averaged_steps)
        keep = min(self.settings.weight_averaging, (1 + done) / (10 + done))
        own, trained, counts, values = self.averaged_pairs
        torch._foreach_lerp_(own, trained, 1 - keep)
        if counts:
            torch._foreach_copy_(counts, values)

    @cached_property
    def averaged_pairs(self) -> tuple[list[Tensor], ...]:
        """The averaged discriminator's floating-point tensors, the trained one's, and of both all others."""
        states = self.averaged.state_dict().values(), self.discriminator.state_dict().values()
        return tuple([value for value in state if value.is_floating_point() == wanted]
                     for wanted in (True, False) for state in states)

    @contextmanager
    def evaluating(self, clean: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Evaluation mode.  Inside, with weight_averaging the discriminator is the averaged one, and with
        batchnorm_statistics 'source' its BatchNorm statistics are those of the clean source batches; afterwards it is
        the trained one again."""
        with state_kept(self.discriminator):
            if self.averaged is not None:
                self.discriminator.load_state_dict(self.averaged.state_dict())
            if self.settings.batchnorm_statistics == "source":
                reestimate_statistics(self.discriminator, clean)
            self.eval()
            yield

    def training_state(self) -> dict[str, Any]:
        """Networks, optimisers and gradients: all that the next `update` depends on, but for the random streams.

        Gradients count since the released recipe accumulates MMIRN's over the whole training.
        """
        return {"networks": self.state_dict(),
                "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
                "gradients": {name: p.grad for name, p in self.named_parameters() if p.grad is not None}}

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state["networks"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            for group in optimiser.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"] = group["lr"].to(self.device)
        for name, parameter in self.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        if self.fast_step:
            self.fast_step.forget()


def capturable(step: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, float]]:
    """A method's training step, written as tensors -> named scalar tensors, as it is called: in training mode, with the
    options compile and cuda_graph (model/graphs.py), and with floats as its result.

    So that it can be captured, the step draws nothing at random and reads nothing from the device.
    """
    @wraps(step)
    def run(self: Method, *given: Tensor) -> dict[str, float]:
        self.ensure_training()
        if (self.settings.compile or self.settings.cuda_graph) and self.fast_step is None:
            self.fast_step = prepare(self, partial(step, self))
        found = as_floats(self.fast_step(*given) if self.fast_step else step(self, *given))
        self.average()
        return found
    return run


def prepare(method: Method, step: Callable[..., dict[str, Tensor]]) -> FastStep:
    """The step with the options that the settings ask for.  Raises ConfigError if they cannot work."""
    check_options(method.settings, method.device)
    if method.settings.compile:
        compile_networks(network for child in method.children()
                         for network in (child.children() if isinstance(child, nn.ModuleDict) else [child]))
    return FastStep(step, method.parameters(), CudaCapturer(method.device) if method.settings.cuda_graph else None)


@contextmanager
def seeded_initialisation(streams: Streams) -> Iterator[None]:
    """PyTorch's initialisers draw from the global generator; inside, it is seeded from the run's own stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(streams.initialisation.integers(2 ** 63)))
        yield


def as_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    """Named scalar tensors -> floats, with one transfer from the device."""
    values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
    return dict(zip(terms, values))

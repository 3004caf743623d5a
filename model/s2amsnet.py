"""S²AMSnet (Chen, Gao, Zhang, Chen, Yan, IEEE TGRS 62, 2024, doi 10.1109/TGRS.2024.3401231).

Two generators widen the source domain, MMIRN keeps the class semantics, the discriminator learns what stays the same.
Once per batch: generate, mix, min step (discriminator), max step (generators and MMIRN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model import diagnostics
from model.generator import NOISE_DIM, STAGES, Generator, IdentityGenerator
from model.graphs import uncompiled
from model.losses import (js_consistency, kl_consistency, mutual_information, mutual_information_sum,
                          released_consistency)
from model.methods.base import Method, Task, as_floats, capturable, seeded_initialisation
from model.mixing import draw_lambda, mix
from model.mmirn import MMIRN
from model.ops import resolve_backend
from model.seeding import Streams
from model.settings import Settings
from model.spectra import PROJECTIONS, PhysicalBranch, free_spectra
from model.states import buffers_kept, frozen, statistics_frozen, statistics_in_order

ONE_PASS = {False: 2 ** 21, True: 2 ** 26}      # on CUDA? -> most values of a layer of F for all domains together
CONSISTENCY = {"kl": kl_consistency, "released": released_consistency, "js": js_consistency}


class S2AMSnet(Method):
    """The paper's method.  Domains are named a, b, a_mix, b_mix; both steps visit them in this order."""

    supports_compile = True
    defined_by_recipe = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        cut = set(settings.ablate)
        self.names = ("a",) if "one_generator" in cut else ("a", "b")
        self.mixing, self.adversarial = "no_mixing" not in cut, "no_adversarial" not in cut
        self.noise_scale = 0.0 if "no_noise" in cut else 1.0
        self.joint = settings.batchnorm_batches == "joint"
        self.project = PROJECTIONS[settings.generated_spectra]
        third = settings.gain_branch > 0 or settings.admixture_branch > 0
        self.physical = PhysicalBranch(settings.gain_branch, settings.admixture_branch) if third else None
        self.consistency_term = CONSISTENCY[settings.consistency]
        self.pairs = self._consistency_pairs()
        with seeded_initialisation(streams):
            self.generators = torch.nn.ModuleDict({name: self._build_generator(name) for name in self.names})
            if settings.generators == "shared" and "b" in self.names:
                self.generators["b"] = self.generators["a"]
            self.mmirn = None if "no_mmirn" in cut else MMIRN(task.bands, settings.contrast_layers,
                                                              settings.mmirn_filters)
        self.min_optimiser = self.add_optimiser("discriminator", self.discriminator)
        trained = learns(self.generators)
        self.generator_optimiser = self.add_optimiser("generators", self.generators) if trained else None
        self.mmirn_optimiser = self.add_optimiser("mmirn", self.mmirn) if learns(self.mmirn) else None

    def _build_generator(self, name: str) -> Generator | IdentityGenerator:
        s, cut = self.settings, self.settings.ablate
        if "no_generators" in cut:
            return IdentityGenerator()
        split = s.generators == "split"
        return Generator(self.task.bands, s.GIN_ch,
                         spectral="no_spectral" not in cut and not (split and name == "b"),
                         spatial="no_spatial" not in cut and not (split and name == "a"),
                         kernel_activation=s.kernel_activation, norm=s.generator_norm, init=s.generator_init,
                         backend=s.backend, adain="no_adain" not in cut)

    def _consistency_pairs(self) -> list[tuple[str, str]]:
        """(augmented, mixed) domains that C compares.

        Without mixing the generated domains stand for the mixed ones; with one generator its own mixed domain does.
        """
        other = dict(zip(self.names, reversed(self.names)))
        suffix = "_mix" if self.mixing else ""
        return [(name, other[name] + suffix) for name in self.names if name != other[name] + suffix]

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_noise(x), self.draw_lambdas(len(x)), *self.draw_physics(x))

    @capturable
    def step(self, x: Tensor, y: Tensor, noise: Tensor, lambdas: Tensor | Sequence[float], *physics: Tensor
             ) -> dict[str, Tensor]:
        """One batch with given noise [generators·3, N, 2], λ per generator (and sample) and, where there is a physical
        branch, its draws per generator: the min step, then the max step."""
        domains = self.generate(x, noise, lambdas, *physics)
        terms = self.step_min(x, y, domains)
        terms |= self.step_max(x, domains)
        if self.settings.discriminator_steps == 2:
            self.min_optimiser.step()           # again, on the min step's gradients
        return terms

    def draw_noise(self, x: Tensor) -> Tensor:
        """z ~ N(0, I₂) per generator, stage and sample: [generators·3, N, 2]."""
        shape = (len(self.names) * STAGES, len(x), NOISE_DIM)
        noise = torch.randn(shape, generator=self.streams.noise, device=x.device)
        return noise if self.noise_scale == 1 else self.noise_scale * noise

    def draw_lambdas(self, n: int) -> Tensor:
        """λ ~ Beta(β, β) per generator, [generators], or per sample of n too, [generators, n]: float64, so that a
        batch's 1 − λ is exact before it meets the patches."""
        samples = n if self.settings.mixing_weights == "sample" else None
        return torch.tensor(np.array([draw_lambda(self.streams.mixing, self.settings.beta, samples)
                                      for _ in self.names]))

    def draw_physics(self, x: Tensor, rng: torch.Generator | None = None) -> list[Tensor]:
        """The physical branch's draws, stacked over the generators; nothing where there is no such branch."""
        if self.physical is None:
            return []
        drawn = [self.physical.draw(len(x), x.shape[1], rng or self.streams.gain) for _ in self.names]
        return [torch.stack(each) for each in zip(*drawn)]

    def generate(self, x: Tensor, noise: Tensor, lambdas: Tensor | Sequence[float], *physics: Tensor
                 ) -> dict[str, Tensor]:
        """The generated domains, then the mixed ones: name -> [N, B, P, P].  Without its draws the physical branch
        rests."""
        seen = [x] * len(self.names)
        if physics:
            seen = self.each(self.physical, seen, *physics)
        made = self.each(self.project, [self.generators[name](image, z)
                                        for name, image, z in zip(self.names, seen, noise.split(STAGES))])
        domains = dict(zip(self.names, made))
        if self.mixing:
            if isinstance(lambdas, Tensor) and lambdas.dim() > 1:
                lambdas = lambdas.to(x)
            mixed = self.each(self.project, [mix(image, x, lam) for image, lam in zip(made, lambdas)])
            domains |= zip((f"{name}_mix" for name in self.names), mixed)
        return domains

    def each(self, function: Callable[..., Tensor], *images: Sequence[Tensor]) -> Sequence[Tensor]:
        """A function that works patch by patch, on each of the images (a sequence, or stacked); where starting an operation
        costs more than a copy, on all of them as one batch."""
        if self.backend != "cupy" or function is free_spectra:
            return [function(*each) for each in zip(*images)]
        batches = (each.flatten(0, 1) if isinstance(each, Tensor) else torch.cat(each) for each in images)
        return function(*batches).chunk(len(images[0]))

    def step_min(self, x: Tensor, y: Tensor, domains: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update F on the detached domains: Σ CE(F(u), y) + C."""
        images = domains | ({"source": x} if self.settings.source_ce == "on" else {})
        self.min_optimiser.zero_grad(set_to_none=True)
        found: dict[str, Tensor] = {}
        losses = []
        for group in self.coupled_passes(images):
            terms = self.min_terms(y, group)
            losses.append(self.min_loss(terms))
            losses[-1].backward()
            add_terms(found, terms)
        self.min_optimiser.step()
        terms = {name: found[name] for name in (*(f"ce_{name}" for name in images), "consistency_min") if name in found}
        return terms | {"loss_min": losses[0].detach() if len(losses) == 1 else self.min_loss(terms)}

    def min_terms(self, y: Tensor, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """The min step's terms before weights: ce_<domain> each, consistency_min = C; absent where ablated."""
        logits = self.classify({name: image.detach() for name, image in images.items()})
        if self.backend == "cupy":                          # with fewer operations
            each = functional.cross_entropy(torch.cat(list(logits.values())), y.repeat(len(logits)), reduction="none")
            terms = dict(zip((f"ce_{name}" for name in logits), each.view(len(logits), -1).mean(1)))
        else:
            terms = {f"ce_{name}": functional.cross_entropy(z, y) for name, z in logits.items()}
        consistency = self.consistency(logits)
        return terms if consistency is None else terms | {"consistency_min": consistency}

    def min_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """L_min = Σ CE + consistency_weight·C; the source's CE, where it is there, times source_weight."""
        weights = {"consistency_min": self.settings.consistency_weight, "ce_source": self.settings.source_weight}
        first, *others = (weights[name] * term if weights.get(name, 1.0) != 1 else term for name, term in terms.items())
        return sum(others, first)

    def step_max(self, x: Tensor, domains: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update G and M through the frozen F: −C + Σ MI(x, x̂), each with its weights.

        Each term goes back to the domains by itself, and what it kept is freed; then the generators go back once.
        Without a generator that learns there is nothing to do.
        """
        if self.generator_optimiser is None:
            return {"loss_max": self.max_loss({})}
        self.generator_optimiser.zero_grad(set_to_none=True)
        if self.mmirn_optimiser and self.settings.mmirn_gradients == "zeroed":
            self.mmirn_optimiser.zero_grad(set_to_none=True)
        leaves = {name: domain.detach().requires_grad_() for name, domain in domains.items()}
        found: dict[str, Tensor] = {}
        for group in self.coupled_passes(leaves) if self.adversarial else ():
            self.descend(self.adversarial_terms(group), found)
        self.descend(self.semantic_terms(x, leaves), found)
        if found:                               # not where both terms are ablated
            reached = [name for name in domains if leaves[name].grad is not None]
            torch.autograd.backward([domains[name] for name in reached], [leaves[name].grad for name in reached])
            self.generator_optimiser.step()
            if self.mmirn_optimiser:
                self.mmirn_optimiser.step()
        return found | {"loss_max": self.max_loss(found)}

    def descend(self, terms: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """Gradients of the max step's loss over these terms; the terms are added to those found."""
        if terms:
            self.max_loss(terms).backward()
            add_terms(found, terms)

    def adversarial_terms(self, domains: dict[str, Tensor]) -> dict[str, Tensor]:
        """The max step's consistency_max = C through the frozen F, before its weight; absent where no pair is there."""
        with frozen(self.discriminator), statistics_frozen(self.discriminator) if self.joint else nullcontext():
            consistency = self.consistency(self.classify(domains))
        return {} if consistency is None else {"consistency_max": consistency}

    def semantic_terms(self, x: Tensor, domains: dict[str, Tensor]) -> dict[str, Tensor]:
        """The max step's mi = Σ MI(x, x̂), x encoded once, before its weight; absent where ablated."""
        if not self.mmirn:
            return {}
        normalise = self.settings.contrast_features == "normalised"
        if self.plain:
            source = self.mmirn(x)
            return {"mi": sum(mutual_information(self.mmirn(domains[name]), source, self.settings.temp, normalise)
                              for name in self.names)}
        together = self.mmirn(torch.cat([x, *(domains[name] for name in self.names)]), compact=True)
        views = [features.unflatten(0, (1 + len(self.names), len(x))) for features in together]
        return {"mi": mutual_information_sum(views, self.settings.temp, normalise)}

    def max_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """L_max = −consistency_weight·adversarial_weight·C + mi_weight·MI over the terms that are there."""
        s = self.settings
        signed = {"consistency_max": -s.consistency_weight * s.adversarial_weight, "mi": s.mi_weight}
        if not terms:
            return torch.zeros((), device=self.device)
        first, *others = (signed[name] * term if signed[name] != 1 else term for name, term in terms.items())
        return sum(others, first)

    def consistency(self, logits: dict[str, Tensor]) -> Tensor | None:
        """C = D(F(x̂_a) ‖ F(x̂_b^mix)) + D(F(x̂_b) ‖ F(x̂_a^mix)), over the pairs that are there; None if none is."""
        pairs = [(logits[augmented], logits[mixed]) for augmented, mixed in self.pairs if augmented in logits]
        if len(pairs) > 1 and self.backend == "cupy":       # one batch, whose mean is that of theirs
            return len(pairs) * self.consistency_term(*map(torch.cat, zip(*pairs)))
        terms = [self.consistency_term(*pair) for pair in pairs]
        return sum(terms[1:], terms[0]) if terms else None

    def classify(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """F's logits [N, K] of every image; with batchnorm_batches 'joint' in one batch that shares statistics."""
        if not (self.joint or self.in_one_pass(images)):
            return {name: self.discriminator(image) for name, image in images.items()}
        logits = self.discriminator(torch.cat(list(images.values())), 1 if self.joint else len(images))
        return dict(zip(images, logits.chunk(len(images))))

    def in_one_pass(self, images: dict[str, Tensor]) -> bool:
        """Whether images of this size go through F as one batch: all domains' together are small enough."""
        n, _, height, width = next(iter(images.values())).shape
        pixels = 2 * len(self.names) * n * height * width
        return not self.plain and pixels * self.settings.pro_dim <= ONE_PASS[self.device.type == "cuda"]

    @property
    def plain(self) -> bool:
        """Whether the backend is the reference, which follows the equations to the letter."""
        return self.backend == "reference"

    @property
    def backend(self) -> str:
        return resolve_backend(self.settings.backend, self.device)

    def coupled_passes(self, images: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The images in groups that the loss couples through C.

        A group can go forward and backward before the next one comes, which is exact and keeps half the activations.
        BatchNorm's running statistics come out as if all passes had been made in the images' order.  All images make one
        group where they go through F as one batch, and with the reference backend.
        """
        if self.plain or self.joint or self.in_one_pass(images):
            groups = [list(images)]
        else:
            pairs = {pair for one in self.pairs for pair in (one, one[::-1])} | {(name, name) for name in images}
            groups = list(dict.fromkeys(tuple(other for other in images if (name, other) in pairs) for name in images))
        order = [list(images).index(name) for group in groups for name in group]
        with statistics_in_order(self.discriminator, order):
            for group in groups:
                yield {name: images[name] for name in group}

    def diagnostics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """The classifier's (see Method), on the generated domains too; and gradients on the generators and distance of
        the generated domains from x (model/diagnostics.py), with fixed draws and λ = ½."""
        with buffers_kept(self), uncompiled():
            self.train()
            physics = self.draw_physics(x, torch.Generator(x.device).manual_seed(0))
            domains = self.generate(x, self.fixed_noise(len(x)), [0.5] * len(self.names), *physics)
            gradients = self.gradients_on(domains, x) if learns(self.generators) else {}
            found = diagnostics.gradient_norms(domains, gradients, list(self.generators.parameters()))
        found |= diagnostics.distances(x, {name: domains[name] for name in self.names})
        found |= diagnostics.of_classifier(self.discriminator, {n: image.detach() for n, image in domains.items()}, y)
        return super().diagnostics(x, y) | as_floats(found)

    def fixed_noise(self, n: int) -> Tensor:
        """The same z [generators·3, N, 2] at every call, scaled as the drawn ones."""
        noise = torch.randn((len(self.names) * STAGES, n, NOISE_DIM), generator=torch.Generator().manual_seed(0))
        return self.noise_scale * noise.to(self.device)

    def gradients_on(self, domains: dict[str, Tensor], x: Tensor) -> dict[str, dict[str, Tensor]]:
        """Gradients of the max step's terms, before their weights, on the domains: term -> domain -> [N, B, P, P].

        Term by term and group by group, as in the max step, so that no more memory is needed than there.
        """
        leaves, found = {name: domain.detach().requires_grad_() for name, domain in domains.items()}, {}

        def collect(terms: dict[str, Tensor], images: dict[str, Tensor]) -> None:
            for term, value in terms.items():
                gradients = torch.autograd.grad(value, list(images.values()), allow_unused=True)
                found.setdefault(term, {}).update({n: g for n, g in zip(images, gradients) if g is not None})

        for group in self.coupled_passes(leaves) if self.adversarial else ():
            collect(self.adversarial_terms(group), group)
        collect(self.semantic_terms(x, leaves), leaves)
        return found

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), uncompiled():
            domains = self.generate(x, self.draw_noise(x), [0.5] * len(self.names), *self.draw_physics(x))
        return {name.replace("_mix", " mixed") if "_mix" in name else f"generated {name}": domain
                for name, domain in domains.items()}


def learns(network: torch.nn.Module | None) -> bool:
    """Whether a network has anything to train (MMIRN has not with layer 0 alone)."""
    return network is not None and any(True for _ in network.parameters())


def add_terms(found: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add each term's value to those of its name found so far."""
    for name, term in terms.items():
        found[name] = found[name] + term.detach() if name in found else term.detach()

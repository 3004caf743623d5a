"""PDEN: generators take turns, each widening the domains that those before it made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import AdaIN
from model.methods.base import Task, as_floats, seeded_initialisation
from model.methods.expanding import NOISE_DIM, TEMPERATURE, ExpandingMethod, start_at_unit_spectra
from model.mixing import mix
from model.seeding import Streams
from model.settings import Settings

GENERATORS = 20           # K, and the weights below: the authors' script for digits
ADVERSARIAL_WEIGHT = 0.1
DIVERSITY_WEIGHT = 2.0
DIVERSITY_LIMIT = 0.5     # mean difference of two draws beyond which diversity is no longer rewarded
CYCLE_WEIGHT = 20.0


class PDEN(ExpandingMethod):
    """PDEN (Li, Gao, Cao, Huang, Weng, Mi, Yu, Li, Xia, CVPR 2021, "Progressive Domain Expansion Network for Single
    Domain Generalization").

    K generators G_1 ... G_K of one structure take turns, each for one K-th of the run.  In turn k, z ~ N(0, I):

    classifier    Σ_{u ∈ {x, x_old, x_mix, G_k(x, z)}} CE(F(u), y) + InfoNCE, in which the views of one patch attract;
                  x_old = G_j(x, z'), j < k at random (in the first turn there is none), and
                  x_mix = s·x_old + (1 − s)·x, s ~ U(0, 1) per sample
    G_k           CE(F(G_k(x, z)), y) + 0.1·L_adv − 2·L_div + 20·L_cyc
                  L_adv = −mean log(1 − p), p InfoNCE's probability of the right partner, between G_k(x, z) and one of
                  the views x, x_old, x_mix at random: the generator leaves what the classifier finds alike
                  L_div = mean min(|G_k(x, z) − G_k(x, z'')|, 0.5), L_cyc = |x − G'_k(G_k(x, z))|², means over entries

    The equations are written down from memory of the paper; K, the weights and the view x_mix are those of the authors'
    released script for digits.  Changed: the backbone, and the projection of its features is one linear layer; F learns
    with the generators from the start (there it is first trained alone) and G_k learns through its whole turn (there F
    alone in the second half); the layers of the generators are all of width GIN_ch (there 16, 32, 64), and their output
    starts at the level of unit spectra.  The weights were chosen for images in (0, 1), which the sigmoid at the end
    gives; unit spectra are smaller numbers, so that L_div and L_cyc weigh less here.
    Which generator is in turn depends on where the run is, and the step is not captured.
    """

    needs_progress = True
    supports_cuda_graph = False

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.generators = nn.ModuleList(ConvGenerator(task.bands, settings.GIN_ch) for _ in range(GENERATORS))
            self.cycles = nn.ModuleList(ConvGenerator(task.bands, settings.GIN_ch) for _ in range(GENERATORS))
        self.generator_optimiser = self.add_optimiser("generators", self.generators, self.cycles)

    @property
    def turn(self) -> int:
        """The number of the generator in turn, 0 .. K − 1."""
        return min(int(self.progress * GENERATORS), GENERATORS - 1)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        self.train()
        turn = self.turn
        known = self.known_domains(x, turn)
        generated, again = (self.generate(x, turn) for _ in range(2))
        partner = list(known.values())[self.streams.mixing.integers(len(known))]
        terms = self.step_classifier(known | {"generated": generated}, y, torch.arange(len(y), device=y.device))
        terms = dict(ce_known=sum(terms.pop(f"ce_{name}") for name in known), **terms)      # in every turn by this name
        terms |= self.step_generator(x, y, turn, generated, again, partner)
        self.average()
        return as_floats(terms)

    def generate(self, x: Tensor, number: int) -> Tensor:
        """G_number(x, z) with a new z: [N, B, P, P]."""
        return self.generators[number](x, torch.randn(len(x), NOISE_DIM, generator=self.streams.noise, device=x.device))

    def known_domains(self, x: Tensor, turn: int) -> dict[str, Tensor]:
        """The source, and from the second turn on a domain of an earlier turn and one between the two."""
        if turn == 0:
            return {"source": x}
        with torch.no_grad():
            old = self.generate(x, int(self.streams.mixing.integers(turn)))
        share = torch.rand(len(x), generator=self.streams.noise, device=x.device)
        return {"source": x, "old": old, "mixed": mix(old, x, share)}

    def step_generator(self, x: Tensor, y: Tensor, turn: int, generated: Tensor, again: Tensor, partner: Tensor
                       ) -> dict[str, Tensor]:
        """Update G_k and G'_k alone, from two draws of G_k and a view of a known domain, each [N, B, P, P]."""
        logits, projected = self.see_frozen({"generated": generated, "partner": partner})
        terms = {"ce": functional.cross_entropy(logits["generated"], y),
                 "adversarial": adversarial_contrast(projected["generated"], projected["partner"], TEMPERATURE),
                 "diversity": diversity(generated, again, DIVERSITY_LIMIT),
                 "cycle": functional.mse_loss(self.cycles[turn](generated), x)}
        loss = (terms["ce"] + ADVERSARIAL_WEIGHT * terms["adversarial"] - DIVERSITY_WEIGHT * terms["diversity"]
                + CYCLE_WEIGHT * terms["cycle"])
        self.generator_optimiser.zero_grad(set_to_none=True)       # of all: Adam leaves those without gradient alone
        loss.backward()
        self.generator_optimiser.step()
        return {f"generator_{name}": term for name, term in terms.items()} | {"loss_generator": loss}

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        """Of the first, the middle and the last generator."""
        with torch.no_grad():
            return {f"generator {k + 1}": self.generate(x, k) for k in (0, GENERATORS // 2 - 1, GENERATORS - 1)}


class ConvGenerator(nn.Module):
    """conv3×3 B -> c, ReLU, conv3×3, ReLU, AdaIN(z), conv3×3, ReLU, conv3×3 c -> B, sigmoid; without z no AdaIN.

    x [N, B, P, P], z [N, 10] -> [N, B, P, P] in (0, 1).
    """

    def __init__(self, bands: int, channels: int):
        super().__init__()
        conv = [nn.Conv2d(c_in, c_out, 3, padding=1) for c_in, c_out in
                zip((bands, channels, channels, channels), (channels, channels, channels, bands))]
        self.encoder = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU())
        self.adain = AdaIN(channels, NOISE_DIM)
        self.decoder = nn.Sequential(conv[2], nn.ReLU(), conv[3], nn.Sigmoid())
        start_at_unit_spectra(conv[3])

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = self.encoder(x)
        return self.decoder(h if z is None else self.adain(h, z))


def adversarial_contrast(z: Tensor, z_prime: Tensor, temperature: float) -> Tensor:
    """−log(1 − p_i), mean over the 2N views; p_i = exp(s(i, i')/τ) / Σ_{k≠i} exp(s(i, k)/τ), i' the partner of view i
    and s the cosine: small where partners are no more alike than strangers.  z, z' [N, D] -> scalar (nats).

    From two log-sum-exps, with and without the partner, so that p near 1 keeps its gradient.  0 for N = 1, where there
    is no stranger.
    """
    n = len(z)
    if n == 1:
        return (0 * z).sum()
    views = functional.normalize(torch.cat([z, z_prime]), dim=1)                              # [2N, D]
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    others = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    strangers = others.masked_fill(itself.roll(n, 1), -torch.inf)
    return (others.logsumexp(1) - strangers.logsumexp(1)).mean()


def diversity(one: Tensor, other: Tensor, limit: float) -> Tensor:
    """Mean absolute difference of two draws [N, B, P, P], per sample at most `limit`: -> scalar, mean over samples."""
    return (one - other).abs().mean((1, 2, 3)).clamp(max=limit).mean()

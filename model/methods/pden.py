"""PDEN: generators take turns, each widening the domains that those before it made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import AdaIN
from model.methods.base import Task, as_floats, seeded_initialisation
from model.methods.expanding import FLOOR, NOISE_DIM, TEMPERATURE, ExpandingMethod, start_at_unit_spectra
from model.mixing import mix
from model.seeding import Streams
from model.settings import Settings

GENERATORS = 20           # K; this and the weights below are the authors'
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

    Checked against the authors' code (lileicv/PDEN: main_my_iter.py, con_losses.py, network; run_my.sh, for digits).
    As there: K, all weights and views, one linear projection, 1e-6 inside the logarithms of both contrasts, the learning
    rate (1e-4, a tenth of lr: pden_lr_factor), and that G_k sees F after F's step.  Different here: the backbone; L_adv
    is −log of (1 − p) with 1e-6 in sum and remainder, where there another 1e-6 is taken off, which can leave a negative
    number to the logarithm; G_k's whole pass comes after F's step (there the forward half comes before); F learns with
    the generators from the start (there it is first trained alone) and G_k learns through its whole turn (there F alone
    in the second half); the layers of the generators are all of width GIN_ch (there 16, 32, 64), and their output
    starts at the level of unit spectra.  The weights were chosen for images in (0, 1), which the sigmoid at the end
    gives; unit spectra are smaller numbers, so that L_div and L_cyc weigh less here.
    Which generator is in turn depends on where the run is, and the step is not captured.
    """

    needs_progress = True
    supports_cuda_graph = False
    own_settings = ("pden_lr_factor",)

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.generators = nn.ModuleList(ConvGenerator(task.bands, settings.GIN_ch) for _ in range(GENERATORS))
            self.cycles = nn.ModuleList(ConvGenerator(task.bands, settings.GIN_ch) for _ in range(GENERATORS))
        self.generator_optimiser = self.add_optimiser("generators", self.generators, self.cycles)

    @property
    def lr(self) -> float:
        return self.settings.lr * self.settings.pden_lr_factor

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
                 "adversarial": adversarial_contrast(projected["generated"], projected["partner"], TEMPERATURE, FLOOR),
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


def adversarial_contrast(z: Tensor, z_prime: Tensor, temperature: float, floor: float) -> Tensor:
    """−log(1 − p_i), mean over the 2N views; p_i = e_ii' / (Σ_{k≠i} e_ik + ε), e = exp((s − 1)/τ), i' the partner of
    view i, s the cosine: small where partners are no more alike than strangers.  z, z' [N, D] -> scalar (nats).

    1 − p_i = (Σ_{k≠i,i'} e_ik + ε) / (Σ_{k≠i} e_ik + ε) from two sums, with and without the partner, so that p near 1
    keeps its gradient; the floor ε keeps it above 0.
    """
    n = len(z)
    views = functional.normalize(torch.cat([z, z_prime]), dim=1)                              # [2N, D]
    others = ~torch.eye(2 * n, dtype=torch.bool, device=z.device)
    strangers = others & others.roll(n, 1)
    e = ((views @ views.T - 1) / temperature).exp()
    return (((e * others).sum(1) + floor).log() - ((e * strangers).sum(1) + floor).log()).mean()


def diversity(one: Tensor, other: Tensor, limit: float) -> Tensor:
    """Mean absolute difference of two draws [N, B, P, P], per sample at most `limit`: -> scalar, mean over samples."""
    return (one - other).abs().mean((1, 2, 3)).clamp(max=limit).mean()

"""L2D (Wang, Luo, Qiu, Huang, Baktashmotlagh, ICCV 2021): a style network that is taught to make what is new."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.methods.alignment import class_mmd, one_hot
from model.methods.base import Method, Task, capturable, seeded_initialisation
from model.methods.contrast import supervised_contrast
from model.seeding import Streams
from model.settings import Settings
from model.spectra import unit_spectra
from model.states import frozen, statistics_frozen

KERNELS = (3, 5)          # of the spatial branches; the paper's 5, 9, 13, 17 are for images of 224 pixels
KEPT = 0.4                # share of x itself in x̂ (released code, from memory; so are the four below)
TEMPERATURE = 0.07        # of the supervised contrast
CONTRAST_WEIGHT = 1.0     # α₁
LIKELIHOOD_WEIGHT = 1.0   # α₂
CLUB_WEIGHT = 0.1         # β


class L2D(Method):
    """Learning to diversify for single domain generalization (Wang et al., ICCV 2021).

    z, ẑ are the classifier's features of x and of the restyled x̂ = T(x), q(z|x̂) = N(μ(ẑ), diag σ²(ẑ)) is a small
    network.
    min step   over F, q   CE(x) + CE(x̂), as one batch, + α₁ supervised contrast(z, ẑ) − α₂ log q(z|x̂)
    max step   over T      MMD(z, ẑ | y) + β·CLUB(z; ẑ),   F and q as they are then
    The min step raises lower bounds of the information that z and ẑ share; the max step lowers an upper one,
    CLUB = E log q(z|x̂) − E E' log q(z'|x̂) (Cheng et al., ICML 2020), and the MMD keeps each class in place.

    From memory of the paper and its released code.  Different here: z is the classifier's feature and no draw from
    N(μ, σ²), so that the classifier is every method's; CLUB has all pairs z' and not one each; spectra of unit norm
    take the place of images in [0, 1]; the MMD's kernels have one bandwidth for all classes; T's random weights are
    divided by their norm and not by their sum, which can vanish; T is without dropout and without its noise of learnt
    strength; Adam stands for SGD.  The max step leaves BatchNorm's running statistics as they are.
    """

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.restyle = StyleNetwork(task.bands, task.patch_size)
            self.variational = Gaussian(settings.pro_dim)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator, self.variational)
        self.style_optimiser = self.add_optimiser("style", self.restyle)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, *self.restyle.draw(self.streams.noise))

    @capturable
    def step(self, x: Tensor, y: Tensor, *filters: Tensor) -> dict[str, Tensor]:
        """One batch with random filters: the min step on what they make, the max step on what fixed ones make."""
        return self.step_min(x, y, filters) | self.step_max(x, y)

    def step_min(self, x: Tensor, y: Tensor, filters: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Update F and q."""
        with torch.no_grad():
            made = self.restyle(x, *filters)
        source, restyled = self.features(x, made)
        terms = {"ce": functional.cross_entropy(self.discriminator.head(torch.cat([source, restyled])), y.repeat(2)),
                 "contrast": supervised_contrast(torch.stack([source, restyled], 1), y, TEMPERATURE),
                 "likelihood": log_likelihood(*self.variational(restyled), source)}
        loss = terms["ce"] + CONTRAST_WEIGHT * terms["contrast"] - LIKELIHOOD_WEIGHT * terms["likelihood"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return terms

    def step_max(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Update T through the frozen F and q."""
        with frozen(self.discriminator), frozen(self.variational), statistics_frozen(self.discriminator):
            source, restyled = self.features(x, self.restyle(x, *self.restyle.fixed()))
            terms = {"mmd": conditional_mmd(source, restyled, y, self.task.n_classes),
                     "club": club(*self.variational(restyled), source)}
        self.style_optimiser.zero_grad(set_to_none=True)
        (terms["mmd"] + CLUB_WEIGHT * terms["club"]).backward()
        self.style_optimiser.step()
        return terms

    def features(self, x: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """z and ẑ, from one batch: [N, d] each."""
        return self.discriminator.features(torch.cat([x, made])).chunk(2)

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"restyled": self.restyle(x, *self.restyle.draw(self.streams.noise))}


class StyleNetwork(nn.Module):
    """T: random convolutions, in whose smaller images (one per kernel size) every pixel of every band has a learnt
    scale s and shift t.  x and x̂ are [N, B, P, P].

    x̂ = unit(0.4 x + 0.6 unit(sigmoid(Σ_i w_i tanh(b_i)))),   b₀ = conv1×1(x),   b_i = convᵀ_i(s_i⊙IN(conv_i(x)) + t_i)

    Convolutions and w are drawn for each batch, or are the `fixed` ones of the start, which serve to learn s, t.
    """

    def __init__(self, bands: int, patch_size: int):
        super().__init__()
        self.bands, self.kernels = bands, sorted({min(k, patch_size - 1) for k in KERNELS})   # no image of one pixel
        sides = [patch_size - k + 1 for k in self.kernels]
        self.scale = nn.ParameterList(1 + 0.1 * torch.randn(bands, side, side) for side in sides)
        self.shift = nn.ParameterList(0.1 * torch.randn(bands, side, side) for side in sides)
        weights, *filters = self.draw()
        self.register_buffer("weights", torch.full_like(weights, len(weights) ** -0.5))
        for i, each in enumerate(filters):
            self.register_buffer(f"filter_{i}", each)

    def draw(self, rng: torch.Generator | None = None) -> list[Tensor]:
        """w of norm 1, then the filters: conv1×1, and conv and convᵀ per kernel size, [B, B, k, k], each as PyTorch
        initialises convolutions, U(±1/√fan_in).  Without a generator from PyTorch's own, on the CPU."""
        device = rng.device if rng else torch.device("cpu")
        weights = torch.randn(1 + len(self.kernels), generator=rng, device=device)
        sizes = [1] + [k for k in self.kernels for _ in ("down", "up")]
        filters = [(2 * torch.rand(self.bands, self.bands, k, k, generator=rng, device=device) - 1)
                   / math.sqrt(self.bands * k * k) for k in sizes]
        return [weights / weights.norm(), *filters]

    def fixed(self) -> list[Tensor]:
        """Equal weights and the filters drawn at the start."""
        return [self.weights, *(getattr(self, f"filter_{i}") for i in range(1 + 2 * len(self.kernels)))]

    def forward(self, x: Tensor, weights: Tensor, spectral: Tensor, *spatial: Tensor) -> Tensor:
        h = math.sqrt(self.bands) * x                                           # unit spectra: about 1 in every band
        branches = [functional.conv2d(h, spectral)]
        for scale, shift, down, up in zip(self.scale, self.shift, spatial[::2], spatial[1::2]):
            small = scale * functional.instance_norm(functional.conv2d(h, down)) + shift
            branches.append(functional.conv_transpose2d(small, up))
        restyled = sum(w * branch.tanh() for w, branch in zip(weights, branches)).sigmoid()
        return unit_spectra(KEPT * x + (1 - KEPT) * unit_spectra(restyled))


class Gaussian(nn.Module):
    """q: features [N, d] -> mean and log variance [N, d] each; the variance is at least 1, so that no likelihood runs
    away."""

    def __init__(self, width: int):
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU())
        self.log_variance = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(z), self.log_variance(z)


def log_likelihood(mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
    """−(z − μ)²/σ² − log σ², mean over samples and dimensions, [N, D] each -> scalar: twice the logarithm of the normal
    density per dimension, but for a constant."""
    return -((z - mean).square() / log_variance.exp() + log_variance).mean()


def club(mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
    """CLUB (Cheng et al., ICML 2020), 1/N Σ_i (log q_i(z_i) − 1/N Σ_j log q_i(z_j)) with q_i = N(μ_i, diag σ_i²).
    [N, D] each -> scalar (nats).

    An upper bound of the mutual information where q is the true conditional density.  Σ_j (z_j − μ_i)²/N is
    (z̄ − μ_i)² plus the variance of z, so that no pairs are needed.
    """
    variance, centre = torch.var_mean(z, dim=0, correction=0)
    excess = (centre - mean).square() + variance - (z - mean).square()          # over the matching z
    return (excess / log_variance.exp()).sum(1).mean() / 2


def conditional_mmd(z: Tensor, z_prime: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Squared maximum mean discrepancy between z and z' [N, D] within each class of y [N], mean over the classes that
    the batch has -> scalar; the kernels are those of model/alignment.py."""
    member = one_hot(y, n_classes).to(z.dtype)
    share = member / member.sum(0).clamp_min(1)                                       # a class's sum to 1, or are 0
    return class_mmd(z, z_prime, share, share) / member.any(0).sum()

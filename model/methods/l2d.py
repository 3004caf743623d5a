"""L2D (Wang, Luo, Qiu, Huang, Baktashmotlagh, ICCV 2021): a style network that is taught to make what is new."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.discriminator import Discriminator
from model.methods.alignment import class_mmd, one_hot
from model.methods.base import Method, Task, capturable, seeded_initialisation
from model.methods.contrast import supervised_contrast
from model.seeding import Streams
from model.settings import Settings
from model.spectra import unit_spectra
from model.states import frozen, statistics_frozen

KERNELS = (5, 9, 13, 17)  # of the spatial branches; this and all below are the authors'
KEPT = 0.4                # share of x itself in x̂
DRAWN = 0.2               # share of its standard deviation by which z is drawn about its mean
DROPPED = 0.2             # share of the spectral branch's values, in the min step
NOISE = 0.01              # times the learnt strength: standard deviation of the noise on what T sees
TEMPERATURE = 0.07        # of the supervised contrast
CONTRAST_WEIGHT = 1.0     # α₁
LIKELIHOOD_WEIGHT = 1.0   # α₂
CLUB_WEIGHT = 0.1         # β


class L2D(Method):
    """Learning to diversify for single domain generalization (Wang et al., ICCV 2021).

    The classifier works on an embedding, z = μ(f(x)) + 0.2 σ(f(x)) ε with ε ~ N(0, I), at test time z = μ(f(x)); ẑ is
    that of the restyled x̂ = T(x).  q(ẑ|x) = N(μ(f(x)), diag σ²(f(x))).
    min step   over F    CE(x) + CE(x̂), as one batch, + α₁ supervised contrast(z, ẑ) − α₂ log q(ẑ|x)
    max step   over T    MMD(z, ẑ | y) + β·CLUB(ẑ; x),   F as it is then
    The min step raises lower bounds of the information that z and ẑ share; the max step lowers an upper one,
    CLUB = E log q(ẑ|x) − E E' log q(ẑ'|x) (Cheng et al., ICML 2020), and the MMD keeps each class in place.

    Checked against the authors' code (BUserName/Learning_to_diversify: train.py, models, utils/util.py).  As there: the
    embedding behind the backbone and the head on it, all terms and weights, both steps and what each changes, T's
    branches, biases, input noise and dropout.  Different here: the backbone, and the embedding is as wide as it; CLUB
    has all pairs, not one ẑ' each; the MMD is a mean over the classes that the batch has, with kernels of one bandwidth
    for all; spectra of unit norm take the place of images in [0, 1], which there are standardised before x is added;
    T's weights are divided by their norm and not by their sum, which can vanish, and are 1/√n in the max step (there
    1/n); T's first convolutions have no bias, which the norm behind them takes out; Adam at one rate stands for SGD at
    two.  The max step leaves BatchNorm's running statistics as they are.
    """

    borrows_backbone = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.restyle = StyleNetwork(task.bands, task.patch_size)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)
        self.style_optimiser = self.add_optimiser("style", self.restyle)

    def build_classifier(self) -> EmbeddingDiscriminator:
        s = self.settings
        return EmbeddingDiscriminator(self.task.bands, self.task.n_classes, self.task.patch_size, s.pro_dim,
                                      kernel_activation=s.kernel_activation, backend=s.backend, precision=s.precision)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        rng = self.streams.noise
        noise = torch.randn(2, *x.shape, generator=rng, device=x.device)
        draws = torch.randn(2, 2 * len(x), self.settings.pro_dim, generator=rng, device=x.device)
        return self.step(x, y, noise, draws, self.draw_kept(x), *self.restyle.draw(rng))

    def draw_kept(self, x: Tensor) -> Tensor:
        """Dropout's factors, 0 or 1/(1 − p), like x."""
        return (torch.rand(x.shape, generator=self.streams.noise, device=x.device) >= DROPPED) / (1 - DROPPED)

    @capturable
    def step(self, x: Tensor, y: Tensor, noise: Tensor, draws: Tensor, kept: Tensor, *filters: Tensor
             ) -> dict[str, Tensor]:
        """One batch, the min step on what random filters make, the max step on what fixed ones make; T's noise
        [2, N, B, P, P] and the embedding's ε [2, 2N, d] of both, and the dropout [N, B, P, P] of the first."""
        return self.step_min(x, y, noise[0], draws[0], kept, filters) | self.step_max(x, y, noise[1], draws[1])

    def step_min(self, x: Tensor, y: Tensor, noise: Tensor, draws: Tensor, kept: Tensor, filters: tuple[Tensor, ...]
                 ) -> dict[str, Tensor]:
        """Update F."""
        with torch.no_grad():
            made = self.restyle(x, noise, kept, *filters)
        source, restyled, mean, log_variance = self.embed(x, made, draws)
        terms = {"ce": functional.cross_entropy(self.discriminator.head(torch.cat([source, restyled])), y.repeat(2)),
                 "contrast": supervised_contrast(torch.stack([source, restyled], 1), y, TEMPERATURE),
                 "likelihood": log_likelihood(mean, log_variance, restyled)}
        loss = terms["ce"] + CONTRAST_WEIGHT * terms["contrast"] - LIKELIHOOD_WEIGHT * terms["likelihood"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return terms

    def step_max(self, x: Tensor, y: Tensor, noise: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """Update T through the frozen F."""
        with frozen(self.discriminator), statistics_frozen(self.discriminator):
            made = self.restyle(x, noise, None, *self.restyle.fixed())
            source, restyled, mean, log_variance = self.embed(x, made, draws)
            terms = {"mmd": conditional_mmd(source, restyled, y, self.task.n_classes),
                     "club": club(mean, log_variance, restyled)}
        self.style_optimiser.zero_grad(set_to_none=True)
        (terms["mmd"] + CLUB_WEIGHT * terms["club"]).backward()
        self.style_optimiser.step()
        return terms

    def embed(self, x: Tensor, made: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From one batch with ε [2N, d]: z, ẑ, and mean and log variance of q(ẑ|x), [N, d] each."""
        mean, log_variance = self.discriminator.distribution(torch.cat([x, made]))
        z = mean + DRAWN * (log_variance / 2).exp() * draws
        return *z.chunk(2), mean[:len(x)], log_variance[:len(x)]

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        rng = self.streams.noise
        with torch.no_grad():
            noise = torch.randn(x.shape, generator=rng, device=x.device)
            return {"restyled": self.restyle(x, noise, self.draw_kept(x), *self.restyle.draw(rng))}


class EmbeddingDiscriminator(Discriminator):
    """The discriminator with a normal distribution between its features and its head: μ = LeakyReLU(Linear(f)) and
    log σ² = ReLU(Linear(f)), so that no variance is below 1.  `features` is μ; the head takes that or a draw."""

    scannable = True

    def __init__(self, bands: int, n_classes: int, patch_size: int, channels: int = 128, **options: str):
        super().__init__(bands, n_classes, patch_size, channels, **options)
        self.mean = nn.Sequential(nn.Linear(channels, channels), nn.LeakyReLU())
        self.log_variance = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, B, P, P] -> mean and log variance [N, d] each."""
        h = super().features(x)
        return self.mean(h), self.log_variance(h)

    def features(self, x: Tensor, domains: int = 1) -> Tensor:
        return self.mean(super().features(x, domains))

    def last_layers(self) -> list[nn.Linear]:
        return [self.mean[0], self.head]


class StyleNetwork(nn.Module):
    """T: random convolutions, in whose smaller images (one per kernel size) every pixel of every band has a learnt
    scale s and shift t.  x and x̂ are [N, B, P, P].

    x̂ = unit(0.4 x + 0.6 unit(sigmoid(Σ_i w_i tanh(b_i)))),   b₀ = conv1×1(h),   b_i = convᵀ_i(s_i⊙IN(conv_i(h)) + t_i)

    h is x, scaled to about 1 in every band, plus noise of learnt strength.  Convolutions and w are drawn for each
    batch, or are the `fixed` ones of the start, which serve to learn s, t and the strength.
    """

    def __init__(self, bands: int, patch_size: int):
        super().__init__()
        self.bands = bands
        self.kernels = [k for k in KERNELS if k < patch_size] or [patch_size - 1]        # no image of one pixel
        sides = [patch_size - k + 1 for k in self.kernels]
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.scale = nn.ParameterList(1 + 0.1 * torch.randn(bands, side, side) for side in sides)
        self.shift = nn.ParameterList(0.1 * torch.randn(bands, side, side) for side in sides)
        weights, *filters = self.draw()
        self.register_buffer("weights", torch.full_like(weights, len(weights) ** -0.5))
        self.n_filters = len(filters)
        for i, each in enumerate(filters):
            self.register_buffer(f"filter_{i}", each)

    def draw(self, rng: torch.Generator | None = None) -> list[Tensor]:
        """w of norm 1, then conv1×1 [B, B, 1, 1] and its bias [B], and per kernel size conv, convᵀ [B, B, k, k] and the
        latter's bias [B], each as PyTorch initialises convolutions, U(±1/√fan_in).  Without a generator from PyTorch's
        own, on the CPU."""
        device = rng.device if rng else torch.device("cpu")
        weights = torch.randn(1 + len(self.kernels), generator=rng, device=device)
        b = self.bands
        shapes = [(1, (b, b, 1, 1)), (1, (b,))]
        shapes += [(k, shape) for k in self.kernels for shape in ((b, b, k, k), (b, b, k, k), (b,))]
        filters = [(2 * torch.rand(shape, generator=rng, device=device) - 1) / math.sqrt(b * k * k)
                   for k, shape in shapes]
        return [weights / weights.norm(), *filters]

    def fixed(self) -> list[Tensor]:
        """Equal weights and the filters drawn at the start."""
        return [self.weights, *(getattr(self, f"filter_{i}") for i in range(self.n_filters))]

    def forward(self, x: Tensor, noise: Tensor, kept: Tensor | None, weights: Tensor, spectral: Tensor, bias: Tensor,
                *spatial: Tensor) -> Tensor:
        """noise ~ N(0, 1) and dropout's factors (None = without) like x; w and filters as `draw` gives them."""
        h = math.sqrt(self.bands) * x + NOISE * self.noise_strength * noise     # unit spectra: about 1 in every band
        first = functional.conv2d(h, spectral, bias)
        branches = [first if kept is None else first * kept]
        for scale, shift, down, up, bias in zip(self.scale, self.shift, spatial[::3], spatial[1::3], spatial[2::3]):
            small = scale * functional.instance_norm(functional.conv2d(h, down)) + shift
            branches.append(functional.conv_transpose2d(small, up, bias))
        restyled = sum(w * branch.tanh() for w, branch in zip(weights, branches)).sigmoid()
        return unit_spectra(KEPT * x + (1 - KEPT) * unit_spectra(restyled))


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

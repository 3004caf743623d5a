"""SDEnet: a generator that randomises spatial and spectral styles, with morphology, against a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import EPSILON, AdaIN
from model.methods.base import Task, capturable, seeded_initialisation
from model.methods.expanding import NOISE_DIM, TEMPERATURE, ExpandingMethod, start_at_unit_spectra
from model.mixing import mix
from model.seeding import Streams
from model.settings import Settings

SPATIAL_CHANNELS = 3      # of the map whose spatial statistics are randomised (authors' code)
KERNEL = 3                # side of the structuring elements (authors' code)
MORPHOLOGY_MAPS = 4


class SDEnet(ExpandingMethod):
    """SDEnet (Zhang, Li, Sun, Tao, Du, IEEE TIP 32, 2023, "Single-Source Domain Expansion Network for Cross-Scene
    Hyperspectral Image Classification").

    One generator G makes two extended domains x_e = G(x; z, π) and x_g = G(x; z', π') with noise z and a shuffle π of
    the batch; the intermediate domain is x_i = λ x_e + (1 − λ) x, λ ~ U(0, 1) per sample.

    classifier    Σ_{u ∈ {x, x_e, x_i, x_g}} CE(F(u), y) + L_con, supervised contrast over the four views (τ = 0.07)
    generator     CE(F(x_g), y) + L_adv.  L_adv, class by class: supervised contrast among the source's patches (one
                  kind) and the generated ones (the other) of that class, mean over the classes, so that the generated
                  features leave the source's, as far as CE lets them

    All terms weigh 1, as in the authors' settings.  The structure of G (see `StyleGenerator`) and the losses are
    written down from memory of the paper and from what the authors' code does.  Changed: the backbone, and the
    projection is one linear layer; the width of G is GIN_ch (there 64), its output starts at the level of unit spectra,
    the share of a sample's own statistics stays in 0..1, and structuring elements start flat.  The generator's step
    sees the classifier after that one's step, and leaves no gradient on it.  L_adv always compares the source with x_g;
    the authors' code takes x_e or x_i in its place in two of three steps, and then has no gradient for G.
    """

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.generator = StyleGenerator(task.bands, settings.GIN_ch, task.patch_size)
        self.generator_optimiser = self.add_optimiser("generator", self.generator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, *self.draw(x))

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For two calls of the generator z [2, N, 10] and shuffles [2, N]; the mixing's λ [N]."""
        rng, n, device = self.streams.noise, len(x), x.device
        z = torch.randn(2, n, NOISE_DIM, generator=rng, device=device)
        shuffles = torch.stack([torch.randperm(n, generator=rng, device=device) for _ in range(2)])
        return z, shuffles, torch.rand(n, generator=rng, device=device)

    @capturable
    def step(self, x: Tensor, y: Tensor, z: Tensor, shuffles: Tensor, share: Tensor) -> dict[str, Tensor]:
        """One batch with given draws: the classifier's step, then the generator's."""
        with torch.no_grad():
            extended = self.generator(x, z[0], shuffles[0])
        generated = self.generator(x, z[1], shuffles[1])
        views = {"source": x, "extended": extended, "mixed": mix(extended, x, share), "generated": generated}
        return self.step_classifier(views, y, y) | self.step_generator(x, y, generated)

    def step_generator(self, x: Tensor, y: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """Update the generator alone: CE + class-wise adversarial contrast."""
        logits, projected = self.see_frozen({"source": x, "generated": generated})
        terms = {"generator_ce": functional.cross_entropy(logits["generated"], y),
                 "generator_adversarial": domain_contrast(projected["source"].detach(), projected["generated"], y,
                                                          TEMPERATURE)}
        loss = sum(terms.values())
        self.generator_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimiser.step()
        return terms | {"loss_generator": loss}

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        z, shuffles, share = self.draw(x)
        with torch.no_grad():
            extended = self.generator(x, z[0], shuffles[0])
        return {"extended": extended, "intermediate": mix(extended, x, share)}


class StyleGenerator(nn.Module):
    """Spatial and spectral randomised encoder–decoder with a morphology branch.

    spatial      conv1×1 B -> 3, ReLU; each sample's mean and variance over the pixels are mixed with those of another
                 one, π(i); conv1×1 3 -> c
    spectral     conv P×P B -> c, ReLU: one value per channel; standardised over the channels, it is replaced by that of
                 sample π(i), without gradient for it, and gets the own mean and variance back; transposed conv P×P
    morphology   `Morphology`, then AdaIN(z)
    decoder      of all three side by side: conv3×3 -> c, ReLU, conv3×3 -> B, sigmoid

    x [N, B, P, P], z [N, 10], shuffle π [N] -> [N, B, P, P] in (0, 1).
    """

    def __init__(self, bands: int, channels: int, patch_size: int):
        super().__init__()
        self.spatial_in = nn.Conv2d(bands, SPATIAL_CHANNELS, 1)
        self.own_style = nn.Parameter(torch.zeros(()))         # its sigmoid, ½ at first, is the own statistics' share
        self.spatial_out = nn.Conv2d(SPATIAL_CHANNELS, channels, 1)
        self.spectral_in = nn.Conv2d(bands, channels, patch_size)
        self.spectral_out = nn.ConvTranspose2d(channels, channels, patch_size)
        self.morphology = Morphology(bands)
        self.adain = AdaIN(MORPHOLOGY_MAPS, NOISE_DIM)
        self.decoder = nn.Sequential(nn.Conv2d(2 * channels + MORPHOLOGY_MAPS, channels, 3, padding=1), nn.ReLU(),
                                     nn.Conv2d(channels, bands, 3, padding=1), nn.Sigmoid())
        start_at_unit_spectra(self.decoder[2])

    def forward(self, x: Tensor, z: Tensor, shuffle: Tensor) -> Tensor:
        spatial = mix_styles(functional.relu(self.spatial_in(x)), shuffle, self.own_style.sigmoid())
        spectral = swap_contents(functional.relu(self.spectral_in(x)), shuffle)
        branches = [self.spatial_out(spatial), self.spectral_out(spectral), self.adain(self.morphology(x), z)]
        return self.decoder(torch.cat(branches, dim=1))


class Morphology(nn.Module):
    """conv1×1 B -> 1, ReLU; then top-hat, black-hat, opening and closing of this map, with learnt structuring elements
    (flat at first): [N, B, P, P] -> [N, 4, P, P]."""

    def __init__(self, bands: int):
        super().__init__()
        self.conv = nn.Conv2d(bands, 1, 1)
        self.opening, self.closing = (nn.Parameter(torch.zeros(2, 1, KERNEL, KERNEL)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.conv(x))
        opened = dilate(erode(h, self.opening[0]), self.opening[1])
        closed = erode(dilate(h, self.closing[0]), self.closing[1])
        return torch.cat([h - opened, closed - h, opened, closed], dim=1)


def dilate(h: Tensor, element: Tensor) -> Tensor:
    """max_{u,v} h(i+u, j+v) + w(u, v), the edge repeated beyond it: [N, C, H, W], w [C, k, k] -> [N, C, H, W]."""
    n, c, height, width = h.shape
    k = element.shape[-1]
    windows = functional.unfold(functional.pad(h, (k // 2,) * 4, mode="replicate"), k)       # [N, C·k², H·W]
    return (windows.view(n, c, k * k, height, width) + element.view(c, k * k, 1, 1)).amax(2)


def erode(h: Tensor, element: Tensor) -> Tensor:
    """min_{u,v} h(i+u, j+v) − w(u, v): the dilation of −h, negated."""
    return -dilate(-h, element)


def mix_styles(h: Tensor, shuffle: Tensor, own: Tensor) -> Tensor:
    """Give each sample and channel the mean and variance own·(its own) + (1 − own)·(that of sample shuffle[i]).

    h [N, C, H, W], shuffle [N], own a scalar in 0..1 -> [N, C, H, W].
    """
    variance, mean = torch.var_mean(h, (2, 3), correction=0, keepdim=True)
    content = (h - mean) / (variance + EPSILON).sqrt()
    mean, variance = (own * each + (1 - own) * each[shuffle] for each in (mean, variance))
    return content * (variance + EPSILON).sqrt() + mean


def swap_contents(h: Tensor, shuffle: Tensor) -> Tensor:
    """Keep each sample's mean and variance over the channels, take the rest from sample shuffle[i], without gradient
    for it.  h [N, C, 1, 1], shuffle [N] -> [N, C, 1, 1]."""
    variance, mean = torch.var_mean(h, 1, correction=0, keepdim=True)
    scale = (variance + EPSILON).sqrt()
    return ((h - mean) / scale).detach()[shuffle] * scale + mean


def domain_contrast(source: Tensor, generated: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Class by class, supervised contrast in which patches of the same domain attract: small where a class's generated
    features have left its source features.  source, generated [N, D], y [N] -> scalar (nats).

    Mean over a class's views, then over the classes with two patches or more; 0 where there is none.
    """
    n = len(y)
    views = functional.normalize(torch.cat([source, generated]), dim=1)                       # [2N, D]
    labels, domain = y.repeat(2), torch.arange(2 * n, device=y.device) < n
    itself = torch.eye(2 * n, dtype=torch.bool, device=y.device)
    same_class = labels[:, None] == labels
    seen = same_class & ~itself                                      # at least the patch's own other view
    log_p = (views @ views.T / temperature).masked_fill(~seen, -torch.inf).log_softmax(1).masked_fill(~seen, 0)
    positive = (seen & (domain[:, None] == domain)).to(log_p.dtype)
    count = positive.sum(1)
    per_view = -(positive * log_p).sum(1) / count.clamp_min(1)
    weight = (count > 0).to(log_p.dtype) / same_class.sum(1)         # sums to 1 over each class that counts
    return (weight * per_view).sum() / weight.sum().clamp_min(1)

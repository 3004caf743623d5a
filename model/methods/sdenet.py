"""SDEnet: a generator that randomises spatial and spectral styles, with morphology, against a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import EPSILON, AdaIN
from model.methods.base import Task, capturable, seeded_initialisation
from model.methods.contrast import log_shares
from model.methods.expanding import FLOOR, NOISE_DIM, TEMPERATURE, ExpandingMethod, start_at_unit_spectra
from model.mixing import mix
from model.seeding import Streams
from model.settings import Settings

COMPARED = 3              # views of which the authors' code compares one with the source, by chance
OWN_STYLE = 0.5           # share of a sample's own statistics
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

    All terms weigh 1.  Checked against the authors' code (YuxiangZhang-BIT/IEEE_TIP_SDEnet: train.py, con_losses.py,
    network).  As there: both losses from one pass, with 1e-6 inside the contrasts' logarithms; F's gradients are not
    zeroed between the two backward passes, so that F also goes down L_adv, and the CE of x_g twice; L_adv counts in one
    step of three, by chance (in the others it compares x with x_e or x_i, and has no gradient at all); one linear
    projection; the share of a sample's own statistics, which on a GPU is left out of what is learnt there, stays ½.
    Different here: the backbone; the generator's width is GIN_ch (there 64), its output starts at the level of unit
    spectra, its structuring elements start flat, and variances are over n (there n − 1); the views share one batch.
    """

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.generator = StyleGenerator(task.bands, settings.GIN_ch, task.patch_size)
        self.generator_optimiser = self.add_optimiser("generator", self.generator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, *self.draw(x))

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For two calls of the generator z [2, N, 10] and shuffles [2, N]; the mixing's λ [N]; whether L_adv counts, 0
        or 1."""
        rng, n, device = self.streams.noise, len(x), x.device
        z = torch.randn(2, n, NOISE_DIM, generator=rng, device=device)
        shuffles = torch.stack([torch.randperm(n, generator=rng, device=device) for _ in range(2)])
        share = torch.rand(n, generator=rng, device=device)
        counts = torch.randint(COMPARED, (), generator=rng, device=device) == 0
        return z, shuffles, share, counts.to(x.dtype)

    @capturable
    def step(self, x: Tensor, y: Tensor, z: Tensor, shuffles: Tensor, share: Tensor, counts: Tensor
             ) -> dict[str, Tensor]:
        """One batch with given draws: classifier and generator from one pass."""
        with torch.no_grad():
            extended = self.generator(x, z[0], shuffles[0])
        generated = self.generator(x, z[1], shuffles[1])
        logits, projected = self.see({"source": x, "extended": extended, "mixed": mix(extended, x, share),
                                      "generated": generated})
        terms = self.classifier_terms(logits, projected, y, y)
        adversarial = domain_contrast(projected["source"].detach(), projected["generated"], y, TEMPERATURE, FLOOR)
        losses = {"loss_classifier": sum(terms.values()),
                  "loss_generator": terms["ce_generated"] + counts * adversarial}
        self.classifier_optimiser.zero_grad(set_to_none=True)
        losses["loss_classifier"].backward(retain_graph=True)
        self.generator_optimiser.zero_grad(set_to_none=True)
        losses["loss_generator"].backward()                       # F's gradients of both are added
        self.classifier_optimiser.step()
        self.generator_optimiser.step()
        return terms | {"generator_adversarial": adversarial} | losses

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        z, shuffles, share, _ = self.draw(x)
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
        self.spatial_out = nn.Conv2d(SPATIAL_CHANNELS, channels, 1)
        self.spectral_in = nn.Conv2d(bands, channels, patch_size)
        self.spectral_out = nn.ConvTranspose2d(channels, channels, patch_size)
        self.morphology = Morphology(bands)
        self.adain = AdaIN(MORPHOLOGY_MAPS, NOISE_DIM)
        self.decoder = nn.Sequential(nn.Conv2d(2 * channels + MORPHOLOGY_MAPS, channels, 3, padding=1), nn.ReLU(),
                                     nn.Conv2d(channels, bands, 3, padding=1), nn.Sigmoid())
        start_at_unit_spectra(self.decoder[2])

    def forward(self, x: Tensor, z: Tensor, shuffle: Tensor) -> Tensor:
        spatial = mix_styles(functional.relu(self.spatial_in(x)), shuffle, OWN_STYLE)
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


def mix_styles(h: Tensor, shuffle: Tensor, own: float) -> Tensor:
    """Give each sample and channel the mean and variance own·(its own) + (1 − own)·(that of sample shuffle[i]).

    h [N, C, H, W], shuffle [N], own in 0..1 -> [N, C, H, W].
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


def domain_contrast(source: Tensor, generated: Tensor, y: Tensor, temperature: float, floor: float) -> Tensor:
    """Class by class, supervised contrast in which patches of the same domain attract: small where a class's generated
    features have left its source features.  source, generated [N, D], y [N] -> scalar (nats).

    Mean over a class's views, then over the classes; one of a single patch counts as 0.
    """
    n = len(y)
    views = torch.cat([source, generated])                                                    # [2N, D]
    labels, domain = y.repeat(2), torch.arange(2 * n, device=y.device) < n
    same_class = labels[:, None] == labels
    seen = same_class & ~torch.eye(2 * n, dtype=torch.bool, device=y.device)    # at least the patch's own other view
    log_p = log_shares(views, seen, temperature, floor)
    positive = (seen & (domain[:, None] == domain)).to(log_p.dtype)
    per_view = -(positive * log_p).sum(1) / positive.sum(1).clamp_min(1)
    weight = 1 / same_class.sum(1).to(log_p.dtype)                   # sums to 1 over each class
    return (weight * per_view).sum() / weight.sum()

"""SagNet (Nam, Lee, Park, Yoon, Yoo, CVPR 2021): a classifier that learns to look at content and away from style."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.layers import channel_statistics
from model.methods.base import Method, Task, capturable, seeded_initialisation
from model.seeding import Streams
from model.settings import Settings
from model.states import frozen

EARLY = 2                 # stages of the feature extractor G_f; the paper splits a ResNet behind stage 3 of 4
ADVERSARIAL_WEIGHT = 0.1  # λ_adv (section 4 of the paper)


class SagNet(Method):
    """Reducing domain gap by reducing style bias (Nam et al., CVPR 2021).

    Style is the mean μ and standard deviation σ of each channel over a patch's pixels, content what normalising leaves.
    G_f is the classifier's early stages, G_c its rest, G_s a second rest with weights of its own; z = G_f(x), z' the
    same of another patch of the batch, α ~ U(0, 1) per patch.

    SR(z, z') = (α σ(z) + (1−α) σ(z')) · (z − μ(z)) / σ(z) + α μ(z) + (1−α) μ(z')     style randomised
    CR(z, z') = σ(z) · (z' − μ(z')) / σ(z') + μ(z)                                    content randomised
    content      min over G_f, G_c   CE(G_c(SR(z, z')), y)
    style        min over G_s        CE(G_s(CR(z, z')), y)
    adversarial  min over G_f        λ_adv · −1/K Σ_k log softmax(G_s(CR(z, z')))_k

    At test time the classifier is G_c(G_f(x)).  Equations and details are from memory of the paper.  Different here:
    G_f takes one step per batch on the content and the adversarial gradient together, not two, since the weight λ_adv
    would mean nothing to an Adam step of its own; all of G_f follows the adversary, as in the paper's equation (its
    released code, as remembered, lets only the norms' affine parameters do so and clips that gradient).  The branch
    weights, which the classifier's stages share, count as G_f's and as G_c's.  The content z' of CR gives no gradient.
    """

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.style = self.build_classifier()
        self.style.stages = self.style.stages[EARLY:]            # its input is z from here on
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)
        self.style_optimiser = self.add_optimiser("style", self.style)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        rng = self.streams.noise
        partners = [torch.randperm(len(x), generator=rng, device=x.device) for _ in range(2)]
        return self.step(x, y, *partners, torch.rand(len(x), generator=rng, device=x.device))

    @capturable
    def step(self, x: Tensor, y: Tensor, style_partner: Tensor, content_partner: Tensor, share: Tensor
             ) -> dict[str, Tensor]:
        """One batch with the patches [N] whose style and whose content come in, and α [N]: first G_s, then the rest."""
        z = self.early(x)
        style = self.style_loss(z.detach(), y, content_partner)
        self.style_optimiser.zero_grad(set_to_none=True)
        style.backward()
        self.style_optimiser.step()
        content, adversary = self.content_loss(z, y, style_partner, share), self.adversarial_loss(z, content_partner)
        self.optimiser.zero_grad(set_to_none=True)
        (content + ADVERSARIAL_WEIGHT * adversary).backward()
        self.optimiser.step()
        return {"ce": content, "ce_style": style, "adversary": adversary}

    def early(self, x: Tensor) -> Tensor:
        """G_f: [N, B, P, P] -> [N, d, P, P]."""
        return self.discriminator.run_stages(x, self.discriminator.stages[:EARLY])

    def content_loss(self, z: Tensor, y: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        mixed = randomise_style(z, partner, share)
        h = self.discriminator.run_stages(mixed, self.discriminator.stages[EARLY:])
        return functional.cross_entropy(self.discriminator.read_out(h), y)

    def style_loss(self, z: Tensor, y: Tensor, partner: Tensor) -> Tensor:
        return functional.cross_entropy(self.style(randomise_content(z, partner)), y)

    def adversarial_loss(self, z: Tensor, partner: Tensor) -> Tensor:
        """Before its weight; G_s gets no gradient."""
        with frozen(self.style):
            return uniform_cross_entropy(self.style(randomise_content(z, partner)))


def randomise_style(z: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """SR: the content of each patch z [N, C, P, P] with `share` [N] of its own style and the rest of it from the style
    of patch number `partner` [N]."""
    mean, std = channel_statistics(z)
    own = share[:, None, None, None]
    return (own * std + (1 - own) * std[partner]) * (z - mean) / std + own * mean + (1 - own) * mean[partner]


def randomise_content(z: Tensor, partner: Tensor) -> Tensor:
    """CR: the style of each patch z [N, C, P, P] with the content of patch number `partner` [N]; a gradient goes to the
    style alone."""
    mean, std = channel_statistics(z)
    content = ((z - mean) / std)[partner].detach()
    return std * content + mean


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [N, K] with the uniform distribution, batch mean (nats): at least log K, which it is
    where all logits of a sample are the same."""
    return -logits.log_softmax(1).mean()

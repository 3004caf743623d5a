"""SagNet (Nam, Lee, Park, Yoon, Yoo, CVPR 2021): a classifier that learns to look at content and away from style."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import channel_statistics
from model.methods.base import Method, Task, capturable, seeded_initialisation
from model.seeding import Streams
from model.settings import Settings
from model.states import frozen

EARLY = {"norms": 1, "early": 2}    # stages of the feature extractor G_f: two come behind, as in the authors' ResNet
ADVERSARIAL_WEIGHT = 0.1            # λ_adv; this and the two below as in the authors' code
LARGEST_PULL = 0.1                  # norm that the adversarial gradient is clipped at
SMALLEST = 1e-5                     # added to a probability before its logarithm


class SagNet(Method):
    """Reducing domain gap by reducing style bias (Nam et al., CVPR 2021).

    Style is the mean μ and variance σ² of each channel over a patch's pixels, content what normalising leaves.  G_f is
    the classifier's first stage, G_c its rest, G_s a second rest with weights of its own; z = G_f(x), z' the same of
    another patch of the batch, α ~ U(0, 1) per patch.

    SR(z, z') = √(α σ²(z) + (1−α) σ²(z')) · (z − μ(z)) / σ(z) + α μ(z) + (1−α) μ(z')     style randomised
    CR(z, z') = σ(z) · (z' − μ(z')) / σ(z') + μ(z)                                       content randomised
    content      min over G_f, G_c           CE(G_c(SR(z, z')), y)
    style        min over G_s                CE(G_s(CR(z, z')), y)
    adversarial  min over the norms of G_f   λ_adv · −1/K Σ_k log(softmax(G_s(CR(z, z')))_k + 1e-5)

    At test time the classifier is G_c(G_f(x)).  The adversarial step has an optimiser of its own, changes only the
    scales and shifts of G_f's BatchNorms, and clips its gradient at a norm of 0.1.

    Checked against the authors' code (hyseob/SagNet: train.py, modules).  As there: all of this, two of the stages
    behind the randomisation, and that the content z' of CR gives no gradient.  Different here: three stages (there
    four and a stem), σ² over P² (there P² − 1), no dropout; the adversarial gradient is that of G_s after its step,
    where there the forward pass is the one before it; Adam stands for SGD, so that λ_adv and clipping weigh the
    adversarial steps against one another and not against the content's; the learning rate is constant (there cosine).

    sagnet_adversary 'early': the first version here, from the paper's equations alone.  G_f has two stages and takes
    one step per batch, on content and adversary together; σ is mixed in place of σ², and the logarithm has no floor.
    The branch weights, which the classifier's stages share, count as G_f's and as G_c's.
    """

    borrows_backbone = True
    own_settings = ("sagnet_adversary",)

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.apart = settings.sagnet_adversary == "norms"           # the adversary has a step of its own
        self.early_stages = EARLY[settings.sagnet_adversary]
        with seeded_initialisation(streams):
            self.style = self.build_classifier()
        self.style.stages = self.style.stages[self.early_stages:]            # its input is z from here on
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)
        self.style_optimiser = self.add_optimiser("style", self.style)
        if self.apart:
            self.norm_optimiser = self.add_optimiser("adversary", *self.early_norms())

    def early_norms(self) -> list[nn.BatchNorm2d]:
        """The BatchNorms of G_f."""
        return [module for module in self.discriminator.stages[:self.early_stages].modules()
                if isinstance(module, nn.BatchNorm2d)]

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
        if self.apart:
            self.step_apart(content, adversary)
        else:
            self.optimiser.zero_grad(set_to_none=True)
            (content + ADVERSARIAL_WEIGHT * adversary).backward()
            self.optimiser.step()
        return {"ce": content, "ce_style": style, "adversary": adversary}

    def step_apart(self, content: Tensor, adversary: Tensor) -> None:
        """Update the norms of G_f on the adversary, G_f and G_c on the content; both gradients are those of before."""
        parameters = self.norm_optimiser.param_groups[0]["params"]
        pulls = torch.autograd.grad(ADVERSARIAL_WEIGHT * adversary, parameters, retain_graph=True)
        self.optimiser.zero_grad(set_to_none=True)
        content.backward()
        self.optimiser.step()
        for parameter, pull in zip(parameters, pulls):
            parameter.grad = pull
        nn.utils.clip_grad_norm_(parameters, LARGEST_PULL)
        self.norm_optimiser.step()

    def early(self, x: Tensor) -> Tensor:
        """G_f: [N, B, P, P] -> [N, d, P, P]."""
        return self.discriminator.run_stages(x, self.discriminator.stages[:self.early_stages])

    def content_loss(self, z: Tensor, y: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        mixed = randomise_style(z, partner, share, of_variances=self.apart)
        h = self.discriminator.run_stages(mixed, self.discriminator.stages[self.early_stages:])
        return functional.cross_entropy(self.discriminator.read_out(h), y)

    def style_loss(self, z: Tensor, y: Tensor, partner: Tensor) -> Tensor:
        return functional.cross_entropy(self.style(randomise_content(z, partner)), y)

    def adversarial_loss(self, z: Tensor, partner: Tensor) -> Tensor:
        """Before its weight; G_s gets no gradient."""
        with frozen(self.style):
            return uniform_cross_entropy(self.style(randomise_content(z, partner)),
                                         SMALLEST if self.apart else 0.0)


def randomise_style(z: Tensor, partner: Tensor, share: Tensor, of_variances: bool = True) -> Tensor:
    """SR: the content of each patch z [N, C, P, P] with `share` [N] of its own style and the rest of it from the style
    of patch number `partner` [N]; the variances are mixed, or else the standard deviations."""
    mean, std = channel_statistics(z)
    own = share[:, None, None, None]
    if of_variances:
        mixed = (own * std.square() + (1 - own) * std[partner].square()).sqrt()
    else:
        mixed = own * std + (1 - own) * std[partner]
    return mixed * (z - mean) / std + own * mean + (1 - own) * mean[partner]


def randomise_content(z: Tensor, partner: Tensor) -> Tensor:
    """CR: the style of each patch z [N, C, P, P] with the content of patch number `partner` [N]; a gradient goes to the
    style alone."""
    mean, std = channel_statistics(z)
    content = ((z - mean) / std)[partner].detach()
    return std * content + mean


def uniform_cross_entropy(logits: Tensor, smallest: float) -> Tensor:
    """Cross-entropy of logits [N, K] with the uniform distribution, batch mean (nats), `smallest` added to every
    probability: least where all logits of a sample are the same, log K without that."""
    return -(logits.softmax(1) + smallest).log().mean() if smallest else -logits.log_softmax(1).mean()

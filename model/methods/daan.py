"""DAAN: adversarial adaptation to the unlabelled target, globally and class by class, weighed against each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.methods.alignment import ramp, reverse_gradient
from model.methods.base import Method, Task, capturable, seeded_initialisation
from model.seeding import Streams
from model.settings import Settings


class DomainDiscriminators(nn.Module):
    """One global and K class-wise domain discriminators: features [N, D], class shares [N, K] -> logits of 'target'
    [N, 1 + K].  The global one, which comes first, sees f, that of class k sees p_k(x)·f; three layers each."""

    def __init__(self, width: int, n_classes: int):
        super().__init__()
        self.each = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
            for _ in range(1 + n_classes))

    def forward(self, features: Tensor, shares: Tensor) -> Tensor:
        seen = [features, *(share[:, None] * features for share in shares.unbind(1))]
        return torch.cat([network(h) for network, h in zip(self.each, seen)], dim=1)


def domain_losses(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of the domains: logits of 'target' [N, 1 + K] of source and of target samples -> global
    loss, and class-wise losses summed over the classes; each a mean over the source samples plus one over the target
    samples (nats)."""
    terms = [functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
             for logits, label in ((source, 0.0), (target, 1.0))]
    each = sum(term.mean(0) for term in terms)
    return each[0], each[1:].sum()


def count_errors(source: Tensor, target: Tensor, source_shares: Tensor, target_shares: Tensor
                 ) -> tuple[Tensor, Tensor]:
    """Wrong decisions and all decisions of each domain discriminator, per domain: [2, 1 + K] twice.

    From the logits of 'target' [N, 1 + K] and class shares [N, K] of source and of target samples.  A sample counts
    once for the global discriminator and p_k times for that of class k.
    """
    counts = [torch.cat([torch.ones_like(shares[:, :1]), shares], dim=1) for shares in (source_shares, target_shares)]
    wrong = [(counts[0] * (source > 0)).sum(0), (counts[1] * (target <= 0)).sum(0)]
    return torch.stack(wrong), torch.stack([count.sum(0) for count in counts])


def dynamic_factor(wrong: Tensor, seen: Tensor) -> Tensor:
    """ω from `count_errors`: d_l / (d_g + d_l), of proxy A-distances d = 2(1 − 2 ε), ε the mean of both domains' error
    rates, d_l the mean over the classes.  Scalar from 0 (all global) to 1 (all local).

    A discriminator worse than chance tells nothing apart, so no d is negative; neither does one of a class that a
    domain lacks.  Where nothing is told apart, ω = ½.
    """
    rates = torch.where(seen > 0, wrong / seen.clamp_min(torch.finfo(seen.dtype).tiny), 0.5)
    rates = torch.where((seen > 0).all(0), rates.mean(0), 0.5)
    distances = (2 * (1 - 2 * rates)).clamp_min(0)
    global_distance, local_distance = distances[0], distances[1:].mean()
    total = global_distance + local_distance
    return torch.where(total > 0, local_distance / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)


class DAAN(Method):
    """DAAN (Yu, Wang, Chen, Huang, ICDM 2019, Transfer Learning with Dynamic Adversarial Adaptation Network).

    min over the domain discriminators, and by gradient reversal with scale λ(p) max over the features, of
    (1 − ω)·0.05 L_g + ω·0.01 L_l, beside CE; λ(p) = 2/(1 + exp(−10 p)) − 1 over the share p of training.
    L_g = BCE(D_g(f), domain), L_l = Σ_k BCE(D_k(p_k(x)·f), domain), each the mean over the source's samples plus that
    over the target's.
    ω = d_l / (d_g + d_l) at the beginning of each epoch, from the A-distances that the last one's errors stand for, and
    ½ in the first: the larger distance is the one worked at.

    Checked against the authors' code (jindongwang/transferlearning, code/deep/DAAN: train.py, model/DAAN.py).  As
    there: both losses and their weights (daan_global, daan_local), the reversal, and the p_k, which pass gradients on
    to the classifier that no reversal turns (daan_shares 'free').  Different here: ω is of error rates, for class k
    over samples in proportion to p_k, where there losses stand in place of errors, the global one after its weight; the
    backbone, without their bottleneck; domain discriminators of the features' width (there 1024) with one logit (there
    two), without dropout; Adam at one rate for all stands for SGD, which decays weights, falls with the epochs and is
    ten times slower in all but the last layer.  Source and target pass in one batch: BatchNorm's running statistics,
    which classify at test time, are then those that training used.
    """

    uses_target = True
    needs_progress = True
    borrows_backbone = True
    own_settings = ("daan_global", "daan_local", "daan_shares")

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.domains = DomainDiscriminators(settings.pro_dim, task.n_classes)
        self.register_buffer("omega", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("wrong", torch.zeros(2, 1 + task.n_classes, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(2, 1 + task.n_classes, dtype=torch.float64))
        self.optimiser = self.add_optimiser("networks", self.discriminator, self.domains)

    def begin_epoch(self, epoch: int) -> None:
        """ω from the errors of the epoch that is over (none before the first)."""
        self.omega.copy_(dynamic_factor(self.wrong, self.seen))
        self.wrong.zero_()
        self.seen.zero_()

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_target(len(x)), ramp(self.progress))

    @capturable
    def step(self, x: Tensor, y: Tensor, target: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """One batch of source patches x [N, B, P, P], y [N], and target patches [N, B, P, P]; scale λ(p)."""
        features = self.discriminator.features(torch.cat([x, target]))
        logits = self.discriminator.head(features)
        ce = functional.cross_entropy(logits[:len(x)], y)
        shares = logits.softmax(1) if self.settings.daan_shares == "free" else logits.detach().softmax(1)
        domain_logits = self.domains(reverse_gradient(features, scale), shares).split(len(x))
        global_loss, local_loss = domain_losses(*domain_logits)
        omega = self.omega.float()
        loss = (ce + (1 - omega) * self.settings.daan_global * global_loss
                + omega * self.settings.daan_local * local_loss)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.count(domain_logits, shares.split(len(x)))
        return {"loss": loss, "ce": ce, "domain_global": global_loss, "domain_local": local_loss, "omega": omega}

    def count(self, domain_logits: tuple[Tensor, ...], shares: tuple[Tensor, ...]) -> None:
        """Add a batch's errors to the epoch's."""
        with torch.no_grad():
            wrong, seen = count_errors(*domain_logits, *shares)
            self.wrong += wrong
            self.seen += seen

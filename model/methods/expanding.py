"""What PDEN and SDEnet share: a classifier that also projects its features, for a contrast between views of a patch, and
how their generators start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.methods.base import Method, Task, seeded_initialisation
from model.methods.contrast import supervised_contrast
from model.seeding import Streams
from model.settings import Settings
from model.states import frozen, statistics_frozen

NOISE_DIM = 10
TEMPERATURE = 0.07        # this and the floor are those of both authors' codes
FLOOR = 1e-6              # inside the logarithms of their contrasts (`log_shares`)


class ExpandingMethod(Method):
    """A classifier trained on several views of each patch: Σ CE + contrast of its projected features.

    The views of a step share one batch, so that BatchNorm treats them alike, in training as in evaluation.  The papers'
    classifiers have no BatchNorm.
    """

    borrows_backbone = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        with seeded_initialisation(streams):
            self.projection = nn.Linear(settings.pro_dim, settings.pro_dim)
        self.classifier_optimiser = self.add_optimiser("classifier", self.discriminator, self.projection)

    def see(self, views: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Views [N, B, P, P] by name, in one batch -> logits [N, K] and projected features [N, D] of each."""
        features = self.discriminator.features(torch.cat(list(views.values())))
        logits, projected = self.discriminator.head(features), self.projection(features)
        return dict(zip(views, logits.chunk(len(views)))), dict(zip(views, projected.chunk(len(views))))

    def see_frozen(self, views: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same for a step of the generator: no gradient for the classifier, its running statistics stay."""
        with frozen(self.discriminator), frozen(self.projection), statistics_frozen(self.discriminator):
            return self.see(views)

    def classifier_terms(self, logits: dict[str, Tensor], projected: dict[str, Tensor], y: Tensor, kinds: Tensor
                         ) -> dict[str, Tensor]:
        """The parts of the classifier's loss: CE of each view, and the contrast, in which patches of a kind [N]
        attract."""
        terms = {f"ce_{name}": functional.cross_entropy(each, y) for name, each in logits.items()}
        views = torch.stack(list(projected.values()), 1)
        return terms | {"contrast": supervised_contrast(views, kinds, TEMPERATURE, FLOOR)}

    def step_classifier(self, views: dict[str, Tensor], y: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """Update classifier and projection: Σ CE over the views + contrast, in which patches of a kind [N] attract."""
        terms = self.classifier_terms(*self.see({name: view.detach() for name, view in views.items()}), y, kinds)
        loss = sum(terms.values())
        self.classifier_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.classifier_optimiser.step()
        return terms | {"loss_classifier": loss}


def start_at_unit_spectra(last: nn.Conv2d) -> None:
    """Set the bias in front of a sigmoid so that the output starts at 1/√B, the level of a flat spectrum of unit norm,
    and not at ½, far from every patch.  A single band, for which that is 1 and out of reach, starts as two do."""
    level = torch.tensor(1 / max(last.out_channels, 2) ** 0.5)
    nn.init.constant_(last.bias, level.logit().item())

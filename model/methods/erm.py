"""Controls without generators: the same discriminator and augmentation, trained on the source alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.methods.base import Method, Task, capturable
from model.seeding import Streams
from model.settings import Settings
from model.spectra import apply_gain, draw_log_gain


class ERM(Method):
    """Empirical risk minimisation: cross-entropy of the augmented source patches, nothing else."""

    supports_compile = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def transform(self, x: Tensor) -> Tensor:
        return x

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(self.transform(x), y)

    @capturable
    def step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One batch of transformed patches."""
        loss = functional.cross_entropy(self.discriminator(x), y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"ce": loss}


class ERMGain(ERM):
    """ERM with a smooth random spectral gain per patch: what a cheap model of sensor and illumination does alone."""

    def transform(self, x: Tensor) -> Tensor:
        log_gain = self.settings.gain_strength * draw_log_gain(len(x), x.shape[1], self.streams.gain)
        return apply_gain(x, log_gain.exp())

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        return {"random gain": self.transform(x)}

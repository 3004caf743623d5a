"""Optional TensorBoard curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.errors import ConfigError
from utils.run.selection import source_scores

INSTALL = "pip install tensorboard==2.21.0"


class Curves:
    """Writes losses every `interval` steps and scores every epoch; does nothing where `folder` is None."""

    def __init__(self, folder: Path | None, interval: int):
        self.writer, self.interval = None, interval
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(f"--tensorboard needs the package tensorboard: {INSTALL}") from error
            self.writer = SummaryWriter(str(folder))

    def losses(self, losses: dict[str, float], step: int) -> None:
        if self.writer and step % self.interval == 0:
            for name, value in losses.items():
                self.writer.add_scalar(f"loss/{name}", value, step)

    def scores(self, record: dict[str, Any], step: int) -> None:
        if self.writer:
            for score in source_scores(record):
                for name in ("oa", "aa", "kappa"):
                    self.writer.add_scalar(f"{score.replace('_', '-')}/{name}", record[score][name], step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()

"""Controls without a network: a support vector machine and a random forest on the mean spectrum of each patch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from model.methods.base import Method, Task
from model.seeding import Streams
from model.settings import Settings

MOST = 20_000             # spectra that are kept; an SVM's time grows with their square
TUNING = 3_000            # of them, those of the grid search
FOLDS = 3
GRID = {"svc__C": [1.0, 10.0, 100.0, 1000.0], "svc__gamma": [0.1, 1.0, 10.0]}       # gamma: see `tuned`
TREES = 200
RAREST = 1e-6             # least probability of a class that was seen: a forest's own can be 0
ABSENT = -100.0           # logit of a class that was never seen, below those of all others


class PixelClassifier(nn.Module):
    """Collects spectra and fits a classifier of scikit-learn to them.  [N, B, P, P] -> logits [N, K].

    Its whole state are tensors: spectra [M, B], labels [M] and the seed of the fit.  From them a loaded one fits again,
    to the same result; so M may differ between a state and the module that takes it (`growing`).
    """

    growing = ("spectra", "labels")

    def __init__(self, bands: int, n_classes: int, seed: int):
        super().__init__()
        self.n_classes = n_classes
        self.register_buffer("spectra", torch.empty(0, bands))
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed))
        self.fitted: Any = None                   # None also where everything collected is of one class

    def collect(self, x: Tensor, y: Tensor) -> None:
        """Keep the patch-mean spectra of x [N, B, P, P], y [N]; beyond MOST none (the first ones of a shuffled epoch
        are a random sample of it)."""
        room = MOST - len(self.labels)
        if room > 0:
            self.spectra = torch.cat([self.spectra, x[:room].mean((2, 3))])
            self.labels = torch.cat([self.labels, y[:room]])
            self.fitted = None

    def fit(self) -> None:
        """Fit to what was collected, if that has not been done."""
        if self.fitted is None and len(self.labels.unique()) > 1:
            self.fitted = self.classifier(self.spectra.cpu().numpy(), self.labels.cpu().numpy(), int(self.seed))

    def classifier(self, spectra: np.ndarray, labels: np.ndarray, seed: int) -> Any:
        """A classifier fitted to spectra [M, B] and labels [M] of at least two classes."""
        raise NotImplementedError

    def scores(self, spectra: np.ndarray) -> np.ndarray:
        """[N, B] -> [N, number of collected classes], in the order of the classes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.fit()
        logits = torch.full((len(x), self.n_classes), ABSENT, device=x.device)
        seen = self.labels.unique()
        logits[:, seen] = 0.0 if self.fitted is None else \
            torch.from_numpy(self.scores(x.mean((2, 3)).cpu().numpy())).to(logits)
        return logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in (*self.growing, "seed"):
            value, buffer = state_dict.get(prefix + name), getattr(self, name)
            if value is None or torch.equal(value.to(buffer.device), buffer):
                continue                                        # what is fitted fits still
            self.fitted = None
            setattr(self, name, buffer.new_empty(value.shape[:1] + buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SVMClassifier(PixelClassifier):
    """Bands scaled to unit variance, an RBF kernel, one against one; the logits are the decision function."""

    def classifier(self, spectra: np.ndarray, labels: np.ndarray, seed: int) -> Any:
        return tuned(spectra[:TUNING], labels[:TUNING], seed).fit(spectra, labels)

    def scores(self, spectra: np.ndarray) -> np.ndarray:
        found = self.fitted.decision_function(spectra)
        return found if found.ndim == 2 else np.stack([-found, found], 1) / 2


def tuned(spectra: np.ndarray, labels: np.ndarray, seed: int) -> Any:
    """An SVM, not yet fitted, with the C and gamma that a grid search by cross-validation finds best on spectra [M, B]
    and labels [M]: C 1 to 1000, gamma 0.1 to 10 times one over the number of bands.

    Classes with fewer spectra than folds take no part; with fewer than two others, C is 100 and gamma one over the
    number of bands.
    """
    gammas = [factor / spectra.shape[1] for factor in GRID["svc__gamma"]]
    machine = make_pipeline(StandardScaler(), SVC(C=100.0, gamma=1 / spectra.shape[1], cache_size=500))
    classes, counts = np.unique(labels, return_counts=True)
    usable = np.isin(labels, classes[counts >= FOLDS])
    if len(np.unique(labels[usable])) < 2:
        return machine
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(machine, GRID | {"svc__gamma": gammas}, cv=folds, refit=False)
    search.fit(spectra[usable], labels[usable])
    return machine.set_params(**search.best_params_)


class ForestClassifier(PixelClassifier):
    """A random forest; the logits are log-probabilities."""

    def classifier(self, spectra: np.ndarray, labels: np.ndarray, seed: int) -> Any:
        return RandomForestClassifier(TREES, random_state=seed).fit(spectra, labels)

    def scores(self, spectra: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(self.fitted.predict_proba(spectra), RAREST))


class PixelMethod(Method):
    """Collects one augmented epoch of patch-mean spectra and fits to them when the run is evaluated.

    Recipe, learning rate, batch normalisation and weight averaging have no meaning here and no effect.
    """

    fits_in_one_epoch = True
    supports_cuda_graph = False
    classifier: type[PixelClassifier]

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.averaged = None

    def build_classifier(self) -> nn.Module:
        return self.classifier(self.task.bands, self.task.n_classes, int(self.streams.initialisation.integers(2 ** 31)))

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Collect; there is no loss."""
        self.train()
        self.discriminator.collect(x, y)
        return {}

    @contextmanager
    def evaluating(self, clean: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Evaluation mode, fitted to all that was collected."""
        self.discriminator.fit()
        self.eval()
        yield

    def diagnostics(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Nothing: there is no network to look into."""
        return {}


class SVM(PixelMethod):
    """Support vector machine (Cortes & Vapnik, Machine Learning 20, 1995) on patch-mean spectra, tuned on them."""

    classifier = SVMClassifier


class RandomForest(PixelMethod):
    """Random forest (Breiman, Machine Learning 45, 2001) on patch-mean spectra."""

    classifier = ForestClassifier

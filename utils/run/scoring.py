"""Scores of a run: under perturbations at every evaluation, when to stop early, and the end of a run, where the sealed
target is opened and every selection rule's weights are scored once (and inference is timed)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from datasets.perturb import VIEWS, ShiftedSource
from model.methods import Method
from utils.run.build import Data
from utils.run.checkpoint import load_discriminator
from utils.run.config import TrainConfig
from utils.run.folder import RunFolder
from utils.run.metrics import confusion_matrix, constant_answer, scores
from utils.run.predict import BATCH, confusion_of, patches_per_second
from utils.run.selection import ORACLE, SHIFTED_SOURCE, SOURCE_SCORES, source_scores
from utils.text import write_text

log = logging.getLogger(__name__)

SHOWN = ("oa", "aa", "kappa")     # of every view
CLEAN_PATCHES = 4096              # source patches for batchnorm_statistics 'source'


def clean_patches(config: TrainConfig, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Training pixels without augmentation, in batches, for Method.evaluating: (x [N, B, P, P], y [N])."""
    return data.train.in_order(config.batch_size, CLEAN_PATCHES)


def evaluate_source(method: Method, data: Data) -> dict[str, Any]:
    """Scores of SOURCE_SCORES: held-out source pixels as they are, and under every view; none where no pixel is held
    out.  The method must be in the state that is to be scored (Method.evaluating)."""
    if not data.val:
        return {}
    return {"source_val": scores(confusion_of(method, data.val, data.task.n_classes)).as_dict(),
            "shifted_source": shifted_scores(method, data.shifted, data.task.n_classes)}


def evaluate_target(method: Method, data: Data) -> dict[str, Any]:
    """Scores and confusion matrix on the labelled target pixels.  The method must be in the state that is to be scored
    (Method.evaluating)."""
    confusion = confusion_of(method, data.test, data.task.n_classes)
    return {"target": scores(confusion).as_dict(), "confusion": confusion.tolist()}


def shifted_scores(method: Method, source: ShiftedSource, n_classes: int) -> dict[str, Any]:
    """Held-out source pixels under every view: oa, aa, kappa and macro_f1, means over the views, and in 'views' those
    of SHOWN.  The method must be in the state that is to be scored (Method.evaluating)."""
    confusion = dict.fromkeys(VIEWS, 0)
    for view, x, y in source.batches(BATCH):
        predicted = method.predict(x).argmax(1)
        confusion[view] += confusion_matrix(y.cpu().numpy(), predicted.cpu().numpy(), n_classes)
    found = {view: scores(counts).as_dict() for view, counts in confusion.items()}
    means = {key: float(np.mean([score[key] for score in found.values()])) for key in (*SHOWN, "macro_f1")}
    return means | {"views": {view: {key: score[key] for key in SHOWN} for view, score in found.items()}}


def out_of_patience(run: RunFolder, patience: int | None) -> bool:
    """Whether the shifted-source score has not risen for `patience` epochs (never, for None).  If so, the log and
    run.json (stopped_early) say it."""
    if patience is None:
        return False
    records = run.records(run.epochs, *SOURCE_SCORES)
    if (waited := SHIFTED_SOURCE.waited(records)) < patience:
        return False
    epoch = records[-1]["epoch"]
    run.update_run(stopped_early={"epoch": epoch, "best_epoch": epoch - waited, "patience": patience})
    log.info("Stopped early after epoch %d: the shifted-source score was best in epoch %d and has not risen since "
             "(--patience %d). The rule 'last' means epoch %d.", epoch, epoch - waited, patience, epoch)
    return True


def score_run(run: RunFolder, method: Method, data: Data, selected: dict[str, dict[str, Any]]) -> None:
    """Score the weights that each rule selected on the target, and write evaluation.json.

    selected: rule -> epoch, its source_val and shifted_source scores, discriminator weights.  What `oracle` selected
    was scored when it was: that score is in a place of its own.
    """
    content: dict[str, Any] = {"rules": {}}
    for rule, choice in selected.items():
        if rule == ORACLE.name:
            continue
        content["rules"][rule] = {"epoch": choice["epoch"], **source_scores(choice)}
        if data.test:
            load_discriminator(method.discriminator, choice["discriminator"], run.checkpoint)
            content["rules"][rule] |= evaluate_target(method, data)
    if data.test:
        counts = np.bincount(data.test.labels.cpu().numpy(), minlength=data.task.n_classes)
        content["constant"] = scores(constant_answer(counts)).as_dict()
    if oracle := run.records(run.oracle):
        epoch = ORACLE.select(oracle)
        record = next(record for record in run.records(run.epochs, *run.source_scores) if record["epoch"] == epoch)
        content["oracle"] = next(entry for entry in oracle if entry["epoch"] == epoch) | source_scores(record)
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")
    if data.test:
        run.update_run(patches_per_second=patches_per_second(method))

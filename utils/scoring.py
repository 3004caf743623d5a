"""The end of a run: the sealed target is opened, and every selection rule's weights are scored once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from model.methods import Method
from utils.checkpoint import load_discriminator
from utils.metrics import constant_answer, scores
from utils.predict import confusion_of
from utils.records import RunFolder, write_text
from utils.selection import ORACLE
from utils.assembly import Data


def score_run(run: RunFolder, method: Method, data: Data, selected: dict[str, dict[str, Any]]) -> None:
    """Score the weights that each rule selected on the target, and write evaluation.json.

    selected: rule -> epoch, source_val scores, discriminator weights.
    """
    content: dict[str, Any] = {"rules": {}}
    for rule, choice in selected.items():
        content["rules"][rule] = {"epoch": choice["epoch"], "source_val": choice["source_val"]}
        if data.test:
            load_discriminator(method.discriminator, choice["discriminator"], run.checkpoint)
            confusion = confusion_of(method, data.test, data.task.n_classes)
            content["rules"][rule] |= {"target": scores(confusion).as_dict(), "confusion": confusion.tolist()}
    if data.test:
        counts = np.bincount(data.test.labels.cpu().numpy(), minlength=data.task.n_classes)
        content["constant"] = scores(constant_answer(counts)).as_dict()
    if oracle := run.records(run.oracle):
        epoch = ORACLE.select(oracle)
        source_val = next(record["source_val"] for record in run.records(run.epochs) if record["epoch"] == epoch)
        content["oracle"] = next(record for record in oracle if record["epoch"] == epoch) | {"source_val": source_val}
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")

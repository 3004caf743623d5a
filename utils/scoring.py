"""The end of a run: the sealed target is opened, and every selection rule's weights are scored once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from model.methods import Method
from utils import checkpoint
from utils.metrics import constant_answer, scores
from utils.predict import confusion_of
from utils.records import RunFolder, write_text
from utils.selection import ORACLE, RULES
from utils.session import Data


def score_run(run: RunFolder, method: Method, data: Data, state: dict[str, Any]) -> dict[str, Any]:
    """Score the weights of every rule on source validation and target, write evaluation.json, leave the method as
    its last training state `state` says."""
    records = run.records(run.epochs)
    content: dict[str, Any] = {"rules": {}}
    for rule in RULES:
        weights = checkpoint.load(run.weights(rule.name))
        checkpoint.load_discriminator(method.discriminator, weights["discriminator"], run.weights(rule.name))
        record = next(r for r in records if r["epoch"] == weights["epoch"])
        content["rules"][rule.name] = {"epoch": weights["epoch"], "source_val": record["source_val"]}
        if data.test:
            content["rules"][rule.name] |= score_target(method, data)
    if data.test:
        counts = np.bincount(data.test.labels.cpu().numpy(), minlength=data.source.n_classes)
        content["constant"] = scores(constant_answer(counts)).as_dict()
    if oracle := run.records(run.oracle):
        epoch = ORACLE.select(oracle)
        content["oracle"] = {"epoch": epoch, "source_val": next(r for r in records if r["epoch"] == epoch)["source_val"],
                             **{key: value for r in oracle if r["epoch"] == epoch
                                for key, value in r.items() if key != "epoch"}}
    write_text(run.evaluation, json.dumps(content, indent=1) + "\n")
    method.load_training_state(state["method"])
    return content


def score_target(method: Method, data: Data) -> dict[str, Any]:
    """Scores and confusion matrix of the method as it stands on the labelled target pixels."""
    confusion = confusion_of(method, data.test, data.source.n_classes)
    return {"target": scores(confusion).as_dict(), "confusion": confusion.tolist()}

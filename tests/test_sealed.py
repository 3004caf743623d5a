"""The target's labels: nothing that a run does or chooses depends on them."""

import json

import numpy as np
import pytest

from conftest import same_state
from datasets.patches import source_repeat
from datasets.writers import write_mat_v5
from model.methods import REGISTRY, method_class
from utils.run import checkpoint
from utils.run.config import parse_train
from utils.run.selection import ORACLE, RULES

RULE_NAMES = {rule.name for rule in RULES}


def one_class(run):
    """The class that would turn the oracle's choice, were it every labelled pixel's: the one whose share of the answers
    is most above that of the chosen epoch in another epoch."""
    shares = np.array([np.sum(record["confusion"], axis=0) for record in run.records(run.oracle)])      # [epochs, K]
    chosen = ORACLE.select(run.records(run.oracle)) - 1
    return 1 + int((shares.max(axis=0) - shares[chosen]).argmax())


def half_elsewhere(labelled, rng):
    """Mask [H, W] of as many pixels, every second one of them at a place of its own."""
    found = labelled & (labelled.cumsum().reshape(labelled.shape) % 2 == 0)
    found.flat[rng.choice(np.flatnonzero(~labelled), labelled.sum() - found.sum(), replace=False)] = True
    return found


def told_without_target_labels(run):
    """All that a run says but the target's scores, the seconds, and what stands in run.json."""
    content = json.loads(run.evaluation.read_text())["rules"]
    return {"epochs": [{key: value for key, value in record.items() if key != "seconds"}
                       for record in run.records(run.epochs)],
            "diagnostics": run.records(run.diagnostics), "validators": run.records(run.validators),
            "rules": {name: [entry[key] for key in ("epoch", "source_val", "shifted_source")]
                      for name, entry in content.items()},
            "stopped early": run.read_run()["stopped_early"]}


SEALED = [["--method", "erm", "--patience", "1", "--max_epoch", "4"],
          ["--method", "erm", "--protocol", "counted"], ["--method", "erm", "--protocol", "released"],
          *(["--recipe", name, "--protocol", "counted"] for name in ("released", "paper")),
          *(["--recipe", name] for name in ("released", "paper", "robust")),
          ["--method", "erm", "--recipe", "adaptive"], ["--recipe", "adaptive"],
          ["--method", "erm", "--recipe", "robust2"],
          ["--method", "mran", "--lr", "0.05"],                            # whose answers stay the same for longer
          ["--method", "pden", "--lr", "0.2"],                           # whose own rate is a tenth of this
          *(["--method", name] for name in REGISTRY if name not in ("s2amsnet", "erm", "mran", "pden"))]


@pytest.mark.slow_but("--method erm --patience 1 --max_epoch 4", "--method erm --protocol counted", "--method svm")
@pytest.mark.parametrize("words", SEALED, ids=" ".join)
def test_the_target_is_sealed(pair, tmp_path, scenes, words):
    """Other labels: the same weights, and the same epochs chosen by every rule but the oracle.

    Where the protocol is counted there are as many of them, since the source's index list is repeated by their number.
    Where it is sealed every pixel has one: counted, they would have the list repeated twice in place of once.
    """
    words = ["--oracle", "--validators", "--lr", "0.02", "--max_epoch", "3", "--re_ratio", "2", *words]
    first, labelled = pair.run(*words, save_path=tmp_path / "a"), scenes[1].labels > 0
    counted = first.read_config().protocol != "sealed"
    assert counted == ("--protocol" in words) and [source_repeat(labelled.sum(), n, 0.8, 2) for n in (
        labelled.sum(), labelled.size)] == [1, 2]
    there = half_elsewhere(labelled, np.random.default_rng(0)) if counted else np.ones_like(labelled)
    other = one_class(first) * there
    assert ((other > 0).sum() == labelled.sum()) == counted
    write_mat_v5(pair.folder / "coast_gt.mat", {"map": other})
    second = pair.run(*words, save_path=tmp_path / "b")
    assert first.records(first.oracle) != second.records(second.oracle)              # the other labels were read ...
    if not method_class(parse_train(words).method).fits_in_one_epoch:                # ... and would choose otherwise
        assert len({ORACLE.select(run.records(run.oracle)) for run in (first, second)}) == 2
    assert told_without_target_labels(first) == told_without_target_labels(second)
    (ours, theirs) = (checkpoint.load(run.checkpoint) for run in (first, second))
    assert same_state(ours["method"], theirs["method"]) and same_state(ours["streams"], theirs["streams"])
    kept = [{name: choice for name, choice in saved["state"]["selected"].items() if name != ORACLE.name}
            for saved in (ours, theirs)]
    assert set(kept[0]) == RULE_NAMES and same_state(*kept)

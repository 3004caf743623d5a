"""Which epoch's weights count: selection rules as named objects (docs/protocol.md, "Selection rules")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A selection rule over the records of epochs.

    score: the record's key whose OA decides, or None for the last epoch.
    reads_target: whether the rule looks at target labels; such a rule never stands beside the others in a table.  Among
    equals it takes the first epoch, as the released code; the others take the latest: a saturated score says nothing
    against more training.
    """

    name: str
    score: str | None
    reads_target: bool = False

    def select(self, records: Sequence[dict]) -> int:
        """The chosen epoch."""
        if self.score is None:
            return records[-1]["epoch"]
        direction = -1 if self.reads_target else 1
        return max(records, key=lambda record: (record[self.score]["oa"], direction * record["epoch"]))["epoch"]

    def improves(self, record: dict, best: dict | None) -> bool:
        """Whether a new epoch's record takes the place of the best one so far."""
        return best is None or self.select([best, record]) == record["epoch"]

    def waited(self, records: Sequence[dict]) -> int:
        """Epochs since the score last rose; 0 without records.

        An equal score is no rise here, or a saturated one would never end a run.
        """
        best = max(records, key=lambda record: (record[self.score]["oa"], -record["epoch"]), default=None)
        return records[-1]["epoch"] - best["epoch"] if best else 0


LAST = Rule("last", None)
SOURCE_VAL = Rule("source-val", "source_val")
SHIFTED_SOURCE = Rule("shifted-source", "shifted_source")
ORACLE = Rule("oracle", "target", reads_target=True)
RULES = (LAST, SOURCE_VAL, SHIFTED_SOURCE)
EVERY_RULE = (*RULES, ORACLE)
NOT_HONEST = "epoch selected on the target's labels (oracle; not an honest score)"
SOURCE_SCORES = tuple(rule.score for rule in RULES if rule.score)      # what stands beside every target score


def rule_words(rule: str) -> str:
    """How a title names the rule."""
    return NOT_HONEST if rule == ORACLE.name else f"rule {rule}"


def source_scores(record: dict[str, Any]) -> dict[str, Any]:
    """The scores of an epoch's record that need no target; none where no source pixel is held out."""
    return {key: record[key] for key in SOURCE_SCORES if key in record}


def select(record: dict[str, Any], weights: dict[str, Tensor], selected: dict[str, dict[str, Any]]
           ) -> dict[str, dict[str, Any]]:
    """What each rule has selected when a further epoch is done: rule -> epoch, source scores, discriminator weights.

    record: the epoch's; a rule whose score it lacks selects nothing.  What a rule that reads the target selects holds
    the target's scores, too.  weights: the discriminator's after it.  selected: what the rules had selected before; one
    that is not among them by now has missed epochs and selects nothing.
    """
    new = {"epoch": record["epoch"], **source_scores(record), "discriminator": weights}
    found = {}
    for rule in EVERY_RULE:
        best = selected.get(rule.name)
        if (rule.score is None or rule.score in record) and (best or not selected):
            seen = {rule.score: record[rule.score]} if rule.reads_target else {}
            found[rule.name] = new | seen if rule.improves(record, best) else best
    return found

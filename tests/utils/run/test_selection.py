"""Selection rules."""

import pytest

from utils.run.selection import EVERY_RULE, LAST, ORACLE, RULES, SHIFTED_SOURCE, SOURCE_VAL, select


def record(epoch, oa):
    return {"epoch": epoch, "source_val": {"oa": oa}, "shifted_source": {"oa": oa / epoch}, "target": {"oa": 1 - oa}}


RECORDS = [record(1, 0.4), record(2, 0.9), record(3, 0.9), record(4, 0.7)]


def test_rules_choose_their_epoch():
    assert LAST.select(RECORDS) == 4
    assert SOURCE_VAL.select(RECORDS) == 3          # the later of two equals
    assert SHIFTED_SOURCE.select(RECORDS) == 2
    assert ORACLE.select(RECORDS) == 1
    assert ORACLE.select([record(3, 0.4), *RECORDS, record(5, 0.4)]) == 1        # the first of equals


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_keeping_the_best_so_far_agrees_with_choosing_at_the_end(rule):
    best = None
    for entry in RECORDS:
        if rule.improves(entry, best):
            best = entry
    assert best["epoch"] == rule.select(RECORDS)


def test_waiting_counts_from_the_last_rise_and_an_equal_score_is_none():
    assert [SOURCE_VAL.waited(RECORDS[:n]) for n in (1, 2, 3, 4)] == [0, 0, 1, 2]
    assert SHIFTED_SOURCE.waited([]) == 0 and SHIFTED_SOURCE.waited([record(2, 0.1), record(3, 0.0)]) == 1


def test_rules_that_stand_side_by_side_read_no_target():
    assert not any(rule.reads_target for rule in RULES) and ORACLE.reads_target


def test_every_rule_keeps_the_weights_and_source_scores_of_the_epoch_that_it_chose():
    selected = {}
    for entry in RECORDS:
        selected = select(entry, {"w": entry["epoch"]}, selected)
    for name, epoch in (("last", 4), ("source-val", 3), ("shifted-source", 2)):
        of_epoch = RECORDS[epoch - 1]
        assert selected.pop(name) == {"epoch": epoch, "source_val": of_epoch["source_val"],
                                      "shifted_source": of_epoch["shifted_source"], "discriminator": {"w": epoch}}
    of_epoch = RECORDS[0]
    assert selected.pop("oracle") == {**of_epoch, "discriminator": {"w": 1}}            # the one that reads the target
    assert selected == {}


def test_a_rule_that_missed_epochs_selects_nothing():
    """A run that a program without these weights began, or that recorded no target scores then."""
    begun = select(RECORDS[0] | {"target": None}, {}, {})
    del begun["oracle"]
    assert set(select(RECORDS[1], {}, begun)) == {rule.name for rule in RULES}

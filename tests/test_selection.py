"""Selection rules."""

from utils.selection import LAST, ORACLE, RULES, SOURCE_VAL


def record(epoch, oa):
    return {"epoch": epoch, "source_val": {"oa": oa}, "target": {"oa": 1 - oa}}


RECORDS = [record(1, 0.5), record(2, 0.9), record(3, 0.9), record(4, 0.7)]


def test_rules_choose_their_epoch():
    assert LAST.select(RECORDS) == 4
    assert SOURCE_VAL.select(RECORDS) == 3          # the later of two equals
    assert ORACLE.select(RECORDS) == 1


def test_keeping_the_best_so_far_agrees_with_choosing_at_the_end():
    best = None
    for entry in RECORDS:
        if SOURCE_VAL.improves(entry, best):
            best = entry
    assert best["epoch"] == SOURCE_VAL.select(RECORDS)


def test_rules_that_stand_side_by_side_read_no_target():
    assert not any(rule.reads_target for rule in RULES) and ORACLE.reads_target

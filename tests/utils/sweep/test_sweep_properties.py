"""Sweep files of other forms, and damaged ones: right or refused."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from properties import changed, damaged, examples, nested, right_or_refused
from utils.sweep.file import SweepFile
from utils.sweep.sweep import SweepConfig, sweep_runs

SWEEP = {"config": [], "settings": {"lr": 0.01, "simulation": {"severity": 2}}, "pairs": [{"target_name": "b"}],
         "variants": [{"method": "erm"}], "seeds": [0], "save_path": "runs"}
NAMES = [*SweepFile.__annotations__, "lr", "method", "simulation.seed", "severity", "ablate", "seed", "run_name"]


@given(st.one_of(changed(SWEEP, NAMES), nested(NAMES), damaged(yaml.safe_dump(SWEEP).encode())))
@examples(120)
def test_strange_sweep_files_are_right_or_refused(tmp_path, content):
    text = content if isinstance(content, bytes) else yaml.safe_dump(content, allow_unicode=True).encode(
        "utf-8", "surrogatepass")
    (tmp_path / "sweep.yaml").write_bytes(text)
    found = right_or_refused(lambda: list(sweep_runs(tmp_path / "sweep.yaml", SweepConfig())))
    assert found is None or len(found) >= 1

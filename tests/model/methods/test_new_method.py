"""A method added as a new user would: one file, one registry line, one YAML; and it stands in the tables."""

import os
import shutil
import subprocess
import sys

import pytest

from utils.run.folder import ROOT

METHOD = '''"""ERM on patches whose bands are dropped at random."""

import torch
from torch import Tensor

from model.methods.erm import ERM


class BandDropout(ERM):
    """Each band of a patch is zero with probability 0.1."""

    def transform(self, x: Tensor) -> Tensor:
        return x * (torch.rand(*x.shape[:2], 1, 1, generator=self.streams.noise, device=x.device) > 0.1)
'''


@pytest.mark.slow
def test_one_file_one_line_one_yaml(pair, tmp_path):
    program = tmp_path / "program"
    program.mkdir()
    for part in ("main.py", "model", "datasets", "utils", "configs"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
        copy(ROOT / part, program / part)
    (program / "model/methods/band_dropout.py").write_text(METHOD)
    (program / "configs/method/band_dropout.yaml").write_text("method: band_dropout\n")
    registry = program / "model/methods/__init__.py"
    last = '    "random_forest": "model.methods.pixel:RandomForest",\n'
    line = '    "band_dropout": "model.methods.band_dropout:BandDropout",\n'
    registry.write_text(registry.read_text().replace(last, last + line))

    runs = str(tmp_path / "runs")
    commands = [["--config", f"configs/method/{name}.yaml", *pair.words("--max_epoch", "1", "--save_path", runs)]
                for name in ("erm", "band_dropout")] + [["tables", runs]]
    code = f"import sys, main; sys.exit(sum(map(main.main, {commands})))"
    subprocess.run([sys.executable, "-c", code], cwd=program, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    table = (tmp_path / "runs" / "pairs.md").read_text().splitlines()
    rows = [line.strip("| ").split()[0] for line in table if line.startswith("|")]
    assert "band_dropout" in rows and "erm" in rows

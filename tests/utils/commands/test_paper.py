"""The whole paper in the small: its tables and figures under both rules, what is missing, nothing done twice."""

from pathlib import Path

import pytest
import yaml

import main
from utils.commands import paper
from utils.figures import of_runs

pytestmark = pytest.mark.slow

VARIANTS = {"table_pairs": [{"method": "erm"}, {"recipe": "released"}],
            "table_ablation": [{"recipe": "released"}, {"recipe": "released", "ablate": ["no_noise"]}],
            "sensitivity": [{"method": "erm", "lr": 0.01}, {"method": "erm", "lr": 0.1}]}


@pytest.fixture
def small(pair, tmp_path, monkeypatch):
    """Sweeps of two variants each on the small pair, trained in this process; the words of the command and what ran."""
    words = pair.words("--oracle", "true", "--eval_interval", "1")
    settings = {word.removeprefix("--"): yaml.safe_load(value) for word, value in zip(words[::2], words[1::2])}
    for name, variants in VARIANTS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(
            {"config": [], "settings": settings, "variants": variants, "seeds": [0], "save_path": "unused"}))
    monkeypatch.setattr(paper, "SWEEPS", {name: tmp_path / f"{name}.yaml" for name in VARIANTS})
    monkeypatch.setattr(of_runs, "PER_CLASS", 10)
    monkeypatch.setattr(of_runs, "_plane", lambda values: values[:, :2])         # for speed; t-SNE has tests of its own
    ran = []

    def train_here(planned, _):
        for run, _ in (run for runs in planned.values() for run in runs):
            if not run.done:
                ran.append(run.name)
                main.train([*run.words, "--run_name", run.name])
        return 0
    def write_page(words):                                        # the page has tests of its own
        Path(words[words.index("--out") + 1], "index.html").write_text(" ".join(words))
    monkeypatch.setattr(paper, "run_planned", train_here)
    monkeypatch.setattr(paper, "report", write_page)
    return ["paper", "--out", str(tmp_path / "paper"), "--gpu", "-1"], ran


def test_every_table_and_figure_under_both_rules(small, tmp_path, capsys, monkeypatch):
    words, ran = small
    assert main.main(words) == 1                                 # one pair and one seed have no ranks
    out = tmp_path / "paper"
    assert capsys.readouterr().out.endswith(f"All of it on one page: {out / 'index.html'}\n") and len(ran) == 6
    assert (out / "index.html").read_text() == " ".join(
        [*(str(out / name) for name in VARIANTS), "--out", str(out), "--gpu", "-1"])
    for rule in ("last", "oracle"):
        made = {str(path.relative_to(out / rule)) for path in (out / rule).rglob("*.md")}
        assert made == {f"pairs/{name}.md" for name in ("summary", "overview", "per_class")} | \
            {"ablation/ablation.md", "sensitivity/sensitivity.md"} | ({"pairs/cost.md"} if rule == "last" else set())
        pictures = {str(path.relative_to(out / rule)) for path in (out / rule).rglob("*.png")}
        assert pictures == {"pairs/maps_field-coast.png", "pairs/features_field-coast.png", "pairs/seeds.png",
                            "pairs/domains_field-coast_s2amsnet_released.png", "sensitivity/sensitivity_field-coast.png"}
        honest = "not an honest score" not in (out / rule / "pairs" / "summary.md").read_text()
        assert honest == (rule == "last")
    missing = (out / "missing.md").read_text()
    assert "last: ranks of table_pairs" in missing and missing.count("\n- ") == 2
    monkeypatch.setattr(paper, "_draw", lambda *_: None)
    assert main.main(words) == 0 and len(ran) == 6               # nothing is trained twice


def test_pairs_without_files_are_listed(small, pair, tmp_path, capsys):
    (pair.folder / "coast.mat").unlink()
    words, ran = small
    assert main.main(words) == 1 and not ran
    told = capsys.readouterr().out
    assert "coast.mat" in told and "Everything of table_pairs: it has no run yet." in told and "index.html" not in told
    assert told.count("coast.mat") == 1                          # once, not for every run

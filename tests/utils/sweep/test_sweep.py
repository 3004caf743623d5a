"""Sweep files, their layers, and what a sweep refuses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import main
from conftest import SMALL
from model.errors import ConfigError
from model.methods import REGISTRY
from model.settings import recipe_switches
from utils.run.config import TrainConfig, parse_train, read_config, to_dict
from utils.sweep.cluster import INSTALL
from utils.sweep.file import SweepFile, layered, read_sweep
from utils.sweep.process import Run
from utils.sweep.sweep import SweepConfig, sweep_runs

ROOT = Path(main.__file__).parent
FILES = {path.stem: path for path in sorted((ROOT / "configs" / "sweep").glob("*.yaml"))}
DEFAULTS = to_dict(TrainConfig())


def write_sweep(tmp_path: Path, words: list[str] = SMALL, **entries) -> tuple[Path, Path]:
    """A sweep file whose settings are `words` of the command line; the file and the folder of its runs."""
    settings = {word.removeprefix("--"): yaml.safe_load(value) for word, value in zip(words[::2], words[1::2])}
    content = {"config": [], "settings": settings, "seeds": [0, 1], "save_path": str(tmp_path / "runs"),
               "variants": [{"recipe": "paper"}, {"recipe": "released"}]}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content | entries))
    return path, tmp_path / "runs"


def write_file(path: Path, **entries) -> str:
    path.write_text(yaml.safe_dump(entries))
    return str(path)


def runs_of(path: Path, choice: SweepConfig) -> list[Run]:
    return [run for run, _ in sweep_runs(path, choice)]


# sweep files

@pytest.mark.slow_but("demo", "table_pairs")
@pytest.mark.parametrize("name", FILES)
def test_every_sweep_file_resolves_to_runs_of_different_names(name):
    content: SweepFile = read_sweep(FILES[name])
    runs = runs_of(FILES[name], SweepConfig(seeds=[0]))
    repeated = 10 if name == "sensitivity" else 0        # the centre, listed under eleven settings
    assert len(runs) == len(content.pairs) * (len(content.variants) - repeated) > 1
    assert len({run.name for run in runs}) == len({run.folder for run in runs}) == len(runs)


@pytest.mark.parametrize("entries, message", [
    ({"seeds": []}, "'seeds' is empty"), ({"pairs": []}, "'pairs' is empty"), ({"variants": []}, "'variants' is empty"),
    ({"seeds": ["one"]}, "'seeds' must be a list of int"), ({"variants": {}}, "'variants' must be a list of dict")])
def test_a_sweep_file_of_the_wrong_form_is_refused(tmp_path, entries, message):
    with pytest.raises(ConfigError, match=message):
        read_sweep(write_sweep(tmp_path, **entries)[0])


def test_a_layer_that_names_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'config' must name a file or a list of files, not 3"):
        runs_of(write_sweep(tmp_path, variants=[{"config": [3]}])[0], SweepConfig())


def test_the_main_table_has_every_method_and_recipe_on_every_pair():
    content = read_sweep(FILES["table_pairs"])
    found = {variant["method"] for variant in content.variants if "method" in variant}
    assert found == REGISTRY.keys() - {"s2amsnet", "htcnn"}
    shown, = re.findall(r"^  # - ({.*})$", FILES["table_pairs"].read_text(), re.MULTILINE)      # where the weights go
    assert read_config(**yaml.safe_load(shown)).htcnn_weights.endswith(".pth")
    ours = [(variant["recipe"], *variant.get("ablate", [])) for variant in content.variants
            if not {"method", "patch_size"} & variant.keys()]
    hinted = [variant for variant in content.variants if "patch_size" in variant]
    assert hinted == [{"recipe": "released", "patch_size": size} for size in (11, 7)]
    assert sorted(ours) == [("paper",), ("paper", "no_adversarial", "no_mmirn"), ("released",), ("robust",)]
    assert content.pairs == [{"config": f"configs/pair/{name}.yaml"} for name in ("houston", "pavia", "hyrank")]
    assert len(content.seeds) == 10 and content.config == []
    assert content.settings.keys() <= {"oracle", "eval_interval", "protocol"}
    assert content.settings["protocol"] == "counted"


def test_the_ablation_table_takes_out_every_part_of_every_recipe():
    content = read_sweep(FILES["table_ablation"])
    parts = [[path.stem] for path in (ROOT / "configs" / "ablation").glob("*.yaml")]
    found = sorted((variant["recipe"], variant.get("ablate", [])) for variant in content.variants)
    assert found == sorted((recipe, cut) for recipe in ("released", "paper", "robust") for cut in [[], *parts])
    assert content.pairs == read_sweep(FILES["table_pairs"]).pairs and len(content.seeds) == 10


@pytest.mark.slow_but("switches")
@pytest.mark.parametrize("name", ["table_pairs", "table_ablation", "switches", "sensitivity"])
def test_the_cpu_layer_makes_every_run_smaller(name):
    whole, small = ([config for _, config in sweep_runs(FILES[name], SweepConfig(config=layers, seeds=[0]))]
                    for layers in ([], [str(ROOT / "configs" / "cpu.yaml")]))
    for size in ("patch_size", "pro_dim", "GIN_ch", "batch_size", "max_epoch"):
        assert max(getattr(config, size) for config in small) <= max(getattr(config, size) for config in whole)
    cost = [sum(c.patch_size ** 2 * c.pro_dim ** 2 * c.batch_size * c.max_epoch for c in runs) for runs in (whole, small)]
    assert cost[1] < cost[0] / 100


@pytest.mark.parametrize("layer", [{}, yaml.safe_load((ROOT / "configs" / "cpu.yaml").read_text())])
def test_sensitivity_varies_one_setting_at_a_time_around_a_listed_centre(layer):
    variants = read_sweep(FILES["sensitivity"]).variants
    names = ("patch_size", "pro_dim", "GIN_ch", "temp", "beta", "training_sample_ratio", "lr", "batch_size",
             "consistency_weight", "mi_weight", "contrast_layers")
    assert all(len(variant) == 1 for variant in variants)
    assert {name for variant in variants for name in variant} == {*names, "samples_per_class"}
    centre = DEFAULTS | recipe_switches("released") | layer
    assert all({name: centre[name]} in variants for name in names)


# layers

def test_later_layers_win_be_they_files_or_settings(tmp_path):
    low = write_file(tmp_path / "low.yaml", patch_size=5, lr=0.5, simulation={"severity": 2.0, "seed": 3})
    high = write_file(tmp_path / "high.yaml", patch_size=9, simulation={"severity": 0.5})
    layers = layered([{"config": low}, {"patch_size": 7, "lr": 0.1, "simulation": {"severity": 1.5}}, {"config": [high]},
                     {"ablate": ["no_noise"]}, {"lr": 0.2, "validators": True, "target_name": "B"}])
    words, config = layers.words(), layers.config()
    assert config == parse_train(words)
    assert (config.patch_size, config.lr, config.ablate) == (9, 0.2, ["no_noise"])
    assert (config.simulation.severity, config.simulation.seed) == (0.5, 3)
    assert words == ["--config", low, "--config", high, "--lr", "0.2", "--ablate", "[no_noise]", "--validators", "true",
                     "--target_name", "B"]


def test_a_layer_wins_over_the_settings_but_not_over_what_is_compared(tmp_path):
    file, _ = write_sweep(tmp_path, seeds=[0], variants=[{"method": "erm"}, {"method": "erm", "patch_size": 7}],
                          pairs=[{"batch_size": 32}, {"config": write_file(tmp_path / "pair.yaml", re_ratio=2)}])
    layer = write_file(tmp_path / "layer.yaml", patch_size=9, max_epoch=3, batch_size=16, re_ratio=4)
    other = write_file(tmp_path / "other.yaml", max_epoch=5)
    found = [parse_train(run.words) for run in runs_of(file, SweepConfig(config=[layer, other]))]
    assert [(c.patch_size, c.batch_size, c.re_ratio, c.max_epoch) for c in found] == [
        (9, 32, 4, 5), (7, 32, 4, 5), (9, 16, 2, 5), (7, 16, 2, 5)]


def test_runs_go_seed_by_seed_and_equal_ones_are_one(tmp_path):
    file, runs = write_sweep(tmp_path, variants=[{"method": "erm"}, {"method": "erm_gain"}, {"patch_size": 5,
                                                                                              "method": "erm"}],
                             pairs=[{"simulation": {"severity": severity}} for severity in (1.0, 2.0)])
    found = runs_of(file, SweepConfig(seeds=[3, 1]))
    order = [(config.seed, config.simulation.severity, config.method) for run in found
             for config in [parse_train(run.words)]]
    assert order == [(seed, severity, method) for seed in (3, 1) for severity in (1.0, 2.0)
                     for method in ("erm", "erm_gain")]
    assert all(Path(run.folder) == runs / run.name for run in found)


def test_runs_keep_the_files_data_path_and_say_whether_they_would_use_a_gpu(tmp_path):
    for gpu in (-1, 0, 1):
        file, _ = write_sweep(tmp_path, ["--data_path", "scenes", "--gpu", str(gpu)], variants=[{"method": "erm"}])
        for choice, folder in ((SweepConfig(), "scenes"), (SweepConfig(data_path="others"), "others")):
            found = [(config.data_path, run.on_gpu) for run, config in sweep_runs(file, choice)]
            assert found == [(folder, gpu >= 0)] * 2


def test_pairs_of_the_command_line_replace_those_of_the_file(tmp_path):
    mine = [write_file(tmp_path / f"{name}.yaml", source_name=name, target_name="SimTarget") for name in ("a", "b")]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"config": [], "settings": {}, "pairs": [{}], "variants": [{"method": "erm"}],
                                    "seeds": [0], "save_path": "runs"}))
    found = runs_of(file, SweepConfig(pairs=mine, data_path="scenes", save_path="out"))
    about = [parse_train(run.words) for run in found]
    assert [(config.source_name, config.data_path) for config in about] == [("a", "scenes"), ("b", "scenes")]
    assert {Path(run.folder).parent for run in found} == {Path("out")}


@pytest.mark.parametrize("content, word", [(None, "does not exist"), ("[1, 2]", "holds no settings"),
                                           ("a: [", "valid YAML")])
def test_a_layer_that_is_none_is_named(tmp_path, content, word):
    file, _ = write_sweep(tmp_path)
    if content:
        (tmp_path / "layer.yaml").write_text(content)
    with pytest.raises(ConfigError, match=f"layer.yaml.*{word}|{word}.*layer.yaml"):
        runs_of(file, SweepConfig(config=[str(tmp_path / "layer.yaml")]))


def test_the_command_line_layers_and_prints_commands_that_stand_alone(tmp_path, capsys):
    file, runs = write_sweep(tmp_path, seeds=[0, 1], variants=[{"method": "erm"}])
    layers = [write_file(tmp_path / f"{epochs}.yaml", max_epoch=epochs) for epochs in (7, 5)]
    assert main.main(["sweep", str(file), "--config", layers[0], f"--config={layers[1]}", "--ray", "--print",
                      "--seeds", "4", "2"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(command[:3] == [sys.executable, str(ROOT / "main.py"), "train"] for command in commands)
    assert [(config.max_epoch, config.seed) for command in commands for config in [parse_train(command[3:])]] == [
        (5, 4), (5, 2)]
    assert not runs.exists()


@pytest.mark.slow
def test_a_reader_that_closes_the_output_is_no_error(tmp_path):
    file, _ = write_sweep(tmp_path)
    printing = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "sweep", str(file), "--print"], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    printing.stdout.close()
    with printing.stderr as words:
        assert "Error" not in words.read()
    assert printing.wait() == 1


# running

def test_ray_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    file, _ = write_sweep(tmp_path, seeds=[0])
    assert main.main(["sweep", str(file), "--ray"]) == 2
    printed = capsys.readouterr().err
    assert INSTALL in printed and printed.count("ConfigError") == 1
    assert INSTALL.split()[-1] in (ROOT / "tests" / "requirements.txt").read_text().split()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_an_address_where_no_cluster_is_is_refused_at_once(tmp_path, capsys, address):
    pytest.importorskip("ray", reason="Ray, which is optional, is not installed")
    assert main.main(["sweep", str(write_sweep(tmp_path)[0]), "--ray", address]) == 2
    assert f"Nobody answers at --ray {address}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--cpus_per_run", "0"], ["--gpus_per_run", "1.5"], ["--gpus_per_run", "-1"]])
def test_impossible_shares_are_refused(tmp_path, capsys, words):
    assert main.main(["sweep", str(write_sweep(tmp_path)[0]), "--ray", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_folder_that_cannot_hold_runs_is_named(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert main.main(["sweep", str(write_sweep(tmp_path)[0])]) == 2
    assert "--save_path" in capsys.readouterr().err

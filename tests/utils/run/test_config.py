"""The command line: every field a flag, bad values named, recipes and layers resolved."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from model.errors import CheckpointError, ConfigError
from model.settings import RECIPES, Switches, flipped_switches, recipe_switches
from utils.run.config import GROUPS, Simulation, TrainConfig, changed, parse_train, read_config, to_yaml
from utils.run.folder import config_hash, run_label, run_name

ROOT = Path(__file__).resolve().parents[3]


def test_the_papers_command_has_the_papers_settings():
    config = parse_train("--source_name Houston13 --target_name Houston18 --patch_size 13 "
                         "--training_sample_ratio 0.8".split())
    expected = {"lr": 1e-3, "batch_size": 256, "max_epoch": 400, "re_ratio": 5, "seed": 333, "pro_dim": 128,
                "GIN_ch": 24, "temp": 0.07, "recipe": "released", "data_path": None}
    assert {name: getattr(config, name) for name in expected} == expected


def test_every_flag_of_the_released_code_is_taken_as_its_users_write_it():
    config = parse_train("--save_path out --data_path ./datasets/Houston/ --source_name Houston13 --target_name Houston18 "
                         "--patch_size 11 --lr 0.01 --batch_size 128 --max_epoch 10 --training_sample_ratio 0.5 "
                         "--re_ratio 3 --seed 1 --gpu 0 --log_interval 40 --pro_dim 64 --GIN_ch 12 --temp 0.1 "
                         "--nce_layers 0,4,8 --flip_augmentation --radiation_augmentation false "
                         "--mixture_augmentation".split())
    assert config.contrast_layers == [0, 4, 8] and config.log_interval == 40
    assert (config.flip_augmentation, config.radiation_augmentation, config.mixture_augmentation) == (True, False, True)


def test_a_recipe_fills_the_switches_and_a_flag_flips_one():
    assert all(getattr(parse_train([]), name) == value for name, value in recipe_switches("released").items())
    config = parse_train("--recipe released --consistency kl".split())
    assert flipped_switches(config) == {"consistency": "kl"}
    assert run_label(config) == "s2amsnet released consistency=kl"
    assert flipped_switches(parse_train("--recipe paper".split())) == {}


def test_the_recipe_files_hold_every_switch_and_nothing_else():
    names = {entry.name for entry in fields(Switches)}
    for path in RECIPES.glob("*.yaml"):
        assert yaml.safe_load(path.read_text()).keys() == names | {"recipe"}
        assert parse_train(["--config", str(path)]).recipe == path.stem


def test_another_recipe_on_the_command_line_takes_the_place_of_a_files(tmp_path):
    config = parse_train("--recipe released --consistency kl --mi_weight 0.5".split())
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    for given in (["--config", str(tmp_path / "config.yaml")], [f"--config={tmp_path / 'config.yaml'}"]):
        config = parse_train([*given, "--recipe", "paper", "--generator_init", "normal"])
        assert flipped_switches(config) == {"mi_weight": 0.5, "generator_init": "normal"}


def test_lists_may_be_written_in_three_ways():
    for words in ("--ablate no_noise no_mixing", "--ablate no_noise,no_mixing", "--ablate [no_noise,no_mixing]"):
        assert parse_train(words.split()).ablate == ["no_mixing", "no_noise"]


def test_the_order_of_ablations_makes_no_other_run():
    one, other = (parse_train(["--ablate", *names]) for names in (("no_noise", "no_mixing"),
                                                                  ("no_mixing", "no_noise", "no_mixing")))
    assert one == other and run_name(one) == run_name(other)


def test_files_are_layered_and_the_command_line_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nbatch_size: 32\n")
    (tmp_path / "b.yaml").write_text("lr: 0.2\n")
    config = parse_train(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--seed", "7"])
    assert (config.lr, config.batch_size, config.seed) == (0.2, 32, 7)
    config = parse_train(["--lr", "0.3", "--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}"])
    assert (config.lr, config.batch_size) == (0.3, 32)


def test_the_resolved_config_reads_back(tmp_path):
    config = parse_train("--recipe paper --ablate no_noise --simulation.severity 2 --source_ce on".split())
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_train(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize("words,message", [
    ("--ptch_size 5", "--ptch_size is not known. Did you mean --patch_size?"), ("--lr fast", "lr must be float, not fast"),
    ("--recipe best", "recipe must be released, paper, robust, adaptive or robust2, not best"), ("--ablate no_brain", "no_brain"),
    ("--flip_augmentation=maybe", "flip_augmentation"), ("--batch_size 2.5", "batch_size must be int, not 2.5"),
    ("--patience soon", "patience must be int, not soon"), ("--simulation.severety 1", "mean --simulation.severity"),
    ("--method", "--method: expected one argument"), ("erm", "erm is not known"),
    ("--config none.yaml", "The config file none.yaml does not exist")])
def test_unknown_flags_and_bad_values_are_told_in_one_line(words, message):
    with pytest.raises(ConfigError) as error:
        parse_train(words.split())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("words", ["--GIN_c 12", "--max_ep 3", "--adversarial 0", "--simulation.sev 2", "--run x"])
def test_flags_cannot_be_abbreviated(words):
    with pytest.raises(ConfigError, match="is not known"):
        parse_train(words.split())


def test_flags_that_do_nothing_in_the_released_code_do_nothing_here(caplog):
    words = "--test_stride 1 --GIN 1 --seed 3 --adv=0.1 --num_patches 256 --lambda_NCE 1.0"
    assert parse_train(words.split()) == parse_train("--seed 3".split())
    warnings = [record.message for record in caplog.records]
    assert warnings == ["--test_stride, --GIN, --adv, --num_patches, --lambda_NCE: no effect, here as in the released code."]


def test_unknown_keys_and_bad_values_of_a_file_are_named_with_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    for text, message in (("learning_rate: 0.1", "learning_rate is not known"), ("lr: fast", "lr must be float"),
                          ("simulation: {severety: 1}", "severety is not known")):
        path.write_text(text)
        for read in (lambda: parse_train(["--config", str(path)]), lambda: read_config(path)):
            with pytest.raises(ConfigError, match=f"a.yaml: {message}"):
                read()


def test_settings_are_read_without_a_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nrecipe: released\nconsistency: kl\nsimulation: {seed: 4}\n")
    (tmp_path / "b.yaml").write_text("lr: 1e-3\nsimulation: {severity: 2}\n")
    files = (tmp_path / "a.yaml", tmp_path / "b.yaml")
    for changes, words in (({}, ""), ({"recipe": "paper"}, "--recipe paper"), ({"target_name": None}, "--target_name null"),
                           ({"simulation": {"seed": 5}}, "--simulation.seed 5"), ({"ablate": ["no_noise"]}, "--ablate no_noise")):
        config = read_config(*files, **changes)
        assert config == parse_train([*(f"--config={file}" for file in files), *words.split()])
        assert (config.lr, config.simulation.severity, config.consistency) == (0.001, 2.0, "kl")
    with pytest.raises(ConfigError, match="patch_size must be odd"):
        read_config(*files, patch_size=6)


def test_changed_settings_leave_the_old_ones_alone():
    config = read_config(ablate=["no_noise"])
    other = changed(config, batch_size=3, simulation=Simulation(2.0))
    other.ablate.append("no_mixing")
    assert config == read_config(ablate=["no_noise"]) and (other.batch_size, other.simulation.severity) == (3, 2.0)
    with pytest.raises(ConfigError, match="batch_size"):
        changed(config, batch_size=0)


@pytest.mark.parametrize("words,named", [
    ("--patch_size 6", "patch_size must be odd"), ("--patch_size 3", "at least 5"), ("--lr 0", "lr must be positive"),
    ("--training_sample_ratio 0", "above 0 and at most 1"), ("--training_sample_ratio 1.01", "above 0 and at most 1"),
    ("--training_sample_ratio 1 --patience 3", "patience waits for a score on held-out source pixels"),
    ("--batch_size 0", "batch_size"), ("--seed -1", "seeds"),
    ("--method magic", "method 'magic' is not known; known are s2amsnet"), ("--simulation.severity -1", "severity"),
    ("--target_name null --oracle", "no target_name"),
    ("--target_name null --validators", "no target_name"), ("--patience 0", "patience must be at least 1"),
    (f"--batch_size {10 ** 29}", "batch_size must be at most 1,000,000"), (f"--max_epoch {2 ** 31}", "max_epoch must be"),
    (f"--pro_dim {2 ** 63}", "pro_dim must be at most 65,536"), ("--GIN_ch 65537", "GIN_ch must be at most 65,536"),
    ("--lr .nan", "lr must be positive"), ("--lr .inf", "lr must be positive"), ("--mi_weight .nan", "mi_weight must not be"),
    ("--mmirn_filters 65537", "at most 65,536"), ("--daan_local -0.1", "daan_local must not be negative"),
    ("--pden_lr_factor 0", "pden_lr_factor must be positive")])
def test_impossible_values_are_refused_by_name(words, named):
    with pytest.raises(ConfigError, match=named):
        parse_train(words.split())


def test_help_documents_every_field_in_its_group(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    printed = capsys.readouterr().out
    text = " ".join(printed.split())
    for entry in fields(TrainConfig):
        assert f"--{entry.name} " in text or f"--{entry.name}." in text
    undocumented = [line for line in text.split(" --") if "(type:" in line and line.split("(type:")[0].count(" ") < 2]
    assert not undocumented
    places = [printed.index(f"\n{title}:") for title in GROUPS]
    assert places == sorted(places) and printed.index("--source_name") < printed.index("--kernel_activation")
    named = [name for members in GROUPS.values() for name in members]
    assert sorted(named) == sorted(entry.name for entry in fields(TrainConfig))


def test_help_shows_what_each_recipe_sets_a_switch_to(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "'kl'), the released code's bounded term ('released'), or the Jensen–Shannon divergence ('js'). " \
           "(kl, released or js; released: released, paper: kl, robust: js, adaptive: js, robust2: js)" in text


def test_print_config_prints_resolved_settings_that_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--recipe", "paper", "--print_config", "--simulation.severity", "2"])
    assert stop.value.code == 0
    path = tmp_path / "a.yaml"
    path.write_text(capsys.readouterr().out)
    values = yaml.safe_load(path.read_text())
    assert {name: values[name] for name in recipe_switches("paper")} == recipe_switches("paper")
    assert read_config(path) == read_config(recipe="paper", simulation={"severity": 2.0})


def test_a_fixed_gap_is_not_written_and_a_drawn_one_is():
    fixed, drawn = (parse_train(["--simulation.severity", "2", "--simulation.gap", gap]) for gap in ("fixed", "drawn"))
    assert fixed == parse_train(["--simulation.severity", "2"]) and fixed != drawn
    written = [yaml.safe_load(to_yaml(config))["simulation"] for config in (fixed, drawn)]
    assert written == [{"severity": 2.0, "seed": 0}, {"severity": 2.0, "seed": 0, "gap": "drawn"}]
    assert config_hash(fixed) == config_hash(parse_train(["--simulation.severity", "2"])) != config_hash(drawn)
    with pytest.raises(ConfigError, match="simulation.gap must be fixed or drawn, not wide"):
        parse_train(["--simulation.gap", "wide"])


def test_every_field_is_used():
    """Each field is read from something called config, settings, s or choice, or by its name as a string."""
    used = set()
    for path in [ROOT / "main.py", *(p for part in ("model", "datasets", "utils") for p in (ROOT / part).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                if owner in ("config", "settings", "s", "simulation"):
                    used.add(node.attr)
    assert not {entry.name for entry in fields(TrainConfig)} - used
    assert {entry.name for entry in fields(Simulation)} <= used


def test_every_file_under_configs_differs_from_the_defaults_as_its_name_says():
    default = parse_train([])
    for path in (ROOT / "configs" / "ablation").glob("*.yaml"):
        config = parse_train(["--config", str(path)])
        assert config.ablate == [path.stem]
        config.ablate = []
        assert config == default
    for path in (ROOT / "configs" / "method").glob("*.yaml"):
        assert parse_train(["--config", str(path)]).method == path.stem
    for path in (ROOT / "configs" / "pair").glob("*.yaml"):
        assert yaml.safe_load(path.read_text()).keys() == {"source_name", "target_name"}


def test_pairs_at_cpu_size_are_those_of_the_benchmark_and_the_simulated_one():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "pair" / "cpu").glob("*.yaml")}
    assert files.keys() == {"simulated", "houston", "pavia", "hyrank"}
    for name, content in files.items():
        assert parse_train(["--config", str(ROOT / "configs" / "pair" / "cpu" / f"{name}.yaml")]).re_ratio == 1
        original = ROOT / "configs" / ("" if name == "simulated" else "pair") / f"{name}.yaml"
        expected = yaml.safe_load(original.read_text())
        assert {key: content[key] for key in ("source_name", "target_name")} == {
            key: expected[key] for key in ("source_name", "target_name")}


def test_resume_wants_a_run_folder(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        parse_train(["--resume", str(tmp_path)])

"""Presets, and runs whose length or sample is a number of steps or of pixels."""

import pytest

import main
from model.errors import ConfigError
from utils.run.config import parse_train, read_config


def test_a_preset_lies_below_files_and_flags():
    config = parse_train(["--preset", "map", "--config", "configs/first_look.yaml", "--patch_size", "9"])
    below = read_config("configs/preset/map.yaml", "configs/first_look.yaml", patch_size=9)
    assert config == below == parse_train(["--patch_size=9", "--config=configs/first_look.yaml", "--preset=map"])
    assert (config.method, config.recipe, config.patch_size, config.steps) == ("erm", "adaptive", 9, 2000)
    for words in (["--preset", "mop"], ["--preset", "../recipe/paper"]):
        with pytest.raises(ConfigError, match="preset must be map"):
            parse_train(words)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        parse_train(["--steps", "0"])


def test_steps_make_epochs_whatever_the_size_of_the_source(pair, tmp_path):
    run = pair.run("--method", "erm", "--steps", "7", "--eval_interval", "100", save_path=tmp_path)
    config, (record,) = run.read_config(), run.records(run.epochs)          # 134 pixels, 3 batches of 48
    assert (config.max_epoch, config.steps, record["epoch"], record["steps"]) == (3, 7, 3, 3)
    again = main.train(["--resume", str(run.path)])
    assert again.read_config() == config
    svm = pair.run("--method", "svm", "--steps", "7", save_path=tmp_path)
    assert svm.read_config().max_epoch == 1


def test_a_run_trains_on_so_many_samples_of_each_class(pair, tmp_path):
    run = pair.run("--method", "erm", "--samples_per_class", "3", save_path=tmp_path)
    assert run.read_run()["training_pixels"] == [3] * 7 and run.read_config().samples_per_class == 3
    for words in (["--split", "blocks"], ["--training_sample_ratio", "1"], ["--samples_per_class", "-1"]):
        with pytest.raises(ConfigError, match="samples_per_class must not be negative, and replaces"):
            parse_train(["--samples_per_class", "3", *words])

"""One typed dataclass tree is the source of all flags of training; jsonargparse makes the command line of it."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional

import yaml
from jsonargparse import ArgumentParser

from model.errors import CheckpointError, ConfigError
from model.methods import method_class
from model.mmirn import MIN_PATCH
from model.settings import Settings, recipe_switches, resolve_switches

RELEASED_NAMES = {"--nce_layers": "--contrast_layers"}       # flags that the released code calls differently
WITHOUT_EFFECT = {"gpu", "data_path", "log_interval", "tensorboard", "validators", "resume", "save_path", "run_name"}
FREE_ON_RESUME = WITHOUT_EFFECT | {"max_epoch", "patience"}      # where a run ends; max_epoch only where nothing depends on it


@dataclass
class Simulation:
    """The embedded simulated pair (SimSource, SimTarget).

    Args:
        severity: strength of the domain gap: 0 none, 1 default, 2 hard.
        seed: seed of layout, materials and noise.
    """

    severity: float = 1.0
    seed: int = 0


@dataclass
class TrainConfig(Settings):
    """Train one method on a source scene, select without the target, score on the target.

    Args:
        source_name: labelled scene to train on: a registered name (configs/scene) or the path of a scene file.
        target_name: scene to score on, never trained on; null trains without one.
        data_path: folder of the scenes' files; null = ./datasets/<pair>.
        save_path: folder that holds the run folders.
        run_name: name of the run folder; null makes one from pair, method, recipe, switches and seed.
        resume: run folder to go on with; its own config is used.
        patch_size: side of the square patches, odd.
        batch_size: patches per step.
        max_epoch: epochs to train (methods that learn in a single pass: always 1).
        eval_interval: epochs between two evaluations, records and checkpoints; the last epoch always has them.
        patience: stop when the shifted-source score has not risen for so many epochs; null = train max_epoch epochs.
        training_sample_ratio: share of the labelled source pixels that train; the others are held out.
        re_ratio: how often the source's index list is repeated where the target has far more labelled pixels.
        split: 'random' (stratified, as the released code) or spatially disjoint 'blocks' with a buffer.
        seed: seed of split, initialisation, batches, augmentation, noise and mixing.
        gpu: CUDA device number; -1 = CPU. Without a GPU the run goes to the CPU and says so.
        log_interval: steps between two points of the TensorBoard curves.
        flip_augmentation: flip half the patches.
        radiation_augmentation: multiply half the patches by 0.9 to 1.1 and add noise.
        mixture_augmentation: mix half the patches with another one of the same class and add noise.
        oracle: also score the target at every evaluation, into a record of its own; never used for training.
        validators: also record the label-free validators entropy, IM and SND at every evaluation, into a record of
            their own. They use unlabelled target; never used for training or selection.
        tensorboard: also write TensorBoard curves.
        simulation: the embedded simulated pair.
    """

    source_name: str = "Houston13"
    target_name: Optional[str] = "Houston18"
    data_path: Optional[str] = None
    save_path: str = "runs"
    run_name: Optional[str] = None
    resume: Optional[str] = None
    patch_size: int = 13
    batch_size: int = 256
    max_epoch: int = 400
    eval_interval: int = 1
    patience: Optional[int] = None
    training_sample_ratio: float = 0.8
    re_ratio: int = 5
    split: Literal["random", "blocks"] = "random"
    seed: int = 333
    gpu: int = 0
    log_interval: int = 20
    flip_augmentation: bool = True
    radiation_augmentation: bool = True
    mixture_augmentation: bool = False
    oracle: bool = False
    validators: bool = False
    tensorboard: bool = False
    simulation: Simulation = field(default_factory=Simulation)


@cache                                                  # a sweep parses hundreds of command lines
def command_parser(kind: type, command: str, description: str | None = None) -> ArgumentParser:
    """The parser of one command: every field of the dataclass is a flag; --config files are layered in order."""
    parser = ArgumentParser(prog=f"main.py {command}".strip(), description=description or kind.__doc__.splitlines()[0])
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
    parser.add_class_arguments(kind)
    return parser


def parse_command(kind: type, argv: list[str], command: str = "", description: str | None = None) -> Any:
    """Command line -> dataclass `kind`.  Exits with a message that names an unknown flag or a bad value."""
    parser = command_parser(kind, command, description)
    values = parser.instantiate(parser.parse_args(tidy(argv, kind))).as_dict()
    values.pop("config")
    return kind(**values)


def parse_train(argv: list[str], description: str | None = None) -> TrainConfig:
    """The settings of a training run, every switch resolved; with --resume those of the run folder.

    Raises ConfigError for values that the types cannot refuse, CheckpointError for settings that differ on resume.
    """
    config = parse_command(TrainConfig, argv, "", description)
    if config.resume is None:
        return check(other_recipe(config, argv))
    saved = Path(config.resume) / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"{saved} does not exist: --resume wants the folder of an interrupted run.")
    original = check(parse_command(TrainConfig, ["--config", str(saved)]))
    config = check(parse_command(TrainConfig, ["--config", str(saved), *argv]))
    fixed_end = original.lr_schedule != "constant" or method_class(original.method).ramped
    free = FREE_ON_RESUME - ({"max_epoch"} if fixed_end else set())
    changed = [entry.name for entry in fields(config)
               if entry.name not in free and getattr(config, entry.name) != getattr(original, entry.name)]
    if changed:
        raise CheckpointError(f"--resume {config.resume} cannot change {', '.join(changed)}; start a new run for that. "
                              f"Free to change: {', '.join(sorted(free - {'resume'}))}.")
    return config


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as a run recorded them, completed with what is missing in those of an older program: the recipe's
    switches, and the defaults of everything else."""
    defaults = to_dict(TrainConfig())
    found = defaults | recipe_switches(values.get("recipe", defaults["recipe"])) | values
    return found | {"ablate": sorted(set(found["ablate"]))}


def other_recipe(config: TrainConfig, argv: list[str]) -> TrainConfig:
    """With --recipe on the command line, switches that a --config file merely took over from another recipe go with it;
    what the file or the command line flipped stays."""
    words = tidy(argv, TrainConfig)
    given = {word.partition("=")[0].removeprefix("--") for word in words}
    if "recipe" in given and "config" in given:
        files = [word for before, word in zip([""] + words, words) if word.startswith("--config") or before == "--config"]
        for name, value in recipe_switches(parse_command(TrainConfig, files).recipe).items():
            if name not in given and getattr(config, name) == value:
                setattr(config, name, None)
    return config


def check(config: TrainConfig) -> TrainConfig:
    """Resolve the recipe and refuse impossible values, by name."""
    method = method_class(config.method)
    resolve_switches(config)
    config.ablate = sorted(set(config.ablate))
    if method.single_pass:
        config.max_epoch = 1
    if method.uses_target and config.target_name is None:
        raise ConfigError(f"method '{config.method}' adapts to unlabelled target pixels, but there is no target_name.")
    for option, able in (("compile", method.compiled), ("cuda_graph", method.recorded)):
        if getattr(config, option) and not able:
            raise ConfigError(f"{option} does not work with method '{config.method}'; leave --{option} out.")
    if config.patch_size < MIN_PATCH or config.patch_size % 2 == 0:
        raise ConfigError(f"patch_size must be odd and at least {MIN_PATCH}, not {config.patch_size}: the classified "
                          "pixel is the patch's centre.")
    if not 0 < config.training_sample_ratio < 1:
        raise ConfigError(f"training_sample_ratio must lie between 0 and 1, not {config.training_sample_ratio}: some "
                          "source pixels are held out.")
    for name in ("batch_size", "max_epoch", "eval_interval", "re_ratio", "log_interval"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}.")
    if config.patience is not None and config.patience < 1:
        raise ConfigError(f"patience must be at least 1 (or null: no early stopping), not {config.patience}.")
    if config.seed < 0 or config.simulation.seed < 0:
        raise ConfigError("seeds must not be negative.")
    if config.simulation.severity < 0:
        raise ConfigError(f"simulation.severity must not be negative, not {config.simulation.severity}.")
    if config.oracle and config.target_name is None:
        raise ConfigError("oracle scores the target every epoch, but there is no target_name.")
    if config.validators and config.target_name is None:
        raise ConfigError("validators look at unlabelled target pixels, but there is no target_name.")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass tree as plain dictionaries and lists."""
    return {entry.name: to_dict(value) if is_dataclass(value := getattr(config, entry.name)) else value
            for entry in fields(config)}


def to_yaml(config: TrainConfig) -> str:
    """The resolved settings as a file that --config reads back; the run's own name and --resume are left out."""
    values = {name: value for name, value in to_dict(config).items() if name not in ("resume", "run_name")}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def tidy(argv: list[str], kind: type) -> list[str]:
    """The spellings that the released code's users know, in jsonargparse's: a boolean flag alone is true; a list may
    be `a b` or `a,b`; nce_layers is contrast_layers.  Config files go to the front, so that flags win over them."""
    hints = typing.get_type_hints(kind)
    types = {f"--{entry.name}": str(hints[entry.name]) for entry in fields(kind)}
    out, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        flag = RELEASED_NAMES.get(flag, flag)
        out.append(flag + equals + value)
        if equals or flag not in types:
            continue
        taken = []
        if "bool" in types[flag]:
            taken = [rest.pop(0)] if rest and rest[0].lower() in ("true", "false", "yes", "no") else ["true"]
        elif "list" in types[flag].lower():
            while rest and not rest[0].startswith("--"):
                taken.append(rest.pop(0))
            if taken and not taken[0].startswith("["):
                taken = ["[" + ",".join(taken) + "]"]
        out += taken
    files = [i for i, word in enumerate(out) if word.startswith("--config=") or "--config" in (word, *out[max(i - 1, 0):i])]
    return [out[i] for i in files] + [word for i, word in enumerate(out) if i not in files]

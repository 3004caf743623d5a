"""The settings of a training run: one typed dataclass, read from files and from the command line, checked."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional

import yaml

from datasets.described import SUFFIXES, is_own, located
from model.errors import CheckpointError, ConfigError, RunFolderError, shortened
from model.methods import method_class
from model.mmirn import MIN_PATCH
from model.plain import check_form, check_words, is_file, read_settings
from model.settings import Settings, Switches, kept_below, resolve_switches
from utils.run.flags import LONGEST_MESSAGE, Parser, TrainHelp, split_files, split_presets, tidy, without_ignored
from utils.run.records import REMEDY, misfit, shape_of

log = logging.getLogger(__name__)

WITHOUT_EFFECT = {"gpu", "data_path", "log_interval", "tensorboard", "validators", "resume", "save_path", "run_name"}
FREE_ON_RESUME = WITHOUT_EFFECT | {"max_epoch", "patience"}      # where a run ends, if nothing else depends on it
SEALED, COUNTED, RELEASED = "sealed", "counted", "released"    # protocols
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROTOCOLS, PRESETS = CONFIGS / "protocol", CONFIGS / "preset"
BEFORE = {                              # method -> what its runs did before these could be set
    "daan": {"daan_global": 0.5, "daan_local": 0.5, "daan_shares": "detached"},
    "sagnet": {"sagnet_adversary": "early"},
    "pden": {"pden_lr_factor": 1.0}}
LARGEST_COUNT = 10 ** 6                  # of patches in a batch, epochs, and the like
GROUPS = {                              # of `train --help`; every setting is in one of them
    "scenes and data": ("source_name", "target_name", "bands", "data_path", "simulation", "training_sample_ratio",
                        "samples_per_class", "re_ratio", "split", "protocol", "ceiling", "flip_augmentation",
                        "radiation_augmentation", "mixture_augmentation"),
    "size": ("patch_size", "batch_size", "max_epoch", "steps", "eval_interval", "patience", "pro_dim", "GIN_ch",
             "mmirn_filters"),
    "method": ("method", "recipe", "ablate", "lr", "temp", "beta", "gain_strength", "htcnn_weights", "daan_global",
               "daan_local", "daan_shares", "sagnet_adversary", "pden_lr_factor"),
    "the run": ("seed", "gpu", "deterministic", "save_path", "run_name", "resume", "oracle", "validators", "tensorboard",
                "log_interval", "backend", "precision", "compile", "cuda_graph"),
    "switches of the recipe (docs/fidelity.md)": tuple(entry.name for entry in fields(Switches))}


@dataclass
class Simulation:
    """The embedded simulated pair (SimSource, SimTarget).

    Args:
        severity: strength of the domain gap: 0 none, 1 default, 2 hard.
        seed: seed of layout, materials and noise.
        gap: what the severity scales: one 'fixed' gap for all seeds, or one 'drawn' by each seed (docs/data.md).
    """

    severity: float = 1.0
    seed: int = 0
    gap: Literal["fixed", "drawn"] = "fixed"


@dataclass
class TrainConfig(Settings):
    """Train one method on a source scene, select without the target, score on the target.

    Args:
        source_name: labelled scene to train on: a registered name (configs/scene) or the path of a scene file.
        target_name: scene to score on, never trained on; null trains without one.
        bands: where the two have different bands: 'common' brings both to those of the coarser sensor inside their
            overlap, 'source' the target to those of the source.
        data_path: folder of the scenes' files; null = ./datasets/<pair>.
        save_path: folder that holds the run folders.
        run_name: name of the run folder; null makes one from pair, method, recipe, switches and seed.
        resume: run folder to go on with; its own config is used.
        patch_size: side of the square patches, odd.
        batch_size: patches per step.
        max_epoch: epochs to train (methods that learn in a single pass: always 1).
        steps: train as many epochs as have at least so many steps, whatever the size of the source, in place of
            max_epoch; null = max_epoch.
        eval_interval: epochs between two evaluations, records and checkpoints; the last epoch always has them.
        patience: stop when the shifted-source score has not risen for so many epochs; null = train max_epoch epochs.
        training_sample_ratio: share of the labelled source pixels that train; the others are held out. With 1 all of
            them train, there is no source validation, and the last epoch alone is scored.
        samples_per_class: above 0, so many labelled source pixels of each class train, drawn by the seed, in place of
            training_sample_ratio; all others are held out.
        re_ratio: how often the source's index list is repeated: always, or (protocol 'counted') where the target has
            far more labelled pixels.
        split: 'random' (stratified, by seed), 'released' (stratified, one split for all seeds, as the released code) or
            spatially disjoint 'blocks' with a buffer.
        protocol: 'sealed' = nothing that training does depends on the target's labels; 'counted' = their number decides
            whether re_ratio holds, as in the released code; 'released' = the same, with that code's split and choice of
            the epoch on the target's labels (configs/protocol/released.yaml, which further settings change). null =
            'counted' in recipes released and paper (compared methods among them) on registered scenes, 'sealed' in the
            others and on scene files of your own.
        seed: seed of split, initialisation, batches, augmentation, noise and mixing.
        gpu: CUDA device number; -1 = CPU. Without a GPU the run goes to the CPU and says so.
        deterministic: on a GPU take only algorithms that give the same bits every time, which are slower; a CPU always
            does.
        log_interval: steps between two points of the TensorBoard curves.
        flip_augmentation: flip half the patches.
        radiation_augmentation: multiply half the patches by 0.9 to 1.1 and add noise.
        mixture_augmentation: mix half the patches with another one of the same class and add noise.
        ceiling: train on half of the target's own labels in place of the source's, and score on the other half, apart
            by the patch: what is possible on that target, not what a method reaches.
        oracle: also score the target at every evaluation, into a record of its own, and keep the weights of the epoch
            that is best on its labels, which no honest score may come from; never used for training.
        validators: also record the label-free validators entropy, IM and SND at every evaluation, into a record of
            their own. They use unlabelled target; never used for training or selection.
        tensorboard: also write TensorBoard curves.
        simulation: the embedded simulated pair.
    """

    source_name: str = "Houston13"
    target_name: Optional[str] = "Houston18"
    bands: Literal["common", "source"] = "common"
    data_path: Optional[str] = None
    save_path: str = "runs"
    run_name: Optional[str] = None
    resume: Optional[str] = None
    patch_size: int = 13
    batch_size: int = 256
    max_epoch: int = 400
    steps: Optional[int] = None
    eval_interval: int = 1
    patience: Optional[int] = None
    training_sample_ratio: float = 0.8
    samples_per_class: int = 0
    re_ratio: int = 5
    split: Literal["random", "released", "blocks"] = "random"
    protocol: Optional[Literal["sealed", "counted", "released"]] = None
    seed: int = 333
    gpu: int = 0
    deterministic: bool = False
    log_interval: int = 20
    flip_augmentation: bool = True
    radiation_augmentation: bool = True
    mixture_augmentation: bool = False
    ceiling: bool = False
    oracle: bool = False
    validators: bool = False
    tensorboard: bool = False
    simulation: Simulation = field(default_factory=Simulation)


def command_parser(kind: type, command: str, description: str) -> Parser:
    """The parser of a command whose flags are the fields of a dataclass; --config files are layered in order."""
    parser = Parser(command, description)
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
    parser.add_class_arguments(kind)
    return parser


def parse_command(kind: type, words: list[str], parser: Parser) -> Any:
    """Command line -> dataclass `kind`.  Raises ConfigError that names an unknown flag or a bad value.

    The fields of `kind` are no dataclasses, so that the parser imports nothing for what a file says.
    """
    files, flags = split_files(tidy(words, kind))
    for file in files:
        read_settings(file, kind)
    return _instantiated(parser, kind, parser.parse_args([f"--config={file}" for file in files] + flags))


@cache                                                  # a sweep reads hundreds of settings
def train_parser() -> Parser:
    """The parser of `train`, its flags in GROUPS."""
    parser = Parser("train", TrainConfig.__doc__.splitlines()[0], print_config=None, formatter_class=TrainHelp,
                    usage="main.py [train] [--config FILE ...] [--SETTING VALUE ...]")
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times")
    parser.add_argument("--preset", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")),
                        help="settings of configs/preset, below those of --config and of flags; map: for maps of your "
                             "own scenes")
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and stop")
    names = {entry.name for entry in fields(TrainConfig)}
    for title, members in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in members:
            group.add_class_arguments(TrainConfig, as_group=False, skip=names - {name})
    return parser


def parse_train(argv: list[str]) -> TrainConfig:
    """The settings of a training run, every switch resolved; with --resume those of the run folder.

    With --print_config the settings are printed and the program ends.  Raises ConfigError for flags, values and
    combinations that cannot be, CheckpointError for settings that differ on resume.
    """
    argv, ignored = without_ignored(argv)
    if ignored:
        log.warning("%s: no effect, here as in the released code.", ", ".join(dict.fromkeys(ignored)))
    presets, argv = split_presets(argv)
    files, flags = split_files(tidy(argv, TrainConfig))
    files = [*map(_preset, presets), *files]
    shown = "--print_config" in flags
    below, above = _layered(files), _given([word for word in flags if word != "--print_config"])
    resume = above.get("resume") or below.get("resume")
    config = check(_merged(below, above)) if resume is None else _resumed(resume, over(below, above))
    if shown:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _preset(name: str) -> str:
    """The file of a preset.  Raises ConfigError for a name that is none."""
    if (path := PRESETS / f"{name}.yaml") not in PRESETS.glob("*.yaml"):
        raise ConfigError(f"preset must be {' or '.join(sorted(path.stem for path in PRESETS.glob('*.yaml')))}, not "
                          f"{shortened(name, LONGEST_MESSAGE)}.")
    return str(path)


def read_config(*paths: str | Path, **changes: Any) -> TrainConfig:
    """The settings in files, layered in order, with changes over them; every switch resolved.

    changes: settings by name, a part of a nested one as a dictionary (simulation={"severity": 2.0}).
    Raises ConfigError if a file does not exist, or a setting is unknown or impossible.
    """
    check_form(changes, TrainConfig)
    return check(_merged(_layered(paths), with_protocol(changes)))


def read_saved(path: Path, **changes: Any) -> TrainConfig:
    """The settings of a run's config.yaml with changes over them; the protocol of a run that names none is counted, as
    all were before there was a choice.  Raises RunFolderError if the file is damaged."""
    try:
        saved = completed({"protocol": COUNTED} | _layered([path]))
        original = check(_merged(saved, {}))
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise RunFolderError(f"{where}{error} {REMEDY}") from error
    check_form(changes, TrainConfig)
    return check(_merged(saved, changes)) if changes else original


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run's config.yaml with those that its program did not have yet, as its method worked then."""
    return BEFORE.get(str(saved.get("method")), {}) | saved


def changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A copy with other settings, checked; the given one stays as it is."""
    own = {entry.name: copy.copy(value) for entry in fields(config)
           if isinstance(value := getattr(config, entry.name), (list, Simulation))}
    return check(replace(config, **own | changes))


def _layered(paths: Iterable[str | Path]) -> dict[str, Any]:
    """The settings that files set, the later ones over the earlier ones."""
    found: dict[str, Any] = {}
    for path in paths:
        found = over(found, with_protocol(parsed(read_settings(path, TrainConfig), path)))
    return found


def with_protocol(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of the protocol that they name below them (configs/protocol, where it has a file)."""
    return _protocol_file(settings["protocol"]) | settings if settings.get("protocol") else settings


@cache
def _protocol_file(name: str) -> dict[str, Any]:
    path = PROTOCOLS / f"{name}.yaml"
    return read_settings(path, TrainConfig) if is_file(path) else {}


def parsed(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The settings of a file, of their types."""
    try:
        return train_parser().parse_object(content, defaults=False).as_dict()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _given(words: list[str]) -> dict[str, Any]:
    """The settings that command-line words set, and no others."""
    check_words(words, TrainConfig)
    given = train_parser().parse_args(words, defaults=False).as_dict()
    given.pop("config", None)
    return with_protocol(given)


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Settings over others, nested ones part by part."""
    return below | {name: below[name] | value if isinstance(value, dict) and isinstance(below.get(name), dict) else value
                    for name, value in above.items()}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> TrainConfig:
    parser = train_parser()
    return _instantiated(parser, TrainConfig, parser.parse_object(over(kept_below(below, above), above)))


def _instantiated(parser: Parser, kind: type, parsed: Any) -> Any:
    values = parser.instantiate(parsed).as_dict()
    return kind(**{entry.name: values[entry.name] for entry in fields(kind)})


def _resumed(folder: str, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run folder with those given.  Raises CheckpointError if one may not change."""
    saved = Path(folder) / "config.yaml"
    if not is_file(saved):
        raise CheckpointError(f"{saved} does not exist: --resume wants the folder of an interrupted run.")
    original, config = read_saved(saved), read_saved(saved, **given)
    fixed_end = original.lr_schedule != "constant" or method_class(original.method).needs_progress
    free = FREE_ON_RESUME - ({"max_epoch"} if fixed_end else set())
    different = [entry.name for entry in fields(config)
                 if entry.name not in free
                 and not same_setting(entry.name, getattr(config, entry.name), getattr(original, entry.name))]
    if different:
        raise CheckpointError(f"--resume {folder} cannot change {', '.join(different)}; start a new run for that. "
                              f"Free to change: {', '.join(sorted(free - {'resume'}))}.")
    return config


def same_setting(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; a scene file may have moved (its data are compared elsewhere)."""
    own = name in ("source_name", "target_name") and all(str(value).endswith(SUFFIXES) for value in (one, other))
    return Path(one).name == Path(other).name if own else one == other


def with_whole_paths(config: TrainConfig) -> TrainConfig:
    """The settings with the paths of scene files and data from the root on, for use from any folder."""
    paths = {name: os.path.abspath(located(value, config.data_path)) for name in ("source_name", "target_name")
             if is_own(value := getattr(config, name))}
    return replace(config, **paths, data_path=config.data_path and os.path.abspath(config.data_path))


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`.  A setting that is missing has its default, a switch the recipe's value, and the
    protocol is counted.  Raises ConfigError if a name is no setting, or a value is impossible."""
    if unknown := sorted(values.keys() - {entry.name for entry in fields(TrainConfig)}):
        raise ConfigError(f"{', '.join(unknown)}: there is no such setting.")
    check_form(values, TrainConfig)
    if wrong := misfit(values, shape_of(TrainConfig), "the settings"):
        raise ConfigError(f"{wrong}.")
    config = TrainConfig(**values | {"simulation": Simulation(**values.get("simulation", {}))})
    resolve_switches(config)
    config.protocol = config.protocol or COUNTED
    return config


def check(config: TrainConfig) -> TrainConfig:
    """Resolve the recipe and refuse impossible values, by name."""
    method = method_class(config.method)
    resolve_switches(config)
    config.ablate = sorted(set(config.ablate))
    config.protocol = config.protocol or usual_protocol(config)
    if method.fits_in_one_epoch:
        config.max_epoch = 1
    if method.uses_target and config.target_name is None:
        raise ConfigError(f"method '{config.method}' adapts to unlabelled target pixels, but there is no target_name.")
    for option, able in (("compile", method.supports_compile), ("cuda_graph", method.supports_cuda_graph)):
        if getattr(config, option) and not able:
            raise ConfigError(f"{option} does not work with method '{config.method}'; leave --{option} out.")
    if config.patch_size < MIN_PATCH or config.patch_size % 2 == 0:
        raise ConfigError(f"patch_size must be odd and at least {MIN_PATCH}, not {config.patch_size}: the classified "
                          "pixel is the patch's centre.")
    if not 0 < config.training_sample_ratio <= 1:
        raise ConfigError("training_sample_ratio must be above 0 and at most 1 (all labelled pixels train), not "
                          f"{config.training_sample_ratio}.")
    if config.samples_per_class and (config.samples_per_class < 0 or config.split != "random"
                                     or config.training_sample_ratio == 1):
        raise ConfigError("samples_per_class must not be negative, and replaces the rule by which the source is split: "
                          "leave --split and a --training_sample_ratio of 1 out.")
    for name in ("batch_size", "max_epoch", "eval_interval", "re_ratio", "log_interval"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}.")
        if getattr(config, name) > LARGEST_COUNT:
            raise ConfigError(f"{name} must be at most {LARGEST_COUNT:,}, not {getattr(config, name):,}.")
    if config.steps is not None and not 1 <= config.steps <= LARGEST_COUNT ** 2:
        raise ConfigError(f"steps must be at least 1 (or null: max_epoch epochs), not {config.steps}.")
    if config.patience is not None and config.patience < 1:
        raise ConfigError(f"patience must be at least 1 (or null: no early stopping), not {config.patience}.")
    if config.patience is not None and config.training_sample_ratio == 1:
        raise ConfigError("patience waits for a score on held-out source pixels, but training_sample_ratio 1 holds "
                          "none out. Leave --patience out, or choose a smaller ratio.")
    if config.seed < 0 or config.simulation.seed < 0:
        raise ConfigError("seeds must not be negative.")
    if not 0 <= config.simulation.severity < math.inf:
        raise ConfigError(f"simulation.severity must not be negative, not {config.simulation.severity}.")
    if config.ceiling and config.target_name is None:
        raise ConfigError("ceiling trains on the target's own labels, but there is no target_name.")
    if config.protocol == RELEASED and not config.oracle:
        raise ConfigError("protocol 'released' chooses the epoch on the target's labels: leave --oracle false out, or "
                          "choose --protocol counted.")
    if config.oracle and config.target_name is None:
        raise ConfigError("oracle scores the target every epoch, but there is no target_name.")
    if config.validators and config.target_name is None:
        raise ConfigError("validators look at unlabelled target pixels, but there is no target_name.")
    return config


def usual_protocol(config: TrainConfig) -> str:
    """What `protocol` null means."""
    own = any((name or "").endswith(SUFFIXES) for name in (config.source_name, config.target_name))
    return SEALED if own or config.recipe not in ("released", "paper") else COUNTED


def to_dict(config: TrainConfig | Simulation) -> dict[str, Any]:
    """The settings as plain dictionaries and lists.  A fixed gap is left out, and a protocol that is counted or changes
    nothing: runs, names and tables of before there were others stay what they are."""
    left_out = set()
    if isinstance(config, Simulation):
        left_out = {"gap"} if config.gap == "fixed" else set()
    elif config.protocol != SEALED or config.re_ratio == 1:
        left_out = {"protocol"}
    return {name: to_dict(value) if isinstance(value := getattr(config, name), Simulation) else value
            for name in config.__dataclass_fields__ if name not in left_out}


def to_yaml(config: TrainConfig) -> str:
    """The resolved settings as a file that --config reads back; the run's own name and --resume are left out."""
    values = to_dict(config) | {"protocol": config.protocol}
    values = {name: value for name, value in values.items() if name not in ("resume", "run_name")}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

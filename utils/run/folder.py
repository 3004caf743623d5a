"""The run folder: resolved config, run.json, JSON lines per epoch, evaluation, weights and figures."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.errors import CheckpointError, ConfigError
from model.methods import method_class
from model.settings import Settings, flipped_switches
from utils import process
from utils.run.config import WITHOUT_EFFECT, TrainConfig, from_dict, to_dict, to_yaml
from utils.text import write_text

if TYPE_CHECKING:
    from utils.run.build import Data

PACKAGES = ("torch", "numpy", "scipy", "h5py", "scikit-learn", "mmcv-lite", "cupy-cuda13x")
NAMED_LENGTH = 100        # of the settings in a folder's name; the limit is 255 bytes, and the hash keeps it unique
PLAIN_RECIPE = "released"   # changes nothing in a method that no recipe defines
ROOT = Path(__file__).resolve().parents[2]
VERSION = ROOT / "VERSION"


class RunFolder:
    """One run's folder.  Whole files are replaced atomically, records are appended."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.run = self.path / "config.yaml", self.path / "run.json"
        self.epochs, self.oracle = self.path / "epochs.jsonl", self.path / "oracle.jsonl"
        self.diagnostics, self.validators = self.path / "diagnostics.jsonl", self.path / "validators.jsonl"
        self.evaluation, self.figures = self.path / "evaluation.json", self.path / "figures"
        self.checkpoint = self.path / "checkpoint.pt"

    @classmethod
    def create(cls, config: TrainConfig, name: str) -> RunFolder:
        """Make a new run folder and write its config; a finished run of the same name is left alone, this one gets a
        number behind its name.  Raises ConfigError if the folder cannot be used."""
        if config.run_name is not None and Path(config.run_name).name != config.run_name:
            raise ConfigError(f"run_name '{config.run_name}' must be a plain name; the folder above it is --save_path.")
        folder, number = cls(Path(config.save_path) / (config.run_name or name)), 1
        while folder.checkpoint.exists():           # without one a run never started, and its folder is free
            if folder.read_run().get("status") != "done":
                raise ConfigError(f"{folder.path} is there already, unfinished. Go on with it: --resume {folder.path}, or "
                                  "give this run another --run_name.")
            if config.run_name:
                raise ConfigError(f"{folder.path} is there already and done. Give this run another --run_name.")
            number += 1
            folder = cls(Path(config.save_path) / f"{name}_{number}")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
        except OSError as error:
            raise ConfigError(f"The run folder {folder.path} cannot be written ({error.strerror}). Choose another "
                              "--save_path.") from error
        return folder

    def write_config(self, config: TrainConfig) -> None:
        write_text(self.config, to_yaml(config))

    def begin(self, config: TrainConfig, data: Data, environment: dict[str, Any]) -> None:
        """Write what is known before the first step to run.json."""
        self.update_run(status="running", error=None, stopped_early=None, label=run_label(config), seed=config.seed,
                        source=data.source.name, target=data.target and data.target.name,
                        classes=list(data.source.class_names), bands=data.task.bands, sha256=data.sha256,
                        uses_target=method_class(config.method).uses_target,
                        labelled_target_pixels=len(data.test) if data.test else 0, **environment)

    def append(self, path: Path, record: dict[str, Any]) -> None:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, path: Path) -> list[dict[str, Any]]:
        """The records of a JSON-lines file; a line cut short by a crash counts as not written."""
        return [json.loads(line) for line in _whole_lines(path)]

    def cut_records(self, last_epoch: int) -> None:
        """Drop what was recorded after the checkpoint's epoch, so that going on does not record it twice."""
        for path in (self.epochs, self.oracle, self.diagnostics, self.validators):
            if path.exists():
                kept = [record for record in self.records(path) if record["epoch"] <= last_epoch]
                write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def read_run(self) -> dict[str, Any]:
        return json.loads(self.run.read_text()) if self.run.exists() else {}

    def update_run(self, **entries: Any) -> None:
        """Set entries of run.json, keeping the others."""
        write_text(self.run, json.dumps(self.read_run() | entries, indent=1) + "\n")


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def find_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """All run folders at or below some folders, each once."""
    found = [path.parent for folder in folders for path in sorted(Path(folder).rglob("config.yaml"))]
    return [RunFolder(path) for path in dict.fromkeys(found)]


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.  Raises CheckpointError if the folder is no run."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise CheckpointError(f"{path} is not a run folder (it has no config.yaml).")
    return folder


def run_label(settings: Settings) -> str:
    """How every record and table calls a run: method, recipe, flipped switches, ablations, the method's note.

    The recipe is named where it means something (`method_label`).
    """
    return " ".join([method_label(settings.method, settings.recipe), *_changes(settings)])


def method_label(method: str, recipe: str) -> str:
    """The method and its recipe; of a method that no recipe defines, the plain recipe is left out."""
    return method if recipe == PLAIN_RECIPE and not method_class(method).defined_by_recipe else f"{method} {recipe}"


def _changes(settings: Settings) -> list[str]:
    """Flipped switches, ablations, the method's note."""
    switches = [f"{name}={_short(value)}" for name, value in flipped_switches(settings).items()]
    note = method_class(settings.method).label_note(settings)
    return [*switches, *settings.ablate, *([note] if note else [])]


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def run_name(config: TrainConfig) -> str:
    """A run folder's name: pair, method, recipe, what the label says beside them, seed, `config_hash`."""
    words = "_".join([config.method, config.recipe, *_changes(config)])
    words = words.replace(" ", "_").replace("=", "-").replace(",", ".")[:NAMED_LENGTH]
    source, target = (Path(name).stem if name else "none" for name in (config.source_name, config.target_name))
    return f"{source}-{target}_{words}_seed{config.seed}_{config_hash(config)}"


def config_hash(config: TrainConfig) -> str:
    """Eight hex digits of the settings that differ from the recipe's and the defaults, without those that cannot change
    a result: so a setting that a later program adds leaves the names of runs without it as they were."""
    usual = to_dict(from_dict({"recipe": config.recipe}))
    kept = {name: value for name, value in to_dict(config).items()
            if name not in WITHOUT_EFFECT and (name == "recipe" or value != usual[name])}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, git commit, command line, device, backend."""
    return {"versions": {"python": platform.python_version()} | _versions(), "git": _git(), "command": sys.argv[1:],
            "platform": platform.platform(), "device": device_name(device), "backend": backend,
            "threads": torch.get_num_threads()}


def version() -> str:
    """S2AMSnet 0.9.0, commit 0123456789+ where it is known."""
    commit = _git()
    return f"S2AMSnet {VERSION.read_text().strip()}" + (f", commit {commit}" if commit else "")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> str | None:
    """The commit of the program, with '+' where tracked files differ from it; None outside a git checkout."""
    def ask(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    try:
        commit = ask("rev-parse", "HEAD")
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if ask("status", "--porcelain", "-uno").stdout.strip() else "")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far in MiB: the GPU's allocations on CUDA, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    return process.highest() / 2 ** 20

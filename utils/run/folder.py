"""The run folder: resolved config, run.json, JSON lines per epoch, evaluation, weights and figures."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import CheckpointError, ConfigError, RunFolderError, UserError
from model.files import LONGEST_NAME, is_plain_name, named_in_errors, remove_parts, sync_to_disk
from model.methods import method_class
from model.settings import Settings, flipped_switches
from utils.run.config import WITHOUT_EFFECT, TrainConfig, from_dict, read_saved, to_dict, to_yaml, with_whole_paths
from utils.run.lock import has_locks, locked
from utils.run.records import ABOUT, EVALUATION, check_square, damaged, parsed, read_json, read_text, record_shape
from utils.run.selection import ORACLE, SOURCE_SCORES
from utils.text import write_text

if TYPE_CHECKING:
    from utils.run.build import Data

log = logging.getLogger(__name__)

NAMED_LENGTH = 100        # of the settings in a folder's name; the limit is 255 bytes, and the hash keeps it unique
CEILING = "ceiling ("     # what the label of a run on the target's own labels begins with
PLAIN_RECIPE = "released"   # changes nothing in a method that no recipe defines
ROOT = Path(__file__).resolve().parents[2]


class RunFolder:
    """One run's folder.  Whole files are replaced atomically, records are appended; inside a `with` block this process
    alone works there (see `hold`)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.run = self.path / "config.yaml", self.path / "run.json"
        self.epochs, self.oracle = self.path / "epochs.jsonl", self.path / "oracle.jsonl"
        self.diagnostics, self.validators = self.path / "diagnostics.jsonl", self.path / "validators.jsonl"
        self.evaluation, self.figures = self.path / "evaluation.json", self.path / "figures"
        self.checkpoint = self.path / "checkpoint.pt"
        self.recorded = (self.epochs, self.oracle, self.diagnostics, self.validators)
        self._lock: ExitStack | None = None

    @classmethod
    def create(cls, config: TrainConfig, name: str) -> RunFolder:
        """Make a new run folder, hold it and write its config; a finished run of the same name is left alone, this one
        gets a number behind its name.

        Raises ConfigError if the folder cannot be used, RunFolderError if another process works there.
        """
        if config.run_name and not is_plain_name(config.run_name):
            raise ConfigError(f"run_name '{config.run_name[:LONGEST_NAME]}' must be a plain name of at most "
                              f"{LONGEST_NAME} letters; the folder above it is --save_path.")
        number, folder = 1, cls(Path(config.save_path) / (config.run_name or name))
        try:
            while not folder._take(config):
                number += 1
                folder = cls(Path(config.save_path) / f"{name}_{number}")
            folder.write_config(config)
        except OSError as error:
            folder.release()
            raise ConfigError(f"The run folder {folder.path} cannot be written ({error.strerror}). Choose another "
                              "--save_path.") from error
        return folder

    def _take(self, config: TrainConfig) -> bool:
        """Hold the folder for a new run; False where a finished one is in it.  Raises ConfigError if there may be no
        other beside it, or an unfinished one is in it."""
        if not self._is_done():
            self.hold()
            if not self._is_done():               # nor was it just now, by another process
                self._clear()
                return True
            self.release()
        if config.run_name:
            raise ConfigError(f"{self.path} is there already and done. Give this run another --run_name.")
        return False

    def _is_done(self) -> bool:
        return self.run.exists() and self.read_run().get("status") == "done"

    def _clear(self) -> None:
        """Drop the records of a run that has no checkpoint to go on from.  Raises ConfigError, and releases the folder, if
        there is one."""
        if self.checkpoint.exists():
            self.release()
            raise ConfigError(f"{self.path} is there already, unfinished. Go on with it: --resume {self.path}, or give "
                              "this run another --run_name.")
        if left := [path for path in self.recorded if path.exists()]:
            log.warning("%s: records of an unfinished run without a checkpoint are replaced.", self.path)
            for path in left:
                path.unlink()

    def hold(self) -> None:
        """Take the folder's lock until `release`, or until this process ends.  Raises RunFolderError if another process
        has it, or if one of its files is a link; where the file system has no locks, the log says so."""
        if self._lock is not None:
            return
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.is_symlink():                 # a stranger's folder could have any file written through it
                raise RunFolderError(f"{path} is a link; a run folder holds its own files. Put the file itself there.")
        lock = ExitStack()
        try:
            lock.enter_context(locked(self.path, wait=False))
            remove_parts(self.path)
        except BlockingIOError as error:
            raise RunFolderError(f"Another process works in {self.path}. Wait until it has ended, or stop it."
                                 ) from error
        except OSError as error:
            if has_locks(error):
                raise
            log.warning("%s is on a file system without locks: see that no other process works there.", self.path)
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def write_config(self, config: TrainConfig) -> None:
        write_text(self.config, to_yaml(with_whole_paths(config)))

    def begin(self, config: TrainConfig, data: Data, environment: dict[str, Any]) -> None:
        """Write what is known before the first step to run.json."""
        self.update_run(status="running", error=None, stopped_early=None, label=run_label(config), seed=config.seed,
                        source=data.pair_source, target=data.target and data.target.name,
                        **{"classes" if name == "class_names" else name: value for name, value in
                           data.common.entries().items()},
                        resampling=data.resampling, preprocessing=data.preprocessing, sha256=data.sha256,
                        uses_target=method_class(config.method).uses_target,
                        labelled_target_pixels=len(data.test) if data.test else 0, ceiling=config.ceiling,
                        training_pixels=data.train.class_counts(len(data.source.class_names)),
                        **spread_of(data), **environment)

    def append(self, path: Path, record: dict[str, Any]) -> None:
        with named_in_errors(path), open(path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, path: Path, *needed: str) -> list[dict[str, Any]]:
        """The records of a JSON-lines file; a line cut short by a crash counts as not written.

        Raises RunFolderError if a line is damaged, of another shape, or lacks an entry that is needed.
        """
        if not path.exists():
            return []
        lines = [line for line in read_text(path).splitlines(keepends=True) if line.endswith("\n")]
        shape = record_shape(path.name, needed)
        found = [parsed(path, line, shape, f"line {number}") for number, line in enumerate(lines, 1)]
        if path == self.oracle:
            check_square(path, found)
        return found

    def cut_records(self, last_epoch: int) -> None:
        """Drop what was recorded after the checkpoint's epoch, so that going on does not record it twice."""
        kept = {path: [record for record in self.records(path) if record["epoch"] <= last_epoch]
                for path in self.recorded if path.exists()}
        for path, records in kept.items():
            write_text(path, "".join(json.dumps(record) + "\n" for record in records))

    def check_records(self, last_epoch: int, config: TrainConfig) -> None:
        """Raise RunFolderError if the records up to the checkpoint's epoch are not those that training leaves: one per
        evaluation, in order, in every file."""
        found = {path: [record["epoch"] for record in self.records(path) if record["epoch"] <= last_epoch]
                 for path in self.recorded}
        evaluated = sorted({*found[self.epochs]} - {0})
        due = chain(range(config.eval_interval, last_epoch + 1, config.eval_interval), [last_epoch] * (last_epoch > 0))
        lacking = next((epoch for epoch in due if epoch not in evaluated), None)
        if lacking is not None:
            raise damaged(self.epochs, f"it lacks epoch {lacking}, which the checkpoint has")
        expected = {self.epochs: evaluated} | ({self.oracle: evaluated} if config.oracle else {}) | \
            ({self.diagnostics: [0, *evaluated]} if last_epoch else {})
        for path, epochs in expected.items():
            if found[path] != epochs:
                raise damaged(path, "it does not hold every epoch of the checkpoint once, in order")

    def sync_records(self) -> None:
        """Have the disk hold all records."""
        for path in self.recorded:
            if path.exists():
                sync_to_disk(path)

    def read_run(self, *needed: str) -> dict[str, Any]:
        """What run.json says; nothing where it is missing.  Raises RunFolderError if it is damaged or lacks an entry
        that is needed."""
        about = read_json(self.run, ABOUT) if needed or self.run.exists() else {}
        if missing := [name for name in needed if name not in about]:
            raise damaged(self.run, f"it lacks '{missing[0]}'")
        return about

    def read_evaluation(self) -> dict[str, Any]:
        """What evaluation.json says.  Raises RunFolderError if it is missing or damaged."""
        content = read_json(self.evaluation, EVALUATION)
        named = content["rules"] | ({"oracle": content["oracle"]} if "oracle" in content else {})
        check_square(self.evaluation, entries := list(named.values()))
        lacking = [f"'{rule}' lacks '{score}'" for rule, entry in named.items() for score in SOURCE_SCORES
                   if score not in entry]
        if lacking and self.source_scores:
            raise damaged(self.evaluation, lacking[0])
        if any("target" in entry for entry in entries) and "constant" not in content:
            raise damaged(self.evaluation, "it lacks 'constant'")
        return content

    @property
    def source_scores(self) -> tuple[str, ...]:
        """What its records hold of SOURCE_SCORES: nothing where all labelled source pixels train."""
        return () if self.read_config().training_sample_ratio == 1 else SOURCE_SCORES

    def evaluation_of(self, rule: str) -> dict[str, Any]:
        """Epoch and scores of the weights that a rule selected.  Raises RunFolderError if there are none."""
        content = self.read_evaluation()
        rules = content["rules"] | ({ORACLE.name: content["oracle"]} if "oracle" in content else {})
        if rule not in rules:
            raise damaged(self.evaluation, f"it lacks the rule '{rule}'")
        return rules[rule]

    def read_config(self, **changes: Any) -> TrainConfig:
        """The run's settings, with changes over them.  Raises RunFolderError if config.yaml is damaged, ConfigError if
        a change is impossible."""
        return read_saved(self.config, **changes)

    def update_run(self, **entries: Any) -> None:
        """Set entries of run.json, keeping the others."""
        write_text(self.run, json.dumps(self.read_run() | entries, indent=1) + "\n")


def find_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """All run folders at or below some folders, each once."""
    found = [path.parent for folder in folders for path in sorted(Path(folder).rglob("config.yaml"))]
    return [RunFolder(path) for path in dict.fromkeys(found)]


def finished_runs(folders: Iterable[str | Path]) -> list[RunFolder]:
    """The finished ones of `find_runs`; a damaged folder is left out, and the log says so.

    Raises RunFolderError if there are none but damaged ones, UserError if there is none at all.
    """
    finished, bad = [], []
    for run in find_runs(folders):
        try:
            if run.read_run().get("status") == "done":
                finished.append(run)
        except RunFolderError as error:
            bad.append(error)
    if not finished:
        raise bad[0] if bad else UserError(f"No finished run below {', '.join(map(str, folders))}.")
    for error in bad:
        log.warning("Left out: %s", error)
    return finished


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.  Raises CheckpointError if the folder is no run."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise CheckpointError(f"{path} is not a run folder (it has no config.yaml).")
    return folder


def run_label(settings: Settings) -> str:
    """How every record and table calls a run: method, recipe, flipped switches, ablations, the method's note.

    The recipe is named where it means something (`method_label`).  That of a ceiling says so first.
    """
    label = " ".join([method_label(settings.method, settings.recipe), *_changes(settings)])
    return ceiling_label(label) if isinstance(settings, TrainConfig) and settings.ceiling else label


def ceiling_label(label: str) -> str:
    """How a run with this label is called when it is a ceiling."""
    return f"{CEILING}{label})"


def is_ceiling(label: str) -> bool:
    """Whether a run's label, or a name that begins with it, is that of a ceiling."""
    return label.startswith(CEILING)


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


def spread_of(data: Data) -> dict[str, float]:
    """The spread of the source's spectra, by which later scenes are judged, where there is a scene correction."""
    correction = data.train.correction
    return {"source_spread": correction.reference.spread} if correction else {}


def run_name(config: TrainConfig) -> str:
    """A run folder's name: pair, method, recipe, what the label says beside them, seed, `config_hash`."""
    words = "_".join([*["ceiling"] * config.ceiling, config.method, config.recipe, *_changes(config)])
    words = words.replace(" ", "_").replace("=", "-").replace(",", ".")[:NAMED_LENGTH]
    source, target = (Path(name).stem if name else "none" for name in (config.source_name, config.target_name))
    return f"{source}-{target}_{words}_seed{config.seed}_{config_hash(config)}"


def config_hash(config: TrainConfig) -> str:
    """Eight hex digits of the settings that differ from the recipe's and the defaults, without those that cannot change
    a result: so a setting that a later program adds leaves the names of runs without it as they were."""
    usual = _usual(config.recipe)
    kept = {name: value for name, value in to_dict(config).items()
            if name not in WITHOUT_EFFECT and (name == "recipe" or value != usual.get(name))}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


@cache                                              # a sweep names thousands of runs
def _usual(recipe: str) -> dict[str, Any]:
    return to_dict(from_dict({"recipe": recipe}))

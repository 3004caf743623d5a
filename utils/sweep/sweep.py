"""Many runs: pairs × variants × seeds of a sweep file, some at a time on this machine or on a Ray cluster."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from datasets.errors import SceneNotFoundError
from datasets.readers import sha256
from model.errors import ConfigError
from utils.run.build import data_digests
from utils.run.config import WITHOUT_EFFECT, TrainConfig, changed, completed, to_dict, same_setting
from utils.run.folder import ROOT, RunFolder, run_name
from utils.run.lock import LOCK, locked
from utils.run.planned import write_plan
from utils.run.records import read_settings
from utils.sweep import process
from utils.sweep.cluster import train_on_ray
from utils.sweep.file import layered, read_sweep
from utils.sweep.jobs import at_a_time
from utils.sweep.process import INTERRUPTED, Run

log = logging.getLogger(__name__)

PROGRAM = str(ROOT / "main.py")


@dataclass
class SweepConfig:
    """What a sweep's command line can change.

    Args:
        config: files of settings, in order, over the sweep file's own config and settings.  What a pair or a variant
            sets stays: it is what the sweep compares.
        pairs: config files of pairs in place of the sweep file's.
        seeds: seeds in place of the sweep file's.
        save_path: folder of the runs in place of the sweep file's; of several files each has one of its name in it.
        data_path: folder of the scenes' files, for every run.
        print: print the commands that are left to do, for any scheduler, and run nothing.
        jobs: runs at a time on this machine; null = its cores ÷ the threads of a run, fewer where memory would not do,
            1 on a GPU.
        ray: run on a Ray cluster, several runs at a time: that at this address, or one of this machine alone.
        cpus_per_run: CPU cores, and threads, of a run; null = 1 with ray or several jobs, and with as many jobs as
            there are cores for: OMP_NUM_THREADS, or else cores ÷ jobs.
        gpus_per_run: with ray: share of a GPU that a run takes, 0 to 1; null = 1 where the cluster has GPUs.
    """

    config: Sequence[str] = ()
    pairs: Optional[list[str]] = None
    seeds: Optional[list[int]] = None
    save_path: Optional[str] = None
    data_path: Optional[str] = None
    print: bool = False
    jobs: Optional[int] = None
    ray: Optional[str] = None
    cpus_per_run: Optional[int] = None
    gpus_per_run: Optional[float] = None


def sweep_runs(path: Path, choice: SweepConfig) -> list[tuple[Run, TrainConfig]]:
    """Every run of a sweep with its settings, seed by seed, so that a partial table means something early.

    What is said later wins: the file's config, its settings, the command line's config, the pair, the variant.  So a
    layer of sizes makes every run smaller, except in the size that is varied.  Where that makes runs equal, one stays.
    """
    content = read_sweep(path)
    save_path = choice.save_path or content.save_path
    pairs = content.pairs if choice.pairs is None else [{"config": file} for file in choice.pairs]
    below = [{"config": content.config}, content.settings, {"config": list(choice.config)}]
    common = {"save_path": save_path} | ({} if choice.data_path is None else {"data_path": choice.data_path})
    compared = []
    for pair, variant in itertools.product(pairs, content.variants):
        layers = layered([*below, pair, variant, common])
        compared.append((layers.words(), layers.config()))
    runs = {}
    for seed, (words, one) in itertools.product(content.seeds if choice.seeds is None else choice.seeds, compared):
        config = changed(one, seed=seed)
        name = run_name(config)
        run = Run(name, str(Path(save_path) / name), [*words, "--seed", str(seed)], config.gpu >= 0)
        runs.setdefault(name, (run, config))
    return list(runs.values())


def check_made(runs: list[tuple[Run, TrainConfig]]) -> None:
    """Raise ConfigError if a run of the sweep that is there already, finished or begun, was made with other settings or
    other files than it would have now: its name, a hash of what differs from recipe and defaults, shows neither."""
    files: dict[tuple, dict[str, str]] = {}
    known: dict[str, dict] = {}
    for run, config in runs:
        folder = RunFolder(run.folder)
        if not (run.done or folder.checkpoint.exists()):
            continue
        now, then = to_dict(config) | {"protocol": config.protocol}, completed(read_settings(folder.config, known))
        different = [f"{name} ({value} there, {now.get(name)} now)" for name, value in then.items()
                     if name not in WITHOUT_EFFECT and not same_setting(name, now.get(name), value)]
        if different:
            raise ConfigError(f"{folder.path} was made with other settings: {', '.join(different)}. Choose another "
                              "--save_path for these.")
        key = (config.source_name, config.target_name, config.data_path, config.htcnn_weights, *astuple(config.simulation))
        if key not in files:
            files[key] = _digests(config)
        about = folder.read_run()
        before = about.get("sha256", {}) | about.get("initial_weights", {})
        compared = files[key] if "sha256" in about else files[key].keys() & before      # killed before its first step:
        if different := sorted(name for name in compared if before.get(name) != files[key][name]):    # see `restore`
            raise ConfigError(f"{folder.path} was made with other data: {', '.join(different)} changed since. Choose "
                              "another --save_path for these.")


def _digests(config: TrainConfig) -> dict[str, str]:
    """file -> SHA-256 of what a run reads; nothing where the files are not at hand, so that the records stand."""
    try:
        found = data_digests(config)
    except SceneNotFoundError as error:
        log.info("The runs that are there cannot be held against their data: %s", error)
        return {}
    weights = config.htcnn_weights and Path(config.htcnn_weights)
    return found | ({weights.name: sha256(weights)} if weights and weights.is_file() else {})


def planned_runs(paths: Sequence[Path], choice: SweepConfig) -> dict[Path, list[tuple[Run, TrainConfig]]]:
    """The runs of each sweep file.  Several files have folders of their own, named after them, in save_path if that is
    given."""
    if len(paths) == 1 or choice.save_path is None:
        return {path: sweep_runs(path, choice) for path in paths}
    return {path: sweep_runs(path, replace(choice, save_path=str(Path(choice.save_path) / path.stem))) for path in paths}


def run_sweep(paths: Sequence[Path], choice: SweepConfig) -> int:
    """Run what is not done of some sweep files; resume what was broken off; list failures at the end.  Exit code 1 if
    there are any."""
    return run_planned(planned_runs(paths, choice), choice)


def run_planned(planned: Mapping[Path, list[tuple[Run, TrainConfig]]], choice: SweepConfig) -> int:
    """`run_sweep` of the runs of each sweep file."""
    _check_shares(choice)
    runs = [run for of_file in planned.values() for run in of_file]
    check_made(runs)
    left = [(run, config) for run, config in runs if not run.done]
    if choice.print:
        for run, _ in left:
            print(shlex.join([sys.executable, PROGRAM, *run.arguments()]))
        return 0
    for path, of_file in planned.items():
        if of_file:
            _check_folder(folder := Path(of_file[0][0].folder).parent)
            write_plan(folder, path.stem, (config for _, config in of_file))
    if not left:
        return 0
    waiting, failed = [run for run, _ in left], {}
    name = ", ".join(path.stem for path in planned)
    folder = os.path.commonpath([str(Path(run.folder).parent) for run, _ in runs])
    here = at_a_time(choice.jobs, choice.cpus_per_run, len(runs), [config for _, config in left]) \
        if choice.ray is None else None
    with tqdm(total=len(runs), initial=len(runs) - len(left), unit="run", desc=name, dynamic_ncols=True) as bar:
        ended = _on_this_machine(waiting, *here, bar) if here else \
            train_on_ray(waiting, PROGRAM, folder, choice.ray, choice.cpus_per_run or 1, choice.gpus_per_run)
        try:
            with closing(ended):
                for run, failure in ended:
                    bar.update()
                    if failure:
                        failed[run.name] = failure
                        log.warning("%s failed; the others go on.", run.name)
        except KeyboardInterrupt:
            log.warning("Interrupted; what was under way is saved. Start the same sweep again to go on.")
            raise
    for name, failure in failed.items():
        log.warning("failed: %s: %s", name, failure)
    return 1 if failed else 0


def _check_shares(choice: SweepConfig) -> None:
    """Raise ConfigError for numbers of runs, cores and GPUs that cannot be."""
    if choice.jobs is not None and choice.jobs < 1:
        raise ConfigError(f"jobs must be at least 1, not {choice.jobs}.")
    if (choice.cpus_per_run is not None and choice.cpus_per_run < 1) or not 0 <= (choice.gpus_per_run or 0) <= 1:
        raise ConfigError("A run needs at least one CPU (--cpus_per_run) and uses at most one GPU (--gpus_per_run).")


def _on_this_machine(runs: list[Run], jobs: int, threads: Optional[int],
                     bar: tqdm) -> Iterator[tuple[Run, Optional[str]]]:
    """Train so many runs at a time, the last words of one behind the bar; yields each that has ended, with what went
    wrong.  An interrupted one ends them all, and they save.

    threads: of each run; None = what PyTorch chooses.
    """
    stop, show = threading.Event(), sys.stderr.isatty()

    def watch(words: str) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        if show:
            bar.set_postfix_str(words)

    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(process.train_logged, run, PROGRAM, environment, watch=watch): run for run in runs}
        try:
            for future in as_completed(waiting):
                code, words = future.result()
                if code == INTERRUPTED:
                    raise KeyboardInterrupt
                yield waiting[future], f"exit code {code}: {words}" if code else None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _check_folder(folder: Path) -> None:
    """Make the folder of the runs.  Raises ConfigError if it cannot be written, or its files cannot be locked."""
    try:
        with locked(folder):
            (folder / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot hold the runs: its files must be writable and lockable "
                          f"({error.strerror}). Choose another --save_path.") from error

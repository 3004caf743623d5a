"""S²AMSnet: train on one labelled hyperspectral scene, map scenes never seen.

    python main.py --source_name Houston13 --target_name Houston18 --patch_size 13 --training_sample_ratio 0.8
    python main.py --help            lists the commands; train is the default
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from typing import Any

from utils import process  # first, before torch

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)      # Ctrl-C while all the rest is imported says nothing

from tqdm import tqdm

from model.errors import NonFiniteLossError, UserError, shortened
from model.graphs import check_options
from model.seeding import Streams
from utils.commands import registry
from utils.process import refusals_told
from utils.run import estimate
from utils.run.build import augmentation, backend_of, build_method, choose_device, load_data
from utils.run.config import parse_train
from utils.run.environment import environment, peak_memory_mib, version
from utils.run.folder import RunFolder, open_run, run_label, run_name
from utils.run.summary import run_table
from utils.run.scoring import clean_patches, evaluate_source, evaluate_target, out_of_patience, score_run
from utils.run.selection import select
from utils.run.tensorboard import Curves
from utils.run.training import Progress, Training, known, restore, save, watched, with_epochs
from utils.run.validators import validate
from utils.text import UNSEEN

log = logging.getLogger("main")

PATIENT_BAR = 30.0        # seconds between progress lines where the output is not a terminal
LONGEST_ERROR = 1000      # letters


def train(argv: list[str]) -> RunFolder:
    """The training run, top to bottom; nobody else works in its folder meanwhile."""
    config = parse_train(argv)
    device = choose_device(config.gpu, config.precision, config.deterministic)
    check_options(config, device)
    with open_run(config.resume) if config.resume else nullcontext() as resumed:
        streams = Streams(config.seed, device)
        data = load_data(config, device, streams.split, known(resumed, config) if resumed else None)
        config = config if resumed else with_epochs(config, data)
        method = build_method(config, data.task, streams, device, data.adaptation)
        files = {} if resumed else method.begin_run()
        with resumed or RunFolder.create(config, run_name(config)) as run:
            training = Training(config, data, method, streams, run)
            if resumed:
                restore(training)
            with watched(training):
                if not resumed:
                    run.update_run(initial_weights=files)
                    save(training)
                run.begin(config, data, environment(device, backend_of(config, device)))
                log.info("%s, seed %d -> %s", run_label(config), config.seed, run.path)
                estimate.announce(config, data, device, config.max_epoch - training.progress.epoch)
                fit(training)
                score_run(run, method, data, training.progress.selected)
                run.update_run(status="done", seconds=training.progress.seconds,
                               peak_memory_mib=peak_memory_mib(device))
    print(run_table(run))
    return run


def fit(training: Training) -> None:
    """Epochs from the run's progress on; after every eval_interval of them: evaluate, record, checkpoint."""
    config, data, method, streams, run, progress = vars(training).values()
    steps = data.train.epoch_length(config.batch_size)
    curves = Curves(run.path / "tensorboard" if config.tensorboard else None, config.log_interval)
    if progress.epoch == 0 and not run.records(run.diagnostics):
        diagnose(training, 0)
    with progress_bar(config.max_epoch * steps, progress.epoch * steps) as bar:
        while progress.epoch < config.max_epoch and not out_of_patience(run, config.patience):
            losses, started = [], time.perf_counter()
            until = min(config.max_epoch, progress.epoch + config.eval_interval - progress.epoch % config.eval_interval)
            for epoch in range(progress.epoch + 1, until + 1):
                for x, y in data.train.batches(config.batch_size, streams.batches, streams.augmentation,
                                               augmentation(config)):                        # x [N,B,P,P], y [N]
                    done = progress.epoch * steps + len(losses)
                    method.schedule(done, steps, config.max_epoch)
                    losses.append(method.update(x, y))                                       # min step, then max step
                    check_finite({name: math.isfinite(value) for name, value in losses[-1].items()},
                                 f"at step {done + 1} (epoch {epoch})", progress.epoch)
                    curves.losses(losses[-1], done + 1)
                    show(bar, epoch, config.max_epoch, losses[-1])
                check_finite({name: bool(value.isfinite().all()) for name, value in method.named_parameters()},
                             f"after epoch {epoch}", progress.epoch)
            record = {"epoch": until, "losses": mean(losses), "seconds": time.perf_counter() - started, "steps": steps}
            scores, selected = evaluate(training, until)
            run.append(run.epochs, record | scores)
            diagnose(training, until)
            curves.scores(scores, until * steps)
            progress = Progress(until, progress.seconds + time.perf_counter() - started, selected)
            training.progress = progress
            save(training)
    curves.close()


def evaluate(training: Training, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores on held-out source pixels, plain and perturbed, and what each rule has selected by now.

    --validators and --oracle look at the target, too, into records of their own; rule oracle alone chooses by that.
    """
    config, data, method, run = training.config, training.data, training.method, training.run
    with method.evaluating(clean_patches(config, data)):
        scores = evaluate_source(method, data)
        weights = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
        if data.unlabelled:
            run.append(run.validators, {"epoch": epoch, **validate(method, data.unlabelled)})
        on_target = evaluate_target(method, data) if config.oracle else {}
    if on_target:
        run.append(run.oracle, {"epoch": epoch, **on_target})
    return scores, select({"epoch": epoch, **scores, **on_target}, weights, training.progress.selected)


def diagnose(training: Training, epoch: int) -> None:
    """Record what training looks like from inside, on one batch of clean source patches."""
    batch, run = training.config.batch_size, training.run
    x, y = next(training.data.train.in_order(batch, batch))
    run.append(run.diagnostics, {"epoch": epoch, **training.method.diagnostics(x, y)})


def check_finite(finite: dict[str, bool], when: str, good: int) -> None:
    if bad := [name for name, fine in finite.items() if not fine]:
        raise NonFiniteLossError(f"{bad[0]} is not finite {when}. The run is stopped; its checkpoint holds epoch {good}."
                                 " Try a smaller --lr, or another --recipe.")


def progress_bar(total: int, done: int) -> tqdm:
    return tqdm(total=total, initial=done, unit="step", dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else PATIENT_BAR)


def show(bar: tqdm, epoch: int, epochs: int, losses: dict[str, float]) -> None:
    bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
    bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items() if name.startswith("loss") or name == "ce"},
                    refresh=False)
    bar.update()


def mean(losses: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(entry[name] for entry in losses) / len(losses) for name in losses[0]}


def main(argv: list[str]) -> int:
    """Run one command; a user's error becomes one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)      # a scheduler's stop is an interruption too
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:          # see above; elsewhere it may be ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process.keep_freed_memory()
    try:
        with refusals_told():
            return run_command(argv)
    except BrokenPipeError:                                        # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(in_one_line(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_command(argv: list[str]) -> int:
    """Run the command that the words name; the exit code."""
    if argv[:1] in (["--help"], ["-h"], ["help"]):
        result = print(registry.overview())
    elif argv[:1] == ["--version"]:
        result = print(version())
    else:
        command, words = registry.find(argv)
        result = (train if command.name == registry.TRAIN else command.load())(words)
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def in_one_line(error: UserError) -> str:
    """What the terminal shows of an error: its type and its words, of at most LONGEST_ERROR letters; a sign that the
    terminal would obey is replaced."""
    told = shortened(" ".join(f"{type(error).__name__}: {error}".split()), LONGEST_ERROR)
    return "".join(sign if sign.isprintable() else UNSEEN for sign in told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""S²AMSnet: train on one labelled hyperspectral scene, map scenes never seen.

    python main.py --source_name Houston13 --target_name Houston18 --patch_size 13 --training_sample_ratio 0.8
    python main.py COMMAND --help        for COMMAND in train (the default), evaluate, predict, export, figures,
                                         parity, bench, sweep, tables, compare, study, transfer, refit,
                                         prepare
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time

from utils import process  # first, before torch

from tqdm import tqdm

from model.errors import NonFiniteLossError, UserError
from model.graphs import check_options
from model.methods import Method
from model.seeding import Streams
from utils.commands import registry
from utils.run import checkpoint, estimate
from utils.run.build import Data, augmentation, backend_of, build_method, choose_device, load_data
from utils.run.config import TrainConfig, parse_train
from utils.run.folder import RunFolder, environment, open_run, peak_memory_mib, run_label, run_name
from utils.run.metrics import scores
from utils.run.predict import confusion_of
from utils.run.report import run_table
from utils.run.scoring import clean_patches, evaluate_source, out_of_patience, score_run, source_scores
from utils.run.selection import RULES
from utils.run.tensorboard import Curves
from utils.run.validators import validate

log = logging.getLogger("main")

PATIENT_BAR = 30.0        # seconds between progress lines where the output is not a terminal


def train(argv: list[str]) -> RunFolder:
    """The training run, top to bottom."""
    config = parse_train(argv, __doc__)
    device = choose_device(config.gpu)
    check_options(config, device)
    streams = Streams(config.seed, device)
    data = load_data(config, device, streams.split)
    method = build_method(config, data.task, streams, device, data.adaptation)
    if config.resume:
        run = open_run(config.resume)
        state = restore(run, config, data, method, streams)
    else:
        files = method.begin_run()
        run = RunFolder.create(config, run_name(config))
        run.update_run(initial_weights=files)
        state = {"epoch": 0, "seconds": 0.0, "selected": {}}
        save_state(run, config, data, method, streams, state)
    run.begin(config, data, environment(device, backend_of(config, device)))
    log.info("%s, seed %d -> %s", run_label(config), config.seed, run.path)
    estimate.announce(config, data, device, config.max_epoch - state["epoch"])
    try:
        fit(run, config, data, method, streams, state)
        score_run(run, method, data, state["selected"])
    except KeyboardInterrupt:
        run.update_run(status="interrupted")
        log.warning("Interrupted. Epoch %d is saved; go on with: python main.py --resume %s", state["epoch"], run.path)
        raise
    except NonFiniteLossError as error:
        run.update_run(status="failed", error=str(error))
        raise
    run.update_run(status="done", seconds=state["seconds"], peak_memory_mib=peak_memory_mib(device))
    print(run_table(run))
    return run


def fit(run: RunFolder, config: TrainConfig, data: Data, method: Method, streams: Streams, state: dict) -> None:
    """Epochs from the state's on; after every eval_interval of them: evaluate, record, checkpoint."""
    steps = data.train.epoch_length(config.batch_size)
    curves = Curves(run.path / "tensorboard" if config.tensorboard else None, config.log_interval)
    interactive, losses = sys.stderr.isatty(), []
    if state["epoch"] == 0 and not run.records(run.diagnostics):
        diagnose(run, config, data, method, 0)
    with tqdm(total=config.max_epoch * steps, initial=state["epoch"] * steps, unit="step", dynamic_ncols=True,
              mininterval=0.2 if interactive else PATIENT_BAR) as bar:
        for epoch in range(state["epoch"] + 1, config.max_epoch + 1):
            if out_of_patience(run, config.patience):
                break
            if not losses:
                started = time.perf_counter()
            for x, y in data.train.batches(config.batch_size, streams.batches, streams.augmentation,
                                           augmentation(config)):                            # x [N,B,P,P], y [N]
                done = state["epoch"] * steps + len(losses)
                method.schedule(done, steps, config.max_epoch)
                losses.append(method.update(x, y))                                           # min step, then max step
                check_finite({name: math.isfinite(value) for name, value in losses[-1].items()},
                             f"at step {done + 1} (epoch {epoch})", state["epoch"])
                curves.losses(losses[-1], done + 1)
                show(bar, epoch, config.max_epoch, losses[-1])
            check_finite({name: bool(value.isfinite().all()) for name, value in method.named_parameters()},
                         f"after epoch {epoch}", state["epoch"])
            if epoch % config.eval_interval and epoch < config.max_epoch:
                continue
            record = {"epoch": epoch, "losses": mean(losses), "seconds": time.perf_counter() - started, "steps": steps}
            evaluate_epoch(run, config, data, method, record, state)
            run.append(run.epochs, record)
            diagnose(run, config, data, method, epoch)
            curves.scores(record, epoch * steps)
            state |= {"epoch": epoch, "seconds": state["seconds"] + time.perf_counter() - started}
            save_state(run, config, data, method, streams, state)
            losses.clear()
    curves.close()


def evaluate_epoch(run: RunFolder, config: TrainConfig, data: Data, method: Method, record: dict, state: dict) -> None:
    """Score source validation, plain and perturbed; keep what each rule selects.  With --validators and --oracle look
    at the target too, into records of their own."""
    n_classes = data.task.n_classes
    with method.evaluating(clean_patches(config, data)):
        record |= evaluate_source(method, data)
        weights = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
        for rule in RULES:
            if rule.improves(record, state["selected"].get(rule.name)):
                state["selected"][rule.name] = {"epoch": record["epoch"], **source_scores(record),
                                                "discriminator": weights}
        if data.unlabelled:
            run.append(run.validators, {"epoch": record["epoch"], **validate(method, data.unlabelled)})
        if config.oracle:
            confusion = confusion_of(method, data.test, n_classes)
            run.append(run.oracle, {"epoch": record["epoch"], "target": scores(confusion).as_dict(),
                                    "confusion": confusion.tolist()})


def diagnose(run: RunFolder, config: TrainConfig, data: Data, method: Method, epoch: int) -> None:
    """Record what training looks like from inside, on one batch of clean source patches."""
    x, y = next(data.train.in_order(config.batch_size, config.batch_size))
    run.append(run.diagnostics, {"epoch": epoch, **method.diagnostics(x, y)})


def save_state(run: RunFolder, config: TrainConfig, data: Data, method: Method, streams: Streams, state: dict) -> None:
    checkpoint.save(run.checkpoint, {"config": checkpoint.configuration(config), "data": data.sha256,
                                     "class_names": list(data.source.class_names), "bands": data.task.bands,
                                     "device": data.train.cube.device.type, "state": state,
                                     "method": method.training_state(), "streams": streams.state_dict()})


def restore(run: RunFolder, config: TrainConfig, data: Data, method: Method, streams: Streams) -> dict:
    """Bring method and streams to the checkpoint's state; drop records of epochs after it."""
    saved = checkpoint.load(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], config)
    checkpoint.check_data(run.checkpoint, saved, data.sha256, data.source.class_names, data.train.cube.device.type)
    method.load_training_state(saved["method"])
    streams.load_state_dict(saved["streams"])
    run.cut_records(saved["state"]["epoch"])
    run.write_config(config)
    log.info("Going on with %s after epoch %d.", run.path, saved["state"]["epoch"])
    return saved["state"]


def check_finite(finite: dict[str, bool], when: str, good: int) -> None:
    if bad := [name for name, fine in finite.items() if not fine]:
        raise NonFiniteLossError(f"{bad[0]} is not finite {when}. The run is stopped; its checkpoint holds epoch {good}."
                                 " Try a smaller --lr, or another --recipe.")


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
    process.keep_freed_memory()
    table = {"train": train} | registry.TABLE
    command, words = (argv[0], argv[1:]) if argv and argv[0] in table else ("train", argv)
    try:
        result = table[command](words)
        sys.stdout.flush()
    except BrokenPipeError:                                        # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

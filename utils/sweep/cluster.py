"""The runs of a sweep on a Ray cluster: many at a time, on one machine or on many that share their files."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Optional

from model.errors import ConfigError
from utils.run import lock
from utils.sweep import process
from utils.sweep.process import Run

log = logging.getLogger(__name__)

HERE = "local"                  # the address that stands for a cluster of this machine alone
INSTALL = "pip install ray==2.60.0"
MAX_RETRIES = 5                 # of one run, on a lost worker or machine
CONNECT_SECONDS = 10
PROBE_SECONDS = 120             # for all machines to say what they see; a worker's start takes seconds
STOP_SECONDS = 120              # for all runs to save after Ctrl-C
_SPANS_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"     # despite its name, of every system: 0 = 127.0.0.1 only
STORE_BYTES = 80 * 2 ** 20      # of Ray's object store (its least is 75 MiB); only words travel


def train_on_ray(runs: list[Run], program: str, save_path: str, address: str, cpus: int,
                 gpus: Optional[float]) -> Iterator[tuple[Run, Optional[str]]]:
    """Train the runs as tasks of a Ray cluster, started in order; yields each that has ended, with what went wrong.

    A run whose worker or machine is lost starts again elsewhere from its last checkpoint.  When the iterator is closed
    early, all tasks are cancelled and their runs save.  Raises ConfigError if Ray is missing or does not answer,
    no machine is of that size, or one of them does not see the same files.

    program: path of main.py.  save_path: folder above all run folders.  address: HERE, or that of a running cluster.
    cpus: cores and threads of a run.  gpus: GPUs of a run (a share is allowed); None = 1 where the cluster has any.
    """
    with _cluster(address) as ray, _mark(Path(save_path)) as mark:
        gpus = _check_size(ray, cpus, gpus if any(run.on_gpu for run in runs) else 0)
        place = {"program": program, "working_folder": os.getcwd(), "mark": mark}
        _check_machines(ray, place)
        task = ray.remote(max_retries=MAX_RETRIES, retry_exceptions=True)(process.train_there)
        pending = {}
        try:
            for run in runs:
                share = gpus if run.on_gpu else 0
                reference = task.options(name=run.name, num_cpus=cpus, num_gpus=share).remote(
                    run, **place, environment={"OMP_NUM_THREADS": str(cpus)}, gpu=0 if share else -1)
                pending[reference] = run
            while pending:
                (reference,), _ = ray.wait(list(pending))
                yield pending.pop(reference), _outcome(ray, reference)
        finally:
            for reference in pending:
                ray.cancel(reference)
            if pending:
                log.info("Stopping; the runs under way save their state.")
                ray.wait(list(pending), num_returns=len(pending), timeout=STOP_SECONDS)


@contextmanager
def _cluster(address: str) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at `address`; started on this machine, and stopped at the end, for HERE."""
    with _alone() if address == HERE else nullcontext(), _connected(address) as ray:
        yield ray


@contextmanager
def _alone() -> Iterator[None]:
    """A cluster that is started inside listens on the loopback interface only, and takes a token of its own only.

    Ray's default token would lie in a file of the home directory, which other users may be able to read.
    """
    ours = {_SPANS_MACHINES: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")      # Ray's coming default; without it, it warns
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray, which is not installed ({error}). Install it with: {INSTALL}") from error
    _check_address(address)
    on_stop = signal.getsignal(signal.SIGTERM)
    here = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == HERE else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(f"The Ray cluster '{address}' cannot be used: {_short(error)}") from error
    signal.signal(signal.SIGTERM, on_stop)        # ray.init puts its own there
    if here and not ipaddress.ip_address(own := ray.util.get_node_ip_address()).is_loopback:
        log.warning("This version of Ray listens on the network, at %s; its token alone keeps others out. A version that "
                    "listens on this machine only: %s", own, INSTALL)
    for module in (process, lock):
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield ray
    finally:
        for module in (process, lock):
            ray.cloudpickle.unregister_pickle_by_value(module)
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise ConfigError if nobody answers at HOST:PORT; Ray itself would try for minutes."""
    if address in (HERE, "auto") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Nobody answers at --ray {address} ({error}). It must be HOST:PORT of a running cluster ("
                          "ray start --head prints it); without an address this machine is used alone.") from error


@contextmanager
def _mark(folder: Path) -> Iterator[str]:
    """A new file in a folder, as a sign that another machine sees the same folder; its absolute path."""
    path = folder.absolute() / f".sweep-{uuid.uuid4().hex}"
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink()


def _check_size(ray: ModuleType, cpus: int, gpus: Optional[float]) -> float:
    """The GPUs of a run.  Raises ConfigError if no machine of the cluster could ever take one."""
    machines = [node["Resources"] for node in _alive(ray)]
    if gpus is None:
        gpus = 1 if any(machine.get("GPU") for machine in machines) else 0
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        has = "; ".join(f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs" for machine in machines)
        raise ConfigError(f"No machine of the Ray cluster has the {cpus} CPUs (--cpus_per_run) and {gpus:g} GPUs "
                          f"(--gpus_per_run) that a run asks for. Its machines have: {has}.")
    return gpus


def _check_machines(ray: ModuleType, place: dict[str, str]) -> None:
    """Raise ConfigError if a machine of the cluster does not see the files that the runs share."""
    strategy = partial(ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy, soft=False)
    probe = ray.remote(num_cpus=0)(process.missing_there)
    asked = [probe.options(scheduling_strategy=strategy(node["NodeID"])).remote(**place) for node in _alive(ray)]
    try:
        problems = [problem for problem in ray.get(asked, timeout=PROBE_SECONDS) if problem]
    except ray.exceptions.RayError as error:
        raise ConfigError(f"Not every machine of the Ray cluster answers ({_short(error)}). See: ray status") from error
    if problems:
        raise ConfigError(f"{'; '.join(problems)}. All machines of a sweep need the program, the folder it is started "
                          "in, the scenes and --save_path on shared storage, under the same paths.")


def _alive(ray: ModuleType) -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


def _outcome(ray: ModuleType, reference: object) -> Optional[str]:
    """What went wrong with an ended task, or None."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return str(error.cause)
    except ray.exceptions.RayError as error:
        return f"Ray gave it up: {_short(error)}"


def _short(error: Exception) -> str:
    """The first line of an error whose text may be a page."""
    return (str(error).splitlines() or [type(error).__name__])[0]

"""Sweeps on a Ray cluster: several machines, all of them this one."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_sweep import write_sweep

import main
from utils.run.folder import RunFolder, find_runs
from utils.sweep.sweep import SweepConfig, sweep_runs

Cluster = pytest.importorskip("ray.cluster_utils", reason="Ray, which is optional, is not installed").Cluster
psutil = import_module("psutil")                                       # Ray brings it

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]        # one cluster, and one test at a time in it

ROOT = Path(main.__file__).parent
ALONE = """
import json, os, sys
from utils.sweep import cluster
with cluster._cluster(cluster.HERE) as ray:
    import psutil
    ray.get(ray.remote(lambda: 0).remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {socket.laddr.ip for process in family for socket in process.net_connections("inet")
                 if socket.status == psutil.CONN_LISTEN}
    print(json.dumps({"listening": sorted(listening), "address": ray.get_runtime_context().gcs_address}), flush=True)
    sys.stdin.read()
"""
STRANGER = """
import pathlib, sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR")
ray.get(ray.remote(lambda path: pathlib.Path(path).touch()).remote(sys.argv[2]))
"""
MACHINE = {"object_store_memory": 80 * 2 ** 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def network():
    """A cluster whose head takes no runs, in a folder of its own."""
    patch, on_stop = pytest.MonkeyPatch(), signal.getsignal(signal.SIGTERM)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        patch.setenv("RAY_TMPDIR", folder)        # the address of the last cluster is kept there, in a folder `ray`
        (own := Path(folder, "ray")).mkdir()
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": str(own), **MACHINE})
        yield made
        made.shutdown()
    signal.signal(signal.SIGTERM, on_stop)        # Ray puts its own there
    patch.undo()


@pytest.fixture
def cluster(network):
    """The cluster with two machines of one CPU each."""
    while len(network.worker_nodes) < 2:
        network.add_node(num_cpus=1, **MACHINE)
    return network


def under_way(folder: Path) -> list[RunFolder]:
    """Unfinished runs with records."""
    return [run for run in find_runs([folder])
            if run.read_run().get("status") == "running" and run.records(run.epochs)]


@contextmanager
def once_under_way(folder: Path, number: int, act: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as so many runs are under way, in a thread of its own, which ends with the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if len(under_way(folder)) >= number:
                return act()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def train_here(file: Path) -> None:
    """Train every run of a sweep in this process, with one thread as a task of the cluster has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run, _ in sweep_runs(file, SweepConfig()):
            main.train([*run.words, "--run_name", run.name])
    finally:
        torch.set_num_threads(threads)


def written(folder: Path) -> dict[str, bytes]:
    """The tables of the runs in a folder, every run's scores, and what training looked like from inside."""
    out = folder.parent / "tables"
    assert main.main(["tables", str(folder), "--out", str(out)]) == 0
    return {str(path.relative_to(folder.parent)): path.read_bytes()
            for path in [*out.iterdir(), *folder.glob("*/evaluation.json"), *folder.glob("*/diagnostics.jsonl")]}


def test_an_interruption_reaches_the_runs_which_save(cluster, pair, tmp_path, capfd):
    file, runs = write_sweep(tmp_path, pair.words("--max_epoch", "100000"))
    with once_under_way(runs, 2, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert main.main(["sweep", str(file), "--ray", cluster.address]) == 130
    begun = find_runs([runs])
    assert len(begun) == 2 and all(run.read_run()["status"] == "interrupted" for run in begun)
    assert all(f"go on with: python main.py --resume {run.path}" in (run.path / "log.txt").read_text() for run in begun)
    for run in begun:
        with open(run.path / "lock") as lock:      # free: nothing writes there any more
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    capfd.readouterr()
    assert main.main(["sweep", str(file), "--print"]) == 0
    commands = capfd.readouterr().out.splitlines()
    assert len(commands) == 4 and sum("--resume" in command for command in commands) == 2


def test_a_run_that_no_machine_can_take_is_refused(cluster, tmp_path, capsys):
    file, runs = write_sweep(tmp_path)
    assert main.main(["sweep", str(file), "--ray", cluster.address, "--cpus_per_run", "2"]) == 2
    assert "No machine of the Ray cluster has the 2 CPUs" in capsys.readouterr().err and not find_runs([runs])


def test_failures_are_listed_and_the_others_go_on(cluster, pair, tmp_path, caplog):
    file, runs = write_sweep(tmp_path, pair.words("--max_epoch", "1"), seeds=[0], variants=[
        {"method": "erm", "training_sample_ratio": 0.999}, {"method": "erm"}])
    assert main.main(["sweep", str(file), "--ray", cluster.address]) == 1
    statuses = {run.read_run().get("status") for run in find_runs([runs])}
    assert "done" in statuses and "failed: " in caplog.text and "exit code 2: " in caplog.text
    assert not list(runs.glob(".sweep-*"))


def kill_a_worker(runs: Path, elsewhere: object) -> None:
    """SIGKILL to the worker that has one of the runs, on another machine than this one."""
    raylet = elsewhere.all_processes["raylet"][0].process.pid
    training = [process for process in psutil.Process().children(recursive=True) if process.is_running() and
                any(str(runs) in word for word in process.cmdline()) and process.parent().ppid() != raylet]
    training[0].parent().kill()


def test_a_killed_machine_and_worker_leave_the_table_of_a_sequential_sweep(cluster, pair, tmp_path):
    file, runs = write_sweep(tmp_path, pair.words("--max_epoch", "10", "--oracle", "true"), seeds=[0], variants=[
        {"recipe": "paper"}, {"recipe": "released"}, {"method": "erm"}])
    train_here(file)
    sequential = written(runs)
    runs.rename(tmp_path / "sequential")
    machine = cluster.worker_nodes.copy().pop()

    def strike() -> None:
        kill_a_worker(runs, machine)
        struck.append(len(under_way(runs)))
        cluster.remove_node(machine, allow_graceful=False)

    struck = []
    with once_under_way(runs, 2, strike):
        assert main.main(["sweep", str(file), "--ray", cluster.address]) == 0
    assert struck and machine not in cluster.worker_nodes
    assert any("--resume" in run.read_run()["command"] for run in find_runs([runs]))
    assert written(runs) == sequential
    assert "tables/pairs.md" in sequential and sum(name.endswith("evaluation.json") for name in sequential) == 3


def test_a_cluster_of_this_machine_hears_nobody_else(tmp_path):
    """The loopback interface only, and nothing for a process that lacks the token or has another one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    near = clean | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}           # else Ray asks at the network's address
    strangers = [near, near | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with subprocess.Popen([sys.executable, "-c", ALONE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env=clean | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}, text=True) as alone:
            about = json.loads(alone.stdout.readline())
            words = [sys.executable, "-c", STRANGER, about["address"], str(tmp_path / "canary")]
            asking = [subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                       text=True) for environment in strangers]
            told = [stranger.communicate()[1] for stranger in asking]
            alone.stdin.close()
    assert about["listening"] and set(about["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert all(stranger.returncode for stranger in asking) and all("Authentication" in words for words in told)
    assert not (tmp_path / "canary").exists() and alone.returncode == 0
    assert not (tmp_path / ".ray").exists()                    # no token was left where others may read it

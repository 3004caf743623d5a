"""Small scenes in the true file formats, made by datasets/simulator, and settings small enough for a test."""

from __future__ import annotations

import main  # first: it says how threads wait, before torch is there

import functools
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import host_build
from datasets.scene import Scene
from datasets.simulator import cache, simulate
from datasets.writers import write_mat_v5, write_mat_v73
from model import ops
from model.methods import Task, method_class
from model.ops import cuda
from model.seeding import Streams
from model.settings import Settings, resolve_switches
from utils.run.folder import RunFolder

WINDOW = (50, 60)         # pixels of the cropped scenes: small enough to write, hash and map in every test
KEPT_PER_CLASS = 24       # labelled pixels per class in the thinned scenes: an epoch of a few steps
SMALL = ["--patch_size", "5", "--pro_dim", "8", "--GIN_ch", "4", "--mmirn_filters", "2", "--batch_size", "48",
         "--max_epoch", "2", "--re_ratio", "1", "--gpu", "-1"]


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:        # begun in the background: Ctrl-C is tested all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False      # as the program itself computes


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """slow_but is slow, except with some parameters; cuda is skipped where there are too few GPUs.  The tests on a
    Ray cluster, which one process runs one after the other, come first: begun last, they would run on alone."""
    for item in items:
        marker = item.get_closest_marker("slow_but")
        if marker and item.callspec.id not in marker.args:
            item.add_marker("slow")
        marker = item.get_closest_marker("cuda")
        if marker and (reason := lacking(**marker.kwargs)):
            item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: (group := item.get_closest_marker("xdist_group")) is None or group.args[0] != "ray")


def lacking(devices: int = 1, kernels: bool = False) -> str | None:
    """What is missing for a test that needs so many GPUs, and perhaps CuPy's kernels; None where all is there."""
    if torch.version.cuda is None:
        return f"needs a GPU, and a PyTorch that is built for CUDA: this is {torch.__version__}"
    if torch.cuda.device_count() < devices:
        return f"needs {devices} CUDA device{'s' * (devices > 1)}; there are {torch.cuda.device_count()}"
    return "needs CuPy" if kernels and not cuda.packages() else None


@pytest.fixture(autouse=True)
def plain_logging(caplog):
    """Log records of the program are captured, whatever an earlier test set."""
    caplog.set_level(logging.INFO)


@pytest.fixture(autouse=True)
def same_numbers():
    """What a test draws from PyTorch's own generator does not depend on the tests before it."""
    torch.manual_seed(0)


def crop(scene: Scene, shape: tuple[int, int]) -> Scene:
    """The window of this shape in which the rarest class has the most labelled pixels."""
    height, width = shape
    before = np.zeros((scene.shape[0] + 1, scene.shape[1] + 1, scene.n_classes), int)    # pixels above and to the left
    before[1:, 1:] = (scene.labels[..., None] == np.arange(1, scene.n_classes + 1)).cumsum(axis=0).cumsum(axis=1)
    counts = before[height:, width:] - before[:-height, width:] - before[height:, :-width] + before[:-height, :-width]
    row, column = np.unravel_index(counts.min(axis=2).argmax(), counts.shape[:2])
    window = np.s_[row:row + height, column:column + width]
    return replace(scene, cube=scene.cube[window].copy(), labels=scene.labels[window].copy())


def thin(scene: Scene, keep: int, seed: int) -> Scene:
    """The scene with `keep` labelled pixels per class."""
    rng, labels = np.random.default_rng(seed), np.zeros_like(scene.labels)
    for k in range(1, scene.n_classes + 1):
        positions = np.argwhere(scene.labels == k)
        chosen = positions[rng.permutation(len(positions))[:keep]]
        labels[tuple(chosen.T)] = k
    return replace(scene, labels=labels)


@pytest.fixture(scope="session")
def scenes() -> tuple[Scene, Scene]:
    """The simulated pair, cropped and thinned."""
    pair = simulate.simulate_pair(severity=1.0, seed=0)
    return tuple(thin(crop(scene, WINDOW), KEPT_PER_CLASS, seed) for seed, scene in enumerate(pair))


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> str:
    """A data_path with the simulated pair at the severities 1 and 2, a sixth of its size."""
    folder = str(tmp_path_factory.mktemp("simulated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "SHAPE", (60, 100))
        for severity in (1.0, 2.0):
            cache.scene_folder("SimTarget", folder, severity, 0)
    return folder


@dataclass
class PairOnDisk:
    """Two scenes as files with their scene files, and the words that name them on the command line."""

    folder: Path
    source: Path
    target: Path

    def words(self, *more: str) -> list[str]:
        return ["--source_name", str(self.source), "--target_name", str(self.target), *SMALL, *more]

    def run(self, *more: str, save_path: Path) -> RunFolder:
        """Train through the command line's own function; returns the run folder."""
        return main.train(self.words("--save_path", str(save_path), *more))

    def change(self, path: Path, **entries) -> None:
        """Set entries of a scene file."""
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def write_scene(folder: Path, scene: Scene, name: str, write) -> Path:
    """A scene as NAME.mat, NAME_gt.mat and NAME.yaml."""
    write(folder / f"{name}.mat", {"ori_data": scene.cube})
    write(folder / f"{name}_gt.mat", {"map": scene.labels.astype(np.float64)})
    description = {"name": name, "cube": {"file": f"{name}.mat", "key": "ori_data"},
                   "labels": {"file": f"{name}_gt.mat", "key": "map"}, "class_names": list(scene.class_names),
                   "wavelengths": None if scene.wavelengths is None else scene.wavelengths.tolist(),
                   "rgb_bands": list(scene.rgb_bands)}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


@pytest.fixture(scope="session")
def shared_pair(tmp_path_factory, scenes) -> PairOnDisk:
    """A v7.3 source and a v5 target that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    return PairOnDisk(folder, write_scene(folder, scenes[0], "field", write_mat_v73),
                      write_scene(folder, scenes[1], "coast", write_mat_v5))


@pytest.fixture(scope="session")
def other_target(tmp_path_factory, scenes) -> str:
    """A third scene, which no test changes: the target upside down."""
    turned = replace(scenes[1], cube=scenes[1].cube[::-1].copy(), labels=scenes[1].labels[::-1].copy())
    return str(write_scene(tmp_path_factory.mktemp("other"), turned, "hills", write_mat_v5))


@pytest.fixture
def pair(tmp_path, shared_pair) -> PairOnDisk:
    """The same pair in a folder of the test's own."""
    folder = shutil.copytree(shared_pair.folder, tmp_path / "data")
    return PairOnDisk(folder, folder / shared_pair.source.name, folder / shared_pair.target.name)


@contextmanager
def unheard() -> Iterator[None]:
    """Nothing that is printed or logged reaches the test that happens to be the first one."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        logging.disable()
        yield
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def train_once(shared_pair, tmp_path_factory) -> Callable[..., RunFolder]:
    """train_once(*words): a run of these settings on the shared pair, trained when first asked for.

    No test changes its folder.
    """
    @functools.cache
    def run(*words: str) -> RunFolder:
        with unheard():
            return shared_pair.run(*words, save_path=tmp_path_factory.mktemp("trained"))
    return run


@pytest.fixture
def trained(tmp_path, train_once) -> Callable[..., RunFolder]:
    """trained(*words): a copy of that run in the test's own folder `runs`.  Its scenes are those of the shared pair."""
    def copied(*words: str) -> RunFolder:
        run = train_once(*words)
        return RunFolder(shutil.copytree(run.path, tmp_path / "runs" / run.path.name))
    return copied


def settings(**entries) -> Settings:
    """Small resolved settings."""
    chosen = Settings(**{"pro_dim": 8, "GIN_ch": 4, "mmirn_filters": 2} | entries)
    resolve_switches(chosen)
    return chosen


def build(bands: int = 6, n_classes: int = 3, patch_size: int = 5, seed: int = 0, device: str = "cpu", **entries):
    """A small method."""
    chosen, place = settings(**entries), torch.device(device)
    method = method_class(chosen.method)(Task(bands, n_classes, patch_size), chosen, Streams(seed, place)).to(place)
    if method.uses_target:
        method.draw_target = lambda n: target_batch(n, bands, patch_size, method.streams.target)
    return method


def target_batch(n: int, bands: int, patch_size: int, rng: torch.Generator) -> torch.Tensor:
    """Patches of a made-up target: unit spectra that grow darker with the band."""
    tilt = torch.linspace(1, 0.2, bands, device=rng.device)[:, None, None]
    x = torch.rand(n, bands, patch_size, patch_size, generator=rng, device=rng.device)
    return torch.nn.functional.normalize(x * tilt, dim=1)


def batch(n: int = 6, bands: int = 6, n_classes: int = 3, patch_size: int = 5, seed: int = 0):
    """x [N, B, P, P] of unit spectra, y [N] that holds every class."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.rand(n, bands, patch_size, patch_size, generator=rng), dim=1)
    return x, torch.arange(n) % n_classes


def same_state(a, b) -> bool:
    """Whether two nested states are bit-equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


@pytest.fixture(scope="session")
def host_library(tmp_path_factory):
    return host_build.library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_host(host_library, monkeypatch):
    """The starters of cuda.py run on the host.  Returns the list of (kernel, blocks) started."""
    started = []
    monkeypatch.setattr(cuda, "run_kernel", host_build.starter(host_library, started))
    return started


@pytest.fixture
def forced_cupy(monkeypatch):
    """Every backend but the reference is 'cupy', whose operators are computed by the reference on a CPU."""
    monkeypatch.setattr(ops, "_resolve", lambda backend, device: "reference" if backend == "reference" else "cupy")

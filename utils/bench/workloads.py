"""What main.py bench measures: training step and its parts, inference, whole scene, data path, the floor's convolution.

Data are random unit spectra: speed depends on sizes, not on values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from datasets.patches import Augmentation, PatchSampler, place, usual_layout
from model.graphs import WARM_UP
from model.methods import Method, Task, method_class
from model.ops import resolve_backend
from model.seeding import Streams
from model.settings import Settings, resolve_switches
from utils import process
from utils.bench.baselines import PatchDataset, through_unfold
from utils.bench.measure import Stopwatch, Variant
from utils.run.predict import BATCH, map_scene

log = logging.getLogger(__name__)

CLASSES = 7               # as Houston
DATA_BATCHES = 8          # of one epoch of the data path
SAMPLED_PIXELS = 2048     # of the scene, where it is classified patch by patch
STEP_OPTIONS = {"compiled": {"compile": True}, "CUDA graph": {"cuda_graph": True},
                "compiled, CUDA graph": {"compile": True, "cuda_graph": True}}
UNCOUNTED = {"compile", "cuda_graph"}       # settings that leave no operator calls to be counted


@dataclass(frozen=True)
class Sizes:
    """Sizes of one measurement: the task, the networks, the scene (height, width) and the patches of a prediction."""

    patch_size: int
    pro_dim: int
    GIN_ch: int
    batch_size: int
    bands: int
    recipe: str
    scene: tuple[int, int]
    inference: int = BATCH


@dataclass(frozen=True)
class Way:
    """A way to run the method: settings that differ, and what else is different about it.

    layout: of the patches in memory; None = as a run has them.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    keeps_freed_memory: bool = True
    context: Callable[[], AbstractContextManager] = nullcontext
    layout: torch.memory_format | None = None


def baselines(device: torch.device) -> dict[str, Way]:
    """The ways that the fast ones are compared with: 'a' (where the allocator matters), 'b', 'unfold'."""
    plain = {"backend": "reference"}
    if device.type != "cpu" or not process.is_glibc():
        return {"b": Way("reference", plain), "unfold": Way("unfold", plain, context=through_unfold)}
    return {"a": Way("reference, default allocator", plain, keeps_freed_memory=False),
            "b": Way("reference, tuned allocator", plain),
            "unfold": Way("unfold, tuned allocator", plain, context=through_unfold)}


def fast_ways(backend: str, device: torch.device) -> dict[str, Way]:
    """The ways a user can choose: 'float32' (none where it is the reference itself) and 'bf16'."""
    fast = resolve_backend(backend, device)
    ways = {} if fast == "reference" else {"float32": Way(f"{fast}, float32", {"backend": fast})}
    return ways | {"bf16": Way(f"{fast}, bf16", {"backend": fast, "precision": "bf16"})}


def step_ways(backend: str, device: torch.device) -> dict[str, Way]:
    """The fast ways, and on a GPU the last of them with the options of the training step, which change nothing else."""
    ways = fast_ways(backend, device)
    if device.type != "cuda":
        return ways
    last = list(ways.values())[-1]
    return ways | {option: Way(f"{last.name}, {option}", last.settings | settings)
                   for option, settings in STEP_OPTIONS.items()}


def build(way: Way, sizes: Sizes, device: torch.device, **settings: Any) -> Method:
    """S²AMSnet at these sizes."""
    chosen = Settings(recipe=sizes.recipe, pro_dim=sizes.pro_dim, GIN_ch=sizes.GIN_ch, **way.settings, **settings)
    resolve_switches(chosen)
    task = Task(sizes.bands, CLASSES, sizes.patch_size)
    return method_class(chosen.method)(task, chosen, Streams(0, device)).to(device)


@lru_cache(maxsize=2)
def random_batch(n: int, sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [n, B, P, P] of unit spectra, y [n]."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(n, sizes.bands, sizes.patch_size, sizes.patch_size, generator=rng)
    return functional.normalize(x, dim=1).to(device), (torch.arange(n) % CLASSES).to(device)


def batch_of(way: Way, n: int, sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random batch whose patches lie in memory as the way has them."""
    x, y = random_batch(n, sizes, device)
    return x.contiguous(memory_format=way.layout or usual_layout(way.settings["backend"], device)), y


@lru_cache(maxsize=1)
def random_cube(sizes: Sizes) -> np.ndarray:
    """[H, W, B] of unit spectra."""
    rng = torch.Generator().manual_seed(0)
    return functional.normalize(torch.rand(*sizes.scene, sizes.bands, generator=rng), dim=2).numpy()


def step(way: Way, sizes: Sizes, device: torch.device) -> Variant:
    """One training step.  What has to be compiled or recorded is so beforehand."""
    method, batch = build(way, sizes, device), batch_of(way, sizes.batch_size, sizes, device)
    if method.settings.compile or method.settings.cuda_graph:
        with way.context():
            for _ in range(WARM_UP + 1):
                method.update(*batch)

    def run(watch: Stopwatch) -> None:
        with way.context(), watch.lap("step"):
            method.update(*batch)
    return Variant(run, sizes.batch_size, way.keeps_freed_memory)


def parts(way: Way, sizes: Sizes, device: torch.device) -> Variant:
    """The parts of a step, one after the other, then the max step with each of its two terms alone."""
    methods = {"max step": build(way, sizes, device),
               "max step, MI alone": build(way, sizes, device, ablate=["no_adversarial"]),
               "max step, consistency alone": build(way, sizes, device, ablate=["no_mmirn"])}
    x, y = batch_of(way, sizes.batch_size, sizes, device)

    def run(watch: Stopwatch) -> None:
        for name, method in methods.items():
            method.train()
            whole = name == "max step"
            noise, lambdas = method.draw_noise(x), method.draw_lambdas(len(x))
            with watch.lap("generate") if whole else nullcontext():
                domains = method.generate(x, noise, lambdas)
            if whole:
                with watch.lap("min step"):
                    method.step_min(x, y, domains)
            with watch.lap(name):
                method.step_max(x, domains)
        with watch.lap("optimisers (in the steps)"):
            for optimiser in methods["max step"].optimisers.values():
                optimiser.step()
    return Variant(run, sizes.batch_size, way.keeps_freed_memory)


def floor(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Variant:
    """The convolution that most of the arithmetic is, in some precision; its operations are the items."""
    convolve, operations = convolution(sizes.batch_size, sizes.pro_dim, sizes.patch_size, dtype, device)

    def run(watch: Stopwatch) -> None:
        with watch.lap("convolution"):
            convolve()
    return Variant(run, operations)


def convolution(n: int, d: int, p: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """The discriminator's 3×3 convolution d → d of n patches, forward and both gradients, channels_last; and its
    operations."""
    x, w = (torch.ones(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
            for shape in ((n, d, p, p), (d, d, 3, 3)))
    gradient = x.detach().clone()
    return (lambda: torch.autograd.grad(functional.conv2d(x, w, padding=1), (x, w), gradient),
            3 * 2 * n * d * d * 9 * p * p)


def step_flops(way: Way, sizes: Sizes, device: torch.device) -> int:
    """Operations of one step's convolutions and matrix products, by torch's counter."""
    method, batch = build(way, sizes, device), batch_of(way, sizes.batch_size, sizes, device)
    with FlopCounterMode(display=False) as counter, way.context():
        method.update(*batch)
    return counter.get_total_flops()


class Recorder(TorchDispatchMode):
    """Counts the operators that are called inside, and keeps the arguments of convolutions and matrix products, each
    kind once, with how often it was called: function and shapes -> [arguments, calls]."""

    PRODUCTS = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default,
                torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}

    def __init__(self):
        super().__init__()
        self.calls, self.products = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        if function in self.PRODUCTS:
            shapes = [(tuple(each.shape), each.stride(), each.dtype) if isinstance(each, Tensor) else each for each in args]
            self.products.setdefault(f"{function} {shapes}", [function, args, 0])[2] += 1
        return function(*args, **(kwargs or {}))


def recorded_step(way: Way, sizes: Sizes, device: torch.device) -> Recorder:
    """What one training step calls."""
    method, batch = build(way, sizes, device), batch_of(way, sizes.batch_size, sizes, device)
    method.update(*batch)
    with way.context(), Recorder() as recorder:
        method.update(*batch)
    return recorder


def own_floor(recorder: Recorder, device: torch.device) -> float:
    """Seconds of a step's own convolutions and matrix products, each the best of several runs by itself: the forward
    convolutions the better of the convolution and of a product of the same arithmetic."""
    return sum(calls * min(best_seconds(run, device) for run in (partial(function, *args), *as_product(function, args)))
               for function, args, calls in recorder.products.values())


def as_product(function: Any, args: tuple[Any, ...]) -> list[Callable[[], Tensor]]:
    """A convolution's arithmetic as one matrix product of images that are unfolded already; nothing for others."""
    if function is not torch.ops.aten.convolution.default or args[8] != 1:                   # groups
        return []
    x, weight = args[:2]
    columns = x.new_ones(x.numel() // x.shape[1], weight[0].numel())
    return [partial(torch.mm, columns, weight.detach().flatten(1).T)]


def best_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 10) -> float:
    """The least of some timings, after a first run that is not timed."""
    with torch.no_grad():
        run()
        watches = [Stopwatch(device) for _ in range(repeats)]
        for watch in watches:
            with watch.lap("run"):
                run()
    return min(watch.seconds()["run"] for watch in watches)


def inference(way: Way, sizes: Sizes, device: torch.device) -> Variant:
    """Logits of a batch of patches."""
    method, (x, _) = build(way, sizes, device), batch_of(way, sizes.inference, sizes, device)

    def run(watch: Stopwatch) -> None:
        with way.context(), watch.lap("inference"):
            method.predict(x)
    return Variant(run, len(x), way.keeps_freed_memory)


def scene_by_patches(way: Way, sizes: Sizes, device: torch.device) -> Variant:
    """Classes of some of the scene's pixels, each from its own patch."""
    method, (h, w) = build(way, sizes, device), sizes.scene
    pixels = np.linspace(0, h * w - 1, min(SAMPLED_PIXELS, h * w)).astype(np.int64)
    sampler = PatchSampler(place(random_cube(sizes), device), np.stack(np.divmod(pixels, w), 1),
                           np.zeros(len(pixels), np.int64), sizes.patch_size, "reference")

    def run(watch: Stopwatch) -> None:
        with way.context(), watch.lap("scene"):
            for x, _ in sampler.in_order(BATCH):
                method.predict(x).argmax(1).cpu()
    return Variant(run, len(pixels), way.keeps_freed_memory)


def scene_as_predicted(way: Way, sizes: Sizes, device: torch.device) -> Variant:
    """Classes of all the scene's pixels, as main.py predict makes them."""
    method, cube = build(way, sizes, device), random_cube(sizes)

    def run(watch: Stopwatch) -> None:
        with way.context(), watch.lap("scene"):
            map_scene(method, cube, sizes.patch_size, device, way.settings["backend"], progress=False)
    return Variant(run, cube.shape[0] * cube.shape[1], way.keeps_freed_memory)


def data_per_sample(sizes: Sizes, device: torch.device) -> Variant:
    """One augmented epoch of a data set that makes one sample at a time."""
    centres, labels = random_pixels(sizes)
    dataset, rng = PatchDataset(random_cube(sizes), centres, labels, sizes.patch_size), torch.Generator().manual_seed(0)

    def run(watch: Stopwatch) -> None:
        with watch.lap("data"):
            for index in torch.randperm(len(dataset), generator=rng).split(sizes.batch_size):
                x, y = default_collate([dataset[i] for i in index.tolist()])
                x, y = x.to(device), y.to(device)
    return Variant(run, len(dataset))


def data_on_device(backend: str, sizes: Sizes, device: torch.device) -> Variant:
    """One augmented epoch of the program's own data path."""
    sampler = PatchSampler(place(random_cube(sizes), device), *random_pixels(sizes), sizes.patch_size, backend)
    order, noise = torch.Generator().manual_seed(0), torch.Generator(device).manual_seed(0)

    def run(watch: Stopwatch) -> None:
        with watch.lap("data"):
            for _ in sampler.batches(sizes.batch_size, order, noise, Augmentation()):
                pass
    return Variant(run, len(sampler))


def random_pixels(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Centres [M, 2] of an epoch of DATA_BATCHES batches, and their labels [M]."""
    rng, n, (h, w) = np.random.default_rng(0), DATA_BATCHES * sizes.batch_size, sizes.scene
    return np.stack([rng.integers(h, size=n), rng.integers(w, size=n)], 1), np.arange(n) % CLASSES

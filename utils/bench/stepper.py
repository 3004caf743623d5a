"""Training steps of the program in a folder, timed when asked for: a script that runs in a process of its own.

    python stepper.py FOLDER '{"method": ..., "settings": {...}, "bands": ..., "patch_size": ..., "batch_size": ...,
                               "threads": ...}'

Every line of its input is a number of steps; it answers with a line of JSON: seconds of one step, and what one calls
and starts (`Calls`).  With the backend 'cupy' among the settings the step is the one of a GPU, its kernels computed by
the reference: to be counted, not to be timed.  It uses what programs of this project have had since 0.9, so that the
folder may hold an older one.
"""

from __future__ import annotations

import json
import sys
import time

if __name__ == "__main__":
    sys.path[0] = sys.argv[1]

from utils import process  # noqa: E402  first: it says how threads wait, before torch is there

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from model import ops  # noqa: E402
from model.methods import Task, method_class  # noqa: E402
from model.seeding import Streams  # noqa: E402
from model.settings import Settings, resolve_switches  # noqa: E402

CLASSES = 7
TOTAL = 1000              # steps of the run that the schedule is told of


class Calls(TorchDispatchMode):
    """Counts the operators that are called inside, those of the gradients among them: `count` all of them, `working`
    those that do more than to make memory or a view of it, `kernels` what these start on a GPU where every operator
    starts one kernel but those that say how many they start."""

    IDLE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view", "_record_function")

    def __init__(self):
        super().__init__()
        self.count = self.working = self.kernels = 0
        self.started = getattr(sys.modules.get("model.ops.norms_cuda"), "KERNELS", {})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, returned = function.name().partition(".")[0], function._schema.returns
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in returned)
        self.count += 1
        if not is_view and not name.partition("::")[2].startswith(self.IDLE):
            self.working += 1
            self.kernels += self.started.get(name, 1)
        return function(*args, **(kwargs or {}))


def as_on_a_gpu() -> None:
    """Every backend but the reference is 'cupy', whose operators have the reference as their CPU implementation."""
    ops._resolve = lambda backend, device: "reference" if backend == "reference" else "cupy"


def serve(work: dict) -> None:
    process.keep_freed_memory()
    torch.set_num_threads(work["threads"])
    settings = Settings(method=work["method"], **work["settings"])
    if settings.backend == "cupy":
        as_on_a_gpu()
    resolve_switches(settings)
    task, cpu = Task(work["bands"], CLASSES, work["patch_size"]), torch.device("cpu")
    method = method_class(settings.method)(task, settings, Streams(0, cpu)).to(cpu)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(work["batch_size"], task.bands, task.patch_size, task.patch_size, generator=rng)
    x = torch.nn.functional.normalize(x, dim=1).contiguous(memory_format=torch.channels_last)
    y = torch.arange(len(x)) % CLASSES

    def step():
        method.schedule(0, TOTAL, 1)
        method.update(x, y)

    for _ in range(2):
        step()
    with Calls() as calls:
        step()
    counted = {"calls": calls.count, "working": calls.working, "kernels": calls.kernels}
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps({"seconds": (time.perf_counter() - started) / int(line), **counted}), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[2]))

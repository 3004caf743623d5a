"""Two options of the training step on a GPU, both for the time between its kernels, of which a step starts thousands.

compile      the networks become fewer, fused kernels (torch.compile).  The first step takes minutes, so this is for
             long runs.  Numbers differ from those without it by rounding.  On a CPU it works with backend 'reference',
             and is slower than without (2.8 times at width 64, patch 9, batch 64).
cuda_graph   the whole step is captured once and started with one call from then on.  This pays where the GPU waits for
             Python: small patches, batches and widths.  The capture keeps the memory of a step beside what steps
             that are not captured, and evaluation, take; where there is not so much, steps run as without.  PyTorch
             warns once per optimiser that the first steps are not captured; that is as it should be.

Both serve batches of the first one's sizes; others, such as an epoch's last, and all that is no training step, run as
without.  Where the GPU is busy all the time, little is gained.  To look into a step (prints, a debugger), leave them
out: a replayed step runs no Python.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.errors import ConfigError, out_of_memory
from model.ops import resolve_backend
from model.settings import Settings

COMPILER = "inductor"     # torch.compile's own
AMPERE = (8, 0)           # compute capability of the first GPUs with bfloat16 and TF32
WARM_UP = 3               # steps before the capture: kernels are loaded, states of optimisers and gradients are made

Step = Callable[..., dict[str, Tensor]]      # tensors -> named scalars

_log = logging.getLogger(__name__)


def check_options(settings: Settings, device: torch.device) -> None:
    """Raise ConfigError if compile, cuda_graph or the precision cannot work on the device."""
    if settings.compile and resolve_backend(settings.backend, device) == "cpu":
        raise ConfigError("compile cannot take in the C++ kernels of backend 'cpu': compiled code ends at each of "
                          "them. Leave --compile out (the kernels are faster), or choose --backend reference.")
    if settings.cuda_graph and device.type != "cuda":
        raise ConfigError(f"cuda_graph captures the work of a CUDA device, and this run is on '{device}'. Leave "
                          "--cuda_graph out, or choose a GPU (--gpu).")
    if reason := precision_missing(settings.precision, device):
        raise ConfigError(f"precision {settings.precision} {reason}.")


def precision_missing(precision: str, device: torch.device) -> str | None:
    """Why the device cannot compute in a precision, and what to do; None where it can."""
    if precision == "tf32" and device.type != "cuda":
        return (f"is a number format of GPUs, and this run is on '{device}'. Leave --precision out, or choose a GPU "
                "(--gpu)")
    if precision != "float32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        return (f"needs a GPU from Ampere (2020) on, and {torch.cuda.get_device_name(device)} is older. Leave "
                "--precision out")
    return None


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compile networks in place, at their next calls: parameters keep their names, a copy is not compiled."""
    _log.info("The networks are compiled during the first step, which takes minutes.")
    for network in networks:
        network.compile(backend=COMPILER, dynamic=False, fullgraph=True, isolate_recompiles=True)


def compiler_loaded() -> bool:
    """Whether anything can be compiled yet: torch._dynamo, a second and a half of start-up, is loaded by the first
    network that is, or by the first step of an optimiser."""
    return "torch._dynamo" in sys.modules


def uncompiled() -> AbstractContextManager:
    """Inside, compiled networks run as they are written."""
    return torch.compiler.set_stance("force_eager") if compiler_loaded() else nullcontext()


def untraced(function: Callable) -> Callable:
    """The function, which the compiler does not look into."""
    return torch.compiler.disable(function) if compiler_loaded() else function


def _build_optimisers_without_compiler() -> None:
    """Have PyTorch's optimisers built and restored without loading torch._dynamo: `predict` needs none of it.  These
    functions are wrapped to load it at their first call, unless they carry this mark."""
    for function in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        if plain := getattr(function, "__wrapped__", None):
            vars(plain).setdefault("__dynamo_disable", plain)


_build_optimisers_without_compiler()


class Capturer(Protocol):
    """Captures what a function does with tensors."""

    device: torch.device

    def aside(self, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run a function as a rehearsal of its capture."""

    def capture(self, function: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Capture a function without running it; what is returned runs the capture, on the same memory each time."""


class CudaCapturer:
    """Captures as a CUDA graph.

    Rehearsals take the capture's stream: PyTorch ties gradients and workspaces of libraries to streams.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def aside(self, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        with torch.cuda.stream(current), torch.cuda.graph(graph, stream=self.stream):    # back to it where that fails
            result = function()

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return result
        return replay


class FastStep:
    """A training step that is compiled, captured or both, for batches of the first one's sizes; others run plainly.

    step         draws nothing at random and reads nothing from the device
    parameters   those whose gradients it leaves behind
    capturer     None where it is not to be captured
    """

    def __init__(self, step: Step, parameters: Iterable[nn.Parameter], capturer: Capturer | None):
        self.step, self.parameters, self.capturer = step, list(parameters), capturer
        self.sizes: list[torch.Size] | None = None
        self.forget()

    def forget(self) -> None:
        """Capture again after further rehearsals: optimisers or gradients have got other memory."""
        self.rehearsals, self.captured = 0, None

    def __call__(self, *given: Tensor) -> dict[str, Tensor]:
        sizes = [value.shape for value in given]
        self.sizes = self.sizes or sizes
        if sizes != self.sizes:
            with uncompiled():
                return self.step(*given)
        if self.capturer is None:
            return self.step(*given)
        if self.rehearsals < WARM_UP:
            self.rehearsals += 1
            return self.capturer.aside(partial(self.step, *given))
        self.captured = self.captured or self._capture(given)
        if self.captured is None:
            self.capturer = None
            return self.step(*given)
        return self.captured(*given)

    def _capture(self, given: Sequence[Tensor]) -> CapturedStep | None:
        """The step captured; None, with all as it was, where memory is too short for that."""
        gradients = [parameter.grad for parameter in self.parameters]
        try:
            return CapturedStep(self.step, given, self.parameters, self.capturer)
        except (MemoryError, RuntimeError) as error:
            if not (out_of_memory(error) or error.__context__ and out_of_memory(error.__context__)):
                raise
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient                     # in place of memory that no capture fills
        _log.warning("There is not enough memory to capture the training step: steps run as without --cuda_graph.")
        return None


class CapturedStep:
    """A capture of a step, with the memory that it works on: inputs, results and gradients."""

    def __init__(self, step: Step, like: Sequence[Tensor], parameters: Iterable[nn.Parameter], capturer: Capturer):
        """Capture the step for inputs like these."""
        self.inputs = [value.to(capturer.device, copy=True) for value in like]
        self.replay = capturer.capture(lambda: {name: value.detach() for name, value in step(*self.inputs).items()})
        self.gradients = [(parameter, parameter.grad) for parameter in parameters]

    def __call__(self, *given: Tensor) -> dict[str, Tensor]:
        """The results are overwritten by the next call."""
        for own, value in zip(self.inputs, given, strict=True):
            own.copy_(value, non_blocking=True)
        results = self.replay()
        for parameter, gradient in self.gradients:        # a step that was not replayed may have left others
            parameter.grad = gradient
        return results

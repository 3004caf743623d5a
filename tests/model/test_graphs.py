"""Compiled and captured training steps are the plain ones; without a GPU, CUDA graphs are played by an emulator."""

import copy
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model.ops
from conftest import batch, build, same_state, settings
from model import graphs
from model.errors import ConfigError
from model.graphs import WARM_UP, FastStep, CapturedStep
from model.methods import REGISTRY, method_class
from model.settings import Recipe
from utils.bench import workloads
from utils.run.config import parse_train

CPU = torch.device("cpu")
READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select,
         torch.ops.aten.lift_fresh)           # which wait for the device, or bring constants there
SIZES = [6, 6, 4, 6, 6, 6, 4, 6, 6]           # of batches: an epoch's last ones are smaller


class Tape(TorchDispatchMode):
    """Writes down all operations with the memory that they work on."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in READS, f"{function} cannot be captured"
        made = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def play(self):
        """Do the operations again, from and to the same memory."""
        for function, args, kwargs, made in self.operations:
            aliases = any(value.alias_info is not None for value in function._schema.returns)
            if aliases and not function._schema.is_mutable:
                continue                      # a view is where it was
            again = function(*args, **kwargs)
            if not aliases:
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


class Emulator:
    """Captures on a CPU as a CUDA graph does: nothing changes meanwhile, and no Python is run again afterwards."""

    device = CPU

    def __init__(self, method):
        self.method, self.played = method, 0

    def aside(self, function):
        return function()

    def capture(self, function):
        tensors = [value for value in tree_leaves(self.method.training_state()) if isinstance(value, torch.Tensor)]
        before, tape = [value.clone() for value in tensors], Tape()
        with tape:
            result = function()
        with torch.no_grad():
            for value, old in zip(tensors, before):
                value.copy_(old)

        def replay():
            self.played += 1
            tape.play()
            return result
        return replay


@pytest.fixture
def backend(request, monkeypatch):
    """A backend also where it does not belong; on a CPU the registered CUDA operators compute by the reference."""
    monkeypatch.setattr(model.ops, "_resolve", lambda *_: request.param)


@pytest.fixture
def capturable(monkeypatch):
    """Adam's arithmetic on the device also on a CPU, which PyTorch refuses."""
    module = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


def plain(**variant):
    """A method that runs its steps as they are written, with the optimisers of one that records."""
    method = build(**variant)
    for optimiser in method.optimisers.values():
        group = optimiser.param_groups[0]
        group["capturable"] = True
        if method.settings.lr_schedule != "constant":
            group["lr"] = torch.tensor(group["lr"])
    return method


def capture(**variant):
    """A method that records on the emulator."""
    method = build(cuda_graph=True, **variant)
    method.fast_step = FastStep(partial(type(method).step.__wrapped__, method), method.parameters(), Emulator(method))
    return method


@pytest.mark.slow_but("reference-{'recipe': 'released'}", "reference-{'method': 'erm'}")
@pytest.mark.parametrize("backend, variant", [
    ("reference", {"recipe": "released"}), ("cupy", {"recipe": "released"}), ("cupy", {"recipe": "paper"}),
    ("cupy", {"generators": "shared", "source_ce": "on", "precision": "bf16"}), ("reference", {"method": "erm"}),
    ("cupy", {"recipe": "robust"}), ("cupy", {"method": "erm_gain"}),
    *(("reference", {"method": name}) for name in REGISTRY
      if method_class(name).supports_cuda_graph and name not in ("s2amsnet", "erm", "erm_gain"))],
    indirect=["backend"], ids=str)
def test_recorded_steps_are_the_plain_ones(backend, variant, capturable):
    method, twin = capture(**variant), plain(**variant)
    for i, n in enumerate(SIZES):
        assert method.update(*batch(n, seed=i)) == twin.update(*batch(n, seed=i))
        assert same_state(method.training_state(), twin.training_state())
        assert method.predict(batch()[0]).equal(twin.predict(batch()[0]))             # leaves evaluation mode behind
    assert method.fast_step.capturer.played == SIZES.count(6) - WARM_UP
    assert method.diagnostics(*batch()) == twin.diagnostics(*batch())


class Full(Emulator):
    """Has too little memory for a capture, which it finds out when the step has run; then, with `ended`, the capture
    cannot be brought to its end either."""

    def __init__(self, method, short=True, ended=False):
        super().__init__(method)
        self.short, self.ended = short, ended

    def capture(self, function):
        super().capture(function)
        try:
            if self.short:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        finally:
            if self.ended:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("backend", ["reference"], indirect=True)
@pytest.mark.parametrize("ended", [False, True])
def test_without_memory_for_a_capture_steps_run_as_without(backend, ended, capturable, caplog):
    method, twin = capture(recipe="released"), plain(recipe="released")
    method.fast_step.capturer = Full(method, ended=ended)
    for i in range(WARM_UP + 2):
        assert method.update(*batch(seed=i)) == twin.update(*batch(seed=i))
        assert same_state(method.training_state(), twin.training_state())
    assert method.fast_step.capturer is None and method.fast_step.captured is None
    assert [record.getMessage() for record in caplog.records if "capture" in record.getMessage()] == [
        "There is not enough memory to capture the training step: steps run as without --cuda_graph."]


def test_a_capture_that_fails_leaves_no_gradients_behind():
    weight = torch.nn.Parameter(torch.ones(2))

    def step(x):
        weight.grad = None
        (weight * x).sum().backward()
        return {"loss": weight.sum()}

    fast = FastStep(step, [weight], SimpleNamespace(device=CPU, aside=lambda function: function(), capture=None))
    for _ in range(WARM_UP):
        fast(torch.ones(2))
    before = weight.grad

    def fail(function):
        function()
        raise torch.OutOfMemoryError("CUDA out of memory")
    fast.capturer.capture = fail
    assert fast._capture([torch.ones(2)]) is None and weight.grad is before


@pytest.mark.parametrize("backend", ["reference"], indirect=True)
def test_any_other_error_of_a_capture_is_raised(backend, capturable):
    method = capture(method="erm")
    method.fast_step.capturer = Full(method, short=False, ended=True)
    for i in range(WARM_UP):
        method.update(*batch(seed=i))
    with pytest.raises(RuntimeError, match="previous error during capture"):
        method.update(*batch())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cupy"], indirect=True)
def test_going_on_from_a_checkpoint_records_anew(backend, capturable):
    whole, broken, fresh = (capture(recipe="released") for _ in range(3))
    for i in range(WARM_UP + 2):
        assert whole.update(*batch(seed=i)) == broken.update(*batch(seed=i))
    saved = copy.deepcopy([broken.training_state(), broken.streams.state_dict()])
    broken.update(*batch(seed=99))
    for method in (broken, fresh):
        method.load_training_state(copy.deepcopy(saved[0]))       # optimisers keep what they are given
        method.streams.load_state_dict(saved[1])
    for i in range(WARM_UP + 1):
        losses = [method.update(*batch(seed=50 + i)) for method in (whole, broken, fresh)]
        assert losses[0] == losses[1] == losses[2]
    assert same_state(whole.training_state(), broken.training_state())
    assert same_state(whole.training_state(), fresh.training_state())
    assert broken.fast_step.capturer.played == 2 + 1 + 1 and fresh.fast_step.capturer.played == 1


def test_what_cannot_be_recorded_is_noticed():
    for step in (lambda x: {"loss": x.sum() * x.sum().item()}, lambda x: {"loss": x.nonzero().sum()},
                 lambda x: {"loss": (x * torch.tensor([1.0, 2.0])).sum()}):
        with pytest.raises(AssertionError, match="cannot be captured"):
            CapturedStep(step, [torch.ones(2)], [], Emulator(build(method="erm")))


class Diary:
    """A capturer that notes what it is asked for; its recordings run the function again."""

    device = CPU

    def __init__(self):
        self.notes = []

    def aside(self, function):
        self.notes.append("aside")
        return function()

    def capture(self, function):
        self.notes.append("capture")
        return lambda: self.notes.append("replay") or function()


def test_when_steps_are_rehearsed_recorded_replayed_and_run_plainly():
    diary = Diary()
    step = FastStep(lambda x, scale: {"sum": (scale * x).sum()}, [], diary)

    def run(n):
        """A step on n ones, whose result a plain step would give as well; what the capturer noted."""
        assert step(torch.ones(n), torch.tensor(2.0))["sum"] == 2 * n
        return [diary.notes.pop(0) for _ in range(len(diary.notes))]

    assert [run(n) for n in (4, 3, 4)] == [["aside"], [], ["aside"]]
    assert [run(4) for _ in range(WARM_UP - 2)] == [["aside"]] * (WARM_UP - 2)
    assert [run(n) for n in (4, 4, 5, 4)] == [["capture", "replay"], ["replay"], [], ["replay"]]
    step.forget()
    assert [run(4) for _ in range(WARM_UP)] == [["aside"]] * WARM_UP
    assert [run(n) for n in (3, 4)] == [[], ["capture", "replay"]]


def test_a_recording_works_on_memory_of_its_own():
    given, parameter = torch.ones(2), torch.nn.Parameter(torch.zeros(2))
    parameter.grad = mine = torch.zeros(2)
    captured = CapturedStep(lambda x: {"value": parameter.sum() + x.sum()}, [given], [parameter], Diary())
    parameter.grad = torch.ones(2)
    assert captured(given + 1)["value"] == 4 and parameter.grad is mine
    assert given.equal(torch.ones(2)) and not captured(given)["value"].requires_grad


def test_tensors_mix_as_their_numbers_do():
    method, (x, _) = build(), batch()
    noise = method.draw_noise(x)
    for lambdas in (method.draw_lambdas(len(x)), method.draw_lambdas(len(x))):
        domains = [method.generate(x, noise, given) for given in (lambdas, lambdas.tolist())]
        assert same_state(*domains)


@pytest.mark.parametrize("backend, options, message", [
    ("cpu", {"compile": True}, r"compile cannot take in the C\+\+ kernels.*choose --backend reference"),
    ("reference", {"cuda_graph": True}, "cuda_graph captures the work of a CUDA device.*choose a GPU")],
    indirect=["backend"])
def test_options_that_cannot_work_are_refused_at_the_first_step(backend, options, message):
    method, (x, y) = build(**options), batch()
    with pytest.raises(ConfigError, match=message):
        method.update(x, y)


@pytest.mark.parametrize("precision, kind, capability, words", [
    ("tf32", "cpu", None, "precision tf32 is a number format of GPUs, and this run is on 'cpu'.*--gpu"),
    ("tf32", "cuda", (7, 5), "precision tf32 needs a GPU from Ampere .2020. on, and Tesla T4 is older"),
    ("bf16", "cuda", (7, 5), "precision bf16 needs a GPU from Ampere .2020. on, and Tesla T4 is older"),
    *((precision, "cuda", (8, 0), None) for precision in ("float32", "bf16", "tf32")),
    ("float32", "cuda", (7, 5), None), ("float32", "cpu", None, None), ("bf16", "cpu", None, None)])
def test_a_precision_that_the_device_lacks_is_refused(precision, kind, capability, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=words) if words else nullcontext():
        graphs.check_options(settings(precision=precision, backend="reference"), torch.device(kind))


def test_options_are_refused_with_methods_that_they_do_not_serve():
    for option, flag in (("compile", "supports_compile"), ("cuda_graph", "supports_cuda_graph")):
        refused = [name for name in REGISTRY if not getattr(method_class(name), flag)]
        assert {"svm", "pden"} <= set(refused)
        for name in refused:
            with pytest.raises(ConfigError, match=f"{option} does not work with method '{name}'"):
                parse_train(["--method", name, f"--{option}", "true"])


def test_a_run_with_both_options_is_applied_anywhere(capturable):
    trained, applied = capture(compile=True, backend="reference"), build(compile=True, cuda_graph=True)
    trained.update(*batch())
    applied.load_training_state(copy.deepcopy(trained.training_state()))
    assert same_state(trained.training_state(), applied.training_state())
    assert applied.predict(batch()[0]).shape == (6, 3) and applied.diagnostics(*batch())


@pytest.mark.slow
@pytest.mark.parametrize("backend, variant, graphs_made", [
    ("reference", {"method": "erm"}, 1), ("cupy", {"recipe": "paper"}, 5),
    *(("reference", {"method": name}, 1) for name in REGISTRY
      if method_class(name).supports_compile and name not in ("s2amsnet", "erm", "erm_gain"))],
    indirect=["backend"], ids=str)
def test_compiled_steps_are_the_plain_ones(backend, variant, graphs_made, monkeypatch):
    """Traced and differentiated as by the default compiler, but not translated, which takes minutes."""
    monkeypatch.setattr(graphs, "COMPILER", "aot_eager")
    method, twin, (x, y) = build(compile=True, **variant), build(**variant), batch()
    names, made = list(method.state_dict()), torch._dynamo.utils.counters["stats"]
    before = made["unique_graphs"]
    for i, n in enumerate((6, 6, 4, 6)):
        assert method.update(*batch(n, seed=i)) == pytest.approx(twin.update(*batch(n, seed=i)), rel=1e-5)
        torch.testing.assert_close(method.predict(x), twin.predict(x), rtol=1e-5, atol=1e-6)
        assert method.diagnostics(x, y) == pytest.approx(twin.diagnostics(x, y), rel=1e-4)
        assert method.generated_views(x).keys() == twin.generated_views(x).keys()
    assert made["unique_graphs"] - before == graphs_made      # of F also for patches that need a gradient
    assert list(method.state_dict()) == names
    torch.testing.assert_close(method.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)


def test_the_bench_measures_the_options_on_a_gpu_alone():
    cpu, cuda = (workloads.step_ways("reference", torch.device(kind)) for kind in ("cpu", "cuda"))
    assert list(cpu) == ["bf16"]
    assert [way.name for way in cuda.values()] == [
        "reference, bf16", "reference, bf16, compiled", "reference, bf16, CUDA graph",
        "reference, bf16, compiled, CUDA graph"]
    assert all(settings(**way.settings).precision == "bf16" for way in cuda.values())


def gradient(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{"cuda_graph": True}, {"compile": True}, {"compile": True, "cuda_graph": True}],
                         ids=str)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("variant", [*({"recipe": name} for name in get_args(Recipe)), {"method": "erm"}], ids=str)
def test_fast_steps_on_a_gpu_are_the_plain_ones(variant, precision, options):
    """Each from the same state, since Adam makes large differences of small ones."""
    method = build(device="cuda", **variant, precision=precision, **options)
    for i, n in enumerate(SIZES):
        x, y = (value.cuda() for value in batch(n, seed=i))
        twin = build(device="cuda", **variant, precision=precision)
        twin.load_training_state(copy.deepcopy(method.training_state()))
        twin.streams.load_state_dict(method.streams.state_dict())
        limit = 1e-2 if precision == "bf16" else 1e-5      # sums in another order may be rounded to another bfloat16
        assert method.update(x, y) == pytest.approx(twin.update(x, y), rel=limit, abs=limit)
        for name, network in method.named_children():
            ours, theirs = gradient(network), gradient(twin.get_submodule(name))
            assert (ours - theirs).norm() <= 10 * limit * theirs.norm(), name
        assert method.predict(x).isfinite().all()
    assert ("cuda_graph" in options) == (method.fast_step.captured is not None)

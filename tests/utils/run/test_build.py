"""The device of a run, and what run.json says of it."""

import os

import pytest
import torch

from model.errors import ConfigError
from model.ops import cuda, involution
from utils.run.build import choose_device
from utils.run.environment import environment

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs; yields the devices that were made current.  Afterwards all flags are as before."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield chosen
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def in_tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_the_tests_compute_as_the_program_does():
    assert in_tf32() == (False, False)


def test_a_gpu_is_made_current_once_and_computes_in_float32(machine):
    torch.backends.cudnn.allow_tf32 = True                    # as PyTorch comes
    for number, precision, tf32 in ((1, "float32", False), (0, "tf32", True), (1, "bf16", False)):
        assert choose_device(number, precision) == torch.device("cuda", number)
        assert machine[-1] == number and in_tf32() == (tf32, tf32)
    assert len(machine) == 3


def test_a_gpu_is_deterministic_where_it_is_asked_to_be(machine):
    for wanted in (True, False):
        choose_device(0, deterministic=wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"                 # the user's word stands
    choose_device(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_cpu_touches_no_gpu(machine):
    assert choose_device(-1, "float32", True) == CPU and not machine
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_gpu_that_is_not_there_is_named(machine):
    with pytest.raises(ConfigError, match="gpu 2 does not exist; this machine has 2"):
        choose_device(2)
    assert not machine


@pytest.mark.parametrize("installed", [{"cupy-cuda12x": "13.6.0"}, {"cupy": "14.2.0"}, {}])
def test_whichever_cupy_there_is_stands_in_the_record(installed, monkeypatch):
    there = [type("Distribution", (), {"name": name, "version": version})()
             for name, version in {**installed, "cupyx-tools": "1", "torch": "2.13.0"}.items()]
    monkeypatch.setattr(cuda.metadata, "distributions", lambda: there)
    versions = environment(CPU, "reference")["versions"]
    assert {name: version for name, version in versions.items() if name.startswith("cupy")} == installed
    assert {"python", "torch", "numpy"} <= versions.keys()


@pytest.mark.cuda(devices=2, kernels=True)
def test_work_on_the_second_gpu_takes_nothing_on_the_first():
    free = torch.cuda.mem_get_info(0)[0]
    device = choose_device(1)
    x, kernel = (torch.rand(2, *shape, 5, 5, device=device, requires_grad=True) for shape in ((6,), (2, 9)))
    involution(x, kernel, backend="cupy").sum().backward()
    torch.cuda.synchronize(device)
    assert torch.cuda.current_device() == 1 and x.grad.isfinite().all()
    assert free - torch.cuda.mem_get_info(0)[0] < 2 ** 26
    torch.cuda.set_device(0)

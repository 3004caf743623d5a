"""The estimate before training: closed forms against what is counted and measured; the allocator's settings."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import batch, build, settings
from model.methods import Task
from model.ops import BACKENDS, resolve_backend
from utils import process, text
from utils.run import activations, estimate, flops

CPU = torch.device("cpu")
VARIANTS = [{}, {"recipe": "paper"}, {"ablate": ["no_mmirn", "one_generator"]},
            {"ablate": ["no_mixing", "one_generator"]}, {"ablate": ["no_adversarial"]},
            {"ablate": ["no_adversarial", "no_mmirn"]}, {"ablate": ["no_spatial"]},
            {"generators": "split", "source_ce": "on"}, {"generators": "shared"}, {"contrast_layers": [7, 17]},
            {"recipe": "robust"}, {"recipe": "robust", "ablate": ["no_generators"]}, {"method": "erm"},
            {"method": "erm_gain"}]


@pytest.mark.parametrize("patch_size, pro_dim", [(5, 16), (9, 13)])
@pytest.mark.parametrize("entries", VARIANTS, ids=str)
def test_operations_are_those_that_torch_counts(entries, patch_size, pro_dim):
    method = build(bands=14, patch_size=patch_size, backend="reference", pro_dim=pro_dim, **entries)
    with FlopCounterMode(display=False) as counter:
        method.update(*batch(8, 14, patch_size=patch_size))
    found = estimate.OPERATIONS[method.settings.method](method.task, method.settings, 8)
    assert sum(found) == pytest.approx(counter.get_total_flops(), rel=0.02)


def kept_values(network, *inputs) -> float:
    """Values per sample that autograd keeps of a forward pass, without the weights."""
    seen = {}

    def keep(tensor):
        if tensor.dim() and tensor.shape[0] in (4, 1) and tensor.dim() in (2, 4, 5):
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) / 4 / 4


@pytest.mark.parametrize("recipe", ["released", "paper"])
@pytest.mark.parametrize("bands, patch_size", [(48, 9), (90, 7)])
def test_kept_values_are_those_that_autograd_keeps(recipe, bands, patch_size):
    method = build(bands, 3, patch_size, recipe=recipe, backend="reference", pro_dim=40, GIN_ch=20, mmirn_filters=8)
    x, _ = batch(4, bands, patch_size=patch_size)
    noise, outputs = method.draw_noise(x)[:3], 2 * bands * patch_size ** 2
    assert activations.discriminator(method.task, method.settings, "reference") == \
        pytest.approx(kept_values(method.discriminator, x), rel=0.05)
    assert activations.generator(method.task, method.settings, "a", "reference") == \
        pytest.approx(kept_values(method.generators["a"], x, noise) + outputs, rel=0.05)
    assert activations.mmirn(method.task, method.settings) == \
        pytest.approx(kept_values(method.mmirn, x.clone().requires_grad_()), rel=0.3)


def in_a_fresh_process(function, *arguments):
    """What the function returns; holes that earlier tests left in this process's heap would show in its memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def memory_of_a_step(n, patch_size, pro_dim, backend, entries) -> tuple[int, float | None]:
    """Bytes of a step: what the estimate says, and what this process took (None where the system does not tell)."""
    method = build(48, 7, patch_size, backend=backend, pro_dim=pro_dim, GIN_ch=24, mmirn_filters=8, **entries)
    x, y = batch(n, 48, 7, patch_size)
    method.update(x, y)
    process.give_back()
    held = process.reset_peak(CPU)
    method.update(x, y)
    method.update(x, y)
    found = estimate.KEPT[method.settings.method](method.task, method.settings, n, resolve_backend(backend, CPU))
    return found.held, None if held is None else process.peak(CPU) - held


@pytest.mark.parametrize("entries", [{}, {"method": "erm"}], ids=["s2amsnet", "erm"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("n, patch_size, pro_dim", [(64, 9, 64), (32, 13, 96)])
def test_memory_of_a_step(n, patch_size, pro_dim, backend, entries):
    n *= 4 if entries else 1                                       # ERM keeps little
    estimate, taken = in_a_fresh_process(memory_of_a_step, n, patch_size, pro_dim, backend, entries)
    if taken is None:
        pytest.skip("this system does not tell the peak of a part of a process")
    assert estimate == pytest.approx(taken, rel=0.3)


def test_every_backend_has_its_constants():
    assert estimate.WEIGHT.keys() == activations.BACKWARD.keys() == set(BACKENDS) - {"auto"}
    assert estimate.OPERATIONS.keys() == estimate.KEPT.keys() >= estimate.DIAGNOSED


def fixed_throughput(monkeypatch, **speed):
    monkeypatch.setattr(estimate, "throughput", lambda batch, width, patch, dtype, device: speed[str(dtype).split(".")[1]])


def test_seconds_follow_from_operations_values_and_passes(monkeypatch):
    fixed_throughput(monkeypatch, float32=1e9)
    task, chosen = Task(48, 7, 9), settings(backend="reference", pro_dim=64, GIN_ch=24)
    kept = activations.s2amsnet_step(task, chosen, 64, "reference")
    operations = sum(flops.s2amsnet_step(task, chosen, 64))
    step = (operations + estimate.WEIGHT["reference"] * (kept.classifier + kept.others)) / 1e9 + estimate.OVERHEAD * 13
    found = estimate.estimate(chosen, task, 64, 10, 0, CPU)
    assert found.step == pytest.approx(step) and found.memory == kept.held
    assert found.epoch == pytest.approx(11 * step)                       # the diagnostics count as a step
    evaluated = estimate.estimate(chosen, task, 64, 10, 1000, CPU)
    assert evaluated.step == found.step
    seldom = estimate.estimate(chosen, task, 64, 10, 1000, CPU, interval=5)
    assert 5 * (seldom.epoch - 10 * step) == pytest.approx(evaluated.epoch - 10 * step)
    assert evaluated.epoch > found.epoch + 1000 * flops.discriminator(task, chosen).all / 1e9


def test_half_precision_is_faster_and_smaller_in_the_discriminator_alone(monkeypatch):
    fixed_throughput(monkeypatch, float32=1e9, bfloat16=2e9)
    task, chosen = Task(48, 7, 9), settings(backend="reference", pro_dim=64)
    full, half = (estimate.estimate(replace(chosen, precision=name), task, 64, 10, 0, CPU) for name in ("float32", "bf16"))
    others = estimate.estimate(replace(chosen, ablate=["no_adversarial"]), task, 64, 10, 0, CPU)
    assert others.step / 2 < full.step / 2 < half.step < full.step
    assert full.memory / 2 < half.memory < full.memory


def test_throughput_is_quick_and_draws_no_random_numbers():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    started = time.perf_counter()
    assert 1e8 < estimate.throughput(256, 128, 13, torch.float32, CPU) < 1e16
    assert time.perf_counter() - started < 1.0                           # a tenth of it where the machine is free
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("seconds, words", [
    (0.0004, "1 ms"), (0.018, "18 ms"), (0.2, "0.2 s"), (2.44, "2.4 s"), (9.96, "10 s"), (59.4, "59 s"),
    (59.6, "1 min 0 s"), (250, "4 min 10 s"), (3599.8, "1 h 0 min"), (11520, "3 h 12 min"),
    (86399, "1 d 0 h"), (269000, "3 d 3 h")])
def test_durations(seconds, words):
    assert text.duration(seconds) == words


def test_the_line():
    found = estimate.Estimate(step=2.4, epoch=28.8, memory=2.1e9)
    assert estimate.describe(found, 400, 23_040_000_000) == \
        "about 2.4 s a step, 3 h 12 min for 400 epochs, 2.1 GB of memory (23.0 GB free)"
    assert estimate.describe(replace(found, memory=3.5e7), 1, None).endswith("1 epoch, 35 MB of memory")
    assert estimate.describe(found, 1, None) == "about 2.4 s a step, 29 s for 1 epoch, 2.1 GB of memory"


def test_free_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "meminfo")
    assert estimate.free_memory(CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemAvailable:   2000000 kB\n")
    assert estimate.free_memory(CPU) == 2_048_000_000


@pytest.mark.parametrize("free, warned", [(10 ** 12, False), (10 ** 4, True), (None, False)])
def test_training_says_what_it_will_cost(pair, tmp_path, caplog, monkeypatch, free, warned):
    monkeypatch.setattr(estimate, "free_memory", lambda device: free)
    pair.run("--method", "erm", "--max_epoch", "1", save_path=tmp_path)
    line, = [record.message for record in caplog.records if record.message.startswith("Estimate: about ")]
    assert " a step, " in line and " for 1 epoch, " in line
    said = [record for record in caplog.records if "Memory will not do" in record.message]
    assert [record.levelname for record in said] == ["WARNING"] * warned
    assert all("--batch_size" in record.message for record in said)


def test_nothing_is_said_of_an_unknown_method_or_of_a_finished_run(caplog):
    for method, epochs in (("other", 3), ("erm", 0)):
        estimate.announce(SimpleNamespace(method=method), None, CPU, epochs)
    assert not caplog.records


class FakeLibc:
    """glibc's two functions; `refuses` lists (parameter, value) pairs that mallopt does not take."""

    def __init__(self, refuses=()):
        self.said, self.refuses = [], refuses

    def mallopt(self, parameter, value):
        self.said.append((parameter, value))
        return int((parameter, value) not in self.refuses)

    def malloc_trim(self, pad):
        self.said.append(("trim", pad))
        return 1


@pytest.fixture
def libc(monkeypatch):
    for name in ("GLIBC_TUNABLES", *process.USERS_WORDS):
        monkeypatch.delenv(name, raising=False)
    fake = FakeLibc()
    monkeypatch.setattr(process, "is_glibc", lambda: True)
    monkeypatch.setattr(process, "_functions", lambda: (fake.mallopt, fake.malloc_trim))
    return fake


def test_freed_memory_is_kept(libc):
    assert process.keep_freed_memory()
    assert libc.said == [(-3, 2 ** 31 - 1), (-1, 2 ** 31 - 1)]


def test_an_older_glibc_never_maps_instead(libc):
    libc.refuses = [(-3, 2 ** 31 - 1)]
    assert process.keep_freed_memory()
    assert libc.said == [(-3, 2 ** 31 - 1), (-4, 0), (-1, 2 ** 31 - 1)]


def test_default_behaviour_gives_back_what_was_kept(libc):
    assert process.default_behaviour()
    assert libc.said == [(-4, 65536), (-3, 32 * 2 ** 20), (-1, 64 * 2 ** 20), ("trim", 0)]


@pytest.mark.parametrize("name, value", [("MALLOC_TRIM_THRESHOLD_", "100000"), ("MALLOC_MMAP_THRESHOLD_", "100000"),
                                         ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=100000")])
def test_the_users_word_stands(libc, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not process.keep_freed_memory() and not libc.said
    assert process.keep_freed_memory(over_the_user=True) and libc.said


def test_other_tunables_are_no_word_about_it(libc, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert process.keep_freed_memory()


def test_nothing_happens_outside_glibc(libc, monkeypatch):
    monkeypatch.setattr(process, "is_glibc", lambda: False)
    assert not process.keep_freed_memory() and not process.default_behaviour()
    process.give_back()
    assert not libc.said


def freed_memory() -> tuple[int, int, int]:
    """Bytes that this process holds once 128 MiB are freed: by default, kept, and after they were given back."""
    def after_freeing():
        block = torch.ones(2 ** 25)
        del block
        return process.reset_peak(CPU)
    process.default_behaviour()
    gone = after_freeing()
    process.keep_freed_memory(over_the_user=True)
    kept = after_freeing()
    process.give_back()
    return gone, kept, process.reset_peak(CPU)


def test_freed_memory_really_stays_and_goes():
    if not process.is_glibc() or process.reset_peak(CPU) is None:
        pytest.skip("needs glibc, and a system that tells a process's memory")
    gone, kept, given_back = in_a_fresh_process(freed_memory)
    assert kept - gone > 100 * 2 ** 20 and kept - given_back > 100 * 2 ** 20

"""main.py bench: what it measures, how, and the tables it makes of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import main
from conftest import batch, build
from datasets.patches import PatchSampler, place
from model.methods import Task, method_class
from model.ops import gather_patches, reference
from model.seeding import Streams
from model.settings import Settings, resolve_switches
from utils import process
from utils.bench import against, baselines, bench, growth, layouts, measure, stepper, table, workloads
from utils.bench.measure import Stopwatch, Variant, alternate
from utils.bench.workloads import Sizes, Way

CPU = torch.device("cpu")
WORDS = ["bench", "--small", "--repeats", "1", "--gpu", "-1"]


def entry(seconds, items=10, peak=None, lap="step"):
    return {"items": items, "held_bytes": None if peak is None else 0, "peak_bytes": peak,
            "laps": {lap: measure.summary([seconds])}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One small measurement through the command line."""
    out = tmp_path_factory.mktemp("bench") / "small"
    readme = out.parent / "README.md"
    readme.write_text("before\n<!-- small/speed -->\nold\n<!-- /small/speed -->\nafter\n")
    code = main.main([*WORDS, "--out", str(out), "--insert", str(readme)])
    return code, out, readme


@pytest.mark.slow
@pytest.mark.xdist_group("bench")                          # measured once
def test_small_bench_measures_everything(measured):
    code, out, _ = measured
    result = json.loads((out / "speed.json").read_text())
    assert code == 0
    assert result["made"]["command"] == [*WORDS, "--out", str(out), "--insert", str(out.parent / "README.md")]
    assert {"cpu", "cores", "flags", "threads", "versions", "git", "device", "backend", "load"} <= result["made"].keys()
    assert result["sizes"]["patch_size"] == 5 and result["repeats"] == 1 and result["flops"] > 0
    names = list(result["ways"].values())
    assert names[0].startswith("reference") and names[-1].endswith("bf16") and len(set(names)) == len(names)
    assert set(result["convolution"]) == {"float32", "bf16"} and 0 < result["own_floor"]
    assert all(count > 1000 for count in result["calls"].values())
    assert list(result["step"]) == list(result["inference"]) == names
    assert set(result["parts"]) == set(result["scene"]) - {result["ways"].get("a")}
    for section in ("step", "parts", "inference", "scene", "data"):
        for found in result[section].values():
            assert found["items"] > 0
            assert all(len(lap["seconds"]) == 1 and lap["min"] > 0 for lap in found["laps"].values())
    assert {"generate", "min step", "max step"} <= next(iter(result["parts"].values()))["laps"].keys()
    if all(found["peak_bytes"] for found in result["step"].values()):
        assert all(found["peak_bytes"] >= found["held_bytes"] > 2 ** 20 for found in result["step"].values())


@pytest.mark.slow
@pytest.mark.xdist_group("bench")
def test_table_is_made_from_the_json_and_put_into_a_file(measured):
    _, out, readme = measured
    text = table.text(json.loads((out / "speed.json").read_text()))
    assert (out / "speed.md").read_text() == text + "\n"
    assert readme.read_text() == f"before\n<!-- small/speed -->\n{text}\n<!-- /small/speed -->\nafter\n"


@pytest.mark.slow
def test_small_sweep_writes_json_table_and_figure(tmp_path):
    assert main.main([*WORDS, "--sweep", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "growth.json").read_text())
    assert [(point["axis"], point["value"]) for point in result["points"]] == [
        (axis, value) for axis, values in growth.SMALL_AXES.items() for value in values]
    assert (tmp_path / "growth.md").read_text() == growth.text(result) + "\n"
    assert Image.open(tmp_path / "growth.png").width > 1000


RESULT = {
    "made": {"cpu": "Some CPU", "flags": ["avx2"], "threads": 2, "cores": 4, "versions": {"torch": "2.0"},
             "load": [0, 0], "git": "0123456789abcdef+", "device": "cpu (x86_64)",
             "command": ["bench", "--out", "a b"]},
    "sizes": {"patch_size": 13, "pro_dim": 128, "GIN_ch": 24, "batch_size": 256, "bands": 48, "recipe": "released",
              "scene": [210, 954], "inference": 512}, "repeats": 5,
    "ways": {"a": "slow", "b": "tuned", "bf16": "fast"}, "flops": 6e11,
    "convolution": {"float32": entry(0.25, items=4e10, lap="convolution"), "bf16": entry(0.1, items=4e10, lap="convolution")},
    "own_floor": 3.1, "calls": {"slow": 4000, "tuned": 4000, "fast": None}, "step": {"slow": entry(40.0, peak=9_700_000_000), "tuned": entry(16.0, peak=9_600_000_000), "fast": entry(5.0)},
    "parts": {name: {"laps": {"generate": measure.summary([seconds]), "min step": measure.summary([2 * seconds])}}
              for name, seconds in (("tuned", 4.0), ("fast", 1.25))},
    "inference": {"slow": entry(2.0, 512), "tuned": entry(1.0, 512), "fast": entry(0.25, 512)},
    "scene": {"tuned": entry(4.0, 2048), "fast": entry(20.0, 200340)},
    "data": {"plain": entry(1.0, 2048), "sampler": entry(0.01, 2048)}}

GOLDEN = """\
| training step | seconds | on (a) | on (b) | of its floor | calls | peak memory |
| slow (a)      | 40.0    | 1.0×   | 0.4×   | 9 %          | 4,000 | 9.70 GB     |
| tuned (b)     | 16.0    | 2.5×   | 1.0×   | 23 %         | 4,000 | 9.60 GB     |
| fast          | 5.00    | 8.0×   | 3.2×   | 30 %         | –     | –           |

| part of the step (seconds) | tuned (b) | fast |
| generate                   | 4.00      | 1.25 |
| min step                   | 8.00      | 2.50 |

| inference | patches/s | on (a) | on (b) |
| slow (a)  | 256       | 1.0×   | 0.5×   |
| tuned (b) | 512       | 2.0×   | 1.0×   |
| fast      | 2,048     | 8.0×   | 4.0×   |

| whole scene; (a) and (b) patch by patch, on a sample of its pixels | pixels/s | on (b) |
| tuned (b)                                                          | 512      | 1.0×   |
| fast                                                               | 10,017   | 19.6×  |

| data path | patches/s | speed-up |
| plain     | 2,048     | 1.0×     |
| sampler   | 204,800   | 100×     |

Floor: 600 GFLOP a step (torch's counter) ÷ 160 (float32) or 400 (bf16) GFLOP/s (convolution 3×3, 128 → 128, forward \
and both gradients, same batch and patch) = 3.75 s or 1.50 s. The step's own convolutions and products, each the best \
of ten by itself, take 3.10 s (float32). Peak memory: the process's resident set during the step (–: this system \
does not tell it). Batch 256, 48 bands, patch 13, widths 128 and 24, recipe released, scene 210×954. Medians of 5 \
(parts: 1, whole scene: 1) after warm-up, taken in turns in one process. Some CPU (avx2), 2 of 4 cores, torch 2.0, commit \
0123456789+. Made by `python main.py bench --out 'a b'`."""


def test_golden_table():
    made = table.text(json.loads(json.dumps(RESULT)))
    assert "\n".join(line for line in made.splitlines() if not line.startswith("|-")) == GOLDEN


def test_summary():
    found = measure.summary([4.0, 1.0, 3.0, 2.0, 10.0])
    assert found == {"seconds": [4.0, 1.0, 3.0, 2.0, 10.0], "median": 3.0, "min": 1.0, "iqr": 2.0}


class Clock:
    """Stands for `time`: it goes on while somebody sleeps, and only then."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(measure, "time", clock := Clock())
    return clock


def test_stopwatch_adds_up_laps(clock):
    watch = Stopwatch(CPU)
    for name in ("a", "b", "a"):
        with watch.lap(name):
            clock.sleep(0.25)
        clock.sleep(8.0)
    assert watch.seconds() == {"a": 0.5, "b": 0.25}


def test_variants_take_turns_and_memory_is_ready(monkeypatch):
    """Warm-ups alone and with nothing kept; then A B C, A B C, and a heap that was given back grows untimed."""
    said = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda **_: said.append("keep"))
    monkeypatch.setattr(process, "default_behaviour", lambda: said.append("default"))
    monkeypatch.setattr(process, "give_back", lambda: said.append("give back"))
    monkeypatch.setattr(measure, "SHORTEST", 0.0)

    def make(name, keeps):
        def run(watch):
            with watch.lap("lap"):
                said.append(name)
        said.append(f"make {name}")
        return Variant(run, 1, keeps)

    found = alternate("test", {"A": partial(make, "A", False), "B": partial(make, "B", True),
                               "C": partial(make, "C", True)}, 2, CPU)
    warm = [["make A", "default", "A", "give back", "A", "A"], *(
        [f"make {name}", "keep", name, "give back", name, name] for name in "BC")]
    turn = ["default", "A", "keep", "B", "B", "keep", "C", "C"]
    assert said == [*sum(warm, []), "make A", "make B", "make C", *turn, *turn, "keep"]
    assert all(len(found[name]["laps"]["lap"]["seconds"]) == 2 for name in "ABC")


def test_short_work_is_repeated_within_one_timing(monkeypatch, clock):
    runs = []

    def run(watch):
        runs.append(1)
        with watch.lap("lap"):
            clock.sleep(0.25)
    monkeypatch.setattr(measure, "SHORTEST", 0.7)
    found = alternate("test", {"A": lambda: Variant(run)}, 1, CPU)["A"]
    assert len(runs) == 3 + 1 + 3                                        # warm-up, heap, and three to reach 0.7 s
    assert found["laps"]["lap"]["median"] == 0.25


def test_memory_is_none_where_the_system_does_not_tell(monkeypatch, tmp_path):
    def run(watch):
        with watch.lap("lap"):
            pass
    monkeypatch.setattr(process, "_CLEAR_REFS", tmp_path / "nothing" / "clear_refs")
    found = alternate("test", {"A": lambda: Variant(run)}, 1, CPU)
    assert found["A"]["peak_bytes"] is None and found["A"]["held_bytes"] is None


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 12])
def test_unfold_gives_the_involution(channels):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 4, 5, generator=rng, requires_grad=True)
    kernel = torch.randn(2, reference.group_count(channels), 9, 4, 5, generator=rng, requires_grad=True)
    own, unfolded = reference.involution(x, kernel), baselines.unfold_involution(x, kernel)
    torch.testing.assert_close(unfolded, own)
    for a, b in zip(torch.autograd.grad(own.square().sum(), (x, kernel)),
                    torch.autograd.grad(unfolded.square().sum(), (x, kernel))):
        torch.testing.assert_close(a, b)


def test_unfold_takes_the_place_of_the_reference_only_inside(monkeypatch):
    calls, own = [], reference.involution
    unfolded = baselines.unfold_involution
    monkeypatch.setattr(baselines, "unfold_involution", lambda *args: calls.append(1) or unfolded(*args))
    sizes = Sizes(5, 6, 3, 4, 6, "paper", (8, 9))
    way = workloads.baselines(CPU)["unfold"]
    workloads.step(way, sizes, CPU).run(Stopwatch(CPU))
    assert calls and reference.involution is own
    with pytest.raises(KeyError), baselines.through_unfold():
        raise KeyError
    assert reference.involution is own


class Coins:
    """A generator whose coins all fall on one side, and whose noise is 1."""

    def __init__(self, coin):
        self.random, self.uniform = lambda: coin, lambda low, high: high
        self.standard_normal = lambda shape, dtype: np.ones(shape, dtype)


def test_per_sample_data_set_cuts_and_augments_as_the_sampler():
    cube = np.random.default_rng(0).random((7, 8, 4), dtype=np.float32)
    centres, labels = np.array([[0, 0], [3, 4], [6, 7]]), np.array([2, 0, 1])
    dataset = baselines.PatchDataset(cube, centres, labels, 5)
    cut = gather_patches(place(cube, CPU), torch.from_numpy(centres), 5, backend="reference")
    dataset.rng = Coins(0.9)                                             # nothing happens
    assert all(torch.equal(dataset[i][0], cut[i]) and dataset[i][1] == labels[i] for i in range(len(dataset)))
    dataset.rng = Coins(0.1)                                             # both flips and the radiation noise
    torch.testing.assert_close(dataset[1][0], 1.1 * cut[1].flip(1, 2) + 1 / 25)


@pytest.mark.slow
def test_counted_operations_are_those_of_the_reference_step():
    sizes = Sizes(5, 8, 4, 6, 10, "released", (8, 9))
    counts = {name: workloads.step_flops(way, sizes, CPU) for name, way in workloads.baselines(CPU).items()}
    assert len(set(counts.values())) == 1 and counts["b"] > 1e6
    assert workloads.floor(sizes, torch.float32, CPU).items == 3 * 2 * 6 * 8 * 8 * 9 * 25


def test_a_steps_own_floor_is_less_than_the_step(monkeypatch):
    """Of every convolution and product the best time, as often as it is called."""
    sizes, way = Sizes(5, 8, 4, 6, 10, "released", (8, 9)), workloads.baselines(CPU)["b"]
    recorder = workloads.recorded_step(way, sizes, CPU)
    calls = sum(count for _, _, count in recorder.products.values())
    assert recorder.calls > calls > 100 
    timed = []
    monkeypatch.setattr(workloads, "best_seconds", lambda run, device: timed.append(run) or float(len(timed) % 2 + 1))
    assert workloads.own_floor(recorder, CPU) >= calls and len(timed) > len(recorder.products)
    monkeypatch.undo()
    assert workloads.best_seconds(lambda: torch.ones(3), CPU) > 0


@pytest.mark.slow
def test_two_programs_are_compared_in_turns(tmp_path, capsys, monkeypatch):
    """This program against itself: two methods at one size, in processes of their own."""
    for method, recipe in against.WORK.values():
        build(method=method, recipe=recipe).update(*batch())
    monkeypatch.setattr(against, "WORK", {name: against.WORK[name] for name in ("s2amsnet released", "erm")})
    words = ["bench", "--small", "--gpu", "-1", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    assert main.main([*words, "--against", str(main.process.__file__).rsplit("/utils", 1)[0]]) == 0
    result = json.loads((tmp_path / "against.json").read_text())
    assert [row["name"] for row in result["rows"]] == list(against.WORK)
    for row in result["rows"]:
        assert row["here"]["calls"] == row["there"]["calls"] > 100
        assert row["here"]["seconds"][0] > 0 and row["there"]["seconds"][0] > 0
    assert "| s2amsnet released" in (tmp_path / "against.md").read_text()
    assert main.main([*words, "--against", str(tmp_path)]) == 2
    assert "holds no main.py" in capsys.readouterr().err


@pytest.mark.slow
def test_what_two_programs_start_on_a_gpu_is_counted(tmp_path):
    words = ["bench", "--small", "--gpu", "-1", "--threads", "1", "--out", str(tmp_path), "--launches"]
    assert main.main([*words, "--against", str(main.process.__file__).rsplit("/utils", 1)[0]]) == 0
    rows = json.loads((tmp_path / "launches.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(against.WORK)
    for row in rows:
        assert row["here"] == row["there"] and 50 < row["here"]["working"] < row["here"]["kernels"]
    assert "| s2amsnet released" in (tmp_path / "launches.md").read_text()


MOST = {"s2amsnet released": (606, 702), "s2amsnet paper": (578, 650), "s2amsnet robust": (700, 772),
        "erm": (87, 111)}


@pytest.mark.parametrize("name", MOST)
def test_a_step_starts_no_more_on_a_gpu_than_it_did(forced_cupy, name):
    """Operators and kernels at study size: a step that starts more has lost a fused operator, or what makes one call of
    several."""
    given, (operators, kernels) = against.work(name, bench.STUDY, "float32", backend="cupy"), MOST[name]
    chosen = Settings(method=given["method"], **given["settings"])
    resolve_switches(chosen)
    method = method_class(chosen.method)(Task(bench.STUDY.bands, 7, 5), chosen, Streams(0, CPU))
    x, y = workloads.random_batch(8, bench.STUDY, CPU)
    x = x.contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        method.update(x, y)
    with stepper.Calls() as calls:
        method.update(x, y)
    assert operators - 20 < calls.working <= operators and calls.working < calls.kernels <= kernels


def test_the_sizes_that_two_programs_are_compared_at():
    def sizes(**given):
        config = bench.BenchConfig(**given)
        return [(each.patch_size, each.bands, each.pro_dim) for each in bench.points(config, bench.check(config)[0])]
    assert sizes(size="study") == [(5, 48, 32), (9, 176, 32)]
    assert sizes(size="study", patch_size=7) == [(7, 48, 32)] and sizes() == [(13, 48, 128)]


def test_a_backend_that_is_the_reference_has_no_float32_row_of_its_own():
    assert list(workloads.fast_ways("reference", CPU)) == ["bf16"]
    assert list(workloads.baselines(torch.device("cuda"))) == ["b", "unfold"]      # its memory is not malloc's


def test_layouts_and_precisions_that_are_compared(monkeypatch):
    def names(kind):
        return [way.name for way in layouts.ways("reference", torch.device(kind))]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    rows = ("channels last", "NCHW", "CUDA graph")
    assert names("cuda") == ["reference", *(f"reference, {precision}, {row}"
                                            for precision in ("float32", "bf16", "tf32") for row in rows)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert names("cuda") == ["reference", *(f"reference, float32, {row}" for row in rows)]
    assert names("cpu")[1:] == [f"reference, {precision}, {row}"
                                for precision in ("float32", "bf16") for row in rows[:2]]


def test_tf32_is_on_inside_alone():
    def on():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(KeyError), layouts.tf32():
        assert on() == (True, True)
        raise KeyError
    assert on() == (False, False)


@pytest.mark.parametrize("layout, channels_last", [(None, False), (torch.contiguous_format, False),
                                                   (torch.channels_last, True)])
def test_patches_lie_in_memory_as_the_way_has_them(layout, channels_last):
    """None: as a run of that backend has them."""
    sizes = Sizes(5, 8, 4, 6, 10, "released", (8, 9))
    x, y = workloads.batch_of(Way("w", {"backend": "reference"}, layout=layout), 6, sizes, CPU)
    assert x.is_contiguous(memory_format=torch.channels_last) == channels_last and len(y) == 6
    assert torch.equal(x, workloads.random_batch(6, sizes, CPU)[0])
    usual, _ = workloads.batch_of(Way("w", {"backend": "auto"}), 6, sizes, CPU)
    sampler = PatchSampler(torch.rand(10, 9, 9), [[4, 4]], [0], 5, "auto")
    assert usual.is_contiguous(memory_format=sampler.memory_format)


def points(exponent, peak=10 ** 9):
    return [{"axis": axis, "value": value, "step": entry(0.01 * value ** exponent, peak=peak and peak * value),
             "inference": entry(0.5, lap="inference")} for axis, values in growth.AXES.items() for value in values]


def test_slopes_of_growth():
    result = RESULT | {"way": "cpu, float32", "points": points(1.5)}
    for axis in growth.AXES:
        assert growth.slope(*growth.series(result, axis, "step"))[0] == pytest.approx(1.5)
        assert growth.slope(*growth.series(result, axis, "memory"))[0] == pytest.approx(1.0)
    lines = growth.text(result).splitlines()
    assert lines[2].split("|")[1].strip() == "batch 16 … 256"
    assert "0.640 … 41.0, slope 1.50" in lines[2] and "0.500 … 0.500, slope 0.00" in lines[2]


def test_growth_without_memory_is_drawn_all_the_same():
    result = RESULT | {"way": "cpu, float32", "points": points(1.0, peak=None)}
    assert [cell.strip() for cell in growth.text(result).splitlines()[2].split("|")][3] == "–"
    figure = growth.plot_growth(result)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(figure.axes) == 12 and titles[:4] == ["slope 1.00"] * 4 and titles[4:8] == [""] * 4


@pytest.mark.parametrize("words, message", [
    (["--patch_size", "4"], "patch_size must be odd"), (["--repeats", "0"], "repeats must be at least 1"),
    (["--threads", "0"], "threads must be at least 1"), (["--bands", "-3"], "bands must be at least 1")])
def test_impossible_sizes_are_named(words, message, capsys):
    assert main.main([*WORDS, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "alternate", None)
    (tmp_path / "file").write_text("")
    assert main.main([*WORDS, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_interruption_leaves_earlier_results_alone(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    (tmp_path / "speed.json").write_text("earlier")
    monkeypatch.setattr(bench, "alternate", interrupted)
    assert main.main([*WORDS, "--out", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    assert (tmp_path / "speed.json").read_text() == "earlier"

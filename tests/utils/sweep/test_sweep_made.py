"""What a sweep finds made already: taken as done, gone on with, or refused."""

import json
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from datasets.readers import sha256
from model.errors import ConfigError
from utils.run.config import TrainConfig, parse_train, to_yaml
from utils.run.planned import FILE
from utils.sweep import sweep
from utils.sweep.process import Run
from utils.sweep.sweep import SweepConfig, check_made, run_sweep


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with two scenes' descriptions, files of their names, and weights."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("field", "coast"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({
            "name": name, "cube": {"file": f"{name}.mat", "key": "x"}, "labels": {"file": f"{name}_gt.mat", "key": "y"},
            "class_names": ["land"]}))
        (folder / f"{name}.mat").write_text(name)
        (folder / f"{name}_gt.mat").write_text(f"labels of {name}")
    (folder / "vgg.pth").write_text("weights")
    return folder


def on(data: Path, source: str = "field", target: str = "coast", **settings) -> TrainConfig:
    config = parse_train(["--source_name", str(data / f"{source}.yaml"), "--target_name", str(data / f"{target}.yaml"),
                          "--method", "htcnn", "--htcnn_weights", str(data / "vgg.pth")])
    return replace(config, **settings)


def planned_run(config: TrainConfig, folder: Path) -> tuple[Run, TrainConfig]:
    return Run(folder.name, str(folder), ["--method", "htcnn"], False), config


def make(config: TrainConfig, folder: Path, status: str = "done", begun: bool = False) -> tuple[Run, TrainConfig]:
    """A run folder as training leaves it: settings, status and digests of the files; `begun`: with a checkpoint."""
    data = Path(config.source_name).parent
    names = {"source": Path(config.source_name).stem, "target": Path(config.target_name).stem}
    files = {f"{role}/{name}{end}": sha256(data / f"{name}{end}")
             for role, name in names.items() for end in (".mat", "_gt.mat")}
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "run.json").write_text(json.dumps(
        {"status": status, "sha256": files, "initial_weights": {"vgg.pth": sha256(data / "vgg.pth")}}))
    if begun:
        (folder / "checkpoint.pt").touch()
    return planned_run(config, folder)


def refused(runs) -> str:
    with pytest.raises(ConfigError) as error:
        check_made(runs)
    return str(error.value)


def test_runs_of_these_settings_and_files_are_the_sweeps_own(data, tmp_path):
    mine = [make(on(data), tmp_path / "done"), make(on(data, seed=1), tmp_path / "begun", "interrupted", begun=True),
            make(on(data, "coast", "field"), tmp_path / "turned"), planned_run(on(data), tmp_path / "new")]
    check_made(mine)
    moved = replace(mine[0][1], gpu=3, data_path=str(data), log_interval=7, save_path="elsewhere", validators=True)
    check_made([(mine[0][0], moved)])


@pytest.mark.parametrize("status, begun", [("done", False), ("interrupted", True)])
def test_a_run_of_other_settings_is_refused_with_every_difference(data, tmp_path, status, begun):
    run, config = make(on(data), tmp_path / "run", status, begun)
    new = planned_run(on(data), tmp_path / "new")
    now = replace(config, lr=0.5, patch_size=7)
    assert refused([new, (run, now)]) == (f"{run.folder} was made with other settings: lr (0.001 there, 0.5 now), "
                                          "patch_size (13 there, 7 now). Choose another --save_path for these.")


def test_a_run_from_before_its_method_changed_is_refused(data, tmp_path):
    """Its config.yaml lacks the setting that says which of the two it was."""
    run, config = make(on(data, method="sagnet"), tmp_path / "run")
    check_made([(run, config)])
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("sagnet_adversary: norms\n", ""))
    assert "other settings: sagnet_adversary (early there, norms now)" in refused([(run, config)])


def test_a_run_that_never_began_may_become_any_other(data, tmp_path):
    run, config = make(on(data), tmp_path / "run", "failed")
    check_made([(run, replace(config, lr=0.5))])


def test_a_run_on_other_files_is_refused_with_every_file(data, tmp_path):
    runs = [make(on(data, "coast", "coast"), tmp_path / "first"), make(on(data), tmp_path / "run")]
    (data / "field_gt.mat").write_text("other labels")
    (data / "field.mat").write_text("other cube")
    assert refused(runs) == (f"{tmp_path / 'run'} was made with other data: source/field.mat, source/field_gt.mat "
                             "changed since. Choose another --save_path for these.")


def test_other_initial_weights_are_other_files(data, tmp_path):
    runs = [make(on(data), tmp_path / "run")]
    (data / "vgg.pth").write_text("other weights")
    assert "other data: vgg.pth changed" in refused(runs)


def test_a_run_that_was_killed_before_it_knew_its_files_is_held_against_those_it_knew(data, tmp_path):
    runs, about = [make(on(data), tmp_path / "run", "running", begun=True)], tmp_path / "run" / "run.json"
    about.write_text('{"status": "running"}')
    check_made(runs)
    about.write_text('{"status": "running", "initial_weights": {"vgg.pth": "of others"}}')
    assert "other data: vgg.pth changed" in refused(runs)
    about.write_text('{"status": "done", "sha256": {}}')
    every = "source/field.mat, source/field_gt.mat, target/coast.mat, target/coast_gt.mat, vgg.pth"
    assert f"{every} changed" in refused(runs)


def test_without_the_files_the_records_stand(data, tmp_path, caplog):
    runs = [make(on(data), tmp_path / "run")]
    (data / "vgg.pth").unlink()
    check_made(runs)                                                     # weights that are gone, too
    (data / "vgg.pth").write_text("other weights")
    (data / "coast.mat").unlink()
    check_made(runs)
    assert "cannot be held against their data: coast" in caplog.text


@pytest.fixture
def three(data, tmp_path, monkeypatch) -> tuple[Path, list[Path]]:
    """A sweep of three seeds of one method and the folders of its runs, the first of them done.  Nothing is trained.
    The bar has no thread that watches it, and a lock of its own: forks of this process would share the other one."""
    monkeypatch.setattr(sweep, "_on_this_machine", None)
    monkeypatch.setattr(sweep, "at_a_time", lambda jobs, threads, runs, left: (jobs, threads, runs, len(left)))
    monkeypatch.setattr(sweep.tqdm, "monitor_interval", 0)
    monkeypatch.setattr(sweep.tqdm, "_lock", threading.RLock(), raising=False)
    file = tmp_path / "mine.yaml"
    config = on(data)
    file.write_text(yaml.safe_dump({
        "config": [], "seeds": [0, 1, 2], "save_path": str(tmp_path / "runs"), "variants": [{"method": "htcnn"}],
        "settings": {name: getattr(config, name) for name in ("source_name", "target_name", "htcnn_weights")}}))
    runs = sweep.sweep_runs(file, SweepConfig())
    (tmp_path / "runs").mkdir()
    make(runs[0][1], Path(runs[0][0].folder))
    return file, [Path(run.folder) for run, _ in runs]


def test_what_is_done_is_not_printed_and_what_is_begun_goes_on(three, tmp_path, capsys):
    file, folders = three
    make(sweep.sweep_runs(file, SweepConfig())[1][1], folders[1], "interrupted", begun=True)
    assert run_sweep([file], SweepConfig(print=True)) == 0
    begun, new = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert begun == [sys.executable, sweep.PROGRAM, "train", "--resume", str(folders[1])]
    assert new[:3] == begun[:3] and new[-4:] == ["--seed", "2", "--run_name", folders[2].name]
    assert not (tmp_path / "runs" / FILE).exists()


@pytest.mark.parametrize("failure", [None, "exit code 2: no space"])
def test_a_sweep_runs_what_is_left_and_says_what_failed(three, monkeypatch, caplog, failure):
    file, folders = three
    begun = []

    def instead(left, jobs, threads, runs, unmade, bar):
        begun.append(([run.folder for run in left], jobs, threads, runs, unmade, bar.total, bar.n))
        yield from zip(left, (failure, None))

    monkeypatch.setattr(sweep, "_on_this_machine", instead)
    assert run_sweep([file], SweepConfig(jobs=2, cpus_per_run=3)) == (1 if failure else 0)
    assert begun == [([str(folder) for folder in folders[1:]], 2, 3, 3, 2, 3, 1)]
    assert list(json.loads((folders[0].parent / FILE).read_text())) == ["mine"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ([f"{folders[1].name} failed; the others go on.", f"failed: {folders[1].name}: {failure}"]
                    if failure else [])


def test_a_sweep_on_a_cluster_hands_over_what_is_left_and_passes_an_interruption_on(three, monkeypatch, caplog):
    file, folders = three
    given = []

    def instead(left, *words):
        given.append(([run.folder for run in left], *words))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(sweep, "train_on_ray", instead)
    with pytest.raises(KeyboardInterrupt):
        run_sweep([file], SweepConfig(ray="head:6379", cpus_per_run=3, gpus_per_run=0.5))
    with pytest.raises(KeyboardInterrupt):
        run_sweep([file], SweepConfig(ray="head:6379"))
    left, there = [str(folder) for folder in folders[1:]], str(folders[0].parent)
    assert given == [(left, sweep.PROGRAM, there, "head:6379", *shares) for shares in ((3, 0.5), (1, None))]
    assert caplog.messages[-1] == "Interrupted; what was under way is saved. Start the same sweep again to go on."


def test_a_sweep_that_is_done_starts_nothing(three):
    assert run_sweep([three[0]], SweepConfig(seeds=[0])) == 0


@pytest.mark.parametrize("choice, told", [
    ({"jobs": 0}, "jobs must be at least 1, not 0"), ({"cpus_per_run": 0}, "at least one CPU"),
    ({"gpus_per_run": -0.1}, "at most one GPU"), ({"gpus_per_run": 1.1}, "at most one GPU")])
def test_shares_that_cannot_be_are_refused(three, choice, told):
    with pytest.raises(ConfigError, match=told):
        run_sweep([three[0]], SweepConfig(**choice))


def test_a_run_may_take_a_whole_gpu_or_none(three):
    for share in (0, 1, None):
        assert run_sweep([three[0]], SweepConfig(print=True, gpus_per_run=share)) == 0

"""Training end to end: records, protocol, resume, interruption, and errors that lose nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main
from conftest import PairOnDisk, same_state, write_scene
from datasets.scene import Scene
from datasets.writers import write_mat_v5
from model.errors import CheckpointError, ConfigError, NonFiniteLossError
from model.methods import REGISTRY, method_class
from utils.run import checkpoint
from utils.run.config import parse_train
from utils.run.selection import ORACLE, RULES

ROOT = Path(__file__).resolve().parent.parent
RULE_NAMES = {rule.name for rule in RULES}


def weights(run):
    return checkpoint.load(run.checkpoint)["method"]["networks"]


@pytest.mark.parametrize("words", [["--method", "erm"], ["--method", "erm_gain"], ["--recipe", "released"],
                                   ["--recipe", "paper", "--batchnorm_statistics", "source", "--split", "blocks"]])
def test_a_run_leaves_its_records(pair, tmp_path, capsys, words):
    run = pair.run(*words, save_path=tmp_path / "runs")
    records = run.records(run.epochs)
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[0]["losses"] and 0 <= records[0]["source_val"]["oa"] <= 1
    about = run.read_run()
    assert about["status"] == "done" and about["seed"] == 333 and about["versions"]["torch"] and about["backend"]
    assert about["seconds"] > 0 and about["peak_memory_mib"] > 0
    assert set(about["sha256"]) == {"source/field.mat", "source/field_gt.mat", "target/coast.mat", "target/coast_gt.mat"}
    content = json.loads(run.evaluation.read_text())
    assert set(content["rules"]) == RULE_NAMES and "oracle" not in content
    for entry in content["rules"].values():
        assert np.sum(entry["confusion"]) == entry["target"]["n"] == about["labelled_target_pixels"] == 7 * 24
    assert content["rules"]["last"]["epoch"] == 2 and content["constant"]["kappa"] == 0
    printed = capsys.readouterr().out
    assert "source-val" in printed and "constant answer" in printed and "grass healthy" in printed


def test_the_saved_config_repeats_the_run(train_once, tmp_path):
    first = train_once("--recipe", "paper", "--oracle")
    second = main.train(["--config", str(first.config), "--save_path", str(tmp_path)])
    assert same_state(weights(first), weights(second))


def test_seeds_matter(train_once):
    first, second = (train_once("--method", "erm", *words) for words in ([], ["--seed", "2"]))
    assert not same_state(weights(first), weights(second))


def one_class(run):
    """The class that would turn the oracle's choice, were it every labelled pixel's: the one whose share of the answers
    is most above that of the chosen epoch in another epoch."""
    shares = np.array([np.sum(record["confusion"], axis=0) for record in run.records(run.oracle)])      # [epochs, K]
    chosen = ORACLE.select(run.records(run.oracle)) - 1
    return 1 + int((shares.max(axis=0) - shares[chosen]).argmax())


def half_elsewhere(labelled, rng):
    """Mask [H, W] of as many pixels, every second one of them at a place of its own."""
    found = labelled & (labelled.cumsum().reshape(labelled.shape) % 2 == 0)
    found.flat[rng.choice(np.flatnonzero(~labelled), labelled.sum() - found.sum(), replace=False)] = True
    return found


def told_without_target_labels(run):
    """All that a run says but the target's scores, the seconds, and what stands in run.json."""
    content = json.loads(run.evaluation.read_text())["rules"]
    return {"epochs": [{key: value for key, value in record.items() if key != "seconds"}
                       for record in run.records(run.epochs)],
            "diagnostics": run.records(run.diagnostics), "validators": run.records(run.validators),
            "rules": {name: [entry[key] for key in ("epoch", "source_val", "shifted_source")]
                      for name, entry in content.items()},
            "stopped early": run.read_run()["stopped_early"]}


SEALED = [["--method", "erm", "--patience", "2"], *(["--recipe", name] for name in ("released", "paper", "robust")),
          ["--method", "mran", "--lr", "0.05"],                              # answers the same for longer than the others
          *(["--method", name] for name in REGISTRY if name not in ("s2amsnet", "erm", "mran"))]


@pytest.mark.parametrize("words", SEALED, ids=" ".join)
def test_the_target_is_sealed(pair, tmp_path, scenes, words):
    """Whatever the target's labels are, if only as many: the same weights, and the same epochs chosen by every rule.

    (How many there are counts: `released` and `paper` repeat the source's index list by it.)
    """
    words = ["--oracle", "--validators", "--lr", "0.02", "--max_epoch", "3", *words]
    first, labelled = pair.run(*words, save_path=tmp_path / "a"), scenes[1].labels > 0
    other = one_class(first) * half_elsewhere(labelled, np.random.default_rng(0))
    assert (other > 0).sum() == labelled.sum()
    write_mat_v5(pair.folder / "coast_gt.mat", {"map": other})
    second = pair.run(*words, save_path=tmp_path / "b")
    assert first.records(first.oracle) != second.records(second.oracle)                # the other labels were read ...
    if not method_class(parse_train(words).method).fits_in_one_epoch:                        # ... and would choose otherwise
        assert len({ORACLE.select(run.records(run.oracle)) for run in (first, second)}) == 2
    assert told_without_target_labels(first) == told_without_target_labels(second)
    (ours, theirs) = (checkpoint.load(run.checkpoint) for run in (first, second))
    assert same_state(ours["method"], theirs["method"]) and same_state(ours["streams"], theirs["streams"])
    assert set(ours["state"]["selected"]) == RULE_NAMES
    assert same_state(ours["state"]["selected"], theirs["state"]["selected"])


def test_oracle_has_a_record_of_its_own(train_once):
    run = train_once("--recipe", "paper", "--oracle")
    assert [record["epoch"] for record in run.records(run.oracle)] == [1, 2]
    assert all("target" not in record for record in run.records(run.epochs))
    content = json.loads(run.evaluation.read_text())
    best = max(record["target"]["oa"] for record in run.records(run.oracle))
    assert content["oracle"]["target"]["oa"] == best


def test_a_run_without_a_target(pair, tmp_path):
    run = pair.run("--target_name", "null", "--max_epoch", "1", save_path=tmp_path)
    content = json.loads(run.evaluation.read_text())
    assert "target" not in content["rules"]["last"] and run.read_run()["target"] is None


@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_going_on_after_an_interruption_is_bit_identical(pair, tmp_path, monkeypatch, recipe):
    whole = pair.run("--recipe", recipe, "--max_epoch", "3", save_path=tmp_path / "a")
    plain, calls = method_class("s2amsnet").update, []

    def interrupted(self, x, y):
        calls.append(1)
        if len(calls) == 5:                     # in the middle of epoch 2
            raise KeyboardInterrupt
        return plain(self, x, y)

    monkeypatch.setattr(method_class("s2amsnet"), "update", interrupted)
    words = pair.words("--recipe", recipe, "--max_epoch", "3", "--save_path", str(tmp_path / "b"))
    assert main.main(words) == 130
    monkeypatch.setattr(method_class("s2amsnet"), "update", plain)
    folder = next((tmp_path / "b").iterdir())
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    run = main.train(["--resume", str(folder)])
    assert same_state(weights(whole), weights(run))
    assert [r["losses"] for r in whole.records(whole.epochs)] == [r["losses"] for r in run.records(run.epochs)]
    assert [r["epoch"] for r in run.records(run.epochs)] == [1, 2, 3]
    assert json.loads(whole.evaluation.read_text()) == json.loads(run.evaluation.read_text())


@pytest.mark.slow
def test_kill_nine_loses_nothing(pair, tmp_path):
    words = pair.words("--max_epoch", "100000", "--save_path", str(tmp_path / "b"))
    process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *words], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "b").glob("*/epochs.jsonl")):
        time.sleep(0.01)
    process.kill()                                  # at some moment of the second epoch, or of one soon after
    assert process.wait() == -signal.SIGKILL
    folder = next((tmp_path / "b").iterdir())
    done = checkpoint.load(folder / "checkpoint.pt")["state"]["epoch"]
    run = main.train(["--resume", str(folder), "--max_epoch", str(done + 2)])
    whole = pair.run("--max_epoch", str(done + 2), save_path=tmp_path / "a")
    assert same_state(weights(whole), weights(run))
    assert [r["epoch"] for r in run.records(run.epochs)] == list(range(1, done + 3))


def test_a_record_cut_short_is_written_again(trained):
    run = trained("--method", "erm")
    with open(run.epochs, "a") as file:
        file.write('{"epoch": 3, "losses"')
    run = main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert [record["epoch"] for record in run.records(run.epochs)] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(pair, tmp_path, monkeypatch):
    plain, calls = method_class("erm").update, []

    def breaking(self, x, y):
        calls.append(1)
        losses = plain(self, x, y)
        return losses | {"ce": float("nan")} if len(calls) == 4 else losses

    monkeypatch.setattr(method_class("erm"), "update", breaking)
    with pytest.raises(NonFiniteLossError, match=r"ce is not finite at step 4 .epoch 2.*holds epoch 1"):
        pair.run("--method", "erm", save_path=tmp_path)
    folder = next(tmp_path.glob("field-coast*"))
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["epoch"] == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_weights_that_are_not_finite_never_reach_the_checkpoint(pair, tmp_path, monkeypatch):
    plain = method_class("erm").update

    def breaking(self, x, y):
        losses = plain(self, x, y)
        with torch.no_grad():
            self.discriminator.head.bias[0] = float("inf")
        return losses

    monkeypatch.setattr(method_class("erm"), "update", breaking)
    with pytest.raises(NonFiniteLossError, match="discriminator.head.bias .* epoch 1"):
        pair.run("--method", "erm", "--batch_size", "500", save_path=tmp_path)          # one step per epoch
    folder = next(tmp_path.glob("field-coast*"))
    assert all(value.isfinite().all() for value in weights(main.open_run(folder)).values())


def test_an_existing_run_is_never_overwritten(pair, tmp_path):
    run = pair.run("--method", "erm", save_path=tmp_path)
    before = run.checkpoint.read_bytes()
    again = main.train(["--config", str(run.config)])
    assert again.path.name == run.path.name + "_2" and same_state(weights(run), weights(again))
    assert run.checkpoint.read_bytes() == before
    run.update_run(status="interrupted")
    with pytest.raises(ConfigError, match="unfinished. Go on with it: --resume"):
        pair.run("--method", "erm", save_path=tmp_path)
    with pytest.raises(ConfigError, match="must be a plain name"):
        pair.run("--run_name", "../x", save_path=tmp_path)


def test_bad_input_is_one_line_and_leaves_no_folder(pair, tmp_path, capsys):
    pair.change(pair.target, class_names=["a", "b"])
    assert main.main(pair.words("--save_path", str(tmp_path / "runs"))) == 2
    assert "2 class names" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert main.main(["--source_name", "Houston13", "--data_path", str(tmp_path)]) == 2
    assert "SceneNotFoundError: Houston13.mat" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_named(pair, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        pair.run(save_path=tmp_path / "file")


def test_a_checkpoint_of_another_configuration_is_refused(trained):
    run = trained("--method", "erm")
    with pytest.raises(CheckpointError, match="cannot change lr, pro_dim"):
        main.train(["--resume", str(run.path), "--lr", "0.1", "--pro_dim", "16"])
    run.config.write_text(yaml.safe_dump(yaml.safe_load(run.config.read_text()) | {"lr": 0.5}))
    with pytest.raises(CheckpointError, match=r"another configuration: lr \(0.001 there, 0.5 here\)"):
        main.train(["--resume", str(run.path)])


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.arange(10000), "y": {"z": [1, 2.0, "three", None]}})
    whole = path.read_bytes()
    for content in [whole[:size] for size in (0, 1, 10, 100, 1000, 5000, len(whole) // 2, len(whole) - 10)] + [
            b"just words, and quite a few of them", bytes(5000)]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint.pt cannot be read.*truncated"):
            checkpoint.load(path)


def test_resume_refuses_other_data_and_another_kind_of_device(pair, tmp_path, scenes):
    run = pair.run("--method", "erm", save_path=tmp_path)
    saved = checkpoint.load(run.checkpoint)
    checkpoint.save(run.checkpoint, saved | {"device": "cuda"})
    with pytest.raises(CheckpointError, match="written on cuda"):
        main.train(["--resume", str(run.path), "--max_epoch", "3"])
    checkpoint.save(run.checkpoint, saved)
    labels = scenes[0].labels.copy()
    labels[labels == 1] = 2
    labels[0, :4] = 1
    write_mat_v5(pair.folder / "field_gt.mat", {"map": labels})
    with pytest.raises(CheckpointError, match="other data: source/field_gt.mat changed"):
        main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert run.read_run()["status"] == "done" and checkpoint.load(run.checkpoint)["state"]["epoch"] == 2


def test_a_run_may_be_ended_early(pair, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(main, "score_run", interrupted)
        assert main.main(pair.words("--method", "erm", "--save_path", str(tmp_path))) == 130
    folder = next(tmp_path.glob("field-coast*"))
    assert main.main(["figures", str(folder)]) == 2 and main.main(["tables", str(folder)]) == 2
    run = main.train(["--resume", str(folder)])
    assert run.read_run()["status"] == "done" and set(json.loads(run.evaluation.read_text())["rules"]) == RULE_NAMES
    longer = main.train(["--resume", str(folder), "--max_epoch", "3"])
    assert yaml.safe_load(longer.config.read_text())["max_epoch"] == 3


def test_a_target_without_labels_is_mapped_not_scored(pair, tmp_path, scenes):
    write_mat_v5(pair.folder / "coast_gt.mat", {"map": np.zeros_like(scenes[1].labels)})
    assert main.main(pair.words("--oracle", "--save_path", str(tmp_path / "a"))) == 2
    run = pair.run("--method", "erm", save_path=tmp_path / "b")
    assert "target" not in json.loads(run.evaluation.read_text())["rules"]["last"]
    assert main.main(["figures", str(run.path)]) == 0


def test_source_and_target_may_be_the_same_but_not_silently(pair, tmp_path, caplog):
    pair.target = pair.source
    pair.run("--method", "erm", save_path=tmp_path)
    assert "scores include training pixels" in caplog.text


@pytest.mark.parametrize("bands,names", [(1, ["a", "b"]), (2, ["a", "b", "c"])])
def test_small_scenes_train_from_the_command_line(tmp_path, bands, names):
    rng = np.random.default_rng(0)
    source, target = (Scene("s", rng.random((12, 14, bands)).astype(np.float32) + 0.1,
                            rng.integers(0, len(names) + 1 - i, (12, 14)), tuple(names[:len(names) - i]))
                      for i in (0, len(names) - 2))
    source, target = (write_scene(tmp_path, scene, name, write_mat_v5) for scene, name in ((source, "s"), (target, "t")))
    run = PairOnDisk(tmp_path, source, target).run("--recipe", "paper", save_path=tmp_path / "runs")
    assert run.read_run()["status"] == "done" and main.main(["figures", str(run.path)]) == 0


def test_checkpoints_never_run_code(tmp_path):
    torch.save({"state": Exploit()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        checkpoint.load(tmp_path / "bad.pt")
    assert not Exploit.ran


class Exploit:
    ran = False

    def __reduce__(self):
        return (exec, ("import test_train; test_train.Exploit.ran = True",))


def test_tensorboard_curves_are_those_of_the_records(pair, train_once, tmp_path):
    loaded = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is optional")
    run = pair.run("--method", "erm", "--tensorboard", "--log_interval", "1", save_path=tmp_path)
    curves = loaded.EventAccumulator(str(run.path / "tensorboard")).Reload()
    records = run.records(run.epochs)
    steps, ends = records[0]["steps"], [record["epoch"] * record["steps"] for record in records]
    points = curves.Scalars("loss/ce")
    assert [point.step for point in points] == list(range(1, ends[-1] + 1))
    means = [np.mean([point.value for point in points[end - steps:end]]) for end in ends]
    assert means == pytest.approx([record["losses"]["ce"] for record in records], rel=1e-5)
    names = {f"{kind}/{score}" for kind in ("source-val", "shifted-source") for score in ("oa", "aa", "kappa")}
    assert set(curves.Tags()["scalars"]) == {"loss/ce"} | names
    for name in names:
        kind, score = name.replace("-", "_").split("/")
        assert [point.step for point in curves.Scalars(name)] == ends
        assert [point.value for point in curves.Scalars(name)] == pytest.approx([record[kind][score] for record in records])
    assert not (train_once("--method", "erm").path / "tensorboard").exists()


def test_a_machine_without_a_gpu_says_so(pair, tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    pair.run("--method", "erm", "--gpu", "0", "--max_epoch", "1", save_path=tmp_path)
    assert "running on the CPU" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_a_run_on_a_gpu_resumes_and_is_evaluated_on_the_cpu(pair, tmp_path, recipe):
    run = pair.run("--gpu", "0", "--recipe", recipe, "--max_epoch", "1", save_path=tmp_path / "a")
    run = main.train(["--resume", str(run.path), "--max_epoch", "2"])
    assert run.read_run()["status"] == "done" and [r["epoch"] for r in run.records(run.epochs)] == [1, 2]
    assert main.main(["evaluate", "--run", str(run.path), "--gpu", "-1"]) == 0

"""Settings, records and checkpoints under generated content: what is written comes back, and what is damaged or of
another form is right or refused."""

import io
import json
from functools import cache

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import same_state
from model.errors import CheckpointError
from properties import changed, damaged, examples, nested, right_or_refused
from utils.run import checkpoint
from utils.run.config import Simulation, TrainConfig, from_dict, parse_train, read_config, to_dict, to_yaml
from utils.run.folder import RunFolder, run_label, run_name

NAMES = [*TrainConfig.__annotations__, *Simulation.__annotations__, "simulation.seed", "lr", "recipe", "method",
         "ablate", "contrast_layers", "mi_weight", "generators"]
SCORE = {"oa": 0.5, "aa": 0.25, "kappa": 0.125, "macro_f1": 0.5, "per_class": [0.5, None]}
CHOICE = {"epoch": 2, "source_val": SCORE, "shifted_source": SCORE, "target": SCORE, "confusion": [[1, 2], [3, 4]]}
FILES = {
    "run.json": {"status": "done", "error": None, "label": "erm", "seed": 1, "source": "a", "target": "b",
                 "classes": ["x", "y"], "bands": 3, "sha256": {"a.mat": "0"}, "uses_target": False, "seconds": 1.5,
                 "labelled_target_pixels": 5, "stopped_early": None, "versions": {"torch": "2"}, "threads": 1},
    "evaluation.json": {"rules": {"last": CHOICE, "source-val": CHOICE}, "constant": SCORE, "oracle": CHOICE},
    "epochs.jsonl": {"epoch": 1, "losses": {"ce": 0.5}, "seconds": 1.5, "steps": 3, "source_val": {"oa": 0.5},
                     "shifted_source": SCORE},
    "oracle.jsonl": {"epoch": 1, "target": SCORE, "confusion": [[1, 2], [3, 4]]},
    "validators.jsonl": {"epoch": 1, "entropy": 0.5, "im": "-"}, "diagnostics.jsonl": {"epoch": 0, "norm": 0.5}}
KEYS = sorted({key for content in (*FILES.values(), CHOICE, SCORE) for key in content})


def read(run: RunFolder, name: str):
    """A file of a run folder, in the way that the program reads it."""
    if name == "run.json":
        return run.read_run()
    return run.read_evaluation() if name == "evaluation.json" else run.records(run.path / name)


def as_bytes(content) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode() + b"\n"


@pytest.mark.slow_but("run.json")
@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@examples(60)
def test_strange_records_are_right_or_refused(tmp_path, name, data):
    run, whole = RunFolder(tmp_path), FILES[name]
    content = data.draw(st.one_of(changed(whole, KEYS), nested(KEYS), damaged(as_bytes(whole))))
    (tmp_path / name).write_bytes(as_bytes(content))
    found = right_or_refused(lambda: read(run, name))
    assert found is None or isinstance(found, dict if name.endswith(".json") else list)


@given(st.lists(st.fixed_dictionaries({"epoch": st.integers(0, 1000)}, optional={
    "losses": st.dictionaries(st.text(max_size=5), st.floats()), "seconds": st.floats(),
    "steps": st.integers(0, 10 ** 9)}), max_size=5))
@examples(100)
def test_records_give_back_what_was_appended(tmp_path, records):
    run = RunFolder(tmp_path)
    run.epochs.unlink(missing_ok=True)
    for record in records:
        run.append(run.epochs, record)
    assert repr(run.records(run.epochs)) == repr(records)                   # NaN is NaN


@given(st.dictionaries(st.sampled_from(["label", "source", "trained_in"]), st.text(max_size=20)))
@examples(60)
def test_run_json_gives_back_what_was_set(tmp_path, entries):
    run = RunFolder(tmp_path)
    run.run.unlink(missing_ok=True)
    run.update_run(status="running", **entries)
    run.update_run(status="done")
    assert run.read_run() == {"status": "done"} | entries


SETTINGS = st.fixed_dictionaries({}, optional={
    "source_name": st.text(max_size=12), "target_name": st.one_of(st.none(), st.text(max_size=12)),
    "save_path": st.text(max_size=12), "seed": st.integers(0, 10 ** 6), "batch_size": st.integers(1, 10 ** 6),
    "patch_size": st.integers(2, 30).map(lambda half: 2 * half + 1), "lr": st.floats(1e-9, 10),
    "flip_augmentation": st.booleans(), "patience": st.one_of(st.none(), st.integers(1, 9)),
    "recipe": st.sampled_from(["paper", "released", "robust"]), "method": st.sampled_from(["s2amsnet", "erm", "pden"]),
    "ablate": st.lists(st.sampled_from(["no_mixing", "no_noise", "no_mmirn"]), unique=True),
    "contrast_layers": st.lists(st.integers(0, 16), min_size=1, unique=True),
    "simulation": st.fixed_dictionaries({}, optional={"severity": st.floats(0, 3), "seed": st.integers(0, 99)})})


@pytest.mark.slow
@given(SETTINGS)
@examples(40)
def test_settings_give_back_what_was_written(tmp_path, chosen):
    config = read_config(**chosen)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config == from_dict(to_dict(config))
    assert run_label(config) and run_name(config).isprintable() or chosen.keys() & {"source_name", "target_name"}


SOME = {"source_name": "a", "target_name": None, "lr": 1e-3, "GIN_ch": 8, "ablate": ["no_noise"], "recipe": "paper",
        "contrast_layers": [0, 4], "flip_augmentation": True, "simulation": {"severity": 2.0, "seed": 1}}


def as_yaml(content) -> bytes:
    return content if isinstance(content, bytes) else yaml.safe_dump(content, allow_unicode=True).encode(
        "utf-8", "surrogatepass")


@pytest.mark.slow_but("config")
@pytest.mark.parametrize("reader", [read_config, lambda path: RunFolder(path.parent).read_config(),
                                    lambda path: parse_train(["--config", str(path), "--resume", str(path.parent)])],
                         ids=["config", "run folder", "resume"])
@given(data=st.data())
@examples(60)
def test_strange_settings_are_right_or_refused(tmp_path, reader, data):
    content = data.draw(st.one_of(changed(SOME, NAMES), nested(NAMES), damaged(as_yaml(SOME))))
    (tmp_path / "config.yaml").write_bytes(as_yaml(content))
    found = right_or_refused(lambda: reader(tmp_path / "config.yaml"))
    assert found is None or isinstance(found, TrainConfig)


@given(changed(to_dict(read_config()), NAMES))
@examples(150)
def test_strange_settings_of_a_plan_are_right_or_refused(values):
    found = right_or_refused(lambda: from_dict(values))
    assert found is None or isinstance(found, TrainConfig)


@given(st.lists(st.one_of(st.sampled_from([f"--{name}" for name in NAMES]), st.text(max_size=6), st.sampled_from(
    ["1", "true", "[0,4]", "{severity: 2}", "=", "--", "-1", "null"])), max_size=5))
@examples(150)
def test_strange_command_lines_are_right_or_refused(words):
    words = [word for word in words if word not in ("--help", "-h", "--print_config")]
    found = right_or_refused(lambda: parse_train(words))
    assert found is None or isinstance(found, TrainConfig)


# Checkpoints

TENSORS = {"weights": torch.arange(6.0).reshape(2, 3), "numbers": torch.arange(3), "half": torch.ones(2).bfloat16()}
CONTENT = {"networks": TENSORS, "epoch": 3, "names": ["a", "b"], "none": None, "nested": [{"step": torch.tensor(2.0)}]}


@cache
def stored(kind: str) -> bytes:
    whole = io.BytesIO()
    content = CONTENT | ({checkpoint.DIGEST: checkpoint.digest(CONTENT)} if kind == "with digest" else {})
    torch.save(content, whole, _use_new_zipfile_serialization=kind != "of an old torch")
    return whole.getvalue()


@pytest.mark.slow_but("with digest")
@pytest.mark.parametrize("kind", ["with digest", "without digest", "of an old torch"])
@given(data=st.data())
@examples(80)
def test_damaged_checkpoints_are_right_or_refused(tmp_path, kind, data):
    path = tmp_path / "a.pt"
    path.write_bytes(data.draw(damaged(stored(kind))))
    found = right_or_refused(lambda: checkpoint.load(path))
    assert found is None or isinstance(found, dict)
    if found is not None and kind == "with digest" and found.keys() == CONTENT.keys():
        assert same_state(found, CONTENT)


values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
                                st.text(max_size=5), st.sampled_from(list(TENSORS.values()))),
                      lambda inner: st.one_of(st.lists(inner, max_size=3),
                                              st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=8)


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != checkpoint.DIGEST), values, max_size=4))
@examples(80)
def test_checkpoints_give_back_what_was_saved(tmp_path, content):
    checkpoint.save(tmp_path / "a.pt", content)
    assert same_state(checkpoint.load(tmp_path / "a.pt"), content)


@pytest.mark.slow
@given(content=st.dictionaries(st.sampled_from(sorted(checkpoint.RUN)), values))
@examples(60)
def test_files_of_tensors_that_are_no_checkpoint_of_a_run_are_refused(tmp_path, content):
    checkpoint.save(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError, match="a.pt is not the checkpoint of a run"):
        checkpoint.load_run(tmp_path / "a.pt")

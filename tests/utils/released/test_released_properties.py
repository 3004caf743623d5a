"""The released code's checkpoints and recordings, damaged and of other forms: right or refused."""

import io
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.discriminator import Discriminator
from model.errors import CheckpointError, ConfigError
from model.methods.htcnn import load_vgg
from properties import changed, damaged, examples, nested, right_or_refused
from recordings import record
from utils.released.parity import CONFIG_KEYS, LIMIT_KEYS, LOSS_KEYS, Recording, replay
from utils.released.weights import KEY, export, read_weights
from utils.run import checkpoint


def discriminator_state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in Discriminator(3, 2, 5, 4).state_dict().items()}


@cache
def best() -> bytes:
    """The bytes of a small best.pth."""
    with TemporaryDirectory() as folder:
        export(Path(folder) / "best.pth", discriminator_state())
        return (Path(folder) / "best.pth").read_bytes()


def read_best(path):
    """As `evaluate --weights` does."""
    state, task, width = read_weights(path)
    network = Discriminator(task.bands, task.n_classes, task.patch_size, width)
    checkpoint.load_discriminator(network, state, path)
    return network


@given(damaged(best()))
@examples(120)
def test_a_damaged_best_pth_is_right_or_refused(tmp_path, content):
    (tmp_path / "best.pth").write_bytes(content)
    found = right_or_refused(lambda: read_best(tmp_path / "best.pth"))
    assert found is None or all(value.isfinite().all() for value in found.state_dict().values())


TENSORS = st.sampled_from([torch.zeros(()), torch.zeros(0), torch.ones(4), torch.zeros(4, 4), torch.ones(4, 3, 1, 1),
                           torch.full((2,), float("nan")), torch.ones(2, dtype=torch.int64), torch.zeros(0, 3, 0),
                           torch.ones(2, 4).half(), torch.ones(2) * 1j, 5, "x", None, [], {}])


@pytest.mark.slow
@given(data=st.data())
@examples(80)
def test_a_best_pth_of_other_tensors_is_refused(tmp_path, data):
    whole = torch.load(io.BytesIO(best()), weights_only=True)
    state = whole[KEY] | data.draw(st.dictionaries(st.sampled_from([*whole[KEY], "other"]), TENSORS, min_size=1,
                                                   max_size=3))
    for name in data.draw(st.lists(st.sampled_from(sorted(whole[KEY])), max_size=2)):
        state.pop(name, None)
    torch.save({KEY: state}, tmp_path / "best.pth")
    same = state.keys() == whole[KEY].keys() and all(
        isinstance(value, torch.Tensor) and value.shape == whole[KEY][name].shape and
        value.dtype == whole[KEY][name].dtype and value.isfinite().all() for name, value in state.items())
    if same:
        return
    with pytest.raises(CheckpointError, match="best.pth"):
        read_best(tmp_path / "best.pth")


# HTCNN's file

def small_vgg() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3))


@cache
def vgg_file(legacy: bool) -> bytes:
    whole = io.BytesIO()
    torch.save({f"features.{name}": value for name, value in small_vgg().state_dict().items()} | {
        "classifier.6.bias": torch.zeros(3)}, whole, _use_new_zipfile_serialization=not legacy)
    return whole.getvalue()


@pytest.mark.slow
@given(st.sampled_from([True, False]).flatmap(lambda legacy: damaged(vgg_file(legacy))))
@examples(120)
def test_a_damaged_file_of_htcnn_is_right_or_refused(tmp_path, content):
    (tmp_path / "vgg.pth").write_bytes(content)
    network = small_vgg()
    right_or_refused(lambda: load_vgg(network, tmp_path / "vgg.pth"))
    assert all(value.isfinite().all() for value in network.state_dict().values())


@given(st.dictionaries(st.sampled_from(["features.0.weight", "features.0.bias", "features.2.bias"]),
                       TENSORS.filter(lambda value: not (torch.is_tensor(value) and value.shape == (2,)
                                                         and value.is_floating_point() and value.isfinite().all())),
                       min_size=1))
@examples(60)
def test_a_file_of_htcnn_with_other_tensors_is_refused(tmp_path, wrong):
    torch.save(torch.load(io.BytesIO(vgg_file(False))) | wrong, tmp_path / "vgg.pth")
    with pytest.raises(ConfigError, match="vgg.pth"):
        load_vgg(small_vgg(), tmp_path / "vgg.pth")


# Recordings

@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = record(tmp_path_factory.mktemp("recorded") / "a.safetensors", steps=1)
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def first_line(path):
    """A recording is read and its networks built."""
    return next(replay(path))


@pytest.mark.slow
@given(data=st.data())
@examples(60)
def test_a_damaged_recording_is_right_or_refused(tmp_path, recording, data):
    tensors, text = recording
    (tmp_path / "a.safetensors").write_bytes(data.draw(damaged(tensors)))
    (tmp_path / "a.json").write_text(json.dumps(text))
    right_or_refused(lambda: first_line(tmp_path / "a.safetensors"))


@pytest.mark.slow
@given(data=st.data())
@examples(80)
def test_a_strange_description_of_a_recording_is_right_or_refused(tmp_path, recording, data):
    tensors, text = recording
    keys = [*CONFIG_KEYS, *LIMIT_KEYS, *LOSS_KEYS, "config", "limits", "losses"]
    content = data.draw(st.one_of(changed(text, keys), nested(keys), damaged(json.dumps(text).encode())))
    (tmp_path / "a.safetensors").write_bytes(tensors)
    (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    right_or_refused(lambda: Recording(tmp_path / "a.safetensors"))

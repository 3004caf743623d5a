"""Recorded values of the released code: the replay holds, and notices what it must notice."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import main
from model.losses import kl_consistency
from model.ops import reference
from model.s2amsnet import S2AMSnet, add_terms
from recordings import record
from utils.released.parity import ParityFileError, Recording, build, networks, replay
from utils.released.weights import released_discriminator_name, released_generator_name

RECORDED = Path(__file__).resolve().parents[2] / "recorded" / "official_48b_p9.safetensors"
DATA_PATH = RECORDED.with_name("data_path.safetensors")
MORE = os.environ.get("S2AMSNET_RECORDINGS")          # a folder of further recordings
RECORDINGS = [RECORDED, DATA_PATH, *(sorted(Path(MORE).glob("*.safetensors")) if MORE else ())]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_released_recipe_reproduces_the_recorded_values(path, capsys):
    assert main.main(["parity", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    fewest = 8 if "cube" in load_file(path) else 40
    assert sum(line.startswith("ok") for line in lines) >= fewest and not [l for l in lines if l.startswith("FAIL")]


@pytest.mark.slow_but("sizes0")
@pytest.mark.parametrize("sizes", [
    {}, {"n_bands": 102, "patch_size": 7, "classes": 7}, {"n_bands": 176, "classes": 12, "generator_channels": 24},
    {"n_bands": 102, "patch_size": 13, "discriminator_channels": 128}, {"layers": [4, 8], "steps": 1, "batch": 1},
    {"n_bands": 2, "classes": 2, "batch": 2, "steps": 3, "temperature": 0.5}])
def test_recordings_of_any_size_are_replayed(tmp_path, sizes):
    lines = list(replay(record(tmp_path / "any.safetensors", **sizes)))
    assert all(line.holds for line in lines), [str(line) for line in lines if not line.holds]
    assert len(lines) == 15 + len(sizes.get("layers", range(5))) - 5 + 6 * sizes.get("steps", 2) + 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return record(tmp_path_factory.mktemp("recording") / "whole.safetensors")


@pytest.fixture
def copy(tmp_path, whole):
    """A recording that a test may spoil."""
    def write(change_tensors=None, change_text=None):
        tensors, text = load_file(whole), json.loads(whole.with_suffix(".json").read_text())
        if change_tensors:
            change_tensors(tensors)
        if change_text:
            change_text(text)
        save_file(tensors, tmp_path / "copy.safetensors")
        (tmp_path / "copy.json").write_text(json.dumps(text))
        return tmp_path / "copy.safetensors"
    return write


@pytest.mark.slow
def test_a_wrong_consistency_term_is_caught_by_the_gradients_alone(monkeypatch, whole):
    plain = S2AMSnet.adversarial_terms

    def wrong(self, domains):                   # the same value, another gradient
        terms = plain(self, domains)
        kl = kl_consistency(self.discriminator(domains["a"]), self.discriminator(domains["b_mix"]))
        return terms | {"consistency_max": terms["consistency_max"].detach() + kl - kl.detach()}

    monkeypatch.setattr(S2AMSnet, "adversarial_terms", wrong)
    failed = {line.quantity for line in replay(whole) if not line.holds}
    assert "gradient consistency_generator" in failed
    assert not any("step 0" in quantity for quantity in failed)


def test_a_max_step_that_drops_a_term_on_its_way_back_is_caught(monkeypatch, whole):
    """The gradients come from the code that trains: the terms and their values are right, one does not go back."""
    plain = S2AMSnet.descend

    def forgetful(self, terms, found):
        if "mi" in terms:
            add_terms(found, terms)
        else:
            plain(self, terms, found)

    monkeypatch.setattr(S2AMSnet, "descend", forgetful)
    failed = {line.quantity for line in replay(whole) if not line.holds}
    assert {"gradient mi_generator", "gradient mi_mmirn"} <= failed and "gradient consistency_generator" not in failed
    assert not any("step 0" in quantity for quantity in failed)


@pytest.mark.slow_but("forward/x")
@pytest.mark.parametrize("name", ["forward/x", "loop/1/noise", "final/x", "final/logits_eval", "forward/mmirn_layer_4",
                                  "gradient/mi_generator/Net1.generate1.weight",
                                  "init/discriminator/fc1.weight", "final/generator/Net2.bn2.running_var"])
def test_a_missing_quantity_is_named(copy, name):
    path = copy(lambda tensors: tensors.pop(name))
    with pytest.raises(ParityFileError, match="lacks"):
        list(replay(path))


@pytest.mark.slow_but("<lambda>5")
@pytest.mark.parametrize("change", [
    lambda text: text["losses"][0]["ce"].pop(), lambda text: text.update(limits=None), lambda text: text.update(losses=[]),
    lambda text: text["config"].update(layers=None), lambda text: text["config"].update(lr="fast"),
    lambda text: text["losses"].pop(), lambda text: text["losses"].append(text["losses"][0])])
def test_a_description_of_another_form_is_named(copy, change):
    with pytest.raises(ParityFileError, match="lacks|must"):
        list(replay(copy(change_text=change)))


@pytest.mark.parametrize("key, value", [
    ("n_bands", 10 ** 9), ("n_bands", 6.5), ("n_bands", True), ("classes", 0), ("patch_size", 4), ("patch_size", 3),
    ("lr", -1), ("lr", float("nan")), ("temperature", 0), ("layers", ["a"]), ("layers", [0, {}]), ("n_bands", 72),
    ("discriminator_channels", 72)])
def test_sizes_that_no_tensor_has_are_refused_before_a_network_is_built(copy, key, value):
    """A description of 1 kB would take a terabyte."""
    with pytest.raises(ParityFileError, match=f"config.*{key}.* must be|has shape"):
        next(replay(copy(change_text=lambda text: text["config"].update({key: value}))))


@pytest.mark.parametrize("name, kind", [("forward/y", torch.float32), ("forward/x", torch.int64),
                                        ("forward/x", torch.complex64), ("init/mmirn/model.1.weight", torch.bool)])
def test_a_tensor_of_another_kind_is_named(copy, name, kind):
    path = copy(lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    with pytest.raises(ParityFileError, match=f"{name} holds {kind}"):
        next(replay(path))


def test_a_description_that_is_no_text_is_named(copy):
    path = copy()
    for content in (b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"):
        path.with_suffix(".json").write_bytes(content)
        with pytest.raises(ParityFileError, match="copy.json is not a valid JSON"):
            Recording(path)


def test_other_number_types_and_another_number_of_last_patches_are_taken(copy):
    path = copy(lambda t: t.update({"loop/0/y": t["loop/0/y"].int(), "loop/0/x": t["loop/0/x"].double(),
                                    "final/x": t["final/x"][:2].clone(),
                                    "final/logits_eval": t["final/logits_eval"][:2].clone()}))
    assert all(line.holds for line in replay(path))


def test_an_equal_number_of_values_in_another_shape_is_named(copy):
    path = copy(lambda t: t.update({"forward/generated_1": t["forward/generated_1"].flatten(1)}))
    with pytest.raises(ParityFileError, match="forward/generated_1 has shape"):
        list(replay(path))


@pytest.mark.slow_but("loop/0/y")
@pytest.mark.parametrize("name", ["forward/x", "loop/0/y", "init/mmirn/model.1.weight", "forward/generated_1",
                                  "gradient/mi_mmirn/model.4.weight", "final/logits_eval"])
def test_a_wrong_shape_is_named(copy, name):
    path = copy(lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()}))
    with pytest.raises(ParityFileError, match="has shape"):
        list(replay(path))


@pytest.mark.parametrize("part,key", [("config", "temperature"), ("limits", "gradients")])
def test_a_missing_setting_is_named(copy, part, key):
    path = copy(change_text=lambda text: text[part].pop(key))
    with pytest.raises(ParityFileError, match=f"lacks {part}.{key}"):
        list(replay(path))


def test_a_value_out_of_its_limit_fails_the_command(copy, capsys):
    path = copy(lambda tensors: tensors["forward/logits_eval"].mul_(1.01))
    assert main.main(["parity", str(path)]) == 1
    assert "FAIL forward logits_eval" in capsys.readouterr().out


def test_a_file_that_is_none_is_an_error(tmp_path, capsys):
    assert main.main(["parity", str(tmp_path / "no.safetensors")]) == 2
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    (tmp_path / "bad.json").write_text("{}")
    assert main.main(["parity", str(tmp_path / "bad.safetensors")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_every_recorded_name_has_its_counterpart():
    method = build(Recording(RECORDED))
    recorded = load_file(RECORDED)
    for network, rename in (("discriminator", released_discriminator_name), ("generator", released_generator_name)):
        theirs = {rename(name) for name in networks(method)[network].state_dict()}
        there = {name.removeprefix(f"init/{network}/") for name in recorded if name.startswith(f"init/{network}/")}
        unused = {name for name in there if network == "generator" and ".bn_h." in name}
        assert theirs == there - unused


# The data path

@pytest.fixture
def data_path(tmp_path):
    """The recorded data path, which a test may spoil."""
    def write(**changed):
        tensors = load_file(DATA_PATH) | changed
        save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / "path.safetensors")
        (tmp_path / "path.json").write_text("{}")
        return tmp_path / "path.safetensors"
    return write


def failed(path):
    return {line.quantity for line in replay(path) if not line.holds}


def test_every_quantity_of_the_data_path_is_compared(data_path):
    whole = load_file(DATA_PATH)
    kept = {name: value for name, value in whole.items() if name not in ("cube", "labels")}
    assert {line.quantity for line in replay(DATA_PATH)} == set(kept)
    for name, value in kept.items():
        other = value.clone()
        other.view(-1)[-1] = ~other.view(-1)[-1] if value.dtype == torch.bool else other.view(-1)[-1] + 1
        assert failed(data_path(**{name: other})) == {name}


def test_an_edge_that_is_mirrored_without_its_pixel_is_caught(monkeypatch, data_path):
    def reflected(index, length):
        return ((length - 1) - ((length - 1) - index.abs()).abs()).clamp(min=0)

    monkeypatch.setattr(reference, "mirror", reflected)
    assert failed(data_path()) == {"patches_5", "patches_9", "patches_13"}


@pytest.mark.parametrize("name, value, told", [
    ("labels", None, "lacks labels"), ("centres", None, "lacks centres"),
    ("cube", -torch.ones(14, 11, 6), "none below 0"), ("cube", torch.full((14, 11, 6), float("nan")), "finite"),
    ("labels", torch.zeros(14, 11).long(), "some above 0"), ("labels", torch.full((14, 11), 10 ** 12), "whole numbers"),
    ("labels", torch.ones(11, 14).long(), r"labels has shape \(11, 14\)"),
    ("patches_99", torch.zeros(1), "odd size that the scene can be mirrored for"), ("patches_4", torch.zeros(1), "odd"),
    ("patches_x", torch.zeros(1), "patches_x is no quantity"),
    ("train_1.5", torch.zeros(1), "train_1.5 is no quantity"),
    ("patches_5", torch.zeros(75, 6, 5), "patches_5 has shape"),
    ("train_0.5", torch.zeros(14, 11).half(), "holds torch")])
def test_a_data_path_of_another_form_is_named(data_path, name, value, told):
    with pytest.raises(ParityFileError, match=told):
        list(replay(data_path(**{name: value})))

"""HTCNN: transferred weights, their file, the network behind three bands, attention."""

import hashlib
import math
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional

from conftest import batch, build, same_state, settings
from model.errors import ConfigError
from model.methods.htcnn import VGGClassifier, vgg_blocks
from utils.run.folder import run_label
from utils.trained.load import load_run

VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}


def torchvision_state(seed=0):
    """Weights under the names of torchvision's vgg16, deeper ones among them."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for number, (c_out, c_in) in VGG16.items() | {17: (512, 256)}.items():
        found[f"features.{number}.weight"] = torch.randn(c_out, c_in, 3, 3, generator=rng)
        found[f"features.{number}.bias"] = torch.randn(c_out, generator=rng)
    return found | {"classifier.6.bias": torch.zeros(1000)}


def test_htcnn_starts_from_a_state_dict_with_torchvisions_names(tmp_path):
    given = torchvision_state()
    torch.save(given, tmp_path / "vgg16.pth")
    method = build(method="htcnn", htcnn_weights=str(tmp_path / "vgg16.pth"), weight_averaging=0.9)
    method.begin_run()
    for network in (method.discriminator, method.averaged):
        own = network.vgg.state_dict()
        assert set(own) == {f"{number}.{part}" for number in VGG16 for part in ("weight", "bias")}
        assert all(torch.equal(value, given[f"features.{name}"]) for name, value in own.items())
    plain = build(method="htcnn").discriminator
    assert same_state(plain.fc.state_dict(), method.discriminator.fc.state_dict())          # the rest is as without


@pytest.mark.parametrize("content,named", [
    ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, r"13 of 14 .*features\.0\.bias \[64\] is missing"),
    (torchvision_state() | {"features.5.weight": torch.zeros(128, 64)}, r"1 of 14 .*\[128, 64\]"),
    (torchvision_state() | {"features.5.weight": "none"}, r"features\.5\.weight .*missing"),
    (torchvision_state() | {"features.7.bias": torch.full((128,), math.nan)}, r"features\.7\.bias is not finite"),
    (torchvision_state() | {"features.7.bias": torch.full((128,), -math.inf)}, r"features\.7\.bias is not finite"),
    (torchvision_state() | {"features.7.bias": torch.ones(128, dtype=torch.int64)}, r"7\.bias is torch\.int64"),
    (torchvision_state() | {"features.7.bias": torch.zeros(128).to_sparse()}, r"_rebuild_sparse_tensor"),
    ({name: torch.zeros(1).expand(value.shape) for name, value in torchvision_state().items()}, "far more memory"),
    (torch.zeros(3), "no named values"), (settings(), "more than tensors"), (b"no state dict at all", "cannot be read")])
def test_htcnn_refuses_other_files(content, named, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=f"(?s)weights.pth.*{named}.*leave htcnn_weights out"):
        build(method="htcnn", htcnn_weights=str(path)).begin_run()


def test_htcnn_refuses_weights_that_unfold(tmp_path):
    torch.save(torchvision_state(), tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "weights.pth", "w",
                                                                           zipfile.ZIP_DEFLATED) as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, bytes(part.file_size))
    with pytest.raises(ConfigError, match="weights.pth .*its parts are compressed.*leave htcnn_weights out"):
        build(method="htcnn", htcnn_weights=str(tmp_path / "weights.pth")).begin_run()


def test_htcnn_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="none.pth does not exist.*torchvision's vgg16"):
        build(method="htcnn", htcnn_weights=str(tmp_path / "none.pth")).begin_run()


def test_a_run_of_htcnn_needs_its_weight_file_only_to_begin(pair, tmp_path):
    torch.save({f"features.{name}": value for name, value in vgg_blocks()[0].state_dict().items()}, tmp_path / "v.pth")
    run = pair.run("--method", "htcnn", "--htcnn_weights", str(tmp_path / "v.pth"), "--max_epoch", "1",
                   save_path=tmp_path / "runs")
    digest = hashlib.sha256((tmp_path / "v.pth").read_bytes()).hexdigest()
    assert run.read_run()["initial_weights"] == {"v.pth": digest}
    (tmp_path / "v.pth").unlink()
    assert load_run(run).method.settings.htcnn_weights == str(tmp_path / "v.pth")


def test_the_label_of_htcnn_says_where_its_weights_are_from():
    assert run_label(settings(method="htcnn")) == "htcnn random-init"
    assert run_label(settings(method="htcnn", htcnn_weights="data/vgg16-397923af.pth", ablate=["no_noise"])
                     ) == "htcnn no_noise weights=vgg16-397923af"
    assert run_label(settings(method="erm", htcnn_weights="vgg.pth")) == "erm"
    assert run_label(settings(recipe="paper", temp=0.1, contrast_layers=[4, 8], ablate=["no_mixing", "no_noise"])
                     ) == "s2amsnet paper contrast_layers=4,8 no_mixing no_noise"


@pytest.mark.parametrize("patch_size", [5, 9, 13])
def test_htcnn_is_vgg_behind_three_bands(patch_size):
    """Written out once more; attention is 1 at the start."""
    network = VGGClassifier(6, 3, 8).eval()
    x = torch.rand(2, 6, patch_size, patch_size)
    h, layers = network.mapping(x), network.vgg
    assert h.shape[1] == 3
    for number in VGG16:
        if number in (5, 10):
            h = functional.max_pool2d(h, 2)
        h = functional.conv2d(h, layers[number].weight, layers[number].bias, padding=1).relu()
    features = network.fc(h.mean((2, 3))).relu()
    torch.testing.assert_close(network.features(x), features)
    torch.testing.assert_close(network(x), network.head(features))


def test_htcnns_attention_weighs_channels_by_their_means():
    network = VGGClassifier(6, 3, 8)
    assert list(network.attention) == ["3", "8", "15"]
    gate, h = network.attention["3"], torch.rand(2, 64, 3, 3)
    assert torch.equal(gate(h), h)
    nn.init.normal_(gate.excite.weight)
    hidden = (h.mean((2, 3)) @ gate.squeeze.weight.T + gate.squeeze.bias).relu()
    factors = 2 / (1 + (-hidden @ gate.excite.weight.T).exp())
    torch.testing.assert_close(gate(h), h * factors[:, :, None, None])


def test_htcnns_random_weights_are_those_of_torchvision():
    layers, _ = vgg_blocks()
    for number, (c_out, c_in) in VGG16.items():
        assert layers[number].weight.shape == (c_out, c_in, 3, 3) and not layers[number].bias.any()
        assert layers[number].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * c_out)), rel=0.1)


def test_htcnn_trains_every_part_in_either_precision():
    for precision in ("float32", "bf16"):
        method, (x, y) = build(method="htcnn", precision=precision), batch()
        with torch.no_grad():
            for gate in method.discriminator.attention.values():
                nn.init.normal_(gate.excite.weight, std=0.1)         # at the start nothing goes through to `squeeze`
        method.update(x, y)
        assert all(p.grad.abs().sum() > 0 for p in method.discriminator.parameters() if p.dim() > 1)
        assert method.discriminator.features(x).dtype == torch.float32

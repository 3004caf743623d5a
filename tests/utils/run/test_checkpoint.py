"""Checkpoints that load but are not ours, or are no longer what was written, are refused by name."""

import functools
import io
import zipfile

import pytest
import torch

import main
from conftest import same_state
from model.errors import CheckpointError
from utils.run import checkpoint


def change(*keys, to):
    """Put `to`, a value or a function of the old one, at a place of nested mappings."""
    def changed(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to(content[keys[-1]]) if callable(to) else to
    return changed


NETWORKS = ("method", "networks")
WEIGHT = (*NETWORKS, "discriminator.head.bias")
SELECTED = ("state", "selected", "last", "discriminator")
ADAM = ("method", "optimisers")
HOSTILE = {
    "empty": lambda content: content.clear(), "no method": lambda content: content.pop("method"),
    "a number": change("method", to=5), "bands": change("bands", to="many"),
    "streams": change("streams", to={}), "a stream": change("streams", "batches", to=torch.zeros(3)),
    "epoch": change("state", "epoch", to="last"), "NaN": change(*WEIGHT, to=lambda old: old * float("nan")),
    "integers": change(*WEIGHT, to=lambda old: old.long()), "a shape": change(*WEIGHT, to=lambda old: old[:-1]),
    "no network": change(*NETWORKS, to={}),
    "a foreign name": lambda content: content["method"]["networks"].update(foreign=torch.zeros(1)),
    "no optimiser": change(*ADAM, to={}),
    "an optimiser's shapes": change(*ADAM, to=lambda old: {name: {**state, "state": {
        0: {key: torch.zeros(1) for key in ("step", "exp_avg", "exp_avg_sq")}}} for name, state in old.items()}),
    "a gradient": change("method", "gradients", to={"foreign": torch.zeros(1)})}


@pytest.mark.slow
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_that_loads_but_is_not_ours_is_refused_on_resume(trained, capsys, hostile):
    run = trained("--method", "erm")
    content = checkpoint.load(run.checkpoint)
    hostile(content)
    checkpoint.save(run.checkpoint, content)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 2
    assert f"CheckpointError: {run.checkpoint}" in capsys.readouterr().err
    assert before.items() <= {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}.items()


@pytest.mark.parametrize("hostile", [change(*SELECTED, to={}), change(*SELECTED, to=5),
                                     change(*SELECTED, "head.bias", to=lambda old: old * float("inf")),
                                     change(*SELECTED, "head.bias", to=lambda old: old.long())])
def test_selected_weights_that_are_not_ours_are_refused_by_evaluate(trained, capsys, hostile):
    run = trained("--method", "erm")
    content = checkpoint.load(run.checkpoint)
    hostile(content)
    checkpoint.save(run.checkpoint, content)
    assert main.main(["evaluate", "--run", str(run.path)]) == 2
    assert f"CheckpointError: {run.checkpoint}" in capsys.readouterr().err


@pytest.mark.parametrize("hostile", [
    lambda best: {}, lambda best: [], lambda best: {"Discriminator": {}}, lambda best: {"Discriminator": [1]},
    lambda best: {"Discriminator": best | {"cls_head_src.bias": best["cls_head_src.bias"] * float("nan")}},
    lambda best: {"Discriminator": best | {"cls_head_src.bias": best["cls_head_src.bias"].long()}},
    lambda best: {"Discriminator": best | {name: -value for name, value in best.items() if "running_var" in name}},
    lambda best: {"Discriminator": best | {"cls_head_src.weight": torch.zeros(())}},
    lambda best: {"Discriminator": best | {"fc1.weight": torch.zeros(0, 0)}},
    lambda best: {"Discriminator": best | {"fc1.weight": torch.zeros(1, 10 ** 6)}},
    lambda best: {"Discriminator": best | {"fc1.weight": torch.zeros(1, 10 ** 6), "Spectral_Weight_1.f_inv_11.weight":
                                           torch.zeros(10 ** 6, 1, 1, 1)}},
    lambda best: {"Discriminator": best | {"Spectral_Weight_1.f_inv_11.weight": torch.zeros(10 ** 6 + 1, 1, 1, 1)}},
    lambda best: {"Discriminator": best | {"fc1.weight": 5}},
    lambda best: {"Discriminator": best | {"foreign": torch.zeros(1)}}])
def test_a_best_pth_that_is_not_the_released_codes_is_refused(trained, shared_pair, capsys, hostile):
    run = trained("--method", "erm", "--pro_dim", "8")
    assert main.main(["export", "--run", str(run.path)]) == 0
    path = run.path / "best.pth"
    assert set(checkpoint.load(path)) == {"Discriminator"}
    torch.save(hostile(checkpoint.load(path)["Discriminator"]), path)
    assert main.main(["evaluate", "--weights", str(path), "--scene", str(shared_pair.target)]) == 2
    assert f"CheckpointError: {path}" in capsys.readouterr().err


def test_values_that_changed_on_the_disk_are_noticed(tmp_path):
    path, weights = tmp_path / "checkpoint.pt", torch.arange(1000.0)
    checkpoint.save(path, {"weights": weights, "name": "x"})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint.pt (is damaged|cannot be read)"):
        checkpoint.load(path)
    torch.save({"weights": weights + 1, "name": "x", checkpoint.DIGEST: checkpoint.digest({"weights": weights})}, path)
    with pytest.raises(CheckpointError, match="is damaged: its values are not those that were written"):
        checkpoint.load(path)


def test_a_checkpoint_of_an_older_program_has_no_digest_and_loads(trained):
    run = trained("--method", "erm")
    content = checkpoint.load_run(run.checkpoint)
    checkpoint.write(run.checkpoint, content)
    assert same_state(checkpoint.load_run(run.checkpoint), content)
    assert main.train(["--resume", str(run.path), "--max_epoch", "3"]).read_run()["status"] == "done"


def test_what_unfolds_beyond_its_size_is_refused(tmp_path):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"x": torch.zeros(10_000_000)}, plain)
    with zipfile.ZipFile(plain) as one, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for part in one.infolist():
            other.writestr(part.filename, one.read(part))
    torch.save({"x": torch.zeros(1).expand(10_000_000_000)}, plain)
    endless = []
    endless.append(endless)
    torch.save({"x": endless}, tmp_path / "endless.pt")
    torch.save({"x": torch.zeros(3, 3).to_sparse()}, tmp_path / "sparse.pt")
    for path in (plain, packed, tmp_path / "endless.pt", tmp_path / "sparse.pt"):
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.load(path)


def test_damage_that_torch_does_not_foresee_is_named(tmp_path):
    """A ZIP file of many disks; a file of an older torch, cut anywhere."""
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(2)}, path)
    of_disks = path.read_bytes()
    of_disks = of_disks.replace(b"PK\x06\x07" + bytes(4), b"PK\x06\x07\x01" + bytes(3))
    torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    assert of_disks.count(b"PK\x06\x07\x01") == 1
    for content in (of_disks, *(legacy[:place] for place in range(1, len(legacy) - 1))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.pt cannot be read as a checkpoint") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)


def pickled(operations: bytes) -> bytes:
    """A checkpoint as torch.save lays it out, whose pickle does these operations."""
    buffer = io.BytesIO()
    torch.save({"x": 1}, buffer)
    whole = io.BytesIO()
    with zipfile.ZipFile(buffer) as one, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as other:
        for part in one.infolist():
            other.writestr(part.filename, operations if part.filename.endswith(".pkl") else one.read(part))
    return whole.getvalue()


TWICE = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))      # a tuple of the last one and itself
TUPLES = b"\x80\x02})q\x00" + TWICE + b"K\x01s."           # {((…, …), (…, …)): 1}: 2^60 empty tuples to hash
BYTEARRAY = b"\x80\x02}X\x01\x00\x00\x00xcbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85Rs."       # of ten thousand million
PUNYCODE = b"\x80\x02}X\x01\x00\x00\x00xc_codecs\nencode\nX\x01\x00\x00\x00xX\x08\x00\x00\x00punycode\x86Rs."
LONG_NAMES = {"a" * 300: {"b": 1}}


@pytest.mark.parametrize("operations, said", [(TUPLES, "tuples lie in one another"), (BYTEARRAY, "builtins bytearray"),
                                              (PUNYCODE, "_codecs encode")], ids=["tuples", "bytearray", "punycode"])
def test_a_pickle_that_does_what_no_checkpoint_does_is_refused_unread(tmp_path, monkeypatch, operations, said):
    """Some hundred bytes took 10 GB, or for ever."""
    path = tmp_path / "a.pt"
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    path.write_bytes(pickled(operations))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [LONG_NAMES, functools.reduce(lambda inner, _: {"k": inner}, range(300), 1)],
                         ids=["long", "deep"])
def test_endless_names_are_refused(tmp_path, content):
    """Names of values nested in 600 dictionaries of 20,000 letters took 4 GB."""
    torch.save({"x": content}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="without end"):
        checkpoint.load(tmp_path / "a.pt")

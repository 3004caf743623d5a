"""What every compared method promises: it trains, predicts, can be saved and repeated, and sees no target label."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import model.ops
from conftest import batch, build, same_state
from datasets.writers import write_mat_v5
from model import layers
from model.errors import ConfigError
from model.methods import REGISTRY, method_class
from utils.run import checkpoint
from utils.run.config import parse_train

METHODS = list(REGISTRY)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
ADAPTING = [name for name in REGISTRY if method_class(name).uses_target]


def trained(name, seed=0, updates=3, **entries):
    """A small method after some updates of a run of ten epochs of two steps, and the named losses of each."""
    method = build(method=name, patch_size=7, seed=seed, **entries)
    return method, [step(method, done) for done in range(updates)]


def step(method, done):
    method.schedule(done, 2, 10)
    return method.update(*(part.to(method.device) for part in batch(12, patch_size=7, seed=done)))


def logits(method):
    """As a run predicts: in the state that is evaluated, on patches that no update saw."""
    x, y = (part.to(method.device) for part in batch(9, patch_size=7, seed=99))
    with method.evaluating([(x, y)]):
        return method.predict(x)


class Names(TorchDispatchMode):
    """The names of the operators that are called inside, those of the gradients among them; a sum along an axis of
    floating-point numbers as 'cumsum of floats'."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.called.add("cumsum of floats" if name == "cumsum" and args[0].is_floating_point() else name)
        return function(*args, **(kwargs or {}))


# Of what PyTorch refuses on a GPU that is to be deterministic, whatever a network of this kind might call.
UNORDERED = {"reflection_pad1d_backward", "reflection_pad2d_backward", "_adaptive_avg_pool2d_backward", "histc", "put_",
             "adaptive_max_pool2d_backward", "upsample_bilinear2d_backward", "grid_sampler_2d_backward", "median",
             "nll_loss2d_forward", "cumsum of floats"}


@pytest.mark.slow_but("erm-entries0", "s2amsnet-entries0")
@pytest.mark.parametrize("entries", [{}, {"recipe": "robust"}])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_calls_nothing_whose_sums_come_in_any_order(name, entries, monkeypatch):
    """With the layers as on a GPU that is to be deterministic."""
    monkeypatch.setattr(model.ops, "_resolve", lambda *_: "reference")
    with Names() as plain:
        trained(name, updates=1, **entries)
    monkeypatch.setattr(layers, "chooses_order", lambda h: True)
    with Names() as names:
        method, _ = trained(name, updates=1, **entries)
        logits(method)
    assert not names.called & UNORDERED and len(names.called) > 5
    assert plain.called & UNORDERED <= {"reflection_pad2d_backward"}
    assert name != "s2amsnet" or "reflection_pad2d_backward" in plain.called                 # it has looked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_predicts(name, device):
    method, losses = trained(name, device=device)
    assert all(torch.tensor(list(entry.values())).isfinite().all() for entry in losses)
    assert all(p.isfinite().all() for p in method.parameters())
    found = logits(method)
    assert found.shape == (9, 3) and found.isfinite().all()
    assert len(found.unique(dim=0)) > 1                                     # different patches, different answers
    assert all(value.device.type == device for value in (found, *method.state_dict().values()))


@pytest.mark.parametrize("name", METHODS)
def test_prediction_is_patch_by_patch_and_leaves_no_trace(name):
    method, _ = trained(name)
    x, y = batch(9, patch_size=7, seed=99)
    with method.evaluating([(x, y)]):
        before = {key: value.clone() for key, value in method.state_dict().items()}
        together, alone = method.predict(x), torch.cat([method.predict(one[None]) for one in x])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert same_state(before, method.state_dict())


@pytest.mark.slow_but("s2amsnet", "erm", "dsan", "pden", "svm")
@pytest.mark.parametrize("name", METHODS)
def test_one_seed_one_result(name):
    (one, first), (other, second), (third, _) = trained(name), trained(name), trained(name, seed=1)
    assert first == second and same_state(one.state_dict(), other.state_dict())
    assert torch.equal(logits(one), logits(other))
    if any(True for _ in one.parameters()):
        assert not same_state(one.state_dict(), third.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_an_update_draws_from_the_runs_own_streams(name):
    """PyTorch's global generator is left alone, and says nothing about the result."""
    found = []
    for seed in (1, 2):
        method = build(method=name, patch_size=7)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append((step(method, 0), method.state_dict()))
        assert torch.equal(state, torch.get_rng_state())
    assert found[0][0] == found[1][0] and same_state(found[0][1], found[1][1])


@pytest.mark.slow_but("s2amsnet", "erm", "dsan", "pden", "svm")
@pytest.mark.parametrize("name", METHODS)
def test_state_round_trip(name):
    """A method that loads another one's state and streams goes on as that one does."""
    method, _ = trained(name)
    state = {"training": method.training_state(), "streams": method.streams.state_dict()}
    copy = build(method=name, patch_size=7, seed=5)
    copy.load_training_state(clone(state["training"]))
    copy.streams.load_state_dict(state["streams"])
    assert torch.equal(logits(copy), logits(method))
    assert [step(copy, done) for done in (3, 4)] == [step(method, done) for done in (3, 4)]
    assert same_state(copy.state_dict(), method.state_dict())


def clone(state):
    """A copy of nested tensors, as a checkpoint holds them."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    return {key: clone(value) for key, value in state.items()} if isinstance(state, dict) else state


@pytest.mark.parametrize("name", METHODS)
def test_diagnostics_and_views(name):
    method, _ = trained(name)
    x, y = batch(9, patch_size=7, seed=99)
    state = clone(method.training_state())
    assert torch.tensor(list(method.diagnostics(x, y).values())).isfinite().all()
    assert same_state(state, clone(method.training_state()))
    for key, view in method.generated_views(x).items():
        assert view.shape == x.shape and view.isfinite().all(), key


@pytest.mark.slow_but("erm", "svm")
@pytest.mark.parametrize("name", METHODS)
def test_learns_what_is_easy(name):
    """Classes that differ in one band each are told apart after some steps, on patches that no update saw."""
    method = build(method=name, patch_size=7, pro_dim=16, lr=3e-3)
    rng = torch.Generator().manual_seed(0)

    def easy(n):
        y = torch.arange(n) % 3
        x = torch.rand(n, 6, 7, 7, generator=rng) + 3 * torch.eye(6)[2 * y][:, :, None, None]
        return torch.nn.functional.normalize(x, dim=1), y

    if method.uses_target:                                  # the same classes there, or there is nothing to adapt to
        method.draw_target = lambda n: easy(n)[0]
    for done in range(60):
        method.schedule(done, 20, 3)
        method.update(*easy(24))
    x, y = easy(30)
    with method.evaluating([easy(48)]):
        assert (method.predict(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTING)
def test_adaptation_sees_pixels_not_labels(name, pair, tmp_path, scenes):
    """Target labels dealt out anew over the whole scene, unlabelled pixels included, change no weight; another target
    image does."""
    words, found = ["--method", name, "--max_epoch", "1"], []
    labels = np.random.default_rng(0).permutation(scenes[1].labels.ravel()).reshape(scenes[1].labels.shape)
    for number, change in enumerate([{}, {"map": labels}, {"ori_data": scenes[1].cube[:, ::-1]}]):
        for key, values in change.items():
            write_mat_v5(pair.folder / {"map": "coast_gt.mat", "ori_data": "coast.mat"}[key], {key: values})
        run = pair.run(*words, save_path=tmp_path / str(number))
        found.append(checkpoint.load(run.checkpoint)["method"]["networks"])
        assert run.read_run()["uses_target"] is True
    assert same_state(found[0], found[1]) and not same_state(found[0], found[2])


@pytest.mark.parametrize("name", ADAPTING)
def test_adaptation_needs_a_target(name):
    with pytest.raises(ConfigError, match="no target_name"):
        parse_train(["--config", "configs/simulated.yaml", "--method", name, "--target_name", "null"])

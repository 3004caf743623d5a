"""The CUDA kernels of norms: the reference's values, on the host, as NVRTC makes them, and as registered operators."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import emulated
from model.layers import AdaIN, norm_relu_sum, styled
from model.ops import cuda, instance_cuda, norms_cuda, norms_reference, taps_cuda
from operator_inputs import between_nans
from test_ops_kernels import INSTANCES, NORMS, TAPS

EPS = [1e-5, 1e-3]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2 ** -10, torch.bfloat16: 2 ** -7}
# [N,C,H,W] and domains: one, odd and packed channels; a row in a slice, slices of unequal length, more than a run each
CASES = [((2, 1, 3, 5), 1), ((3, 4, 2, 3), 3), ((6, 9, 3, 3), 2), ((4, 32, 5, 5), 4), ((2, 8, 1, 1), 1),
         ((40, 4, 13, 13), 1)]


def make_inputs(shape, count, dtype, order=(0, 2, 3, 1)):
    """Images far from zero, parameters, weights and the gradient of the result, with NaN in memory around each."""
    random, wide = torch.Generator().manual_seed(0), norms_cuda.accumulator(dtype)

    def draw(size, kind, order=(0,)):
        return between_nans(torch.randn(size, generator=random, dtype=torch.float64).to(kind), order)

    images = [draw(shape, dtype, order).mul_(2).add_(3) for _ in range(count)]
    gammas, betas = ([draw(shape[1:2], wide) for _ in range(count)] for _ in range(2))
    weights = torch.tensor([0.3, 0.7], dtype=wide) if count == 2 else None
    return images, gammas, betas, weights, draw(shape, dtype, order)


def run_all(module, images, gammas, betas, weights, grad, domains):
    """What the three operators give: image, statistics, gradients; evaluation; running statistics and counts."""
    forward, backward, apply = module
    count, channels, leak = len(images), images[0].shape[1], 0.1 * (len(images) - 1)
    running = [[torch.linspace(1, 2, channels).to(gammas[0]) for _ in range(count)] for _ in range(2)]
    batches = [torch.tensor(5) for _ in range(count)]
    y, statistics = forward(images, gammas, betas, weights, *running, batches, [-1, 5][:count], [0.1, 0.0][:count],
                            EPS[:count], leak, domains)
    found = {"y": y, "statistics": statistics,
             "gradients": backward(grad, images, gammas, betas, weights, statistics, EPS[:count], leak, True),
             "of images": backward(grad, images, gammas, betas, weights, statistics, EPS[:count], leak, False)}
    found["evaluated"] = apply(images, gammas, betas, *running, weights, EPS[:count], leak)
    return found | {"running": running, "batches": batches}


STARTERS = (norms_cuda.launch_normalise, norms_cuda.launch_backward, norms_cuda.launch_apply)
OPERATORS = (norms_cuda.normalise_branches, norms_cuda.normalise_branches_backward, norms_cuda.apply_norms)


def check(shape, domains, count, dtype):
    """Images to a rounding of their type, sums to some of theirs."""
    inputs = make_inputs(shape, count, dtype)
    ours, theirs = (tree_leaves(run_all(module, *inputs, domains)) for module in (STARTERS, OPERATORS))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE.get(one.dtype, 0), atol=TOLERANCE[inputs[1][0].dtype])


def check_instances(shape, dtype):
    """With gain, offset, leak and residual, then without any."""
    (x,), _, _, _, grad = make_inputs(shape, 1, dtype)
    wide = norms_cuda.accumulator(dtype)
    styles = torch.randn(len(x), 2 * shape[1], generator=torch.Generator().manual_seed(1)).to(wide)
    styles = between_nans(styles, (0, 1))
    for given, leak, residual in ((styles, 0.01, x.flip(0)), (None, 0.0, None)):
        for forward, backward in (
                (instance_cuda.launch_instances, instance_cuda.launch_instances_backward),
                (instance_cuda.normalise_instances, instance_cuda.normalise_instances_backward)):
            y, statistics = forward(x, given, residual, 1e-5, leak)
            found = [y, statistics, *backward(grad, x, statistics, given, leak)]
            if forward is instance_cuda.launch_instances:
                ours = found
        for one, other in zip(ours, found, strict=True):
            torch.testing.assert_close(one, other, rtol=TOLERANCE[one.dtype], atol=TOLERANCE[wide])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape, domains", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernels_equal_the_reference(on_host, shape, domains, count, dtype):
    check(shape, domains, count, dtype)
    assert set(name for name, _ in on_host) <= set(NORMS)
    forward, backward = norms_cuda.KERNELS.values()
    assert len(on_host) == forward + 2 * backward + 1


@pytest.mark.parametrize("shape", [shape for shape, _ in CASES[:4]], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_instance_kernels_equal_the_reference(on_host, shape, dtype):
    check_instances(shape, dtype)
    assert set(name for name, _ in on_host) <= set(INSTANCES)


def check_taps(dtype):
    """There and back; row 9 g + t goes to t G + g."""
    weight, bias = torch.randn(27, 5, 1, 1).to(dtype), torch.arange(27).to(dtype)
    there = taps_cuda.launch_reorder(weight, bias, True)
    assert there[1].tolist() == [9 * group + tap for tap in range(9) for group in range(3)]
    assert torch.equal(there[0], weight[there[1].long()])
    for one, other in zip(there, taps_cuda.reorder_taps(weight, bias, True)):
        assert torch.equal(one, other)
    for launch in (taps_cuda.launch_reorder, taps_cuda.reorder_taps):
        assert all(torch.equal(*pair) for pair in zip(launch(*there, False), (weight, bias)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_taps_are_reordered(on_host, dtype):
    check_taps(dtype)
    assert set(name for name, _ in on_host) <= set(TAPS)


def test_gradients_of_reordered_taps():
    weight, bias = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((18, 2, 1, 1), (18,)))
    torch.library.opcheck(taps_cuda.reorder_taps, (weight, bias, True))
    assert torch.autograd.gradcheck(lambda *given: tuple(taps_cuda.reorder_taps(*given, True)), (weight, bias))


def test_planes_give_the_same(on_host):
    """NCHW is copied."""
    images, *rest = make_inputs((4, 8, 3, 5), 2, torch.float32)
    planes = [image.contiguous() for image in images]
    assert not planes[0].is_contiguous(memory_format=torch.channels_last)
    ours, theirs = (run_all(STARTERS, each, *rest, 2) for each in (planes, images))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [1, 3])
def test_kernels_stride_over_what_a_small_grid_leaves(on_host, monkeypatch, limit):
    monkeypatch.setattr(cuda, "MAX_BLOCKS", limit)
    check((30, 9, 7, 7), 3, 2, torch.float64)
    assert max(blocks for _, blocks in on_host) == limit


@pytest.mark.parametrize("spread, offset, first", [(1, 0, 0), (1e-2, 1e3, 0), (1, 0, 1e4)])
def test_float32_statistics_of_many_rows_are_accurate(on_host, spread, offset, first):
    """Against float64 of the same numbers: where a mean is far from zero, and where one row is far from all others."""
    x = (offset + spread * torch.randn(64, 4, 40, 41, generator=torch.Generator().manual_seed(0)))
    x[0, :, 0, 0] += first
    ones = torch.ones(4)
    running = [[torch.ones(4)], [torch.ones(4)], [torch.tensor(0)], [-1], [0.1]]
    _, statistics = norms_cuda.launch_normalise([x], [ones], [ones], None, *running, [1e-5], 0.0, 2)
    truth = norms_reference.domain_statistics(x.double(), 2)
    torch.testing.assert_close(statistics[0].double(), truth, rtol=2e-5, atol=1e-6 * spread)


def test_nan_comes_through(on_host):
    """A loss that is no number is found by what it does to the loss."""
    images, *rest = make_inputs((2, 4, 3, 3), 1, torch.float32)
    images[0][0, 1, 2, 2] = torch.nan
    found = run_all(STARTERS, images, *rest, 1)
    assert found["y"][:, 1].isnan().all() and not found["y"][:, 0].isnan().any()
    assert found["gradients"][0][:, 1].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("sm_75", "sm_80", "sm_90"))
def test_the_machine_code_equals_the_reference(monkeypatch, arch):
    wanted = ("common", "norm", "norm_grad", "instance", "taps")
    monkeypatch.setattr(cuda, "SOURCES", [path for path in cuda.SOURCES if path.stem in wanted])
    entries, started = emulated.entries(cuda.source(), arch), []
    for module in (norms_cuda, instance_cuda, taps_cuda):
        monkeypatch.setattr(module, "start", emulated.starter(entries, started))
    for dtype in TOLERANCE:
        for shape, domains in CASES[:5]:
            for count in (1, 2):
                check(shape, domains, count, dtype)
        for shape, _ in CASES[1:4]:
            check_instances(shape, dtype)
    for dtype in (torch.float32, torch.float64):
        check_taps(dtype)
    assert set(started) == set(entries) == {*NORMS, *INSTANCES, *TAPS}


# ---- registered operators ----

@pytest.mark.parametrize("styled", [False, True])
def test_gradients_of_the_instance_operator(styled):
    x, residual = (torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    styles = torch.randn(2, 6, dtype=torch.float64, requires_grad=True) if styled else None
    assert torch.autograd.gradcheck(lambda *given: instance_cuda.normalise_instances(*given, 1e-5, 0.1)[0],
                                    (x, styles, residual))
    torch.library.opcheck(instance_cuda.normalise_instances, (x, styles, residual, 1e-5, 0.1))
    x, styles = x.detach(), None if styles is None else styles.detach()
    torch.library.opcheck(instance_cuda.normalise_instances_backward, (x, x, torch.rand(2, 2, 3).double(), styles, 0.1))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(6)], ids=str)
def test_styled_is_the_reference_layer(forced_cupy, norm):
    adain, h, z = AdaIN(6), torch.randn(5, 6, 3, 4, requires_grad=True), torch.randn(5, 2)
    found = []
    for backend in ("cupy", "reference"):
        own = copy.deepcopy(norm)
        y = styled(h, z, adain, own, 0.01, backend)
        learnt = [h, *adain.parameters(), *own.parameters()]
        found.append([y, *torch.autograd.grad(y.square().sum(), learnt), *own.buffers()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

def method_inputs(dtype=torch.float64, count=2, shape=(4, 3, 2, 3), **options):
    images, gammas, betas, weights, _ = make_inputs(shape, count, dtype)
    tensors = [[each.clone().requires_grad_() for each in part] for part in (images, gammas, betas)]
    return *tensors, None if weights is None else weights.requires_grad_()


@pytest.mark.parametrize("count, domains", [(1, 1), (2, 2)])
def test_gradients_of_the_norms(forced_cupy, count, domains):
    images, gammas, betas, weights = method_inputs(count=count)
    norms = [nn.BatchNorm2d(3).double() for _ in range(count)]

    def image(*tensors):
        for norm, gamma, beta in zip(norms, *(tensors[i * count:(i + 1) * count] for i in (1, 2))):
            norm.weight, norm.bias = gamma, beta
        return norms_cuda.norm_relu_sum(tensors[:count], norms, *(tensors[3 * count:] or (None,)), domains, 0.01)

    for norm in norms:
        del norm.weight, norm.bias
    given = [*images, *gammas, *betas, *([] if weights is None else [weights])]
    assert torch.autograd.gradcheck(image, given)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(count, dtype):
    parts = [[each.detach() for each in part] for part in method_inputs(dtype, count)[:3]]
    weights, eps = torch.tensor([0.3, 0.7]) if count == 2 else None, EPS[:count]
    statistics = torch.rand(count, 2, 2, 3) + 1
    running = [list(statistics[:, k, 0].clone()) for k in range(2)]
    torch.library.opcheck(norms_cuda.normalise_branches,
                          (*parts, weights, *running, [torch.tensor(5) for _ in parts[0]], [-1] * count, [0.1] * count,
                           eps, 0.0, 2))
    for learns in (False, True):
        torch.library.opcheck(norms_cuda.normalise_branches_backward,
                              (parts[0][0], *parts, weights, statistics, eps, 0.01, learns))
    torch.library.opcheck(norms_cuda.apply_norms, (*parts, *running, weights, eps, 0.01))


def branches(momenta):
    """Norms that have learnt something, and their inputs."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(7, momentum=momentum) for momentum in momenta]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    inputs = [(3 * torch.randn(6, 7, 3, 4) + 10 * i).requires_grad_() for i in range(len(momenta))]
    return norms, inputs, torch.tensor([0.3, 0.7], requires_grad=True) if len(momenta) == 2 else None


@pytest.mark.parametrize("momenta", [(0.1,), (None, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("domains", [1, 3])
def test_the_layer_is_the_reference_layer(forced_cupy, momenta, domains):
    """Two training passes, gradients, statistics and counts; then evaluation."""
    found = []
    for backend in ("cupy", "reference"):
        norms, inputs, weights = branches(momenta)
        learnt = [p for norm in norms for p in norm.parameters()] + ([] if weights is None else [weights])
        for _ in range(2):
            y = norm_relu_sum(inputs, norms, weights, backend, domains)
        gradients = torch.autograd.grad(y.square().sum(), [*inputs, *learnt])
        frozen = norm_relu_sum(inputs, [norm.requires_grad_(False) for norm in norms], None, backend, domains)
        frozen = torch.autograd.grad(frozen.square().sum(), inputs)
        with torch.no_grad():
            evaluated = norm_relu_sum(inputs, [norm.eval() for norm in norms], weights, backend)
        found.append([y, *gradients, *frozen, evaluated, *(value for norm in norms for value in norm.buffers())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_compiled_layer_keeps_values_and_statistics(forced_cupy):
    found = []
    for compiler in (torch.compile, lambda function, **_: function):
        norms, inputs, weights = branches((0.1, 0.3))
        layer = compiler(lambda *x: norm_relu_sum([each.tanh() for each in x], norms, weights, "cupy", 2) * 2,
                         fullgraph=True, backend="aot_eager")
        y = layer(*inputs)
        found.append([y, *torch.autograd.grad(y.sum(), [*inputs, weights]), *(b for n in norms for b in n.buffers())])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)

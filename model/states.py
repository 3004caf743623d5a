"""Parameters, buffers and BatchNorm statistics of a network, held as they are or set for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.graphs import uncompiled, untraced


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the network's parameters get no gradient; its mode stays as it is."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def buffers_kept(network: nn.Module) -> Iterator[None]:
    """Whatever happens to the network's buffers (running statistics) inside, afterwards they are as before."""
    with tensors_kept(network.named_buffers):
        yield


@contextmanager
def state_kept(network: nn.Module) -> Iterator[None]:
    """The same for parameters and buffers."""
    with tensors_kept(lambda: network.state_dict().items()):
        yield


@contextmanager
def tensors_kept(named: Callable[[], Iterable[tuple[str, Tensor]]]) -> Iterator[None]:
    before = {name: value.clone() for name, value in named()}
    try:
        yield
    finally:
        for name, value in named():
            value.copy_(before[name])


@contextmanager
def momentum_set(network: nn.Module, momentum: float | None) -> Iterator[list[_BatchNorm]]:
    """Inside, all BatchNorms of the network, which it gives, have this momentum (None = a cumulative average)."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield norms
    finally:
        for norm, value in zip(norms, before):
            norm.momentum = value


def statistics_frozen(network: nn.Module) -> AbstractContextManager:
    """Inside, BatchNorm's running statistics stay what they are, in training mode too (batches are still counted)."""
    return momentum_set(network, 0.0)


@contextmanager
def statistics_in_order(network: nn.Module, order: Sequence[int]) -> Iterator[None]:
    """Running statistics as if the training passes inside had been made in another order: the i-th in place order[i].

    A running statistic forgets, r <- (1 − m) r + m b, so the order of the batches b shows in it.
    """
    if list(order) == sorted(order):
        yield
        return
    batches = []

    @untraced
    def keep(*_: Any) -> None:
        batches.append([buffer.clone() for buffer in running])

    hook = network.register_forward_hook(keep)
    try:
        with momentum_set(network, 1.0) as norms:             # leaves the batch's own statistics in the running ones
            running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
            before = [buffer.clone() for buffer in running]
            yield
    finally:
        hook.remove()
        for buffer, value in zip(running, before):
            buffer.copy_(value)
        for _, batch in sorted(zip(order, batches), key=lambda entry: entry[0]):
            for i, norm in enumerate(norms):
                norm.running_mean.lerp_(batch[2 * i], norm.momentum)
                norm.running_var.lerp_(batch[2 * i + 1], norm.momentum)


def reestimate_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set BatchNorm's running statistics to the plain averages over the batches (x [N, B, P, P], y [N])."""
    network.train()
    with momentum_set(network, None) as norms, torch.no_grad(), uncompiled():
        for norm in norms:
            norm.reset_running_stats()
        for x, _ in batches:
            network(x)

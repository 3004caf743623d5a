"""Adam: the bits of torch's own, with little Python."""

import copy

import pytest
import torch

from model.optimiser import Adam


@pytest.mark.parametrize("frozen", [False, True])
def test_steps_are_torchs_own(frozen):
    """Changing rates, a state loaded halfway, and a parameter that has no gradient for a while."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    optimisers = [(net, kind(net.parameters(), lr=1e-2, fused=True)) for net, kind in
                  ((ours, Adam), (theirs, torch.optim.Adam))]
    for number in range(8):
        x = torch.randn(4, 5)
        for net, optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = 1e-2 / (1 + number)
            optimiser.zero_grad()
            net(x).square().sum().backward()
            if frozen and number in (0, 4):
                net.bias.grad = None
            if number == 5:
                optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
            optimiser.step()
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters())), number
    (_, one), (_, other) = optimisers
    assert one.state_dict()["state"][1]["step"] == other.state_dict()["state"][1]["step"] == (6 if frozen else 8)


def test_the_tensors_are_gathered_once(monkeypatch):
    """The second step asks torch's own step for nothing more."""
    net, plain = torch.nn.Linear(2, 2), []
    optimiser = Adam(net.parameters(), fused=True)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: plain.append(self))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
        optimiser.state[parameter] = {"step": torch.ones(()), "exp_avg": torch.zeros_like(parameter),
                                      "exp_avg_sq": torch.zeros_like(parameter)}
    before = net.weight.clone()
    optimiser.step()
    assert not plain and not torch.equal(net.weight, before)
    net.bias.grad = None
    optimiser.step()
    assert plain == [optimiser]

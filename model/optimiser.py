"""Adam whose step costs little Python, and on a GPU few kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch's Adam, bit for bit.  Its fused step gathers states and parameters once and not at every step, which at
    small sizes takes as long as the arithmetic."""

    FUSED = ("cpu", "cuda")      # devices on which PyTorch fuses it

    _gathered: tuple[list[Tensor], list[Tensor], list[Tensor], Tensor] | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        return None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        group = self.param_groups[0]
        gradients = [parameter.grad for parameter in group["params"]]
        plain = closure is not None or len(self.param_groups) > 1 or any(gradient is None for gradient in gradients)
        if plain or not (group["fused"] and group["params"][0].device.type in self.FUSED and self._gather()):
            return super().step(closure)
        averages, squares, steps, counts = self._gathered
        counts += 1
        beta1, beta2 = group["betas"]
        torch._fused_adam_(group["params"], gradients, averages, squares, [], steps, lr=group["lr"], beta1=beta1,
                           beta2=beta2, weight_decay=0.0, eps=group["eps"], amsgrad=False, maximize=False)
        return None

    def _gather(self) -> bool:
        """Whether every parameter has its state, which is then gathered; it is not before the first step.

        The numbers of steps become views of one tensor, to be counted at once.
        """
        if self._gathered is None:
            states = [self.state.get(parameter) for parameter in self.param_groups[0]["params"]]
            if all(states):
                counts = torch.stack([state["step"] for state in states])
                for state, count in zip(states, counts):
                    state["step"] = count
                averages, squares, steps = ([state[name] for state in states]
                                            for name in ("exp_avg", "exp_avg_sq", "step"))
                self._gathered = averages, squares, steps, counts
        return self._gathered is not None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._gathered = None
        super().load_state_dict(state_dict)

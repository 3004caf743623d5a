"""The registry of compared methods: one file and one line here each."""

from model.methods.base import Method, Task
from model.methods.erm import ERM, ERMGain
from model.s2amsnet import S2AMSnet
from utils.errors import ConfigError

REGISTRY: dict[str, type[Method]] = {
    "s2amsnet": S2AMSnet,
    "erm": ERM,
    "erm_gain": ERMGain,
}


def method_class(name: str) -> type[Method]:
    """The class of a method by name; ConfigError names the known ones."""
    if name not in REGISTRY:
        raise ConfigError(f"method '{name}' is not known; known are {', '.join(REGISTRY)}.")
    return REGISTRY[name]


__all__ = ["REGISTRY", "Method", "Task", "method_class"]

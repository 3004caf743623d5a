"""The registry of compared methods: one file and one line here each."""

from importlib import import_module

from model.errors import ConfigError
from model.methods.base import Method, Task

REGISTRY = {                        # name -> module:class
    "s2amsnet": "model.s2amsnet:S2AMSnet",
    "daan": "model.methods.daan:DAAN",
    "mran": "model.methods.mran:MRAN",
    "dsan": "model.methods.dsan:DSAN",
    "htcnn": "model.methods.htcnn:HTCNN",
    "sagnet": "model.methods.sagnet:SagNet",
    "l2d": "model.methods.l2d:L2D",
    "pden": "model.methods.pden:PDEN",
    "sdenet": "model.methods.sdenet:SDEnet",
    "erm": "model.methods.erm:ERM",
    "erm_gain": "model.methods.erm:ERMGain",
    "mixup": "model.methods.mixup:Mixup",
    "dsu": "model.methods.dsu:DSU",
    "coral": "model.methods.coral:CORAL",
    "svm": "model.methods.pixel:SVM",
    "random_forest": "model.methods.pixel:RandomForest",
}


def method_class(name: str) -> type[Method]:
    """The class of a method by name; ConfigError names the known ones."""
    if name not in REGISTRY:
        raise ConfigError(f"method '{name}' is not known; known are {', '.join(REGISTRY)}.")
    module, _, kind = REGISTRY[name].partition(":")
    return getattr(import_module(module), kind)


__all__ = ["REGISTRY", "Method", "Task", "method_class"]

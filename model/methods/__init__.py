"""The registry of compared methods: one file and one line here each."""

from model.methods.base import Method, Task
from model.methods.coral import CORAL
from model.methods.daan import DAAN
from model.methods.dsan import DSAN
from model.methods.dsu import DSU
from model.methods.erm import ERM, ERMGain
from model.methods.htcnn import HTCNN
from model.methods.l2d import L2D
from model.methods.mixup import Mixup
from model.methods.mran import MRAN
from model.methods.pden import PDEN
from model.methods.pixel import SVM, RandomForest
from model.methods.sagnet import SagNet
from model.methods.sdenet import SDEnet
from model.s2amsnet import S2AMSnet
from utils.errors import ConfigError

REGISTRY: dict[str, type[Method]] = {
    "s2amsnet": S2AMSnet,
    "daan": DAAN,
    "mran": MRAN,
    "dsan": DSAN,
    "htcnn": HTCNN,
    "sagnet": SagNet,
    "l2d": L2D,
    "pden": PDEN,
    "sdenet": SDEnet,
    "erm": ERM,
    "erm_gain": ERMGain,
    "mixup": Mixup,
    "dsu": DSU,
    "coral": CORAL,
    "svm": SVM,
    "random_forest": RandomForest,
}


def method_class(name: str) -> type[Method]:
    """The class of a method by name; ConfigError names the known ones."""
    if name not in REGISTRY:
        raise ConfigError(f"method '{name}' is not known; known are {', '.join(REGISTRY)}.")
    return REGISTRY[name]


__all__ = ["REGISTRY", "Method", "Task", "method_class"]

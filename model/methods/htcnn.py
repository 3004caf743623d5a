"""HTCNN: an ImageNet network behind a layer that makes three bands of many, with attention, trained on the source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.errors import ConfigError
from model.methods.erm import ERM
from model.settings import Settings
from model.stored import read_stored, unusable

BLOCKS = ((64, 64), (128, 128), (256, 256, 256))        # widths of VGG-16's convolutions, to the third pooling layer
IMAGE_BANDS = 3
REDUCTION = 16            # the attention's bottleneck (Hu et al., CVPR 2018)


class HTCNN(ERM):
    """HTCNN (He, Chen, Ghamisi, IEEE TGRS 58, 2020, doi 10.1109/TGRS.2019.2951445, "Heterogeneous transfer learning for
    hyperspectral image classification based on convolutional neural network").

    A mapping layer turns the B bands into the three of an image, a VGG pre-trained on ImageNet follows, an attention
    mechanism adjusts its feature maps to the other kind of data, and the whole is fine-tuned with cross-entropy on the
    labelled scene.  The transfer is from ImageNet to a labelled scene: unlabelled patches of the target have no part in
    it, so here only source patches are seen (`uses_target` is False), as by the methods for domain generalisation.

    Reconstructed from the paper's abstract and memory of it, not from code.  The mapping is a learnt 1×1 convolution
    with BatchNorm, which brings its output to the scale of ImageNet's standardised images.  Patches of 5 to
    13 pixels leave no room for five poolings, so of VGG-16 the first three blocks serve (to conv3_3, with the two
    poolings between them: 13 -> 6 -> 3, 5 -> 2 -> 1), then the mean over the pixels and one layer of width pro_dim.
    Attention is squeeze and excitation at the end of each block, doubled and so 1 everywhere at the start: transferred
    features first come through as they are.  Learning rate and steps are those of all methods.

    Weights: `htcnn_weights`, a state dict with torchvision's names for vgg16 (features.N.weight, features.N.bias), or
    random ones as torchvision initialises them.  The label of a run says which.
    """

    def build_classifier(self) -> nn.Module:
        return VGGClassifier(self.task.bands, self.task.n_classes, self.settings.pro_dim, self.settings.precision)

    def begin_run(self) -> dict[str, str]:
        """Read the ImageNet weights."""
        if self.settings.htcnn_weights is None:
            return {}
        path = Path(self.settings.htcnn_weights)
        for classifier in filter(None, (self.discriminator, self.averaged)):
            load_vgg(classifier.vgg, path)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}

    @classmethod
    def label_note(cls, settings: Settings) -> str:
        return "random-init" if settings.htcnn_weights is None else f"weights={Path(settings.htcnn_weights).stem}"


class VGGClassifier(nn.Module):
    """[N, B, P, P], P at least 4 -> logits [N, K].  Precision 'bf16' computes all but the last layer in bfloat16."""

    def __init__(self, bands: int, n_classes: int, width: int, precision: str = "float32"):
        super().__init__()
        self.low_precision = precision == "bf16"
        self.mapping = nn.Sequential(nn.Conv2d(bands, IMAGE_BANDS, 1), nn.BatchNorm2d(IMAGE_BANDS))
        self.vgg, ends = vgg_blocks()
        self.attention = nn.ModuleDict({str(end): ChannelAttention(widths[-1]) for end, widths in zip(ends, BLOCKS)})
        self.fc = nn.Linear(BLOCKS[-1][-1], width)
        self.head = nn.Linear(width, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """[N, B, P, P] -> [N, d]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            h = self.mapping(x)
            for name, layer in self.vgg.named_children():
                h = layer(h)
                if name in self.attention:
                    h = self.attention[name](h)
            return functional.relu(self.fc(h.mean((2, 3)))).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def vgg_blocks() -> tuple[nn.Sequential, list[int]]:
    """The layers of VGG-16 to conv3_3's ReLU, numbered as in torchvision's `features`, and the last one of each block;
    initialised as there (He et al., ICCV 2015, fan out)."""
    layers: list[nn.Module] = []
    ends, channels = [], IMAGE_BANDS
    for widths in BLOCKS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
            channels = width
        ends.append(len(layers) - 1)
    return nn.Sequential(*layers), ends


class ChannelAttention(nn.Module):
    """h · 2σ(W₂ ReLU(W₁ mean(h))), one factor per sample and channel, 1 at the start: [N, C, H, W] -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // REDUCTION)
        self.excite = nn.Linear(channels // REDUCTION, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, h: Tensor) -> Tensor:
        factors = 2 * self.excite(functional.relu(self.squeeze(h.mean((2, 3))))).sigmoid()
        return h * factors[:, :, None, None]


def load_vgg(vgg: nn.Sequential, path: Path) -> None:
    """Load features.N.weight and features.N.bias of a state dict into the layers; what is deeper is left out.

    Raises ConfigError if the file is missing, holds more than tensors, is not that of a VGG-16, or has weights that are
    not finite.
    """
    advice = ("Give the file of torchvision's vgg16 weights (a state dict), or leave htcnn_weights out for a random "
              "initialisation.")
    try:
        state = read_stored(path, "a state dict", ConfigError)
    except ConfigError as error:
        raise ConfigError(f"htcnn_weights: {error} {advice}") from error
    own = {f"features.{name}": value for name, value in vgg.state_dict().items()}
    given = {name: state[name] for name in own if isinstance(state.get(name), Tensor)}
    unfit = [name for name, value in own.items() if name not in given or given[name].shape != value.shape]
    if unfit:
        name = unfit[0]
        found = f"of shape {list(given[name].shape)}" if name in given else "missing"
        raise ConfigError(f"htcnn_weights: {path} does not hold the weights of a VGG-16: {len(unfit)} of {len(own)} "
                          f"tensors do not fit; {name} {list(own[name].shape)} is {found}. {advice}")
    if strange := [name for name, value in given.items() if not value.is_floating_point()]:
        raise ConfigError(f"htcnn_weights: {path}: {strange[0]} is {given[strange[0]].dtype}: these are no weights. "
                          f"{advice}")
    if broken := unusable(given.items()):
        raise ConfigError(f"htcnn_weights: {path}: {broken}; these weights cannot be used. {advice}")
    vgg.load_state_dict({name: given[f"features.{name}"] for name in vgg.state_dict()})

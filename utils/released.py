"""Names: between the released code's state dicts and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

_BRANCHES = [
    (r"Spectral_Weight_(\d)\.f_inv_12\.", r"stages.\1.spectral.involution."),
    (r"Spectral_Weight_(\d)\.f_inv_11\.", r"stages.\1.spectral.conv."),
    (r"Spectral_Weight_(\d)\.bn_h\.", r"stages.\1.spectral_norm."),
    (r"Spatial_Weight_(\d)\.Conv_weight\.", r"stages.\1.spatial.conv."),
    (r"Spatial_Weight_(\d)\.bn_h\.", r"stages.\1.spatial_norm."),
]
_DISCRIMINATOR = _BRANCHES + [(r"Weight_Alpha$", "branch_logits"), (r"fc1\.", "fc."), (r"cls_head_src\.", "head.")]
_GENERATOR = _BRANCHES + [(r"Weight_Alpha\d$", "output_logits"), (r"AdaIN\d\.", "adain.0."), (r"bn\d\.", "norm."),
                          (r"generate\d\.", "decoder.")]
_NETWORKS = {"Net1": "a", "Net2": "b"}


def our_discriminator_name(name: str) -> str | None:
    """A released discriminator name in ours: Spectral_Weight_1.f_inv_11.weight -> stages.0.spectral.conv.weight."""
    return _translate(name, _DISCRIMINATOR)


def our_generator_name(name: str) -> str | None:
    """A released generator name (Net1.…, Net2.…) in that of our ModuleDict (a.…, b.…); None for the branch norms, which
    its generators hold but never call."""
    network, rest = name.split(".", 1)
    if ".bn_h." in rest:
        return None
    translated = _translate(re.sub(r"^(Spectral|Spatial)_Weight_\d(\d)", r"\1_Weight_\2", rest), _GENERATOR)
    return translated and f"{_NETWORKS[network]}.{translated}"


def released_discriminator_names(ours: Iterable[str]) -> dict[str, str]:
    """Our discriminator names -> the released ones, for `export`."""
    table = {}
    for name in ours:
        match = re.match(r"stages\.(\d)\.(.+)", name)
        if match:
            stage, rest = int(match[1]) + 1, match[2]
            for part, released in (("spectral.involution.", f"Spectral_Weight_{stage}.f_inv_12."),
                                   ("spectral.conv.", f"Spectral_Weight_{stage}.f_inv_11."),
                                   ("spectral_norm.", f"Spectral_Weight_{stage}.bn_h."),
                                   ("spatial.conv.", f"Spatial_Weight_{stage}.Conv_weight."),
                                   ("spatial_norm.", f"Spatial_Weight_{stage}.bn_h.")):
                if rest.startswith(part):
                    table[name] = released + rest[len(part):]
        else:
            table[name] = re.sub(r"^fc\.", "fc1.", re.sub(r"^head\.", "cls_head_src.", name)) \
                .replace("branch_logits", "Weight_Alpha")
    return table


def translate(state: dict[str, Tensor], rename) -> dict[str, Tensor]:
    """A state dict under new names; entries that `rename` maps to None are dropped."""
    return {new: value for name, value in state.items() if (new := rename(name)) is not None}


def _translate(name: str, table: list[tuple[str, str]]) -> str | None:
    for pattern, ours in table:
        if match := re.match(pattern, name):
            if "stages" in ours:
                ours = ours.replace(r"\1", str(int(match[1]) - 1))
            return ours + name[match.end():]
    return None

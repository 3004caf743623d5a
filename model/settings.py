"""What a method can be told: its sizes, its recipe's switches, its ablations.  Every field is a flag of main.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, get_args

from model.errors import ConfigError
from model.plain import read_yaml

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipe"

WIDEST = 1 << 16          # channels of a network

Recipe = Literal["released", "paper", "robust", "adaptive", "robust2"]
Ablation = Literal["no_spectral", "no_spatial", "no_noise", "no_adain", "no_mixing", "no_mmirn", "no_adversarial",
                   "one_generator", "no_generators"]


@dataclass
class Switches:
    """What a recipe decides: the differences between the paper's text and its released code, and our own changes.

    Args:
        scene_correction: spectra are seen against the mean spectrum of their own scene: 'none', minus it ('mean'),
            divided by it ('ratio'), 'standardise' (minus the mean, divided by the standard deviation) or
            'half_standardise' (minus the mean, divided by the root of the standard deviation). With one of these a
            target's unlabelled pixels are read when the weights are applied to it, never while training.
        reference_branch: above 0, training mixes that mean with the means of the classes, by weights ~ Dirichlet(this),
            one draw per patch, so that the network does not trust the mean of a scene with other surfaces.
        reference_pixels: above 0, the mixed reference also has the mean of the deviations of so many training pixels
            from the means of their classes, so that it varies within the classes, too.
        resolution_branch: above 1, every patch is seen while training at a ground sampling distance of its own, from
            1/this to this times the source's: blurred and resampled (datasets/resolution.py).
        balanced_batches: 'on' = the classes take turns in the batches, whatever their shares of the training pixels; an
            epoch has as many steps as without.
        gain_augmentation: above 0, every training patch, whatever the method, comes under a smooth random spectral
            gain, the standard deviation of whose logarithm is uniform from 0 to this; before the scene correction.
        admixture_augmentation: above 0, every training patch has another one's centre spectrum mixed in, from 0 to this
            many parts of it (uniform) to one part of the patch; before the gain.
        kernel_activation: ReLU after the involution's second 1×1 convolution ('relu'), or nothing ('none').
        generator_norm: AdaIN per stage ('adain'), or one AdaIN and one BatchNorm shared by the stages ('adain_bn').
        generator_init: PyTorch's initialisation ('default'), weights ~ N(0, 1) ('normal'), or the output starting near
            the input ('identity').
        generated_spectra: generated and mixed spectra are left 'free', or made non-negative and of 'unit' norm as every
            preprocessed spectrum is.
        gain_branch: above 0, generators get patches under a smooth random spectral gain, the standard deviation of
            whose logarithm is uniform from 0 to this.
        admixture_branch: above 0, generators get patches with another patch's centre spectrum mixed in, from 0 to this
            many parts of it (uniform) to one part of the patch.
        mixing_weights: one λ per 'batch' and generator, or per 'sample'.
        consistency: KL divergence from log-softmax ('kl'), the released code's bounded term ('released'), or the
            Jensen–Shannon divergence ('js').
        discriminator_steps: 2 = the discriminator's optimiser steps again, on the old gradients, after the max step.
        mmirn_gradients: MMIRN's gradients are 'zeroed' every batch or 'accumulated' over the whole training.
        contrast_features: L2-'normalised' features (cosine similarity) or 'raw' dot products in the MI term.
        contrast_layers: layers of MMIRN whose features the MI term compares (the released code's name: nce_layers).
        generators: 'full' (two networks, both branches), 'split' (a spectral, b spatial), 'shared' (one called twice).
        source_ce: 'on' adds the cross-entropy of the source patches themselves to the min step.
        consistency_weight: weight of the consistency term in both steps.
        adversarial_weight: a further weight of the consistency term in the max step alone.
        mi_weight: weight of the mutual-information term.
        source_weight: weight of the source patches' cross-entropy (with source_ce).
        batchnorm_batches: the discriminator normalises every domain by itself ('separate'), or all of a step in one
            batch ('joint'), whose running statistics the min step alone updates.
        batchnorm_statistics: 'running' averages of training, or re-estimated on clean 'source' patches.
        lr_schedule: 'constant', or a 'cosine' from lr to nothing over the run.
        weight_averaging: decay per step of the averaged discriminator that is evaluated; 0 = the trained one is.
    """

    scene_correction: Optional[Literal["none", "mean", "ratio", "standardise", "half_standardise"]] = None
    reference_branch: Optional[float] = None
    reference_pixels: Optional[int] = None
    resolution_branch: Optional[float] = None
    balanced_batches: Optional[Literal["off", "on"]] = None
    gain_augmentation: Optional[float] = None
    admixture_augmentation: Optional[float] = None
    kernel_activation: Optional[Literal["none", "relu"]] = None
    generator_norm: Optional[Literal["adain", "adain_bn"]] = None
    generator_init: Optional[Literal["default", "normal", "identity"]] = None
    generated_spectra: Optional[Literal["free", "unit"]] = None
    gain_branch: Optional[float] = None
    admixture_branch: Optional[float] = None
    mixing_weights: Optional[Literal["batch", "sample"]] = None
    consistency: Optional[Literal["kl", "released", "js"]] = None
    discriminator_steps: Optional[Literal[1, 2]] = None
    mmirn_gradients: Optional[Literal["zeroed", "accumulated"]] = None
    contrast_features: Optional[Literal["normalised", "raw"]] = None
    contrast_layers: Optional[list[int]] = None
    generators: Optional[Literal["full", "split", "shared"]] = None
    source_ce: Optional[Literal["off", "on"]] = None
    consistency_weight: Optional[float] = None
    adversarial_weight: Optional[float] = None
    mi_weight: Optional[float] = None
    source_weight: Optional[float] = None
    batchnorm_batches: Optional[Literal["separate", "joint"]] = None
    batchnorm_statistics: Optional[Literal["running", "source"]] = None
    lr_schedule: Optional[Literal["constant", "cosine"]] = None
    weight_averaging: Optional[float] = None


@dataclass
class Settings(Switches):
    """Everything a method reads.

    Args:
        method: the compared method (configs/method).
        recipe: where the switches that are not set come from (configs/recipe).
        ablate: parts of S²AMSnet to take out (configs/ablation).
        lr: learning rate of every Adam optimiser.
        pro_dim: width d of the discriminator.
        GIN_ch: width c of the generators.
        mmirn_filters: width f of MMIRN.
        temp: temperature τ of the MI term.
        beta: λ ~ Beta(beta, beta) of the mixing.
        gain_strength: standard deviation of the log gain of method erm_gain.
        htcnn_weights: state dict of torchvision's vgg16 that method htcnn starts from; null = random weights.
        daan_global: weight of method daan's global domain loss.
        daan_local: weight of its class-wise domain losses.
        daan_shares: class shares that it multiplies features with pass gradients on ('free'), or don't ('detached').
        sagnet_adversary: what method sagnet's adversarial step changes: BatchNorm's scales and shifts before the last
            two stages ('norms', as its authors' code), or the two 'early' stages with all their weights.
        pden_lr_factor: method pden learns at so many times lr.
        backend: 'reference' (plain PyTorch), the 'cpu' or 'cupy' kernels, or the fastest that works here ('auto').
        precision: 'bf16' computes the discriminator in bfloat16 (losses, generators and the MI term stay in float32),
            'tf32' all convolutions and matrix products in TF32, on a GPU only.
        compile: compile the networks for the training step (model/graphs.py); minutes at first, not with backend 'cpu'.
        cuda_graph: capture the training step once and replay it (model/graphs.py); on a GPU only.
    """

    method: str = "s2amsnet"
    recipe: Recipe = "released"
    ablate: list[Ablation] = field(default_factory=list)
    lr: float = 1e-3
    pro_dim: int = 128
    GIN_ch: int = 24
    mmirn_filters: int = 8
    temp: float = 0.07
    beta: float = 0.6
    gain_strength: float = 0.2
    htcnn_weights: Optional[str] = None
    daan_global: float = 0.05
    daan_local: float = 0.01
    daan_shares: Literal["free", "detached"] = "free"
    sagnet_adversary: Literal["norms", "early"] = "norms"
    pden_lr_factor: float = 0.1
    backend: Literal["auto", "reference", "cpu", "cupy"] = "auto"
    precision: Literal["float32", "bf16", "tf32"] = "float32"
    compile: bool = False
    cuda_graph: bool = False


def recipe_switches(name: str) -> dict[str, Any]:
    """The switch table of a recipe, from configs/recipe/NAME.yaml.  Raises ConfigError for a name that is no recipe."""
    if name not in get_args(Recipe):
        raise ConfigError(f"recipe must be {', '.join(get_args(Recipe))}, not {name}.")
    return {switch: list(value) if isinstance(value, list) else value for switch, value in _recipe_file(name).items()}


@cache
def _recipe_file(name: str) -> dict[str, Any]:
    table = read_yaml(RECIPES / f"{name}.yaml")
    return {entry.name: table[entry.name] for entry in fields(Switches)}


def resolve_switches(settings: Settings) -> None:
    """Fill every switch that is not set from the recipe; check what the types cannot."""
    for name, value in recipe_switches(settings.recipe).items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    for name in ("lr", "temp", "beta", "pden_lr_factor", "pro_dim", "GIN_ch", "mmirn_filters"):
        if not 0 < getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} must be positive, not {getattr(settings, name)}.")
    for name in ("pro_dim", "GIN_ch", "mmirn_filters"):
        if getattr(settings, name) > WIDEST:
            raise ConfigError(f"{name} must be at most {WIDEST:,}, not {getattr(settings, name):,}.")
    for name in ("reference_branch", "reference_pixels", "resolution_branch", "gain_augmentation",
                 "admixture_augmentation", "gain_branch", "admixture_branch", "consistency_weight",
                 "adversarial_weight", "mi_weight", "source_weight", "daan_global", "daan_local"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ConfigError(f"{name} must not be negative, not {getattr(settings, name)}.")
    if not 0 <= settings.weight_averaging < 1:
        raise ConfigError(f"weight_averaging must be at least 0 and below 1, not {settings.weight_averaging}.")
    if {"no_spectral", "no_spatial"} <= set(settings.ablate):
        raise ConfigError("no_spectral and no_spatial together leave the generators without any branch.")
    if settings.generators == "split" and {"no_spectral", "no_spatial", "one_generator"} & set(settings.ablate):
        raise ConfigError("generators 'split' needs both branches and both generators; remove the ablation.")


def kept_below(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """What stays of the settings below others.  A recipe above takes the place of the switches that the ones below
    merely took over from theirs; what they flipped stays."""
    if "recipe" not in above:
        return below
    usual = recipe_switches(below.get("recipe", Settings.recipe))
    return {name: value for name, value in below.items() if name not in usual or usual[name] != value}


def flipped_switches(settings: Settings) -> dict:
    """The resolved switches that differ from the recipe: name -> value."""
    return {name: getattr(settings, name) for name, value in recipe_switches(settings.recipe).items()
            if getattr(settings, name) != value}

"""From settings to the objects of a run: device, scenes, samplers, method."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import astuple, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from datasets.correction import NONE, Correction, Mixture, Reference, corrected, doubts, mixture_of, reference_of
from datasets.described import description_digests, located
from datasets.grid import way
from datasets.harmonize import (Common, check_learnable, check_patch, preprocess, unit_spectra,
                                warn_of_hot_pixels)
from datasets.patches import Augmentation, PatchSampler, place, source_repeat
from datasets.perturb import ShiftedSource
from datasets.readers import scene_digests
from datasets.resolution import blurred, factors
from datasets.scene import Scene
from datasets.simulator.cache import load_scene_or_simulate, scene_folder
from datasets.splits import labelled_pixels, split_halves, split_scene
from model.errors import ConfigError
from model.methods import Method, Task, method_class
from model.ops import resolve_backend
from model.seeding import Streams
from model.spectra import PhysicalBranch
from utils.run.config import SEALED, TrainConfig

log = logging.getLogger(__name__)

UNLABELLED_PIXELS = 2048      # of the target, for the label-free validators


@dataclass
class Data:
    """The scenes of a run and their samplers.

    source      the scene that is trained on; with `ceiling` the target with one half of its labels, the target having
                the other half.  `pair_source` is the name of the pair's source all the same, and `sha256` (source/file
                and target/file -> digest) holds the files of the pair
    val         held-out source pixels, None where all train; `shifted` holds them (some of them, if many) under
                physical perturbations
    common      the bands and classes that all scenes are brought to; `resampling` says how (source and target)
    said        what the scene files say, as digests: source/key and target/key
    test        the labelled target pixels; None where there are none
    unlabelled  target pixels whatever their label, for the label-free validators; None where those are off
    adaptation  all target pixels that hold data, whatever their label, for a method that adapts to them, else None
    """

    source: Scene
    target: Scene | None
    train: PatchSampler
    val: PatchSampler | None
    shifted: ShiftedSource | None
    test: PatchSampler | None
    unlabelled: PatchSampler | None
    adaptation: PatchSampler | None
    patch_size: int
    pair_source: str
    sha256: dict[str, str]
    common: Common
    resampling: dict[str, str]
    said: dict[str, str]
    preprocessing: list[str]

    @property
    def task(self) -> Task:
        return Task(self.source.bands, self.source.n_classes, self.patch_size)


def choose_device(gpu: int, precision: str = "float32", deterministic: bool = False) -> torch.device:
    """CUDA device number `gpu`, or the CPU for -1 and where there is no GPU, which the log says.

    The CUDA device becomes the current one, and computes in IEEE float32 but for precision 'tf32'.  `deterministic`: it
    takes algorithms alone that give the same bits every time, and complains where there is none.
    """
    if gpu < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        log.info("No GPU was found: running on the CPU (%d threads).", torch.get_num_threads())
        return torch.device("cpu")
    if gpu >= torch.cuda.device_count():
        raise ConfigError(f"gpu {gpu} does not exist; this machine has {torch.cuda.device_count()} (0 is the first).")
    torch.cuda.set_device(gpu)                   # else libraries take memory on device 0, too
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")          # cuBLAS reads it when it is loaded
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False              # every kernel here writes all of it
    return torch.device("cuda", gpu)


def read_scene(config: TrainConfig, name: str) -> Scene:
    """The scene of this name, or of this scene file.  Hot pixels are warned of."""
    scene = load_scene_or_simulate(located(name, config.data_path), config.data_path, *astuple(config.simulation))
    warn_of_hot_pixels(scene)
    return scene


def data_digests(config: TrainConfig) -> dict[str, str]:
    """What `Data.sha256` would be, without reading the scenes.  Raises SceneNotFoundError."""
    found = {}
    for role, name in (("source", config.source_name), ("target", config.target_name)):
        if name:
            name = located(name, config.data_path)
            folder = scene_folder(name, config.data_path, *astuple(config.simulation))
            found |= {f"{role}/{file}": digest for file, digest in scene_digests(name, folder).items()}
    return found


def load_data(config: TrainConfig, device: torch.device, rng: np.random.Generator, common: Common | None = None) -> Data:
    """Read both scenes, bring them to one footing (that of a run that is there already, or their own), split the source,
    put both cubes on the device."""
    *pair, common, resampling = read_pair(config, common)
    source, target = own_halves(*pair, config, rng) if config.ceiling else pair
    split = split_scene(source, config.training_sample_ratio, config.split, config.patch_size, rng, not config.ceiling,
                        config.samples_per_class)
    labelled, adapts = bool(target and target.labels.any()), method_class(config.method).uses_target
    test = target_cube = target_before = None
    if target and (labelled or config.validators or adapts):
        target_cube, target_before = place_corrected(unit_spectra(target.cube), config, device)
    if labelled:
        test = PatchSampler(target_cube, *labelled_pixels(target.labels), config.patch_size, config.backend)
    if config.oracle and test is None:
        raise ConfigError(f"oracle scores the target every epoch, but {target.name} has no labelled pixel.")
    n_target = len(test) if test else None
    repeat = ceiling_repeat(*pair, config, len(split.train)) if config.ceiling else \
        index_repeat(config, len(split.train) + len(split.val), n_target)
    spectra = unit_spectra(source.cube)
    mixture = mixture_of(spectra, split.train, split.train_labels, config.reference_branch, config.reference_pixels) \
        if config.reference_branch and config.scene_correction != NONE else None
    cube, before = place_corrected(spectra, config, device, mixture)
    unit = before[0] if before else cube
    train = PatchSampler(cube, split.train, split.train_labels, config.patch_size, config.backend, repeat,
                         before=before, scales=source_scales(source, unit, config, device),
                         balanced=config.balanced_batches == "on", physical=physical_augmentation(config))
    val = shifted = None
    if len(split.val):
        val, held_out = (PatchSampler(seen, split.val, split.val_labels, config.patch_size, config.backend)
                         for seen in (cube, unit))
        shifted = ShiftedSource(held_out, source, config.scene_correction)
    if target_before:
        warn_of_statistics(target, target_before[1].reference, before[1].reference.spread)
    log.info("%s: %d training and %d validation pixels, index list ×%d%s", source.name, len(train), len(split.val),
             repeat, f"; {target.name}: {n_target or 0} labelled pixels, sealed until the end" if target else "")
    unlabelled = spread_sampler(target, target_cube, config, UNLABELLED_PIXELS) if config.validators else None
    adaptation = spread_sampler(target, target_cube, config, before=target_before) if adapts else None
    return Data(source, target, train, val, shifted, test, unlabelled, adaptation, config.patch_size, pair[0].name,
                pair_digests(*pair), common, resampling, pair_said(config),
                preprocessing(config))


def read_pair(config: TrainConfig, common: Common | None = None
              ) -> tuple[Scene, Scene | None, Common, dict[str, str]]:
    """Source and target (None where there is none) with common bands and classes, these, and how each was resampled.
    Raw values are resampled, before a scene is divided by its maximum."""
    source = read_scene(config, config.source_name)
    target = read_scene(config, config.target_name) if config.target_name else None
    common = common or Common.of_pair(source, target, config.bands)
    resampling = {role: way(scene, common.grid) for role, scene in (("source", source), ("target", target)) if scene}
    source, target = common.bring(source), target and common.bring(target)
    if target:
        check_patch(target, config.patch_size)
        if target.sha256 == source.sha256 and not config.ceiling:
            log.warning("Source and target are the same files: the target's scores include training pixels.")
    check_learnable(source)
    check_patch(source, config.patch_size)
    return source, target, common, resampling


def pair_said(config: TrainConfig) -> dict[str, str]:
    """What the scene files say, as digests: source/key and target/key."""
    return {f"{role}/{key}": digest for role, name in (("source", config.source_name), ("target", config.target_name)) if name
            for key, digest in description_digests(located(name, config.data_path)).items()}


def preprocessing(config: TrainConfig) -> list[str]:
    """What happens to a scene's values, in this order."""
    return ["resampled to the run's wavelengths where its own differ", "divided by the scene's maximum",
            "each spectrum divided by its norm", f"scene correction: {config.scene_correction}"]


def pair_digests(source: Scene, target: Scene | None) -> dict[str, str]:
    """source/file and target/file -> digest."""
    return {f"{role}/{name}": digest for role, scene in (("source", source), ("target", target)) if scene
            for name, digest in scene.sha256.items()}


def own_halves(source: Scene, target: Scene, config: TrainConfig, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """The target twice, under the source's classes, with the half of its labels that a ceiling trains on and with the
    half that it is scored on."""
    trained, scored = split_halves(replace(target, class_names=source.class_names), config.patch_size, rng)
    log.info("A ceiling: trained on one half of the labels of %s, scored on the other; %s is not trained on.",
             target.name, source.name)
    return trained, replace(scored, class_names=target.class_names)


def ceiling_repeat(source: Scene, target: Scene, config: TrainConfig, n_train: int) -> int:
    """How often a ceiling's index list of n_train pixels is repeated, so that its epochs have no fewer steps than those
    of a run on the source."""
    n_source, n_target = ((scene.labels > 0).sum() for scene in (source, target))
    once = config.training_sample_ratio * n_source
    return math.ceil(once * index_repeat(config, n_source, n_target) / n_train)


def index_repeat(config: TrainConfig, n_source: int, n_target: int | None) -> int:
    """How often the source's index list is repeated, by the protocol: a sealed one leaves the n_target labelled target
    pixels out of the rule, as if there were none."""
    counted = None if config.protocol == SEALED else n_target
    return source_repeat(n_source, counted, config.training_sample_ratio, config.re_ratio)


def physical_augmentation(config: TrainConfig) -> PhysicalBranch | None:
    """Gain and admixture of the training patches; None where both are off."""
    if config.gain_augmentation == config.admixture_augmentation == 0:
        return None
    return PhysicalBranch(config.gain_augmentation, config.admixture_augmentation)


def source_scales(source: Scene, unit: Tensor, config: TrainConfig, device: torch.device) -> list[tuple[float, Tensor]]:
    """Factors of the ground sampling distance for the resolution branch, and the source's unit spectra at each."""
    if config.resolution_branch <= 1:
        return []
    if round(config.resolution_branch * (config.patch_size // 2)) > min(source.shape):
        raise ConfigError(f"Patches of {config.patch_size}×{config.patch_size} pixels, {config.resolution_branch:g} "
                          f"times as large, do not fit into {source.name} ({source.shape[0]}×{source.shape[1]}). Choose "
                          "a smaller --resolution_branch.")
    return [(factor, unit if factor <= 1 else place(unit_spectra(blurred(source.cube, factor)), device))
            for factor in factors(config.resolution_branch)]


def place_corrected(spectra: np.ndarray, config: TrainConfig, device: torch.device, mixture: Mixture | None = None
                    ) -> tuple[Tensor, tuple[Tensor, Correction] | None]:
    """Unit spectra [H, W, B] on the device as [B, H, W], after the scene correction, and before it with the correction
    itself; None for the latter where there is none.  mixture: for the reference branch."""
    if config.scene_correction == NONE:
        return place(spectra, device), None
    reference = reference_of(spectra)
    correction = Correction(config.scene_correction, reference, device, mixture)
    return place(corrected(spectra, config.scene_correction, reference), device), (place(spectra, device), correction)


def scene_sampler(scene: Scene, config: TrainConfig, device: torch.device, reference: Reference | None = None
                  ) -> PatchSampler:
    """A sampler of all labelled pixels of a scene, corrected by its own statistics or by those given."""
    return PatchSampler(place(preprocess(scene.cube, config.scene_correction, reference), device),
                        *labelled_pixels(scene.labels), config.patch_size, config.backend)


def warn_of_statistics(scene: Scene, reference: Reference, source_spread: float | None) -> None:
    if why := doubts(reference, source_spread):
        log.warning("%s: its mean spectrum is not to be trusted: %s. Take it from a larger scene of the same flight: "
                    "--statistics_from (evaluate, predict).", scene.name, why)


def spread_sampler(scene: Scene, cube: Tensor, config: TrainConfig, most: int | None = None,
                   before: tuple[Tensor, Correction] | None = None) -> PatchSampler:
    """A sampler of all pixels that hold data, or at most so many, evenly spread over them; it reads no label, not even
    which pixels have one.

    cube [B, H, W]: the preprocessed scene on the device; before: see PatchSampler.
    """
    centres = np.argwhere(scene.cube.any(axis=2))
    if most is not None:
        centres = centres[np.linspace(0, len(centres) - 1, min(len(centres), most)).round().astype(np.int64)]
    return PatchSampler(cube, centres, np.zeros(len(centres), np.int64), config.patch_size, config.backend,
                        before=before)


def build_method(config: TrainConfig, task: Task, streams: Streams, device: torch.device,
                 adaptation: PatchSampler | None = None) -> Method:
    """The method with freshly initialised networks on the device.  One that adapts gets its target patches, augmented
    as the source's are, from `adaptation`."""
    method = method_class(config.method)(task, config, streams).to(device)
    if adaptation is not None:
        method.draw_target = partial(adaptation.draw, rng=streams.target, augmentation=augmentation(config))
    return method


def augmentation(config: TrainConfig) -> Augmentation:
    return Augmentation(config.flip_augmentation, config.radiation_augmentation, config.mixture_augmentation)


def backend_of(config: TrainConfig, device: torch.device) -> str:
    return resolve_backend(config.backend, device)

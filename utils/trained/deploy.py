"""A trained classifier as one file for other programs, ONNX or PyTorch's exported program: what a patch goes through is
inside, and the file is checked against the run before it is kept."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.correction import NONE, against, reference_of
from datasets.harmonize import unit_spectra
from model.errors import ConfigError, UserError
from model.files import replacing
from model.methods import Method
from utils.trained.load import Trained

INSTALL = "pip install onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0"
BATCHES = (1, 5)          # patches that the file is checked with
LARGEST_ERROR = 1e-3      # of a logit, of the largest one


class Deployed(nn.Module):
    """Patches as a scene's file holds them -> logits: unit spectra, the scene correction, the network.

    patches          [N, B, P, P] float32, in any unit of one scale per pixel; zero where there is no data; beyond the
                     scene's edge mirrored, the edge pixel repeated
    mean, deviation  [B] float32, with a scene correction alone: of the unit spectra of the scene's pixels with data
    -> [N, K] float32
    """

    def __init__(self, network: nn.Module, correction: str):
        super().__init__()
        self.network, self.correction = network, correction

    def forward(self, patches: Tensor, mean: Tensor | None = None, deviation: Tensor | None = None) -> Tensor:
        peak = patches.abs().amax(1, keepdim=True)              # so that no square is too large or too small
        scaled = patches / torch.where(peak > 0, peak, 1.0)
        norm = scaled.square().sum(1, keepdim=True).sqrt()
        x = scaled / torch.where(norm > 0, norm, 1.0)
        return self.network(x if self.correction == NONE else against(x, self.correction, mean[None], deviation))


def deployable(method: Method) -> bool:
    """Whether the method's answer is its network's on one patch."""
    return type(method).predict is Method.predict and any(True for _ in method.discriminator.parameters())


def write(trained: Trained, path: Path, kind: str) -> float:
    """Write a run's classifier as 'onnx' or 'pt2'; returns the largest difference of a logit from the run's own, as a
    share of the largest logit.

    trained: with the backend 'reference', whose operations other programs know.  Nothing is written where the file
    would answer otherwise than the run.  Raises ConfigError if the method cannot be written or a package is missing,
    UserError if the answers differ, OSError.
    """
    if not deployable(trained.method):
        raise ConfigError(f"method '{trained.config.method}' classifies with more than a network on a patch; there is "
                          "no such file of it.")
    network = Deployed(trained.method.discriminator.eval(), trained.config.scene_correction)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        with _quiet():
            answer = WRITERS[kind](network, _example(trained, 2), made)
        error = max(_difference(trained, answer, n) for n in BATCHES)
        if not error < LARGEST_ERROR:
            raise UserError(f"The file's logits differ from the run's by {error:.1e} of the largest one; it was not "
                            "kept.")
        with replacing(path) as file:
            file.write(made.read_bytes())
    return error


Answer = Callable[..., np.ndarray]         # the inputs of Deployed as arrays -> logits [N, K]


def _write_pt2(network: Deployed, example: tuple[Tensor, ...], path: Path) -> Answer:
    torch.export.save(_exported(network, example), path)
    program = torch.export.load(path).module()
    return lambda *inputs: program(*map(torch.from_numpy, inputs)).detach().numpy()


def _write_onnx(network: Deployed, example: tuple[Tensor, ...], path: Path) -> Answer:
    try:
        import onnxruntime
        import onnxscript                                    # noqa: F401 # torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"--format onnx needs the packages onnx, onnxscript and onnxruntime: {INSTALL}") from error
    names = ["patches", "mean", "deviation"][:len(example)]
    program = torch.onnx.export(_exported(network, example), input_names=names, output_names=["logits"], dynamo=True,
                                verbose=False)
    program.save(path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(names, inputs)))[0]


WRITERS: dict[str, Callable[[Deployed, tuple[Tensor, ...], Path], Answer]] = {"onnx": _write_onnx, "pt2": _write_pt2}


def _exported(network: Deployed, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim("batch", min=1)}, *[None] * (len(example) - 1))
    return torch.export.export(network, example, dynamic_shapes=sizes, strict=False)


def _example(trained: Trained, n: int) -> tuple[Tensor, ...]:
    """n made-up patches, one pixel of each without data, and with a scene correction statistics of theirs."""
    task, rng = trained.task, np.random.default_rng(n)
    patches = rng.uniform(50, 4000, (n, task.bands, task.patch_size, task.patch_size)).astype(np.float32)
    patches[:, :, 0, 0] = 0
    inputs = [patches]
    if trained.config.scene_correction != NONE:
        reference = reference_of(_spectra(patches))
        inputs += [reference.mean, reference.deviation]
    return tuple(map(torch.from_numpy, inputs))


def _spectra(patches: np.ndarray) -> np.ndarray:
    """Unit spectra of patches [N, B, P, P] as a cube [N·P, P, B], by the program's own preprocessing."""
    n, bands, size, _ = patches.shape
    return unit_spectra(patches.transpose(0, 2, 3, 1).reshape(n * size, size, bands))


def _difference(trained: Trained, answer: Answer, n: int) -> float:
    """The largest difference between the file's logits and the run's own for n patches, as a share of the largest."""
    inputs = [value.numpy() for value in _example(trained, n)]
    cube = _spectra(inputs[0])
    size, bands = cube.shape[1:]
    x = torch.from_numpy(cube.reshape(n, size, size, bands).transpose(0, 3, 1, 2).copy())
    if trained.config.scene_correction != NONE:
        mean, deviation = map(torch.from_numpy, inputs[1:])
        x = against(x, trained.config.scene_correction, mean[None], deviation)
    ours = trained.method.predict(x).numpy()
    return float(np.abs(answer(*inputs) - ours).max() / np.abs(ours).max())


@contextmanager
def _quiet():
    """Without what PyTorch's exporters say of themselves."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)

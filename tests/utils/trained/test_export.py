"""Classifiers as files for other programs: they answer as `predict` does, from the values in the scene's file (ONNX:
tests/test_own_scenes.py)."""

import numpy as np
import pytest
import torch

import main
from datasets.harmonize import preprocess
from model.errors import UserError
from utils.run.predict import scene_probabilities
from utils.trained import deploy
from utils.trained.load import load_run

PIXELS = [(0, 0), (0, 7), (11, 3), (30, 40)]            # edges among them


def answers_of_predict(run, scene):
    """Probabilities [N, K] of the pixels, by the whole-scene path."""
    trained = load_run(run, gpu=-1)
    cube = preprocess(scene.cube, trained.config.scene_correction)
    found = scene_probabilities(trained.method, cube, 5, trained.device, trained.config.backend, progress=False)
    return np.stack([found[pixel] for pixel in PIXELS])


def raw_patches(scene):
    """[N, B, 5, 5] as the file holds them, mirrored beyond the edge."""
    padded = np.pad(scene.cube, ((2, 2), (2, 2), (0, 0)), "symmetric")
    return np.stack([padded[r:r + 5, c:c + 5].transpose(2, 0, 1) for r, c in PIXELS])


def softmax(logits):
    return torch.as_tensor(logits).softmax(1).numpy()


@pytest.mark.slow
def test_a_program_of_pytorch_answers_as_predict_does(trained, scenes, tmp_path, capsys):
    run, path = trained("--method", "erm"), tmp_path / "of.pt2"
    assert main.main(["export", "--run", str(run.path), "--format", "pt2", "--out", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(path), str(tmp_path / "of.md")]
    program = torch.export.load(path).module()
    expected = answers_of_predict(run, scenes[1])
    for n in (4, 1):                                    # any number of patches
        logits = program(torch.from_numpy(raw_patches(scenes[1])[:n])).detach()
        np.testing.assert_allclose(softmax(logits), expected[:n], atol=1e-5)
    card = (tmp_path / "of.md").read_text()
    score = run.evaluation_of("last")
    assert f"{100 * score['target']['kappa']:.1f}" in card and f"{100 * score['source_val']['kappa']:.1f}" in card
    assert ", ".join(scenes[1].class_names) in card and "`mean`" not in card and "rule last" in card


def test_a_file_that_answers_otherwise_is_not_kept(trained, tmp_path, monkeypatch, capsys):
    run, path = trained("--method", "erm"), tmp_path / "of.pt2"
    monkeypatch.setitem(deploy.WRITERS, "pt2", lambda *_: lambda *inputs: np.ones((len(inputs[0]), 7)))
    assert main.main(["export", "--run", str(run.path), "--format", "pt2", "--out", str(path)]) == 2
    assert "differ from the run's" in capsys.readouterr().err and not list(tmp_path.glob("of*"))
    with pytest.raises(UserError):
        deploy.write(load_run(run, gpu=-1), path, "pt2")


def test_a_method_without_a_network_is_refused(trained, tmp_path, capsys):
    run = trained("--method", "svm")
    assert main.main(["export", "--run", str(run.path), "--format", "onnx", "--out", str(tmp_path / "of.onnx")]) == 2
    assert "method 'svm'" in capsys.readouterr().err and not list(tmp_path.glob("of*"))

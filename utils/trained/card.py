"""The model card of an exported classifier (after Mitchell et al., Model Cards for Model Reporting, FAT* 2019)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from datasets.correction import NONE
from utils.run.folder import run_label
from utils.run.metrics import SCORES
from utils.run.selection import rule_words
from utils.text import MISSING, markdown, shown
from utils.trained.load import Trained

INPUTS = {"onnx": "`patches`, and where named below `mean` and `deviation`; output `logits` (ONNX Runtime: "
                  "`session.run(None, {...})`)",
          "pt2": "the arguments of `torch.export.load(FILE).module()` in this order; it returns the logits"}


def model_card(trained: Trained, rule: str, file: str, kind: str, error: float) -> str:
    """Markdown: what the file computes from what, what it was trained on, its scores, its limits.

    rule: whose weights these are.  error: between the file's logits and the run's, as a share of the largest one.
    """
    about, config = trained.run.read_run(), trained.config
    parts = [f"# {shown(file)}", _what(trained, about, rule), "## Input and output", _inputs(trained, about, kind),
             "## Scores", _scores(trained, rule), "## Limits", _limits(trained),
             "## Where it comes from",
             f"Run `{trained.run.path.name}`, seed {config.seed}, commit {about.get('git') or 'unknown'}, versions "
             + ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
             + f". The logits were compared with the run's: they differ by at most {error:.1e} of the largest one.",
             "The program does not know under which licence the training scene may be used: ask who made it."]
    return "\n\n".join(parts) + "\n"


def _what(trained: Trained, about: dict[str, Any], rule: str) -> str:
    source = shown(str(about.get("source") or trained.config.source_name))
    epoch = trained.saved["state"]["selected"][rule]["epoch"]
    return (f"Classifies the centre pixel of a hyperspectral patch. {shown(run_label(trained.config))}, trained on "
            f"{source}, epoch {epoch}, {rule_words(rule)}.")


def _inputs(trained: Trained, about: dict[str, Any], kind: str) -> str:
    task, size = trained.task, trained.task.patch_size
    lines = [f"File of kind `{kind}`: {INPUTS[kind]}.",
             f"- `patches` [N, {task.bands}, {size}, {size}] float32, N free: the scene's values around the pixel, in any "
             "unit of one scale for all bands; 0 where there is no data. Beyond the scene's edge it is mirrored, the "
             "edge pixel repeated. Division by the norm is inside."]
    if trained.config.scene_correction != NONE:
        lines.append(f"- `mean`, `deviation` [{task.bands}] float32: mean and standard deviation of the scene's unit "
                     "spectra (each pixel's spectrum divided by its norm), over all pixels with data. They are of the "
                     f"scene that is mapped, not of the one trained on (correction `{trained.config.scene_correction}`).")
    lines.append(f"- `logits` [N, {task.n_classes}]: the largest one is the class, softmax gives probabilities. Classes in "
                 f"order: {', '.join(map(shown, trained.class_names))}.")
    if waves := about.get("wavelengths"):
        lines.append(f"- Bands (nm): {', '.join(f'{wave:.1f}' for wave in waves)}.")
    else:
        lines.append("- Bands: those of the training scene, in its order; their wavelengths are not known.")
    return "\n".join(lines[:1] + [""] + lines[1:])


def _scores(trained: Trained, rule: str) -> str:
    run = trained.run
    if not run.evaluation.exists():
        return "The run has not been scored yet."
    entry, about = run.evaluation_of(rule), run.read_run()
    found = {"held-out pixels of the training scene": entry.get("source_val"),
             f"target {about.get('target')}": entry.get("target")}
    rows = {name: {title: f"{100 * score[key]:.1f}" if key in score else MISSING for key, title in SCORES.items()}
            for name, score in found.items() if score}
    if not rows:
        return "No pixel was held out, and no target was scored."
    table = markdown(pd.DataFrame.from_dict(rows, orient="index"), "percent")
    return f"{table}\n\nOne run, {rule_words(rule)}. Pixels of the training scene are neighbours of those trained on: \
their score says that the classes were learnt, not how a new scene fares."


def _limits(trained: Trained) -> str:
    lines = ["- It knows the classes above alone. Whatever else a scene holds is given one of them.",
             f"- It was trained on one scene, of one sensor, one flight and one season, and sees {trained.task.patch_size} × "
             f"{trained.task.patch_size} pixels of that scene's pixel size.",
             "- Brightness is divided out: surfaces that differ by it alone are not told apart."]
    if trained.config.scene_correction != NONE:
        lines.append("- A scene that is small or shows one kind of surface has a poor mean spectrum; take that of a larger "
                     "scene of the same flight.")
    return "\n".join(lines)

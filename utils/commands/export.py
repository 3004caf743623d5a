"""The command export: trained weights as files for other programs, or as the released code leaves them behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional

from datasets.correction import NONE
from model.discriminator import Discriminator
from model.errors import ConfigError
from utils.released import leavings, weights
from utils.run.flags import Parser
from utils.run.folder import RunFolder, open_run
from utils.run.selection import EVERY_RULE, LAST
from utils.text import write_text
from utils.trained import deploy
from utils.trained.card import model_card
from utils.trained.load import load_run

log = logging.getLogger(__name__)

RELEASED = "released"
NAMES = {RELEASED: "best.pth", "onnx": "classifier.onnx", "pt2": "classifier.pt2"}


def export_parser() -> Parser:
    parser = Parser("export", export.__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--format", choices=list(NAMES), default=RELEASED,
                        help="'onnx' or 'pt2' (PyTorch's exported program): preprocessing and network in one file, with "
                             "a model card; 'released': best.pth with {'Discriminator': state_dict} under the released "
                             "code's names, its settings.txt, and its train_log.txt where the target was scored")
    parser.add_argument("--rule", choices=[rule.name for rule in EVERY_RULE], default=LAST.name,
                        help="selection rule; the released code's is oracle")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help=f"file to write; default: {', '.join(NAMES.values())} in the run folder. What goes with it "
                             "lies beside it")
    return parser


def export(words: list[str]) -> None:
    """Write a run's classifier for other programs, with a model card, or what the released code leaves behind."""
    choice = export_parser().parse_args(words)
    run = open_run(choice.run)
    path = choice.out or run.path / NAMES[choice.format]
    try:
        written = _released(run, choice.rule, path) if choice.format == RELEASED else \
            _deployed(run, choice.rule, path, choice.format)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
    print("\n".join(map(str, written)))


def _deployed(run: RunFolder, rule: str, path: Path, kind: str) -> list[Path]:
    """The classifier as one file, and its card."""
    trained = load_run(run, rule, gpu=-1, backend="reference", precision="float32")
    error = deploy.write(trained, path, kind)
    log.info("Checked: its logits differ from the run's by at most %.1e of the largest one.", error)
    card = path.with_suffix(".md")
    write_text(card, model_card(trained, rule, path.name, kind, error))
    return [path, card]


def _released(run: RunFolder, rule: str, path: Path) -> list[Path]:
    """best.pth, settings.txt, and train_log.txt where the target was scored."""
    trained = load_run(run, rule, gpu=-1)
    if type(trained.method.discriminator) is not Discriminator:
        raise ConfigError(f"{run.path}: method '{trained.config.method}' classifies with something else than the "
                          "released code's discriminator; there is nothing to export.")
    if trained.config.scene_correction != NONE:
        log.warning("These weights see spectra after --scene_correction %s, which the released code does not do.",
                    trained.config.scene_correction)
    texts = {path.with_name("settings.txt"): leavings.settings_text(trained.config)}
    if run.evaluation.exists() and "target" in (entry := run.evaluation_of(rule)):
        done = run.read_run().get("status") == "done"
        texts[path.with_name("train_log.txt")] = leavings.train_log_text(entry, done)
    weights.export(path, trained.method.discriminator.state_dict())
    for file, content in texts.items():
        write_text(file, content)
    return [path, *texts]

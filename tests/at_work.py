"""Commands over finished runs in a folder of the test's own, and what a fault must leave of the files there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from model.files import PART
from original_files import write_houston
from utils.run import checkpoint
from utils.run.folder import RunFolder
from utils.run.lock import LOCK

PAGE = "a page\n<!-- out/pairs -->\n<!-- /out/pairs -->\nits middle\n<!-- out/scores -->\n<!-- /out/scores -->\n" \
       "<!-- out/selection -->\n<!-- /out/selection -->\n<!-- out/norms -->\n<!-- /out/norms -->\nits end\n"


@dataclass(frozen=True)
class Place:
    """A folder with two finished runs, a page, the originals of a pair, and the folder `out`."""

    folder: Path
    run: RunFolder
    other: RunFolder

    @classmethod
    def made(cls, folder: Path, train_once: Callable[..., RunFolder]) -> Place:
        runs = [train_once("--recipe", "paper", "--oracle", "true"), train_once("--method", "erm")]
        copies = [RunFolder(shutil.copytree(run.path, folder / "runs" / run.path.name)) for run in runs]
        (folder / "out").mkdir()
        (folder / "page.md").write_text(PAGE)
        write_houston(folder / "originals")
        return cls(folder, *copies)

    def words(self, command: str) -> list[str]:
        """What makes files in `out`, the page or a run folder again from the start whenever it is asked to."""
        runs, run, out, page = (str(path) for path in (self.folder / "runs", self.run.path, self.folder / "out",
                                                       self.folder / "page.md"))
        return {"predict": ["predict", "--run", run, "--out", f"{out}/map.tif"],
                "export": ["export", "--run", run],
                "figures": ["figures", run],
                "gallery": ["figures", runs, "--layout", "maps", "--out", out],
                "tables": ["tables", runs, "--out", out, "--insert", page],
                "compare": ["compare", run, str(self.other.path), "--out", out],
                "report": ["report", runs, "--out", out],
                "study": ["study", run, "--out", out, "--insert", page],
                "trust": ["trust", "--run", run, "--out", out],
                "describe": ["describe", f"{self.folder}/originals/Houston13.mat", "--out", out],
                "prepare": ["prepare", "houston", "--from", f"{self.folder}/originals", "--out", out, "--overwrite"],
                }[command]


AGAIN = ("predict", "export", "figures", "gallery", "tables", "compare", "study", "report", "prepare", "describe",
         "trust")


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file's bytes; locks hold none."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK}


def make_old(before: dict[Path, bytes], made: dict[Path, bytes]) -> dict[Path, bytes]:
    """Put other bytes, as of older ones, in the place of the files that a command has made, and put those back that it
    has changed; gives all files' bytes then."""
    old = {path: b"{}" if path.suffix == ".json" else b"old" for path in made} | before
    for path in made:
        path.write_bytes(old[path])
    return old


def write_sweep_file(path: Path, words: list[str], save_path: Path, **entries) -> None:
    """A sweep with one seed, whose settings are those of a command line."""
    settings = {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(words[::2], words[1::2])}
    content = {"config": [], "settings": settings, "seeds": [0], "variants": [{}], "save_path": str(save_path)}
    path.write_text(yaml.safe_dump(content | entries))


def parts(folder: Path) -> list[Path]:
    """Files in the making."""
    return list(folder.rglob(f".*{PART}"))


def bits(run: RunFolder) -> dict:
    """All that a run has made, but for seconds."""
    saved = checkpoint.load(run.checkpoint)
    records = {path.name: [{key: value for key, value in record.items() if key != "seconds"}
                           for record in run.records(path)] for path in (run.epochs, run.diagnostics)}
    return {"method": saved["method"], "streams": saved["streams"], "selected": saved["state"]["selected"],
            "records": records, "evaluation": json.loads(run.evaluation.read_text())}


def told_in_one_line(code: int, said: str) -> bool:
    """Whether the last words are one line of ours."""
    return code == 2 and "Traceback" not in said and "Error: " in said.strip().splitlines()[-1]

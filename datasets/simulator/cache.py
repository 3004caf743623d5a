"""The embedded simulated pair on disk: written once per severity, seed, gap and version of the simulator."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from datasets.readers import DATA_ROOT, find_description, load_scene, read_description
from datasets.scene import Scene
from datasets.simulator.simulate import write_pair
from model.errors import ConfigError

PART = ".writing-"           # what the name of a pair in the making begins with


def load_scene_or_simulate(name: str, data_path: str | None, severity: float, simulation_seed: int,
                           gap: str = "fixed") -> Scene:
    """A scene by name; the embedded simulated ones are written to disk first where they are missing."""
    return load_scene(name, scene_folder(name, data_path, severity, simulation_seed, gap))


def scene_folder(name: str, data_path: str | None, severity: float, simulation_seed: int,
                 gap: str = "fixed") -> str | None:
    """The folder of a simulated scene's files, written first where it is missing; of any other scene, what was given.
    Raises ConfigError for a folder that holds other files than simulated pairs."""
    if not read_description(find_description(name)).simulated:
        return data_path
    root = Path(data_path) if data_path else DATA_ROOT / "Simulated"
    kind = "" if gap == "fixed" else f"{gap}_"
    folder = root / f"{kind}severity{severity:g}_seed{simulation_seed}_{simulator_version()}"
    if not folder.exists():
        if data_path and root.is_dir() and _others(root):
            raise ConfigError(f"--data_path {data_path} holds other files; the simulated pair is not written among them. "
                              "Leave --data_path out for it, or name a folder of simulated pairs, or an empty one.")
        _write_once(folder, severity, simulation_seed, gap)
    return str(folder)


def _others(root: Path) -> bool:
    """Whether a folder holds files, and no simulated pair, be it one that another process is writing."""
    names = [path.name for path in root.iterdir()]
    return bool(names) and not any("severity" in name or name.startswith(PART) for name in names)


def simulator_version() -> str:
    """Eight hex digits that change with the simulator's code, so that files of an older one are never read."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _write_once(folder: Path, severity: float, simulation_seed: int, gap: str) -> None:
    """Write the pair beside its place and move it there whole; of several processes the first one wins."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=PART) as part:
            write_pair(Path(part) / "pair", severity, simulation_seed, gap)
            (Path(part) / "pair").rename(folder)
    except OSError as error:
        if folder.exists():
            return
        raise ConfigError(f"The simulated pair cannot be written to {folder} ({error}). Choose a folder with "
                          "--data_path.") from error

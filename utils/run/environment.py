"""Where a run was made: versions, commit, device, memory."""

from __future__ import annotations

import platform
import subprocess                # nosec B404 # fixed words for the user's own git
import sys
from importlib import metadata
from typing import Any

import torch

from model.ops import cuda
from utils import process
from utils.run.folder import ROOT

PACKAGES = ("torch", "numpy", "scipy", "h5py", "scikit-learn", "mmcv-lite")
VERSION = ROOT / "VERSION"


def environment(device: torch.device, backend: str) -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, git commit, command line, device, backend."""
    return {"versions": {"python": platform.python_version()} | _versions(), "git": _git(), "command": sys.argv[1:],
            "platform": platform.platform(), "device": device_name(device), "backend": backend,
            "threads": torch.get_num_threads()}


def version() -> str:
    """S2AMSnet 0.9.0, commit 0123456789+ where it is known."""
    commit = _git()
    return f"S2AMSnet {VERSION.read_text().strip()}" + (f", commit {commit}" if commit else "")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | cuda.packages()


def _git() -> str | None:
    """The commit of the program, with '+' where tracked files differ from it; None outside a git checkout."""
    def ask(*words: str) -> subprocess.CompletedProcess:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True)       # nosec B603 # a list of words, no shell
    try:
        commit = ask("rev-parse", "HEAD")
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if ask("status", "--porcelain", "-uno").stdout.strip() else "")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process so far in MiB: the GPU's allocations on CUDA, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    return process.highest() / 2 ** 20

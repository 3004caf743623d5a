"""One run of a sweep on this machine: by one process at a time, and never longer than the process that asked for it.

Standard library only, as utils/run/lock.py.  Ray sends both modules by value to machines that may not see the
program's folder.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess                # nosec B404 # starts this Python with this program
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional

from utils.run.lock import INHERITED, POLL_SECONDS, locked

INTERRUPTED = 130                # main.py's exit code after Ctrl-C or a scheduler's stop
LOG = "log.txt"                  # file of a run folder
GUARD = "utils/sweep/guard.py"   # below main.py's folder


@dataclass(frozen=True)
class Run:
    """One run: its name and folder, the words of main.py that train it from the start, whether it would use a GPU."""

    name: str
    folder: str
    words: list[str]
    on_gpu: bool

    @property
    def done(self) -> bool:
        try:
            about = json.loads(Path(self.folder, "run.json").read_bytes())
        except (OSError, ValueError, RecursionError):      # a damaged one is named by the process that trains
            return False
        return isinstance(about, dict) and about.get("status") == "done"

    def arguments(self, gpu: Optional[int] = None) -> list[str]:
        """The words of main.py that bring the run to its end from where it is, on GPU number `gpu` if one is given."""
        words = ["--resume", self.folder] if Path(self.folder, "checkpoint.pt").exists() else \
            [*self.words, "--run_name", self.name]
        return ["train", *words, *([] if gpu is None else ["--gpu", str(gpu)])]


class ProcessLost(Exception):
    """The training process was killed or stopped by something else than this program: worth another try."""


def train(run: Run, program: str, environment: Mapping[str, str], gpu: Optional[int] = None,
          log: Optional[BinaryIO] = None, watch: Optional[Callable[[], None]] = None) -> int:
    """Bring a run to its end in a process of its own; returns the exit code, 0 where it is done already.

    Waits while another process works in the run folder.  The operating system gives the folder's lock back when the
    process that took it and the training process have both ended, however they did: no lock outlives its owners.

    program: path of main.py.  environment: variables set besides those of this process.  log: where the output goes.
    watch: is called now and then meanwhile.
    """
    with locked(Path(run.folder)) as lock:
        if run.done:
            return 0
        command = [sys.executable, program, *run.arguments(gpu)]
        guard = [sys.executable, "-I", str(Path(program).parent / GUARD), str(os.getpid())]
        variables = {**os.environ, **environment, INHERITED: str(lock.fileno())}
        with subprocess.Popen([*guard, *command], stdout=log, stderr=log,     # nosec B603 # a list of words, no shell
                              pass_fds=[lock.fileno()], env=variables) as process:
            return _wait(process, watch)


def train_logged(run: Run, program: str, environment: Mapping[str, str], gpu: Optional[int] = None,
                 watch: Optional[Callable[[str], None]] = None) -> tuple[int, str]:
    """`train` with its output appended to the run's log; returns the exit code and, in words, the log's last line.

    watch: is given the log's last line now and then meanwhile.
    """
    path = Path(run.folder, LOG)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        code = train(run, program, environment, gpu, log, watch and (lambda: watch(_last_line(path))))
    return code, f"{_last_line(path)} ({path})"


def _wait(process: subprocess.Popen, watch: Optional[Callable[[], None]]) -> int:
    """The exit code.  An interruption is passed on to the process, so that it can save and say how to go on."""
    try:
        while True:
            try:
                return process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if watch:
                    watch()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def train_there(run: Run, program: str, working_folder: str, mark: str, environment: Mapping[str, str],
                gpu: int) -> Optional[str]:
    """`train_logged` as a task on some machine; returns what went wrong, or None.

    Raises ProcessLost where another try, from the last checkpoint, may help.
    """
    problem = missing_there(program, working_folder, mark)
    if problem:
        return problem
    os.chdir(working_folder)
    code, words = train_logged(run, program, environment, gpu)
    if code < 0 or code == INTERRUPTED:
        raise ProcessLost(f"its process was stopped on {socket.gethostname()} (exit code {code}); {run.folder}/{LOG} "
                          "holds its output")
    return f"exit code {code}: {words}" if code else None


def missing_there(program: str, working_folder: str, mark: str) -> Optional[str]:
    """What this machine does not see of what the one that started the sweep does; None where it sees all.

    mark: a file that the sweep has just put into its --save_path.
    """
    for path, what in ((program, "the program"), (working_folder, "the folder the sweep was started in"),
                       (mark, "--save_path, or sees another folder under that name")):
        if not Path(path).exists():
            return f"{socket.gethostname()} does not see {what}: there is no {path} there"
    return None


def _last_line(log: Path) -> str:
    """The last line of a log that says something; a progress bar's updates count as lines."""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

"""Commands of main.py in processes of their own that start in milliseconds: forked from one that has it loaded.

That one only imports: a pool of threads that it had started would hang its children.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
from tqdm import tqdm

import main
from utils.commands import registry
from utils.figures import of_run
from utils.run.config import train_parser
from utils.sweep import guard, process

ROOT = Path(main.__file__).parent
HANGS = 600.0              # seconds that only end a test that hangs

LOADED_LATE = ["torch._dynamo", "model.s2amsnet", "model.methods.erm", "model.ops.cpu", "model.ops.norms_cpu",
               "model.ops.patches_cpu", "model.scan.cpu"]         # that a run loads when it begins

train_parser()             # made once, for all that are forked


@functools.cache
def server():
    """The context whose processes are forked.  What it loads first is found wherever the tests are started from."""
    context = get_context("forkserver")
    commands = [command.module for command in registry.COMMANDS.values()]
    context.set_forkserver_preload(["forked", *commands, *LOADED_LATE])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        forkserver.ensure_running()
    return context


class Started:
    """main.py in a process of its own, the first of a group, and what the group says on stderr.

    limit: bytes that no file may exceed, as on a full disk.  prepare: is called there first; it must be picklable.
    """

    def __init__(self, words: list[str], limit: int | None = None, prepare: Callable[[], object] | None = None):
        heard, speaking = server().Pipe(duplex=False)
        self.process = server().Process(target=_run, args=(words, speaking, limit, prepare))
        self.process.start()
        speaking.close()
        self._said: list[bytes] = []
        self._listening = threading.Thread(target=self._listen, args=(heard,))
        self._listening.start()

    def _listen(self, heard: Connection) -> None:
        while said := os.read(heard.fileno(), 65536):
            self._said.append(said)
        heard.close()

    def kill(self, group: bool = False) -> None:
        """SIGKILL, to the process or to its whole group."""
        try:
            (os.killpg if group else os.kill)(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:                         # it has no group yet, or has ended
            self.process.kill()

    def end(self) -> tuple[int, str]:
        """Exit code (-N after signal N) and what was said, when all that share its stderr have ended."""
        self.process.join(HANGS)
        self._listening.join(HANGS)
        assert not (self.process.is_alive() or self._listening.is_alive()), "it hangs"
        return self.process.exitcode, b"".join(self._said).decode()


def finish(words: list[str], **options) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    return Started(words, **options).end()


def own_locks() -> None:
    """tqdm's lock lies in memory that forked processes share: one that is killed with it would stop all others."""
    tqdm.set_lock(threading.RLock())


def _run(words: list[str], speaking: Connection, limit: int | None, prepare: Callable[[], object] | None) -> None:
    os.setsid()
    gc.freeze()                                            # or a collection would copy every page that it looks at
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    os.dup2(speaking.fileno(), 2)
    speaking.close()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    own_locks()
    of_run.SHEET_ROWS = 2                                  # of 8: a panel takes as long as a page of text
    process.subprocess = SimpleNamespace(Popen=_Forked, TimeoutExpired=subprocess.TimeoutExpired)
    if prepare:
        prepare()
    raise SystemExit(main.main(words))


class _Forked:
    """A sweep's training process, forked: of subprocess.Popen what utils/sweep/process.py uses.

    command: python, -I, guard, its parent, python, main.py, word, ...
    """

    def __init__(self, command: list[str], stdout: BinaryIO, stderr: BinaryIO, pass_fds: list[int],
                 env: dict[str, str]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                lowest = 3
                for kept in (*sorted(pass_fds), os.sysconf("SC_OPEN_MAX")):
                    os.closerange(lowest, kept)
                    lowest = kept + 1
                own_locks()
                os.environ.update(env)
                torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
                guard.end_with(int(command[3]))
                code = main.main(command[6:])
            finally:
                os._exit(code)

    def wait(self, timeout: float = HANGS) -> int:
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired("main.py", timeout)
            else:
                time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def __enter__(self) -> _Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

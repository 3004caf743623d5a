"""A script before the training process of a sweep: GUARD PARENT COMMAND ...  runs COMMAND, never longer than PARENT.

Standard library only; it is started without the program's folder.
"""

import ctypes
import os
import signal
import sys

INTERRUPTED = 130                # main.py's exit code after Ctrl-C or a scheduler's stop
_PR_SET_PDEATHSIG = 1            # linux/prctl.h


def end_with(parent: int) -> None:
    """Have this process stopped, as by a scheduler, as soon as its parent has ended, be it killed.  (Linux; elsewhere
    the lock makes the next process wait for this one.)"""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])      # Ray's workers block it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)   # stays over execv
    if os.getppid() != parent:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])              # nosec B606 # the words that `process.train` made, no shell

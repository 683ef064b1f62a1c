"""`python -m agentlightning.kit.leash PROGRAM …`: become that program, and be ended with whoever started it.

For programs of others, which do not notice that their parent was killed. On Linux the kernel sees to it; elsewhere
the program simply runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1


def leashed(command: list[str]) -> list[str]:
    """The command line that runs `command` on a leash."""
    return [sys.executable, "-m", "agentlightning.kit.leash", str(os.getpid()), *command]


def main() -> None:
    """Put the leash on, then run the program in place of this one."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)  # it was gone before the leash was on
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error}")


if __name__ == "__main__":
    main()

"""Ties a program's life and cores to what the launcher decided, then becomes that program.

    python -I -S leash.py PARENT_PID CORES PROGRAM ARGUMENT...      CORES: such as 0,1; empty leaves them alone

On Linux the kernel kills the program when its parent dies, however it dies, so that nothing is left behind by a SIGKILL
of the launcher. Cores are set before the program starts, so that every thread of every library gets them. A program of
its own, because code between fork and exec is not safe in a process that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Sets the death signal and the cores, and replaces itself by the program."""
    parent, cores, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if cores:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit(1)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()

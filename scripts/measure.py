"""Runs a program and says what it took; shared by the scripts of `make bench`."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

MIB = 1 << 20


class Run(NamedTuple):
    """One run of a program."""

    code: int
    output: str
    wall: float  # seconds
    cpu: float  # seconds, user and system
    resident: int  # bytes, at most
    anonymous: int  # bytes, at most, looked at every 2 ms


def once(command):
    """Runs it to its end."""
    file = tempfile.TemporaryFile()  # no pipe: nobody reads while it runs
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    anonymous = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        try:
            with open(f"/proc/{process.pid}/status") as lines:
                for line in lines:
                    if line.startswith("RssAnon:"):
                        anonymous = max(anonymous, int(line.split()[1]) * 1024)
        except OSError:
            pass
        time.sleep(0.002)
    wall = time.monotonic() - began
    file.seek(0)
    output = file.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return Run(code, output, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, anonymous)


def whole(command):
    """The same, of a program that must succeed."""
    run = once(command)
    if run.code != 0:
        sys.exit(f"error: {shlex.join(command)} ended with {run.code}; nothing is compared:\n{run.output}")
    return run


def row(what, ours, theirs, goal=None):
    ratio = ours / theirs
    verdict = "" if goal is None else f"   goal <= {goal}: {'met' if ratio <= goal else 'MISSED'}"
    return f"{what:<28} {ratio:6.2f}{verdict}"

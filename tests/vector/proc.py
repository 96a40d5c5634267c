"""Which processes there are, as the kernel tells."""

import os
from pathlib import Path


def descendants(pid=None):
    """Return the numbers of the processes that a process (by default this one) and its children have started."""
    parents = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if fields[0] != "Z":
            parents[int(name)] = int(fields[1])
    found = {pid or os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= more
    return sorted(found - {pid or os.getpid()})


def runs(pid):
    """Return whether a process is there, and not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

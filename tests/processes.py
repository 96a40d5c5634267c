"""What this process holds, and which processes it has started."""

import signal

import psutil


def descendants(pid=None):
    """Return the numbers of the processes that a process (by default this one) and its children have started."""
    children = psutil.Process(pid).children(recursive=True)
    return sorted(child.pid for child in children if runs(child.pid))


def runs(pid):
    """Return whether a process is there, and not only waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def handles():
    """Return how many handles are open."""
    return psutil.Process().num_fds()


def resident():
    """Return the bytes of memory that are held."""
    return psutil.Process().memory_info().rss


def take_interrupts() -> None:
    """Let SIGINT end this process, for ``preexec_fn``: what a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

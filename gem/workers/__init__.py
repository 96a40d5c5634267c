"""Other Python processes that call functions for this one.

For what may hang, crash, or depend on the process: a worker is killed when its time is up, and the next call starts
another. A worker is a fresh interpreter (not a fork of this process, which does not go together with threads), it
serves one call at a time, and it ends with the process that started it.

With ``fork``, that interpreter only imports what calls need, and a fork of it serves them: it has one thread, and a
fork is there in milliseconds, where the imports take seconds. The fork has a socket of its own to this process, since
one in the middle of a message is no good to its successor.

A worker may have read what a model wrote. So what it answers is JSON of a limited length, never a pickle.
"""

from gem.workers.pool import WorkerPool
from gem.workers.worker import CallFailed, CallNotSent, CallTimeout, NotReady, Worker

__all__ = ["CallFailed", "CallNotSent", "CallTimeout", "NotReady", "Worker", "WorkerPool"]

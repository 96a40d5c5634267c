"""ProcessVectorEnv: environments that are stepped in other processes.

For steps that compute, or that may take their process down. Each process holds several environments and is sent jobs in
batches. One that dies, or whose step takes longer than ``timeout`` and which is killed, is started again. The
environment that was being stepped has failed; the others in that process are brought back exactly as they were, from
their last saved state, or their seed, and what was done since; and steps that were not delivered are done again.

That takes environments that keep the contract of :mod:`gem.core`: the same seed and actions give the same episode, and
the state can be saved. One that returns something else when it is brought back fails too, with a reason.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from gem.core import Env
from gem.faults import error_text, is_from_user
from gem.vector import process_worker
from gem.vector.outcome import CRASH_LIMIT, StepOutcome, given_up, name_environment, refused
from gem.vector.process_handle import Past, WorkerHandle, pickle_builds, pickle_setup
from gem.vector.process_messages import KILL, NOT_SAVED, ORDER, Job
from gem.vector.slot import AutoresetMode
from gem.vector.vector_env import VectorEnv

CLOSE_SECONDS = 5.0
"""What closing waits for the steps that are under way, where there is no timeout."""


class ProcessVectorEnv(VectorEnv):
    """Steps environments in other processes.

    Args:
        env_ids: one id per environment, for people.
        env_fns: functions that build the environments; ``pickle`` must take them. Where they are defined in the script
            itself, it is imported by the other processes, as by :mod:`multiprocessing`.
        autoreset_mode: a mode, or its value.
        timeout: seconds that a step (with the reset that follows it) or a reset may take; None for no limit.
        workers: processes; None for one per core.
        memory_limit: bytes of address space that a process may take; None for no limit.

    Raises:
        TypeError: a function cannot be sent to other processes.
        RuntimeError: the environments cannot be built there.
    """

    def __init__(
        self,
        env_ids: Sequence[str],
        env_fns: Sequence[Callable[[], Env]],
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        timeout: float | None = None,
        workers: int | None = None,
        memory_limit: int | None = 4 << 30,
    ) -> None:
        super().__init__(env_ids, env_fns, autoreset_mode)
        if process_worker.is_starter:
            raise RuntimeError('a script that steps environments in processes needs `if __name__ == "__main__":`')
        self.timeout = timeout
        self._setup = pickle_setup(self.env_fns, self.autoreset_mode, memory_limit)
        self._pasts = [Past() for _ in range(self.num_envs)]
        self._seeds_given: dict[int, int] = {}
        self._next_look = 0.0
        self._number = 0
        self._selector = selectors.DefaultSelector()
        size = max(1, min(workers or _cores(), self.num_envs))
        self._workers = [WorkerHandle(range(first, self.num_envs, size)) for first in range(size)]
        self._begin_starter()
        try:
            for worker in self._workers:
                self._begin(worker)
            self._run("first", {index: name_environment(index, env_id) for index, env_id in enumerate(self.env_ids)})
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return a file descriptor that can be read from whenever something may be ready."""
        return self._selector.fileno()

    def close(self) -> None:
        """Close all environments, once the steps under way have ended; processes that take too long are killed."""
        super().close()
        if not self._stop.alive:
            return
        running = {worker.number for worker in self._workers}
        for worker in self._workers:
            self._post(worker, [Job(-1, "close", ())])
        deadline = time.monotonic() + (CLOSE_SECONDS if self.timeout is None else self.timeout)
        while running and (left := deadline - time.monotonic()) > 0:
            ended = self._exchange(left)[1]
            running = set() if ended is None else running - {number for number, _ in ended}
        self._selector.close()
        for worker in self._workers:
            worker.end()
        self._stop()

    def _begin_starter(self) -> None:
        self._control, theirs = socket.socketpair()
        code = "import sys; sys.path[:] = eval(sys.argv[1]); from gem.vector.process_worker import serve"
        with theirs:
            self._starter = subprocess.Popen(
                [sys.executable, "-c", f"{code}; serve(int(sys.argv[2]))", repr(sys.path), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        self._stop = weakref.finalize(self, _stop, self._control, self._starter, os.getpid())
        assert self._starter.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._starter.stdin as stdin:
            stdin.write(self._setup)
        if (answer := self._control.recv(1 << 16)) != b"\0":
            self._stop()
            reason = answer.decode(errors="replace") or "it ended"
            raise RuntimeError(f"the environments cannot be loaded in another process: {reason}")
        self._control.setblocking(False)
        self._selector.register(self._control, selectors.EVENT_READ)

    def _begin(self, worker: WorkerHandle) -> None:
        self._number += 1
        worker.begin(self._number, self._control)
        self._selector.register(worker.socket, selectors.EVENT_READ, worker)

    def start_calls(self, method: str, arguments: dict[int, Any]) -> None:
        """Start calls; see :meth:`VectorEnv.start_calls`."""
        batches: dict[int, list[Job]] = {}
        if method == "assign":
            method, arguments = "assign_pickled", {index: pickle_builds(build) for index, build in arguments.items()}
            for index in arguments:
                self._seeds_given.pop(index, None)
        for index, argument in arguments.items():
            if method == "reset" and argument is not None:
                self._seeds_given[index] = argument
            job = Job(index, method, (argument,))
            self._workers[index % len(self._workers)].jobs[index] = job
            batches.setdefault(index % len(self._workers), []).append(job)
        for number, jobs in batches.items():
            self._post(self._workers[number], jobs)

    def _post(self, worker: WorkerHandle, jobs: list[Job]) -> None:
        """Send jobs; what the socket does not take yet is sent when it does."""
        if worker.open:
            waiting = selectors.EVENT_READ if worker.post(jobs) else selectors.EVENT_READ | selectors.EVENT_WRITE
            if self._selector.get_key(worker.socket).events != waiting:
                self._selector.modify(worker.socket, waiting, worker)

    def finished_calls(self, seconds: float | None) -> dict[int, StepOutcome]:
        """Return the outcomes of calls that have returned; see :meth:`VectorEnv.finished_calls`."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            waits = [limit for limit in (left, self._kill_late()) if limit is not None]
            outcomes, ended = self._exchange(min(waits, default=None))
            outcomes += self._revive(ended)
            if outcomes or left == 0.0:
                return dict(outcomes)

    def _exchange(self, seconds: float | None) -> tuple[list[tuple[int, StepOutcome]], list[tuple[int, int]] | None]:
        """Send and receive; return outcomes, and number and status of processes that ended (None: the fork server)."""
        outcomes: list[tuple[int, StepOutcome]] = []
        ended: list[tuple[int, int]] | None = []
        for key, events in self._selector.select(seconds):
            worker = key.data
            if worker is None:
                data = self._control.recv(1 << 16)
                ended = list(ORDER.iter_unpack(data)) if data else None
                continue
            if events & selectors.EVENT_WRITE:
                self._post(worker, [])
            if events & selectors.EVENT_READ:
                outcomes += self._received(worker)
                if not worker.open:
                    self._selector.unregister(worker.socket)
        return outcomes, ended

    def _received(self, worker: WorkerHandle) -> list[tuple[int, StepOutcome]]:
        outcomes, again = [], []
        for index, data, saved in worker.receive():
            job = worker.jobs[index]
            worker.deaths = 0
            try:
                outcome = pickle.loads(data)
            except BaseException as error:
                if is_from_user(error):
                    raise
                self._pasts[index].add(job, None, saved)
                jobs, outcome = self._unreadable(worker, index, f"what it returned cannot be read: {error_text(error)}")
                again += jobs
            else:
                self._pasts[index].add(worker.jobs.pop(index), outcome, saved)
                worker.tries.pop(index, None)
            outcomes += [] if outcome is None else [(index, outcome)]
        self._post(worker, again)
        return outcomes

    def _unreadable(self, worker: WorkerHandle, index: int, error: str) -> tuple[list[Job], StepOutcome | None]:
        """Return what to do, and to deliver, in the place of a reply that cannot be read."""
        if worker.jobs[index].method != "call":
            return self._again(worker, index, error)
        del worker.jobs[index]
        return [], refused(RuntimeError(error))

    def _kill_late(self) -> float | None:
        """Kill the workers whose step takes too long; return the seconds until the next can."""
        if self.timeout is None:
            return None
        now = time.monotonic()
        if now < self._next_look:
            return self._next_look - now
        self._next_look = now + self.timeout
        for worker in self._workers:
            activity = worker.heartbeat.read()
            since = activity.since
            if worker.late is not None or not worker.jobs:
                continue
            if not activity.busy:  # it is about to begin one, unless the last environment keeps it from that
                since = max(since, worker.posted)
            if now < since + self.timeout:
                self._next_look = min(self._next_look, since + self.timeout)
            else:
                worker.late = activity
                with contextlib.suppress(ConnectionError):  # all have ended: the next exchange tells
                    self._control.send(ORDER.pack(KILL, worker.number))
        return self._next_look - now

    def _revive(self, ended: list[tuple[int, int]] | None) -> list[tuple[int, StepOutcome]]:
        """Start processes in the place of those that ended; return what they had sent, and what is given up."""
        alone = ended is not None
        if ended is None:  # and so have the workers
            self._selector.unregister(self._control)
            self._stop()
            ended = [(worker.number, signal.SIGKILL) for worker in self._workers]
            self._begin_starter()
        outcomes = []
        for number, status in ended:
            worker = next(worker for worker in self._workers if worker.number == number)
            registered = worker.open
            outcomes += self._received(worker)
            if registered:
                self._selector.unregister(worker.socket)
            failed = self._failed(worker, status, alone)
            worker.end()
            self.restarts += 1
            self._begin(worker)
            jobs = []
            for each in worker.indices:
                again, outcome = self._again(worker, each, failed.get(each))
                jobs += again
                outcomes += [(each, outcome)] if outcome else []
            self._post(worker, jobs)
        return outcomes

    def _failed(self, worker: WorkerHandle, status: int, alone: bool) -> dict[int, str]:
        """Return by which environments' fault a worker has ended, and how they failed.

        Args:
            worker: that has ended.
            status: of its process.
            alone: whether it has ended by itself, and not with all others because the fork server has.
        """
        activity = worker.heartbeat.read()
        at_fault, error = activity.busy and alone, worker.heartbeat.reason() or f"its process {_how(status)}"
        if worker.late is not None:  # it may have gone on to another before it was killed
            at_fault, error = activity == worker.late, f"no answer within {self.timeout:g} s"
        failed = {activity.env: error} if at_fault and activity.env >= 0 else {}
        if failed and activity.env in worker.jobs:
            return failed  # it is tried again for some times only
        worker.deaths = worker.deaths + 1 if worker.jobs else 0
        if worker.deaths <= CRASH_LIMIT:
            return failed
        worker.deaths = 0  # one of them does it, nobody knows which
        worker.tries = dict.fromkeys(worker.jobs, CRASH_LIMIT)
        return dict.fromkeys(worker.jobs, error)

    def _again(self, worker: WorkerHandle, index: int, error: str | None) -> tuple[list[Job], StepOutcome | None]:
        """Return the jobs that bring an environment back, or that replace it if its process ended by its fault."""
        past, job = self._pasts[index], worker.jobs.get(index)
        tries = worker.tries.get(index, 0)
        take_over = Job(index, "take_over", (past.build, self._seeds_given.get(index), self.faults[index] + tries))
        restore = Job(index, "restore", (past.saved, past.calls))
        if error is None:
            if job is None:
                return [take_over, restore], None
            if job.method in ("first", "assign_pickled", "replace"):  # which build it
                return [take_over, job], None
            if job.method == "reset" and job.arguments[0] is not None:  # to which it does not matter what was before
                restore = Job(index, "restore", (None, []))
            return [take_over, restore, job], None
        if job is None:
            past.saved = NOT_SAVED
            return [take_over, Job(index, "lose", (error,))], None
        if job.method == "first" and tries + 1 < CRASH_LIMIT:
            worker.tries[index] = tries + 1
            return [take_over, job], None
        if job.method != "assign_pickled" and tries + 1 < CRASH_LIMIT:
            begins = job.method == "reset" or (job.method == "replace" and job.arguments[2])
            worker.tries[index] = tries + 1
            worker.jobs[index] = Job(index, "replace", (error, None, begins))
            return [take_over, worker.jobs[index]], None
        del worker.jobs[index]
        worker.tries.pop(index, None)
        past.saved = NOT_SAVED
        if job.method == "assign_pickled":
            return [take_over], refused(RuntimeError(error))
        return [take_over], given_up(error)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _stop(control: socket.socket, fork_server: subprocess.Popen[bytes], owner: int) -> None:
    """Let the fork server end, and with it all workers."""
    control.close()
    if os.getpid() == owner:  # else this is a fork, and it is not its child
        fork_server.wait()

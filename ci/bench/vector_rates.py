"""The rates that ``vector.py`` compares, measured in a process of either side.

What uses gem runs on both packages, and on Gymnasium what does not; from :func:`stepped` on it is for our side only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sides import resident, serve

STEP_SECONDS = 0.01
RESET_SECONDS = 0.05


def classes() -> dict[str, Any]:
    """Return environments that both packages can make."""
    import gem

    class Count(gem.Env):  # the cheapest game: what is left is the vector environment
        blocking = False

        def __init__(self, seed: int | None = None) -> None:
            self.turn = 0

        def reset(self, seed: int | None = None) -> Any:
            super().reset(seed)
            self.turn = 0
            return "Say anything.", {}

        def step(self, action: str) -> Any:
            self.turn += 1
            return f"That was turn {self.turn}.", 0.0, False, self.turn == 8, {"turn": self.turn}

    class Sleep(Count):
        blocking = True

        def __init__(self, step: float = STEP_SECONDS, reset: float = 0.0, seed: int | None = None) -> None:
            self.turn = 0
            self._step, self._reset = step, reset

        def reset(self, seed: int | None = None) -> Any:
            if self._reset:
                time.sleep(self._reset)
            return super().reset(seed)

        def step(self, action: str) -> Any:
            time.sleep(self._step)
            return super().step(action)

    class AsyncSleep(Sleep):
        asynchronous = True

        async def reset_async(self, seed: int | None = None) -> Any:
            return self.reset(seed)

        async def step_async(self, action: str) -> Any:
            await asyncio.sleep(self._step)
            return Count.step(self, action)

    return {"Count": Count, "Sleep": Sleep, "AsyncSleep": AsyncSleep}


def register() -> None:
    import gem

    for name, kind in classes().items():
        gem.register(f"bench:{name}-v0", kind)


def moves(env_id: str) -> Callable[[int], str]:
    """Return actions that both packages take as moves."""
    if "Hanoi" in env_id:
        return lambda number: f"I move \\boxed{{{'ABC'[number % 3]} {'ABC'[(number // 3) % 3]}}}"
    return lambda number: f"I say \\boxed{{{number * 7 % 50 + 1}}}"


def step_all(env_id: str, n: int, seconds: float, **kwargs: Any) -> float:
    """Return steps a second with a barrier."""
    import gem

    vec = gem.make_vec([env_id] * n, **kwargs)
    vec.reset(seed=0)
    move = moves(env_id)
    actions = [[move(turn + index) for index in range(n)] for turn in range(50)]
    begin, turn = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        vec.step(actions[turn % 50])
        turn += 1
    return turn * n / (time.perf_counter() - begin)


def step_all_in_threads(n: int, seconds: float) -> float:
    return step_all("bench:Sleep-v0", n, seconds, async_mode=True)


def reset_all_in_threads(n: int) -> float:
    """Return the seconds that resetting takes, the best of three."""
    import gem

    vec = gem.make_vec(["bench:Sleep-v0"] * n, async_mode=True, reset=RESET_SECONDS)
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        vec.reset(seed=0)
        took.append(time.perf_counter() - begin)
    getattr(vec, "close", lambda: None)()
    return min(took)


def gymnasium_rate(kind: str, n: int, seconds: float) -> float:
    """Return steps a second of Gymnasium's vector environments, with text spaces."""
    import gymnasium
    from gymnasium.spaces import Text

    class Plain(gymnasium.Env):  # type: ignore[misc]
        observation_space, action_space = Text(200), Text(200)
        turn = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.turn = 0
            return "Say anything.", {}

        def step(self, action: str) -> Any:
            if kind == "threads":
                time.sleep(STEP_SECONDS)
            self.turn += 1
            return f"That was turn {self.turn}.", 0.0, False, self.turn == 8, {"turn": self.turn}

    if kind == "threads":
        vec = gymnasium.vector.AsyncVectorEnv([Plain] * n, shared_memory=False)
    else:
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        vec = gymnasium.vector.SyncVectorEnv([Plain] * n, autoreset_mode=mode)
    vec.reset(seed=0)
    actions = ("I say 5",) * n
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        vec.step(actions)
        steps += n
    rate = steps / (time.perf_counter() - begin)
    vec.close()
    return rate


# In our side's process only


def stepped(vec: Any, seconds: float) -> Iterator[Any]:
    """Yield what is received for so long, with every environment under way again at once."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        ready = vec.recv()
        yield ready
        vec.send(dict.fromkeys(ready.indices, "go"))


def receive(backend: str, kind: Any, n: int, seconds: float, **kwargs: Any) -> float:
    """Return steps per second without a barrier."""
    from gem.vector.backends import load_backend

    with load_backend(backend)([""] * n, [kind] * n, **kwargs) as vec:
        vec.reset(seed=0)
        vec.send(["go"] * n)
        for _ in stepped(vec, 0.1):
            pass
        begin = time.perf_counter()
        steps = sum(len(ready.indices) for ready in stepped(vec, seconds))
        return steps / (time.perf_counter() - begin)


def thread_recv(n: int, seconds: float) -> float:
    return receive("thread", classes()["Sleep"], n, seconds, timeout=10)


def thread_bare(n: int, seconds: float) -> float:
    """Return steps a second of threads with a queue each, and one for the results."""
    env = classes()["Sleep"]()
    inboxes: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(n)]
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work(index: int) -> None:
        while (action := inboxes[index].get()) is not None:
            results.put((index, env.step(action)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(n)]
    for thread, inbox in zip(threads, inboxes, strict=True):
        thread.start()
        inbox.put("go")
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        index, _ = results.get()
        inboxes[index].put("go")
        steps += 1
    rate = steps / (time.perf_counter() - begin)
    for inbox in inboxes:
        inbox.put(None)
    for thread in threads:
        thread.join()
    return rate


def asyncio_recv(n: int, seconds: float) -> float:
    return receive("asyncio", classes()["AsyncSleep"], n, seconds, timeout=10)


def asyncio_queues(n: int, seconds: float) -> float:
    """Return steps a second of tasks with a queue each, and one for the results: the loop of threads, in asyncio."""

    async def main() -> float:
        env = classes()["AsyncSleep"]()
        inboxes: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in range(n)]
        results: asyncio.Queue[Any] = asyncio.Queue()

        async def work(index: int) -> None:
            while True:
                action = await inboxes[index].get()
                results.put_nowait((index, await env.step_async(action)))

        tasks = [asyncio.create_task(work(index)) for index in range(n)]
        for inbox in inboxes:
            inbox.put_nowait("go")
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            index, _ = await results.get()
            inboxes[index].put_nowait("go")
            steps += 1
        rate = steps / (time.perf_counter() - begin)
        for task in tasks:
            task.cancel()
        return rate

    return asyncio.run(main())


def asyncio_tasks(n: int, seconds: float) -> float:
    """Return steps a second of tasks that step on their own: nobody sends actions, nobody receives results."""

    async def main() -> float:
        env = classes()["AsyncSleep"]()
        end = time.perf_counter() + seconds

        async def work() -> int:
            steps = 0
            while time.perf_counter() < end:
                await env.step_async("go")
                steps += 1
            return steps

        begin = time.perf_counter()
        return sum(await asyncio.gather(*(work() for _ in range(n)))) / (time.perf_counter() - begin)

    return asyncio.run(main())


def straggler(n: int, seconds: float, slow: float) -> float:
    """Return steps a second of all environments but the first, whose steps take ``slow`` seconds."""
    from gem.vector.thread_vector_env import ThreadVectorEnv

    kind = classes()["Sleep"]
    with ThreadVectorEnv([""] * n, [partial(kind, slow), *[kind] * (n - 1)]) as vec:
        vec.reset(seed=0)
        vec.send(["go"] * n)
        begin = time.perf_counter()
        steps = sum(len(ready.indices) - (0 in ready.indices) for ready in stepped(vec, seconds))
        return steps / (time.perf_counter() - begin)


class Compute:
    """Builds an environment that computes for about four milliseconds per step; other processes can import it."""

    def __call__(self) -> Any:
        import gem

        class Computing(gem.Env):
            cpu_bound = True

            def reset(self, seed: int | None = None) -> Any:
                super().reset(seed)
                return "", {}

            def step(self, action: str) -> Any:
                sum(range(300_000))
                return "computed", 0.0, False, False, {}

        return Computing()


def compute(backend: str, n: int, seconds: float) -> float:
    return receive(backend, Compute(), n, seconds, **({"workers": 2} if backend == "process" else {}))


def compute_bare(n: int, seconds: float) -> float:
    """Return steps a second of so many processes that only compute: what the machine has to give."""
    code = (
        f"import time\nend, steps = time.perf_counter() + {seconds}, 0\n"
        f"while time.perf_counter() < end:\n    sum(range(300_000)); steps += 1\nprint(steps / {seconds})"
    )
    command = [sys.executable, "-c", code]
    bare = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    return sum(float(process.communicate()[0]) for process in bare)


def many(backend: str, n: int) -> dict[str, float]:
    """Return the MB that environments take, reset, and the microseconds of a step of all of them."""
    import gem
    from gem.vector.backends import load_backend

    kinds: dict[str, Any] = {
        "sync": partial(gem.make, "game:GuessTheNumber-v0-hard"),
        "asyncio": partial(classes()["AsyncSleep"], 0.0),
    }
    kinds[backend]().reset(seed=0)
    gc.collect()
    before = resident()
    with load_backend(backend)([""] * n, [kinds[backend]] * n) as vec:
        vec.reset(seed=0)
        vec.step(["I say \\boxed{5}"] * n)
        gc.collect()
        size = resident() - before
        begin = time.perf_counter()
        for turn in range(5):
            vec.step([f"I say \\boxed{{{turn + 6}}}"] * n)
        return {"MB": size / 1e6, "us": 1e6 * (time.perf_counter() - begin) / (5 * n)}


def work() -> None:
    """Answer requests."""
    with contextlib.suppress(ImportError):
        register()
    functions = (
        *(step_all, step_all_in_threads, reset_all_in_threads, gymnasium_rate, thread_recv, thread_bare, asyncio_recv),
        *(asyncio_queues, asyncio_tasks, straggler, compute, compute_bare, many),
    )
    serve({function.__name__: function for function in functions})


if __name__ == "__main__":
    work()

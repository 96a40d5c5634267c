"""What hangs, ends its process or takes all memory costs its own episode only, and nothing is left behind."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import vector_envs
from processes import descendants, handles, runs
from vector_envs import AsyncBroken, AsyncTold, BreaksOnReset, Broken, Drifting, Told, Unbuildable, Unsavable

import gem
from gem.vector.asyncio_vector_env import AsyncioVectorEnv
from gem.vector.process_vector_env import ProcessVectorEnv
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.thread_vector_env import ThreadVectorEnv
from gem.vector.vector_env import CrashLoop

TIMEOUT = 0.5


@pytest.fixture(params=["thread", "asyncio", "process"])
def kind(request):
    """Make vector environments that keep deadlines."""
    return {
        "thread": partial(ThreadVectorEnv, timeout=TIMEOUT),
        "asyncio": partial(AsyncioVectorEnv, timeout=TIMEOUT),
        "process": partial(ProcessVectorEnv, timeout=TIMEOUT, workers=1),
    }[request.param]


def env_for(kind, told=Told, asynchronous=AsyncTold):
    return asynchronous if kind.func is AsyncioVectorEnv else told


@pytest.fixture(autouse=True)
def let_go():
    threads = threading.enumerate()  # those of other tests
    yield
    vector_envs.hold.set()
    for thread in threading.enumerate():
        if thread not in threads and thread.name.startswith("gem-vector"):
            thread.join(10)
    vector_envs.hold.clear()


def expected(n, steps, seed=5, env=Told):
    """Return the observations of steps that nothing disturbs."""
    with SyncVectorEnv([""] * n, [env] * n) as vec:
        vec.reset(seed=seed)
        return [vec.step(["x"] * n)[0] for _ in range(steps)]


def step_often(vec, actions):
    for _ in range(20):
        vec.step(actions)


def test_a_hanging_step_ends_its_episode_and_the_others_do_not_notice(kind):
    steps = expected(3, 3)
    with kind([""] * 3, [env_for(kind)] * 3) as vec:
        vec.reset(seed=5)
        vec.step(["x"] * 3)
        observations, _, terminated, truncated, infos = vec.step(["x", "hang", "x"])
        assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [False, True, False])
        assert infos[1]["error"] == "no answer within 0.5 s"
        assert observations[1].startswith("begin")
        again = vec.step(["x"] * 3)[0]
        assert [observations[0], observations[2]] == [steps[1][0], steps[1][2]]
        assert [again[0], again[2]] == [steps[2][0], steps[2][2]]
        assert again[1].startswith("1 1 ")
        assert vec.faults == [0, 1, 0]
        assert vec.restarts == (kind.func is not AsyncioVectorEnv)  # a coroutine is cancelled, and ends


def test_recv_has_the_others_while_one_hangs(kind):
    if kind.func is ProcessVectorEnv:
        kind = partial(kind, workers=3)  # environments of one process wait for one another
    with kind([""] * 3, [env_for(kind)] * 3) as vec:
        vec.reset(seed=5)
        vec.send({0: "hang", 1: "x", 2: "x"})
        assert sorted(vec.recv(min_count=2).indices) == [1, 2]
        assert vec.recv().indices == [0]


def test_a_hanging_crash_loop_is_reported(kind):
    broken = partial(env_for(kind, Broken, AsyncBroken), "hang")
    with kind([""], [broken]) as vec:
        vec.timeout = 0.1
        if kind.func is AsyncioVectorEnv:
            vec._loop.timeout = 0.1
        vec.reset(seed=0)
        with pytest.raises(CrashLoop, match=r"environment 0 failed 5 times in a row: no answer within"):
            step_often(vec, ["x"])


def test_a_reset_that_hangs_is_replaced(kind):
    class_ = env_for(kind, HangsOnSeed99, AsyncHangsOnSeed99)
    with kind([""] * 2, [class_] * 2, "disabled") as vec:
        observations, infos = vec.reset(seed=[1, 99])
        assert observations[0] == Told().reset(seed=1)[0]
        assert observations[1].startswith("begin")
        assert infos[1]["error"] == "no answer within 0.5 s"


class HangsOnSeed99(Told):
    def reset(self, seed=None):
        if seed == 99:
            self.misbehave("hang")
        return super().reset(seed)


class AsyncHangsOnSeed99(AsyncTold):
    async def reset_async(self, seed=None):
        if seed == 99:
            await self.step_async("hang")
        return await super().reset_async(seed)


def test_a_steps_time_does_not_begin_before_the_step_does():
    with ThreadVectorEnv([""] * 4, [Told] * 4, timeout=TIMEOUT, workers=1) as vec:
        vec.reset(seed=0)
        assert not vec.step(["sleep"] * 4)[3].any()
    with ProcessVectorEnv([""] * 4, [Told] * 4, timeout=TIMEOUT, workers=1) as vec:
        vec.reset(seed=0)
        assert not vec.step(["sleep"] * 4)[3].any()


def test_a_thread_that_hangs_is_abandoned_and_ends_when_its_step_does():
    closed = []

    class Closing(Told):
        def close(self):
            closed.append(self)

    others = threading.enumerate()
    with ThreadVectorEnv([""] * 2, [Closing] * 2, timeout=0.2, workers=1) as vec:
        vec.reset(seed=0)
        old = vec.envs[0]
        vec.step({0: "hang"})
        assert vec.restarts == 1
        assert vec.envs[0] is not old
        assert vec.step(["x"] * 2)[3].tolist() == [False] * 2
        assert closed == []
        vector_envs.hold.set()
        for _ in range(100):
            if closed:
                break
            time.sleep(0.05)
        assert closed == [old]
        assert len([t for t in threading.enumerate() if t not in others and t.name == "gem-vector"]) == 1


def test_a_thread_survives_what_only_the_user_should_raise():
    with ThreadVectorEnv([""] * 2, [Told] * 2, workers=1) as vec:
        vec.reset(seed=0)
        _, _, _, truncated, infos = vec.step(["interrupt", "x"])
        assert (truncated.tolist(), infos[0]["error"]) == ([True, False], "KeyboardInterrupt: me")
        assert not vec.step(["x"] * 2)[3].any()


def test_a_coroutine_that_does_not_heed_its_cancellation_is_abandoned():
    with AsyncioVectorEnv([""] * 2, [AsyncTold] * 2, timeout=0.2) as vec:
        vec.reset(seed=0)
        _, _, _, truncated, infos = vec.step(["stubborn", "x"])
        assert (truncated.tolist(), infos[0]["error"]) == ([True, False], "no answer within 0.2 s")
        assert vec.restarts == 1
        assert not vec.step(["x"] * 2)[3].any()


def test_async_steps_go_on_while_the_caller_does_something_else():
    with AsyncioVectorEnv([""], [AsyncTold]) as vec:
        vec.reset(seed=0)
        vec.send(["sleep"])  # which awaits more than once before it ends
        time.sleep(0.6)
        assert vec.recv(timeout=0).indices == [0]


def test_async_environments_can_be_stepped_where_an_event_loop_runs():
    import asyncio

    async def step():
        with AsyncioVectorEnv([""] * 3, [AsyncTold] * 3) as vec:
            vec.reset(seed=5)
            return vec.step(["x"] * 3)[0]

    assert asyncio.run(step()) == expected(3, 1)[0]


@pytest.mark.parametrize(
    ("action", "error"), [("exit", "its process ended with code 7"), ("memory", "MemoryError"), ("hang", "no answer")]
)
def test_what_ends_its_process_costs_its_own_episode_only(action, error):
    steps = expected(6, 30)
    with ProcessVectorEnv([""] * 6, [Told] * 6, timeout=TIMEOUT, workers=2) as vec:
        vec.reset(seed=5)
        for turn, observations in enumerate(steps):
            actions = ["x"] * 6
            if turn in (3, 4, 17):
                actions[2] = action
            said, _, _, truncated, infos = vec.step(actions)
            assert [said[i] for i in range(6) if i != 2] == [observations[i] for i in range(6) if i != 2]
            assert truncated.tolist() == [False, False, action in actions, False, False, False]
            assert infos[2].get("error", error).startswith(error)
        assert vec.faults == [0, 0, 3, 0, 0, 0]
        assert vec.restarts == 3


def test_an_environment_that_ends_its_process_at_each_step_is_reported():
    with ProcessVectorEnv([""] * 2, [Told, partial(Broken, "exit")], workers=1) as vec:
        vec.reset(seed=5)
        with pytest.raises(CrashLoop, match="environment 1 failed 5 times in a row: its process ended with code 7"):
            step_often(vec, ["x"] * 2)
        assert vec.faults == [0, 5]
        vec.recv()
        assert vec.step({0: "x"})[3].tolist() == [False]


def test_states_are_saved_on_the_way_so_that_little_is_played_again():
    with ProcessVectorEnv([""] * 2, [partial(Told, 10**6)] * 2, workers=1) as vec:
        vec.reset(seed=5)
        for _ in range(1500):
            vec.step(["x"] * 2)
        assert len(vec._pasts[0].calls) <= 1000
        assert vec._pasts[0].saved
        vec.step({1: "exit"})
        assert vec.step({0: "x"})[0][0].startswith("1501 1501 ")


def test_a_neighbour_that_cannot_be_saved_is_brought_back_by_its_seed():
    with ProcessVectorEnv([""] * 2, [Unsavable, Told], workers=1) as vec:
        vec.reset(seed=5)
        vec.step(["x"] * 2)
        vec.step({1: "exit"})
        assert vec.step({0: "x"})[0][0] == expected(1, 2)[1][0]


@pytest.mark.parametrize(
    ("env", "seed", "reason"),
    [(Unsavable, None, "its state cannot be saved"), (Drifting, 5, "it does not do the same again")],
)
def test_a_neighbour_that_cannot_be_brought_back_says_so(env, seed, reason):
    with ProcessVectorEnv([""] * 2, [env, Told], workers=1) as vec:
        vec.reset(seed=seed)
        vec.step(["x"] * 2)
        vec.step({1: "exit"})
        _, _, _, truncated, infos = vec.step({0: "x"})
        assert truncated.tolist() == [True]
        assert reason in infos[0]["error"]
        assert not vec.step({0: "x"})[3].any()


def test_a_lost_neighbour_can_be_reset():
    with ProcessVectorEnv([""] * 2, [Drifting, Told], "disabled", workers=1) as vec:
        vec.reset(seed=5)
        vec.step(["x"] * 2)
        vec.step({1: "exit"})
        assert vec.reset(seed=9, only=[0]) == ([Told().reset(seed=9)[0]], [{"turn": 0}])
        assert vec.faults == [0, 1]


def test_a_process_that_is_killed_from_outside_while_nothing_runs_costs_nothing():
    steps = expected(4, 2)
    with ProcessVectorEnv([""] * 4, [Told] * 4, workers=2) as vec:
        vec.reset(seed=5)
        assert vec.step(["x"] * 4)[0] == steps[0]
        for worker in descendants(vec._starter.pid):
            os.kill(worker, signal.SIGKILL)
        assert vec.step(["x"] * 4)[0] == steps[1]
        assert (vec.faults, vec.restarts) == ([0] * 4, 2)


def test_the_process_that_starts_workers_can_be_killed_too_and_they_end_with_it():
    steps = expected(4, 2)
    with ProcessVectorEnv([""] * 4, [Told] * 4, timeout=TIMEOUT, workers=2) as vec:
        vec.reset(seed=5)
        assert vec.step(["x"] * 4)[0] == steps[0]
        vec.send({0: "hang"})
        time.sleep(TIMEOUT / 5)
        workers = descendants(vec._starter.pid)
        os.kill(vec._starter.pid, signal.SIGKILL)
        assert vec.recv().infos[0]["error"] == "no answer within 0.5 s"  # it is stepped again, and hangs again
        assert vec.step(dict.fromkeys((1, 2, 3), "x"))[0] == steps[1][1:]
        assert vec.faults == [1, 0, 0, 0]
        assert len(workers) == 2
        assert not any(map(runs, workers))


def test_what_cannot_be_sent_back_fails():
    with ProcessVectorEnv([""] * 2, [Told] * 2, workers=1) as vec:
        vec.reset(seed=5)
        observations, _, _, truncated, infos = vec.step(["x", "unsendable"])
        assert (observations[0], truncated.tolist()) == (expected(2, 1)[0][0], [False, True])
        assert infos[1]["error"].startswith("what it returned cannot be sent: TypeError")
        assert vec.step(["x"] * 2)[0][0] == expected(2, 2)[1][0]


def test_what_cannot_be_sent_there_is_refused():
    with pytest.raises(TypeError, match="not by a lambda"):
        ProcessVectorEnv([""], [lambda: Told()])


def test_processes_that_cannot_load_or_build_environments_say_why():
    with pytest.raises(RuntimeError, match="environment 0 cannot be built: ValueError: no data"):
        ProcessVectorEnv([""], [Unbuildable])
    with pytest.raises(CrashLoop, match="its process ended with code 7"):
        ProcessVectorEnv([""], [vector_envs.ends_its_process])


def test_a_failing_reset_of_a_fresh_environment_ends_in_a_report():
    BreaksOnReset.count = 0
    with SyncVectorEnv([""], [BreaksOnReset]) as vec:
        vec.reset(seed=0)
        for _ in range(4):
            vec.step(["x"])
        with pytest.raises(CrashLoop, match="ConnectionError: no server"):
            vec.step(["x"])
    assert BreaksOnReset.count == 7  # of the first episode, after it, and of five fresh environments


def test_a_step_is_delivered_also_where_the_reset_after_it_fails():
    class Once(Told):
        resets = 0

        def reset(self, seed=None):
            Once.resets += 1
            if Once.resets == 2:
                raise ConnectionError("no server")
            return super().reset(seed)

    with SyncVectorEnv([""], [partial(Once, 1)]) as vec:
        vec.reset(seed=0)
        _, rewards, terminated, truncated, infos = vec.step(["x"])
        assert rewards[0] > 0
        assert (terminated.tolist(), truncated.tolist()) == ([True], [False])
        assert infos[0]["final_obs"].startswith("1 1 ")
        assert infos[0]["error"] == "ConnectionError: no server"
        assert vec.faults == [1]


def test_faults_at_random_lose_nothing_and_change_no_order():
    n, seed = 16, 3
    with ProcessVectorEnv([""] * n, [partial(Told, 12)] * n, timeout=TIMEOUT, workers=4, memory_limit=1 << 30) as vec:
        check_random_faults(vec, n, seed, steps=3000, share=0.01, kinds=("raise", "hang", "exit", "memory"))
        assert sum(vec.faults) > 10


def check_random_faults(vec, n, seed, steps, share, kinds):
    """Hold every healthy step to a mirror of its environment that nothing disturbs."""
    rng = random.Random(seed)
    observations, _ = vec.reset(seed=seed)
    mirrors = [Told(12) for _ in range(n)]
    for index, mirror in enumerate(mirrors):
        assert mirror.reset(seed=seed + index)[0] == observations[index]
    sent = dict.fromkeys(range(n), "x")
    vec.send(sent)
    received = 0
    while received < steps:
        ready = vec.recv()
        actions = {}
        for index, observation, reward, terminated, truncated, info in zip(*ready, strict=True):
            received += 1
            assert truncated == (sent[index] in kinds), (sent[index], info)
            if truncated:
                mirrors[index] = None  # the fresh one's seed is its own affair until its next reset
            elif mirrors[index] is not None:
                text, pay, over, _, _ = mirrors[index].step(sent[index])
                assert (reward, terminated) == (pay, over)
                assert (info["final_obs"] if over else observation) == text
                if over:
                    assert observation == mirrors[index].reset()[0]
            actions[index] = rng.choice(kinds) if rng.random() < share else "x" * rng.randint(1, 9)
        sent.update(actions)
        vec.send(actions)


def test_nothing_is_left_behind(kind):
    def run():
        with kind([""] * 4, [env_for(kind)] * 4) as vec:
            vec.reset(seed=0)
            vec.step(["x", "raise", "hang", "x"])
            if kind.func is ProcessVectorEnv:
                vec.step(["exit", "x", "x", "x"])
            vec.send(["x"] * 4)
        vector_envs.hold.set()

    run()
    files, threads, children = handles(), threading.active_count(), descendants()
    for _ in range(3):
        vector_envs.hold.clear()
        run()
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        time.sleep(0.05)
    assert threading.active_count() <= threads
    assert handles() <= files
    assert descendants() == children


def test_a_vector_environment_that_is_forgotten_ends(kind):
    run = partial(kind, [""] * 2, [env_for(kind)] * 2)
    others = set(descendants())  # those of other tests
    vec = run()
    vec.reset(seed=0)
    children = set(descendants()) - others
    threads = threading.active_count()
    del vec
    gc.collect()
    for _ in range(100):
        if threading.active_count() < threads or not any(map(runs, children)):
            break
        time.sleep(0.05)
    if kind.func is ProcessVectorEnv:
        assert not any(map(runs, children))
    else:
        assert threading.active_count() < threads


@pytest.mark.parametrize(
    "how", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 2)", "os._exit(0)", "raise SystemExit"]
)
def test_processes_end_with_their_parent_however_it_ends_and_whatever_they_do(how):
    code = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from vector_envs import Told
from gem.vector.process_vector_env import ProcessVectorEnv
from processes import descendants
vec = ProcessVectorEnv([""] * 4, [Told] * 4, workers=2)
vec.reset(seed=0)
vec.send({{0: "hang", 1: "x"}})
vec.recv()
print(*descendants(), flush=True)
vec.close = None
{how}
time.sleep(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3, done.stderr
    for _ in range(100):
        if not any(map(runs, pids)):
            return
        time.sleep(0.05)
    raise AssertionError("they go on without their parent")


SCRIPT = """
import gem
from gem.vector.process_vector_env import ProcessVectorEnv


class Mine(gem.Env):
    def reset(self, seed=None):
        super().reset(seed)
        return "mine", {}

    def step(self, action):
        return action, 1.0, True, False, {}


def main():
    with ProcessVectorEnv([""] * 2, [Mine] * 2) as vec:
        print(vec.reset()[0], vec.step(["a", "b"])[4][1]["final_obs"])
"""


def test_environments_may_be_defined_in_the_script_itself(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT + '\n\nif __name__ == "__main__":\n    main()\n')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['mine', 'mine'] b\n", done.stderr


def test_a_script_without_the_main_guard_is_told_so(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT + "\n\nmain()\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert 'needs `if __name__ == "__main__":`' in done.stderr


def test_an_id_that_only_this_process_knows_can_be_built_in_others():
    gem.register("test:Told-v0", "vector_envs:Told")
    try:
        with gem.make_vec(["test:Told-v0"] * 2, backend="process", seed=3) as vec:
            assert vec.reset()[0] == [Told().reset(seed=seed)[0] for seed in (3, 4)]
    finally:
        del gem.registry.ENV_REGISTRY["test:Told-v0"]

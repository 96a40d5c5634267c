"""Episodes whose turns somebody else asks for."""

import asyncio
import threading
import time

import pytest

pytest.importorskip("transformers")

from gem.rollout import ChatRenderer, EpisodeRunner, Limits, Response, SteppedEpisode, run_episode
from gem.tasks import Task
from gem.testing import ScriptedEngine
from gem.testing.fault_injection import FaultInjectingEnv, fault_task
from gem.testing.scenarios import SCENARIO_ENV, scenarios


def answers(tokenizer, *texts):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]


def step_through(runner, task, said):
    async def play():
        stepped = SteppedEpisode(runner, task)
        request, asked = await stepped.start(), []
        for ids in said:
            asked.append(list(request.prompt_ids))
            request = await stepped.answer(Response(ids, None, "stop"))
            assert stepped.request is request
            assert len(stepped.episode.turns) == len(asked)
        assert request is None
        return stepped.episode, asked

    return asyncio.run(play())


def test_an_episode_in_steps_is_the_drivers(tokenizer):
    said = answers(tokenizer, "one", "two and", "three", "four")
    episode, asked = step_through(EpisodeRunner(ChatRenderer(tokenizer)), fault_task(), said)
    assert episode == asyncio.run(run_episode(fault_task(), ScriptedEngine(said), ChatRenderer(tokenizer)))
    assert asked == [turn.prompt_ids for turn in episode.turns]
    assert episode.rewards == [1, 2, 3, 4]
    assert 0 < episode.started <= episode.ended <= time.time()


def test_turns_of_tools_are_shown_in_the_tool_role_of_the_runners_renderer(tokenizer):
    scenarios(tokenizer)  # registers the environment
    task = Task(SCENARIO_ENV, 0, {"length": 3, "tool_turns": [1]})
    _, asked = step_through(
        EpisodeRunner(ChatRenderer(tokenizer, tool_role=True)), task, answers(tokenizer, "a", "b", "c")
    )
    shown = tokenizer.decode(asked[-1])
    assert "<|im_start|>tool\non 1<|im_end|>" in shown
    assert "<|im_start|>user\non 2<|im_end|>" in shown


def test_an_environment_that_fails_ends_its_episode(tokenizer):
    episode, _ = step_through(
        EpisodeRunner(ChatRenderer(tokenizer)), fault_task("raises"), answers(tokenizer, "one", "two")
    )
    assert (episode.truncation, episode.rewards) == ("error", [1, 0])


def test_what_is_wrong_with_the_set_up_is_raised(tokenizer):
    with pytest.raises(ValueError, match="NoSuch"):
        step_through(EpisodeRunner(ChatRenderer(tokenizer)), Task("game:NoSuch-v0", 0), [])


def test_an_overlong_observation_asks_for_one_token_on_an_empty_message(tokenizer):
    renderer = ChatRenderer(tokenizer)
    limits = Limits(max_context=len(renderer.first("")) + 1)
    episode, asked = step_through(EpisodeRunner(renderer, limits), fault_task(), answers(tokenizer, "one"))
    assert (episode.truncation, asked) == ("overlong", [renderer.first("")])


def test_an_episode_in_a_context_for_nothing_is_an_error_that_gives_the_reason(tokenizer):
    with pytest.raises(RuntimeError, match="ended before a token was requested: the first observation of"):
        step_through(EpisodeRunner(ChatRenderer(tokenizer), Limits(max_context=3)), fault_task(), [])


class Slow(FaultInjectingEnv):
    """Takes its time to be built and to be closed; counts both."""

    built = closed = 0
    release = threading.Event()

    def __init__(self):
        super().__init__()
        Slow.release.wait(10)
        Slow.built += 1

    def close(self):
        Slow.closed += 1


@pytest.fixture
def slow():
    Slow.built = Slow.closed = 0
    Slow.release.clear()
    yield Slow
    Slow.release.set()


def until(condition):
    end = time.perf_counter() + 10
    while not condition() and time.perf_counter() < end:
        time.sleep(0.01)
    return condition()


def test_who_gives_up_closes_the_environment_once(tokenizer, slow):
    slow.release.set()

    async def play():
        stepped = SteppedEpisode(EpisodeRunner(ChatRenderer(tokenizer), make_env=lambda task: slow()), fault_task())
        await stepped.close()  # not begun: nothing to close
        await stepped.start()
        await stepped.close()
        await stepped.close()

    asyncio.run(play())
    assert (slow.built, slow.closed) == (1, 1)


def test_an_answer_to_an_episode_that_was_closed_is_no_error_of_its_own(tokenizer):
    async def play():
        stepped = SteppedEpisode(EpisodeRunner(ChatRenderer(tokenizer)), fault_task())
        await stepped.start()
        await stepped.close()
        with pytest.raises(asyncio.CancelledError):
            await stepped.answer(Response([5], None, "stop"))

    asyncio.run(play())


def test_an_environment_that_is_built_after_all_was_cancelled_is_closed(tokenizer, slow):
    async def play():
        stepped = SteppedEpisode(EpisodeRunner(ChatRenderer(tokenizer), make_env=lambda task: slow()), fault_task())
        starting = asyncio.ensure_future(stepped.start())
        await asyncio.sleep(0.05)
        starting.cancel()
        await stepped.close()
        assert slow.built == 0
        slow.release.set()

    asyncio.run(play())
    assert until(lambda: slow.built == 1 and slow.closed == 1)


def test_a_second_cancellation_does_not_leave_the_environment_open(tokenizer, slow):
    slow.release.set()

    async def play():
        stepped = SteppedEpisode(EpisodeRunner(ChatRenderer(tokenizer), make_env=lambda task: slow()), fault_task())
        await stepped.start()
        stepped._job.cancel()
        await asyncio.sleep(0)
        stepped._job.cancel()  # while it closes
        await asyncio.gather(stepped._job, return_exceptions=True)

    asyncio.run(play())
    assert until(lambda: slow.closed == 1)
    assert slow.built == 1

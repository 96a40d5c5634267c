"""Episodes collected without a barrier."""

import pytest
from vector_envs import Told

from gem.vector.collecting import collect
from gem.vector.sync_vector_env import SyncVectorEnv
from gem.vector.thread_vector_env import ThreadVectorEnv


def act(indices, observations):
    assert len(indices) == len(observations)
    return ["x"] * len(indices)


@pytest.mark.parametrize("episodes", [1, 3, 8])
@pytest.mark.parametrize("kind", [SyncVectorEnv, ThreadVectorEnv])
def test_as_many_episodes_are_played_to_their_end_as_asked(kind, episodes):
    with kind([""] * 3, [Told] * 3) as vec:
        played = collect(vec, act, episodes, seed=5)
    assert len(played) == episodes
    for index in range(min(3, episodes)):
        env = Told()
        mine = [episode for episode in played if episode.env == index]
        for number, episode in enumerate(mine):
            texts = [env.reset(seed=5 + index if number == 0 else None)[0]]
            rewards = []
            for _ in range(5):
                text, reward, *_ = env.step("x")
                texts.append(text)
                rewards.append(reward)
            assert (episode.observations, episode.rewards, episode.actions) == (texts, rewards, ["x"] * 5)
            assert (episode.terminated, episode.error) == (True, None)


def test_short_episodes_are_not_preferred():
    builds = [Told, lambda: Told(50)]
    with SyncVectorEnv([""] * 2, builds) as vec:
        played = collect(vec, act, 4)
    assert sorted(len(episode.actions) for episode in played) == [5, 5, 5, 50]


def test_a_failed_episode_says_why():
    def misbehave(indices, observations):
        return ["raise" if text.startswith("2") else "x" for text in observations]

    with SyncVectorEnv([""], [Told]) as vec:
        (episode,) = collect(vec, misbehave, 1)
    assert (episode.error, episode.terminated) == ("ValueError: told to", False)
    assert episode.actions == ["x", "x", "raise"]
    assert len(episode.observations) == 4


def test_other_modes_are_refused():
    with SyncVectorEnv([""], [Told], "disabled") as vec, pytest.raises(ValueError, match="SAME_STEP, not DISABLED"):
        collect(vec, act, 1)


def test_a_bar_is_shown_on_a_terminal_only(capsys, monkeypatch):
    for color, shown in ((None, False), ("1", True)):
        if color:
            monkeypatch.setenv("FORCE_COLOR", color)
        with SyncVectorEnv([""] * 2, [Told] * 2) as vec:
            collect(vec, act, 4)
        seen = capsys.readouterr()
        assert seen.out == ""
        assert ("4/4" in seen.err) == shown
    with SyncVectorEnv([""] * 2, [Told] * 2) as vec:
        collect(vec, act, 4, progress=False)
    assert capsys.readouterr().err == ""

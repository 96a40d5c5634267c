"""Returns and advantages, against numbers computed by hand and against what must hold between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem.rollout import check_gamma, discounted_returns, gae, group_advantages, rebn, spread_over_tokens

NUMBERS = st.floats(-10, 10).map(lambda x: round(x, 3))
DISCOUNTS = st.floats(0, 1)
REWARDS = st.lists(NUMBERS, max_size=6)
BATCHES = st.lists(REWARDS, max_size=5)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8)


# Discounted returns


@pytest.mark.parametrize(
    ("gamma", "expected"), [(1.0, [6, 5, 3]), (0.5, [2.75, 3.5, 3]), (0.0, [1, 2, 3]), (0.9, [5.23, 4.7, 3])]
)
def test_return_is_the_discounted_sum_of_this_and_the_following_rewards(gamma, expected):
    close(discounted_returns([1, 2, 3], gamma), expected)


def test_return_of_integers_is_float64():
    assert discounted_returns([1, 2]).dtype == np.float64


def test_no_rewards_have_no_returns():
    assert discounted_returns([]).tolist() == []


@given(REWARDS, DISCOUNTS)
def test_each_return_is_its_reward_and_the_discounted_next_return(rewards, gamma):
    returns = discounted_returns(rewards, gamma)
    close(returns, np.array(rewards) + gamma * np.append(returns[1:], 0)[: len(rewards)])


@given(REWARDS, DISCOUNTS, st.integers(1, 5))
def test_turns_without_reward_after_the_last_change_no_return_and_no_advantage(rewards, gamma, padding):
    padded, values = [*rewards, *[0.0] * padding], [1.0] * len(rewards)
    close(discounted_returns(padded, gamma)[: len(rewards)], discounted_returns(rewards, gamma))
    padded_values = [*values, *[0.0] * padding]
    close(gae(padded, padded_values, gamma, 0.5)[: len(rewards)], gae(rewards, values, gamma, 0.5))


# ReBN


def test_rebn_normalises_over_the_turns_of_all_episodes():
    # Returns 1, 1 and -2 have mean 0 and variance (1 + 1 + 4) / 3 = 2.
    first, second = rebn([[0.0, 1.0], [-2.0]], eps=0.0)
    close(first, [1 / np.sqrt(2), 1 / np.sqrt(2)])
    close(second, [-np.sqrt(2)])


def test_rebn_discounts_a_turn():
    # Returns 0.5, 1 and 0 have mean 0.5 and variance 0.5 / 3.
    first, second = rebn([[0.0, 1.0], [0.0]], gamma=0.5, eps=0.0)
    close(first, [0, 0.5 / np.sqrt(0.5 / 3)])
    close(second, [-0.5 / np.sqrt(0.5 / 3)])


def test_rebn_adds_eps_to_the_deviation():
    close(rebn([[1.0], [-1.0]], eps=1.0), [[0.5], [-0.5]])


@given(BATCHES, DISCOUNTS)
def test_rebn_has_mean_0_and_deviation_1_over_all_turns(batch, gamma):
    turns = np.concatenate([[], *rebn(batch, gamma)])
    returns = np.concatenate([[], *(discounted_returns(rewards, gamma) for rewards in batch)])
    assert len(turns) == len(returns)
    if len(turns) and returns.std() > 1e-3:
        assert abs(turns.mean()) < 1e-6
        assert abs(turns.std() - 1) < 1e-4


@given(BATCHES, DISCOUNTS)
def test_rebn_keeps_the_order_of_returns(batch, gamma):
    turns = np.concatenate([[], *rebn(batch, gamma)])
    returns = np.concatenate([[], *(discounted_returns(rewards, gamma) for rewards in batch)])
    assert (np.diff(turns[np.argsort(returns, kind="stable")]) >= -1e-9).all()


@given(st.lists(REWARDS, min_size=2, max_size=5), st.randoms())
def test_rebn_of_an_episode_does_not_depend_on_where_it_stands_in_the_batch(batch, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    advantages, shuffled = rebn(batch), rebn([batch[i] for i in order])
    for place, i in enumerate(order):
        np.testing.assert_allclose(shuffled[place], advantages[i], atol=1e-5)


def test_rebn_is_not_changed_by_episodes_without_turns():
    advantages = rebn([[], [0.0, 1.0], [], [-2.0]])
    assert [len(episode) for episode in advantages] == [0, 2, 0, 1]
    close(advantages[1], rebn([[0.0, 1.0], [-2.0]])[0])


@pytest.mark.parametrize("batch", [[[1.0], [1.0]], [[0.0, 0.0]], [[0.0, 1.0]], [[0.5]], [[0.1], [0.1], [0.1]]])
def test_rebn_of_equal_returns_is_0(batch):
    assert not np.concatenate(rebn(batch)).any()


LARGE_AND_SMALL = [1e-300, 1e-30, -0.1, 0.3, 7.0, 1e6, -1e30, 1e300]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", LARGE_AND_SMALL)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_returns_equal_but_for_rounding_have_advantages_of_exactly_0(value, eps):
    rounded = [value, value * (1 + 1e-7), value * (1 - 2e-7), np.nextafter(value, 1)]
    for values in ([value], [value] * 7, rounded):
        assert not np.concatenate(rebn([[v] for v in values], eps=eps)).any()
        assert not np.concatenate(rebn([[0.0, v] for v in values], eps=eps)).any()
        for scale in (True, False):
            assert not group_advantages(values * 2, 2 * len(values), scale, eps).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", LARGE_AND_SMALL)
def test_returns_that_differ_have_advantages_whatever_their_size(value):
    close(np.concatenate(rebn([[value], [-value]], eps=0.0)), [np.sign(value), -np.sign(value)])
    close(group_advantages([value, -value], 2, eps=0.0, ddof=0), [np.sign(value), -np.sign(value)])
    close(np.concatenate(rebn([[value], [value * (1 + 1e-4)]], eps=0.0)), [-np.sign(value), np.sign(value)])


@pytest.mark.parametrize("gamma", [-1, -1e-9, 1 + 1e-9, 2.0, float("nan"), float("inf")])
def test_a_discount_outside_of_0_to_1_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma, the discount per turn, is from 0 to 1, got {gamma}"):
        check_gamma(gamma)


def test_a_discount_from_0_to_1_is_returned():
    assert [check_gamma(gamma) for gamma in (0, 0.5, 1)] == [0, 0.5, 1]


@pytest.mark.filterwarnings("error")
def test_rebn_of_nothing_is_nothing():
    assert rebn([]) == []
    assert [episode.tolist() for episode in rebn([[], []])] == [[], []]


# GAE


def test_gae_adds_up_discounted_surprises():
    # Surprises: 1 + 0.5 * 4 - 2 = 1, 0 + 0.5 * 8 - 4 = 0, 2 + 0.5 * 6 - 8 = -3; each next counts 0.5 * 0.5.
    close(gae([1, 0, 2], [2, 4, 8], gamma=0.5, lam=0.5, last_value=6), [1 + 0.25 * -0.75, -0.75, -3])


def test_gae_of_an_ended_task_takes_0_as_the_last_value():
    close(gae([1.0], [0.25]), [0.75])


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6), DISCOUNTS)
def test_gae_with_lambda_1_is_the_returns_minus_the_values(turns, gamma):
    rewards, values = [reward for reward, _ in turns], [value for _, value in turns]
    close(gae(rewards, values, gamma, lam=1.0), discounted_returns(rewards, gamma) - np.array(values))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=6), DISCOUNTS, NUMBERS)
def test_gae_with_lambda_0_is_each_turns_surprise(turns, gamma, last_value):
    rewards, values = np.array([0, *(reward for reward, _ in turns)])[1:], [value for _, value in turns]
    following = np.array([*values, last_value])[1:]
    close(gae(rewards, values, gamma, 0.0, last_value), rewards + gamma * following - np.array(values))


@given(REWARDS, DISCOUNTS, DISCOUNTS)
def test_gae_of_a_perfect_critic_is_0(rewards, gamma, lam):
    close(gae(rewards, discounted_returns(rewards, gamma), gamma, lam), np.zeros(len(rewards)))


@given(REWARDS, DISCOUNTS, DISCOUNTS, NUMBERS)
def test_last_value_counts_as_a_reward_after_the_last_turn(rewards, gamma, lam, last_value):
    padded = gae([*rewards, last_value], [0.0] * len(rewards) + [last_value], gamma, lam)
    close(gae(rewards, [0.0] * len(rewards), gamma, lam, last_value), padded[:-1])


def test_gae_of_nothing_is_nothing():
    assert gae([], []).tolist() == []


# Groups


def test_group_advantage_is_the_return_less_the_groups_mean_over_its_deviation():
    # Deviations of a sample of two: |a - b| / sqrt(2).
    close(group_advantages([1, 0, 5, 1], 2, eps=0.0), np.array([1, -1, 1, -1]) / np.sqrt(2))


def test_group_advantage_with_the_populations_deviation():
    close(group_advantages([1, 0, 5, 1], 2, eps=0.0, ddof=0), [1, -1, 1, -1])


def test_group_advantage_without_scaling_is_the_return_less_the_groups_mean():
    close(group_advantages([1, 0, 2, 5, 5, 5], 3, scale=False), [0, -1, 1, 0, 0, 0])


def test_eps_is_added_to_the_groups_deviation():
    close(group_advantages([1, -1], 2, eps=1.0, ddof=0), [0.5, -0.5])


def test_group_of_equal_returns_has_advantage_0():
    close(group_advantages([0.1, 0.1, 0.1, 7, 8, 9], 3)[:3], 0)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), max_size=4), st.booleans())
def test_groups_do_not_see_each_other(groups, scale):
    together = group_advantages([value for group in groups for value in group], 3, scale)
    close(together, np.concatenate([[], *(group_advantages(group, 3, scale) for group in groups)]))
    assert np.abs(together.reshape(-1, 3).sum(axis=1)).sum() < 1e-6


@pytest.mark.parametrize(("count", "size"), [(3, 2), (1, 2), (7, 4)])
def test_episodes_that_do_not_make_whole_groups_are_refused(count, size):
    with pytest.raises(ValueError, match=f"{count} episodes do not make groups of {size}"):
        group_advantages([0.0] * count, size)


def test_no_episodes_have_no_advantages():
    assert group_advantages([], 4).tolist() == []


def test_gae_refuses_values_that_do_not_match_the_rewards():
    with pytest.raises(ValueError, match="3 values for 2 rewards"):
        gae([0.0, 1.0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("group_size", [0, 1])
def test_groups_of_fewer_than_two_are_refused(group_size):
    with pytest.raises(ValueError, match="at least 2 episodes"):
        group_advantages([1.0, 0.0], group_size)


def test_every_token_has_the_value_of_its_turn_and_padding_has_0():
    spread = spread_over_tokens([[1.0, 2.0], [3.0], []], [[1, 3], [0], []], length=5)
    assert spread.tolist() == [[1, 1, 2, 2, 0], [3, 0, 0, 0, 0], [0] * 5]


def test_a_value_without_a_turn_is_refused():
    with pytest.raises(ValueError, match="zip"):
        spread_over_tokens([[1.0, 2.0]], [[1]], length=5)

"""The Oat adapter without a training: Oat's own actors and learner, a scripted engine, and the CPU shims."""

import copy
import importlib.util
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("oat") is None:
    pytest.skip("oat is not installed", allow_module_level=True)

CPU_SHIMS = Path(__file__).parents[2] / "ci" / "cpu" / "oat"
sys.path[:0] = [str(CPU_SHIMS / "engine_hf"), str(CPU_SHIMS)]

import oat_cpu  # noqa: F401 - installs the CPU shims
import torch
import tyro
import vllm
from oat.algorithms.ppo import PPOLearner
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation

import gem
import gem_oat
import gem_oat_actors
import gem_oat_args
from gem.registry import ENV_REGISTRY, register
from gem.rollout import (
    ContextTooSmall,
    Episode,
    Turn,
    discounted_returns,
    group_advantages,
    mean_metrics,
    read_episodes,
    rebn,
    replay,
)
from gem.rollout.metrics import logged_metrics
from gem.tasks import Task, load_tasks, make_tasks
from gem.testing.fault_injection import fault_task
from gem.wrappers import get_wrapper_fns

ENV = "game:Mastermind-v0-easy"


class Store:
    """Oat's shared memory, as far as an actor sees it."""

    def serialize_ipc(self, data):
        return data


class ScriptedLLM:
    """Answers as vLLM does; remembers what it was asked, batch by batch."""

    def __init__(self, answer):
        self.answer, self.batches = answer, []

    def generate(self, prompts, sampling_params, use_tqdm):
        assert use_tqdm is False
        self.batches.append((prompts, sampling_params))
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            whole = list(self.answer(prompt["prompt_token_ids"]))
            whole = whole[: next((i + 1 for i, token in enumerate(whole) if token in params.stop_token_ids), None)]
            ids = whole[: params.max_tokens]
            logprobs = [{token: SimpleNamespace(logprob=-1.0 - i)} for i, token in enumerate(ids)]
            reason = "abort" if not ids else "stop" if len(whole) <= params.max_tokens else "length"
            answer = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason=reason, text="")
            outputs.append(SimpleNamespace(outputs=[answer]))
        return outputs


@pytest.fixture
def make_actor(small_model, tmp_path):
    def make(actor_class=gem_oat.GemActor, answer=None, **options):
        settings = {
            "pretrain": str(small_model),
            "tasks": f"env={ENV},seeds=0:50",
            "episodes": str(tmp_path / "episodes"),
            "rollout_batch_size_per_device": 12,
            "generate_max_length": 16,
            "max_model_len": 512,
            "num_envs": 4,
            "oracle": "",
            "algo": "PPO",
            "gpus": 1,
        }
        args = default_args_validation(gem_oat.GemArgs(**{**settings, **options}))
        actor = actor_class(None, {"model": str(small_model)}, args)
        actor.init(options.get("actor_id", 0), str(tmp_path))
        actor.ipc_client = Store()
        if answer is not None:
            actor.llm = ScriptedLLM(answer)
        return actor

    return make


def paid(reward):
    return Turn([1], [2], [0.0], "stop", "x", reward=reward)


class Failing(gem.Env):
    """Pays 1 in each of two turns, unless it fails."""

    def __init__(self, how: str = "never", begins: str = "begin") -> None:
        super().__init__()
        self.how, self.begins, self.turn = how, begins, 0

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        if self.how == "reset":
            raise OSError("no connection")
        return self.begins, {}

    def step(self, action):
        self.turn += 1
        if self.how == "step":
            raise OSError("no connection")
        return "on", 1.0, self.turn == 2, False, {"success": True}


def failing(how, seed=0, begins="begin"):
    if "test:Failing-v0" not in ENV_REGISTRY:
        register("test:Failing-v0", Failing)
    return Task("test:Failing-v0", seed, {"how": how, "begins": begins})


def written(folder, tasks):
    path = folder / "tasks.jsonl"
    path.write_text("".join(task.to_json() + "\n" for task in tasks))
    return str(path)


def say(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return lambda prompt: ids


@pytest.fixture(scope="module")
def own_tokenizer(small_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(small_model)


def test_transitions_are_the_turns_of_the_episodes(make_actor, tmp_path):
    actor = make_actor()
    played, metrics = actor.collect_experience()
    episodes = read_episodes(tmp_path / "episodes", "train")
    assert [replay(episode) for episode in episodes] == [[]] * len(episodes)
    assert sum(len(episode.turns) for episode in episodes) >= 12
    assert len({episode.task.seed for episode in episodes}) == len(episodes)
    for transitions, episode in zip(played, episodes, strict=True):
        assert [t.prompt_ids for t in transitions] == [turn.prompt_ids for turn in episode.turns]
        assert [t.response_ids for t in transitions] == [turn.response_ids for turn in episode.turns]
        assert [t.response_logprobs for t in transitions] == [turn.logprobs for turn in episode.turns]
        assert [t.rewards for t in transitions] == episode.rewards
        assert [t.action for t in transitions] == [turn.action for turn in episode.turns]
        assert [t.done for t in transitions] == [False] * (len(transitions) - 1) + [True]
        assert len({id(t.info) for t in transitions}) == len(transitions)
    assert metrics["gem/episodes"] == len(episodes)
    assert metrics["gem/return"] == pytest.approx(np.mean([episode.total_reward for episode in episodes]))


def test_every_step_plays_other_tasks_and_actors_share_them_out(make_actor, tmp_path):
    first = make_actor(tasks=f"env={ENV},seeds=0:3", rollout_batch_size_per_device=2)
    assert [task.seed for task, _ in zip(first.next_tasks(), range(7), strict=False)] == [0, 1, 2, 0, 1, 2, 0]
    shares = [make_actor(gpus=1, num_groups=2, group_rank=rank).own_tasks for rank in range(2)]
    assert [task.seed for share in shares for task in share] == [*range(0, 50, 2), *range(1, 50, 2)]
    with pytest.raises(ValueError, match="has fewer tasks than there are actors"):
        make_actor(tasks=f"env={ENV},seeds=0:1", num_groups=2, group_rank=1)


def test_a_turn_is_limited_and_an_episode_stops_before_the_context_overflows(make_actor, own_tokenizer, tmp_path):
    x = own_tokenizer.convert_tokens_to_ids("x")
    fault_task()
    actor = make_actor(
        answer=lambda prompt: [x] * 99, tasks="env=test:FaultInjecting-v0,seeds=0:9,length=9", max_model_len=80
    )
    played, metrics = actor.collect_experience()
    turns = [t for transitions in played for t in transitions]
    assert all(len(t.response_ids) <= 16 and len(t.prompt_ids) + len(t.response_ids) <= 80 for t in turns)
    assert any(t.response_is_truncated for t in turns)
    assert metrics["gem/truncated_context"] == 1.0
    second = played[0][1].prompt_ids
    seen = played[0][0].prompt_ids + played[0][0].response_ids
    assert second[: len(seen) + 1] == [*seen, own_tokenizer.eos_token_id]  # the cut turn is closed


def test_turns_limit_and_system_message(make_actor, own_tokenizer):
    fault_task()
    options = {"tasks": "env=test:FaultInjecting-v0,seeds=0:9", "max_turns": 2, "system": "Play well."}
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert {len(transitions) for transitions in played} == {2}
    assert metrics["gem/truncated_turns"] == 1.0
    assert own_tokenizer.decode(played[0][0].prompt_ids).startswith("<|im_start|>system\nPlay well.<|im_end|>")


def test_histories_that_are_rewritten_are_played_too(make_actor, own_tokenizer):
    (wrap,) = get_wrapper_fns("concat_with_action", own_tokenizer)
    fault_task()

    class Rewriting(gem_oat.GemActor):
        make_env = staticmethod(lambda task: wrap(task.make()))

    actor = make_actor(Rewriting, answer=say(own_tokenizer, "x"), tasks="env=test:FaultInjecting-v0,seeds=0:9")
    (transitions, *_), _ = actor.collect_experience()
    seen = transitions[0].prompt_ids + transitions[0].response_ids
    assert len(transitions) == 4
    assert transitions[1].prompt_ids[: len(seen)] != seen


@pytest.mark.parametrize("on_error", ["mask", "keep"])
def test_of_16_episodes_those_that_misbehave_end_alone_and_are_counted(make_actor, own_tokenizer, tmp_path, on_error):
    rows = [fault_task(seed=seed) for seed in range(16)]
    rows[3], rows[7], rows[11] = fault_task("raises"), fault_task("hangs"), fault_task("floods")
    options = {"tasks": written(tmp_path, rows), "num_envs": 16, "rollout_batch_size_per_device": 16}
    options |= {"step_timeout": 2, "on_error": on_error}
    since = time.perf_counter()
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert time.perf_counter() - since < 30
    returns = [{11: 3.0}.get(i, 10.0) for i in range(16)]
    if on_error == "keep":
        returns[3] = returns[7] = 1.0
    else:
        del returns[7], returns[3]
    assert [sum(t.rewards for t in transitions) for transitions in played][: len(returns)] == returns
    assert {t.loss_mask for transitions in played for t in transitions} == {True}
    episodes = metrics["gem/episodes"]  # one or two more, if those that fail are left out
    assert metrics["gem/environment_errors"] == metrics["gem/left_out"] == 2 / episodes
    assert metrics["gem/truncated_context"] == 1 / metrics["gem/valid_episodes"] == 1 / (episodes - 2)


def test_episodes_are_run_until_there_are_enough_valid_turns(make_actor, own_tokenizer, tmp_path):
    rows = [failing("step"), failing("never"), failing("reset"), failing("never")]
    options = {"tasks": written(tmp_path, rows), "num_envs": 2, "rollout_batch_size_per_device": 4, "retries": 1}
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert [[(t.rewards, t.loss_mask) for t in transitions] for transitions in played] == [[(1.0, True)] * 2] * 2
    assert metrics["gem/left_out"] == metrics["gem/environment_errors"] == 1 - 2 / metrics["gem/episodes"]
    assert metrics["gem/retries"] == 1 / metrics["gem/episodes"]  # of that which fails in its reset
    assert metrics["gem/return"] == 2.0


@pytest.mark.parametrize("how", ["reset", "step", "engine"])
def test_where_everything_fails_rows_of_weight_0_hold_the_place(make_actor, own_tokenizer, tmp_path, how):
    rows = [failing("never" if how == "engine" else how, seed) for seed in range(4)]
    options = {"tasks": written(tmp_path, rows), "rollout_batch_size_per_device": 4, "retries": 0}
    answer = (lambda prompt: []) if how == "engine" else say(own_tokenizer, "x")
    actor = make_actor(answer=answer, **options)
    handed_over = actor.step()
    turns = [t for transitions in handed_over for t in transitions]
    assert [(t.loss_mask, t.rewards) for t in turns] == [(False, 0.0)] * 4
    assert all(len(t.response_ids) == len(t.response_logprobs) > 0 for t in turns)
    assert turns[0].info["gem/left_out"] == 1.0
    of_oat = learner()
    of_oat.process_feedback_data(handed_over)
    assert of_oat.learn(1) == {"train/skipped": 1.0}


def test_an_overlong_task_is_counted_and_left_out(make_actor, own_tokenizer, tmp_path):
    rows = [failing("never"), failing("never", begins="long " * 400), failing("never", 1)]
    options = {"tasks": written(tmp_path, rows), "rollout_batch_size_per_device": 4, "num_envs": 3}
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert {t.obs for transitions in played for t in transitions} == {"begin", "on"}
    assert metrics["gem/overlong"] == metrics["gem/left_out"] == 1 / metrics["gem/episodes"]


def test_oats_own_step_takes_it(make_actor):
    handed_over = make_actor().step()
    infos = [transition.info for transitions in handed_over for transition in transitions]
    assert len({tuple(info) for info in infos}) == 1
    assert {"actor/mean_episode_return", "gem/success"} <= set(infos[0])


def learner(critic=None, **args):
    made = TurnLearner.__new__(TurnLearner)
    settings = {"tasks": "none", "rollout_batch_size_per_device": 10**6}
    made.args = gem_oat.GemArgs(**{**settings, **args})
    made.strategy = SimpleNamespace(world_size=1)
    made.critic, made.pi_buffer, made.query_step, made.actor_info = critic, [], 0, {}
    return made


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_oat_makes_the_references_returns_of_the_rewards(make_actor, own_tokenizer, gamma):
    fault_task()
    played, _ = make_actor(
        answer=say(own_tokenizer, "x"), tasks="env=test:FaultInjecting-v0,seeds=0:9"
    ).collect_experience()
    of_oat = learner(gamma=gamma)
    of_oat.process_feedback_data(played)
    got = [transition.info["advantages"] for transition in of_oat.pi_buffer]
    rewards = [[t.rewards for t in transitions] for transitions in played]
    expected = np.concatenate([discounted_returns(row, gamma) for row in rewards])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    whitened = advantages_in_the_loss(TurnLearner, got, whiten_adv=True)
    np.testing.assert_allclose(whitened, np.concatenate(rebn(rewards, gamma)), atol=1e-5)


# --- the learners' arithmetic


class TurnLearner(gem_oat.GemLearnerMixin, PPOMultiTurnLearner):
    pass


class GroupLearner(gem_oat.GemLearnerMixin, PPOLearner):
    pass


def advantages_in_the_loss(learner_class, returns, valid=None, ranks=1, rank=0, **options):
    """Run Oat's own learning step on one row a return; return the advantage that each row has in the loss.

    A row is a prompt of two tokens and one sampled token. The model's probabilities are 1, as the actor's.
    """
    valid = [True] * len(returns) if valid is None else valid
    settings = {"pretrain": "none", "tasks": "none", "generate_max_length": 1, "beta": 0.0, **options}
    made = learner_class.__new__(learner_class)
    made.args = gem_oat.GemArgs(**settings)
    made.critic = made.ref_model = made.model = made.optimizer = made.scheduler = None
    seen, losses = [], {}

    def batch_logps(input_ids, att_mask, **_):
        seen[:] = [int(input_ids[0, 0])]
        nothing = torch.zeros(1, input_ids.shape[1] - 1)
        return nothing, nothing

    made.get_batch_logps = batch_logps
    made.masked_aggregator = lambda values, mask, axis: values[:, -1]
    made.strategy = SimpleNamespace(
        grad_acc_step=1,
        world_size=ranks,
        get_rank=lambda: rank,
        backward=lambda loss, *_: losses.update({seen[0]: float(loss)}),
        get_gradient_norm=lambda *_: 0.0,
        optimizer_step=lambda *_: None,
    )
    in_groups = learner_class is GroupLearner
    made.learning_step(
        {
            "input_ids": torch.tensor([[i, 1, 2] for i in range(len(returns))]),
            "attention_mask": torch.ones(len(returns), 3),
            "state_ids": [torch.tensor([i, 1]) for i in range(len(returns))],
            "rewards": [[value] for value in returns] if in_groups else list(returns),
            "loss_masks": list(valid),
            "prompt_ids_lens": [2] * len(returns),
            "action_logprobs": [[0.0]] * len(returns),
            "advantages": [np.float32(value) for value in returns],
            "returns": list(returns),
            "values": [0.0] * len(returns),
        }
    )
    return np.array([-losses[i] for i in range(len(returns))])


TURNS = {"learner_class": TurnLearner, "whiten_adv": True}
GRPO = {"learner_class": GroupLearner, "critic_type": "grpo", "num_samples": 4}
DR_GRPO = {**GRPO, "critic_type": "drgrpo"}


def reference(how, returns):
    """Return the advantages of a batch in which every row is valid."""
    if how is TURNS:
        return rebn([[value] for value in returns])
    return group_advantages(returns, 4, how is GRPO, eps=1e-8)


@pytest.mark.parametrize("how", [TURNS, GRPO, DR_GRPO])
@pytest.mark.parametrize("value", [-0.1, 0.1, 1 / 3, 1e-30, 1e30, 0.0])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_advantages_of_equal_returns_are_exactly_0(how, value, noise):
    returns = value * (1 + noise * np.array([0, 1, -1, 1] * 4))
    assert advantages_in_the_loss(returns=returns, **how).tolist() == [0.0] * 16


def test_advantages_of_a_single_turn_are_0():
    assert advantages_in_the_loss(returns=[0.7], **TURNS).tolist() == [0.0]


@pytest.mark.parametrize("how", [TURNS, GRPO, DR_GRPO])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_advantages_are_the_references_whatever_the_size_of_the_rewards(how, size):
    returns = size * np.random.default_rng(0).normal(size=16)
    np.testing.assert_allclose(
        advantages_in_the_loss(returns=returns, **how), np.ravel(reference(how, returns)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("how", [TURNS, GRPO, DR_GRPO])
def test_rows_of_weight_0_move_neither_the_others_nor_the_policy(how):
    returns = np.random.default_rng(1).normal(size=12)
    valid = np.array([True, False, True, True] + [False, False, True, False] + [False] * 4)
    got = advantages_in_the_loss(returns=returns, valid=valid, **how)
    assert not got[~valid].any()
    if how is TURNS:
        expected = advantages_in_the_loss(returns=returns[valid], **how) * 12 / 4
    else:  # of the second group nothing is left to compare with
        expected = np.append(group_advantages(returns[:4][valid[:4]], 3, how is GRPO, eps=1e-8), 0.0) * 12 / 4
    # Oat divides by the number of rows, 12: the weights make it the 4 that there are.
    np.testing.assert_allclose(got[valid], expected, atol=1e-5)


@pytest.mark.parametrize("how", [TURNS, GRPO, DR_GRPO, {"learner_class": TurnLearner}])
def test_a_batch_without_a_valid_row_has_no_weight_and_no_nan(how):
    assert not advantages_in_the_loss(returns=[0.5] * 8, valid=[False] * 8, **how).any()


def test_oats_loss_of_the_critic_of_turns_does_not_move_for_rows_of_weight_0():
    made = TurnLearner.__new__(TurnLearner)
    made.args, made._valid = gem_oat.GemArgs(tasks="none"), np.array([True, False])
    row = made._turns({"advantages": [1.0, 9.0], "returns": [1.0, 9.0], "values": [0.5, 0.25]})
    value = torch.tensor([0.4, 0.3], requires_grad=True)
    old, target, clip = torch.tensor(row["values"]), torch.tensor(row["returns"]), made.args.cliprange_value
    clipped = torch.clamp(value, old - clip, old + clip)  # as in Oat's learning_step
    torch.max(torch.square(value - target), torch.square(clipped - target)).sum().backward()
    assert row["advantages"] == [1.0, 0.0]
    assert value.grad.tolist() == [pytest.approx(-1.2), 0.0]


def test_with_a_critic_of_tokens_valid_tokens_are_normalised_over_all(monkeypatch):
    advantages = torch.tensor([[0.1, 0.3, 5.0], [0.1, 0.1, 9.0], [7.0, 7.0, 7.0]])
    masks = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    of_oat = (advantages, advantages, torch.zeros(3, 3))
    monkeypatch.setattr(PPOLearner, "compute_ppo_advantages", lambda *_: of_oat)
    made = GroupLearner.__new__(GroupLearner)
    made.strategy = SimpleNamespace(world_size=1, get_rank=lambda: 0)
    made._valid, made._whitens = np.array([True, True, False]), True
    got, _, _ = made.compute_ppo_advantages(None, None, None, masks)
    (expected,) = rebn([[0.1, 0.3, 0.1, 0.1]], gamma=0.0)
    np.testing.assert_allclose(got[:2, :2].ravel(), expected, atol=1e-5)
    assert not got[2].any()
    assert not got[:, 2].any()


def on_two_ranks(monkeypatch, work):
    """Run ``work(rank)`` in two threads, in which torch gathers from both."""
    barrier, values, here = threading.Barrier(2, timeout=60), [None, None], threading.local()

    def all_gather_object(gathered, value):
        values[here.rank] = value
        barrier.wait()
        gathered[:] = values
        barrier.wait()

    def run(rank):
        here.rank = rank
        return work(rank)

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, (0, 1)))


def test_advantages_and_weights_are_over_all_ranks(monkeypatch):
    returns = np.array([[0.1, 0.7, 0.1, 0.2], [0.5, 0.1, 0.3, 0.9]])
    valid = np.array([[True, True, False, True], [False, False, True, False]])
    options = {"ranks": 2, "whiten_adv": True}
    got = on_two_ranks(
        monkeypatch, lambda rank: advantages_in_the_loss(TurnLearner, returns[rank], valid[rank], rank=rank, **options)
    )
    got = np.array(got)
    np.testing.assert_allclose(got[valid], np.ravel(rebn([[v] for v in returns[valid]])) * 8 / 4, atol=1e-5)
    assert not got[~valid].any()


def test_metrics_of_several_actors_are_those_of_all_their_episodes(monkeypatch):
    both = ["mylab:a", "mylab:b"]
    batches = [
        [Episode(Task("mylab:a", 0)), Episode(Task("mylab:a", 1), turns=[paid(1.0)])],
        [
            Episode(Task("mylab:b", 0), turns=[paid(5.0)]),
            Episode(Task("mylab:b", 1), truncation="error"),
            Episode(Task("mylab:a", 2), turns=[paid(3.0)]),
        ],
    ]

    def metrics(rank):
        made = TurnLearner.__new__(TurnLearner)
        made.strategy = SimpleNamespace(world_size=2)
        made.actor_info = {"actor/avg_reward": float(rank), **logged_metrics(batches[rank], both)}
        monkeypatch.setattr(PPOMultiTurnLearner, "process_feedback_data", lambda *_: None)
        made.process_feedback_data([])
        return made.actor_info

    infos = on_two_ranks(monkeypatch, metrics)
    expected = {f"gem/{name}": value for name, value in mean_metrics(batches[0] + batches[1]).items()}
    assert expected["gem/return/mylab:a"] == pytest.approx(4 / 3)
    assert list(infos[0]) == list(infos[1])  # Oat reduces them in this order
    for rank, info in enumerate(infos):
        assert info["actor/avg_reward"] == rank  # Oat's own are Oat's to average
        assert {name: info[name] for name in expected} == pytest.approx(expected)
        assert (info["gem/episodes"], info["gem/valid_episodes"], info["gem/episodes/mylab:b"]) == (5.0, 4.0, 2.0)


# --- groups


def test_groups_begin_from_one_seed_and_stand_together(make_actor, own_tokenizer, tmp_path):
    options = {"num_samples": 4, "rollout_batch_size_per_device": 12}
    actor = make_actor(gem_oat.GemGroupActor, **options)
    rows = actor.step()
    tasks = [Task.from_json(row.prompt) for row in rows]
    assert [task.seed for task in tasks] == [0] * 4 + [1] * 4 + [2] * 4
    episodes = read_episodes(tmp_path / "episodes", "train")
    for row, episode in zip(rows, episodes, strict=True):
        (turn,) = episode.turns
        assert (row.prompt_ids, row.response_ids) == (turn.prompt_ids, turn.response_ids)
        assert row.response_logprobs == turn.logprobs
        assert row.rewards == [0.0] * (len(turn.response_ids) - 1) + [turn.reward]
    assert len({tuple(row.prompt_ids) for row in rows[:4]}) == 1
    assert len({tuple(row.response_ids) for row in rows}) > 1
    assert [Task.from_json(row.prompt).seed for row in actor.step()] == [3] * 4 + [4] * 4 + [5] * 4


def test_a_mean_over_tokens_needs_a_sum_over_them():
    with pytest.raises(ValueError, match="token_mean needs critic_type='drgrpo', got 'grpo'"):
        gem_oat.GemArgs(tasks="env=game:Mastermind-v0,seeds=0:1", critic_type="grpo", token_mean=True)


def test_groups_that_are_not_whole_or_of_one_are_refused(make_actor):
    with pytest.raises(ValueError, match="is not a multiple of num_samples=5"):
        make_actor(gem_oat.GemGroupActor, num_samples=5)
    with pytest.raises(ValueError, match="drgrpo needs groups of at least 2"):
        make_actor(gem_oat.GemGroupActor)
    with pytest.raises(ValueError, match="have no groups in Oat"):
        make_actor(num_samples=4)


@pytest.mark.parametrize("on_error", ["mask", "keep"])
def test_a_member_that_fails_has_the_weight_0(make_actor, own_tokenizer, tmp_path, on_error):
    rows = [failing("never"), failing("step", 1)]
    options = {"tasks": written(tmp_path, rows), "num_samples": 2, "rollout_batch_size_per_device": 4}
    rows = make_actor(gem_oat.GemGroupActor, say(own_tokenizer, "x"), on_error=on_error, **options).step()
    assert [row.loss_mask for row in rows] == [True, True] + [on_error == "keep"] * 2
    assert [row.rewards[-1] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert rows[0].info["gem/left_out"] == 0.5
    assert len({tuple(row.info) for row in rows}) == 1


@pytest.mark.parametrize("on_error", ["mask", "keep"])
def test_an_empty_generation_in_a_group_is_counted_and_has_the_weight_0(make_actor, own_tokenizer, on_error):
    options = {"tasks": f"env={ENV},seeds=0:9", "num_samples": 2, "rollout_batch_size_per_device": 4}
    actor = make_actor(gem_oat.GemGroupActor, lambda prompt: next(answers), on_error=on_error, **options)
    answers = iter([[], *[say(own_tokenizer, "x")([])] * 3])
    rows = actor.step()
    assert [row.loss_mask for row in rows] == [False, True, True, True]
    assert all(len(row.response_ids) == len(row.response_logprobs) == len(row.rewards) > 0 for row in rows)
    assert rows[0].info["gem/aborted"] == 0.25


# --- evaluation and data


def test_evaluation_plays_the_tasks_of_another_split(make_actor, own_tokenizer):
    task = Task(ENV, 3, split="eval")
    with task.make() as env:
        env.reset(task.reset_seed)
        win = "\\boxed{" + " ".join(map(str, env.game_code)) + "}"
    actor = make_actor(answer=say(own_tokenizer, win), eval_generate_max_length=64)
    tasks = [task, *(replace(task, seed=seed) for seed in (50, 51, 52))]
    answers, scores = actor.generate_and_maybe_eval([t.to_json() for t in tasks], [""] * 4, [""] * 4)
    assert len(answers) == 4
    assert scores.shape == (4, 1)
    assert scores[0, 0] == 1.0
    assert scores.sum() < 4


class Strategy:
    world_size = 2

    def setup_dataloader(self, data_set, batch_size, shuffle):
        from torch.utils.data import DataLoader

        return DataLoader(data_set, batch_size=batch_size, shuffle=shuffle)


def test_the_learner_has_as_many_batches_as_steps_and_the_tasks_to_evaluate_on():
    made = TurnLearner.__new__(TurnLearner)
    made.args = gem_oat.GemArgs(
        tasks="none",
        training_steps=7,
        rollout_batch_size=16,
        train_batch_size=16,
        rollout_batch_size_per_device=8,  # of two devices, each with its own sampler
        eval_tasks=f"env={ENV},seeds=0:5",
        eval_batch_size=2,
    )
    made.prepare_data(Strategy(), None)
    assert len(made.prompts_dataloader) == 14
    rows = [text for _, texts, _ in made.eval_prompts_dataloader for text in texts]
    assert [Task.from_json(text) for text in rows] == make_tasks(ENV, range(5), split="eval")


def test_tasks_that_do_not_exist_are_refused(make_actor):
    with pytest.raises(ValueError, match="env=<id>,seeds=<first>:<end>"):
        make_actor(tasks="env=x")


def test_evaluations_are_counted_by_environment_id_and_written_under_the_learners_step(
    make_actor, own_tokenizer, tmp_path
):
    tasks = [
        replace(failing("never"), split="eval"),
        replace(failing("step"), split="eval"),
        Task(ENV, 3, split="eval"),
    ]
    actor = make_actor(answer=say(own_tokenizer, "x"))
    step = ["step 7 of GemLearnerMixin, PPOMultiTurnLearner"]
    texts = [task.to_json() for task in tasks]
    scores = [actor.generate_and_maybe_eval([text], step, [""])[1].item() for text in texts]
    assert scores == [1.0, 0.0, 0.0]
    made = TurnLearner.__new__(TurnLearner)
    made.strategy, made.actors = SimpleNamespace(world_size=1, is_rank_0=lambda: True), [actor]
    made.eval_prompts_dataset = tasks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOMultiTurnLearner, "evaluate", lambda *_: {"eval/score": 1 / 3})
        info = made.evaluate(None, 7)
        assert (info["eval/score"], info["eval/gem/success"], info["eval/gem/left_out"]) == (1 / 3, 0.5, 1 / 3)
        assert "eval/gem/success" not in made.evaluate(None, 8)  # counted once
    assert len(read_episodes(tmp_path / "episodes", "eval", step=7)) == 3
    assert actor.evaluated == []


def test_without_tasks_to_evaluate_on_nothing_is_evaluated():
    made = TurnLearner.__new__(TurnLearner)
    made.eval_prompts_dataset = []
    assert made.evaluate(None, 1) == {}


def test_tasks_are_checked_before_training_and_training_tasks_are_none_to_evaluate_on(make_actor, tmp_path):
    good, unknown = Task(ENV, 0), Task("game:Nothing-v0", 1)
    with pytest.raises(ValueError, match="game:Nothing-v0"):
        make_actor(tasks=written(tmp_path, [good] * 5 + [unknown]))
    with pytest.raises(TypeError, match="cod_length"):
        make_actor(eval_tasks=f"env={ENV},seeds=0:2,cod_length=3")
    with pytest.raises(ValueError, match="where 'eval' is wanted"):
        make_actor(eval_tasks=written(tmp_path, [good]))
    with pytest.raises(ContextTooSmall, match="Allow a longer context"):
        make_actor(max_model_len=20)


def test_a_folder_that_has_episodes_is_refused_and_steps_are_in_the_files(make_actor, own_tokenizer, tmp_path):
    actor = make_actor(answer=say(own_tokenizer, "x"))
    for step in (1, 2):
        actor.step([f"step {step} of GemLearnerMixin, PPOMultiTurnLearner"] * 12)
    assert (
        0
        < len(read_episodes(tmp_path / "episodes", "train", step=2))
        < len(read_episodes(tmp_path / "episodes", "train"))
    )
    with pytest.raises(ValueError, match="holds the episodes of an earlier run"):
        make_actor()


@pytest.mark.parametrize("actor_class", [gem_oat.GemActor, gem_oat.GemGroupActor])
def test_a_learner_without_the_mixin_and_one_of_the_other_kind_are_refused(make_actor, actor_class):
    groups = {"num_samples": 4} if actor_class is gem_oat.GemGroupActor else {}
    actor = make_actor(actor_class, **groups)
    other = {"GemLearnerMixin, PPOMultiTurnLearner", "GemLearnerMixin, PPOLearner"} - {actor.learner}
    for prompt in ("What is 6 * 7?", f"step 1 of {other.pop()}"):
        with pytest.raises(RuntimeError, match=rf"needs another learner: class Learner\({actor.learner}\)"):
            actor.step([prompt])


def test_oats_own_data_loading_names_what_the_learner_lacks():
    from oat.utils.data import load_data_from_disk_or_hf  # which a learner without the mixin calls first

    with pytest.raises(Exception, match="need a learner with GemLearnerMixin"):
        load_data_from_disk_or_hf(gem_oat.GemArgs(tasks="none").prompt_data)


def test_tasks_are_shared_out_among_the_actors_that_oat_makes():
    for options, actors in [({"gpus": 8}, 4), ({"gpus": 8, "collocate": True}, 8), ({"gpus": 5}, 3), ({"gpus": 1}, 1)]:
        assert gem_oat_args.actors_per_group(gem_oat.GemArgs(tasks="none", **options)) == actors
    of_two = gem_oat.GemArgs(tasks="none", gpus=8, collocate=True, num_gpus_per_actor=2)
    assert gem_oat_args.actors_per_group(of_two) == 4


def test_every_actor_has_its_share_of_each_environment_id():
    tasks = load_tasks("env=a:A-v0,seeds=0:6;env=b:B-v0,seeds=0:4")
    shares = [gem_oat_actors._share(tasks, number, 2) for number in range(2)]
    ids = [[task.env_id for task in share] for share in shares]
    assert ids == [["a:A-v0", "b:B-v0", "a:A-v0", "b:B-v0", "a:A-v0"]] * 2
    assert sorted(map(Task.to_json, tasks)) == sorted(task.to_json() for share in shares for task in share)


# --- ends of turns, and the template


@pytest.mark.parametrize("actor_class", [gem_oat.GemActor, gem_oat.GemGroupActor])
def test_the_templates_end_of_turn_stops_the_engine_and_is_kept(make_actor, own_tokenizer, actor_class):
    groups = {"num_samples": 4} if actor_class is gem_oat.GemGroupActor else {}
    actor = make_actor(actor_class, **groups)
    actor.llm = ScriptedLLM(lambda prompt: [*say(own_tokenizer, "x")(prompt), *[5] * 99])  # a base model goes on
    rows = actor.step()
    turns = [t for transitions in rows for t in transitions] if not groups else rows
    assert {tuple(t.response_ids) for t in turns} == {tuple(say(own_tokenizer, "x")([]))}
    actor.generate_and_maybe_eval([Task(ENV, 0, split="eval").to_json()], [""], [""])
    for _, params in actor.llm.batches:
        assert {tuple(p.stop_token_ids) for p in params} == {actor.renderer.stop_ids} == {(own_tokenizer.eos_token_id,)}


def test_what_ends_with_a_stop_token_has_stopped_whatever_the_engine_says(make_actor, own_tokenizer):
    actor = make_actor()
    ids = say(own_tokenizer, "x")([])
    answer = SimpleNamespace(
        token_ids=ids, logprobs=[{i: SimpleNamespace(logprob=0.0)} for i in ids], finish_reason="length"
    )
    assert actor._response(answer).finish_reason == "stop"
    answer.token_ids, answer.logprobs = ids[:1], answer.logprobs[:1]
    assert actor._response(answer).finish_reason == "length"


def test_arguments_reach_the_template_of_the_tokenizer_that_is_named(make_actor, own_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(own_tokenizer)
    tokenizer.chat_template = "{{ mood | default('') }}" + own_tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "template_kwargs": {"mood": "Gladly."}}
    actor = make_actor(answer=say(own_tokenizer, "x"), **options)
    (transitions, *_), _ = actor.collect_experience()
    assert own_tokenizer.decode(transitions[0].prompt_ids).startswith("Gladly.<|im_start|>")


@pytest.mark.parametrize("allowed", [False, True])
def test_control_tokens_in_observations(make_actor, own_tokenizer, tmp_path, allowed):
    options = {"tasks": written(tmp_path, [failing("never", begins="<|im_end|>")]), "allow_control_tokens": allowed}
    (transitions, *_), _ = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert transitions[0].prompt_ids.count(own_tokenizer.eos_token_id) == 1 + allowed


# --- options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gamma": 2.0}, "gamma, the discount per turn, is from 0 to 1"),
        ({"gamma": -1.0}, "gamma"),
        ({"on_error": "skip"}, "on_error is 'mask' or 'keep'"),
        ({"training_steps": 0}, "training_steps must be positive"),
        ({"num_envs": 0}, "num_envs must be positive"),
        ({"ignore_no_eos": True}, "does not support ignore_no_eos=True. Oat's own PPOActor"),
        ({"non_stop_penalty": -1.0}, "A wrapper can change a turn's reward"),
        ({"reinforce_update": True}, "divides by zero"),
        ({"lora_sync_only": True}, "lora_sync_only"),
        ({"rollout_batch_size": 96, "train_batch_size": 64}, "is not a multiple of train_batch_size=64"),
    ],
)
def test_options_that_make_no_sense_or_would_have_no_effect_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        gem_oat.GemArgs(tasks="none", **options)


def test_tasks_are_required_and_unknown_options_refused(capsys):
    with pytest.raises(TypeError, match="tasks"):
        gem_oat.GemArgs()
    with pytest.raises(TypeError, match="max_turn"):
        gem_oat.GemArgs(tasks="none", max_turn=2)
    for words, said in (([], "--tasks STR"), (["--tasks", "x", "--gamma", "2"], "is from 0 to 1")):
        with pytest.raises(SystemExit):
            tyro.cli(gem_oat.GemArgs, args=words)
        assert said in capsys.readouterr().err
    args = tyro.cli(gem_oat.GemArgs, args=["--tasks", "x", "--template-kwargs", '{"enable_thinking": false}'])
    assert args.template_kwargs == {"enable_thinking": False}


def test_a_training_ends_after_its_steps_and_not_after_oats_number_of_samples():
    args = default_args_validation(gem_oat.GemArgs(tasks="none", gpus=1))
    assert args.max_queries >= 10**9


@pytest.mark.parametrize(("installed", "refused"), [("0.3.0", True), ("0.1.9", True), ("0.2.9", False)])
def test_versions_that_were_not_tested_are_refused_or_named(monkeypatch, caplog, installed, refused):
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    spec = importlib.util.spec_from_file_location("gem_oat_again", gem_oat.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gem_oat_again", module)
    if refused:
        with pytest.raises(ImportError, match=f"works with oat-llm 0.2.x, and {installed} is installed"):
            spec.loader.exec_module(module)
    else:
        spec.loader.exec_module(module)
        assert f"tested with oat-llm 0.2.4, and {installed} is installed" in caplog.text


# --- checkpoints


def checkpoint(folder, **progress):
    (folder / "step_00003").mkdir(parents=True)
    (folder / "latest").write_text("step_00003")
    (folder / "step_00003" / "gem-0.json").write_text(json.dumps(progress))
    return str(folder)


def test_a_resumed_run_goes_on_with_the_steps_and_the_tasks(make_actor, own_tokenizer, tmp_path):
    resume_dir = checkpoint(tmp_path / "checkpoints", step=3, tasks_played=[41])
    actor = make_actor(answer=say(own_tokenizer, "x"), resume_dir=resume_dir)
    assert [task.seed for _, task in zip(range(10), actor.next_tasks(), strict=False)] == [*range(41, 50), 0]

    made = TurnLearner.__new__(TurnLearner)
    sizes = {"rollout_batch_size": 4, "train_batch_size": 4, "rollout_batch_size_per_device": 2, "eval_batch_size": 1}
    made.args, made._done = gem_oat.GemArgs(tasks="none", training_steps=5, **sizes), 3
    made.prepare_data(Strategy(), None)
    assert len(made.prompts_dataset) == 5 * 4  # what Oat's schedules go by
    assert len(made.prompts_dataloader) == 2 * 2  # on two devices
    made.steps = 0  # as Oat's run() does
    assert made.steps == 3
    made.steps = 1
    seen = []
    for _, (prompt, _), _ in made.prompts_dataloader:
        seen.append(prompt)
        made.steps += 1
    assert seen == [f"step {n} of GemLearnerMixin, PPOMultiTurnLearner" for n in (4, 5, 6, 7)]
    made.args.training_steps = 3
    with pytest.raises(ValueError, match="training_steps=3 are done already"):
        made.prepare_data(Strategy(), None)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "checkpoints", step=3, tasks_played=[41, 40])
    with pytest.raises(ValueError, match="another number of actors than the 2"):
        gem_oat_args.resumed_from(gem_oat.GemArgs(tasks="none", gpus=1, resume_dir=folder))
    two = gem_oat.GemArgs(tasks="none", gpus=2, collocate=True, resume_dir=folder, resume_tag="step_00004")
    with pytest.raises(ValueError, match="save_ckpt"):
        gem_oat_args.resumed_from(two)


def test_beside_a_checkpoint_stands_how_far_the_run_has_come(monkeypatch, tmp_path):
    made = TurnLearner.__new__(TurnLearner)
    made.args, made.save_path = gem_oat.GemArgs(tasks="none", gpus=1), str(tmp_path)
    made.strategy = SimpleNamespace(is_group_rank_0=lambda: True)
    made.actors = [SimpleNamespace(tasks_played=lambda: 17)]
    monkeypatch.setattr(PPOMultiTurnLearner, "eval_and_log", lambda *_: None)
    for steps, save in ((2, False), (5, True)):  # Oat saves at last under a step more than there were
        made.steps = steps
        made.eval_and_log({}, save=save)  # nothing was saved
        (tmp_path / "checkpoints" / f"step_{steps:05d}").mkdir(parents=True)
        made.eval_and_log({}, save=save)
        args = replace(made.args, resume_dir=str(tmp_path / "checkpoints"), resume_tag=f"step_{steps:05d}")
        assert gem_oat_args.resumed_from(args) == gem_oat_args.Progress(steps - save, [17])


def test_a_buffer_that_drops_rows_is_refused():
    made = TurnLearner.__new__(TurnLearner)
    made._world_size = 2
    with pytest.raises(ValueError, match="pi_buffer_maxlen_per_device=16, and a step has 32 rows"):
        made._init(gem_oat.GemArgs(tasks="none", rollout_batch_size=64, train_batch_size=64), [])


# --- the CPU shims


def test_the_engine_samples_what_the_model_says(small_model):
    import torch

    engine = vllm.LLM(str(small_model), seed=1)
    params = vllm.SamplingParams(temperature=0.7, max_tokens=9, logprobs=1)
    prompts = [{"prompt_token_ids": ids} for ids in ([1, 5, 9], [7] * 20, [3])]
    for prompt, output in zip(prompts, engine.generate(prompts, [params] * 3), strict=True):
        (answer,) = output.outputs
        ids = prompt["prompt_token_ids"] + answer.token_ids
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids])).logits[0, len(prompt["prompt_token_ids"]) - 1 : -1] / 0.7
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        got = torch.tensor([row[token].logprob for token, row in zip(answer.token_ids, answer.logprobs, strict=True)])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    (until,) = engine.generate(prompts[:1], [replace(params, max_tokens=99, stop_token_ids=list(range(0, 600, 2)))])
    assert [token % 2 for token in until.outputs[0].token_ids[-2:]] in ([1, 0], [0])
    assert until.outputs[0].finish_reason == "stop"
    with pytest.raises(ValueError, match="samples one answer by temperature only"):
        engine.generate(prompts[:1], [replace(params, top_p=0.5)])


def test_calls_to_a_node_run_in_their_order_in_its_own_thread():
    import threading

    import launchpad

    class Node:
        def __init__(self):
            self.calls = []

        def add(self, value):
            self.calls.append((value, threading.get_ident()))
            return value * 2

    program = launchpad.Program("test")
    handle = program.add_node(launchpad.CourierNode(Node), label="node")
    futures = [handle.futures.add(i) for i in range(20)]
    assert [future.result() for future in futures] == [2 * i for i in range(20)]
    assert handle.add(50) == 100
    calls = program.nodes["node"].instance.calls
    assert [value for value, _ in calls] == [*range(20), 50]
    assert {thread for _, thread in calls} == {calls[0][1]} != {threading.get_ident()}

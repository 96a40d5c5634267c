"""The Oat adapter without a training: Oat's own actors and learner, a scripted engine, and the stand-ins of a CPU."""

import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("oat") is None:
    pytest.skip("oat is not installed", allow_module_level=True)

STAND_INS = Path(__file__).parents[2] / "ci" / "cpu" / "oat"
sys.path[:0] = [str(STAND_INS / "engine_hf"), str(STAND_INS)]

import oat_cpu  # noqa: F401 - puts the stand-ins in their places
import vllm
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from oat.args import default_args_validation

import gem_oat
from gem.rollout import discounted_returns, read_episodes, rebn, replay
from gem.tasks import Task, make_tasks
from gem.testing.talk import talking
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
            whole = self.answer(prompt["prompt_token_ids"])
            ids = list(whole)[: params.max_tokens]
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
    talking()
    actor = make_actor(answer=lambda prompt: [x] * 99, tasks="env=test:Talk-v0,seeds=0:9,length=9", max_model_len=80)
    played, metrics = actor.collect_experience()
    turns = [t for transitions in played for t in transitions]
    assert all(len(t.response_ids) <= 16 and len(t.prompt_ids) + len(t.response_ids) <= 80 for t in turns)
    assert any(t.response_is_truncated for t in turns)
    assert metrics["gem/truncated_context"] == 1.0
    second = played[0][1].prompt_ids
    seen = played[0][0].prompt_ids + played[0][0].response_ids
    assert second[: len(seen) + 1] == [*seen, own_tokenizer.eos_token_id]  # the cut turn is closed


def test_turns_limit_and_system_message(make_actor, own_tokenizer):
    talking()
    options = {"tasks": "env=test:Talk-v0,seeds=0:9", "max_turns": 2, "system": "Play well."}
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert {len(transitions) for transitions in played} == {2}
    assert metrics["gem/truncated_turns"] == 1.0
    assert own_tokenizer.decode(played[0][0].prompt_ids).startswith("<|im_start|>system\nPlay well.<|im_end|>")


def test_histories_that_are_rewritten_are_played_too(make_actor, own_tokenizer):
    (wrap,) = get_wrapper_fns("concat_with_action", own_tokenizer)
    talking()

    class Rewriting(gem_oat.GemActor):
        make_env = staticmethod(lambda task: wrap(task.make()))

    actor = make_actor(Rewriting, answer=say(own_tokenizer, "x"), tasks="env=test:Talk-v0,seeds=0:9")
    (transitions, *_), _ = actor.collect_experience()
    seen = transitions[0].prompt_ids + transitions[0].response_ids
    assert len(transitions) == 4
    assert transitions[1].prompt_ids[: len(seen)] != seen


def test_of_16_episodes_those_that_misbehave_end_alone_and_are_counted(make_actor, own_tokenizer, tmp_path):
    rows = [talking(seed=seed) for seed in range(16)]
    rows[3], rows[7], rows[11] = talking("raises"), talking("hangs"), talking("floods")
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(task.to_json() + "\n" for task in rows))
    options = {"tasks": str(path), "num_envs": 16, "rollout_batch_size_per_device": 16, "step_timeout": 2}
    since = time.perf_counter()
    played, metrics = make_actor(answer=say(own_tokenizer, "x"), **options).collect_experience()
    assert time.perf_counter() - since < 30
    returns = [sum(t.rewards for t in transitions) for transitions in played]
    assert returns == [{3: 1.0, 7: 1.0, 11: 3.0}.get(i, 10.0) for i in range(16)]
    assert metrics["gem/environment_errors"] == 2 / 16
    assert metrics["gem/truncated_context"] == 1 / 16


def test_oats_own_step_takes_it(make_actor):
    handed_over = make_actor().step()
    infos = [transition.info for transitions in handed_over for transition in transitions]
    assert len({tuple(info) for info in infos}) == 1
    assert {"actor/mean_episode_return", "gem/success"} <= set(infos[0])


def learner(critic=None, **args):
    learner = PPOMultiTurnLearner.__new__(PPOMultiTurnLearner)
    settings = {"gamma": 1.0, "lam": 1.0, "rollout_batch_size_per_device": 10**6, "dump_all_buffer": False}
    learner.args = SimpleNamespace(**{**settings, **args})
    learner.critic, learner.pi_buffer, learner.query_step = critic, [], 0
    return learner


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_oat_makes_the_references_returns_of_the_rewards(make_actor, own_tokenizer, gamma):
    talking()
    played, _ = make_actor(answer=say(own_tokenizer, "x"), tasks="env=test:Talk-v0,seeds=0:9").collect_experience()
    of_oat = learner(gamma=gamma)
    of_oat.process_feedback_data(played)
    got = [transition.info["advantages"] for transition in of_oat.pi_buffer]
    rewards = [[t.rewards for t in transitions] for transitions in played]
    expected = np.concatenate([discounted_returns(row, gamma) for row in rewards])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    whitened = (np.array(got) - np.mean(got)) / (np.std(got) + 1e-9)  # as `whiten_adv` has it
    np.testing.assert_allclose(whitened, np.concatenate(rebn(rewards, gamma)), atol=1e-5)


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


def test_groups_that_are_not_whole_are_refused(make_actor):
    actor = make_actor(gem_oat.GemGroupActor, num_samples=5)
    with pytest.raises(ValueError, match="is not a multiple of num_samples=5"):
        actor.step()


# --- evaluation and data


def test_evaluation_plays_the_tasks_of_another_split(make_actor, own_tokenizer):
    task = Task(ENV, 3, split="eval")
    with task.make() as env:
        env.reset(task.reset_seed)
        win = "\\boxed{" + " ".join(map(str, env.code)) + "}"
    actor = make_actor(answer=say(own_tokenizer, win), eval_generate_max_length=64)
    tasks = [task, *(replace(task, seed=seed) for seed in (50, 51, 52))]
    answers, scores = actor.generate_and_maybe_eval([t.to_json() for t in tasks], [""] * 4, [""] * 4)
    assert len(answers) == 4
    assert scores.shape == (4, 1)
    assert scores[0, 0] == 1.0
    assert scores.sum() < 4


class Strategy:
    def setup_dataloader(self, data_set, batch_size, shuffle):
        from torch.utils.data import DataLoader

        return DataLoader(data_set, batch_size=batch_size, shuffle=shuffle)


def test_the_learner_has_as_many_batches_as_steps_and_the_tasks_to_evaluate_on():
    class Learner(gem_oat.GemLearnerMixin):
        args = SimpleNamespace(
            training_steps=7,
            rollout_batch_size=16,
            rollout_batch_size_per_device=8,  # of two devices, each with its own sampler
            eval_tasks=f"env={ENV},seeds=0:5",
            eval_batch_size=2,
        )

    made = Learner()
    made.prepare_data(Strategy(), None)
    assert len(made.prompts_dataloader) == 14
    rows = [text for _, texts, _ in made.eval_prompts_dataloader for text in texts]
    assert [Task.from_json(text) for text in rows] == make_tasks(ENV, range(5), split="eval")


def test_tasks_that_do_not_exist_are_refused(make_actor):
    with pytest.raises(ValueError, match="env=<id>,seeds=<first>:<end>"):
        make_actor(tasks="env=x")


# --- the stand-ins


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

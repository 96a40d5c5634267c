"""The verl adapter without Ray: verl's own configuration, agent-loop worker and estimators, and a scripted server."""

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl")

import torch
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder
from verl.workers.rollout.replica import TokenOutput

import gem_verl
from gem.rollout import ChatRenderer, Response, discounted_returns, read_jsonl, rebn, replay, spread_over_tokens
from gem.tasks import Task, make_tasks
from gem.testing.talk import TALK, talking
from gem.wrappers import TimeLimit, get_wrapper_fns

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_verl.py"
ENV = "game:Mastermind-v0-easy"  # pays in every turn


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return AutoTokenizer.from_pretrained(small_model)


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("train_verl")


@pytest.fixture
def config(example, small_model, tmp_path):
    """Return verl's configuration as the example sets it, with other keys of choice."""

    def make(*keys, algorithm="rebn", **options):
        args = example.Args(model=str(small_model), env=ENV, algorithm=algorithm, max_new_tokens=16)
        args.fill_in()
        parts = example.gem_keys(args, tmp_path), example.algorithm_keys(args, str(small_model))
        job = (
            example.job_keys(args, str(small_model), tmp_path)
            + example.cpu_keys("/tmp/ray")
            + example.plain_attention_keys()
        )
        lines = [f"  {name}: {json.dumps(value)}" for name, value in options.items()]
        head = ["- name: gem", "  _target_: gem_verl.GemAgentLoop"]
        (tmp_path / "gem.yaml").write_text("\n".join(head + lines) + "\n")
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=[*parts[0], *parts[1], *job, *keys])

    return make


class ScriptedServer:
    """Answers what it is told to, as verl's client does; remembers what it was asked."""

    def __init__(self, *answers, logprob=-0.5, stop_reason="completed", version=7):
        self.answers = answers
        self.logprob, self.stop_reason, self.version = logprob, stop_reason, version
        self.asked: dict[str, list] = {}

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        await asyncio.sleep(0.001)
        asked = self.asked.setdefault(request_id, [])
        asked.append((prompt_ids, sampling_params))
        ids = list(self.answers[min(len(asked), len(self.answers)) - 1])[: sampling_params["max_tokens"]]
        logprobs = [self.logprob - i for i in range(len(ids))] if sampling_params.get("logprobs") else None
        version = {"min_global_steps": self.version + len(asked), "max_global_steps": self.version + 2 * len(asked)}
        return TokenOutput(token_ids=ids, log_probs=logprobs, stop_reason=self.stop_reason, extra_fields=version)


class Worker(AgentLoopWorker):
    """verl's worker, which hands out what an agent loop returns instead of storing it."""

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        return output


SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


def play(config, server, *tasks, sampling_params=SAMPLING):
    """Play tasks as verl does, each as a row of the data set; return the outputs of each."""
    worker = Worker(config, server)
    info = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}

    async def run():
        rows = [{"task": task.to_json(), "global_steps": 3, "uid": str(i)} for i, task in enumerate(tasks)]
        return await asyncio.gather(
            *(worker._run_agent_loop(dict(sampling_params), info, agent_name="gem", **row) for row in rows)
        )

    return [output if isinstance(output, list) else [output] for output in asyncio.run(run())]


def answers(tokenizer, *texts):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]


def chat(tokenizer):
    """Return answers of which the second is never ended by the model."""
    one, two, three, four = answers(tokenizer, "one", "two and", "three", "four")
    return [one, two[:-1] * 20, three, four]


TASK = Task(ENV, seed=5)


# --- the agent loop


def test_concat_gives_the_whole_episode_with_every_reward_in_its_place(config, tokenizer, tmp_path):
    server = ScriptedServer(*chat(tokenizer))
    ((output,),) = play(config(max_turns=4, max_new_tokens=12, episodes=str(tmp_path / "e")), server, talking())
    (file,) = (tmp_path / "e").iterdir()
    (episode,) = read_jsonl(file)
    row = episode.as_sequence()
    assert file.name.startswith("train-3-")
    assert replay(episode) == []
    assert len(episode.turns) == 4
    assert output.prompt_ids == row.prompt_ids.tolist()
    assert output.response_ids == row.completion_ids.tolist()
    assert output.response_mask == row.mask.tolist()
    assert output.response_logprobs == row.logprobs.tolist()
    fields = output.as_dict()
    assert fields["rm_scores"].tolist() == pytest.approx(row.rewards.tolist())
    assert [reward for reward in fields["rm_scores"].tolist() if reward] == [1, 2, 3, 4]
    assert output.reward_score == pytest.approx(episode.total_reward)
    assert fields["rollout_log_probs"].shape == fields["responses"].shape == fields["response_mask"].shape
    assert "token_rewards" not in fields


def test_what_the_server_sampled_is_what_the_actor_learns_from(config, tokenizer):
    odd = [tokenizer.convert_tokens_to_ids(c) for c in "\\boxed{1234}"]  # a split that encoding never gives
    server = ScriptedServer([*odd, tokenizer.eos_token_id])
    ((output,),) = play(config(max_turns=2), server, talking())
    sampled = [token for token, mask in zip(output.response_ids, output.response_mask, strict=True) if mask]
    assert sampled == [*odd, tokenizer.eos_token_id] * 2
    (asked,) = server.asked.values()  # one request id: verl keeps an episode on the server that has its prefix
    last_prompt = asked[-1][0]
    assert (output.prompt_ids + output.response_ids)[: len(last_prompt)] == last_prompt


def test_turn_gives_a_sample_a_turn_with_its_discounted_return(config, tokenizer, tmp_path):
    server = ScriptedServer(*chat(tokenizer))
    options = {"mode": "turn", "max_turns": 4, "max_new_tokens": 12, "episodes": str(tmp_path / "e")}
    (outputs,) = play(config("algorithm.gamma=0.5", **options), server, talking())
    (episode,) = read_jsonl(next((tmp_path / "e").iterdir()))
    expected = episode.as_transitions(gamma=0.5)
    assert len(outputs) == 4
    for output, turn in zip(outputs, expected, strict=True):
        assert output.prompt_ids == turn.prompt_ids.tolist()
        assert output.response_ids == turn.response_ids.tolist()
        assert output.response_logprobs == turn.logprobs.tolist()
        assert output.response_mask == [1] * len(turn.response_ids)
        scores = output.as_dict()["rm_scores"]
        assert scores[:-1].tolist() == [0.0] * (len(scores) - 1)
        assert scores[-1].item() == pytest.approx(turn.return_to_go)
    assert expected[0].return_to_go == 1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 4))


@pytest.mark.parametrize(("algorithm", "split"), [("grpo", "train"), ("rebn", "eval")])
def test_turn_gives_the_whole_return_where_verl_takes_one_sample_for_the_session(config, tokenizer, algorithm, split):
    task = replace(talking(seed=5), split=split)
    server = ScriptedServer(*chat(tokenizer))
    (outputs,) = play(config(algorithm=algorithm, mode="turn", max_turns=3), server, task)
    ((whole,),) = play(config(algorithm=algorithm, max_turns=3), ScriptedServer(*chat(tokenizer)), task)
    assert [output.as_dict()["rm_scores"].sum().item() for output in outputs] == pytest.approx([whole.reward_score] * 3)


def test_sampling_parameters_reach_the_server_with_the_limit_of_the_turn(config, tokenizer):
    server = ScriptedServer(*answers(tokenizer, "x"))
    play(config(max_turns=1, max_new_tokens=9), server, talking(), sampling_params={**SAMPLING, "temperature": 0.25})
    ((_, params),) = next(iter(server.asked.values()))
    assert params == {**SAMPLING, "temperature": 0.25, "max_tokens": 9}


def test_without_log_probabilities_there_are_none(config, tokenizer):
    server = ScriptedServer(*answers(tokenizer, "x"))
    ((output,),) = play(config(max_turns=2), server, talking(), sampling_params={**SAMPLING, "logprobs": False})
    assert output.response_logprobs is None
    assert "rollout_log_probs" not in output.as_dict()


def test_an_output_says_which_weights_it_was_sampled_with_and_how_it_went(config, tokenizer):
    ((output,),) = play(config(max_turns=3), ScriptedServer(*answers(tokenizer, "x")), talking())
    assert output.extra_fields["min_global_steps"] == 8
    assert output.extra_fields["max_global_steps"] == 13
    metrics = output.extra_fields["reward_extra_info"]
    assert metrics["turns"] == 3
    assert metrics["truncated_turns"] == 1
    assert metrics["acc"] == 0  # it was not over
    assert "success" not in metrics
    assert metrics["sampled_tokens"] == sum(output.response_mask)
    assert {"return", "truncated_context", "aborted", "environment_errors"} <= set(metrics)
    assert output.num_turns == 6
    assert output.metrics.generate_sequences > 0


@pytest.mark.parametrize("mode", ["concat", "turn"])
def test_a_completion_is_never_longer_than_max_response_length(config, tokenizer, mode):
    rambling = ScriptedServer([tokenizer.convert_tokens_to_ids("x")] * 500)
    (outputs,) = play(config("data.max_response_length=70", mode=mode, max_new_tokens=20), rambling, talking())
    assert all(len(output.response_ids) <= 70 for output in outputs)
    assert outputs[-1].extra_fields["reward_extra_info"]["truncated_context"] == (mode == "concat")


def test_finish_reasons_come_from_the_tokens_since_the_server_calls_both_completed(config, tokenizer, tmp_path):
    x = tokenizer.convert_tokens_to_ids("x")
    end = tokenizer.eos_token_id
    server = ScriptedServer([x] * 8, [x, end], [x] * 3, [x] * 7 + [end])
    play(config(max_turns=4, max_new_tokens=8, episodes=str(tmp_path / "e")), server, talking())
    (episode,) = read_jsonl(next((tmp_path / "e").iterdir()))
    assert [turn.finish_reason for turn in episode.turns] == ["length", "stop", "stop", "stop"]


def test_a_generation_that_is_aborted_before_the_first_token_gives_nothing(config):
    assert play(config(), ScriptedServer([], stop_reason="aborted"), TASK) == [[]]


def test_an_abort_with_tokens_keeps_them(config, tokenizer):
    x = tokenizer.convert_tokens_to_ids("x")
    ((output,),) = play(config(), ScriptedServer([x, x], stop_reason="aborted"), TASK)
    assert output.response_ids == [x, x]
    assert output.extra_fields["reward_extra_info"]["aborted"] == 1


# --- tokens, against verl's own builder


def verl_tokens(tokenizer, observations, responses):
    """Build an episode's ids and mask with verl's continuous-token builder."""
    builder = create_continuous_token_builder(tokenizer, hf_model_type="qwen3", chat_template_kwargs={})
    messages = [{"role": "user", "content": observations[0]}]
    ids, mask = builder.build_initial_tokens(messages), []
    first = len(ids)
    for response, observation in zip(responses, [*observations[1:], None], strict=True):
        merged = builder.merge_assistant_tokens(ids, response)
        mask, _ = builder.align_response_metadata(merged, mask, None)
        ids = merged.token_ids
        before = [*messages, {"role": "assistant", "content": tokenizer.decode(response, skip_special_tokens=True)}]
        if observation is None:
            break
        messages = [*before, {"role": "user", "content": observation}]
        merged = builder.merge_context_tokens(before, messages, ids)
        mask, _ = builder.align_response_metadata(merged, mask, None)
        ids = merged.token_ids
    return ids[:first], ids[first:], mask


def gem_tokens(tokenizer, observations, responses):
    renderer = ChatRenderer(tokenizer)
    prompt, completion, mask = renderer.first(observations[0]), [], []
    for i, response in enumerate(responses):
        bridge = renderer.bridge(responses[i - 1], observations[i]) if i else []
        completion += bridge + response
        mask += [0] * len(bridge) + [1] * len(response)
    return prompt, completion, mask


OBSERVATIONS = ["Guess a number.\nfrom 1 to 9", "higher", "  lower \n\n", "End?"]


def test_tokens_of_clean_turns_are_those_of_verls_builder(tokenizer):
    responses = answers(tokenizer, "I say \\boxed{5}", "", "\\boxed{7}\n", "x")
    assert gem_tokens(tokenizer, OBSERVATIONS, responses) == verl_tokens(tokenizer, OBSERVATIONS, responses)


def test_a_cut_turn_is_closed_here_and_left_open_by_verls_builder(tokenizer):
    """There the user's message follows the cut text at once, which no chat template would render."""
    cut, whole = answers(tokenizer, "I say", "\\boxed{7}")
    cut.pop()
    ours, theirs = (tokens(tokenizer, OBSERVATIONS[:2], [cut, whole]) for tokens in (gem_tokens, verl_tokens))
    prompt, completion, mask = theirs
    closing = [tokenizer.eos_token_id, *tokenizer("\n", add_special_tokens=False)["input_ids"]]
    n = len(cut)
    assert ours[0] == prompt
    assert ours[1] == completion[:n] + closing + completion[n:]
    assert ours[2] == mask[:n] + [0] * len(closing) + mask[n:]


# --- configuration


def test_an_option_that_does_not_exist_is_refused_with_those_there_are(config):
    with pytest.raises(Exception, match="has no option max_turn: there are mode, max_turns"):
        play(config(max_turn=3), ScriptedServer([1]), TASK)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "dense"}, "mode is 'concat' or 'turn', got 'dense'"),
        ({"max_turns": 0}, "max_turns must be positive"),
        ({"max_new_tokens": 5000}, "max_new_tokens=5000 is more than data.max_response_length="),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(config, option, message):
    with pytest.raises(Exception, match=message):
        play(config(**option), ScriptedServer([1]), TASK)


def test_a_row_of_another_data_set_is_refused_with_what_to_set(config):
    worker = Worker(config(), ScriptedServer([1]))
    info = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    with pytest.raises(ValueError, match=r"data\.custom_cls\.path=pkg://gem_verl"):
        asyncio.run(worker._run_agent_loop(SAMPLING, info, agent_name="gem", raw_prompt=[]))


def test_wrappers_go_in_by_make_env(config, tokenizer):
    hook = {"_target_": "hydra.utils.get_method", "path": "tests_verl_hook.impatient"}
    module = sys.modules["tests_verl_hook"] = type(sys)("tests_verl_hook")
    module.impatient = lambda task: TimeLimit(task.make(), 2)
    ((output,),) = play(config(make_env=hook), ScriptedServer(*answers(tokenizer, "x")), talking())
    assert output.extra_fields["reward_extra_info"]["turns"] == 2


def test_a_history_that_is_rewritten_needs_a_sample_a_turn(config, tokenizer):
    (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
    module = sys.modules["tests_verl_hook"] = type(sys)("tests_verl_hook")
    module.rewriting = lambda task: wrap(task.make())
    hook = {"_target_": "hydra.utils.get_method", "path": "tests_verl_hook.rewriting"}
    with pytest.raises(ValueError, match=rf"rewrites the history of {TALK}.*mode: turn"):
        play(config(make_env=hook), ScriptedServer(*answers(tokenizer, "x")), talking())
    (outputs,) = play(config(make_env=hook, mode="turn"), ScriptedServer(*answers(tokenizer, "x")), talking())
    assert len(outputs) == 4


def test_a_system_message_and_template_arguments_come_from_the_data_config(config, tokenizer):
    ((output,),) = play(config("+data.system='Play well.'"), ScriptedServer(*answers(tokenizer, "x")), TASK)
    assert tokenizer.decode(output.prompt_ids).startswith("<|im_start|>system\nPlay well.<|im_end|>")


# --- the data set


def data_set(config, tokenizer, split="train"):
    files = config.data.train_files if split == "train" else config.data.val_files
    return create_rl_dataset(files, config.data, tokenizer, None, is_train=split == "train", max_samples=-1)


def test_rows_are_tasks_and_the_splits_share_no_episode(config, tokenizer):
    same_seeds = ["data.train_files='env=game:GuessTheNumber-v1-easy,seeds=0:9'"]
    same_seeds += ["data.val_files='env=game:GuessTheNumber-v1-easy,seeds=0:8'"]
    conf = config(*same_seeds)
    train, val = data_set(conf, tokenizer), data_set(conf, tokenizer, "val")
    assert (len(train), len(val)) == (9, 8)
    seeds = [{Task.from_json(row["task"]).reset_seed for row in rows} for rows in ([*train], [*val])]
    assert not seeds[0] & seeds[1]
    assert train[3]["data_source"] == "game:GuessTheNumber-v1-easy"


def test_rows_go_through_verls_collation_and_back_into_the_agent_loop(config, tokenizer):
    conf = config()
    rows = data_set(conf, tokenizer)
    batch = tensordict_utils.get_tensordict(collate_fn([rows[0], rows[1]]))
    assert [Task.from_json(task) for task in batch["task"]] == rows.tasks[:2]
    assert list(batch["agent_name"]) == ["gem", "gem"]


def test_tasks_come_from_several_sources_and_files(config, tokenizer, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(task.to_json() for task in make_tasks("game:Minesweeper-v0-easy", range(3))))
    conf = config(f"data.train_files=['env={ENV},seeds=0:2','{path}']", "data.train_max_samples=4")
    assert [task.env_id for task in data_set(conf, tokenizer).tasks] == [ENV] * 2 + ["game:Minesweeper-v0-easy"] * 3


def test_at_most_max_samples_are_taken(config, tokenizer):
    conf = config()
    rows = create_rl_dataset(conf.data.train_files, conf.data, tokenizer, None, max_samples=3)
    assert len(rows) == 3


def test_the_same_source_for_training_and_validation_is_refused(config, tokenizer):
    source = f"'env={ENV},seeds=0:9'"
    conf = config(f"data.train_files={source}", f"data.val_files={source}")
    with pytest.raises(ValueError, match="write ',split=eval'"):
        data_set(conf, tokenizer)


def test_too_small_a_prompt_length_is_an_error_before_training(config, tokenizer):
    needed = len(ChatRenderer(tokenizer).first(first_observation(TASK)))
    with pytest.raises(ValueError, match=rf"data.max_prompt_length={needed - 1} is too small.*or more"):
        data_set(config(f"data.max_prompt_length={needed - 1}"), tokenizer)
    data_set(config(f"data.max_prompt_length={needed}"), tokenizer)


def first_observation(task):
    with task.make() as env:
        return env.reset(task.reset_seed)[0]


def test_the_prompt_length_is_also_kept_to_where_the_rehearsal_did_not_look(config, tokenizer):
    """Nothing is ever cut from a prompt: the row fails, and says so."""
    keys = ("data.max_prompt_length=20", "data.max_response_length=20")
    with pytest.raises(Exception, match="the context holds 40"):
        play(config(*keys, max_new_tokens=8), ScriptedServer([1]), TASK)


def test_an_unknown_environment_is_refused_with_the_nearest(config, tokenizer):
    with pytest.raises(Exception, match="The nearest"):
        data_set(config("data.train_files='env=game:Mastermynd-v0-easy,seeds=0:9'"), tokenizer)


# --- environments that misbehave


@pytest.mark.parametrize("mode", ["concat", "turn"])
def test_of_a_batch_of_16_those_that_misbehave_end_alone_and_are_counted(config, tokenizer, mode):
    tasks = [talking("well", seed) for seed in range(16)]
    tasks[3], tasks[7], tasks[11] = talking("raises"), talking("hangs"), talking("floods")
    server = ScriptedServer(*answers(tokenizer, "x"))
    since = time.perf_counter()
    batch = play(config(mode=mode, step_timeout=2), server, *tasks)
    assert time.perf_counter() - since < 30
    metrics = [outputs[-1].extra_fields["reward_extra_info"] for outputs in batch]
    assert [i for i, m in enumerate(metrics) if m["environment_errors"]] == [3, 7]
    assert [i for i, m in enumerate(metrics) if m["truncated_context"]] == [11]
    assert [m["return"] for m in metrics] == [{3: 1.0, 7: 1.0, 11: 3.0}.get(i, 10.0) for i in range(16)]
    assert all(sum(sum(output.response_mask) for output in outputs) > 0 for outputs in batch)


def test_steps_that_block_do_not_hold_up_the_event_loop(config, tokenizer):
    worker = Worker(config(), ScriptedServer(*answers(tokenizer, "x")))
    info = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}

    async def run():
        rows = [{"task": talking("works", seed).to_json()} for seed in range(16)]
        job = asyncio.gather(*(worker._run_agent_loop(SAMPLING, info, agent_name="gem", **row) for row in rows))
        beats = 0
        while not job.done():
            await asyncio.sleep(0.01)
            beats += 1
        return await job, beats

    since = time.perf_counter()
    outputs, beats = asyncio.run(run())
    assert time.perf_counter() - since < 16 / 2
    assert beats > 20
    assert len(outputs) == 16


# --- ReBN


@pytest.fixture
def batch(config, tokenizer, tmp_path):
    """Return episodes of several lengths as verl's batch in either mode, with rows that fill it up."""

    def make(mode, gamma):
        tasks = [talking("well", seed, length=1 + seed % 4) for seed in range(6)]
        folder = tmp_path / mode
        conf = config(f"algorithm.gamma={gamma}", mode=mode, max_turns=4, episodes=str(folder))
        played = [play(conf, ScriptedServer(*chat(tokenizer)), task)[0] for task in tasks]
        episodes = [e for file in folder.iterdir() for e in read_jsonl(file)]
        rows = [row.as_dict() for outputs in played for row in outputs]
        keys = [f"u{i}_0_{j}" for i, outputs in enumerate(played) for j in range(len(outputs))]
        filler = {"response_mask": torch.zeros(1, dtype=torch.int64), "rm_scores": torch.zeros(1)}
        rows, keys = [*rows, filler, filler], [*keys, "pad_0_0", "pad_1_0"]
        mask, rewards = (
            torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
            for name in ("response_mask", "rm_scores")
        )
        data = DataProto.from_dict(
            {"token_level_rewards": rewards, "response_mask": mask},
            non_tensors={"uid": np.array([key.split("_")[0] for key in keys], dtype=object)},
        )
        return conf, episodes, keys, data

    return make


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("mode", ["concat", "turn"])
def test_rebn_is_the_references_in_verls_own_advantage_step(batch, mode, gamma):
    conf, episodes, keys, data = batch(mode, gamma)
    result = compute_advantage_for_multi_trajectories(
        data, keys, adv_estimator=conf.algorithm.adv_estimator, gamma=gamma, config=conf.algorithm
    )
    episodes.sort(key=lambda episode: episode.task.seed)
    rewards = [episode.rewards for episode in episodes]
    for name, values in (
        ("advantages", rebn(rewards, gamma)),
        ("returns", [discounted_returns(row, gamma) for row in rewards]),
    ):
        got = result.batch[name]
        if mode == "concat":
            ends = [episode.as_sequence().turn_ends for episode in episodes]
            expected = spread_over_tokens(values, ends, got.shape[1])
        else:
            each = [value for of_episode in values for value in of_episode]
            expected = np.repeat(np.array(each)[:, None], got.shape[1], axis=1)
        expected = np.concatenate([expected, np.zeros((2, got.shape[1]))]) * data.batch["response_mask"].numpy()
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    assert result.batch["advantages"].dtype == torch.float32
    assert (result.batch["advantages"][-2:] == 0).all()


def test_rebn_adds_what_a_penalty_puts_on_the_tokens_of_a_turn():
    """verl's KL penalty is a reward on every sampled token."""
    rewards = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]])
    config = type("Config", (), {"gamma": 0.5})
    advantages, returns = gem_verl.compute_rebn_advantage(rewards, mask, config)
    of_turns = rebn([[0.3, 0.7], [1.0]], gamma=0.5)
    np.testing.assert_allclose(advantages[0], [of_turns[0][0]] * 2 + [0] + [of_turns[0][1]] * 2, atol=1e-6)
    np.testing.assert_allclose(returns[0], [0.65, 0.65, 0, 0.7, 0.7], atol=1e-6)
    np.testing.assert_allclose(advantages[1], [of_turns[1][0], 0, 0, 0, 0], atol=1e-6)


def test_rebn_of_a_batch_without_a_sampled_token_is_0():
    config = type("Config", (), {"gamma": 1.0})
    advantages, returns = gem_verl.compute_rebn_advantage(torch.zeros(2, 3), torch.zeros(2, 3), config)
    assert not advantages.any()
    assert not returns.any()


# --- metrics


def test_metrics_of_a_batch_are_means_over_episodes_not_samples(monkeypatch):
    rows = {
        "a_0_0": {"acc": 1.0, "turns": 2.0, "environment_errors": 0.0},
        "a_0_1": {"acc": 1.0, "turns": 2.0, "environment_errors": 0.0},
        "a_1_0": {"acc": 0.0, "turns": 1.0, "environment_errors": 1.0},
        "b_0_0": {"score": 3},  # of another agent loop
    }
    stored = {key: {"reward_extra_info": row} for key, row in rows.items()}

    def kv_batch_get(keys, partition_id, select_fields):
        assert (partition_id, select_fields) == ("train", ["extra_fields"])
        return {"extra_fields": [stored[key] for key in keys]}

    monkeypatch.setattr(gem_verl.transfer_queue, "kv_batch_get", kv_batch_get)
    meta = type("Batch", (), {"keys": list(rows), "partition_id": "train"})
    assert gem_verl._batch_metrics(meta) == {"gem/success": 0.5, "gem/turns": 1.5, "gem/environment_errors": 0.5}


def buffer(conf, **kwargs):
    """Make the replay buffer as verl's trainer makes it."""
    trainer = type("Trainer", (), {"config": conf, "refill": lambda self, count: None})()
    return gem_verl.GemReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=conf.trainer.v1.sampler.sampler_kwargs,
        refill_fn=trainer.refill,
        **kwargs,
    )


def test_the_replay_buffer_is_verls_and_polls_as_often_as_it_is_told(config):
    conf = config()
    assert isinstance(buffer(conf), ReplayBuffer)
    assert buffer(conf).poll_interval == 0.1
    with open_dict(conf):
        del conf.trainer.v1.sampler.sampler_kwargs["poll_interval"]
    assert buffer(conf).poll_interval == 2.0


def test_filtering_of_groups_is_not_left_out_silently(config):
    with pytest.raises(ValueError, match="GemReplayBuffer does not filter"):
        buffer(config("algorithm.filter_groups.enable=True"))


# --- the example


@pytest.mark.parametrize("algorithm", ["rebn", "grpo", "ppo"])
def test_every_key_of_the_example_is_one_of_verls(config, algorithm):
    conf = config(algorithm=algorithm)
    assert conf.data.custom_cls.name == "GemTaskDataset"
    estimator = {"rebn": "gem_rebn", "grpo": "grpo", "ppo": "gae"}[algorithm]
    assert conf.algorithm.adv_estimator == estimator


def test_a_finish_reason_of_length_is_only_the_servers_limit():
    server = gem_verl._Server(ScriptedServer([1, 2, 3]), {}, {9})
    assert asyncio.run(server.generate([0], 3)) == Response([1, 2, 3], None, "length")

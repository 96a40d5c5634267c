"""The verl adapter without Ray: verl's own configuration, agent-loop worker and estimators, and a scripted server."""

import asyncio
import itertools
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("verl")

import torch
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from tensordict import TensorDict
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
from gem.core import Env
from gem.registry import ENV_REGISTRY, register
from gem.rollout import (
    ChatRenderer,
    Response,
    discounted_returns,
    mean_metrics,
    read_episodes,
    read_jsonl,
    rebn,
    replay,
    spread_over_tokens,
)
from gem.tasks import Task, make_tasks
from gem.testing.fault_injection import FAULT_INJECTING, fault_task
from gem.testing.scenarios import SCENARIO_ENV, scenarios
from gem.wrappers import TimeLimit, get_wrapper_fns

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "conformance"))

import on_verl

ENV = "game:Mastermind-v0-easy"  # pays in every turn
REPEAT = "test:Repeat-v0"
VERLS_BUFFER = ["trainer.v1.sampler.custom_sampler.path=null", "trainer.v1.sampler.custom_sampler.name=null"]


class Repeat(Env):
    """Two turns. Pays for every "a", and fails on an "f"; its first observation is the longer, the higher the seed."""

    blocking = False
    down = False  # whether every reset fails

    def reset(self, seed=None):
        super().reset(seed)
        if Repeat.down:
            raise ConnectionError("the server is down")
        self.turn = 0
        return "begin" + " again" * (seed % 8), {}

    def step(self, action):
        self.turn += 1
        if "f" in action:
            raise ConnectionError("the server is gone")
        return "on", float(action.count("a")), self.turn == 2, False, {"success": self.turn == 2 and "a" in action}


@pytest.fixture(autouse=True)
def _repeat():
    if REPEAT not in ENV_REGISTRY:
        register(REPEAT, Repeat)
    yield
    Repeat.down = False


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
        job = example.job_keys(args, str(small_model), tmp_path) + example.cpu_job.keys("/tmp/ray")
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
    ((output,),) = play(config(max_turns=4, max_new_tokens=12, episodes=str(tmp_path / "e")), server, fault_task())
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
    ((output,),) = play(config(max_turns=2), server, fault_task())
    sampled = [token for token, mask in zip(output.response_ids, output.response_mask, strict=True) if mask]
    assert sampled == [*odd, tokenizer.eos_token_id] * 2
    (asked,) = server.asked.values()  # one request id: verl keeps an episode on the server that has its prefix
    last_prompt = asked[-1][0]
    assert (output.prompt_ids + output.response_ids)[: len(last_prompt)] == last_prompt


def test_turn_gives_a_sample_a_turn_with_its_discounted_return(config, tokenizer, tmp_path):
    server = ScriptedServer(*chat(tokenizer))
    options = {"mode": "turn", "max_turns": 4, "max_new_tokens": 12, "episodes": str(tmp_path / "e")}
    (outputs,) = play(config("algorithm.gamma=0.5", **options), server, fault_task())
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
    task = replace(fault_task(seed=5), split=split)
    server = ScriptedServer(*chat(tokenizer))
    (outputs,) = play(config(algorithm=algorithm, mode="turn", max_turns=3), server, task)
    ((whole,),) = play(config(algorithm=algorithm, max_turns=3), ScriptedServer(*chat(tokenizer)), task)
    assert [output.as_dict()["rm_scores"].sum().item() for output in outputs] == pytest.approx([whole.reward_score] * 3)


def test_sampling_parameters_reach_the_server_with_the_limit_of_the_turn(config, tokenizer):
    server = ScriptedServer(*answers(tokenizer, "x"))
    play(config(max_turns=1, max_new_tokens=9), server, fault_task(), sampling_params={**SAMPLING, "temperature": 0.25})
    ((_, params),) = next(iter(server.asked.values()))
    stop = [tokenizer.eos_token_id]
    assert params == {**SAMPLING, "temperature": 0.25, "max_tokens": 9, "stop_token_ids": stop}


def test_the_server_stops_at_the_templates_end_of_turn_where_the_models_own_end_is_another(
    config, tokenizer, small_model, tmp_path
):
    """So it is with most base models: a ChatML template, and <|endoftext|> for the end."""
    shutil.copytree(small_model, tmp_path / "base")
    base = AutoTokenizer.from_pretrained(small_model)
    base.eos_token = next(token for token in base.all_special_tokens if token != tokenizer.eos_token)
    base.save_pretrained(tmp_path / "base")
    ids = tokenizer("yes no maybe", add_special_tokens=False)["input_ids"]
    server = ScriptedServer([*ids, tokenizer.eos_token_id])
    keys = [f"actor_rollout_ref.model.path={tmp_path / 'base'}"]
    folder = tmp_path / "e"
    play(config(*keys, max_turns=2, max_new_tokens=len(ids) + 1, episodes=str(folder)), server, fault_task())
    assert base.eos_token_id != tokenizer.eos_token_id
    assert {params["stop_token_ids"][0] for asked in server.asked.values() for _, params in asked} == {
        tokenizer.eos_token_id
    }
    (episode,) = read_episodes(folder, "train")
    assert [turn.finish_reason for turn in episode.turns] == ["stop", "stop"]


def test_without_log_probabilities_there_are_none(config, tokenizer):
    server = ScriptedServer(*answers(tokenizer, "x"))
    ((output,),) = play(config(max_turns=2), server, fault_task(), sampling_params={**SAMPLING, "logprobs": False})
    assert output.response_logprobs is None
    assert "rollout_log_probs" not in output.as_dict()


def test_an_output_says_which_weights_it_was_sampled_with_and_how_it_went(config, tokenizer):
    ((output,),) = play(config(max_turns=3), ScriptedServer(*answers(tokenizer, "x")), fault_task())
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
    (outputs,) = play(config("data.max_response_length=70", mode=mode, max_new_tokens=20), rambling, fault_task())
    assert all(len(output.response_ids) <= 70 for output in outputs)
    assert outputs[-1].extra_fields["reward_extra_info"]["truncated_context"] == (mode == "concat")


def test_finish_reasons_come_from_the_tokens_since_the_server_calls_both_completed(config, tokenizer, tmp_path):
    x = tokenizer.convert_tokens_to_ids("x")
    end = tokenizer.eos_token_id
    server = ScriptedServer([x] * 8, [x, end], [x] * 3, [x] * 7 + [end])
    play(config(max_turns=4, max_new_tokens=8, episodes=str(tmp_path / "e")), server, fault_task())
    (episode,) = read_jsonl(next((tmp_path / "e").iterdir()))
    assert [turn.finish_reason for turn in episode.turns] == ["length", "stop", "stop", "stop"]


@pytest.mark.parametrize("on_error", ["mask", "keep"])
@pytest.mark.parametrize("stop_reason", ["aborted", "completed"])  # of an empty answer, verl's SGLang says the latter
def test_an_episode_without_a_token_is_counted_and_has_no_weight(config, stop_reason, on_error):
    ((row,),) = play(config(on_error=on_error), ScriptedServer([], stop_reason=stop_reason), TASK)
    assert row.response_mask == [0]
    assert row.extra_fields["no_weight"]
    assert row.extra_fields["reward_extra_info"]["aborted"] == 1
    assert play(config(*VERLS_BUFFER, on_error=on_error), ScriptedServer([]), TASK) == [[]]


def test_an_abort_with_tokens_is_learned_from_if_wanted(config, tokenizer):
    x = tokenizer.convert_tokens_to_ids("x")
    server = ScriptedServer([x, x], stop_reason="aborted")
    ((masked,),) = play(config(), server, TASK)
    ((kept,),) = play(config(on_error="keep"), server, TASK)
    assert masked.response_mask == [0]
    assert kept.response_ids == [x, x]
    assert kept.response_mask == [1, 1]
    assert masked.extra_fields["reward_extra_info"] == kept.extra_fields["reward_extra_info"]
    assert kept.extra_fields["reward_extra_info"]["aborted"] == 1


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
    ((output,),) = play(config(make_env=hook), ScriptedServer(*answers(tokenizer, "x")), fault_task())
    assert output.extra_fields["reward_extra_info"]["turns"] == 2


def test_a_history_that_is_rewritten_needs_a_sample_a_turn(config, tokenizer):
    (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
    module = sys.modules["tests_verl_hook"] = type(sys)("tests_verl_hook")
    module.rewriting = lambda task: wrap(task.make())
    hook = {"_target_": "hydra.utils.get_method", "path": "tests_verl_hook.rewriting"}
    with pytest.raises(ValueError, match=rf"rewrites the history of {FAULT_INJECTING}.*mode: turn"):
        play(config(make_env=hook), ScriptedServer(*answers(tokenizer, "x")), fault_task())
    (outputs,) = play(config(make_env=hook, mode="turn"), ScriptedServer(*answers(tokenizer, "x")), fault_task())
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
    ids = [task.env_id for task in data_set(conf, tokenizer).tasks]
    assert sorted(ids) == [ENV] * 2 + ["game:Minesweeper-v0-easy"] * 3
    assert len(set(ids[:2])) == 2  # mixed, so that a batch is


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


def test_a_task_whose_prompt_does_not_fit_ends_alone(config, tokenizer):
    """Nothing is ever cut from a prompt."""
    keys = ("data.max_prompt_length=20", "data.max_response_length=20")
    server = ScriptedServer(*answers(tokenizer, "x"))
    (too_long,), (short,) = play(config(*keys, max_turns=1, max_new_tokens=8), server, TASK, fault_task())
    assert too_long.extra_fields["reward_extra_info"]["overlong"] == 1
    assert too_long.response_mask == [0]
    assert short.extra_fields["reward_extra_info"]["overlong"] == 0
    assert short.response_mask == [1, 1]


def test_overlong_prompts_are_filtered_if_verl_is_told_to(config, tokenizer, capsys):
    lengths = [len(ChatRenderer(tokenizer).first(first_observation(Task(REPEAT, seed)))) for seed in range(4)]
    keys = [f"data.train_files='env={REPEAT},seeds=0:4'", f"data.max_prompt_length={lengths[1]}"]
    assert len(data_set(config(*keys), tokenizer)) == 4
    kept = data_set(config(*keys, "data.filter_overlong_prompts=True"), tokenizer)
    assert [task.seed for task in kept.tasks] == [0, 1]
    assert "2 of 4 tasks dropped" in capsys.readouterr().out


def test_an_unknown_environment_is_refused_with_the_nearest(config, tokenizer):
    with pytest.raises(Exception, match="The nearest"):
        data_set(config("data.train_files='env=game:Mastermynd-v0-easy,seeds=0:9'"), tokenizer)


def test_one_wrong_argument_among_good_tasks_is_an_error_before_training(config, tokenizer, tmp_path):
    tasks = make_tasks(ENV, range(300))
    tasks[211] = Task(ENV, 0, {"code_lenght": 3})
    (tmp_path / "tasks.jsonl").write_text("\n".join(task.to_json() for task in tasks))
    with pytest.raises(TypeError, match="code_lenght"):
        data_set(config(f"data.train_files={tmp_path / 'tasks.jsonl'}"), tokenizer)


def test_what_make_env_does_is_checked_as_well(config, tokenizer):
    module = sys.modules["tests_verl_hook"] = type(sys)("tests_verl_hook")
    module.wrong = lambda task: TimeLimit(task.make(), max_turn=2)
    hook = {"_target_": "hydra.utils.get_method", "path": "tests_verl_hook.wrong"}
    with pytest.raises(TypeError, match="max_turn"):
        data_set(config(make_env=hook), tokenizer)


@pytest.mark.parametrize(("split", "other"), [("train", "eval"), ("val", "train")])
def test_rows_of_the_other_split_are_refused(config, tokenizer, tmp_path, split, other):
    (tmp_path / "tasks.jsonl").write_text("\n".join(task.to_json() for task in make_tasks(ENV, range(3), split=other)))
    with pytest.raises(ValueError, match=f"is of the split '{other}'"):
        data_set(config(f"data.{split}_files={tmp_path / 'tasks.jsonl'}"), tokenizer, split)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_turn": 6}, "has no option max_turn: there are mode, max_turns"),
        ({"mode": "dense"}, "mode is 'concat' or 'turn', got 'dense'"),
        ({"on_error": "ignore"}, "on_error is 'mask' or 'keep', got 'ignore'"),
        ({"max_turns": 0}, "max_turns must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"retries": -1}, "retries must not be negative"),
    ],
)
def test_a_wrong_option_of_the_agent_loop_is_an_error_before_training(config, tokenizer, option, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data_set(config(**option), tokenizer)


@pytest.mark.parametrize("gamma", [2.0, -1.0])
def test_a_discount_that_is_none_is_refused(config, tokenizer, gamma):
    with pytest.raises(ValueError, match="gamma"):
        data_set(config(f"algorithm.gamma={gamma}"), tokenizer)


def test_a_folder_of_episodes_is_not_mixed_with_those_of_another_run(config, tokenizer, tmp_path):
    folder = tmp_path / "e"
    conf = config("trainer.resume_mode=auto", episodes=str(folder))
    data_set(conf, tokenizer)
    data_set(conf, tokenizer, "val")
    play(conf, ScriptedServer(*answers(tokenizer, "x")), fault_task())
    with pytest.raises(ValueError, match="holds the episodes of an earlier run"):
        data_set(conf, tokenizer)
    checkpoints = Path(conf.trainer.default_local_dir)
    (checkpoints / "global_step_2").mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    data_set(conf, tokenizer)
    play(conf, ScriptedServer(*answers(tokenizer, "y")), fault_task())
    (episode,) = read_episodes(folder, "train", step=3)
    assert episode.turns[0].action == "y"


def test_control_tokens_of_an_environment_are_plain_text_unless_they_are_allowed(config, tokenizer):
    task = Task(SCENARIO_ENV, 0, {"says": "<|im_end|>\n<|im_start|>assistant\n", "length": 2})
    scenarios(tokenizer)  # registers it
    ends = []
    for keys in ([], ["+data.allow_control_tokens=True"]):
        ((output,),) = play(config(*keys), ScriptedServer(*answers(tokenizer, "x")), task)
        ends.append((output.prompt_ids + output.response_ids).count(tokenizer.eos_token_id))
    assert ends == [4, 6]  # two messages and two answers; and what the environment wrote


# --- environments that misbehave


@pytest.mark.parametrize("mode", ["concat", "turn"])
def test_of_a_batch_of_16_those_that_misbehave_end_alone_and_are_counted(config, tokenizer, mode):
    tasks = [fault_task("well", seed) for seed in range(16)]
    tasks[3], tasks[7], tasks[11] = fault_task("raises"), fault_task("hangs"), fault_task("floods")
    server = ScriptedServer(*answers(tokenizer, "x"))
    since = time.perf_counter()
    batch = play(config(mode=mode, step_timeout=2), server, *tasks)
    assert time.perf_counter() - since < 30
    metrics = [outputs[-1].extra_fields["reward_extra_info"] for outputs in batch]
    assert [i for i, m in enumerate(metrics) if m["environment_errors"]] == [3, 7]
    assert [i for i, m in enumerate(metrics) if m["left_out"]] == [3, 7]
    assert [i for i, m in enumerate(metrics) if m["truncated_context"]] == [11]
    assert [m["return"] for m in metrics] == [{3: None, 7: None, 11: 3.0}.get(i, 10.0) for i in range(16)]
    weights = [sum(sum(output.response_mask) for output in outputs) for outputs in batch]
    assert [i for i, weight in enumerate(weights) if weight == 0] == [3, 7]


def test_steps_that_block_do_not_hold_up_the_event_loop(config, tokenizer):
    worker = Worker(config(), ScriptedServer(*answers(tokenizer, "x")))
    info = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}

    async def run():
        rows = [{"task": fault_task("works", seed).to_json()} for seed in range(16)]
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


# --- invalid episodes, in verl's own training step


class WithCritic(on_verl.Trainer):
    """A trainer with a critic that values every token at a quarter."""

    def _compute_values(self, batch, metrics):
        masks = self.queue.kv_batch_get(batch.keys, batch.partition_id, ["response_mask"])["response_mask"]
        values = torch.nested.as_nested_tensor([torch.full((len(mask),), 0.25) for mask in masks], layout=torch.jagged)
        self.queue.kv_batch_put(batch.keys, batch.partition_id, TensorDict({"values": values}, batch_size=len(batch)))
        return batch

    def _update_critic(self, batch, metrics):
        return batch


@pytest.fixture
def trainer(config, tokenizer, tmp_path):
    """Return a function that makes verl's trainer, whose server answers as it is told to."""

    def make(*keys, first, later=("a", "b", "aa b"), groups=2, copies=4, **options):
        sizes = [f"data.train_batch_size={groups}", f"actor_rollout_ref.rollout.n={copies}"]
        sizes += [
            f"actor_rollout_ref.actor.ppo_mini_batch_size={groups}",
            "algorithm.rollout_correction.bypass_mode=True",
        ]
        sizes += [f"data.train_files='env={REPEAT},seeds=0:64'", f"data.val_files='env={REPEAT},seeds=0:6,split=eval'"]
        conf = config(*sizes, *keys, episodes=str(tmp_path / "episodes"), **options)
        first, later = iter(first), itertools.cycle(later)

        def answer(prompt_ids, limit, stop_ids):
            begins = list(prompt_ids).count(tokenizer.eos_token_id) == 1  # only the first message has ended
            (ids,) = answers(tokenizer, next(first) if begins else next(later))
            return Response(ids[:limit], [-0.5] * len(ids[:limit]), "stop")

        made = (WithCritic if conf.algorithm.adv_estimator == "gae" else on_verl.Trainer)(conf, answer)
        made._init_dataloader()
        return made

    return make


def advantages_without_the_others(conf, episodes, rows):
    """Return what verl's estimator makes of these episodes alone, by their ids."""
    sequences = [episode.as_sequence() for episode in episodes]
    masks = [torch.tensor(row.mask, dtype=torch.int64) for row in sequences]
    rewards = [torch.tensor(row.rewards, dtype=torch.float32) for row in sequences]
    uids = [str(episode.task.seed) for episode in episodes]
    multiple = conf.actor_rollout_ref.actor.ppo_mini_batch_size * conf.actor_rollout_ref.rollout.n
    for _ in range(-len(episodes) % multiple):  # verl's own filler
        masks.append(torch.zeros(1, dtype=torch.int64))
        rewards.append(torch.zeros(1))
        uids.append("pad")
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad(masks, batch_first=True)
    tensors = {"token_level_rewards": pad(rewards, batch_first=True), "response_mask": mask}
    tensors["values"] = torch.full(mask.shape, 0.25)
    data = compute_advantage_for_multi_trajectories(
        DataProto.from_dict(tensors, non_tensors={"uid": np.array(uids, dtype=object)}),
        [f"{uid}_{i}_0" for i, uid in enumerate(uids)],
        adv_estimator=conf.algorithm.adv_estimator,
        gamma=conf.algorithm.gamma,
        lam=conf.algorithm.lam,
        num_repeat=conf.actor_rollout_ref.rollout.n,
        config=conf.algorithm,
    )
    return sorted(
        ([*row.prompt_ids.tolist(), *row.completion_ids.tolist()], values[: len(row.mask)][row.mask == 1].tolist())
        for row, values in zip(sequences, data.batch["advantages"], strict=False)
    )


def learned(rows):
    return sorted((row["input_ids"].tolist(), row["advantages"][row["response_mask"].bool()].tolist()) for row in rows)


def assert_same_advantages(got, expected):
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    for (_, values), (_, wanted) in zip(got, expected, strict=True):
        np.testing.assert_allclose(values, wanted, atol=1e-5)


BAD = ["a", "aa", "f", "b", "aaa", "f", "ab", "aa b"]  # two of eight fail in their first turn
ESTIMATORS = ["gem_rebn", "gae", "grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg"]
ESTIMATORS += ["reinforce_plus_plus", "reinforce_plus_plus_baseline"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_failures_change_nothing_of_what_is_learned_from_the_others(trainer, tmp_path, estimator):
    algorithm = "ppo" if estimator == "gae" else "rebn"
    job = trainer(f"algorithm.adv_estimator={estimator}", algorithm=algorithm, first=BAD, later=["a", "b", "f", "aa b"])
    rows, metrics = job.learn()
    episodes = read_episodes(tmp_path / "episodes", "train", step=1)
    valid = [episode for episode in episodes if episode.valid]
    assert len(episodes) == 8
    assert 4 <= len(valid) <= 5  # one or two fail in their second turn
    expected = advantages_without_the_others(job.config, valid, rows)
    assert_same_advantages(learned(rows), expected)
    assert any(abs(value) > 0.1 for _, values in expected for value in values)
    assert {name: value for name, value in metrics.items() if name.startswith("gem/")} == pytest.approx(
        {f"gem/{name}": value for name, value in mean_metrics(episodes).items()}
    )
    assert metrics["gem/left_out"] == metrics["gem/environment_errors"] == 1 - len(valid) / 8


def test_without_the_replay_buffer_they_are_left_out_too_and_not_counted(trainer, tmp_path):
    job = trainer(*VERLS_BUFFER, algorithm="grpo", first=BAD)
    rows, metrics = job.learn()
    valid = [episode for episode in read_episodes(tmp_path / "episodes", "train") if episode.valid]
    assert len(valid) == 6
    assert_same_advantages(learned(rows), advantages_without_the_others(job.config, valid, rows))
    assert not any(name.startswith("gem/") for name in metrics)


def test_they_are_learned_from_if_they_are_kept(trainer, tmp_path):
    job = trainer(algorithm="grpo", on_error="keep", first=BAD)
    rows, metrics = job.learn()
    episodes = read_episodes(tmp_path / "episodes", "train")
    assert len(rows) == 8
    assert_same_advantages(learned(rows), advantages_without_the_others(job.config, episodes, rows))
    assert metrics["gem/left_out"] == metrics["gem/environment_errors"] == 0.25


def test_turns_of_an_invalid_episode_have_no_weight_either(trainer, tmp_path):
    rows, _ = trainer(mode="turn", first=BAD).learn()
    valid = [episode for episode in read_episodes(tmp_path / "episodes", "train") if episode.valid]
    assert len(valid) == 6
    assert sorted(row["input_ids"].tolist() for row in rows) == sorted(
        [*turn.prompt_ids, *turn.response_ids] for episode in valid for turn in episode.turns
    )


def test_a_group_that_fails_as_a_whole_is_missing(trainer, tmp_path):
    job = trainer(algorithm="grpo", first=["f", "f", "f", "f", "a", "b", "aa", "aaa"])
    rows, metrics = job.learn()
    valid = [episode for episode in read_episodes(tmp_path / "episodes", "train") if episode.valid]
    assert len(rows) == len(valid) == 4
    assert_same_advantages(learned(rows), advantages_without_the_others(job.config, valid, rows))
    assert metrics["gem/left_out"] == 0.5


@pytest.mark.parametrize(("estimator", "count"), [("grpo", 4), ("grpo_passk", 4), ("gem_rebn", 5)])
def test_the_only_valid_episode_of_a_group_has_nothing_to_be_compared_with(trainer, estimator, count):
    """verl would take its return for the advantage, or raise an error."""
    first = ["f", "f", "aaa", "f", "a", "b", "aa", "aaa"]
    keys = [f"algorithm.adv_estimator={estimator}", "actor_rollout_ref.actor.ppo_mini_batch_size=1"]
    rows, metrics = trainer(*keys, first=first).learn() if count == 4 else trainer(keys[0], first=first).learn()
    assert len(rows) == count
    assert metrics["gem/left_out"] == 3 / 8


def test_the_next_tasks_replace_a_batch_that_fails_as_a_whole(trainer, tmp_path):
    job = trainer(algorithm="grpo", first=["f"] * 8 + ["a", "b", "aa", "aaa"] * 2)
    rows, metrics = job.learn()
    episodes = read_episodes(tmp_path / "episodes", "train")
    assert [episode.task.seed for episode in episodes if episode.valid] == [2] * 4 + [3] * 4
    assert len(rows) == 8
    assert metrics["gem/left_out"] == 0.5
    assert set(job.queue.tags["train"]) == set(job.actor_rollout_wg.keys)  # nothing else stays in the queue


def test_an_environment_that_fails_for_good_ends_the_run_and_not_the_data_set(trainer, tmp_path):
    job = trainer(first=["f"] * 100)
    with pytest.raises(RuntimeError, match="4 batches in a row had no valid episode"):
        job.learn()
    assert len(read_episodes(tmp_path / "episodes", "train")) == 4 * 8


def test_failures_in_reset_are_begun_again_and_then_left_out(trainer, tmp_path):
    job = trainer(first=["a"] * 100, retries=1)
    Repeat.down = True
    with pytest.raises(RuntimeError, match="no valid episode"):
        job.learn()
    assert {episode.retries for episode in read_episodes(tmp_path / "episodes", "train")} == {1}


def test_metrics_of_mixed_environments_are_those_of_each_too(trainer, tmp_path):
    fault_task()  # registers it
    files = f"data.train_files=['env={REPEAT},seeds=0:1','env={FAULT_INJECTING},seeds=0:1,length=2']"
    _, metrics = trainer(files, first=["f", "a", "b", "aa", "x", "x", "x", "x"]).learn()
    means = mean_metrics(read_episodes(tmp_path / "episodes", "train"))
    assert {name: value for name, value in metrics.items() if name.startswith("gem/")} == pytest.approx(
        {f"gem/{name}": value for name, value in means.items()}
    )
    assert metrics[f"gem/return/{FAULT_INJECTING}"] == 3
    assert metrics[f"gem/environment_errors/{REPEAT}"] == 0.25


def test_a_validation_counts_failures_apart(trainer, tmp_path):
    job = trainer(first=["a", "f", "b", "aa", "b", "f"], later=["a"])
    job.global_steps = 0
    metrics = job._validate()
    episodes = read_episodes(tmp_path / "episodes", "eval", step=0)
    of_valid = mean_metrics(episodes)
    assert len(episodes) == 6
    assert of_valid["left_out"] == pytest.approx(2 / 6)
    for name in ("return", "turns", "left_out", "environment_errors"):
        assert metrics[f"val-aux/{REPEAT}/{name}/mean@1"] == pytest.approx(of_valid[name])
    assert metrics[f"val-aux/{REPEAT}/acc_success_only/mean@1"] == of_valid["success"]
    # verl's own rule for the core metric: a session without a result counts as 0.
    assert metrics[f"val-core/{REPEAT}/acc/mean@1"] == pytest.approx(of_valid["success"] * 4 / 6)


def test_a_validation_in_which_everything_fails_has_numbers(trainer):
    job = trainer(first=["f"] * 6)
    metrics = job._validate()
    assert metrics[f"val-aux/{REPEAT}/left_out/mean@1"] == 1
    assert not any(np.isnan(value) for value in metrics.values())
    assert not any("/acc/" in name for name in metrics)


# --- ReBN


@pytest.fixture
def batch(config, tokenizer, tmp_path):
    """Return episodes of several lengths as verl's batch in either mode, with rows that fill it up."""

    def make(mode, gamma):
        tasks = [fault_task("well", seed, length=1 + seed % 4) for seed in range(6)]
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


@pytest.mark.parametrize("value", [-0.1, 0.7, 1000.7, 1e-6, 1e20])
def test_rebn_of_equal_returns_is_exactly_0(value):
    rewards = torch.zeros(7, 5)
    rewards[:, 4] = value
    config = type("Config", (), {"gamma": 1.0})
    advantages, _ = gem_verl.compute_rebn_advantage(rewards, torch.tensor([[1, 1, 0, 1, 1]] * 7), config)
    assert not advantages.any()


def test_rebn_loses_no_small_reward_behind_a_huge_one():
    config = type("Config", (), {"gamma": 0.0})
    _, returns = gem_verl.compute_rebn_advantage(torch.tensor([[1e20, 0, 1.0]]), torch.tensor([[1, 0, 1]]), config)
    assert returns.tolist() == [[pytest.approx(1e20), 0, 1.0]]


def test_rebn_of_a_batch_without_a_sampled_token_is_0():
    config = type("Config", (), {"gamma": 1.0})
    advantages, returns = gem_verl.compute_rebn_advantage(torch.zeros(2, 3), torch.zeros(2, 3), config)
    assert not advantages.any()
    assert not returns.any()


# --- metrics


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
    kinds = SimpleNamespace(eos_token_id=9), SimpleNamespace(stop_ids=(9,))
    server = gem_verl._Server(ScriptedServer([1, 2, 3]), {}, *kinds)
    assert asyncio.run(server.generate([0], 3)) == Response([1, 2, 3], None, "length")

"""The OpenRLHF adapter without Ray, vLLM or DeepSpeed: the executor against a scripted engine."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf")

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.agent import AgentExecutorBase, MultiTurnAgentExecutor

import gem_openrlhf
from gem.rollout import ChatRenderer, discounted_returns, read_episodes, replay
from gem.tasks import Task, make_tasks
from gem.testing.scenarios import SCENE, scenarios
from gem.testing.talk import talking
from gem.wrappers import TimeLimit, get_wrapper_fns

ENV = "game:Mastermind-v0-easy"


@dataclass
class Params:
    """The part of vLLM's SamplingParams that matters here."""

    max_tokens: int | None = 16
    min_tokens: int = 1
    temperature: float = 1.0
    logprobs: int | None = 1


class ScriptedVLLM:
    """Answers as RolloutRayActor does; remembers what it was asked."""

    def __init__(self, *answers, end_id=None):
        self.answers, self.end_id = answers, end_id
        self.asked = []

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        await asyncio.sleep(0.001)
        self.asked.append((list(prompt_ids), deepcopy(params)))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        ids = list(answer)[: params.max_tokens]
        reason = "stop" if len(answer) <= params.max_tokens else "length"
        logprobs = None
        if params.logprobs is not None:
            logprobs = [{i: SimpleNamespace(logprob=-1.0 - k), 0: None} for k, i in enumerate(ids)]
        finish = reason if ids else "abort"
        params.max_tokens = -1  # whoever shares the object would notice
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids, text="", finish_reason=finish, logprobs=logprobs)]
        )


def answers(tokenizer, *texts):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]


def chat(tokenizer):
    """Return answers of which the second is never ended by the model."""
    return [
        *answers(tokenizer, "one"),
        answers(tokenizer, "two and")[0][:-1] * 20,
        *answers(tokenizer, "three", "four"),
    ]


def execute(tokenizer, engine, *rows, params=None, max_length=1024, executor=None):
    """Play rows at once, as OpenRLHF does: one engine, one object of sampling parameters."""
    executor = executor or gem_openrlhf.AgentExecutor()
    params = params or Params()

    async def run():
        return await asyncio.gather(
            *(
                executor.execute(
                    prompt=row["prompt"],
                    label=row["label"],
                    sampling_params=params,
                    max_length=max_length,
                    hf_tokenizer=deepcopy(tokenizer),  # Ray sends a copy with every row
                    llm_engine=engine,
                    images=None,
                )
                for row in rows
            )
        )

    return asyncio.run(run())


def row(task, **options):
    return gem_openrlhf.row(task, **options)


def actions_of(output):
    return [output["observation_tokens"][start:end] for start, end in output["action_ranges"]]


# --- the executor


def test_the_episode_is_handed_over_token_by_token(tokenizer, tmp_path):
    executor = gem_openrlhf.GemAgentExecutor(episodes=tmp_path)
    engine = ScriptedVLLM(*chat(tokenizer))
    (output,) = execute(tokenizer, engine, row(talking()), params=Params(max_tokens=12), executor=executor)
    (episode,) = read_episodes(tmp_path, "train")
    whole = episode.as_sequence()
    assert replay(episode) == []
    assert output["observation_tokens"] == whole.prompt_ids.tolist() + whole.completion_ids.tolist()
    assert actions_of(output) == [turn.response_ids for turn in episode.turns]
    assert len(actions_of(output)) == 4
    first = len(whole.prompt_ids)
    mask = [0] * len(output["observation_tokens"])
    for start, end in output["action_ranges"]:
        mask[start:end] = [1] * (end - start)
    assert mask == [0] * first + whole.mask.tolist()
    assert output["rollout_log_probs"] == [0.0] * first + whole.logprobs.tolist()
    assert output["reward"] == 1 + 2 + 3 + 4
    assert output["truncated"] is False
    assert output["mm_train_inputs"] is None


def test_a_cut_turn_is_closed_by_an_end_token_that_is_no_action(tokenizer):
    engine = ScriptedVLLM(*chat(tokenizer))
    (output,) = execute(tokenizer, engine, row(talking()), params=Params(max_tokens=12))
    (_, _), (start, end), (_, _), (_, _) = output["action_ranges"]
    tokens = output["observation_tokens"]
    assert end - start == 12
    assert tokenizer.eos_token_id not in tokens[start:end]
    assert tokens[end] == tokenizer.eos_token_id
    assert output["rollout_log_probs"][end] == 0.0


def test_every_prompt_is_what_was_seen_and_sampled_before(tokenizer):
    engine = ScriptedVLLM(*chat(tokenizer))
    (output,) = execute(tokenizer, engine, row(talking()), params=Params(max_tokens=12))
    for (prompt, _), (start, _) in zip(engine.asked, output["action_ranges"], strict=True):
        assert prompt == output["observation_tokens"][:start]


def test_sampling_parameters_are_not_shared_within_a_group(tokenizer):
    params = Params(max_tokens=12, min_tokens=5, temperature=0.25)
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    execute(tokenizer, engine, *[row(talking())] * 8, params=params)
    assert params == Params(max_tokens=12, min_tokens=5, temperature=0.25)
    assert {(p.max_tokens, p.min_tokens, p.temperature) for _, p in engine.asked} == {(12, 5, 0.25)}


def test_without_a_limit_a_turn_may_fill_the_context(tokenizer):
    x = tokenizer.convert_tokens_to_ids("x")
    engine = ScriptedVLLM([x] * 500)
    (output,) = execute(tokenizer, engine, row(talking()), params=Params(max_tokens=None), max_length=100)
    assert len(output["observation_tokens"]) == 100
    assert output["truncated"] is True


@pytest.mark.parametrize("max_length", [*range(40, 60), *range(61, 90, 7)])
def test_the_episode_stops_before_the_context_overflows(tokenizer, max_length):
    x = tokenizer.convert_tokens_to_ids("x")
    engine = ScriptedVLLM([x] * 500)
    (output,) = execute(
        tokenizer, engine, row(talking(length=9)), params=Params(max_tokens=10, min_tokens=5), max_length=max_length
    )
    assert len(output["observation_tokens"]) <= max_length
    assert output["truncated"] is True
    assert output["extra_logs"]["gem/truncated_context"] == 1
    assert output["action_ranges"][-1][1] == len(output["observation_tokens"])
    assert all(p.max_tokens >= p.min_tokens for _, p in engine.asked)


def test_without_log_probabilities_there_are_none(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), row(talking()), params=Params(logprobs=None))
    assert output["rollout_log_probs"] is None


def test_an_empty_generation_leaves_one_token_to_learn_from(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM([]), row(talking()))
    ((start, end),) = output["action_ranges"]
    assert output["observation_tokens"][start:end] == [tokenizer.eos_token_id]
    assert len(output["rollout_log_probs"]) == end == len(output["observation_tokens"])
    assert output["reward"] == 0.0
    assert output["truncated"] is True
    assert output["extra_logs"]["gem/aborted"] == 1


def test_an_empty_generation_later_ends_the_episode_with_what_there_is(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x"), []), row(talking()))
    assert actions_of(output) == answers(tokenizer, "x")
    assert output["truncated"] is True


def test_gamma_and_turns_come_from_the_row_or_else_from_the_executor(tokenizer):
    executor = gem_openrlhf.GemAgentExecutor(max_turns=3, gamma=0.5)
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    rows = [row(talking()), row(talking(), gamma=0.9), row(talking(), max_turns=2)]
    outputs = execute(tokenizer, engine, *rows, executor=executor)
    expected = [discounted_returns(r, g)[0] for r, g in (([1, 2, 3], 0.5), ([1, 2, 3], 0.9), ([1, 2], 0.5))]
    assert [output["reward"] for output in outputs] == pytest.approx(expected)
    assert all(output["truncated"] for output in outputs)
    assert [output["extra_logs"]["gem/turns"] for output in outputs] == [3, 3, 2]


def test_the_same_keys_are_logged_whatever_happened(tokenizer):
    rows = [row(talking()), row(talking("raises")), row(talking(), max_turns=1), row(Task(ENV, 3))]
    outputs = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows)
    outputs += execute(tokenizer, ScriptedVLLM([]), row(talking()))
    assert len({tuple(output["extra_logs"]) for output in outputs}) == 1
    assert {"gem/success", "gem/environment_errors", "gem/truncated_turns"} <= set(outputs[0]["extra_logs"])


def test_success_is_the_score(tokenizer):
    task = Task(ENV, 3)
    with task.make() as env:
        env.reset(task.reset_seed)
        engine = ScriptedVLLM(*answers(tokenizer, "\\boxed{" + " ".join(map(str, env.code)) + "}"))
    won, lost = execute(tokenizer, engine, row(task), row(replace(task, seed=4)), params=Params(max_tokens=64))
    assert won["scores"] == 1.0
    assert lost["scores"] == 0.0


def test_a_group_begins_from_one_state_and_other_rows_from_others(tokenizer):
    task = Task("game:Minesweeper-v0-easy", 7)
    engine = ScriptedVLLM(*answers(tokenizer, "\\boxed{reveal 2 2}"))
    outputs = execute(tokenizer, engine, *[row(task, max_turns=1)] * 8, row(replace(task, seed=8), max_turns=1))
    assert len({output["reward"] for output in outputs[:8]}) == 1
    assert len({tuple(output["observation_tokens"]) for output in outputs[:8]}) == 1


def test_observations_of_unequal_length_in_a_group_are_kept_apart(tokenizer):
    def make_env(task):
        env = task.make()
        lengths = iter(range(make_env.calls * 3, 100))
        make_env.calls += 1
        step = env.step

        def longer(action):
            observation, *rest = step(action)
            return (observation + " word" * next(lengths), *rest)

        env.step = longer
        return env

    make_env.calls = 0
    executor = gem_openrlhf.GemAgentExecutor(make_env=make_env)
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    outputs = execute(tokenizer, engine, *[row(talking())] * 4, executor=executor)
    assert len({len(output["observation_tokens"]) for output in outputs}) == 4
    for output in outputs:
        assert actions_of(output) == answers(tokenizer, "x") * 4
        assert len(output["rollout_log_probs"]) == len(output["observation_tokens"])


def test_of_a_batch_of_16_those_that_misbehave_end_alone_and_are_counted(tokenizer):
    rows = [row(talking(seed=seed)) for seed in range(16)]
    for place, how in ((3, "raises"), (7, "hangs"), (11, "floods")):
        rows[place] = row(talking(how))
    executor = gem_openrlhf.GemAgentExecutor(step_timeout=2)
    since = time.perf_counter()
    outputs = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows, executor=executor)
    assert time.perf_counter() - since < 30
    assert [i for i, o in enumerate(outputs) if o["extra_logs"]["gem/environment_errors"]] == [3, 7]
    assert [i for i, o in enumerate(outputs) if o["extra_logs"]["gem/truncated_context"]] == [11]
    assert [o["reward"] for o in outputs] == [{3: 1.0, 7: 1.0, 11: 3.0}.get(i, 10.0) for i in range(16)]
    assert all(o["action_ranges"] for o in outputs)


def test_steps_that_block_do_not_hold_up_the_event_loop(tokenizer):
    since = time.perf_counter()
    rows = [row(talking("works", seed)) for seed in range(16)]
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows)
    assert time.perf_counter() - since < 16 / 2


def test_environments_are_closed(tokenizer):
    closed = []

    def make_env(task):
        env = task.make()
        env.close = lambda: closed.append(task)
        return env

    executor = gem_openrlhf.GemAgentExecutor(make_env=make_env)
    rows = [row(talking()), row(talking("raises"))]
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows, executor=executor)
    assert len(closed) == 2


def test_wrappers_go_in_by_make_env_but_not_those_that_rewrite_the_history(tokenizer):
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    short = gem_openrlhf.GemAgentExecutor(make_env=lambda task: TimeLimit(task.make(), 2))
    (output,) = execute(tokenizer, engine, row(talking()), executor=short)
    assert len(output["action_ranges"]) == 2
    (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
    rewriting = gem_openrlhf.GemAgentExecutor(make_env=lambda task: wrap(task.make()))
    with pytest.raises(ValueError, match="play without the wrapper"):
        execute(tokenizer, engine, row(talking()), executor=rewriting)


def test_system_message_and_template_arguments(tokenizer):
    executor = gem_openrlhf.GemAgentExecutor(system="Play well.")
    (output,) = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), row(talking()), executor=executor)
    assert tokenizer.decode(output["observation_tokens"]).startswith("<|im_start|>system\nPlay well.<|im_end|>")


def tool_turns(tokenizer):
    """Return a task of three turns, of which the first is a tool's."""
    scenarios(tokenizer)  # registers the environment
    return Task(SCENE, 0, {"length": 3, "tool_turns": [1]})


def test_turns_of_tools_are_shown_in_the_tool_role_if_it_is_asked_for(tokenizer):
    task = row(tool_turns(tokenizer))
    for tool_role, role in ((False, "user"), (True, "tool")):
        executor = gem_openrlhf.GemAgentExecutor(tool_role=tool_role)
        (output,) = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), task, executor=executor)
        shown = tokenizer.decode(output["observation_tokens"])
        assert f"<|im_start|>{role}\non 1<|im_end|>" in shown
        assert "<|im_start|>user\non 2<|im_end|>" in shown


@pytest.mark.parametrize("label", ["", "5", "[]", '{"answer": 3}', '{"env_id": "x"}'])
def test_a_label_that_is_no_task_is_refused_with_what_to_do(tokenizer, label):
    with pytest.raises(ValueError, match="python -m gem_openrlhf"):
        execute(tokenizer, ScriptedVLLM([1]), {"prompt": "hello", "label": label})


def test_a_context_too_small_for_the_first_prompt_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"takes \d+ tokens, and the context holds 20"):
        execute(tokenizer, ScriptedVLLM([1]), row(Task(ENV, 0)), max_length=20)


@pytest.mark.parametrize("option", [{"max_turns": 0}, {"step_timeout": -1}])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(ValueError, match="must be positive"):
        gem_openrlhf.GemAgentExecutor(**option)


# --- what OpenRLHF makes of it


def test_openrlhf_makes_an_experience_of_it(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM(*chat(tokenizer)), row(talking()), params=Params(max_tokens=12))
    generator = SamplesGenerator.__new__(SamplesGenerator)
    experience = generator._process_response_into_experience(output, max_len=1024)
    mask = experience.action_mask[0]
    assert mask.sum().item() == sum(end - start for start, end in output["action_ranges"])
    assert experience.sequences[0].tolist() == output["observation_tokens"]
    sampled = experience.sequences[0][1:][mask.bool()].tolist()
    assert sampled == [token for action in actions_of(output) for token in action]
    assert (experience.rollout_log_probs[0][mask.bool()] < 0).all()
    assert experience.rewards.item() == 10.0
    assert experience.truncated.item() is False
    assert experience.info["gem/turns"].item() == 4


def test_the_file_is_found_by_its_path_as_openrlhf_loads_it():
    printed = subprocess.run(
        [sys.executable, "-m", "gem_openrlhf", "--path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    spec = importlib.util.spec_from_file_location("agent_module", printed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert issubclass(module.AgentExecutor, AgentExecutorBase)
    assert isinstance(module.AgentExecutor(), AgentExecutorBase)


def test_the_stock_executor_plays_a_task_by_an_agent_instance(tokenizer, small_model):
    class Instance(gem_openrlhf.AgentInstance):
        model = str(small_model)

    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(small_model)

    class Texts(ScriptedVLLM):
        async def generate(self, *args, **kwargs):
            output = await super().generate(*args, **kwargs)
            output.outputs[0].text = own.decode(output.outputs[0].token_ids[:-1])
            return output

    engine = Texts(*answers(own, "one", "two", "three", "four"))
    label = row(talking())["label"]
    output = asyncio.run(MultiTurnAgentExecutor(Instance).execute("p", label, Params(max_tokens=16), 512, own, engine))
    exact = execute(own, ScriptedVLLM(*answers(own, "one", "two", "three", "four")), row(talking()))[0]
    assert output["observation_tokens"] == exact["observation_tokens"]
    assert output["action_ranges"] == exact["action_ranges"]
    assert output["reward"] == exact["reward"]


def test_an_agent_instance_shows_turns_of_tools_in_the_tool_role_if_it_is_asked_for(tokenizer, small_model):
    label = row(tool_turns(tokenizer))["label"]

    class Instance(gem_openrlhf.AgentInstance):
        model = str(small_model)

    class WithTools(Instance):
        tool_role = True

    async def feedback(cls):
        instance = cls()
        await instance.reset({"label": label})
        return [(await instance.step({"action_text": "x"}))["environment_feedback"] for _ in range(2)]

    message = "\n<|im_start|>{}\non {}<|im_end|>\n<|im_start|>assistant\n"
    assert asyncio.run(feedback(Instance)) == [message.format("user", 1), message.format("user", 2)]
    assert asyncio.run(feedback(WithTools)) == [message.format("tool", 1), message.format("user", 2)]


def test_an_agent_instance_without_a_model_says_what_is_missing():
    with pytest.raises(TypeError, match="sets `model`"):
        gem_openrlhf.AgentInstance()


# --- rows


def test_rows_are_unique_and_carry_their_task(tmp_path, capsys):
    out = tmp_path / "train.jsonl"
    arguments = ["--env", ENV, "--seeds", "3:6", "--out", str(out), "--gamma", "0.9", "--max-turns", "4"]
    gem_openrlhf.main(arguments)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({r["prompt"] for r in rows}) == 3
    assert {r["datasource"] for r in rows} == {ENV}
    read = [gem_openrlhf._read_label(r["label"]) for r in rows]
    assert [task for task, _ in read] == make_tasks(ENV, range(3, 6))
    assert all(options == {"gamma": 0.9, "max_turns": 4} for _, options in read)
    assert "3 tasks" in capsys.readouterr().out


def test_prompts_differ_by_split_seed_and_arguments():
    tasks = [Task(ENV, 1), Task(ENV, 2), Task(ENV, 1, split="eval"), Task(ENV, 1, {"code_length": 3})]
    assert len({row(task)["prompt"] for task in tasks}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", ENV], "--env, --seeds and --out are needed"),
        (["--env", "game:Mastermynd-v0", "--seeds", "0:2"], "The nearest"),
        (["--env", ENV, "--seeds", "0-2"], "seeds=<first>:<end>"),
        (["--env", ENV, "--seeds", "0:2", "--split", "dev"], "split must be one of"),
        (["--env", ENV, "--seeds", "0:2", "--env-kwargs", '{"colour": 1}'], "colour"),
    ],
)
def test_rows_that_cannot_be_played_are_not_written(tmp_path, capsys, arguments, message):
    out = tmp_path / "x.jsonl"
    with pytest.raises(SystemExit) as exit:
        gem_openrlhf.main([*arguments, *(["--out", str(out)] if "--seeds" in arguments else [])])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_renderer_is_made_once_a_tokenizer(tokenizer, monkeypatch):
    made = []
    monkeypatch.setattr(gem_openrlhf, "ChatRenderer", lambda *a, **k: made.append(1) or ChatRenderer(*a, **k))
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *[row(talking())] * 8)
    assert len(made) == 1

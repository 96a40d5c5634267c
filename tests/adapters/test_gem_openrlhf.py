"""The OpenRLHF adapter without Ray, vLLM or DeepSpeed: the executor against a scripted engine."""

import asyncio
import gc
import importlib.util
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf")

from openrlhf.trainer.ppo_utils.length_penalty import apply_stop_properly_penalty
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
from openrlhf.utils.agent import AgentExecutorBase, MultiTurnAgentExecutor
from vllm import SamplingParams

import gem_openrlhf
import gem_openrlhf_text
from gem.rollout import ChatRenderer, discounted_returns, read_episodes, replay
from gem.rollout.rows import openrlhf_row
from gem.tasks import Task
from gem.testing.fault_injection import FaultInjectingEnv, fault_task
from gem.testing.scenarios import SCENARIO_ENV, scenarios
from gem.wrappers import TimeLimit, get_wrapper_fns

ENV = "game:Mastermind-v0-easy"


def sampling(max_tokens=16, **options):
    """Return vLLM's parameters, as OpenRLHF makes them."""
    return SamplingParams(**{"max_tokens": max_tokens, "min_tokens": 1, "logprobs": 1, **options})


class AsyncLLM:
    """Has the part of vLLM's engine through which OpenRLHF sends weights."""

    def __init__(self):
        self.got = []

    async def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        self.got.append((method, args))
        return [None]


class ScriptedVLLM:
    """Answers as RolloutRayActor does; remembers what it was asked."""

    def __init__(self, *answers, end_id=None):
        self.answers, self.end_id = answers, end_id
        self.asked = []
        self.llm = AsyncLLM()

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
    params = params or sampling()

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
    return openrlhf_row(task, **options)


def actions_of(output):
    return [output["observation_tokens"][start:end] for start, end in output["action_ranges"]]


# --- the executor


def test_the_episode_is_handed_over_token_by_token(tokenizer, tmp_path):
    executor = gem_openrlhf.GemAgentExecutor(episodes=tmp_path)
    engine = ScriptedVLLM(*chat(tokenizer))
    (output,) = execute(tokenizer, engine, row(fault_task()), params=sampling(max_tokens=12), executor=executor)
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
    (output,) = execute(tokenizer, engine, row(fault_task()), params=sampling(max_tokens=12))
    (_, _), (start, end), (_, _), (_, _) = output["action_ranges"]
    tokens = output["observation_tokens"]
    assert end - start == 12
    assert tokenizer.eos_token_id not in tokens[start:end]
    assert tokens[end] == tokenizer.eos_token_id
    assert output["rollout_log_probs"][end] == 0.0


def test_every_prompt_is_what_was_seen_and_sampled_before(tokenizer):
    engine = ScriptedVLLM(*chat(tokenizer))
    (output,) = execute(tokenizer, engine, row(fault_task()), params=sampling(max_tokens=12))
    for (prompt, _), (start, _) in zip(engine.asked, output["action_ranges"], strict=True):
        assert prompt == output["observation_tokens"][:start]


def test_sampling_parameters_are_not_shared_within_a_group(tokenizer):
    params = sampling(max_tokens=12, min_tokens=5, temperature=0.25)
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    execute(tokenizer, engine, *[row(fault_task())] * 8, params=params)
    assert params == sampling(max_tokens=12, min_tokens=5, temperature=0.25)
    assert {(p.max_tokens, p.min_tokens, p.temperature) for _, p in engine.asked} == {(12, 5, 0.25)}


def test_without_a_limit_a_turn_may_fill_the_context(tokenizer):
    x = tokenizer.convert_tokens_to_ids("x")
    engine = ScriptedVLLM([x] * 500)
    (output,) = execute(tokenizer, engine, row(fault_task()), params=sampling(max_tokens=None), max_length=100)
    assert len(output["observation_tokens"]) == 100
    assert output["truncated"] is True


@pytest.mark.parametrize("max_length", [*range(40, 60), *range(61, 90, 7)])
def test_the_episode_stops_before_the_context_overflows(tokenizer, max_length):
    x = tokenizer.convert_tokens_to_ids("x")
    engine = ScriptedVLLM([x] * 500)
    (output,) = execute(
        tokenizer,
        engine,
        row(fault_task(length=9)),
        params=sampling(max_tokens=10, min_tokens=5),
        max_length=max_length,
    )
    assert len(output["observation_tokens"]) <= max_length
    assert output["truncated"] is True
    assert output["extra_logs"]["gem/truncated_context"] == 1
    assert output["action_ranges"][-1][1] == len(output["observation_tokens"])
    assert all(p.max_tokens >= p.min_tokens for _, p in engine.asked)


def test_without_log_probabilities_there_are_none(tokenizer):
    (output,) = execute(
        tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), row(fault_task()), params=sampling(logprobs=None)
    )
    assert output["rollout_log_probs"] is None


def test_an_empty_generation_leaves_a_row_that_is_not_learned_from(tokenizer):
    for executor in (gem_openrlhf.GemAgentExecutor(), gem_openrlhf.GemAgentExecutor(on_error="keep")):
        (output,) = execute(tokenizer, ScriptedVLLM([]), row(fault_task()), executor=executor)
        ((start, end),) = output["action_ranges"]
        assert 0 < start < end == len(output["observation_tokens"]) == len(output["rollout_log_probs"])
        assert output["label"].masked
        assert output["reward"] == 0.0
        assert output["truncated"] is False
        assert output["extra_logs"]["gem/aborted"] == 1


def test_an_empty_generation_later_ends_the_episode_with_what_there_is(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x"), []), row(fault_task()))
    assert actions_of(output) == answers(tokenizer, "x")
    assert output["label"].masked


@pytest.mark.parametrize("on_error", ["mask", "keep"])
def test_the_label_tells_the_trainer_which_episodes_it_leaves_out(tokenizer, on_error):
    rows = [row(fault_task()), row(fault_task("raises")), row(fault_task(), max_turns=1)]
    executor = gem_openrlhf.GemAgentExecutor(on_error=on_error)
    outputs = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows, executor=executor)
    assert [output["label"] for output in outputs] == [r["label"] for r in rows]
    assert [output["label"].masked for output in outputs] == [False, on_error == "mask", False]
    assert [output["extra_logs"]["gem/left_out"] for output in outputs] == [0, 1, 0]
    assert [output["reward"] for output in outputs] == [10, 1, 1]


def test_a_first_observation_that_does_not_fit_leaves_out_its_own_episode(tokenizer):
    rows = [row(fault_task()), row(Task(ENV, 0))]
    short, long = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows, max_length=60)
    assert (short["label"].masked, long["label"].masked) == (False, True)
    assert long["extra_logs"]["gem/overlong"] == 1
    assert len(long["observation_tokens"]) <= 60


def test_truncated_is_what_openrlhf_fines_an_answer_that_was_cut(tokenizer):
    end, x = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("x")
    ended, cut = [x, end], [x] * 20
    episodes = {
        "ended": (ScriptedVLLM(ended), row(fault_task(length=1)), False),
        "ended at the limit of turns": (ScriptedVLLM(ended), row(fault_task(), max_turns=2), False),
        "the environment failed": (ScriptedVLLM(ended), row(fault_task("raises")), False),
        "a cut answer before": (ScriptedVLLM(cut, ended), row(fault_task(length=2)), False),
        "cut": (ScriptedVLLM(ended, cut), row(fault_task(length=2)), True),
        "cut on the end token": (ScriptedVLLM([*cut[:15], end, x]), row(fault_task(length=1)), False),
    }
    for name, (engine, task, fined) in episodes.items():
        (output,) = execute(tokenizer, engine, task)
        experience = SamplesGenerator.__new__(SamplesGenerator)._process_response_into_experience(output, max_len=1024)
        apply_stop_properly_penalty([experience], -0.5)
        assert (experience.rewards.item() == -0.5) is fined, name
        assert output["truncated"] is fined, name


def test_the_end_of_an_answer_in_the_chat_template_stops_the_engine(tokenizer):
    base = deepcopy(tokenizer)  # of a base model, whose end token is no part of the template
    base.eos_token = base.pad_token = "<|endoftext|>"
    end = tokenizer.eos_token_id
    assert base.eos_token_id != end
    params = sampling(stop_token_ids=[7])
    engine = ScriptedVLLM([*answers(tokenizer, "x")[0]])
    execute(base, engine, row(fault_task()), params=params)
    assert {tuple(asked.stop_token_ids) for _, asked in engine.asked} == {(end, 7)}
    assert {frozenset(asked.all_stop_token_ids) for _, asked in engine.asked} == {frozenset({7, end})}
    assert params.all_stop_token_ids == {7}  # the group's other members have the same object


def test_gamma_and_turns_come_from_the_row_or_else_from_the_executor(tokenizer):
    executor = gem_openrlhf.GemAgentExecutor(max_turns=3, gamma=0.5)
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    rows = [row(fault_task()), row(fault_task(), gamma=0.9), row(fault_task(), max_turns=2)]
    outputs = execute(tokenizer, engine, *rows, executor=executor)
    expected = [discounted_returns(r, g)[0] for r, g in (([1, 2, 3], 0.5), ([1, 2, 3], 0.9), ([1, 2], 0.5))]
    assert [output["reward"] for output in outputs] == pytest.approx(expected)
    assert [output["extra_logs"]["gem/truncated_turns"] for output in outputs] == [1, 1, 1]
    assert [output["extra_logs"]["gem/turns"] for output in outputs] == [3, 3, 2]


def test_the_same_keys_are_logged_whatever_happened(tokenizer):
    rows = [row(fault_task()), row(fault_task("raises")), row(fault_task(), max_turns=1), row(Task(ENV, 3))]
    outputs = execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows)
    outputs += execute(tokenizer, ScriptedVLLM([]), row(fault_task()))
    assert len({tuple(output["extra_logs"]) for output in outputs}) == 1
    assert {"gem/success", "gem/environment_errors", "gem/truncated_turns"} <= set(outputs[0]["extra_logs"])


def test_success_is_the_score(tokenizer):
    task = Task(ENV, 3)
    with task.make() as env:
        env.reset(task.reset_seed)
        engine = ScriptedVLLM(*answers(tokenizer, "\\boxed{" + " ".join(map(str, env.game_code)) + "}"))
    won, lost = execute(tokenizer, engine, row(task), row(replace(task, seed=4)), params=sampling(max_tokens=64))
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
    outputs = execute(tokenizer, engine, *[row(fault_task())] * 4, executor=executor)
    assert len({len(output["observation_tokens"]) for output in outputs}) == 4
    for output in outputs:
        assert actions_of(output) == answers(tokenizer, "x") * 4
        assert len(output["rollout_log_probs"]) == len(output["observation_tokens"])


def test_of_a_batch_of_16_those_that_misbehave_end_alone_and_are_counted(tokenizer):
    rows = [row(fault_task(seed=seed)) for seed in range(16)]
    for place, how in ((3, "raises"), (7, "hangs"), (11, "floods")):
        rows[place] = row(fault_task(how))
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
    rows = [row(fault_task("works", seed)) for seed in range(16)]
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows)
    assert time.perf_counter() - since < 16 / 2


def test_environments_are_closed(tokenizer):
    closed = []

    def make_env(task):
        env = task.make()
        env.close = lambda: closed.append(task)
        return env

    executor = gem_openrlhf.GemAgentExecutor(make_env=make_env)
    rows = [row(fault_task()), row(fault_task("raises"))]
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *rows, executor=executor)
    assert len(closed) == 2


def test_wrappers_go_in_by_make_env_but_not_those_that_rewrite_the_history(tokenizer):
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    short = gem_openrlhf.GemAgentExecutor(make_env=lambda task: TimeLimit(task.make(), 2))
    (output,) = execute(tokenizer, engine, row(fault_task()), executor=short)
    assert len(output["action_ranges"]) == 2
    (wrap,) = get_wrapper_fns("concat_with_action", tokenizer)
    rewriting = gem_openrlhf.GemAgentExecutor(make_env=lambda task: wrap(task.make()))
    with pytest.raises(ValueError, match="leave out the wrapper"):
        execute(tokenizer, engine, row(fault_task()), executor=rewriting)


def test_system_message_template_arguments_and_control_tokens(tokenizer):
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = "{{ '<|im_end|>' if shout else '' }}" + tokenizer.chat_template
    forged = "<|im_end|>"
    scenarios(tokenizer)  # registers the environment
    task = row(Task(SCENARIO_ENV, 0, {"length": 1, "says": forged}))
    for options, ends in (({}, 3), ({"template_kwargs": {"shout": True}}, 4), ({"allow_control_tokens": True}, 4)):
        executor = gem_openrlhf.GemAgentExecutor(system="Play well.", **options)
        (output,) = execute(tokenizer, engine, task, executor=executor)
        assert "<|im_start|>system\nPlay well.<|im_end|>" in tokenizer.decode(output["observation_tokens"])
        assert output["observation_tokens"].count(tokenizer.eos_token_id) == ends


def tool_turns(tokenizer):
    """Return a task of three turns, of which the first is a tool's."""
    scenarios(tokenizer)  # registers the environment
    return Task(SCENARIO_ENV, 0, {"length": 3, "tool_turns": [1]})


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
    with pytest.raises(ValueError, match="gem tasks --format openrlhf"):
        execute(tokenizer, ScriptedVLLM([1]), {"prompt": "hello", "label": label})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_turns": 0}, "must be positive"),
        ({"step_timeout": -1}, "must be positive"),
        ({"retries": -1}, "must not be negative"),
        ({"gamma": 2.0}, "from 0 to 1"),
        ({"gamma": -1}, "from 0 to 1"),
        ({"on_error": "ignore"}, "'mask' or 'keep'"),
    ],
)
def test_options_that_make_no_sense_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        gem_openrlhf.GemAgentExecutor(**option)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="max_turn"):
        gem_openrlhf.GemAgentExecutor(max_turn=6)


def test_other_versions_of_openrlhf_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.12.0")
    spec = importlib.util.spec_from_file_location("agent_module", gem_openrlhf.__file__)
    with pytest.raises(ImportError, match=r"works with OpenRLHF 0.11.x, and openrlhf 0.12.0 is installed"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# --- episodes in a folder


def send_weights(llm, method="update_weight"):
    """Send two weights as ActorPPOTrainer.broadcast_to_vllm does, by way of RolloutRayActor."""
    for name, last in (("a", False), ("b", True)):
        asyncio.run(llm.collective_rpc(method, args=(name, "bfloat16", (1,), last)))


def test_episodes_carry_the_step_which_is_counted_by_the_weights_that_are_sent(tokenizer, tmp_path):
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    train, evaluation = row(fault_task()), row(replace(fault_task(), split="eval"))
    executor = gem_openrlhf.GemAgentExecutor(episodes=tmp_path)
    execute(tokenizer, engine, train, executor=executor)
    for method in ("update_weight", "update_weight_cuda_ipc"):
        send_weights(engine.llm, method)
        execute(tokenizer, engine, train, train, evaluation, executor=executor)
    assert [len(read_episodes(tmp_path, "train", step)) for step in range(5)] == [0, 1, 2, 2, 0]
    assert [len(read_episodes(tmp_path, "eval", step)) for step in range(4)] == [0, 1, 1, 0]
    assert [method for method, _ in engine.llm.got] == ["update_weight"] * 2 + ["update_weight_cuda_ipc"] * 2


def test_a_folder_with_episodes_is_resumed_or_refused(tokenizer, tmp_path, monkeypatch):
    engine = ScriptedVLLM(*answers(tokenizer, "x"))
    monkeypatch.setenv(gem_openrlhf.EPISODES, str(tmp_path))
    executor = gem_openrlhf.AgentExecutor()
    for _ in range(3):
        execute(tokenizer, engine, row(fault_task()), executor=executor)
        send_weights(engine.llm)
    with pytest.raises(ValueError, match="holds the episodes of an earlier run"):
        gem_openrlhf.AgentExecutor()
    monkeypatch.setenv(gem_openrlhf.RESUME, "1")
    execute(tokenizer, engine, row(fault_task()), row(fault_task()), executor=gem_openrlhf.AgentExecutor())
    assert [len(read_episodes(tmp_path, "train", step)) for step in range(1, 5)] == [1, 2, 0, 0]


def test_the_engines_of_one_training_begin_one_run(tmp_path, monkeypatch):
    context = SimpleNamespace(get_session_name=lambda: "session", get_job_id=lambda: "01")
    monkeypatch.setattr(gem_openrlhf.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(gem_openrlhf.ray, "get_runtime_context", lambda: context)
    for _ in range(2):
        gem_openrlhf.GemAgentExecutor(episodes=tmp_path)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1
    context.get_job_id = lambda: "02"
    gem_openrlhf.GemAgentExecutor(episodes=tmp_path, resume=0)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


# --- what OpenRLHF makes of it


def test_openrlhf_makes_an_experience_of_it(tokenizer):
    (output,) = execute(tokenizer, ScriptedVLLM(*chat(tokenizer)), row(fault_task()), params=sampling(max_tokens=12))
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
    class Instance(gem_openrlhf_text.AgentInstance):
        model = str(small_model)

    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(small_model)

    class Texts(ScriptedVLLM):
        async def generate(self, *args, **kwargs):
            output = await super().generate(*args, **kwargs)
            output.outputs[0].text = own.decode(output.outputs[0].token_ids[:-1])
            return output

    engine = Texts(*answers(own, "one", "two", "three", "four"))
    label = row(fault_task())["label"]
    output = asyncio.run(
        MultiTurnAgentExecutor(Instance).execute("p", label, sampling(max_tokens=16), 512, own, engine)
    )
    exact = execute(own, ScriptedVLLM(*answers(own, "one", "two", "three", "four")), row(fault_task()))[0]
    assert output["observation_tokens"] == exact["observation_tokens"]
    assert output["action_ranges"] == exact["action_ranges"]
    assert output["reward"] == exact["reward"]


def test_an_agent_instance_shows_turns_of_tools_in_the_tool_role_if_it_is_asked_for(tokenizer, small_model):
    label = row(tool_turns(tokenizer))["label"]

    class Instance(gem_openrlhf_text.AgentInstance):
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


def test_an_agent_instance_gives_the_environment_the_answer_and_closes_it(small_model, monkeypatch):
    acted, closed = [], []
    step = FaultInjectingEnv.step
    monkeypatch.setattr(FaultInjectingEnv, "step", lambda self, action: acted.append(action) or step(self, action))
    monkeypatch.setattr(FaultInjectingEnv, "close", lambda self: closed.append(self.turn), raising=False)

    class Instance(gem_openrlhf_text.AgentInstance):
        model = str(small_model)

    async def play(turns):
        instance = Instance()
        await instance.reset({"label": row(fault_task(length=2))["label"]})
        for _ in range(turns):
            await instance.step({"action_text": "<think>7?</think>8"})

    asyncio.run(play(2))
    assert (acted, closed) == (["8", "8"], [2])
    asyncio.run(play(1))  # the executor ends an episode that is too long without a word
    gc.collect()
    assert closed == [2, 1]


def test_an_agent_instance_without_a_model_says_what_is_missing():
    with pytest.raises(TypeError, match="sets `model`"):
        gem_openrlhf_text.AgentInstance()


# --- renderers


def test_the_renderer_is_made_once_a_tokenizer(tokenizer, monkeypatch):
    made = []
    monkeypatch.setattr(gem_openrlhf, "ChatRenderer", lambda *a, **k: made.append(1) or ChatRenderer(*a, **k))
    execute(tokenizer, ScriptedVLLM(*answers(tokenizer, "x")), *[row(fault_task())] * 8)
    assert len(made) == 1

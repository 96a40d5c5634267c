"""The TRL adapter, in TRL's own trainer."""

import os
import socket
import subprocess
import sys
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import gem_trl_generation
import gem_trl_rollout
from gem.core import Env
from gem.models import embedded_model
from gem.models.build import Recipe, new_model
from gem.rollout import ContextTooSmall, mean_metrics, read_episodes, rebn
from gem.tasks import Task, make_tasks
from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset

ENV = "game:Mastermind-v0-easy"


torch.set_num_threads(1)  # far faster than two for models of this size


class Recorded(GRPOTrainer):
    """TRL's trainer, which also keeps what it computed its loss from."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.records = [*getattr(self, "records", []), (inputs, output, self.rollout_func.episodes)]
        return output


class RecordedPerTurn(Recorded, GemGRPOTrainer):
    pass


@pytest.fixture
def model(tokenizer):
    return new_model(tokenizer, Recipe(hidden_size=32))  # untrained: it writes any token, which is what tests want


@pytest.fixture
def in_a_folder(model, tmp_path):
    """Save the model, from where TRL loads it again for a KL term."""
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")


@pytest.fixture
def make_trainer(model, tokenizer, tmp_path):
    def make(trainer_class=Recorded, tasks=None, rollout=None, trainer_kwargs=None, **config):
        settings = {
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 6,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return trainer_class(
            model=model,
            processing_class=tokenizer,
            args=GRPOConfig(**{**settings, **config}),
            train_dataset=task_dataset(tasks or make_tasks(ENV, range(32))),
            **{
                "rollout_func": rollout or GemRollout(tokenizer, max_turns=3, make_env=lambda task: Chat()),
                "reward_funcs": gem_reward,
                **(trainer_kwargs or {}),
            },
        )

    return make


class Chat(Env):
    """Takes any text and pays for its length, so that an untrained model plays long episodes; never ends."""

    blocking = False

    def reset(self, seed=None):
        super().reset(seed)
        return f"Say {self.rng.randint(1, 9)} things.", {}

    def step(self, action):
        return f"{len(action)} letters.", len(action) / 100, False, False, {}


def test_what_was_sampled_reaches_the_loss_unchanged(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (_, output, episodes), *_ = trainer.records
    assert len(episodes) == 16
    for i, sequence in enumerate(episode.as_sequence() for episode in episodes):
        n = len(sequence.completion_ids)
        assert output["completion_ids"][i, :n].tolist() == sequence.completion_ids.tolist()
        assert output["tool_mask"][i, :n].tolist() == sequence.mask.tolist()
        assert output["completion_mask"][i].sum() == n
        assert output["prompt_ids"][i, -len(sequence.prompt_ids) :].tolist() == sequence.prompt_ids.tolist()
    assert output["num_items_in_batch"] == sum(episode.sampled_tokens for episode in episodes)


def test_text_would_not_have_encoded_to_the_sampled_ids(make_trainer, tokenizer):
    """The test above proves nothing if an untrained model wrote canonical tokens only."""
    trainer = make_trainer()
    trainer.train()
    turns = [turn for _, _, episodes in trainer.records for episode in episodes for turn in episode.turns]
    encoded = [tokenizer(turn.action, add_special_tokens=False)["input_ids"] for turn in turns]
    drifted = [turn for turn, ids in zip(turns, encoded, strict=True) if ids != turn.response_ids]
    assert len(drifted) > len(turns) / 2


def test_a_group_begins_from_one_task_and_groups_from_different_ones(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (_, _, episodes), *_ = trainer.records
    groups = [episodes[i : i + 4] for i in range(0, 16, 4)]
    assert all(len({episode.task.seed for episode in group}) == 1 for group in groups)
    assert len({group[0].task.seed for group in groups}) == 4


def test_grpo_advantages_are_those_of_the_returns(make_trainer):
    from gem.rollout import group_advantages

    trainer = make_trainer()
    trainer.train()
    (_, output, episodes), *_ = trainer.records
    expected = group_advantages([episode.total_reward for episode in episodes], group_size=4)
    np.testing.assert_allclose(output["advantages"].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_per_turn_advantages_are_rebn_on_the_tokens_of_their_turn(make_trainer, gamma):
    trainer = make_trainer(RecordedPerTurn, trainer_kwargs={"gamma": gamma})
    trainer.train()
    (_, output, episodes), *_ = trainer.records
    assert output["advantages"].shape == output["completion_ids"].shape
    expected = rebn([episode.rewards for episode in episodes], gamma)
    for i, episode in enumerate(episodes):
        sequence = episode.as_sequence()
        start = 0
        for advantage, end in zip(expected[i], sequence.turn_ends, strict=True):
            sampled = output["advantages"][i, start : end + 1][sequence.mask[start : end + 1] == 1]
            np.testing.assert_allclose(sampled.numpy(), advantage, atol=1e-6)
            start = end + 1


@pytest.mark.parametrize("trainer_class", [Recorded, RecordedPerTurn])
def test_gradient_accumulation_and_reuse_of_batches_work(make_trainer, trainer_class):
    trainer = make_trainer(
        trainer_class, per_device_train_batch_size=8, steps_per_generation=2, num_iterations=2, max_steps=4
    )
    trainer.train()
    assert len(trainer.records) == 1
    assert trainer.state.global_step == 4


def test_per_turn_advantages_do_not_lose_the_last_batch_of_a_short_data_set(make_trainer):
    trainer = make_trainer(RecordedPerTurn, tasks=make_tasks(ENV, range(5)), max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


def test_the_learned_weights_change(make_trainer, model):
    before = model.model.embed_tokens.weight.detach().clone()
    make_trainer().train()
    assert not torch.equal(before, model.model.embed_tokens.weight)


def test_metrics_are_logged_under_names_of_their_own(make_trainer):
    trainer = make_trainer()
    trainer.train()
    logged = trainer.state.log_history[0]
    (_, _, episodes), *_ = trainer.records
    assert logged["reward"] == pytest.approx(np.mean([episode.total_reward for episode in episodes]), abs=1e-6)
    assert logged["gem/turns"] == 3
    assert logged["gem/truncated_turns"] == 1
    assert logged["gem/success"] == logged["gem/environment_errors"] == logged["gem/truncated_context"] == 0


def test_evaluation_plays_the_eval_split(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=8, num_generations_eval=2)
    metrics = trainer.evaluate(task_dataset(make_tasks(ENV, range(4), split="eval")))
    assert {task.split for task in (e.task for e in trainer.rollout_func.episodes)} == {"eval"}
    assert "eval_gem/success" in metrics


def test_a_context_too_small_for_the_task_is_an_error_before_anything_is_learned(make_trainer, tokenizer):
    trainer = make_trainer(rollout=GemRollout(tokenizer, max_context=16))
    with pytest.raises(ContextTooSmall, match="the context holds 16"):
        trainer.train()


def test_the_context_of_the_model_is_the_limit_by_default(make_trainer, model, tokenizer):
    model.config.max_position_embeddings = 140
    trainer = make_trainer(rollout=GemRollout(tokenizer, make_env=lambda task: Chat()))
    trainer.train()
    episodes = trainer.rollout_func.episodes
    assert {episode.truncation for episode in episodes} == {"context"}
    assert max(len(t.prompt_ids) + len(t.response_ids) for e in episodes for t in e.turns) <= 140


def test_a_data_set_without_tasks_is_an_error_that_says_what_to_use(make_trainer, tokenizer):
    trainer = make_trainer()
    trainer.train_dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": "hello"}]}] * 8)
    with pytest.raises(ValueError, match=r"gem_trl\.task_dataset"):
        trainer.train()


def test_per_turn_advantages_need_a_rollout_of_gem(make_trainer, tokenizer):
    with pytest.raises(TypeError, match=r"GemGRPOTrainer needs rollout_func=GemRollout"):
        make_trainer(GemGRPOTrainer, rollout=lambda prompts, trainer: {})


def test_a_trainer_without_a_list_of_end_tokens_ends_at_the_tokenizers():
    """Earlier releases of TRL 1.x have no ``eos_token_ids``."""
    trainer = SimpleNamespace(
        _generate_single_turn=lambda prompt_ids, images, multimodal_fields: ([[7, 2], [7, 8]], None),
    )
    renderer = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=2), stop_ids=())
    batch = [SimpleNamespace(prompt_ids=[1])] * 2
    responses = gem_trl_generation.generate(batch, 2, trainer, renderer)
    assert [response.finish_reason for response in responses] == ["stop", "length"]


def test_a_wrapper_that_rewrites_the_history_is_refused(make_trainer, tokenizer):
    from gem.wrappers import ObservationWrapper

    def make_env(task):
        return ObservationWrapper(Chat(), include_chat_template=False)

    with pytest.raises(ValueError, match="leave out the wrapper that rewrites the history"):
        make_trainer(rollout=GemRollout(tokenizer, max_turns=2, make_env=make_env)).train()


def test_turns_of_tools_are_shown_in_the_tool_role_if_it_is_asked_for(make_trainer, tokenizer):
    class Tools(Chat):
        def step(self, action):
            return (*super().step(action)[:-1], {"use_tool": True})

    def in_the_role(**options):
        trainer = make_trainer(rollout=GemRollout(tokenizer, max_turns=2, make_env=lambda task: Tools(), **options))
        trainer.train()
        (_, _, episodes), *_ = trainer.records
        return ["<|im_start|>tool\n" in tokenizer.decode(episode.turns[1].prompt_ids) for episode in episodes]

    assert in_the_role() == [False] * 16
    assert in_the_role(tool_role=True) == [True] * 16


# Episodes that somebody else ended


class Failing(Chat):
    """Fails for the members (counted as they are built) that ``bad`` names: in ``reset`` or in a turn."""

    built = 0

    def __init__(self, bad, turn):
        super().__init__()
        self.bad, self.turn = Failing.built in bad, turn
        Failing.built += 1

    def reset(self, seed=None):
        if self.bad and self.turn == 0:
            raise ConnectionError("no sandbox")
        self.number = 0
        return super().reset(seed)

    def step(self, action):
        self.number += 1
        if self.bad and self.number == self.turn:
            raise ConnectionError("the sandbox is gone")
        return super().step(action)


@pytest.fixture
def failing_batch(make_trainer, tokenizer):
    """Return a function that runs one batch of four groups of four, of which the members ``bad`` fail."""

    def run(bad, turn=2, trainer_class=Recorded, on_error="mask", trainer_kwargs=None, **config):
        make_env = partial(Failing, bad, turn)
        rollout = GemRollout(tokenizer, max_turns=3, on_error=on_error, retries=0, make_env=lambda task: make_env())
        trainer = make_trainer(trainer_class, rollout=rollout, trainer_kwargs=trainer_kwargs, **config)
        rollout.prepare(trainer)
        Failing.built = 0
        trainer.model.train()
        output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        return trainer, output, rollout.episodes

    return run


def normalised(values, size, scale):
    """Return TRL's advantages of groups that some are missing of (None)."""
    known = [value for value in values if value is not None]
    advantages = []
    for start in range(0, len(values), size):
        group = [value for value in values[start : start + size] if value is not None]
        for value in values[start : start + size]:
            if value is None or (scale == "group" and len(group) == 1):
                advantages.append(0.0)
                continue
            std = {"group": group, "batch": known, "none": None}[scale]
            divisor = 1.0 if std is None else np.std(std, ddof=1) + 1e-4
            advantages.append((value - np.mean(group)) / divisor)
    return advantages


@pytest.mark.parametrize("turn", [0, 1, 3], ids=["in reset", "in the first turn", "in a later turn"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_a_batch_without_the_episodes_that_failed(failing_batch, scale, turn):
    bad = {1, 4, 5, 6, 8, 9, 10, 11}  # one of a group, three of a group, a whole group
    _, output, episodes = failing_batch(bad, turn, scale_rewards=scale)
    assert [not episode.valid for episode in episodes] == [i in bad for i in range(16)]
    returns = [episode.total_reward if episode.valid else None for episode in episodes]
    np.testing.assert_allclose(output["advantages"].numpy(), normalised(returns, 4, scale), atol=1e-5)
    in_the_loss = (output["completion_mask"] * output["tool_mask"]).sum(1).tolist()
    assert in_the_loss == [episode.sampled_tokens if episode.valid else 0 for episode in episodes]
    assert output["num_items_in_batch"] == sum(in_the_loss)


def test_rebn_is_over_the_turns_of_valid_episodes(failing_batch):
    bad = {1, 4, 5, 6, 8, 9, 10, 11}
    _, output, episodes = failing_batch(bad, trainer_class=RecordedPerTurn)
    expected = iter(rebn([episode.rewards for episode in episodes if episode.valid]))
    for i, episode in enumerate(episodes):
        got = output["advantages"][i]
        if i in bad:
            assert not got.any()
            continue
        for value, end in zip(next(expected), episode.as_sequence().turn_ends, strict=True):
            assert got[end].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("trainer_class", [Recorded, RecordedPerTurn])
def test_failures_are_learned_from_if_they_are_kept(failing_batch, trainer_class):
    _, output, episodes = failing_batch({1, 4, 5}, trainer_class=trainer_class, on_error="keep")
    in_the_loss = (output["completion_mask"] * output["tool_mask"]).sum(1).tolist()
    assert in_the_loss == [episode.sampled_tokens for episode in episodes]
    if trainer_class is Recorded:
        returns = [episode.total_reward for episode in episodes]
        np.testing.assert_allclose(output["advantages"].numpy(), normalised(returns, 4, "group"), atol=1e-5)
    else:
        expected = rebn([episode.rewards for episode in episodes])
        assert output["advantages"][1, 0].item() == pytest.approx(expected[1][0], abs=1e-5)


def gradient(trainer, rows):
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, rows)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


LOSSES = ["grpo", "sapo", "bnpo", "dr_grpo", "dapo", "cispo", "vespo", "luspo"]
OVER_ROWS = {"grpo", "sapo", "dr_grpo", "luspo"}  # divided by the number of rows


@pytest.mark.parametrize("per_turn", [False, True], ids=["an advantage per episode", "an advantage per turn"])
@pytest.mark.usefixtures("in_a_folder")
def test_the_loss_of_the_others_is_that_of_a_batch_without_the_episode(failing_batch, per_turn):
    """Losses that are divided by the number of rows are smaller by the share of those that are left out."""
    trainer, output, _ = failing_batch({2}, trainer_class=RecordedPerTurn if per_turn else Recorded, beta=0.1)
    without = {k: v if v.ndim == 0 else torch.cat([v[:2], v[3:]]) for k, v in output.items()}
    for loss_type in LOSSES:
        trainer.loss_type = loss_type
        got, expected = gradient(trainer, output)[1], gradient(trainer, without)[1]
        assert expected.abs().max() > 1e-4
        share = 15 / 16 if loss_type in OVER_ROWS else 1
        torch.testing.assert_close(got, expected * share, rtol=1e-4, atol=1e-6, msg=loss_type)


@pytest.mark.parametrize("config", [{}, {"scale_rewards": "batch"}, {"scale_rewards": "none"}])
@pytest.mark.usefixtures("in_a_folder")
def test_a_batch_of_failures_moves_nothing(failing_batch, config):
    trainer, output, _ = failing_batch(set(range(16)), **config, beta=0.1)
    assert not output["advantages"].any()
    for loss_type in LOSSES:
        trainer.loss_type = loss_type
        loss, grads = gradient(trainer, output)
        assert loss == 0
        assert not grads.any()


@pytest.mark.parametrize("trainer_class", [Recorded, RecordedPerTurn])
def test_training_goes_on_when_everything_fails(make_trainer, tokenizer, model, trainer_class):
    before = model.model.embed_tokens.weight.detach().clone()
    rollout = GemRollout(tokenizer, retries=0, make_env=lambda task: Failing(range(10**6), 1))
    trainer = make_trainer(trainer_class, rollout=rollout, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    logged = trainer.state.log_history[0]
    assert logged["gem/left_out"] == logged["gem/environment_errors"] == 1
    assert logged["reward"] is None
    assert "gem/success" not in logged
    assert torch.equal(before, model.model.embed_tokens.weight)


def test_several_objectives_leave_failures_out_as_well(failing_batch):
    def wordy(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]  # also of those that failed

    async def brief(completion_ids, **columns):
        return [1.0 / len(ids) for ids in completion_ids]

    bad = {1, 4, 5, 6, 8, 9, 10, 11}
    functions = {"reward_funcs": [gem_reward, wordy, brief]}
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        options = {"reward_weights": [1.0, 0.5, 2.0], "multi_objective_aggregation": aggregation}
        _, output, episodes = failing_batch(bad, trainer_kwargs={**functions}, **options)
        assert not output["advantages"][sorted(bad)].any()
        lengths = [len(episode.as_sequence().completion_ids) for episode in episodes]
        if aggregation == "sum_then_normalize":
            sums = [
                None if i in bad else episode.total_reward + 0.5 * length + 2 / length
                for i, (episode, length) in enumerate(zip(episodes, lengths, strict=True))
            ]
            np.testing.assert_allclose(output["advantages"].numpy(), normalised(sums, 4, "group"), atol=1e-4)


def test_a_reward_model_cannot_leave_failures_out_and_is_refused(make_trainer, model):
    trainer = make_trainer()
    trainer.reward_funcs.append(model)
    with pytest.raises(ValueError, match="is a reward model"):
        trainer.train()


def test_failures_before_the_first_token_are_begun_again_and_counted(make_trainer, tokenizer):
    rollout = GemRollout(tokenizer, max_turns=1, make_env=lambda task: Failing({3, 9}, 0))
    trainer = make_trainer(rollout=rollout)
    rollout.prepare(trainer)
    Failing.built = 0
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["gem/retries"] * 16 == 2
    assert logged["gem/left_out"] == 0


def saying(answers, trainer_class=Recorded):
    """Return a trainer's class whose generation returns what ``answers`` makes of the prompts."""

    class Saying(trainer_class):
        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations):
            return answers(prompt_ids)

    return Saying


@pytest.mark.parametrize("trainer_class", [Recorded, RecordedPerTurn])
@pytest.mark.parametrize("which", ["first", "later", "all"])
def test_an_empty_generation_is_left_out_and_counted(make_trainer, trainer_class, which):
    rounds = []

    def answers(prompts):
        rounds.append(1)
        nothing = {"first": len(rounds) == 1, "later": len(rounds) == 2, "all": True}[which]
        empty = range(len(prompts)) if which == "all" else [1] if nothing else []
        ids = [[] if i in empty else [10 + i] for i in range(len(prompts))]
        return ids, [[-0.5] * len(row) for row in ids]

    trainer = make_trainer(saying(answers, trainer_class), max_steps=2)
    trainer.train()
    ((_, output, episodes), *_) = trainer.records
    left_out = [i for i, episode in enumerate(episodes) if not episode.valid]
    assert left_out == (list(range(16)) if which == "all" else [1])
    assert {episodes[i].truncation for i in left_out} == {"abort"}
    assert trainer.state.log_history[0]["gem/aborted"] * 16 == len(left_out)
    assert not (output["tool_mask"] * output["completion_mask"])[left_out].any()
    assert not output["advantages"][left_out].any()
    assert torch.isfinite(output["advantages"]).all()


def test_an_empty_generation_is_left_out_even_if_failures_are_kept(make_trainer, tokenizer):
    rollout = GemRollout(tokenizer, max_turns=1, on_error="keep", make_env=lambda task: Chat())
    trainer = make_trainer(saying(lambda prompts: ([[] for _ in prompts], None)), rollout=rollout)
    trainer.train()
    assert trainer.state.log_history[0]["gem/left_out"] == 1


def test_an_overlong_task_is_left_out_and_the_run_goes_on(make_trainer, tokenizer):
    class Long(Chat):
        def reset(self, seed=None):
            return ("word " * 1000 if seed == 3 else super().reset(seed)[0]), {}

    rollout = GemRollout(tokenizer, max_turns=1, max_context=400, make_env=lambda task: Long())
    trainer = make_trainer(rollout=rollout, tasks=make_tasks(ENV, range(4)))
    trainer.train()
    assert trainer.state.log_history[0]["gem/overlong"] == 0.25
    episodes = trainer.rollout_func.episodes
    assert [episode.valid for episode in episodes] == [episode.task.seed != 3 for episode in episodes]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_tiny_and_huge_rewards_give_finite_advantages(make_trainer, tokenizer, scale):
    """TRL computes them in float32."""

    class Paying(Chat):
        def step(self, action):
            return (*super().step(action)[:1], self.pay, False, False, {})

    for reward in (-0.1, 1e-12, 1e30):
        Paying.pay = reward
        for trainer_class in (Recorded, RecordedPerTurn) if scale != "none" else (Recorded,):
            rollout = GemRollout(tokenizer, max_turns=1, make_env=lambda task: Paying())
            trainer = make_trainer(trainer_class, rollout=rollout, scale_rewards=scale)
            trainer.train()
            advantages = trainer.records[0][1]["advantages"]
            assert torch.isfinite(advantages).all()
            assert advantages.abs().max() <= 1e-4 * max(1, reward * 0)
            assert np.isfinite(trainer.state.log_history[0]["loss"])


# Stop tokens, template and context


def base_model(folder):
    """Return a tokenizer and a model whose end token is not that of the chat template."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    return tokenizer, model


def test_a_base_model_stops_at_the_end_of_the_templates_turn(tmp_path):
    tokenizer, model = base_model(embedded_model())
    rollout = GemRollout(tokenizer, max_turns=3)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=64,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=task_dataset(make_tasks("game:GuessTheNumber-v1-easy", range(2))),
        rollout_func=rollout,
        reward_funcs=gem_reward,
    )
    trainer.model.train()
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    turns = [turn for episode in rollout.episodes for turn in episode.turns]
    assert {turn.finish_reason for turn in turns} == {"stop"}
    assert {turn.response_ids[-1] for turn in turns} == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert max(len(turn.response_ids) for turn in turns) < 32  # not stopped by the limit, and cut afterwards
    assert set(rollout.renderer.stop_ids) < set(trainer.generation_config.eos_token_id)
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.0]


def test_vllm_gets_the_stop_tokens_with_its_sampling_parameters(make_trainer, tokenizer):
    from trl.generation.vllm_generation import VLLMGeneration

    asked = []

    class Client:
        def generate(self, prompts, **sampling):
            asked.append(sampling)
            ids = [[5, 6] for _ in prompts]
            return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": [[[-0.5]] * 2 for _ in prompts]}

    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    rollout = GemRollout(tokenizer, max_turns=1, make_env=lambda task: Chat())
    trainer = make_trainer(rollout=rollout)
    engine = object.__new__(VLLMGeneration)
    vars(engine).update(
        mode="server", vllm_client=Client(), accelerator=trainer.accelerator, generation_kwargs={"stop_token_ids": [7]},
        temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0, max_completion_length=6, logprobs=0,
        structured_outputs_regex=None, enable_sleep_mode=False,
    )  # fmt: skip
    trainer.vllm_generation, trainer.use_vllm, trainer._last_loaded_step = engine, True, 0
    trainer.rollout_func([row["prompt"] for row in trainer.train_dataset][:2], trainer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [sampling["generation_kwargs"]["stop_token_ids"] for sampling in asked] == [[7, end]]
    assert end in trainer.eos_token_ids


def test_a_generation_that_cannot_be_told_to_stop_is_warned_of_once_and_cut(make_trainer, tokenizer, caplog):
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    trainer = make_trainer(
        saying(lambda prompts: ([[20, end, 21] for _ in prompts], [[-0.5, -0.25, -1.0] for _ in prompts])),
        rollout=GemRollout(tokenizer, max_turns=2, make_env=lambda task: Chat()),
    )
    del trainer.generation_config
    with caplog.at_level("WARNING", logger="gem.trl"):
        trainer.train()
    assert [record.getMessage() for record in caplog.records if "cut off" in record.getMessage()] != []
    assert len([record for record in caplog.records if record.name == "gem.trl"]) == 1
    turns = [turn for episode in trainer.rollout_func.episodes for turn in episode.turns]
    assert {(*turn.response_ids, *turn.logprobs, turn.finish_reason) for turn in turns} == {
        (20, end, -0.5, -0.25, "stop")
    }


def test_the_context_of_vllm_is_a_limit_too(make_trainer, tokenizer):
    trainer = make_trainer(
        rollout=GemRollout(tokenizer, make_env=lambda task: Chat()), vllm_max_model_length=120, max_steps=1
    )
    trainer.train()
    turns = [turn for episode in trainer.rollout_func.episodes for turn in episode.turns]
    assert 100 < max(len(turn.prompt_ids) + len(turn.response_ids) for turn in turns) <= 120


def test_the_trainers_arguments_of_the_template_are_used(make_trainer, tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = "{{ 'today is ' ~ (date or 'unknown') ~ '\n' }}" + tokenizer.chat_template
    rollout = GemRollout(tokenizer, max_turns=1, make_env=lambda task: Chat())
    trainer = make_trainer(rollout=rollout, chat_template_kwargs={"date": "Monday"})
    trainer.train()
    prompts = {tokenizer.decode(list(episode.turns[0].prompt_ids)) for episode in rollout.episodes}
    assert all(prompt.startswith("today is Monday") for prompt in prompts)


# What is refused


def with_system(row, content):
    return {"prompt": [{"role": "system", "content": content, "task": None}, *row["prompt"]]}


def test_a_system_message_in_the_rows_is_that_of_the_rollout_or_refused(make_trainer, tokenizer):
    def make(system):
        rollout = GemRollout(tokenizer, max_turns=1, system=system, make_env=lambda task: Chat())
        trainer = make_trainer(rollout=rollout, tasks=make_tasks(ENV, range(4)))
        trainer.train_dataset = trainer.train_dataset.map(partial(with_system, content="Be brief."))
        return trainer

    make("Be brief.").train()
    for system in (None, "Be clear."):
        with pytest.raises(ValueError, match=r"which the model would not see.*GemRollout\(tokenizer, system="):
            make(system).train()


BAD_TASKS = [
    (Task("game:Mastermid-v0", 1), ValueError, "no environment 'game:Mastermid-v0'"),
    (Task(ENV, 1, {"lenght": 3}), TypeError, "lenght"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_TASKS, ids=["id", "argument"])
def test_a_bad_task_among_good_ones_is_found_before_anything_is_generated(make_trainer, tokenizer, bad, error, message):
    def answers(prompts):
        raise AssertionError("generated")

    tasks = {"tasks": [*make_tasks(ENV, range(100)), bad], "rollout": GemRollout(tokenizer)}
    with pytest.raises(error, match=message):
        make_trainer(saying(answers), **tasks).train()
    with pytest.raises(error, match=message):
        make_trainer(GemGRPOTrainer, **tasks)  # knows it as soon as it is made


def test_tasks_of_an_iterable_data_set_are_checked_as_they_come(make_trainer, tokenizer):
    trainer = make_trainer(rollout=GemRollout(tokenizer))
    rows = task_dataset([Task("game:Mastermid-v0", seed) for seed in range(8)])
    trainer.train_dataset = rows.to_iterable_dataset()
    with pytest.raises(ValueError, match="no environment 'game:Mastermid-v0'"):
        trainer.rollout_func([row["prompt"] for row in rows], trainer)


def test_training_tasks_are_not_evaluated_on_nor_the_other_way_round(make_trainer):
    training, evaluation = make_tasks(ENV, range(8)), make_tasks(ENV, range(8), split="eval")
    datasets = {"a": task_dataset(evaluation), "b": task_dataset(training)}
    with pytest.raises(ValueError, match=r"eval_dataset: task 1.*split='eval'"):
        make_trainer(trainer_kwargs={"eval_dataset": datasets["b"]}).train()
    with pytest.raises(ValueError, match=r"eval_dataset: task 9.*split='eval'"):
        make_trainer(GemGRPOTrainer, trainer_kwargs={"eval_dataset": datasets})
    with pytest.raises(ValueError, match=r"train_dataset: task 1.*split='train'"):
        make_trainer(GemGRPOTrainer, tasks=evaluation)


def test_a_forgotten_rollout_is_one_clear_line(make_trainer):
    with pytest.raises(TypeError, match=r"needs rollout_func=GemRollout\(tokenizer\)"):
        make_trainer(GRPOTrainer, trainer_kwargs={"rollout_func": None}).train()


def test_a_rollout_that_is_no_instance_is_one_clear_line(make_trainer):
    with pytest.raises(TypeError, match=r"takes an instance, GemRollout\(tokenizer\)"):
        make_trainer(GRPOTrainer, rollout=GemRollout).train()


def test_no_limit_of_a_turn_is_one_clear_line(make_trainer):
    with pytest.raises(ValueError, match="limits the tokens of one turn"):
        make_trainer(max_completion_length=None).train()


@pytest.mark.parametrize("gamma", [-1, 2.0, float("nan")])
def test_a_discount_that_is_none_is_refused(make_trainer, gamma):
    with pytest.raises(ValueError, match="gamma"):
        make_trainer(GemGRPOTrainer, trainer_kwargs={"gamma": gamma})


@pytest.mark.parametrize(
    "option", [{"max_turn": 2}, {"systm": "x"}, {"enable_thinking": False}, {"on_eror": "keep"}], ids=lambda o: min(o)
)
def test_an_unknown_option_is_refused(tokenizer, option):
    with pytest.raises(TypeError, match=min(option)):
        GemRollout(tokenizer, **option)


@pytest.mark.parametrize("option", [{"on_error": "drop"}, {"max_turns": 0}, {"retries": -1}], ids=lambda o: min(o))
def test_a_value_that_makes_no_sense_is_refused(tokenizer, option):
    with pytest.raises(ValueError, match=min(option)):
        GemRollout(tokenizer, **option)


def test_leaving_out_needs_a_trl_that_can(tokenizer, monkeypatch):
    monkeypatch.setattr(gem_trl_rollout, "trl_version", "1.5.1")
    with pytest.raises(ValueError, match=r"trl >= 1\.6, or GemRollout\(..., on_error='keep'\)"):
        GemRollout(tokenizer)
    GemRollout(tokenizer, on_error="keep")


# Further rewards, with one advantage per turn


def test_further_rewards_are_those_of_the_last_turn(make_trainer):
    def wordy(completion_ids, **columns):
        return [None if i % 4 == 0 else float(len(ids)) for i, ids in enumerate(completion_ids)]

    functions = {"reward_funcs": [wordy, gem_reward], "gamma": 0.5}
    trainer = make_trainer(RecordedPerTurn, trainer_kwargs=functions, reward_weights=[0.25, 2.0])
    trainer.train()
    ((_, output, episodes), *_) = trainer.records
    rewards = []
    for i, episode in enumerate(episodes):
        of_turns = [2 * reward for reward in episode.rewards]
        of_turns[-1] += 0 if i % 4 == 0 else 0.25 * len(episode.as_sequence().completion_ids)
        rewards.append(of_turns)
    for i, of_turns in enumerate(rebn(rewards, 0.5)):
        got = output["advantages"][i, torch.tensor(episodes[i].as_sequence().turn_ends)]
        np.testing.assert_allclose(got.numpy(), of_turns, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "kwargs", "message"),
    [
        ({"scale_rewards": "none"}, {}, "scale_rewards"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {}, "multi_objective_aggregation"),
        ({}, {"reward_funcs": lambda **columns: [0.0]}, "gem_reward among its reward_funcs"),
    ],
)
def test_options_that_ask_for_other_advantages_are_refused(make_trainer, options, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(GemGRPOTrainer, trainer_kwargs=kwargs, **options)


# Metrics and episodes


def test_mixed_training_has_metrics_of_each_environment(make_trainer, tokenizer):
    tasks = [*make_tasks(ENV, range(2)), *make_tasks("game:GuessTheNumber-v1-easy", range(2))]
    trainer = make_trainer(tasks=tasks, rollout=GemRollout(tokenizer, max_turns=3))
    trainer.train()
    ((_, _, episodes), *_) = trainer.records
    logged = trainer.state.log_history[0]
    expected = {f"gem/{name}": value for name, value in mean_metrics(episodes).items()}
    assert f"gem/success/{ENV}" in expected
    assert {name: logged[name] for name in logged if name.startswith("gem/")} == pytest.approx(expected)


def test_metrics_in_the_log_are_those_of_the_episodes_in_the_folder(make_trainer, tokenizer, tmp_path):
    folder = tmp_path / "episodes"
    evaluation = task_dataset(make_tasks(ENV, range(4), split="eval"))

    def make(**options):
        rollout = GemRollout(tokenizer, max_turns=2, make_env=lambda task: Chat(), episodes=folder, **options)
        config = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        return make_trainer(rollout=rollout, trainer_kwargs={"eval_dataset": evaluation}, **config)

    def check(trainer):
        for row in trainer.state.log_history:
            prefix, split = ("eval_", "eval") if "eval_gem/return" in row else ("", "train")
            if f"{prefix}gem/return" in row:
                episodes = read_episodes(folder, split, step=row["step"])
                assert len(episodes) == 16
                for name, value in mean_metrics(episodes).items():
                    assert row[f"{prefix}gem/{name}"] == pytest.approx(value, abs=1e-6), (row["step"], name)

    trainer = make()
    trainer.train()
    check(trainer)
    with pytest.raises(ValueError, match="resume"):
        make().train()
    again = make(resume=True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    check(again)
    assert len(read_episodes(folder, "train")) == 3 * 16


def test_log_probabilities_of_the_engine_are_handed_on(make_trainer, monkeypatch):
    def with_logprobs(self, prompt_ids, images, multimodal_fields, num_generations):
        ids, _ = GRPOTrainer._generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations)
        return ids, [[-0.5] * len(row) for row in ids]

    trainer = make_trainer(tasks=make_tasks(ENV, range(4)))
    monkeypatch.setattr(trainer, "_generate_single_turn", with_logprobs.__get__(trainer))
    columns = trainer.rollout_func([row["prompt"] for row in trainer.train_dataset], trainer)
    for logprobs, mask in zip(columns["logprobs"], columns["env_mask"], strict=True):
        assert [p for p, m in zip(logprobs, mask, strict=True) if m] == [-0.5] * sum(mask)
        assert {p for p, m in zip(logprobs, mask, strict=True) if not m} <= {0.0}


@pytest.mark.parametrize(
    "signature", ["(prompts)", "(prompt_ids, new, images)", "()", "(prompt_ids, images, multimodal_fields, mode)"]
)
def test_a_release_that_generates_in_an_unknown_way_is_an_error_that_names_the_tested_ones(signature):
    namespace: dict = {}
    exec(f"def generate{signature}: pass", namespace)
    with pytest.raises(RuntimeError, match=r"ci/constraints/trl\.txt"):
        gem_trl_generation._generate_single_turn([[1]], SimpleNamespace(_generate_single_turn=namespace["generate"]))


def test_the_signatures_of_earlier_releases_are_served():
    def three(prompt_ids, images, multimodal_fields):
        return (prompt_ids, images, multimodal_fields), None

    assert gem_trl_generation._generate_single_turn([[1]], SimpleNamespace(_generate_single_turn=three))[0] == (
        [[1]],
        None,
        {},
    )


@pytest.mark.parametrize("version", ["0.29.1", "2.0.0"])
def test_a_release_that_is_not_1_x_is_an_error_with_the_command(tmp_path, version):
    (tmp_path / "trl.py").write_text(f"__version__ = {version!r}\nclass GRPOTrainer: ...\n")
    done = import_gem_trl(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert f"trl {version} is installed: install gem-adapters[trl]" in done.stderr.splitlines()[-1]


def test_without_trl_the_error_has_the_command():
    done = import_gem_trl("import sys; sys.modules['trl'] = None")
    assert done.stderr.splitlines()[-1].endswith("install gem-adapters[trl]")


def import_gem_trl(before):
    return subprocess.run(
        [sys.executable, "-c", f"{before}; import gem_trl"], capture_output=True, text=True, check=False
    )


def test_tasks_survive_the_data_set():
    tasks = [Task(ENV, 3, {"max_turns": 5}), Task("game:TowerofHanoi-v0", 2**40 - 1, split="test")]
    rows = task_dataset(tasks)
    assert [gem_trl_rollout.task_of_prompt(row["prompt"]) for row in rows] == tasks


def test_ranks_with_fewer_episodes_left_keep_generating_with_the_others(tmp_path):
    """Two processes on gloo: generation is made collective, so a rank that stopped early would hang the other."""
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    assert "turns [1, 1, 1, 1]" in outputs[0]
    assert "turns [5, 5, 5, 3]" in outputs[1]
    assert all("rebn is over the valid episodes of both ranks" in output for output in outputs)
    assert "left out 0.125" in outputs[0]


TWO_RANKS = '''
import os, sys
import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, GRPOTrainer
from gem.core import Env
from gem.models import embedded_model
from gem.models.build import Recipe, new_model
from gem.models.tokenizer import train_tokenizer
from gem.rollout import rebn
from gem.tasks import make_tasks
from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset

rank = int(os.environ["RANK"])


class Uneven(Env):
    """One turn on rank 0, five on rank 1, where the last fails in its third."""

    blocking = False
    built = 0

    def __init__(self):
        super().__init__()
        Uneven.built += 1
        self.fails = rank == 1 and Uneven.built == 4

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        return "begin", {}

    def step(self, action):
        self.turn += 1
        if self.fails and self.turn == 3:
            raise OSError("the disk is full")
        return "on", float(len(action)), self.turn == 1 + 4 * rank, False, {}


class Collective(GemGRPOTrainer):
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations):
        asked = self.accelerator.gather(torch.tensor([len(prompt_ids)])).tolist()
        assert asked[0] == asked[1], asked
        return GRPOTrainer._generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        own = [row["turn_rewards"] for row in inputs]
        both = gather_object(own)
        assert len(both) == 8
        expected = rebn(both[:7])[4 * rank]
        assert abs(output["advantages"][0, 0].item() - expected[0]) < 1e-5
        assert rank == 0 or not output["advantages"][3].any()
        print("rebn is over the valid episodes of both ranks")
        return output


tokenizer = train_tokenizer(["begin on user assistant system"] * 4, 300)
rollout = GemRollout(tokenizer, make_env=lambda task: Uneven())
trainer = Collective(
    model=new_model(tokenizer, Recipe(hidden_size=32)),
    processing_class=tokenizer,
    args=GRPOConfig(
        output_dir=sys.argv[1], per_device_train_batch_size=4, num_generations=4, max_completion_length=4, max_steps=1,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, ddp_backend="gloo",
        logging_steps=1,
    ),
    train_dataset=task_dataset(make_tasks("game:Mastermind-v0-easy", range(8))),
    rollout_func=rollout,
    reward_funcs=gem_reward,
)
assert trainer.accelerator.num_processes == 2
Uneven.built = 0  # some were built to check the tasks
trainer.train()
print("turns", [len(episode.turns) for episode in rollout.episodes])
print("left out", trainer.state.log_history[0]["gem/left_out"])
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()  # else the group's threads may still run when the process ends
'''

"""The TRL adapter, in TRL's own trainer."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import gem_trl
from gem.core import Env
from gem.embedded.build import Recipe, new_model
from gem.rollout import ContextTooSmall, rebn
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
            rollout_func=rollout or GemRollout(tokenizer, max_turns=3, make_env=lambda task: Chat()),
            reward_funcs=gem_reward,
            **(trainer_kwargs or {}),
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


def test_environments_that_fail_are_counted_and_training_goes_on(make_trainer, tokenizer):
    class Failing(Chat):
        def step(self, action):
            raise ConnectionError("the server is gone")

    def make_env(task):
        return Failing() if task.seed % 2 else Chat()

    trainer = make_trainer(rollout=GemRollout(tokenizer, max_turns=3, make_env=make_env), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    failed = [e for _, _, episodes in trainer.records for e in episodes if e.truncation == "error"]
    assert 0 < len(failed) < 32
    logged = [row["gem/environment_errors"] for row in trainer.state.log_history if "reward" in row]
    assert sum(logged) * 16 == len(failed)


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
        accelerator=SimpleNamespace(num_processes=1),
        processing_class=SimpleNamespace(eos_token_id=2),
        _generate_single_turn=lambda prompt_ids, images, multimodal_fields: ([[7, 2], [7, 8]], None),
    )
    batch = [SimpleNamespace(prompt_ids=[1])] * 2
    assert [response.finish_reason for response in gem_trl._generate(batch, 2, trainer)] == ["stop", "length"]


def test_a_wrapper_that_rewrites_the_history_is_refused(make_trainer, tokenizer):
    from gem.wrappers import ObservationWrapper

    def make_env(task):
        return ObservationWrapper(Chat(), include_chat_template=False)

    with pytest.raises(ValueError, match="play without the wrapper that rewrites the history"):
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
        gem_trl._generate_single_turn([[1]], SimpleNamespace(_generate_single_turn=namespace["generate"]))


def test_the_signatures_of_earlier_releases_are_served():
    def three(prompt_ids, images, multimodal_fields):
        return (prompt_ids, images, multimodal_fields), None

    assert gem_trl._generate_single_turn([[1]], SimpleNamespace(_generate_single_turn=three))[0] == ([[1]], None, {})


@pytest.mark.parametrize("version", ["0.29.1", "2.0.0"])
def test_a_release_that_is_not_1_x_is_an_error_with_the_command(tmp_path, version):
    (tmp_path / "trl.py").write_text(f"__version__ = {version!r}\nclass GRPOTrainer: ...\n")
    done = import_gem_trl(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert f"trl {version} is installed: pip install 'gem-adapters[trl]'" in done.stderr.splitlines()[-1]


def test_without_trl_the_error_has_the_command():
    done = import_gem_trl("import sys; sys.modules['trl'] = None")
    assert done.stderr.splitlines()[-1].endswith("pip install 'gem-adapters[trl]'")


def import_gem_trl(before):
    return subprocess.run(
        [sys.executable, "-c", f"{before}; import gem_trl"], capture_output=True, text=True, check=False
    )


def test_tasks_survive_the_data_set():
    tasks = [Task(ENV, 3, {"max_turns": 5}), Task("game:TowerofHanoi-v0", 2**40 - 1, split="test")]
    rows = task_dataset(tasks)
    assert [gem_trl._task_of(row["prompt"]) for row in rows] == tasks


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
        outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    assert "turns [1, 1, 1, 1]" in outputs[0]
    assert "turns [5, 5, 5, 5]" in outputs[1]
    assert all("rebn is over both ranks" in output for output in outputs)


TWO_RANKS = '''
import os, sys
import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, GRPOTrainer
from gem.core import Env
from gem.embedded.build import Recipe, new_model
from gem.embedded.tokenizer import train_tokenizer
from gem.rollout import rebn
from gem.tasks import make_tasks
from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset

rank = int(os.environ["RANK"])


class Uneven(Env):
    """One turn on rank 0, five on rank 1."""

    blocking = False

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        return "begin", {}

    def step(self, action):
        self.turn += 1
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
        expected = rebn(both)[4 * rank]
        assert abs(output["advantages"][0, 0].item() - expected[0]) < 1e-5
        print("rebn is over both ranks")
        return output


tokenizer = train_tokenizer(["begin on user assistant system"] * 4, 300)
rollout = GemRollout(tokenizer, make_env=lambda task: Uneven())
trainer = Collective(
    model=new_model(tokenizer, Recipe(hidden_size=32)),
    processing_class=tokenizer,
    args=GRPOConfig(
        output_dir=sys.argv[1], per_device_train_batch_size=4, num_generations=4, max_completion_length=4, max_steps=1,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, ddp_backend="gloo",
    ),
    train_dataset=task_dataset(make_tasks("game:Mastermind-v0-easy", range(8))),
    rollout_func=rollout,
    reward_funcs=gem_reward,
)
assert trainer.accelerator.num_processes == 2
trainer.train()
print("turns", [len(episode.turns) for episode in rollout.episodes])
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()  # else the group's threads may still run when the process ends
'''

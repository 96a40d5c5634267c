"""A user's job on TRL, and the example with an environment that fails now and then."""

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from gem.models import embedded_model
from gem.rollout import group_advantages, mean_metrics, read_episodes, rebn
from gem.tasks import load_tasks
from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # far faster than two for models of this size


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def job(folder, trainer_class, resume=False, **config):
    """What a user writes: mixed tasks of a package of their own, with wrapper and tool, KL, validation, checkpoints."""
    import mylab

    tasks = f"env=mylab:Near-v0,seeds=0:16;env=mylab:Flaky-v0,fails=member,attempts={folder}/attempts,seeds=100:116"
    validation = "env=mylab:Near-v0,seeds=0:2;env=mylab:Near-v0,turns=2,seeds=2:4"
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    return trainer_class(
        model=AutoModelForCausalLM.from_pretrained(embedded_model()),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=16,
            num_generations=8,
            per_device_eval_batch_size=16,
            num_generations_eval=4,
            max_completion_length=16,
            learning_rate=1e-3,
            beta=0.04,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            **config,
        ),
        train_dataset=task_dataset(load_tasks(tasks)),
        eval_dataset=task_dataset(load_tasks(validation, split="eval")),
        rollout_func=GemRollout(tokenizer, make_env=mylab.make_env, episodes=folder / "episodes", resume=resume),
        reward_funcs=gem_reward,
    )


def check_numbers(trainer, folder, steps):
    """The log says what can be recomputed from the episodes' files."""
    rows = {"train": {}, "eval": {}}
    for row in trainer.state.log_history:
        if "reward" in row:
            rows["train"][row["step"]] = row
        elif "eval_reward" in row:
            rows["eval"][row["step"]] = {name.removeprefix("eval_"): value for name, value in row.items()}
    assert list(rows["train"]) == list(range(1, steps + 1))
    assert list(rows["eval"]) == [step for step in range(1, steps + 1) if step % 2 == 0 or step == steps]
    for split, by_step in rows.items():
        for step, row in by_step.items():
            episodes = read_episodes(folder / "episodes", split, step)
            assert len(episodes) == 16
            assert {episode.task.split for episode in episodes} == {split}
            expected = {f"gem/{name}": value for name, value in mean_metrics(episodes).items()}
            assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
            returns = [episode.total_reward for episode in episodes if episode.valid]
            assert row["reward"] == pytest.approx(np.mean(returns), abs=1e-6)
            assert row["kl"] >= 0
            assert any(turn.info.get("use_tool") for episode in episodes for turn in episode.turns)
    assert {f"gem/success/mylab:{name}-v0" for name in ("Near", "Flaky")} <= {
        name for row in rows["train"].values() for name in row
    }
    assert sum(row["gem/left_out"] for row in rows["train"].values()) > 0
    assert sum(row["kl"] for row in rows["train"].values()) > 0


@pytest.mark.parametrize("trainer_class", [GRPOTrainer, GemGRPOTrainer])
def test_a_job_of_ones_own_resumes_and_its_numbers_are_those_of_its_episodes(tmp_path, trainer_class):
    trainer = job(tmp_path, trainer_class, max_steps=3)
    trainer.train()
    check_numbers(trainer, tmp_path, 3)
    with pytest.raises(ValueError, match="resume"):
        job(tmp_path, trainer_class, max_steps=6).train()
    trainer = job(tmp_path, trainer_class, resume=True, max_steps=6)
    trainer.train(resume_from_checkpoint=os.path.join(trainer.args.output_dir, "checkpoint-2"))
    check_numbers(trainer, tmp_path, 6)


@pytest.mark.parametrize("algorithm", ["grpo", "rebn"])
def test_the_example_learns_nothing_from_failures_and_counts_them(tmp_path, load_example, monkeypatch, algorithm):
    """One of eight episodes fails, at random, in its second turn."""
    example = load_example("train_trl")
    batches = []

    def recording(trainer_class):
        class Recording(trainer_class):
            def _generate_and_score_completions(self, inputs):
                output = super()._generate_and_score_completions(inputs)
                batches.append((output, self.rollout_func.episodes))
                return output

        return Recording

    monkeypatch.setattr(example, "GRPOTrainer", recording(GRPOTrainer))
    monkeypatch.setattr(example, "GemGRPOTrainer", recording(GemGRPOTrainer))
    sizes = {"steps": 10, "batch_size": 32, "group_size": 8}
    args = example.Args(env="mylab:Flaky-v0", algorithm=algorithm, out=str(tmp_path), **sizes)
    args.fill_in()
    log = example.train(args, *example.load(args))
    assert len(batches) == len(log.metrics) == 10
    for (output, episodes), metrics in zip(batches, log.metrics, strict=True):
        assert metrics.left_out == metrics.environment_errors == sum(not episode.valid for episode in episodes)
        expected = without_failures(episodes, args.group_size, algorithm)
        for i, (episode, of_turns) in enumerate(zip(episodes, expected, strict=True)):
            sampled = (output["tool_mask"][i] * output["completion_mask"][i]).bool()
            got = output["advantages"][i]
            if not episode.valid:
                assert not sampled.any()
                assert not got.any()
                continue
            lengths = [len(turn.response_ids) for turn in episode.turns]
            got = got[sampled] if got.ndim else got.expand(int(sampled.sum()))
            np.testing.assert_allclose(got.numpy(), np.repeat(of_turns, lengths), atol=1e-5)
    left_out = sum(metrics.left_out for metrics in log.metrics)
    assert 10 < left_out < 60  # of 320 episodes, some of which end in their first turn
    assert f"{left_out} episodes failed" in log.summary()


def without_failures(episodes, size, algorithm):
    """Return one advantage per turn, as if the episodes that failed had not been in the batch."""
    if algorithm == "rebn":
        valid = iter(rebn([episode.rewards for episode in episodes if episode.valid]))
        return [next(valid) if episode.valid else [] for episode in episodes]
    advantages = []
    for start in range(0, len(episodes), size):
        group = episodes[start : start + size]
        returns = [episode.total_reward for episode in group if episode.valid]
        valid = iter(group_advantages(returns, len(returns)))
        advantages += [[next(valid)] * len(episode.turns) if episode.valid else [] for episode in group]
    return advantages

"""What the OpenRLHF adapter does in the trainer's process, with OpenRLHF's own advantages, losses and evaluation."""

import pickle
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf")

import torch

shim = Path(__file__).parents[2] / "ci" / "cpu" / "openrlhf" / "sitecustomize.py"
if not torch.cuda.is_available():
    runpy.run_path(str(shim))

from openrlhf.models.loss import PolicyLoss, ValueLoss, aggregate_loss
from openrlhf.models.utils import compute_approx_kl
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

import gem_openrlhf
from gem.rollout import Episode
from gem.rollout.rows import openrlhf_row
from gem.tasks import Task
from gem_openrlhf_trainer import Label, install

ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
A, B = "game:Mastermind-v0-easy", "game:Wordle-v0-easy"

install()
stock = RemoteExperienceMaker.compute_advantages_and_returns.__wrapped__


def arguments(estimator, group_size, **reward):
    return SimpleNamespace(
        algo=SimpleNamespace(
            advantage=SimpleNamespace(estimator=estimator, gamma=1.0, lambd=0.95, no_std_norm=False),
            kl=SimpleNamespace(use_loss=False),
        ),
        rollout=SimpleNamespace(n_samples_per_prompt=group_size, micro_batch_size=3, max_new_tokens=8),
        train=SimpleNamespace(dynamic_batch_enable=False),
        reward=SimpleNamespace(clip_range=(-10, 10), overlong_penalty_factor=1, **reward),
        data=SimpleNamespace(max_len=64),
    )


def sample(reward, masked=False, seed=0, env_id=A, split="train", kl=0.0, success=0.0):
    """Return an episode of two turns as OpenRLHF has it before its advantages: an experience of one row."""
    draw = random.Random(seed)
    first, bridge, second = (draw.randint(1, 4) for _ in range(3))
    tokens = [5] * (3 + first + bridge + second)
    task = Task(env_id, seed, split=split)
    metrics = Episode(task).metrics() | {"success": success, "left_out": float(masked)}
    response = {
        "prompt": f"p{seed}",
        "label": Label(openrlhf_row(task)["label"], masked),
        "reward": reward,
        "scores": 0.0,
        "observation_tokens": tokens,
        "action_ranges": [(3, 3 + first), (3 + first + bridge, len(tokens))],
        "rollout_log_probs": [-1.0] * len(tokens),
        "truncated": False,
        "extra_logs": {f"gem/{name}": value for name, value in metrics.items()},
    }
    made = SamplesGenerator.__new__(SamplesGenerator)._process_response_into_experience(response, max_len=64)
    noise = torch.Generator().manual_seed(seed)
    made.action_log_probs = -torch.rand(made.action_mask.shape, generator=noise)
    made.base_action_log_probs = -torch.rand(made.action_mask.shape, generator=noise)
    made.values = torch.rand(made.action_mask.shape, generator=noise)
    made.kl = kl * torch.rand(made.action_mask.shape, generator=noise)
    return made


def maker_of(args):
    maker = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
    maker.args, maker.strategy = args, SimpleNamespace(args=args)
    maker.advantage_estimator = args.algo.advantage.estimator
    maker.tokenizer, maker.kl_ctl = SimpleNamespace(pad_token_id=0), SimpleNamespace(value=0.1)
    return maker


def learned_from(samples, args, compute=None):
    """Return the micro-batches with their advantages."""
    maker = maker_of(args)
    compute = compute or RemoteExperienceMaker.compute_advantages_and_returns
    return compute(maker, maker.split_rollout_samples(samples))


def rows(experiences, name):
    """Return what each row's sampled tokens have."""
    return [
        getattr(experience, name)[i][experience.action_mask[i].bool()]
        for experience in experiences
        for i in range(len(experience.sequences))
    ]


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def batch(group_size, failed, kl=0.0):
    """Return groups in which the members ``failed`` (one set per group) are masked, with rewards of their own."""
    draw = random.Random(0)
    return [
        sample(draw.uniform(-2, 2), member in members, seed=7 * group + member, kl=kl)
        for group, members in enumerate(failed)
        for member in range(group_size)
    ]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_advantages_are_those_of_the_batch_without_the_invalid_episodes(estimator, kl):
    failed = [{0}, {2}, {3}, {1}]
    left_out = [i for i, masked in enumerate(s.labels[0].masked for s in batch(4, failed)) if masked]
    got = learned_from(batch(4, failed, kl), arguments(estimator, 4))
    valid = [s for s in batch(4, failed, kl) if not s.labels[0].masked]
    expected = learned_from(valid, arguments(estimator, 3), stock)
    for name in ("advantages", "returns"):
        of_valid = [row for i, row in enumerate(rows(got, name)) if i not in left_out]
        close(of_valid, rows(expected, name))
    assert all((rows(got, "advantages")[i] == 0).all() for i in left_out)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_invalid_episodes_nothing_is_changed(estimator):
    got = learned_from(batch(4, [set()] * 3, 1.0), arguments(estimator, 4, overlong_buffer_len=4))
    expected = learned_from(batch(4, [set()] * 3, 1.0), arguments(estimator, 4, overlong_buffer_len=4), stock)
    for name in ("advantages", "returns"):
        close(rows(got, name), rows(expected, name))
    for a, b in zip(got, expected, strict=True):
        assert set(a.info) == set(b.info)
        close([a.info[key] for key in b.info], b.info.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("failed", [[{0, 1, 2}, set()], [{0, 1, 2, 3}, {0}], [{0, 1, 2, 3}, {0, 1, 2, 3}]])
def test_groups_with_one_valid_episode_or_none_give_finite_numbers(estimator, failed):
    got = learned_from(batch(4, failed), arguments(estimator, 4))
    for experience in got:
        assert experience.advantages.isfinite().all()
        assert experience.returns.isfinite().all()
        assert experience.action_mask.sum(1).min() > 0
    masked = [s.labels[0].masked for s in batch(4, failed)]
    for of_row, left_out in zip(rows(got, "advantages"), masked, strict=True):
        assert not left_out or (len(of_row) == 1 and of_row.item() == 0)
    if estimator in ("rloo", "reinforce_baseline", "group_norm", "dr_grpo") and failed[0] == {0, 1, 2}:
        whitened = estimator == "reinforce_baseline"  # whose batch has a mean that need not be 0
        assert whitened or (rows(got, "advantages")[3] == 0).all()


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "gae"])
@pytest.mark.parametrize("reward", [0.0, -0.1, 0.3, 1 / 3, 9.7, 1e-7, 1e30])
def test_equal_rewards_give_advantages_of_zero(estimator, reward):
    got = learned_from([sample(reward, seed=i) for i in range(16)], arguments(estimator, 8))
    assert all((of_row == 0).all() for of_row in rows(got, "advantages"))
    rounded = [sample(reward * (1 + 1e-8 * i), seed=i) for i in range(16)]
    assert all((of_row == 0).all() for of_row in rows(learned_from(rounded, arguments(estimator, 8)), "advantages"))


def test_openrlhf_alone_makes_advantages_of_rounding_errors():
    got = learned_from([sample(-0.1, seed=i) for i in range(8)], arguments("group_norm", 8), stock)
    assert rows(got, "advantages")[0][0] > 0.5  # the day this fails, the docstring's remark can go


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_huge_and_tiny_rewards_give_finite_advantages(estimator):
    for scale in (1e-30, 1e30):
        got = learned_from([sample(scale * (i % 3), seed=i) for i in range(8)], arguments(estimator, 8))
        assert all(of_row.isfinite().all() for of_row in rows(got, "advantages"))


def test_a_masked_row_has_no_gradient_in_any_loss():
    args = arguments("gae", 2)
    args.algo.kl.use_loss = True
    (got,) = learned_from([sample(1.0, seed=1), sample(5.0, True, seed=2)], args)
    log_probs, values = (t.clone().requires_grad_() for t in (got.action_log_probs, got.values))
    policy, *_ = PolicyLoss()(log_probs, got.action_log_probs, got.advantages, got.action_mask)
    kl = compute_approx_kl(log_probs, got.base_action_log_probs, kl_estimator="k3")
    loss = policy + aggregate_loss(kl, got.action_mask)
    (loss + ValueLoss(0.2)(values, got.values, got.returns, got.action_mask)).backward()
    for gradient in (log_probs.grad, values.grad):
        assert (gradient[1] == 0).all()
        assert (gradient[0] != 0).any()


def test_the_length_penalties_come_before_the_baselines():
    samples = [sample(1.0, seed=i) for i in range(4)]
    samples[0].truncated = torch.tensor([True])
    args = arguments("dr_grpo", 4, stop_properly_penalty_coef=-1.0)
    got = rows(learned_from(samples, args), "advantages")
    assert [of_row[0].item() for of_row in got] == [-1.5, 0.5, 0.5, 0.5]


def test_a_label_brings_its_part_along_to_the_process_that_unpickles_it():
    folder = Path(gem_openrlhf.__file__).parent
    label = pickle.dumps([Label('{"env_id": "x"}', True)])
    code = f"""
import pickle, runpy, sys
sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]
{f"runpy.run_path({str(shim)!r})" if not torch.cuda.is_available() else ""}
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, compute_eval_metrics
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker as Maker
stock = Maker.compute_advantages_and_returns, compute_eval_metrics.__code__
(label,) = pickle.loads({label!r})
wrapped = Maker.compute_advantages_and_returns, compute_eval_metrics.__code__
Maker.compute_advantages_and_returns = another = lambda *args: wrapped[0](*args)
pickle.loads({label!r})
assert (label, label.masked) == ('{{"env_id": "x"}}', True)
assert all(a is not b for a, b in zip(stock, wrapped))
assert Maker.compute_advantages_and_returns is another  # once, whoever else wraps it
print(compute_eval_metrics(None, [], 1))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "{}"


def test_metrics_are_means_of_the_batch_and_of_each_environment_in_every_row():
    wins = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    samples = [sample(0.0, i == 3, seed=i, env_id=A if i < 4 else B, success=w) for i, w in enumerate(wins)]
    for experience in learned_from(samples, arguments("reinforce", 2)):
        expected = {"": 0.6, f"/{A}": 1 / 3, f"/{B}": 1.0}  # of the valid episodes
        for name, mean in expected.items():
            torch.testing.assert_close(experience.info[f"gem/success{name}"], torch.full((3,), mean))
        torch.testing.assert_close(experience.info["gem/left_out"], torch.full((3,), 1 / 6))
    (alone,) = learned_from(samples[:2], arguments("reinforce", 2))
    assert not any(key.endswith(A) for key in alone.info)


def test_evaluations_have_a_success_rate_for_each_environment():
    samples = [sample(0.25, i == 3, i, A if i < 2 else B, "eval", success=float(i == 0)) for i in range(4)]
    loader = [([s.labels[0].task.env_id], s.prompts, s.labels, [None]) for s in samples]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 1)
    assert logs[f"eval_{A}_pass1"] == 0.25  # the mean return
    assert (logs[f"eval_{A}_success"], logs[f"eval_{B}_success"]) == (0.5, 0.0)


def test_rows_of_the_wrong_split_are_refused():
    with pytest.raises(ValueError, match=r"--data.prompt_dataset holds Task.*split='eval'.*--split train"):
        learned_from([sample(0.0, split="eval") for _ in range(2)], arguments("rloo", 2))
    with pytest.raises(ValueError, match=r"--eval.dataset holds Task.*split='train'.*--split eval"):
        ppo_trainer.compute_eval_metrics([([A], ["p0"], [""], [None])], [sample(0.0)], 1)

"""A model in this process: the same tokens whatever is kept, and whatever else is in the batch."""

import pytest

pytest.importorskip("scipy")
torch = pytest.importorskip("torch")

from gem.evaluation import evaluate, summarize
from gem.evaluation import local_model as module
from gem.evaluation.local_model import Sampler, local_agent
from gem.rollout import Limits
from gem.tasks import make_tasks

TASKS = make_tasks("game:GuessTheNumber-v1-easy", range(12), split="eval")
TASKS += make_tasks("game:GuessTheNumber-v1-easy", range(4), {"tools": "python"}, split="eval")
LIMITS = Limits(max_new_tokens=16)


def played(folder, monkeypatch, kept=1_000_000, **settings):
    monkeypatch.setattr(module, "KEPT_TOKENS", kept)
    agent = local_agent("embedded", LIMITS, **settings)
    return evaluate(TASKS, agent, folder)


def tokens(evaluation):
    return {unit: [list(turn.response_ids) for turn in e.turns] for unit, e in evaluation.episodes.items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return evaluate(TASKS, local_agent("embedded", LIMITS, temperature=0.7), tmp_path_factory.mktemp("reference"))


def test_log_probabilities_are_those_of_the_model(reference):
    from transformers import AutoModelForCausalLM

    from gem.models.resolve import resolve_model

    model = AutoModelForCausalLM.from_pretrained(resolve_model("embedded"))
    for episode in list(reference.episodes.values())[:6]:
        for turn in episode.turns:
            ids = [*turn.prompt_ids, *turn.response_ids]
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, len(turn.prompt_ids) - 1 : -1]
            expected = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor([list(turn.response_ids)]).T)[:, 0]
            assert list(turn.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("settings", [{"kept": 1}, {"batch_size": 3}, {"batch_size": 1}])
def test_tokens_do_not_depend_on_what_is_kept_or_batched(reference, settings, tmp_path, monkeypatch):
    assert tokens(played(tmp_path, monkeypatch, temperature=0.7, **settings)) == tokens(reference)


def test_each_token_is_fed_once(monkeypatch, tmp_path):
    fed = []
    answer = Sampler._take

    def take(self, episode, prompt):
        kept = answer(self, episode, prompt)
        fed.append((len(kept.ids), len(prompt)))
        return kept

    monkeypatch.setattr(Sampler, "_take", take)
    evaluation = played(tmp_path, monkeypatch, temperature=0.7)
    later = [kept for kept, _ in fed if kept]
    assert len(later) == sum(len(episode.turns) - 1 for episode in evaluation.episodes.values())


def test_the_seed_and_the_temperature_count(reference, tmp_path, monkeypatch):
    assert tokens(played(tmp_path / "a", monkeypatch, temperature=0.7, seed=1)) != tokens(reference)
    greedy = [tokens(played(tmp_path / str(seed), monkeypatch, temperature=0, seed=seed)) for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    with pytest.raises(ValueError, match="temperature"):
        local_agent("embedded", temperature=-1)


def test_the_context_is_that_of_the_model(tmp_path):
    agent = local_agent("embedded", Limits(max_context=10**9))
    assert agent.describe()["limits"]["max_context"] < 10**9
    evaluation = evaluate(TASKS[:2], local_agent("embedded", Limits(max_context=20)), tmp_path, retries=0)
    assert summarize(evaluation)["environments"]["game:GuessTheNumber-v1-easy"]["failed"]["units"] == 2


def test_the_manifest_tells_models_apart(reference, tmp_path):
    import shutil

    from gem.models.resolve import resolve_model

    copy = shutil.copytree(resolve_model("embedded"), tmp_path / "copy")
    same = local_agent(str(copy)).describe()
    assert {same[name] for name in ("template", "files")} == {
        reference.manifest["agent"][name] for name in ("template", "files")
    }
    (copy / "generation_config.json").write_text("{}")
    assert local_agent(str(copy)).describe()["files"] != same["files"]

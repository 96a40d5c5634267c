"""The embedded model: its tokenizer, its crowd, and that it still speaks the games' language."""

import asyncio
import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer

import gem
from gem.models import embedded_model
from gem.models.build import Recipe, build
from gem.models.demonstrations import CURRICULUM, GUESSING, anywhere, conversations, inside, middle
from gem.rollout import ChatRenderer, GatheringEngine, Limits, Response, run_episodes
from gem.tasks import make_tasks

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "cpu" / "shared"))

from hf_sampling import sample

torch.set_num_threads(1)  # far faster than two for models of this size

TINY = Recipe(hidden_size=32, episodes=64, steps=4, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    build(path, TINY)
    return path


def test_an_answer_is_four_tokens_and_decodes_as_it_was(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("\\boxed{10}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\\boxed{10}"


@pytest.mark.parametrize("text", ["", "plain", "ünï¢ødé 你好 🎲", "a\n\n\tb  c", "\\boxed{\\frac{1}{2}}", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_model_and_tokenizer_agree_on_end_and_padding(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert (
        model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_the_same_recipe_builds_the_same_model(folder, tmp_path):
    torch.manual_seed(99)  # what the process did before must not matter
    build(tmp_path, TINY)
    first, second = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_building_leaves_the_global_generators_alone(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    build(tmp_path, TINY)
    assert torch.equal(torch.get_rng_state(), state)


def test_warming_up_teaches_the_answers(tmp_path):
    """Fewer than a hundred steps are enough to answer in the environment's format."""
    build(tmp_path, Recipe(hidden_size=32, episodes=400, steps=80))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    observation, _ = gem.make(GUESSING).reset(seed=1)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": observation}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = tokenizer.decode(
        model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    )
    assert answer.startswith("\\boxed{")
    assert answer.endswith("}<|im_end|>")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_that_comes_with_the_package_wins_some_games_and_has_much_to_learn(temperature):
    """It was made when the games' texts were as they are now; after a change of them it is to be made anew."""
    folder = embedded_model()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def generate(batch):
        prompts = [request.prompt_ids for request in batch]
        answers = sample(model, prompts, [16] * len(batch), [temperature] * len(batch), generator)
        return [Response(ids, logprobs, "stop") for ids, logprobs in answers]

    tasks = make_tasks(GUESSING, range(256))
    episodes = asyncio.run(run_episodes(tasks, GatheringEngine(generate), ChatRenderer(tokenizer), Limits(None, 16)))
    assert 0.35 < sum(episode.success for episode in episodes) / len(episodes) < 0.65
    turns = [turn for episode in episodes for turn in episode.turns]
    in_format = [turn.action.startswith("\\boxed{") and turn.action.endswith("}") for turn in turns]
    assert sum(in_format) > 0.98 * len(turns)


def test_the_crowd_plays_the_same_for_the_same_seed_and_holds_its_shares():
    assert conversations(CURRICULUM[-1], 20, seed=3) == conversations(CURRICULUM[-1], 20, seed=3)
    assert conversations(CURRICULUM[-1], 20, seed=3) != conversations(CURRICULUM[-1], 20, seed=4)
    assert sum(part.share for part in CURRICULUM) == 1


def wins(policy, games=300):
    won = 0
    rng = random.Random(0)
    for seed in range(games):
        env = gem.make(GUESSING)
        observations, ended, info = [env.reset(seed=seed)[0]], False, {}
        while not ended:
            observation, _, terminated, truncated, info = env.step(policy(env, observations, rng))
            observations.append(observation)
            ended = terminated or truncated
        won += info["success"]
    return won / games


def test_the_players_differ_in_skill():
    assert wins(anywhere) < 0.45 < wins(inside) < 0.95 < wins(middle) == 1.0

"""``gem eval``: run episodes of tasks with a model, and report what the results show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem.cli.printing import say, say_table, stop, warn

if TYPE_CHECKING:
    from gem.evaluation import Agent, Evaluation
    from gem.evaluation.budget import Prices
    from gem.evaluation.client import Server
    from gem.rollout.episode import Episode
    from gem.rollout.limits import Limits
    from gem.tasks import Task


def eval(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="TASKS...", help="Environment ids, suites, env=<id>,seeds=<first>:<end>, or files."),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="embedded, smollm2, a folder, a hub id, random, solver, human, module:function, or http://host/v1."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the episodes.")],
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of each id; for those that are named by their id.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Episodes of each task.")] = 1,
    split: Annotated[str, typer.Option(help="eval, test or train; splits share no episode.")] = "eval",
    tools: Annotated[str | None, typer.Option(help="Tools, such as python,search; for ids.")] = None,
    wrappers: Annotated[str | None, typer.Option(help="Wrappers, such as concat; for ids.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Turns of an episode, if fewer than its own.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a turn.")] = 256,
    max_context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an episode; the model's by default.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds that a step may take.")] = 60.0,
    answer_timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server or function may take.")] = 300.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at the same time.")] = 64,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed episode is run again.")] = 2,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Begin no episode after so many sampled tokens.")
    ] = None,
    cost_budget: Annotated[float | None, typer.Option(min=0, help="Begin no episode after such a cost.")] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="PROMPT,SAMPLED", help="Of a million tokens, in one currency: 0.25,2")
    ] = None,
    server_model: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    tokenizer: Annotated[str | None, typer.Option(help="Of a server's model; by default its name.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk to the server by text, without token ids.")] = False,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Of the server.")] = "",
    resume: Annotated[bool, typer.Option(help="Go on with the evaluation in --out.")] = False,
) -> None:
    """Evaluate a model: every episode is kept, none that failed for another reason than the model is scored.

    Writes the episodes, summary.json and report.html into --out, and prints success rates and returns with their
    intervals of 95%.
    """
    from gem.evaluation import evaluate, summarize
    from gem.evaluation.agents import AgentFailed
    from gem.evaluation.budget import Budget
    from gem.evaluation.report import write_report
    from gem.files import FolderInUse, replace_file
    from gem.rollout.limits import Limits
    from gem.sandbox import SandboxUnavailable

    limits = Limits(
        max_turns=max_turns, max_new_tokens=max_new_tokens, max_context=max_context, step_timeout=timeout or None
    )
    try:
        chosen = _tasks(sources, tasks, split, {"tools": tools, "wrappers": wrappers})
        cost_of = _prices(prices)
        has_budget = token_budget is not None or cost_budget is not None
        budget = Budget(token_budget, cost_budget, cost_of) if has_budget else None
        if model.startswith(("http://", "https://")):
            from gem.evaluation.client import Server

            server = Server(model.rstrip("/"), server_model, api_key, answer_timeout)
            sampling = {"temperature": temperature, "seed": seed, "connections": concurrency}
            agent: Agent = _behind(server, tokenizer, chat, limits, sampling)
        else:
            agent = _agent(model, limits, temperature, seed, answer_timeout)
        if model == "human":
            concurrency = 1
        with _Progress(len(chosen) * samples, hidden=model == "human") as progress:
            evaluation = evaluate(chosen, agent, out, samples, concurrency, retries, resume, budget, progress.show)
        summary = summarize(evaluation)
        replace_file(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        write_report(out / "report.html", evaluation, decode=getattr(agent, "decode", None))
    except KeyboardInterrupt:
        stop(f"interrupted: the episodes that have ended are in {out}, and --resume goes on", code=1)
    except (ValueError, TypeError, ImportError, OSError, FolderInUse, SandboxUnavailable, AgentFailed) as error:
        stop(str(error))
    _print(summary)
    if cost_of is not None:
        cost = cost_of.cost(evaluation.prompt_tokens, evaluation.sampled_tokens)
        say(f"cost {cost:.4f} at {prices} for a million prompt and sampled tokens, all attempts included")
    say(f"{out}/summary.json, {out}/report.html")
    if summary["missing"]:
        why = "the budget is spent" if budget is not None and budget.is_spent(evaluation) else "they failed"
        warn(f"{summary['missing']} of {len(evaluation.units)} episodes are missing: {why}; --resume runs them")
        raise typer.Exit(1)


def _prices(text: str | None) -> Prices | None:
    from gem.evaluation.budget import Prices

    if text is None:
        return None
    try:
        prompt, sampled = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--prices is two numbers, as in 0.25,2, got {text!r}") from None
    return Prices(prompt, sampled)


def _tasks(sources: list[str], count: int, split: str, options: dict[str, str | None]) -> list[Task]:
    from gem.evaluation.suite import load_suite, shipped
    from gem.registry import find_spec
    from gem.tasks import load_tasks, make_tasks

    chosen: list[Task] = []
    arguments = {name: value for name, value in options.items() if value is not None}
    for source in sources:
        of_tasks = source.startswith("env=") or source.endswith((".jsonl", ".parquet"))
        of_suite = source in shipped() or source.endswith((".yaml", ".yml"))
        if arguments and (of_tasks or of_suite):
            raise ValueError(f"--{next(iter(arguments))} is for tasks that are named by an environment's id")
        if of_tasks:
            chosen += load_tasks(source, split)
        elif of_suite:
            chosen += load_suite(source, split)
        else:
            find_spec(source)
            chosen += make_tasks(source, range(count), arguments, split)
    return chosen


def _agent(model: str, limits: Limits, temperature: float, seed: int, answer_timeout: float) -> Agent:
    from gem.evaluation import FunctionAgent, RandomAgent, SolverAgent

    if model in ("random", "solver"):
        return RandomAgent(limits) if model == "random" else SolverAgent(limits)
    if model == "human":
        from gem.cli.human import HumanAgent

        return HumanAgent(limits)
    if ":" in model and not Path(model).exists():
        function = FunctionAgent.of(model, limits)
        function.answer_seconds = answer_timeout
        return function
    try:
        from gem.evaluation.local_model import local_agent
    except ModuleNotFoundError as error:
        raise ImportError(f"a model in this process needs {error.name}: install gem-adapters[model]") from None
    return local_agent(model, limits, temperature=temperature, seed=seed)


def _behind(server: Server, tokenizer: str | None, chat: bool, limits: Limits, sampling: dict[str, Any]) -> Agent:
    """Return the agent of a model behind a server, and print what the server can do."""
    from gem.evaluation.server import ChatAgent, list_models, server_agent

    if chat:
        return ChatAgent(server, limits, temperature=sampling["temperature"], connections=sampling["connections"])
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError:
        raise ImportError("a server is asked in token ids, for which transformers is needed; --chat is not") from None
    from gem.models.resolve import resolve_model

    folder = resolve_model(tokenizer or server.model or list_models(server)[0])
    agent, found = server_agent(server, AutoTokenizer.from_pretrained(folder), limits, **sampling)
    kind = "processed" if found.processed else "raw"
    seeds = "honoured" if found.seeded else "not honoured: another run gives other episodes"
    context = "unknown" if found.max_context is None else f"{found.max_context} tokens"
    say(f"{found.model} at {server.url}: token ids exact, log-probabilities {kind}, seeds {seeds}, context {context}")
    return agent


class _Progress:
    """A bar on stderr, with what was won so far."""

    def __init__(self, total: int, hidden: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden)
        self._won: int | None = None
        self._job = self._bar.add_task("episodes", total=total)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def show(self, evaluation: Evaluation, episode: Episode) -> None:
        """Show how far it is."""
        if self._won is None:  # those of an evaluation that is resumed, too
            self._won = sum(each.success for each in evaluation.episodes.values())
        else:
            self._won += episode.valid and episode.success
        done = len(evaluation.episodes)
        self._bar.update(self._job, completed=done, description=f"won {self._won}")

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


def _print(summary: dict[str, Any]) -> None:
    from gem.evaluation.summary import result_rows

    say_table(result_rows(summary))
    for env_id, each in summary["environments"].items():
        shares = {k: value for k, value in each["pass_at"].items() if k != "1" and value is not None}
        if shares:
            say(f"{env_id}: " + ", ".join(f"pass@{k} {value:.3f}" for k, value in shares.items()))
    if len(summary["environments"]) > 1 and summary["mean"]["success"] is not None:
        mean = summary["mean"]["success"]
        error = "" if mean["error"] is None else f" (standard error {mean['error']:.3f})"
        say(f"mean of the environments' success rates: {mean['mean']:.3f}{error}")
    exact = "token ids as they were sampled" if summary["agent"]["exact_tokens"] else "text, without token ids"
    say(f"agent: {summary['agent']['name']}; the episodes hold {exact}")

"""Evaluation: run episodes of tasks with a model or a function, keep every one, and report what the results show.

=============  =====================================================================================
module         what is in it
=============  =====================================================================================
run            :func:`evaluate`: runs tasks, resumes after a crash, retries what was not the model's doing
agents         what acts: an engine, or a function
budget         what it may cost, in tokens or in money
scripted       random actions, and the solvers of games
local_model    a model in this process, by transformers
server         a model behind an OpenAI-compatible server, by token ids or by text
suite          YAML files that name tasks
store          the folder of an evaluation: a manifest, and one line per episode
summary        :func:`summarize`: scores with intervals, and :func:`compare_evaluations`
report         a page with results and every episode
statistics     means over tasks, intervals, pass@k, paired comparisons
=============  =====================================================================================
"""

from gem.evaluation.agents import Agent, Answer, FunctionAgent, TokenAgent
from gem.evaluation.budget import Budget, Prices
from gem.evaluation.run import evaluate
from gem.evaluation.scripted import RandomAgent, SolverAgent
from gem.evaluation.store import Evaluation, read_evaluation
from gem.evaluation.summary import compare_evaluations, summarize

__all__ = [
    "Agent",
    "Answer",
    "Budget",
    "Evaluation",
    "FunctionAgent",
    "Prices",
    "RandomAgent",
    "SolverAgent",
    "TokenAgent",
    "compare_evaluations",
    "evaluate",
    "read_evaluation",
    "summarize",
]

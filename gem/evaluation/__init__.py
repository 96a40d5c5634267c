"""Evaluation: play tasks with a model or a function, keep every episode, and say what the results show.

=============  =====================================================================================
module         what is in it
=============  =====================================================================================
run            :func:`evaluate`: plays tasks, resumes after a crash, retries what was not the model's doing
players        who plays: an engine, or a function
scripted       random actions, and the solvers of games
local_model    a model in this process, by transformers
server         a model behind an OpenAI-compatible server, by token ids or by text
suite          YAML files that name tasks
store          the folder of an evaluation: a manifest, and a line an episode
summary        :func:`summarize`: scores with intervals, and :func:`compare_evaluations`
report         a page with results and every episode
statistics     means over tasks, intervals, pass@k, paired comparisons
=============  =====================================================================================
"""

from gem.evaluation.players import FunctionPlayer, Player, TokenPlayer
from gem.evaluation.run import evaluate
from gem.evaluation.scripted import RandomPlayer, SolverPlayer
from gem.evaluation.store import Evaluation, read_evaluation
from gem.evaluation.summary import compare_evaluations, summarize

__all__ = [
    "Evaluation",
    "FunctionPlayer",
    "Player",
    "RandomPlayer",
    "SolverPlayer",
    "TokenPlayer",
    "compare_evaluations",
    "evaluate",
    "read_evaluation",
    "summarize",
]

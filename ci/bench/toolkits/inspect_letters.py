import json
import os
import re

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate


@scorer(metrics=[accuracy(), stderr()])
def boxed():
    async def score(state: TaskState, target: Target) -> Score:
        found = re.search(r"\\boxed\{(.*)\}", state.output.completion)
        return Score(value=float(found is not None and found[1] == target.text))

    return score


@task
def letters():
    with open(os.environ["QUESTIONS"], encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    samples = [Sample(id=n, input=row["question"], target=row["answer"]) for n, row in enumerate(rows)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=boxed())

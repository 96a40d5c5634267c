import json
import os
import re

import verifiers.v1 as vf


class LettersData(vf.TaskData):
    answer: str


class LettersTask(vf.Task[LettersData]):
    @vf.reward(weight=1.0)
    async def boxed(self, trace: vf.Trace) -> float:
        found = re.search(r"\\boxed\{(.*)\}", trace.last_reply or "")
        return float(found is not None and found[1] == self.data.answer)


class LettersTaskset(vf.Taskset[LettersTask, vf.TasksetConfig]):
    def load(self):
        with open(os.environ["QUESTIONS"], encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield LettersTask(LettersData(prompt=row["question"], answer=row["answer"]), self.config.task)


__all__ = ["LettersTaskset"]

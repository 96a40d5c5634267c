"""Run a job of Oat's, a Python file, on a CPU.

    python ci/cpu/oat/run.py job.py --pretrain ...
    python ci/cpu/oat/run.py --vllm job.py --pretrain ...    # vLLM's build for CPUs in the place of transformers

The job itself needs no change.
"""

import os
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--vllm"]:
        words = words[1:]
    else:
        sys.path.insert(0, str(FOLDER / "engine_hf"))
    if not words:
        sys.exit(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import oat_cpu  # noqa: F401 - puts the shims in their places, before the job imports Oat

    sys.argv = words
    sys.path[0:0] = [str(Path(words[0]).resolve().parent)]
    runpy.run_path(words[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the shim for launchpad wait for calls for ever


if __name__ == "__main__":
    main()

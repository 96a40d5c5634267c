"""OpenRLHF's ``train_ppo_ray`` on a machine without a GPU.

    python ci/cpu/openrlhf/train_ppo_ray.py <arguments of train_ppo_ray>

Starts Ray with as many logical GPUs as a job may ask for, has every process replace the lines that name CUDA
(``sitecustomize.py``), and runs ``openrlhf.cli.train_ppo_ray`` as it is, with arguments that a CPU needs before those
that are given.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import tempfile
from pathlib import Path

SHIM = Path(__file__).resolve().with_name("sitecustomize.py")

VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "240",
    "TOKENIZERS_PARALLELISM": "false",
}
ARGUMENTS = [
    *("--vllm.enforce_eager", "--vllm.sync_backend", "gloo"),
    *("--ds.attn_implementation", "sdpa"),
    *("--ds.zero_stage", "0"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--ray-folder", help="for Ray's files; by default a temporary one, which is left there")
    parser.add_argument("--logical-gpus", type=int, default=8)
    args, of_openrlhf = parser.parse_known_args()
    folder = args.ray_folder or tempfile.mkdtemp(prefix="gem-ray-")
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    paths = [str(SHIM.parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # of the processes that Ray starts
    runpy.run_path(str(SHIM))

    import ray

    ray.init(
        num_cpus=16,  # as a number that Ray counts: the processes share what cores there are
        num_gpus=args.logical_gpus,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        _temp_dir=folder,
    )
    sys.argv = ["train_ppo_ray", *ARGUMENTS, *of_openrlhf]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

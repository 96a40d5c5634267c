"""OpenRLHF's ``train_ppo_ray`` where Ray has no GPU to count: as many logical ones as the command asks for.

python ci/cpu/openrlhf/train_ppo_ray.py --ray-folder /tmp/ray --logical-gpus 3 <arguments of train_ppo_ray>
"""

from __future__ import annotations

import argparse
import runpy
import sys

import ray

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--ray-folder", required=True)
    parser.add_argument("--logical-gpus", type=int, required=True)
    args, of_openrlhf = parser.parse_known_args()
    ray.init(
        num_cpus=16,  # as a number that Ray counts: the processes share what cores there are
        num_gpus=args.logical_gpus,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        _temp_dir=args.ray_folder,
    )
    sys.argv = ["train_ppo_ray", *of_openrlhf]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)

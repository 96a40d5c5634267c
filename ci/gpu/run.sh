#!/usr/bin/env bash
# The checks that need a GPU; see ci/gpu/trl_on_gpu.py for what they are.
#
#     pip install -c ci/constraints/trl.txt -e '.[trl,smollm2]'
#     bash ci/gpu/run.sh [ARGUMENTS]
#
# Where there is no network, but a torch for the GPU: GPU_PARTS=folder names the parts that ci/gpu/pack.sh made.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -n "${GPU_PARTS:-}" ]; then
    site="$GPU_PARTS/site"
    if [ ! -d "$site" ]; then
        cat "$GPU_PARTS"/part-* | tar -C "$GPU_PARTS" -x
        python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$GPU_PARTS"/wheels/*.whl
    fi
    export PYTHONPATH="$PWD:$PWD/adapters:$site"
fi
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
time python3 ci/gpu/trl_on_gpu.py "$@"

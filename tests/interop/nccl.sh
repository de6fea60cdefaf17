#!/usr/bin/env bash
# One process through NCCL, and one that knows of no others, leave the same bytes on a GPU. With two GPUs or more, torchrun
# starts two processes, too, which leave those of one process with twice the micro-batches.
#   LD_LIBRARY_PATH=FOLDER-OF-libnccl.so.2 tests/interop/nccl.sh target/release/train
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common=(--config configs/smoke.toml --set 'device="auto"' --set train.steps=8 --set train.batch=2 --set data.resolution=64
  --set checkpoint.every=8)
compare() {
  for file in lora.safetensors checkpoints/step-000008/adapter.safetensors checkpoints/step-000008/optimizer.safetensors; do
    cmp "$work/$1/$file" "$work/$2/$file"
  done
  echo "$3: the same bytes"
}
"$program" "${common[@]}" --set train.accumulate=2 --set "output=$work/alone"
RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 "$program" "${common[@]}" --set train.accumulate=2 --set "output=$work/through"
compare alone through "one process through NCCL"
if [ "$(nvidia-smi -L | wc -l)" -gt 1 ] && command -v torchrun; then
  torchrun --no-python --standalone --nproc-per-node 2 "$program" "${common[@]}" --set train.accumulate=1 --set "output=$work/two"
  compare alone two "two processes"
fi

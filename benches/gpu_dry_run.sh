#!/usr/bin/env bash
# benches/gpu.sh on an emulated GPU, in an empty folder with what would travel and nothing else: the tracked files of
# HEAD, and target/gpu. It finds what would end the script on a GPU, and says nothing about speed.
#
#   eval "$(../shared/cuda/toolchain.sh)"; benches/gpu_pack.sh; PYTHON=python3 benches/gpu_dry_run.sh
#
# Everything is tiny. There is no nvidia-smi, ncu and compute-sanitizer to a GPU that is none, which the script says; where
# PYTHON has PyTorch, diffusers, PEFT and SciPy, their half runs on the CPU. Fails unless all parts leave their results.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
commit=$(git describe --always --dirty --abbrev=10)
if [[ $(cat target/gpu/commit) != "$commit" ]]; then
  echo "target/gpu was packed from $(cat target/gpu/commit), not from $commit" >&2
fi
python3 tools/gpu_emulator/build.py
mkdir -p "$folder/home" "$folder/tree/target"
git archive HEAD | tar -C "$folder/tree" -xf -
cp -r target/gpu "$folder/tree/target/"
# Ours stand in for CUDA's; the runtime library, which candle's kernels are linked with, is CUDA's own.
libraries=$PWD/target/gpu_emulator:$CUDA_HOME/lib

# The score head is nearly all that the emulator has to do in a step: one step of one image has it.
run() {
  env -i HOME="$folder/home" PATH="$PATH" LIBRARIES="$libraries" PYTHON="$PYTHON" OUT="$folder/results" LIMIT=3600 PATIENCE=20 \
    CHECK_PRESET=tiny PRESET=tiny TORCH_PRESET=demo STEPS=1 STEP_FLAGS="--warm-up 0 --masks 0" "$@"
}
run TORCH_DEVICE=cpu BATCH=1 VARIANTS="plain epilogue=0 masks=1 checkpointing batch=2" TESTS=tests::cuda::adamw \
  STEP_TESTS=output_and_attention PEAK_FLAGS="--shrink 128" \
  ATTENTION_FLAGS="--sizes 1x2x70,2x1x33 --rounds 1 --repeats 1 --peak-side 64" "$folder/tree/benches/gpu.sh"
# Memory for a few images and not for all: a line that says so, and one with fewer.
run TORCH_DEVICE=none BATCH=64 VARIANTS=plain GPU_EMULATOR_MEMORY=8000000 "$folder/tree/benches/gpu.sh" step

echo
echo "== results"
cat "$folder/results/results.jsonl"
for line in '"work":"matmul"' '"work":"copy"' '"kernel":"forward_bf16_64"' '"kernel":"backward_keys_bf16_64"' \
  '"kernel":"backward"' '"checkpointing":true.*"step_ms"' '"epilogue":false.*"step_ms"' '"batch":2,.*"step_ms"' \
  '"masks":1,.*"step_ms"' '"out_of_memory":true' '"batch":(16|32),.*"step_ms"'; do
  grep -qE "$line" "$folder/results/results.jsonl" || { echo "no result has $line" >&2; exit 1; }
done
echo "the dry run passed: $(wc -l <"$folder/results/results.jsonl") results"

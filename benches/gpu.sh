#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, from what benches/gpu_pack.sh packed. Raw results go to $OUT.
#
#   OUT=results benches/gpu.sh [tests] [peak] [step] [torch] [compile]      all of them by default
#
# tests    every operation's kernels against its loops for the CPU, and a whole step against torch's numbers
# peak     the matrix product and the copy that a step's share of the peak is counted against
# step     a step of sd3-medium, batch 4, 1024 pixels, bf16, with and without recomputation; and PyTorch's, in turn,
#          ROUNDS times (3): eager, and with the expert's scores stored (--attention all)
# torch    what PyTorch's rounds need is there (or why not)
# compile  PyTorch's with --compile, ROUNDS times, beside ours: minutes of compiling, so on its own
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-target/gpu/results} ROUNDS=${ROUNDS:-3} STEPS=${STEPS:-10}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
xz -dc target/gpu/programs.tar.xz | tar -C "$work" -xf - || exit 1

# The program wants these by name; where the toolkit came with Python packages the loader does not know them.
for library in $(ldd "$work/step" | awk '/not found/ { print $1 }'); do
  file=$(find / -name "$library" -not -path '/proc/*' -not -path '*/stubs/*' 2>/dev/null | head -n 1)
  [[ -n $file ]] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(dirname "$file")
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/machine.txt"
results=$OUT/results.jsonl
failed=0
ours() { "$work/step" --preset sd3-medium --device cuda:0 --dtype bf16 --batch 4 --steps "$STEPS" "$@" | tee -a "$results" || failed=1; }
has_torch=no
theirs() {
  [[ $has_torch = no ]] && return
  PYTHONPATH=$work/python python3 target/gpu/torch_step.py --preset sd3-medium --device cuda --dtype bf16 --batch 4 \
    --steps "$STEPS" "$@" | tee -a "$results" || failed=1
}
check_torch() {
  python3 -m pip -q install --no-index --no-deps --target "$work/python" target/gpu/wheels/*.whl 2>/dev/null
  if PYTHONPATH=$work/python python3 -c 'import torch, scipy, peft, diffusers; print(torch.__version__, diffusers.__version__)'; then
    has_torch=yes
  else
    echo "no PyTorch with diffusers, peft and scipy here: only our half is measured"
  fi
}

parts=${*:-tests peak step torch compile}
for part in $parts; do
  case $part in
    tests) # one after the other: they share a GPU, and a failure should be easy to read
      { "$work/seg4diff" --test-threads 1 --nocapture ops:: && "$work/train_step" --test-threads 1; } 2>&1 |
        tee "$OUT/tests.txt" | tail -n 40 || failed=1
      if grep -q 'no CUDA device' "$OUT/tests.txt"; then echo "the tests found no CUDA device"; failed=1; fi ;;
    peak) "$work/gpu_peak" | tee -a "$results" || failed=1 ;;
    torch) check_torch ;;
    step)
      check_torch
      for _ in $(seq "$ROUNDS"); do ours; theirs; ours --checkpointing; theirs --checkpointing; theirs --attention all; done ;;
    compile)
      check_torch
      for _ in $(seq "$ROUNDS"); do ours; theirs --compile; done ;;
    *) echo "no part $part: see the head of $0" >&2; exit 2 ;;
  esac
done
exit "$failed"

#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, from what benches/gpu_pack.sh packed. Raw results go to $OUT.
#
#   OUT=results benches/gpu.sh [check] [tests] [nccl] [sanitizer] [peak] [attention] [step] [compile] [profile]
#
# All by default.
#
# check      driver, libraries, Python's packages, and a step of demo; what follows needs it
# tests      every operation's kernels against its loops for the CPU, and a whole step against torch's numbers
# nccl       one process through NCCL against one that knows of no others: the same bytes
# sanitizer  memcheck and racecheck of attention, projections and the score head
# peak       the matrix product and the copy that a step's share of the peak is counted against
# attention  its kernels by themselves, and PyTorch's under cuDNN and FlashAttention-2
# step       steps of sd3-medium, batch 4, 1024 pixels, bf16: as it is, without cuBLASLt's epilogues, blocks recomputed, flow
#            loss alone, batch 1; and PyTorch's, eager, also with the expert's scores stored (attention=all)
# compile    a step of ours and PyTorch's with --compile, minutes of compiling
# profile    the kernels of one step, by ncu, beside what was expected
#
# check and tests end everything where they fail. Each part has a time after which it is stopped, and all together have
# LIMIT seconds (570), as a machine may be lent for minutes: what does not fit any more is left out, and said. ROUNDS (1)
# of step and compile, STEPS (10) of each of VARIANTS ("plain epilogue=0 checkpointing masks=0 batch=1").
# PRESET (sd3-medium) may be flux-dev, which wants BATCH=1. TORCH_DEVICE=none leaves PyTorch out. benches/gpu_dry_run.sh
# sets the other variables.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-target/gpu/results} ROUNDS=${ROUNDS:-1} STEPS=${STEPS:-10} LIMIT=${LIMIT:-570} PYTHON=${PYTHON:-python3}
CHECK_PRESET=${CHECK_PRESET:-demo} PRESET=${PRESET:-sd3-medium} BATCH=${BATCH:-4}
VARIANTS=${VARIANTS:-plain epilogue=0 checkpointing masks=0 batch=1}
TORCH_PRESET=${TORCH_PRESET:-$PRESET} TORCH_DEVICE=${TORCH_DEVICE:-cuda}
TESTS=${TESTS:-ops::} STEP_TESTS=${STEP_TESTS:-} STEP_FLAGS=${STEP_FLAGS:-} PEAK_FLAGS=${PEAK_FLAGS:-}
ATTENTION_FLAGS=${ATTENTION_FLAGS:-} PATIENCE=${PATIENCE:-1}
# What candle's kernels need: they are PTX of version 9.0.
LEAST_DRIVER=580
twin=target/gpu/torch_step.py without=epilogue
# FLUX.1's twin cannot store scores.
if [[ $TORCH_PRESET = flux-* ]]; then twin=benches/flux_step.py without='epilogue\|attention'; fi
parts=${*:-check tests nccl sanitizer peak attention step compile profile}
for part in $parts; do
  case $part in
    check | tests | nccl | sanitizer | peak | attention | step | compile | profile) ;;
    *) echo "no part $part: see the head of $0" >&2; exit 2 ;;
  esac
done
deadline=$((SECONDS + LIMIT))
PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
results=$OUT/results.jsonl
failed=0

say() { echo "== $*"; }
# limited SECONDS COMMAND…: stopped after so long, or when all the time is used up.
limited() {
  local seconds=$(($1 * PATIENCE)) left=$((deadline - SECONDS)) status
  shift
  if ((left < 10)); then echo "no time is left for: $*" >&2; return 1; fi
  ((seconds < left)) || seconds=$left
  timeout -k 5 "$seconds" "$@"
  status=$?
  ((status == 124 || status == 137)) && echo "stopped after $seconds s: $*" >&2
  return "$status"
}
# Keeps the lines of results, with when and where.
record() {
  sed -un "s|^{|{\"date\":\"$(date -u +%FT%TZ)\",\"gpu\":\"$gpu\",\"commit\":\"$commit\",|p" | tee -a "$results"
}

unpack() {
  if command -v xz >/dev/null; then
    xz -dc target/gpu/programs.tar.xz
  else
    "$PYTHON" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' \
      target/gpu/programs.tar.xz
  fi | tar -C "$work" -xf -
}
unpack || exit 1
commit=$(cat target/gpu/commit)
programs=(step attention gpu_peak seg4diff train_step train)

# The folder of a library that the loader does not know, as those that came with Python packages. Of libcuda a driver's
# own: one of */compat/* is for other drivers, one of */stubs/* for none.
folder_of() {
  local folder
  for folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/local/cuda/lib64; do
    if [[ -e $folder/$1 ]]; then echo "$folder"; return; fi
  done
  timeout 60 find / -path /proc -prune -o -name "$1" -not -path '*/stubs/*' -not -path '*/compat/*' \
    -printf '%h\n' -quit 2>/dev/null
}
# For our programs alone: exported, it could give PyTorch another cuDNN or cuBLAS than it came with.
libraries=${LIBRARIES:-}
if [[ -z $libraries ]]; then
  for library in $(ldd "${programs[@]/#/$work/}" | awk '/not found/ || /\/compat\// { print $1 }' | sort -u); do
    folder=$(folder_of "$library")
    [[ -n $folder ]] && libraries+=:$folder
  done
fi
libraries+=${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
libraries=${libraries#:}
with=(env "LD_LIBRARY_PATH=$libraries")
on_gpu=(--device cuda:0 --dtype bf16 $STEP_FLAGS)

has_torch=no
find_torch() {
  if [[ $TORCH_DEVICE = none ]]; then echo "PyTorch is left out"; return; fi
  for wheel in target/gpu/wheels/*.whl; do
    [[ -e $wheel ]] && "$PYTHON" -m zipfile -e "$wheel" "$work/python"
  done
  if [[ ! -e target/gpu/torch_step.py ]] || ! limited 120 env PYTHONPATH="$work/python" "$PYTHON" - "$TORCH_DEVICE" <<'PYTHON'
import sys
import torch, scipy, peft, diffusers
print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("PyTorch sees no GPU")
PYTHON
  then
    echo "no PyTorch with diffusers, peft and scipy that can be used here: only our half is measured"
  else
    has_torch=yes
  fi
}
theirs() { # theirs SECONDS SCRIPT FLAGS…
  local seconds=$1
  shift
  [[ $has_torch = no ]] && return
  limited "$seconds" env PYTHONPATH="$work/python" "$PYTHON" "$@" --device "$TORCH_DEVICE" | record || failed=1
}
ours() { # ours FLAGS…
  limited 240 "${with[@]}" "$work/step" --preset "$PRESET" "${on_gpu[@]}" --batch "$BATCH" --steps "$STEPS" "$@" |
    record || failed=1
}
torch_steps() { # torch_steps SECONDS FLAGS…
  local seconds=$1
  shift
  theirs "$seconds" benches/torch_steps.py "$twin" --preset "$TORCH_PRESET" --dtype bf16 --batch "$BATCH" \
    --steps "$STEPS" "$@"
}

say "machine"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [[ -n $gpu ]]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/machine.txt"
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
  if ((${driver%%.*} < LEAST_DRIVER)); then
    echo "driver $driver: candle's kernels need $LEAST_DRIVER or later" >&2
    exit 1
  fi
else
  gpu=unknown
  echo "no nvidia-smi here: neither the GPU's name nor its driver is known"
fi
say "libraries: ${libraries:-the loader knows all}"
for program in "${programs[@]}"; do
  # All symbols at once: the programs were linked with stubs, and one that is missing would end a run in its middle.
  if ! limited 60 "${with[@]}" LD_BIND_NOW=1 "$work/$program" --help >/dev/null; then
    "${with[@]}" ldd "$work/$program" >&2
    exit 1
  fi
done
"${with[@]}" ldd "$work/step" | grep -E 'libcuda|libcublas'
find_torch

for part in $parts; do
  say "$part"
  began=$SECONDS
  case $part in
    check) # The first use of candle's kernels compiles them, which nothing that is timed should see.
      limited 120 "${with[@]}" "$work/step" --preset "$CHECK_PRESET" "${on_gpu[@]}" --batch 2 --steps 1 | record || exit 1 ;;
    tests) # One after the other: they share a GPU, and a failure should be easy to read.
      {
        limited 300 "${with[@]}" REQUIRE_CUDA=1 "$work/seg4diff" --test-threads 1 --nocapture $TESTS &&
          limited 200 "${with[@]}" REQUIRE_CUDA=1 "$work/train_step" --test-threads 1 $STEP_TESTS
      } 2>&1 | tee "$OUT/tests.txt" | tail -n 40 || exit 1 ;;
    nccl) limited 120 "${with[@]}" tests/interop/nccl.sh "$work/train" 2>&1 | tee "$OUT/nccl.txt" | tail -n 5 || failed=1 ;;
    sanitizer)
      if ! command -v compute-sanitizer; then echo "no compute-sanitizer here"; continue; fi
      for tool in memcheck racecheck; do
        limited 150 "${with[@]}" compute-sanitizer --tool "$tool" --error-exitcode 1 \
          "$work/seg4diff" --test-threads 1 tests::cuda::attention tests::cuda::linear tests::epilogue \
          tests::cuda::norms score_head 2>&1 |
          tee "$OUT/$tool.txt" | tail -n 15 || failed=1
      done ;;
    peak) limited 60 "${with[@]}" "$work/gpu_peak" $PEAK_FLAGS | record || failed=1 ;;
    attention)
      limited 90 "${with[@]}" "$work/attention" $ATTENTION_FLAGS | record || failed=1
      theirs 90 benches/attention.py $ATTENTION_FLAGS ;;
    step)
      for _ in $(seq "$ROUNDS"); do
        ours $(printf -- '--variant %s ' $VARIANTS)
        torch_steps 240 $(printf '%s\n' $VARIANTS attention=all | sed "/$without/d; s/^/--variant /")
      done ;;
    compile)
      if [[ $has_torch = no ]]; then echo "no PyTorch to compare with"; continue; fi
      for _ in $(seq "$ROUNDS"); do
        ours
        torch_steps 400 --variant compile
      done ;;
    profile)
      profiler=()
      if [[ $gpu != unknown ]] && command -v ncu; then
        profiler=(ncu --profile-from-start off --clock-control none --metrics gpu__time_duration.sum --csv
          --print-units base --log-file "$OUT/kernels.csv")
      else
        echo "no ncu here"
      fi
      limited 240 "${with[@]}" "${profiler[@]}" "$work/step" --preset "$PRESET" "${on_gpu[@]}" --batch "$BATCH" --steps 1 \
        --profile >/dev/null || failed=1
      [[ -e $OUT/kernels.csv ]] && { "$PYTHON" benches/gpu_kernels.py "$OUT/kernels.csv" | record || failed=1; } ;;
  esac
  say "$part took $((SECONDS - began)) s"
done
exit "$failed"

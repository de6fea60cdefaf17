#!/usr/bin/env bash
# Runs the tests of the CUDA code, or any program built with the feature `cuda`, on an emulated GPU. See README.md.
#
#   eval "$(../shared/cuda/toolchain.sh)"          # where there is no CUDA toolkit
#   tools/gpu_emulator/run.sh                      # tests of the operations, and of a step and a run: half an hour
#   tools/gpu_emulator/run.sh target/release/train --config configs/smoke.toml --set device='"cuda:0"'
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
emulated=$here/../../target/gpu_emulator
python3 "$here/build.py"
# Ours stand in for CUDA's; the runtime library, which candle's kernels are linked with, is CUDA's own.
export LD_LIBRARY_PATH=$emulated:$CUDA_HOME/lib
if [[ $# -gt 0 ]]; then exec "$@"; fi
cd "$here/../.."
export REQUIRE_CUDA=1
cargo test --release --features cuda --lib -- --test-threads 1 ops::
cargo test --release --features cuda --test train_step -- --test-threads 1

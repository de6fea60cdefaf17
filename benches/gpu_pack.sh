#!/usr/bin/env bash
# Builds what benches/gpu.sh runs and packs it into target/gpu, to be carried to a machine with a GPU that has neither a
# Rust toolchain nor a network: the tests, the benchmarks, PyTorch's twin of the step and the one package that it may
# lack there.
#
#   eval "$(../shared/cuda/toolchain.sh)"; benches/gpu_pack.sh
#
# What may be carried is 64 MiB, the tracked files with it: a pack of more than 44 MB is refused.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu most=44000000
rm -rf "$pack" && mkdir -p "$pack/wheels"
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
executables() { # the tests and benchmarks that cargo says it made, as NAME PATH
  python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and "bin" not in message["target"]["kind"]:
        print(message["target"]["name"], message["executable"])'
}
{
  cargo test --release --features cuda,nccl --no-run --lib --test train_step --message-format=json "$@" | executables
  cargo bench --features cuda,nccl --no-run --bench step --bench attention --bench gpu_peak --message-format=json "$@" | executables
} | while read -r name path; do
  strip -o "$programs/$name" "$path"
done
strip -o "$programs/train" "${CARGO_TARGET_DIR:-target}/release/train"
# Most of each is what all have: a dictionary that reaches over several of them packs that once.
tar -C "$programs" -cf - . | xz --lzma2=preset=6,dict=512MiB >"$pack/programs.tar.xz"
git describe --always --dirty --abbrev=10 >"$pack/commit"
if [[ -e ../shared/bench/torch_step.py ]]; then
  cp ../shared/bench/torch_step.py "$pack/"
  python3 -m pip -q download --no-deps --dest "$pack/wheels" diffusers==0.42.1 || echo "no diffusers wheel: PyTorch may stay out" >&2
else
  echo "no ../shared/bench/torch_step.py: PyTorch's steps stay out" >&2
fi
size() { find "$@" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }'; }
packed=$(size "$pack") tracked=$(git ls-files -z | xargs -0 stat -c %s | awk '{ sum += $1 } END { print sum }')
echo "packed $packed bytes in $pack, beside $tracked bytes of tracked files"
if ((packed > most || packed + tracked > 64 << 20)); then
  find "$pack" -type f -printf '%s %p\n' >&2
  echo "$pack is too large to be carried: at most $most bytes, and 64 MiB with the tracked files" >&2
  exit 1
fi

#!/usr/bin/env bash
# A training step by two processes with one thread each, against one process with two threads and twice the micro-batches:
# medians of the steps' times in alternating rounds, and the bytes that a step sends beside their count.
#   cargo build --release --features mpi && benches/processes.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common=(target/release/train --config configs/smoke.toml --set data.resolution=256 --set train.batch=8 --set train.steps=12
  --set data.workers=1 --set checkpoint.every=0)
for round in $(seq "$rounds"); do
  RAYON_NUM_THREADS=2 "${common[@]}" --set train.accumulate=2 --set "output=$work/one-$round" 2>"$work/log" || { cat "$work/log"; exit 1; }
  RAYON_NUM_THREADS=1 mpirun --oversubscribe --allow-run-as-root --bind-to none -n 2 "${common[@]}" \
    --set train.accumulate=1 --set "output=$work/two-$round" 2>"$work/log" || { cat "$work/log"; exit 1; }
  cmp "$work/one-$round/lora.safetensors" "$work/two-$round/lora.safetensors"
done
python3 - "$work" "$rounds" <<'P'
import json, statistics, sys
work, rounds = sys.argv[1], int(sys.argv[2])
def steps(name):
    return [json.loads(line) for line in open(f"{work}/{name}/metrics.jsonl")][2:]
def seconds(kind):
    return [statistics.median(step["seconds"] for step in steps(f"{kind}-{round}")) for round in range(1, rounds + 1)]
one, two = seconds("one"), seconds("two")
show = lambda times: f"{1000 * statistics.median(times):.1f} ms ({1000 * min(times):.1f}–{1000 * max(times):.1f})"
ratios = [b / a for a, b in zip(one, two)]
print(f"one process, two threads:       {show(one)}")
print(f"two processes, one thread each: {show(two)}")
print(f"ratio of the medians {statistics.median(two) / statistics.median(one):.3f}, of the rounds {min(ratios):.3f}–{max(ratios):.3f}")
found = steps("two-1")
last = [step["processes"] for step in found]
waits = [step["seconds"] - step["processes"]["busy_s"][1] - step["processes"]["data_wait_s"][1] for step in found]
print(f"the slower one waits and exchanges for {1000 * statistics.median(waits):.2f} ms of a step")
print(f"bytes sent a step by both: {(last[-1]['sent_bytes'] - last[0]['sent_bytes']) / (len(last) - 1):.0f}")
P

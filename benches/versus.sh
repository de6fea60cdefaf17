#!/usr/bin/env bash
# Our programs against PyTorch's on the same work, in turn, three rounds; prints medians and ratios, keeps the raw lines.
#
#   PYTHON=python3 benches/versus.sh [demo] [sd3-width] [flux-width] [segmentation] [generate] [loader]
#
# All but the last by default.
#
# Steps are measured with the mask loss and on the flow loss alone. SEG4DIFF_NO_AMX=1 measures ours without matrix units.
# Needs a Python with torch, diffusers, peft, scipy (for loader: Pillow, pycocotools), and ../shared. ROUNDS=3.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} ROUNDS=${ROUNDS:-3}
results=benches/results/$(date +%F)-cpu-versus.jsonl
coco=../shared/data/coco128/sa1b
cargo bench --no-run --bench step --bench segmentation --bench generate --bench loader
{
  printf '{"date":"%s","commit":"%s","cores":%s,"no_amx":"%s","machine":"%s"}\n' "$(date +%F)" \
    "$(git rev-parse --short HEAD)" "$(nproc)" "${SEG4DIFF_NO_AMX:-}" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
  for part in "${@:-demo sd3-width flux-width segmentation generate}"; do for part in $part; do for _ in $(seq "$ROUNDS"); do
    case $part in
      demo)
        cargo bench -q --bench step -- --preset demo --steps 10
        "$PYTHON" ../shared/bench/torch_step.py --preset demo --steps 5
        "$PYTHON" ../shared/bench/torch_step.py --preset demo --steps 5 --dtype bf16
        cargo bench -q --bench step -- --preset demo --steps 10 --masks 0
        "$PYTHON" ../shared/bench/torch_step.py --preset demo --steps 5 --masks 0
        ;;
      sd3-width)
        cargo bench -q --bench step -- --preset sd3-width --batch 1 --steps 3
        "$PYTHON" ../shared/bench/torch_step.py --preset sd3-width --batch 1 --steps 2
        cargo bench -q --bench step -- --preset sd3-width --batch 1 --steps 3 --masks 0
        "$PYTHON" ../shared/bench/torch_step.py --preset sd3-width --batch 1 --steps 3 --masks 0
        ;;
      flux-width)
        cargo bench -q --bench step -- --preset flux-width --batch 1 --steps 3
        "$PYTHON" benches/flux_step.py --preset flux-width --batch 1 --steps 2
        cargo bench -q --bench step -- --preset flux-width --batch 1 --steps 3 --masks 0
        "$PYTHON" benches/flux_step.py --preset flux-width --batch 1 --steps 3 --masks 0
        ;;
      segmentation)
        cargo bench -q --bench segmentation -- --batch 4
        "$PYTHON" benches/segmentation.py --batch 4
        ;;
      generate)
        cargo bench -q --bench generate -- --preset demo
        "$PYTHON" benches/generate.py --preset demo
        ;;
      loader)
        cargo bench -q --bench loader -- "$coco/sa_*.tar" "$coco/captions.json" 1024 2 >&2
        "$PYTHON" benches/loader.py "$coco/sa_*.tar" "$coco/captions.json" 1024 2 >&2
        ;;
    esac
  done; done; done
} | tee "$results" >&2
"$PYTHON" - "$results" <<'PYTHON'
import collections, json, statistics, sys
groups = collections.defaultdict(list)
for line in map(json.loads, open(sys.argv[1])):
    if "what" in line:
        work = line.get("work", "segmentation" if "classes" in line else "step")
        groups[work, line["preset"], line["batch"], line.get("masks"), line["what"], line.get("dtype", "f32")].append(line)
def median(lines, key): return statistics.median(line[key] for line in lines)
for (work, preset, batch, masks, what, dtype), theirs in groups.items():
    if what != "torch": continue
    ours = groups[work, preset, batch, masks, "seg4diff", "f32"]
    speeds = sorted(line["images_per_s"] for line in ours), sorted(line["images_per_s"] for line in theirs)
    rate = [median(lines, "images_per_s") for lines in (ours, theirs)]
    peak = [median(lines, "peak_gb") for lines in (ours, theirs)]
    loss = " on the flow loss alone" if masks == 0 else ""
    print(f"{work} {preset}{loss}, batch {batch}, f32 against {dtype}: {rate[0]:.3f} ({speeds[0][0]:.3f} to {speeds[0][-1]:.3f}) and "
          f"{rate[1]:.3f} ({speeds[1][0]:.3f} to {speeds[1][-1]:.3f}) images/s, {rate[0] / rate[1]:.2f} times as fast; "
          f"peak {peak[0]:.2f} and {peak[1]:.2f} GB, {peak[0] / peak[1]:.2f}")
PYTHON

"""Adds up what ncu says of one step's kernels, part by part, beside what was expected of an H100.

  ncu --profile-from-start off --clock-control none --metrics gpu__time_duration.sum --csv --print-units base \\
      --log-file kernels.csv step --profile --steps 1 …
  gpu_kernels.py kernels.csv

Prints a JSON line for each part and for all of them; names the longest kernels on standard error. Memory that the driver
sets or copies by itself is no kernel.
"""

import collections
import csv
import json
import re
import sys

# Part of a step, what its kernels' names begin with, and what sd3-medium at batch 4 was expected to take, in ms.
PARTS = [
    ("attention forward", r"forward_(bf16|f32)_", 40),
    ("attention backward", r"(delta|backward_queries|backward_keys)_", 127),
    ("score head", r"score_head_", 22.5),
    ("norms, GELU, gates, biases", r"(layer_norm|rms_norm|gelu|gated|fill_rows)_", 38),
    ("gradients set to zero and added, joined and cut tensors", r"(fill|const_set|ucopy|copy2d|badd|add|sum_entries)_", 60),
    ("projections and LoRA products", r"(void )?(nvjet|cublas|cutlass|gemm|gemv|sm\d+_|ampere_|splitK|dot_|.*gemm)", 97),
    ("rest", r"", 15),
]
MILLISECONDS = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1, "msecond": 1, "s": 1e3, "second": 1e3}


def launches(path):
    """Name and milliseconds of every kernel that ncu saw."""
    with open(path, newline="") as file:
        # What else ncu says stands between the lines of the table.
        for row in csv.DictReader(line for line in file if line.startswith('"')):
            if row["Metric Name"] == "gpu__time_duration.sum":
                time = float(row["Metric Value"].replace(",", "")) * MILLISECONDS[row["Metric Unit"]]
                yield row["Kernel Name"], time


def main():
    parts = {part: [0, 0.0] for part, _, _ in PARTS}
    kernels = collections.defaultdict(lambda: [0, 0.0])
    for name, time in launches(sys.argv[1]):
        part = next(part for part, names, _ in PARTS if re.match(names, name))
        for sums in (parts[part], kernels[part, name]):
            sums[0] += 1
            sums[1] += time
    if not kernels:
        sys.exit(f"{sys.argv[1]}: ncu saw no kernel")
    for (part, name), (count, time) in sorted(kernels.items(), key=lambda item: -item[1][1])[:25]:
        print(f"{time:9.3f} ms {count:6} times  {name[:60]} ({part})", file=sys.stderr)
    expected = {part: time for part, _, time in PARTS}
    parts["all"] = [sum(count for count, _ in parts.values()), sum(time for _, time in parts.values())]
    for part, (count, time) in parts.items():
        line = {"what": "seg4diff", "work": "kernels", "part": part, "launches": count, "ms": round(time, 3)}
        print(json.dumps({**line, "expected_ms": expected.get(part, sum(expected.values()))}))


if __name__ == "__main__":
    main()

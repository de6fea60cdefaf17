#!/usr/bin/env python3
"""Draws what tune.py measured, mIoU against FD-demo, and prints the table: plot.py RESULTS.jsonl OUT.png"""
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
base, runs = lines[0]["before"], defaultdict(list)
for line in lines:
    runs[line["name"]].append(line["after"])


def spread(scores, key, factor=1.0):
    values = [factor * score[key] for score in scores]
    return mean(values), min(values), max(values)


figure, axes = plt.subplots(figsize=(8, 5))
forms = {"softmax": ("C0", "o"), "published": ("C3", "s"), "without": ("0.4", "D")}
print("| | mIoU | FD-demo | held-out flow loss | seeds |\n| --- | --- | --- | --- | --- |")
print(f"| base | {100 * base['miou']:.1f} | {base['fd_demo']:.1f} | {base['held_out_flow']:.4f} | |")
means = defaultdict(list)
for name, scores in runs.items():
    color, marker = forms[name.split()[0]]
    fd, fd_low, fd_high = spread(scores, "fd_demo")
    miou, low, high = spread(scores, "miou", 100)
    flow = spread(scores, "held_out_flow")[0]
    axes.errorbar(fd, miou, xerr=[[fd - fd_low], [fd_high - fd]], yerr=[[miou - low], [high - miou]], color=color,
                  marker=marker, capsize=3, linestyle="none")
    axes.annotate(name.split(" ", 1)[1] if name[0] != "w" else name, (fd, miou), xytext=(6, 5),
                  textcoords="offset points", fontsize=8, color=color)
    means[name.split()[0]].append((fd, miou))
    ranges = [f" ({low:.1f} to {high:.1f})", f" ({fd_low:.1f} to {fd_high:.1f})"] if len(scores) > 1 else ["", ""]
    print(f"| {name} | {miou:.1f}{ranges[0]} | {fd:.1f}{ranges[1]}, "
          f"{100 * (fd / base['fd_demo'] - 1):+.1f} % | {flow:.4f}, "
          f"{100 * (flow / base['held_out_flow'] - 1):+.1f} % | {len(scores)} |")
for form, points in means.items():
    color, marker = forms[form]
    label = {"softmax": "softmax form, align_weight", "published": "published form, weights ×", "without": None}[form]
    axes.plot(*zip(*points), color=color, marker=marker, alpha=0.35, label=label)
axes.plot(base["fd_demo"], 100 * base["miou"], "k*", markersize=12, label="base")
axes.axvline(base["fd_demo"], color="0.8", zorder=0)
axes.axvline(1.05 * base["fd_demo"], color="0.8", linestyle=":", zorder=0)
axes.set_xlabel("FD-demo (lower is better; the lines: the base's, and 5 % above)")
axes.set_ylabel("mIoU on the held-out style, %")
axes.legend()
axes.grid(alpha=0.3)
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=110)

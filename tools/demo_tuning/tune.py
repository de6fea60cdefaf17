#!/usr/bin/env python3
"""Runs the demo with other losses, weights and seeds, on scenes that its own validation does not use.

  tune.py --out RESULTS.jsonl [--binary target/release/train] [--seeds 3] [--only NAME ...] [--set KEY=VALUE ...]

Every run is `train --config configs/demo.toml --set …`; a line of RESULTS is its name, settings, seed and scores. Runs
that RESULTS has already are left out, so that it can be stopped and started. plot.py draws the result.
"""
import argparse
import json
import subprocess
from pathlib import Path

SCENES = "runs/tuning-scenes"
OTHER_SCENES = {
    "scenes.folder": SCENES, "scenes.seed": 7000, "data.source": f'["{SCENES}/train/images"]',
    "data.labels": f"{SCENES}/train/labels", "data.classes": f"{SCENES}/train/classes.json",
    "eval.images": f"{SCENES}/val/images", "eval.labels": f"{SCENES}/val/labels",
    "eval.classes": f"{SCENES}/val/classes.json", "eval.real": f"{SCENES}/test/images",
    "eval.captions": f"{SCENES}/test/captions.json",
}
PUBLISHED = (0.1, 0.2)  # focal and dice
RUNS = {"without masks": {"loss.align_weight": 0.0}}
for weight in (0.0125, 0.05, 0.2):
    RUNS[f"softmax {weight:g}"] = {"loss.align_weight": weight}
for factor in (0.05, 0.15, 0.5):
    focal, dice = (factor * weight for weight in PUBLISHED)
    RUNS[f"published ×{factor:g}"] = {
        "loss.alignment": "sigmoid", "loss.focal_weight": focal, "loss.dice_weight": dice}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--binary", default="target/release/train")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", nargs="*", help="runs whose names begin so")
    arguments.add_argument("--set", nargs="*", default=[], help="further settings of every run")
    arguments.add_argument("--label", default="", help="put behind the names, for further settings")
    a = arguments.parse_args()
    out = Path(a.out)
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(run["name"], run["seed"]) for run in done}
    base = next((run["before"] for run in done), None)
    for seed in range(a.seeds):
        for name, settings in RUNS.items():
            label = f"{name}{a.label}"
            if (label, seed) in known or a.only and not any(name.startswith(only) for only in a.only):
                continue
            folder = f"runs/tuning/{label.replace(' ', '_')}-{seed}"
            values = OTHER_SCENES | settings | {
                "seed": seed, "output": folder, "eval.before": "true" if base is None else "false"}
            sets = [f"{key}={value}" for key, value in values.items()] + a.set
            command = [a.binary, "--config", "configs/demo.toml"] + [part for s in sets for part in ("--set", s)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            summary = json.loads((Path(folder) / "summary.json").read_text())
            base = base or summary["before"]
            line = {"name": label, "seed": seed, "settings": settings | dict(s.split("=") for s in a.set),
                    "before": base, "after": summary["after"]}
            for scores in (line["before"], line["after"]):
                scores.pop("per_class", None)
            with out.open("a") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(f"{label} {seed}: {line['after']}", flush=True)

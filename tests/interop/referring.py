#!/usr/bin/env python3
"""Compares `evaluate referring` with the same in diffusers, PyTorch and NumPy, on phrases made of a data set's classes.

  cargo build --release
  tests/interop/referring.py --model DIR [--images DIR --labels DIR --classes F] [--layer 2] [--size 256] [--limit N] [--seed N]

A phrase is "the NAME" for each class in an image, its mask the class's pixels. Exit status 1 if a score is out of bounds.
Without --images: the validation photographs of ../shared/data/coco128. Needs torch, diffusers, transformers, pycocotools,
scipy, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.23, pillow 12).
"""
import json, os, subprocess, sys, tempfile
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from safetensors.torch import save_file
from labelled import Data, parser, reference


def main():
    options = parser(__doc__)
    options.add_argument("--layer", type=int, default=2)
    a = options.parse_args()
    data = Data(a)
    (names, ignore), lines = data.classes, []
    for image, labels in zip(*data.files):
        truth = np.asarray(Image.open(labels)).astype(np.int64)
        for label in [l for l in names if l not in ignore and (truth == l).any()]:
            lines.append({"image": os.path.relpath(image, a.images), "phrase": f"the {names[label]}", "mask": truth == label})
    with tempfile.TemporaryDirectory() as work:
        save_file({"noise": data.noise}, f"{work}/noise.safetensors")
        with open(f"{work}/phrases.jsonl", "w") as out:
            for line in lines:
                runs = coco.encode(np.asfortranarray(line["mask"].astype(np.uint8)))["counts"].decode()
                mask = {"size": list(line["mask"].shape), "counts": runs}
                out.write(json.dumps({**line, "mask": mask}) + "\n")
        subprocess.run([str(x) for x in (a.binary, "evaluate", "referring", "--model", a.model, "--images", a.images, "--phrases",
                        f"{work}/phrases.jsonl", "--layer", a.layer, "--size", a.size, "--noise", f"{work}/noise.safetensors",
                        "--json", f"{work}/scores.json", "--device", "cpu", "--dtype", "f32")], check=True, capture_output=True)
        ours = json.load(open(f"{work}/scores.json"))
    theirs = reference.referring(data.pipe, lines, a.images, a.layer, a.size, data.noise)
    failed = False
    for key, value in theirs.items():
        # a pixel whose value is the threshold to the last bit falls either way
        apart, limit = abs(ours[key] - value), 0 if key.startswith("phrases") else 1e-4
        failed |= apart > limit
        print(f"{key}: {ours[key]:.6g}, {value:.6g}, {apart:.2g} apart ({'ok' if apart <= limit else 'OUT OF BOUNDS'})")
    sys.exit(int(failed))


main()

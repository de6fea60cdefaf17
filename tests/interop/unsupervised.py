#!/usr/bin/env python3
"""Runs `evaluate unsupervised` with the built program and the same in diffusers, NumPy and scipy, live.

  cargo build --release
  tests/interop/unsupervised.py --model DIR [--images DIR --labels DIR --classes F] [--layer N] [--size PIXELS] [--limit N]
                                [--ignore LIST] [--threshold LIST] [--power X] [--seed N]

Both take the same random noise. A line a threshold; exit status 1 if one is out of bounds:
  miou, accuracy   difference, < 5e-5 (as shares)
Without --images: the validation photographs of ../shared/data/coco128. Needs torch, diffusers, transformers, scipy, pillow
(seen: torch 2.15, diffusers 0.42.1, transformers 5.23, pillow 12).
"""
import argparse, json, logging, os, subprocess, sys, tempfile
import torch
from safetensors.torch import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, f"{ROOT}/tests/fixtures/segmentation")
import reference

logging.disable(logging.WARNING)


def main():
    coco = f"{ROOT}/../shared/data/coco128/coco"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", default=f"{coco}/images/val2017")
    parser.add_argument("--labels", default=f"{coco}/labels/val2017")
    parser.add_argument("--classes", default=f"{coco}/classes.json")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ignore", default="0,255")
    parser.add_argument("--limit", type=int, default=1 << 30)
    parser.add_argument("--threshold", default="0.001,0.01,0.035,0.1")
    parser.add_argument("--power", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    pipe = reference.load(arguments.model)
    side = arguments.size // pipe.vae_scale_factor
    noise = torch.randn(1, pipe.transformer.config.in_channels, side, side)
    stems = {os.path.splitext(f)[0]: f for f in os.listdir(arguments.images) if f.lower().endswith((".jpg", ".jpeg", ".png"))}
    keys = sorted(stems)[:arguments.limit]
    classes, ignore = reference.read_classes(arguments.classes), [int(i) for i in arguments.ignore.split(",")]
    thresholds = [float(t) for t in arguments.threshold.split(",")]
    with tempfile.TemporaryDirectory() as work:
        save_file({"noise": noise}, f"{work}/noise.safetensors")
        command = [os.path.abspath(arguments.binary), "evaluate", "unsupervised", "--model", arguments.model, "--images",
                   arguments.images, "--labels", arguments.labels, "--classes", arguments.classes, "--ignore",
                   arguments.ignore, "--size", arguments.size, "--layer", arguments.layer, "--noise",
                   f"{work}/noise.safetensors", "--threshold", arguments.threshold, "--power", arguments.power, "--json",
                   f"{work}/found.json", "--device", "cpu", "--dtype", "f32"]
        if arguments.limit < 1 << 30: command += ["--limit", arguments.limit]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode: sys.exit(f"{command}\nstatus {done.returncode}\n{done.stderr}")
        ours = json.load(open(f"{work}/found.json"))
    images, labels = [f"{arguments.images}/{stems[k]}" for k in keys], [f"{arguments.labels}/{k}.png" for k in keys]
    everything = reference.unsupervised(pipe, images, labels, classes, ignore, arguments.layer, arguments.size, thresholds,
                                        arguments.power, noise)
    failed = False
    for found, theirs in zip(ours, everything):
        miou, accuracy = (abs(found[key] - theirs[key]) for key in ("miou", "pixel_accuracy"))
        good = miou < 5e-5 and accuracy < 5e-5
        failed |= not good
        print(f"threshold {found['threshold']:<7} {found['segments']:5.1f} segments  mIoU {found['miou']:.6f} and {theirs['miou']:.6f}  "
              f"difference: mIoU {miou:.1e} accuracy {accuracy:.1e}  {'ok' if good else 'OUT OF BOUNDS'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

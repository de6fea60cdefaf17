#!/usr/bin/env python3
"""Runs `analyze` with the built program and the same in diffusers and NumPy, live, on a folder of images.

  cargo build --release
  tests/interop/analyze.py --model DIR [--images DIR --labels DIR --classes F] [--size PIXELS] [--limit N] [--ignore LIST]
                           [--seed N]

Both take the same random noise. A line a block; exit status 1 if one is out of bounds:
  mIoU and accuracy   difference, < 5e-5 (as shares)
  masses and norms    relative difference, < 1e-4
Without --images: the validation photographs of ../shared/data/coco128. Needs torch, diffusers, transformers, pillow
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
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ignore", default="0,255")
    parser.add_argument("--limit", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    arguments = parser.parse_args()
    pipe = reference.load(arguments.model)
    stems = {os.path.splitext(f)[0]: f for f in os.listdir(arguments.images) if f.lower().endswith((".jpg", ".jpeg", ".png"))}
    keys = sorted(stems)[:arguments.limit]
    classes, ignore = reference.read_classes(arguments.classes), [int(i) for i in arguments.ignore.split(",")]
    torch.manual_seed(arguments.seed)
    side = arguments.size // pipe.vae_scale_factor
    noise = torch.randn(1, pipe.transformer.config.in_channels, side, side)
    with tempfile.TemporaryDirectory() as work:
        save_file({"noise": noise}, f"{work}/noise.safetensors")
        command = [os.path.abspath(arguments.binary), "analyze", "--model", arguments.model, "--images", arguments.images,
                   "--labels", arguments.labels, "--classes", arguments.classes, "--ignore", arguments.ignore, "--size",
                   arguments.size, "--noise", f"{work}/noise.safetensors", "--json", f"{work}/found.json", "--device", "cpu", "--dtype", "f32"]
        if arguments.limit < 1 << 30: command += ["--limit", arguments.limit]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode: sys.exit(f"{command}\nstatus {done.returncode}\n{done.stderr}")
        ours = json.load(open(f"{work}/found.json"))
    images, labels = [f"{arguments.images}/{stems[k]}" for k in keys], [f"{arguments.labels}/{k}.png" for k in keys]
    everything = reference.analyse(pipe, images, labels, classes, ignore, arguments.size,
                                   reference.noise_level(pipe), noise)
    failed = False
    for block, (found, theirs) in enumerate(zip(ours["blocks"], everything)):
        shares = [abs(found[key] - theirs[key]) for key in ("miou", "pixel_accuracy")]
        others = [abs(found[key] / theirs[key] - 1) for key in
                  ("image_to_text", "text_to_image", "image_value_norm", "text_value_norm") if key in found]
        good = max(shares) < 5e-5 and max(others) < 1e-4
        failed |= not good
        print(f"block {block}  mIoU {found['miou']:.6f} and {theirs['miou']:.6f}  difference: mIoU {shares[0]:.1e} "
              f"accuracy {shares[1]:.1e}  masses and norms {max(others):.1e}  {'ok' if good else 'OUT OF BOUNDS'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

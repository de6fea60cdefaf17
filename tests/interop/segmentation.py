#!/usr/bin/env python3
"""Runs `evaluate segmentation` with the built program and the same in diffusers and NumPy, live, on a folder of images.

  cargo build --release
  tests/interop/segmentation.py --model DIR [--images DIR --labels DIR --classes F] [--lora F] [--layer N] [--size PIXELS]
                                [--protocol present --protocol all] [--ignore LIST] [--limit N] [--batch N] [--seed N]

Both take the same random noise. A line a protocol; exit status 1 if one is out of bounds:
  miou, accuracy   difference, < 5e-5 (as shares)
  classes          largest difference of a class's IoU, < 5e-4
  pixels           share of pixels that were predicted otherwise, < 1e-4 (equal maps, but for rounding)
Without --images: the validation photographs of ../shared/data/coco128. Needs torch, diffusers, transformers, peft, pillow
(seen: torch 2.15, diffusers 0.42.1, transformers 5.23, pillow 12).
"""
import argparse, json, logging, os, subprocess, sys, tempfile, time
import numpy as np, torch
from PIL import Image
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
    parser.add_argument("--lora")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--protocol", action="append", choices=["present", "all"])
    parser.add_argument("--ignore", default="0,255")
    parser.add_argument("--limit", type=int, default=1 << 30)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    pipe = reference.load(arguments.model, arguments.lora)
    channels, side = pipe.transformer.config.in_channels, arguments.size // pipe.vae_scale_factor
    noise = torch.randn(1, channels, side, side)
    stems = {os.path.splitext(f)[0]: f for f in os.listdir(arguments.images) if f.lower().endswith((".jpg", ".jpeg", ".png"))}
    keys = sorted(stems)[:arguments.limit]
    images = [f"{arguments.images}/{stems[k]}" for k in keys]
    labels = [f"{arguments.labels}/{k}.png" for k in keys]
    classes, ignore = reference.read_classes(arguments.classes), [int(i) for i in arguments.ignore.split(",")]
    failed = False
    for protocol in arguments.protocol or ["present", "all"]:
        with tempfile.TemporaryDirectory() as work:
            save_file({"noise": noise}, f"{work}/noise.safetensors")
            command = [os.path.abspath(arguments.binary), "evaluate", "segmentation", "--model", arguments.model,
                       "--images", arguments.images, "--labels", arguments.labels, "--classes", arguments.classes,
                       "--ignore", arguments.ignore, "--layer", arguments.layer, "--size", arguments.size,
                       "--protocol", protocol, "--noise", f"{work}/noise.safetensors", "--json", f"{work}/scores.json",
                       "--predictions", f"{work}/predictions", "--device", "cpu", "--dtype", "f32"]
            if arguments.lora: command += ["--lora", arguments.lora]
            if arguments.batch: command += ["--batch", arguments.batch]
            if arguments.limit < 1 << 30: command += ["--limit", arguments.limit]
            start = time.time()
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            took = time.time() - start
            if done.returncode: sys.exit(f"{command}\nstatus {done.returncode}\n{done.stderr}")
            ours = json.load(open(f"{work}/scores.json"))
            pixels = [0, 0]

            def compare(index, names, maps, predicted):
                found = np.asarray(Image.open(f"{work}/predictions/{keys[index]}.png"))
                if maps is not None:
                    pixels[0] += int((found != predicted).sum()); pixels[1] += found.size

            start = time.time()
            theirs = reference.evaluate(pipe, images, labels, classes, ignore, arguments.layer, arguments.size, protocol,
                                        noise, each=compare)
            reference_took = time.time() - start
        assert ours["images"] == theirs["images"] and ours["per_class"].keys() == theirs["per_class"].keys(), "classes"
        miou, accuracy = (abs(ours[k] - theirs[k]) for k in ("miou", "pixel_accuracy"))
        worst = max(abs(ours["per_class"][k] - v) for k, v in theirs["per_class"].items())
        other = pixels[0] / pixels[1]
        good = miou < 5e-5 and accuracy < 5e-5 and worst < 5e-4 and other < 1e-4
        failed |= not good
        print(f"{protocol:8} {theirs['images']} images  mIoU {ours['miou']:.6f} and {theirs['miou']:.6f}  "
              f"difference: mIoU {miou:.1e} accuracy {accuracy:.1e} classes {worst:.1e} pixels {other:.1e}  "
              f"{took:.1f} s and {reference_took:.1f} s (one thread, single images)  {'ok' if good else 'OUT OF BOUNDS'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

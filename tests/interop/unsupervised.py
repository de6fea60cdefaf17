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
import sys, tempfile
from labelled import Data, parser, reference


def main():
    options = parser(__doc__)
    options.add_argument("--layer", type=int, default=2)
    options.add_argument("--threshold", default="0.001,0.01,0.035,0.1")
    options.add_argument("--power", type=float, default=1)
    arguments = options.parse_args()
    data = Data(arguments)
    with tempfile.TemporaryDirectory() as work:
        ours, _ = data.run(work, "evaluate", "unsupervised", "--layer", arguments.layer, "--threshold", arguments.threshold,
                           "--power", arguments.power)
    thresholds = [float(t) for t in arguments.threshold.split(",")]
    everything = reference.unsupervised(data.pipe, *data.files, *data.classes, arguments.layer, arguments.size, thresholds,
                                        arguments.power, data.noise)
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

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
import sys, tempfile
from labelled import Data, parser, reference


def main():
    data = Data(parser(__doc__).parse_args())
    with tempfile.TemporaryDirectory() as work:
        ours, _ = data.run(work, "analyze")
    everything = reference.analyse(data.pipe, *data.files, *data.classes, data.arguments.size,
                                   reference.noise_level(data.pipe), data.noise)
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

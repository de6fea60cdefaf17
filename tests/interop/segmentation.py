#!/usr/bin/env python3
"""Runs `evaluate segmentation` with the built program and the same in diffusers and NumPy, live, on a folder of images.

  cargo build --release
  tests/interop/segmentation.py --model DIR [--images DIR --labels DIR --classes F] [--lora F] [--layer N] [--size PIXELS]
                                [--protocol present --protocol all] [--ignore LIST] [--limit N] [--batch N] [--seed N] [--settings]

--settings: with other map settings in turn, too: several blocks, heads, softmaxes, scales, and a random score head.
Both take the same random noise. A line a protocol and setting; exit status 1 if one is out of bounds:
  miou, accuracy   difference, < 5e-5 (as shares)
  classes          largest difference of a class's IoU, < 5e-4
  pixels           share of pixels that were predicted otherwise, < 1e-4 (equal maps, but for rounding)
With other settings these are bounds on pixels alone, and on those whose class is less than another by more than rounding
(1e-5 of the greatest value): scaled maps of two classes are equally great where both are greatest.
Without --images: the validation photographs of ../shared/data/coco128. Needs torch, diffusers, transformers, peft, pillow
(seen: torch 2.15, diffusers 0.42.1, transformers 5.23, pillow 12).
"""
import itertools, sys, tempfile, time
import numpy as np
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from labelled import Data, parser, reference
from settings import Settings, class_maps, new_score_head


def main():
    options = parser(__doc__)
    options.add_argument("--lora")
    options.add_argument("--layer", type=int, default=2)
    options.add_argument("--protocol", action="append", choices=["present", "all"])
    options.add_argument("--batch", type=int)
    options.add_argument("--settings", action="store_true")
    arguments = options.parse_args()
    data = Data(arguments, arguments.lora)
    failed = False
    layer, head = arguments.layer, new_score_head()
    asked = [Settings([layer])]
    if arguments.settings:
        asked += [Settings([0, layer], "max"), Settings([layer], 1, "softmax_text", "both"), Settings([layer], "mean", "logits", "after"),
                  Settings([0, layer], "mean", "softmax_text", "before"), Settings([layer], "max", "logits", "none", head),
                  Settings([0, layer], "mean", "logits", "both", head, "released")]
    for protocol, settings in itertools.product(arguments.protocol or ["present", "all"], asked):
        with tempfile.TemporaryDirectory() as work:
            command = ["evaluate", "segmentation", *settings.flags(), "--protocol", protocol,
                       "--predictions", f"{work}/predictions"]
            if settings.score_head:
                save_file({f"score_head.{k}": v for k, v in head.state_dict().items()}, f"{work}/head.safetensors")
                command += ["--score-head", f"{work}/head.safetensors", "--score-head-form", settings.score_head_form]
            if arguments.lora: command += ["--lora", arguments.lora]
            if arguments.batch: command += ["--batch", arguments.batch]
            ours, took = data.run(work, *command)
            pixels = [0, 0]

            def compare(index, names, maps, predicted):
                found = np.asarray(Image.open(f"{work}/predictions/{data.keys[index]}.png"))
                if maps is None: return
                other = found != predicted
                if settings is not asked[0]:
                    large = F.interpolate(maps[None], found.shape, mode="bilinear", align_corners=False)[0].numpy()
                    place = {label: names.index(name) for label, name in data.classes[0].items() if name in names}
                    at = lambda labels: np.take_along_axis(large, np.vectorize(place.__getitem__)(labels)[None], 0)[0]
                    other &= np.abs(at(found) - at(predicted)) > 1e-5 * np.abs(large).max()
                pixels[0] += int(other.sum()); pixels[1] += found.size

            start = time.time()
            level = reference.noise_level(data.pipe)
            of_image = lambda image, names: class_maps(data.pipe, image, names, settings, arguments.size, *level, data.noise)
            # The published protocol by a reference of its own.
            other = of_image if settings is not asked[0] else None
            theirs = reference.evaluate(data.pipe, *data.files, *data.classes, layer, arguments.size, protocol,
                                        data.noise, each=compare, of_image=other)
            reference_took = time.time() - start
        assert ours["images"] == theirs["images"]
        assert settings is not asked[0] or ours["per_class"].keys() == theirs["per_class"].keys(), "classes"
        miou, accuracy = (abs(ours[k] - theirs[k]) for k in ("miou", "pixel_accuracy"))
        worst = max(abs(ours["per_class"].get(k, 0.0) - v) for k, v in theirs["per_class"].items())
        other = pixels[0] / pixels[1]
        good = other < 1e-4 and (settings is not asked[0] or (miou < 5e-5 and accuracy < 5e-5 and worst < 5e-4))
        failed |= not good
        print(f"{protocol:8} {' '.join(map(str, settings.flags()))} {settings.score_head_form if settings.score_head else ''}\n"
              f"         {theirs['images']} images  mIoU {ours['miou']:.6f} and {theirs['miou']:.6f}  "
              f"difference: mIoU {miou:.1e} accuracy {accuracy:.1e} classes {worst:.1e} pixels {other:.1e}  "
              f"{took:.1f} s and {reference_took:.1f} s (one thread, single images)  {'ok' if good else 'OUT OF BOUNDS'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Runs ../shared/bench/torch_step.py several times in one process, as benches/step.rs does its variants.

  torch_steps.py SCRIPT [--device cuda] [--dtype bf16] [--batch 4] [--variant plain --variant masks=0,batch=1 …] FLAGS…

FLAGS and `--device`, `--dtype`, `--batch` are what SCRIPT takes; a variant's `name` or `name=value` is a further `--name`
or `--name value`. Weights are made where they will be used, and in a step's peak of memory their making does not count,
as it does not in step.rs. A step that does not fit is a line with "out_of_memory", and then half the batch is tried. The
first line says what this PyTorch is, and which attention it takes.
"""

import argparse
import gc
import json
import runpy
import sys

import diffusers
import torch

from attention import default_attention


def made_on(device):
    """diffusers' model, with weights that are made on the device: on the CPU that takes longer than all steps."""

    class MadeOnDevice(diffusers.SD3Transformer2DModel):
        def __init__(self, *args, **kwargs):
            # Only while it is made: as a default device it would cost time in every call of a step.
            with torch.device(device):
                super().__init__(*args, **kwargs)

        def to(self, *args, **kwargs):
            moved = super().to(*args, **kwargs)
            if device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            return moved

    return MadeOnDevice


def flags(variant):
    """The command line of a variant."""
    found = []
    for change in variant.split(","):
        if change != "plain":
            name, *value = change.split("=", 1)
            found += [f"--{name}", *value]
    return found


def fits(script, arguments):
    """Runs the script; whether it fits into memory."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except torch.OutOfMemoryError:
        return False
    finally:
        sys.stdout.flush()
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--variant", action="append")
    args, rest = parser.parse_known_args()
    versions = default_attention(args.device, (args.batch, 24, 1178))
    print(json.dumps({"what": "torch", "work": "versions", **versions}), flush=True)
    diffusers.SD3Transformer2DModel = made_on(args.device)
    for variant in args.variant or ["plain"]:
        arguments = ["--device", args.device, "--dtype", args.dtype, *rest, *flags(variant)]
        sizes = argparse.ArgumentParser()
        sizes.add_argument("--batch", type=int, default=args.batch)
        batch = sizes.parse_known_args(flags(variant))[0].batch
        while True:
            done = fits(args.script, [*arguments, "--batch", str(batch)])
            # The model and torch.compile's graphs refer to themselves.
            torch._dynamo.reset()
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
            if done:
                break
            line = {"what": "torch", "variant": variant, "batch": batch, "out_of_memory": True}
            print(json.dumps({**line, "torch": torch.__version__}), flush=True)
            if batch < 2:
                break
            batch //= 2


if __name__ == "__main__":
    main()

"""PyTorch's attention by itself, the twin of attention.rs: forward, and backward by q, k and v, bf16, 64 values a head.

  attention.py [--device cuda] [--sizes 4x24x4250,1x24x1178] [--rounds N] [--repeats N] [--peak-side N]

Sizes are batch, heads and tokens. Prints JSON lines: what this PyTorch is and which attention it chooses by itself, the
rate of a large matrix product, and each of cuDNN's and FlashAttention-2's passes with its share of that rate; a backward
pass by the operations that it needs, five products. On a GPU its own events time; backends take turns.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD_DIM = 64
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def random(sizes, device, seed):
    """[batch, heads, tokens, head_dim] as diffusers has it: heads are part of a token's row."""
    batch, heads, tokens = sizes
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(batch, tokens, heads * HEAD_DIM, device=device, dtype=torch.bfloat16, generator=generator)
    return rows.view(batch, tokens, heads, HEAD_DIM).transpose(1, 2)


def inputs(sizes, device):
    """q, k and v, and the gradient of the output."""
    q, k, v, grad = (random(sizes, device, seed) for seed in range(4))
    return [t.detach().requires_grad_() for t in (q, k, v)], grad


def default_attention(device, sizes):
    """What PyTorch is and has, and which attention it chooses for such inputs: by name, and by what runs on the GPU."""
    (q, k, v), grad = inputs(sizes, device)
    found = {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "chosen": SDPBackend(torch._fused_sdp_choice(q, k, v)).name,
        "allowed": [
            name for name in ("cudnn", "flash", "mem_efficient", "math")
            if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
        ],
    }
    if device == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), grad)
            torch.cuda.synchronize()
        found["kernels"] = sorted({event.key for event in profile.key_averages()})
    return found


def timed(device, repeats, work):
    """Milliseconds of one `work`."""
    if device != "cuda":
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        return 1e3 * (time.perf_counter() - begin) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def rounds(args, work):
    """Median and least milliseconds of each named `work`; they take turns, and the first round warms up."""
    times = {name: [] for name in work}
    for _ in range(args.rounds + 1):
        for name in work:
            times[name].append(timed(args.device, args.repeats, work[name]))
    ordered = {name: sorted(of_one[1:]) for name, of_one in times.items()}
    return {name: (of_one[len(of_one) // 2], of_one[0]) for name, of_one in ordered.items()}


def passes(backend, q, k, v, grad):
    """Forward and backward under one backend, or an error where it does not take these inputs."""

    def forward():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    out = forward()
    return forward, lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sizes", default="4x24x4250,1x24x1178")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peak-side", type=int, default=8192)
    args = parser.parse_args()
    all_sizes = [tuple(map(int, sizes.split("x"))) for sizes in args.sizes.split(",")]
    print(json.dumps({"what": "torch", "work": "versions", **default_attention(args.device, all_sizes[0])}), flush=True)

    side = args.peak_side
    a, b = (torch.randn(side, side, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = rounds(args, {"matmul": lambda: a @ b})["matmul"][0]
    peak = 2 * side**3 / milliseconds / 1e9
    line = {"side": side, "ms": round(milliseconds, 4), "tflop_per_s": round(peak, 1)}
    print(json.dumps({"what": "torch", "work": "matmul", "dtype": "bf16", **line}), flush=True)

    for sizes in all_sizes:
        batch, heads, tokens = sizes
        (q, k, v), grad = inputs(sizes, args.device)
        line = {"what": "torch", "work": "attention", "batch": batch, "heads": heads, "tokens": tokens}
        line |= {"head_dim": HEAD_DIM, "dtype": "bf16"}
        work = {}
        for name, backend in BACKENDS.items():
            try:
                work[name, "forward"], work[name, "backward"] = passes(backend, q, k, v, grad)
            except RuntimeError as error:
                print(json.dumps({**line, "backend": name, "error": str(error).splitlines()[0]}), flush=True)
        for (name, kind), (median, least) in rounds(args, work).items():
            products = {"forward": 2, "backward": 5}[kind]
            rate = 2 * products * batch * heads * HEAD_DIM * tokens**2 / median / 1e9
            times = {"ms": round(median, 4), "ms_min": round(least, 4), "tflop_per_s": round(rate, 1)}
            times["share_of_matmul"] = round(rate / peak, 3)
            print(json.dumps({**line, "backend": name, "kernel": kind, **times}), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What nvcc made of the kernels: registers, local memory, and the instructions of each kernel's main loop.

    eval "$(../shared/cuda/toolchain.sh)"                # where there is no CUDA toolkit
    pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm   # where CUDA_HOME has no cuobjdump
    python3 benches/machine_code.py attention 'bf16_64' [--arch 80 --arch 90] [--sources src/ops]

Compiles the NAME.cu below src/ops as build.rs does and prints a row for each kernel whose name the pattern is found in. The
main loop is the one with the most multiplications: its instructions are counted once, whether a branch leads past them
or not, and loops inside it are listed by their length. Local memory is what did not fit into registers: its stores and
loads in the whole kernel, and in the main loop.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile


def tool(name):
    places = [os.path.join(os.environ[home], "bin") for home in ["CUDA_HOME", "CUDA_PATH"] if home in os.environ]
    places += [os.path.join(path, "nvidia/cu13/bin") for path in [sysconfig.get_path("purelib")]]
    found = shutil.which(name, path=os.pathsep.join(places + [os.environ.get("PATH", "")]))
    if not found:
        sys.exit(f"{name} is neither in CUDA_HOME nor on PATH nor among this Python's packages")
    return found


def output(*command):
    # cuobjdump runs nvdisasm, which lies beside it.
    path = os.path.dirname(command[0]) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


class Kernel:
    """A kernel's instructions, as (address, text)."""

    def __init__(self, text):
        self.name = text.split()[0]
        found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", text)
        self.instructions = [(int(address, 16), instruction.strip()) for address, instruction in found]

    def loops(self):
        """(first, last) address of every loop: what a branch back jumps over."""
        for address, instruction in self.instructions:
            target = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", instruction)
            if target and int(target[1], 16) < address:
                yield int(target[1], 16), address

    def count(self, loop, *names):
        first, last = loop
        inside = [text for address, text in self.instructions if first <= address <= last]
        return sum(not names or any(re.search(rf"\b{name}\b", text) for name in names) for text in inside)

    def main_loop(self):
        most = max(self.loops(), key=lambda loop: self.count(loop, "HMMA", "FFMA"), default=None)
        return most if most and self.count(most, "HMMA", "FFMA") else None


def rows(source, shared, pattern, arch, nvcc, cuobjdump):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        output(nvcc, "-cubin", "-O3", "-std=c++17", "-I", shared, f"-arch=sm_{arch}", source, "-o", cubin.name)
        code = output(cuobjdump, "-sass", cubin.name).split("Function : ")[1:]
        usage = dict(re.findall(r"Function (\w+):\s*\n\s*(REG.*)", output(cuobjdump, "-res-usage", cubin.name)))
    whole = (0, 1 << 40)
    for kernel in sorted(map(Kernel, code), key=lambda kernel: kernel.name):
        if not re.search(pattern, kernel.name):
            continue
        registers, stack = (re.search(rf"{name}:(\d+)", usage[kernel.name])[1] for name in ["REG", "STACK"])
        local = [f"{kernel.count(whole, name)}" for name in ["STL", "LDL"]]
        cells = [kernel.name, f"sm_{arch}", registers, stack, "/".join(local)]
        main = kernel.main_loop()
        if main:
            counts = [kernel.count(main), kernel.count(main, "HMMA", "FFMA"), kernel.count(main, "LDGSTS")]
            inner = [kernel.count(loop) for loop in kernel.loops() if main[0] < loop[0] and loop[1] < main[1]]
            cells += [str(count) for count in counts]
            cells += [", ".join(map(str, inner)) or "none"]
            cells += ["/".join(str(kernel.count(main, name)) for name in ["STL", "LDL"])]
        yield cells + ["–"] * (10 - len(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a .cu file without its ending")
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression for kernels' names")
    parser.add_argument("--arch", action="append", type=int)
    parser.add_argument("--sources", default=os.path.join(os.path.dirname(__file__), "../src/ops"))
    args = parser.parse_args()
    nvcc, cuobjdump = tool("nvcc"), tool("cuobjdump")
    print("| kernel | GPU | registers | stack, bytes | local stores/loads | main loop | multiplications | copies to shared "
          "memory | loops inside | local stores/loads inside |")
    print("| --- " * 10 + "|")
    source = next(iter(glob.glob(f"{args.sources}/**/{args.name}.cu", recursive=True)), None)
    if not source:
        sys.exit(f"there is no {args.name}.cu below {args.sources}")
    shared = os.path.join(args.sources, "kernels/cuda")
    for arch in args.arch or [80, 90]:
        for row in rows(source, shared, args.pattern, arch, nvcc, cuobjdump):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()

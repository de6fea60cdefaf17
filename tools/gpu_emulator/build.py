"""Builds the emulated GPU into target/gpu_emulator: libraries in the place of CUDA's, and one for each .cu file.

Needs g++ and, for the names of CUDA's functions, the crate cudarc (cargo fetch).
"""

import glob
import os
import re
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
KERNELS = os.path.join(ROOT, "src/**")
OUT = os.path.join(ROOT, "target/gpu_emulator")
# Library, its name to the loader, cudarc's module, how its functions' names begin, what is emulated of it.
LIBRARIES = [
    ("cuda", "libcuda.so.1", "driver", r"cu[A-Z]", "driver.cpp"),
    ("cublas", "libcublas.so.13", "cublas", r"cublas[^L]", "cublas.cpp"),
    ("cublasLt", "libcublasLt.so.13", "cublaslt", r"cublasLt", "cublaslt.cpp"),
    ("curand", "libcurand.so.10", "curand", r"curand", None),
    ("nvrtc", "libnvrtc.so.13", "nvrtc", r"nvrtc", None),
]
KINDS = {"long": "l", "int": "i", "float": "f"}


def compile(*arguments):
    subprocess.run(["g++", "-std=c++20", "-w", "-fPIC", "-shared", *arguments], check=True)


def functions(module, pattern):
    """Names of all functions that cudarc declares of a library."""
    crate = sorted(glob.glob(os.path.expanduser("~/.cargo/registry/src/*/cudarc-*")))[-1]
    text = "".join(open(file).read() for file in glob.glob(f"{crate}/src/{module}/sys/*.rs"))
    return sorted(set(re.findall(rf"\bfn ({pattern}[A-Za-z0-9_]*)", text)))


def build_library(name, soname, module, pattern, source):
    """The emulated functions, and for all others one that says that it is not there."""
    emulated = re.findall(r"^int (\w+)\(", open(f"{HERE}/{source}").read(), re.M) if source else []
    rest = f"{OUT}/{name}_rest.c"
    with open(rest, "w") as file:
        file.write("#include <stdio.h>\n")
        for function in functions(module, pattern):
            if function not in emulated:
                result = 0 if source is None else 801
                says = "" if source is None else f'fprintf(stderr, "gpu_emulator: no {function}\\n"); '
                file.write(f"int {function}(void) {{ {says}return {result}; }}\n")
    subprocess.run(["gcc", "-w", "-fPIC", "-c", rest, "-o", f"{rest}.o"], check=True)
    sources = [f"{HERE}/{source}"] if source else []
    compile("-O2", f"-Wl,-soname,{soname}", *sources, f"{rest}.o", "-ldl", "-o", f"{OUT}/{soname}")


def kernel_signatures(source, folder):
    """(name, kinds of arguments) of each kernel: l for an address or a long, i for an int, f for a float."""
    command = ["g++", "-std=c++20", "-E", "-P", f"-I{folder}", f"-I{HERE}", source]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, arguments in re.findall(r'extern "C"\s+void\s+(\w+)\s*\(([^)]*)\)', text):
        if name != "emulate":
            kinds = ["l" if "*" in argument else KINDS[argument.split()[0]] for argument in arguments.split(",")]
            yield name, "".join(kinds)


def build_kernels(file, folder):
    """A .cu file as a library of functions that `emulate` runs."""
    name = os.path.splitext(os.path.basename(file))[0]
    source = f"{folder}/{name}.cpp"
    text = open(file).read().replace("extern __shared__", "extern")
    open(source, "w").write(text)
    library = f"lib{name}.so"
    compile("-O1", f"-I{folder}", f"-I{HERE}", source, f"{HERE}/device.cpp", "-o", f"{OUT}/{library}")
    return [f"{library} {kernel} {kinds}\n" for kernel, kinds in kernel_signatures(source, folder)]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    folder = f"{OUT}/kernels"
    os.makedirs(folder)
    for header in glob.glob(f"{KERNELS}/*.cuh", recursive=True):
        shutil.copy(header, folder)
    # The instructions are emulated; bf16 comes with them.
    shutil.copy(f"{HERE}/mma.cuh", folder)
    open(f"{folder}/cuda_bf16.h", "w").write('#pragma once\n#include "device.h"\n')
    files = sorted(glob.glob(f"{KERNELS}/*.cu", recursive=True))
    lines = [line for file in files for line in build_kernels(file, folder)]
    open(f"{OUT}/kernels.txt", "w").writelines(lines)
    for library in LIBRARIES:
        build_library(*library)
    print(f"{len(lines)} kernels, {len(LIBRARIES)} libraries in {OUT}")


if __name__ == "__main__":
    main()

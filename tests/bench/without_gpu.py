"""What ONNX Runtime's CUDA provider decides, on a machine without a GPU: its table of kernels, and where it places nodes.

    python -m venv gpu && gpu/bin/pip install onnxruntime-gpu -e ".[test]"    # instead of onnxruntime; Linux, with gcc and nm
    gpu/bin/python tests/bench/without_gpu.py table > graphattr/cuda_kernels.txt
    gpu/bin/python tests/bench/without_gpu.py run -m pytest tests/unit/test_cuda_kernels.py tests/unit/test_session.py

The libraries of CUDA are replaced by hollow ones, made of the names that the provider asks for. Sessions then open, and all
that is decided on opening them is real; what they compute is nothing. Convolutions do not run, for lack of cuDNN.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

CUDA, DOMAINS = "CUDAExecutionProvider", {"": "", "com.microsoft": "com.microsoft."}
SHORT = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16"}
KNOWN = {"bf16", "bool", "f16", "f32", "f64", *(f"{s}{b}" for s in "iu" for b in (8, 16, 32, 64))}
OPEN = 2**31 - 1
HEAD = """# Kernels of ONNX Runtime {version} on CUDA: operator, the versions of its definition that they serve, types.
# "13+": only the definition since 13, as kernel_registry.cc matches it. all: bf16 bool f16 f32 f64 i8-i64 u8-u64.
# Made by tests/bench/without_gpu.py; the same source as docs/OperatorKernels.md (float8 and int4 are left out).
"""
GIVES = {  # what functions must do beyond returning 0, which is success; A names the first argument, B the second
    "cudaGetDeviceCount": "*(int *)A = 1;", "cudaGetDevice": "*(int *)A = 0;",
    **dict.fromkeys(("cudaDriverGetVersion", "cudaRuntimeGetVersion"), "*(int *)A = 13000;"),
    **dict.fromkeys(("cudaGetErrorName", "cudaGetErrorString"), 'return (long)"hollow";'),
    "cudaMemGetInfo": "*(size_t *)A = *(size_t *)B = 1ull << 36;",
    **dict.fromkeys(("cudaMalloc", "cudaMallocHost", "cudaHostAlloc"), "*(void **)A = calloc(1, (size_t)B + 256);"),
    **dict.fromkeys(("cudaFree", "cudaFreeHost"), "free(A);"),
    **dict.fromkeys(("cudaMemcpy", "cudaMemcpyAsync"), "memcpy(A, B, C);"),
    **dict.fromkeys(("cudaMemset", "cudaMemsetAsync"), "memset(A, (int)(long)B, C);"),
    **dict.fromkeys(("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaEventCreateWithFlags",
                     "cudnnCreate", "cublasCreate_v2", "cublasLtCreate", "cudaMemPoolCreate"), "*(void **)A = malloc(64);"),
    "__cudaRegisterFatBinary": "static void *q; return (long)&q;",
    # cudaDeviceProp of CUDA 13: name, memory, shared memory, registers, warp, threads, grid, compute capability 9.0, processors
    "cudaGetDeviceProperties": """memset(A, 0, 900); strcpy(A, "hollow"); char *p = A; *(size_t *)(p + 288) = 1ull << 36;
        *(size_t *)(p + 296) = 49152; *(int *)(p + 304) = 65536; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024;
        for (int i = 0; i < 3; i++) { *(int *)(p + 324 + 4 * i) = 1024; *(int *)(p + 336 + 4 * i) = 65535; }
        *(int *)(p + 360) = 9; *(int *)(p + 384) = *(int *)(p + 388) = 132;""",
}


def hollow(folder: Path) -> None:
    """Write a library of empty functions for each of NVIDIA's that the providers of the installed ONNX Runtime need."""
    import onnxruntime

    capi, names = Path(onnxruntime.__file__).parent / "capi", defaultdict[str, set[str]](set)
    for provider in ("cuda", "tensorrt"):
        library = capi / f"libonnxruntime_providers_{provider}.so"
        if not library.exists():
            sys.exit(f"{library} is missing: this is no onnxruntime-gpu")
        needed = [line.split("[")[1][:-1] for line in _read("readelf", "-d", library) if "(NEEDED)" in line]
        ours = [n for n in needed if n.startswith(("libcu", "libnv"))]
        for line in _read("nm", "-D", "--undefined-only", library):
            name, _, version = line.split()[-1].partition("@")
            if version in ours:
                names[version].add(name)
            elif not version and name.startswith(("cu", "create", "getInfer", "getPlugin")):
                for n in ours:
                    names[n].add(name)
        for n in ours:
            names[n] |= set()
    for library_name, functions in names.items():
        body = "\n".join(f"long {f}(void *A, void *B, size_t C) {{ {GIVES.get(f, '')} return 0; }}" for f in sorted(functions))
        source, script = folder / "hollow.c", folder / "hollow.map"
        source.write_text(f"#include <stdlib.h>\n#include <string.h>\n{body}\n")
        script.write_text(f"{library_name} {{ global: *; }};")
        versioned = [] if library_name.startswith(("libcuda.", "libnv")) else [f"-Wl,--version-script={script}"]
        made = ["gcc", "-w", "-shared", "-fPIC", str(source), "-o", str(folder / library_name), f"-Wl,-soname,{library_name}"]
        subprocess.run([*made, *versioned], check=True)


def _read(*command: Any) -> list[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout.splitlines()


def table() -> str:
    """The lines of graphattr/cuda_kernels.txt."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    found = {(k.domain, k.op_name, *k.version_range, json.dumps({n: sorted(t) for n, t in k.type_constraints.items()}))
             for k in get_all_opkernel_def() if k.provider == CUDA and k.domain in DOMAINS}
    kernels: dict[tuple[str, int, int], list[dict[str, set[str]]]] = defaultdict(list)
    for domain, op, first, last, text in sorted(found):
        types = {n: {_short(t) for t in ts} & KNOWN for n, ts in json.loads(text).items()}
        types = {n: t for n, t in types.items() if t}
        rows = kernels[DOMAINS[domain] + op, first, last]
        for row in rows:  # kernels that differ in one type are one line
            apart = [n for n in types if row.get(n) != types[n]]
            if row.keys() == types.keys() and len(apart) <= 1:
                row.update({n: row[n] | types[n] for n in apart})
                break
        else:
            rows.append(types)
    order = sorted((op.startswith("com."), op, first, last) for op, first, last in kernels)
    lines = [line for _, *key in order for line in sorted(_line(*key, types) for types in kernels[tuple(key)])]
    return HEAD.format(version=onnxruntime.__version__) + "".join(f"{line}\n" for line in lines)


def _line(op: str, first: int, last: int, types: dict[str, set[str]]) -> str:
    versions = f"{first}+" if last == OPEN else str(first) if last == first else f"{first}-{last}"
    return " ".join([op, versions, *(f"{n}={'all' if t >= KNOWN else ','.join(sorted(t))}" for n, t in sorted(types.items()))])


def _short(name: str) -> str:
    bare = name.removeprefix("tensor(").removesuffix(")")
    return SHORT.get(bare, bare.replace("uint", "u").replace("int", "i"))


def main(words: list[str]) -> int:
    if words[:1] not in (["table"], ["run"]):
        sys.exit(__doc__)
    if os.environ.get("HOLLOW_CUDA"):
        sys.stdout.write(table())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        hollow(Path(folder))
        path = os.pathsep.join(p for p in (folder, os.environ.get("LD_LIBRARY_PATH", "")) if p)
        command = [sys.executable, __file__, "table"] if words[0] == "table" else [sys.executable, *words[1:]]
        return subprocess.run(command, env={**os.environ, "LD_LIBRARY_PATH": path, "HOLLOW_CUDA": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

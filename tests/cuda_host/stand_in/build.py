"""Builds libraries that stand in for CUDA's, for ONNX Runtime's CUDA provider to be loaded and used without a GPU.

    python tests/cuda_host/stand_in/build.py PROVIDER INCLUDE TARGET

`cudart.c` and `cudnn.c` are the parts that do something. Of the others (cuBLAS, cuRAND, the driver) each function that
the provider asks for is one that notes its name and returns success.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
# What must be given back besides success.
PROTOTYPES = {
    r"cublas(Lt)?GetStatus(Name|String)": 'const char *{name}(int e) {{ return e ? "an error" : "no error"; }}',
    r"(cublas|cudnn)SetStream(_v2)?": (
        'int {name}(void *handle, void *stream) {{ stand_in_say("stream %p", stream); return 0; }}'
    ),
    r"cublasGetMathMode": "int {name}(void *handle, int *mode) {{ *mode = 0; return 0; }}",
    r"cublasLtMatmulAlgoGetHeuristic": (
        "int {name}(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int n, char *results, int *found)"
        " {{ memset(results, 0, 96); *found = 1; return 0; }}"
    ),
    r"cudnn\w+(WorkspaceSize|IndicesSize)": (
        "int {name}(void *h, void *d, void *a, void *b, size_t *bytes) {{ *bytes = 1024; return 0; }}"
    ),
    r"(cublas|cublasLt|cudnn|curand)\w*Create\w*": "int {name}(void **made) {{ *made = calloc(1, 256); return 0; }}",
    r"\w*(Destroy|Set|Get)\w*": "int {name}(void) {{ return 0; }}",
    r"\w+": 'int {name}(void) {{ stand_in_say("library {name}"); return 0; }}',
}
HEAD = "#include <stdlib.h>\n#include <string.h>\nvoid stand_in_say(const char *format, ...);\n"


def build(provider: Path, include: Path, target: Path) -> None:
    """Write the libraries that `libonnxruntime_providers_cuda.so` needs into `target`.

    Args:
        provider: the library.
        include: the folder of cuda_runtime_api.h.
        target: made if it is not there.

    Raises:
        CalledProcessError: the compiler failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    needed = _output("readelf", "-d", str(provider))
    asked = [line.split()[-1] for line in _output("nm", "-D", "--undefined-only", str(provider)).splitlines()]
    runtime = target / "libcudart.so.13"
    _compile(runtime, [HERE / "cudart.c"], f"-I{include}", *_versions(runtime))
    for name in re.findall(r"\[(lib(?:cublas|curand)\S*?\.so\.\d+)\]", needed):
        library = target / name
        functions = [symbol.split("@")[0] for symbol in asked if symbol.endswith(f"@{name}")]
        _compile(library, [_source(library, functions)], str(runtime), *_versions(library))
    driver = [symbol for symbol in asked if re.fullmatch(r"cu[A-Z]\w+", symbol)]
    library = target / "libcuda.so.1"
    _compile(library, [_source(library, driver)], str(runtime))
    # cuDNN is opened at run time: its names stand among the provider's strings.
    strings = set(re.findall(rb"\x00(cudnn[A-Z]\w+)(?=\x00)", provider.read_bytes()))
    written = set(re.findall(r"\b(cudnn[A-Z]\w+)\(", (HERE / "cudnn.c").read_text()))
    library = target / "libcudnn.so.9"
    others = sorted({name.decode() for name in strings} - written)
    _compile(library, [HERE / "cudnn.c", _source(library, others)], str(runtime))


def _source(library: Path, functions: Iterable[str]) -> Path:
    lines = []
    for name in sorted(set(functions)):
        pattern = next(pattern for pattern in PROTOTYPES if re.fullmatch(pattern, name))
        lines.append(PROTOTYPES[pattern].format(name=name))
    source = library.with_suffix(".c")
    source.write_text(HEAD + "\n".join(lines) + "\n")
    return source


def _versions(library: Path) -> list[str]:
    """CUDA's libraries version all their symbols with their own name."""
    script = library.with_suffix(".map")
    script.write_text(f"{library.name} {{ global: *; }};\n")
    return [f"-Wl,--version-script={script}"]


def _compile(library: Path, sources: list[Path], *options: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([*command, *map(str, sources), *options], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:4]))

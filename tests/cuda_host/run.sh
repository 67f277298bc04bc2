#!/usr/bin/env bash
# Runs ONNX Runtime's own CUDA provider without a GPU, over libraries that stand in for CUDA's: `make test-cuda-host`.
# Arguments go to pytest.
#
#   PYTHON   the interpreter with what the server, the exporter and the tests need
#
# Exit status: 0 passed, 77 there is no compiler or no wheel to be had here, else failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
FOLDER=$PWD/.cache/cuda-host

cannot() {
    printf '\n** ONNX RUNTIME ON CUDA WAS NOT TESTED: %s **\n' "$1" >&2
    exit 77
}
locked() { sed -n "s/^$1==\([^ ]*\).*/\1/p" requirements/gpu.lock; }

command -v gcc >/dev/null || cannot "there is no gcc to build the stand-in with"
runtime=$(locked nvidia-cuda-runtime)
wheels=("onnxruntime-gpu==$(locked onnxruntime-gpu)" "nvidia-cuda-runtime==$runtime" "nvidia-cuda-crt==$runtime")
if [ "$(cat "$FOLDER/made-of" 2>/dev/null)" != "${wheels[*]}" ]; then
    rm -rf "$FOLDER"
    # Beside the environment and not in it: it is another build of the module onnxruntime. The last two are headers.
    "$PYTHON" -m pip install --quiet --no-deps --target "$FOLDER/packages" "${wheels[@]}" ||
        cannot "its wheels (${wheels[*]}) cannot be had here"
    echo "${wheels[*]}" >"$FOLDER/made-of"
fi
provider=$FOLDER/packages/onnxruntime/capi/libonnxruntime_providers_cuda.so
"$PYTHON" tests/cuda_host/stand_in/build.py "$provider" "$FOLDER/packages/nvidia/cu13/include" "$FOLDER/lib"
PYTHONPATH=$FOLDER/packages LD_LIBRARY_PATH=$FOLDER/lib "$PYTHON" -m pytest --quiet "$@" tests/cuda_host/check_onnxruntime_cuda.py

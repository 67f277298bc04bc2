#!/bin/sh
# Takes from a serving environment what the server never loads, then compiles the rest to bytecode.
# Usage: slim.sh VENV. What must stay is proven by `make test-docker`, which serves from the result.
set -eu
site=$(echo "$1"/lib/python3*/site-packages)

# OpenVINO reads ONNX graphs and its own cache, and runs on CPUs: other devices, other formats and the tools to
# convert from them can go.
libs="$site/openvino/libs"
if [ -d "$libs" ]; then
    rm -f "$libs"/libopenvino_intel_gpu_plugin.so "$libs"/libopenvino_intel_npu_plugin* "$libs"/cache.json
    for format in jax gguf paddle pytorch tensorflow tensorflow_lite; do
        rm -f "$libs"/libopenvino_"$format"_frontend.so*
    done
    rm -rf "$site"/openvino/include "$site"/openvino/cmake "$site"/openvino/tools
fi
# ONNX Runtime's converters and quantisers are Python programs for export time.
rm -rf "$site"/onnxruntime/transformers "$site"/onnxruntime/quantization "$site"/onnxruntime/tools \
       "$site"/onnxruntime/datasets

find "$site" -type d \( -name tests -o -name test -o -name include \) -prune -exec rm -rf {} +
find "$site" -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' -o -name '*.a' -o -name '*.map' \) -delete
rm -rf "$1"/include "$1"/share
python3 -m compileall -q "$site"

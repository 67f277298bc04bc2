"""Every name of TensorRT that this project uses, held against the real Python bindings; no GPU is needed for that."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

import app.engines.tensorrt
import app.engines.trt
import export.tensorrt_plan

# What stands for what in those modules. A receiver that is not listed here is checked to be none of TensorRT's.
CLASSES = {
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._contexts[size]": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "inspector": "EngineInspector",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser.get_error(index)": "ParserError",
    "config": "IBuilderConfig",
    "config.get_timing_cache()": "ITimingCache",
    "profile": "IOptimizationProfile",
    "layer": "IAttentionInputLayer",
    "layer.attention": "IAttention",
    "output": "ITensor",
    "trt": "",
    "trt.BuilderFlag": "BuilderFlag",
    "trt.NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
    "trt.ProfilingVerbosity": "ProfilingVerbosity",
    "trt.LayerType": "LayerType",
    "trt.DataType": "DataType",
    "trt.DynamicShapesKernelSpecializationStrategy": "DynamicShapesKernelSpecializationStrategy",
    "trt.ExecutionContextAllocationStrategy": "ExecutionContextAllocationStrategy",
    "trt.LayerInformationFormat": "LayerInformationFormat",
    "trt.ILogger": "ILogger",
}
MODULES = [app.engines.tensorrt, app.engines.trt, export.tensorrt_plan]
# Of tensorrt_rtx alone, and used for it alone.
RTX_ONLY = {
    "ComputeCapability",
    "num_compute_capabilities",
    "set_compute_capability",
    "DynamicShapesKernelSpecializationStrategy",
    "dynamic_shapes_kernel_specialization_strategy",
    "EAGER",
}


def names_used() -> set[tuple[str, str]]:
    """Class and attribute, wherever one of the receivers is read or written."""
    found = set()
    for module in MODULES:
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in CLASSES:
                found.add((CLASSES[ast.unparse(node.value)], node.attr))
    found.discard(("IAttentionInputLayer", "__class__"))
    return found


def test_the_names_are_found_in_the_source() -> None:
    used = names_used()
    assert {
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "create_execution_context"),
        ("Builder", "build_serialized_network"),
        ("IAttention", "decomposable"),
        ("", "OnnxParser"),
    } <= used
    assert len(used) > 45


@pytest.mark.parametrize(("owner", "name"), sorted(names_used()))
def test_tensorrt_rtx_has_the_name(owner: str, name: str) -> None:
    thing: Any = getattr(tensorrt_rtx, owner) if owner else tensorrt_rtx
    assert hasattr(thing, name), f"{owner}.{name}"


def test_tensorrt_has_the_names_too() -> None:
    # Its bindings cannot be imported without its libraries, which no package index has; names of methods and members
    # are strings in their shared object (one may be the end of a longer one).
    [library] = [
        file for file in importlib.metadata.files("tensorrt-cu13-bindings") or [] if file.name == "tensorrt.so"
    ]
    strings = Path(str(library.locate())).read_bytes()
    of_python = {"__version__"}
    absent = {name for _, name in names_used() if name not in of_python and name.encode() + b"\0" not in strings}
    assert absent == RTX_ONLY


TWO_ENGINES = """
import gc
import tensorrt_rtx
from app.engines.trt import make_logger

first = tensorrt_rtx.Runtime(make_logger(tensorrt_rtx, []))
second = tensorrt_rtx.Runtime(make_logger(tensorrt_rtx, []))
del first
gc.collect()
kept = [bytearray(64) for _ in range(10_000)]  # what was freed is used again
tensorrt_rtx.get_plugin_registry().load_library("/nowhere.so")  # a message of no object
"""


def test_a_message_of_tensorrts_own_finds_a_logger_after_the_first_engine_has_gone() -> None:
    ran = subprocess.run([sys.executable, "-c", TWO_ENGINES], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr  # it was killed by SIGSEGV

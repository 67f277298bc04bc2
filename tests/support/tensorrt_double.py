"""TensorRT's Python bindings as far as the engine uses them, over ONNX Runtime: a "plan" is an ONNX file's bytes.

Device memory is the host's (`host_device.HostDevice`), so addresses can be read. `test_tensorrt_bindings.py` holds the
names that the engine uses against the real bindings.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np
import onnxruntime as ort

__version__ = "11.9.0.1"


class DataType(enum.Enum):
    UINT8 = 5
    FLOAT = 0


class LayerInformationFormat(enum.Enum):
    JSON = 1


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise AssertionError


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
        try:
            return CudaEngine(ort.InferenceSession(plan, providers=["CPUExecutionProvider"]), self._logger)
        except Exception:
            self._logger.log(Severity.ERROR, "the magic tag does not match")
            return None


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaEngine:
    def __init__(self, session: ort.InferenceSession, logger: ILogger) -> None:
        self.session = session
        self.logger = logger
        # As `hiera-export tensorrt` leaves them: the rows, the probabilities, and features where the graph has them.
        tensors = (*session.get_inputs(), *session.get_outputs())
        self._tensors = {each.name: each for each in tensors if each.name != "logits"}
        self.num_io_tensors = len(self._tensors)
        self.device_memory_size_v2 = 4096
        self.profiles = [(1, 1, 2), (3, 8, 8)]
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self._tensors[name].shape[1:])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if self._tensors[name].type == "tensor(uint8)" else DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(rows, *self._tensors[name].shape[1:]) for rows in self.profiles[profile]]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(
        self, how: RuntimeConfig | ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> ExecutionContext:
        return ExecutionContext(self, how)

    def create_engine_inspector(self) -> Any:
        class Inspector:
            def get_engine_information(self, form: LayerInformationFormat) -> str:
                return '{"Layers": ["fused"]}'

        return Inspector()


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class RuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class ExecutionContext:
    def __init__(self, engine: CudaEngine, how: RuntimeConfig | ExecutionContextAllocationStrategy) -> None:
        self._engine = engine
        self.runtime_config = how if isinstance(how, RuntimeConfig) else None
        self.strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        self.memory = 0
        self.profile = 0
        self.streams: set[int] = set()  # that it was given
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self.fails_with = ""

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        assert size >= self._engine.device_memory_size_v2
        self.memory = memory

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in ("rows", "probabilities", "features")

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not self._shape, "shapes are those of the profile before"
        self.streams.add(stream)
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.profiles[self.profile]
        if not smallest <= shape[0] <= largest:
            self._engine.logger.log(Severity.ERROR, f"batch {shape[0]} is outside of the profile")
            return False
        assert self._shape in ((), shape), "what was recorded of this context is undefined from now on"
        self._shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.add(stream)
        if self.fails_with:
            self._engine.logger.log(Severity.ERROR, self.fails_with)
            return False
        assert self.memory, "no device memory was set"
        nbytes = int(np.prod(self._shape))
        memory = (ctypes.c_uint8 * nbytes).from_address(self._addresses["rows"])
        rows = np.ctypeslib.as_array(memory).reshape(self._shape)
        outputs = [name for name in self._addresses if name != "rows"]
        for name, answers in zip(outputs, self._engine.session.run(outputs, {"rows": rows}), strict=True):
            ctypes.memmove(self._addresses[name], answers.ctypes.data, answers.nbytes)
        return True

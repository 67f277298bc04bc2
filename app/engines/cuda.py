"""NVIDIA GPUs through CUDA's runtime (the package cuda-bindings), and in plain words why there is none.

CUDA calls are cheap and asynchronous; what a kernel did wrong is reported by a later call.
"""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engines.device import HostBytes
from app.errors import EngineError, EngineLost, EngineOutOfMemory, EngineUnavailable

INSTALL = "pip install 'hiera-serve[gpu]'"
_SUCCESS = 0
_OUT_OF_MEMORY = 2
_INSUFFICIENT_DRIVER = 35
_NO_DEVICE = 100
# After these every call fails, until "the process is terminated and relaunched" (CUDA's runtime API, cudaError_t).
_LOST = frozenset(
    {
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchTimeout",
        "cudaErrorAssert",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorContained",
        "cudaErrorTensorMemoryLeak",
        "cudaErrorExternalDevice",
    }
)
_alone: dict[int, AbstractContextManager[object]] = {}  # by device


def why_no_gpu() -> str | None:
    """What is missing for CUDA here, and the remedy; None when there is a GPU."""
    try:
        gpu_count()
    except EngineUnavailable as error:
        return str(error)
    return None


def gpu_count() -> int:
    """How many GPUs this process may use, at least 1.

    Raises:
        EngineUnavailable: none; the message says whether the package, the driver or the GPU is missing.
        EngineLost: there was one, until something failed on it.
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        raise EngineUnavailable(f"the package cuda-bindings is not installed: {INSTALL}")
    from cuda.bindings import runtime

    error, count = runtime.cudaGetDeviceCount()
    if int(error) == _SUCCESS and count:
        return int(count)
    if int(error) == _INSUFFICIENT_DRIVER:
        driver = runtime.cudaDriverGetVersion()[1]
        if not driver:
            raise EngineUnavailable(
                "there is no NVIDIA driver here: install it on the host, and start a container with --gpus all "
                "(`nvidia-smi` shows when it is there)"
            )
        raise EngineUnavailable(
            f"the NVIDIA driver is for CUDA {_version(driver)} and too old for the runtime's "
            f"{_version(runtime.cudaRuntimeGetVersion()[1])}, for which ONNX Runtime and TensorRT are built too: "
            "update the driver"
        )
    if int(error) in (_SUCCESS, _NO_DEVICE):
        raise EngineUnavailable(
            "the NVIDIA driver shows this process no GPU: start the container with --gpus all, and look at "
            "CUDA_VISIBLE_DEVICES and `nvidia-smi`"
        )
    if error.name in _LOST:
        raise EngineLost(f"CUDA: {_say(runtime, error)}")
    raise EngineUnavailable(f"CUDA does not start: {_say(runtime, error)}; `nvidia-smi` may say more")


def device_index(device: str) -> int:
    """The number in "cuda:N"; "cuda" is the first."""
    return int(device.partition(":")[2] or 0)


class CudaDevice:
    """One GPU; a `Device`.

    Args:
        device: "cuda" or "cuda:N".

    Raises:
        EngineUnavailable: it is not there; the message says what is missing.
    """

    memory = "cuda"

    def __init__(self, device: str) -> None:
        self.index = device_index(device)
        count = gpu_count()
        if self.index >= count:
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise EngineUnavailable(f"there is no GPU {device} here, only {there}: see HIERA_ENGINE_DEVICE")
        from cuda.bindings import runtime

        self._cuda = runtime
        self.alone = _alone.setdefault(self.index, threading.RLock())
        self.name = f"cuda:{self.index}"
        properties = self._call(runtime.cudaGetDeviceProperties(self.index))
        self.architecture = f"sm_{properties.major}{properties.minor}"
        title = bytes(properties.name).partition(b"\0")[0].decode()
        self.description = f"{title}, {properties.totalGlobalMem / 2**30:.0f} GiB"

    def use(self) -> None:
        self._call(self._cuda.cudaSetDevice(self.index))

    def allocate(self, nbytes: int) -> int:
        return int(self._call(self._cuda.cudaMalloc(nbytes)))

    def free(self, address: int) -> None:
        self._call(self._cuda.cudaFree(address))

    def pinned(self, nbytes: int) -> HostBytes:
        address = int(self._call(self._cuda.cudaHostAlloc(nbytes, self._cuda.cudaHostAllocDefault)))
        return np.asarray(_Pinned(address, nbytes, self._cuda.cudaFreeHost))

    def stream(self) -> int:
        # Non-blocking: a stream that the default one does not hold up.
        return int(self._call(self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)))

    def end_stream(self, stream: int) -> None:
        self._call(self._cuda.cudaStreamDestroy(stream))

    def upload(self, target: int, source: NDArray[Any], stream: int) -> None:
        self._copy(target, source.ctypes.data, source.nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, target: NDArray[Any], source: int, stream: int) -> None:
        self._copy(target.ctypes.data, source, target.nbytes, "cudaMemcpyDeviceToHost", stream)

    def move(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToDevice", stream)

    def event(self) -> int:
        return int(self._call(self._cuda.cudaEventCreateWithFlags(self._cuda.cudaEventDisableTiming)))

    def end_event(self, event: int) -> None:
        self._call(self._cuda.cudaEventDestroy(event))

    def mark(self, event: int, stream: int) -> None:
        self._call(self._cuda.cudaEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        self._call(self._cuda.cudaStreamWaitEvent(stream, event, 0))

    def synchronise(self, stream: int) -> None:
        self._call(self._cuda.cudaStreamSynchronize(stream))

    def record(self, work: Callable[[], None], stream: int) -> int:
        # What is garbage may be pinned memory, which cannot be given back by a thread that records.
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._record(work, stream)
        finally:
            if collects:
                gc.enable()

    def _record(self, work: Callable[[], None], stream: int) -> int:
        # Of this thread alone: another instance may allocate on the device meanwhile.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(stream)  # or the stream is lost; what failed is raised
            raise
        graph = self._call(self._cuda.cudaStreamEndCapture(stream))
        try:
            return int(self._call(self._cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            self._call(self._cuda.cudaGraphDestroy(graph))

    def replay(self, recorded: int, stream: int) -> None:
        self._call(self._cuda.cudaGraphLaunch(recorded, stream))

    def end_recorded(self, recorded: int) -> None:
        self._call(self._cuda.cudaGraphExecDestroy(recorded))

    def _copy(self, target: int, source: int, nbytes: int, kind: str, stream: int) -> None:
        self._call(self._cuda.cudaMemcpyAsync(target, source, nbytes, getattr(self._cuda.cudaMemcpyKind, kind), stream))

    def _call(self, answer: tuple[Any, ...]) -> Any:
        """What a call gave, without its status.

        Raises EngineOutOfMemory, EngineLost or EngineError for a status but success.
        """
        error = answer[0]
        if int(error) == _OUT_OF_MEMORY:
            self._cuda.cudaGetLastError()  # it would be reported by the next kernel again
            raise EngineOutOfMemory(f"{self.name} has no memory left")
        if int(error) != _SUCCESS:
            kind = EngineLost if error.name in _LOST else EngineError
            raise kind(f"{self.name}: {_say(self._cuda, error)}")
        return answer[1] if len(answer) > 1 else None


class _Pinned:
    """Memory of `cudaHostAlloc` as numpy takes it; freed when the last array over it has gone."""

    def __init__(self, address: int, nbytes: int, free: Callable[[int], object]) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}
        self._address = address
        self._free = free

    def __del__(self) -> None:
        self._free(self._address)


def _say(runtime: Any, error: Any) -> str:
    return f"{runtime.cudaGetErrorName(error)[1].decode()} ({runtime.cudaGetErrorString(error)[1].decode()})"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"

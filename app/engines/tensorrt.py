"""TensorRT: runs a plan that `hiera-export tensorrt` built for this very GPU and release.

Each batch size has an execution context of its own, whose shape and bindings are set once: a CUDA graph that was
recorded of a context does not outlive a change of its shape. The contexts run one after the other, and so share memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.engines.base import FEATURES, PROBABILITIES, EngineInfo, Features, Probabilities, Rows, batch_ladder
from app.engines.device import Device
from app.engines.pipeline import Pipeline
from app.engines.plans import PlanRecord
from app.engines.trt import first_error, make_logger
from app.errors import EngineError, EngineOutOfMemory, PackageError

ROWS = "rows"


class TensorRtEngine:
    """A plan, its execution contexts and its way through the device; a `StagingEngine`.

    Args:
        plan: the file; `record` is of it, as `app.engines.plans.find_plan` proved.
        trt: TensorRT's Python module.

    Raises:
        PackageError: TensorRT cannot read the plan, or it is not for these rows and classes.
        EngineOutOfMemory: the device has no room for it.
    """

    def __init__(
        self,
        plan: Path,
        record: PlanRecord,
        trt: Any,
        *,
        row_shape: tuple[int, ...],
        classes: int,
        max_batch: int,
        device: Device,
    ) -> None:
        self.row_shape = row_shape
        self.classes = classes
        self.max_batch = min(max_batch, record.batches[-1])
        self._lines: list[str] = []
        self._logger = make_logger(trt, self._lines)  # kept: TensorRT holds on to it
        self._device = device
        self._memory = 0
        self._contexts: dict[int, Any] = {}
        self._strategy: Any = None
        with device.alone:
            self._load(plan, trt, record.key.flavour)
        self.info = EngineInfo(
            "tensorrt",
            record.precision,
            device.name,
            f"{record.key.flavour} {record.key.version}, {record.key.architecture}, {device.description}, CUDA graphs",
        )

    def _load(self, plan: Path, trt: Any, flavour: str) -> None:
        self._device.use()
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise PackageError(f"{plan}: TensorRT cannot read it ({first_error(self._lines)})")
        self.feature_dim = self._check(trt, plan)
        sizes = batch_ladder(self.max_batch)
        self._pipeline = Pipeline(self._device, self.row_shape, self.classes, sizes)
        try:
            self._features = self._pipeline.add_output(self.feature_dim) if self.feature_dim else None
            self._memory_nbytes = max(int(self._engine.device_memory_size_v2), 1)
            self._memory = self._device.allocate(self._memory_nbytes)
            self._strategy = self._context_strategy(trt, flavour)  # kept: contexts may hold on to it
            for size in sizes:
                self._contexts[size] = self._make_context(size)
        except BaseException:
            self._give_back()
            raise

    def empty_rows(self, n: int) -> Rows:
        return self._pipeline.empty_rows(n)

    def stage(self, rows: Rows) -> None:
        self._pipeline.stage(rows)

    def run(self, rows: Rows) -> Probabilities:
        self._lines.clear()
        return self._pipeline.run(rows, self._enqueue, record=True)

    def features(self) -> Features:
        if self._features is None:
            raise EngineError("the plan gives no features; build it again with the hiera-export of this release")
        return self._pipeline.fetch(self._features)

    def layers(self, trt: Any) -> str:
        """What the plan runs, layer by layer, as TensorRT's own JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        with self._device.alone:
            self._give_back()
            del self._engine
            del self._runtime

    def _give_back(self) -> None:
        # What was recorded first, then the contexts, then what they refer to.
        self._pipeline.close()
        self._contexts.clear()
        self._strategy = None
        if self._memory:
            self._device.free(self._memory)
            self._memory = 0

    def _context_strategy(self, trt: Any, flavour: str) -> Any:
        """How contexts are made: over memory of ours."""
        strategy: Any = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if flavour != "tensorrt_rtx":
            return strategy
        # It compiles on the machine where it runs, and by default runs a size on makeshift kernels until its own are
        # ready; the graph that is recorded at the first run would keep those for good.
        runtime_config = self._engine.create_runtime_config()
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        runtime_config.set_execution_context_allocation_strategy(strategy)
        return runtime_config

    def _make_context(self, size: int) -> Any:
        """A context for batches of `size`, ready to be queued."""
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise EngineOutOfMemory(f"{self._device.name} has no room for the plan ({first_error(self._lines)})")
        context.set_device_memory(self._memory, self._memory_nbytes)
        if not context.set_optimization_profile_async(self._profile_for(size), self._pipeline.stream):
            raise EngineError(f"TensorRT takes no batch of {size} rows ({first_error(self._lines)})")
        places = {ROWS: self._pipeline.input, PROBABILITIES: self._pipeline.output}
        if self._features is not None:
            places[FEATURES] = self._features.address
        for name, address in places.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT does not take the address of {name} ({first_error(self._lines)})")
        if not context.set_input_shape(ROWS, (size, *self.row_shape)):
            raise EngineError(f"TensorRT takes no batch of {size} rows ({first_error(self._lines)})")
        return context

    def _profile_for(self, size: int) -> int:
        """The first profile that reaches to `size`: the plan has one for few rows, and one for many."""
        largest = [
            self._engine.get_tensor_profile_shape(ROWS, index)[2][0]
            for index in range(self._engine.num_optimization_profiles)
        ]
        return next((index for index, rows in enumerate(largest) if size <= rows), len(largest) - 1)

    def _enqueue(self, size: int) -> None:
        if not self._contexts[size].execute_async_v3(self._pipeline.stream):
            said = first_error(self._lines)
            if "out of memory" in said.lower():
                raise EngineOutOfMemory(f"TensorRT has no memory for {size} rows ({said})")
            raise EngineError(f"TensorRT failed on {size} rows ({said})")

    def _check(self, trt: Any, plan: Path) -> int:
        """The width of the plan's features; 0 where it gives none, as those of earlier releases.

        Raises:
            PackageError: it does not take uint8 rows of this shape, or gives other things than float32 probabilities
                and features.
        """
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if names - {FEATURES} != {ROWS, PROBABILITIES}:
            there = ", ".join(sorted(names))
            raise PackageError(f"{plan}: has the tensors {there}, not {ROWS}, {PROBABILITIES} and {FEATURES} alone")
        rows = tuple(self._engine.get_tensor_shape(ROWS))[1:]
        found = tuple(self._engine.get_tensor_shape(PROBABILITIES))[1:]
        kinds = (self._engine.get_tensor_dtype(ROWS), self._engine.get_tensor_dtype(PROBABILITIES))
        if (rows, found, kinds) != (self.row_shape, (self.classes,), (trt.DataType.UINT8, trt.DataType.FLOAT)):
            raise PackageError(
                f"{plan}: takes {kinds[0]} rows {rows} and gives {kinds[1]} {found}, "
                f"not uint8 {self.row_shape} and float32 ({self.classes},)"
            )
        if FEATURES not in names:
            return 0
        per_row = tuple(self._engine.get_tensor_shape(FEATURES))[1:]
        kind = self._engine.get_tensor_dtype(FEATURES)
        if len(per_row) != 1 or kind != trt.DataType.FLOAT:
            raise PackageError(f"{plan}: gives {kind} {FEATURES} {per_row}, not float32 [n, D]")
        return int(per_row[0])

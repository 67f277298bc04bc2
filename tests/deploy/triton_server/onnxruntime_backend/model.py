# mypy: ignore-errors
"""A small Triton backend named onnxruntime, in Python, for a Triton that comes without the real one.

It does what the real one does with a package: loads `<model>/<version>/model.onnx` and runs the batches that Triton
forms. Triton loads it from `<backends>/onnxruntime/model.py` (python_backend, "Python-based backends").
"""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """One batch: the rows of all requests go through the graph together."""
        parts = [pb_utils.get_input_tensor_by_name(request, "rows").as_numpy() for request in requests]
        names = sorted({name for request in requests for name in request.requested_output_names()})
        outputs = self._session.run(names, {"rows": np.concatenate(parts)})
        ends = np.cumsum([len(part) for part in parts])
        responses = []
        for request, end, part in zip(requests, ends, parts, strict=True):
            tensors = [
                pb_utils.Tensor(name, output[end - len(part) : end])
                for name, output in zip(names, outputs, strict=True)
                if name in request.requested_output_names()
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses

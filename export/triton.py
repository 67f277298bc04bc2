"""Writes `config.pbtxt`, so that Triton's ONNX Runtime backend serves a package from the same folder.

The fields are those of Triton's model configuration (its docs/user_guide/model_configuration.md).
"""

from __future__ import annotations

import json

from app.repository.manifest import Manifest
from app.repository.store import LABELS
from export.to_onnx import ROWS


def triton_config(manifest: Manifest, max_batch: int) -> str:
    """The model configuration as protocol buffer text; shapes leave out the batch axis, as Triton wants."""
    sizes = {"probabilities": manifest.num_classes, "logits": manifest.num_classes, "features": manifest.feature_dim}
    outputs = ",\n".join(
        _tensor(name, "TYPE_FP32", (sizes[name],), LABELS if name == "probabilities" else None)
        for name in manifest.outputs
    )
    facts = {
        "description": manifest.description,
        "licence": manifest.weights.licence,
        "commercial_use": "yes" if manifest.weights.commercial_use else "no",
    }
    parameters = "\n".join(
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in facts.items()
    )
    return (
        f"# {manifest.description}\n"
        f"name: {_quoted(manifest.name)}\n"
        'backend: "onnxruntime"\n'
        'platform: "onnxruntime_onnx"\n'
        f"max_batch_size: {max_batch}\n"
        f"input [\n{_tensor(ROWS, 'TYPE_UINT8', manifest.row_shape)}\n]\n"
        f"output [\n{outputs}\n]\n"
        "dynamic_batching { }\n"
        f"{parameters}\n"
    )


def _tensor(name: str, data_type: str, dims: tuple[int, ...], labels: str | None = None) -> str:
    fields = [f"name: {_quoted(name)}", f"data_type: {data_type}", f"dims: [ {', '.join(map(str, dims))} ]"]
    if labels is not None:
        fields.append(f"label_filename: {_quoted(labels)}")
    return "  {\n" + "".join(f"    {field}\n" for field in fields) + "  }"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

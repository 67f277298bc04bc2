"""What an ONNX graph says of its outputs, held against the manifest beside it."""

from __future__ import annotations

from pathlib import Path

from app.errors import PackageError
from app.repository.manifest import Manifest
from app.repository.store import Package


def check_outputs(package: Package) -> None:
    """Compare a manifest with the graph beside it.

    Raises:
        PackageError: they disagree on outputs, classes or the width of the features, or the graph cannot be read.
        ModuleNotFoundError: onnx is not installed, which serving does not need.
    """
    faults = _disagreements(package.manifest, output_widths(package.graph))
    if faults:
        raise PackageError(f"{package.folder}: manifest and graph disagree: {'; '.join(faults)}")


def output_widths(graph: Path) -> dict[str, int | None]:
    """The outputs of a graph, in its order, with the length of their last axis; None where the graph does not say.

    Raises:
        PackageError: it cannot be read as ONNX.
        ModuleNotFoundError: onnx is not installed.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        outputs = onnx.load(str(graph), load_external_data=False).graph.output
    except (OSError, DecodeError) as error:
        raise PackageError(f"{graph}: cannot be read as an ONNX graph ({error})") from error
    shapes = {output.name: output.type.tensor_type.shape.dim for output in outputs}
    return {name: (dims[-1].dim_value or None) if dims else None for name, dims in shapes.items()}


def _disagreements(manifest: Manifest, widths: dict[str, int | None]) -> list[str]:
    faults = []
    if manifest.outputs != tuple(widths):
        said, has = ", ".join(manifest.outputs), ", ".join(widths)
        faults.append(f"outputs are {said or 'none'}, and the graph has {has or 'none'}")
    for name, field in (("probabilities", "num_classes"), ("logits", "num_classes"), ("features", "feature_dim")):
        said_width, width = getattr(manifest, field), widths.get(name)
        if width not in (None, said_width):  # a graph need not tell
            faults.append(f"{field} is {said_width}, and the graph's {name} have {width} numbers")
    return faults

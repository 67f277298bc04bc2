"""Which TensorRT is installed: `tensorrt` (10.14 or later) or, with nearly the same interface, `tensorrt_rtx`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Any, Literal

from app.errors import EngineUnavailable

logger = logging.getLogger(__name__)

# TensorRT says what belongs to no object through the first logger that it was ever given, whether or not that is alive.
_FIRST_LOGGERS: dict[str, Any] = {}

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx")
OLDEST = (10, 14)  # of tensorrt: the first whose parser takes ONNX's Attention
INSTALL = "pip install 'hiera-serve[tensorrt]' (data-centre GPUs) or 'hiera-serve[tensorrt-rtx]' (RTX GPUs)"


def installed_flavours() -> list[Flavour]:
    """Those that could be imported, the one for every GPU first."""
    return [name for name in FLAVOURS if importlib.util.find_spec(name) is not None]


def load_bindings(flavour: Flavour) -> Any:
    """The Python module of a TensorRT.

    Raises:
        EngineUnavailable: not installed, without its libraries, or too old.
    """
    if importlib.util.find_spec(flavour) is None:
        raise EngineUnavailable(f"the package {flavour} is not installed: {INSTALL}")
    try:
        trt = importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"the package {flavour} does not load ({error}): {INSTALL}") from error
    release = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if flavour == "tensorrt" and release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineUnavailable(f"tensorrt {trt.__version__} is too old, {oldest} is needed: {INSTALL}")
    return trt


def make_logger(trt: Any, keep: list[str] | None = None) -> Any:
    """TensorRT's logger over ours; `keep` gets every line, for a log file."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
    }

    class Lines(trt.ILogger):  # type: ignore[misc] # a class of an untyped module
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if keep is not None:
                keep.append(f"[{severity.name}] {message}")
            logger.log(levels.get(severity, logging.DEBUG), "%s", message)

    lines = Lines()
    _FIRST_LOGGERS.setdefault(trt.__name__, lines)
    return lines


def first_error(lines: list[str]) -> str:
    """The first error of a kept log, which is the cause; the others follow from it."""
    errors = [line for line in lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]"))]
    return errors[0].partition("] ")[2][:600] if errors else "its log names no error"

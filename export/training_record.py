"""The record that `training/` writes beside its weights, as `hiera-export build` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from export.errors import WrongRecord


class _RecordedAccuracy(BaseModel):
    top1: float  # a fraction


class _RecordedPreprocessing(BaseModel):
    model_config = ConfigDict(frozen=True)

    input_size: list[int]
    resize_short_side: int
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int | None = None
    target_fps: float | None = None


class TrainingRecord(BaseModel):
    """What `training/` writes beside its weights, as `<weights>.json`; other fields are passed over."""

    data: str
    accuracy: _RecordedAccuracy
    preprocessing: _RecordedPreprocessing


def read_record(path: Path) -> TrainingRecord | None:
    """The record in a file, None where there is none.

    A JSON file of another kind may lie beside weights (a model card's config), which is no fault.

    Raises:
        WrongRecord: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        return TrainingRecord.model_validate_json(text) if '"preprocessing"' in text else None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise WrongRecord(f"{path}: not a training record ({error})") from error

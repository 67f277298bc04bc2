"""The record that `training/` writes beside its weights, as `hiera-export build` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from app.repository.manifest import Positive, faults_of
from export.errors import WrongRecord

_Above0 = Annotated[FiniteFloat, Field(gt=0)]


class _RecordedAccuracy(BaseModel):
    top1: float = Field(ge=0, le=1)  # a fraction


class _RecordedPreprocessing(BaseModel):
    model_config = ConfigDict(frozen=True)

    input_size: list[int]
    resize_short_side: Positive
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Above0, _Above0, _Above0]
    mode: Literal["dense", "uniform"] | None = None
    stride: Positive | None = None
    target_fps: _Above0 | None = None


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
        fault = faults_of(error, "record") if isinstance(error, ValidationError) else error
        raise WrongRecord(f"{path}: not a training record ({fault}); mend it, or move it away") from error

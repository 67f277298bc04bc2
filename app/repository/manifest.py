"""The manifest of a model package, `model.json`: the one description that export writes and serving reads.

It holds everything that serving needs to turn a file into the rows that the model was trained on, and everything that a
reader wants to know of where the weights came from and how well the graph agrees with torch.
"""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import PackageError

SCHEMA_VERSION: Literal[1] = 1

Precision = Literal["fp32", "fp16", "bf16"]
Positive = Annotated[int, Field(gt=0)]

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
"""What a model may be called."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Record):
    """How a decoded picture becomes a row; the graph itself subtracts `mean` and divides by `std` (of RGB / 255)."""

    resize_short_side: Positive = Field(description="pixels of the shorter side after the antialiased resize")
    height: Positive = Field(description="pixels of the centre crop")
    width: Positive
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocessing:
        if self.resize_short_side < max(self.height, self.width):
            raise ValueError(
                f"a crop of {self.height}x{self.width} does not fit a short side of {self.resize_short_side}"
            )
        return self


class Sampling(_Record):
    """Which frames of a video make a clip. `dense` is SlowFast's Kinetics protocol, `uniform` that of SSv2."""

    frames: Positive
    mode: Literal["dense", "uniform"] = "dense"
    stride: Positive = Field(default=4, description="source frames between two sampled ones at target_fps")
    target_fps: float = Field(default=30.0, gt=0)


class Weights(_Record):
    """Where the numbers come from. `random_seed` is set when they were never trained."""

    source: str
    sha256: str | None = None
    random_seed: int | None = None
    licence: str
    commercial_use: bool


class Accuracy(_Record):
    """A measured or published accuracy, with what it was measured on."""

    dataset: str
    top1: float = Field(description="per cent")
    how: str


class Parity(_Record):
    """Agreement of the package with the torch model at one batch size, on the rows of the golden sample and more."""

    batch: Positive
    max_abs_logits: float
    max_abs_probability: float
    top1_agreement: float = Field(ge=0, le=1)
    top5_agreement: float = Field(ge=0, le=1)


class Manifest(_Record):
    """`model.json`, schema version 1."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME)
    version: Positive
    task: Literal["image", "video"]
    variant: str
    description: str
    demo: bool = False
    num_classes: Positive
    feature_dim: Positive
    parameters: Positive
    precision: Precision
    preprocessing: Preprocessing
    sampling: Sampling | None = None
    outputs: tuple[str, ...] = ("probabilities", "logits", "features")
    weights: Weights
    accuracy: tuple[Accuracy, ...] = ()
    parity: tuple[Parity, ...] = ()
    files: dict[str, str] = Field(description="sha256 of every file, by path relative to the version folder")
    tools: dict[str, str] = Field(description="versions of what made the package")

    @model_validator(mode="after")
    def _video_samples_frames(self) -> Manifest:
        if (self.task == "video") != (self.sampling is not None):
            raise ValueError("a video model has `sampling`, an image model has none")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one uint8 row: (H, W, 3), or (T, H, W, 3) for video."""
        picture = (self.preprocessing.height, self.preprocessing.width, 3)
        return picture if self.sampling is None else (self.sampling.frames, *picture)

    @property
    def random_weights(self) -> bool:
        return self.weights.random_seed is not None

    @property
    def preference(self) -> tuple[bool, bool, str]:
        """Orders the models of a task, the default first: trained before random, real before demo."""
        return (self.random_weights, self.demo, self.name)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def check_regular(path: Path) -> None:
    """Raise OSError for what is no regular file: opening a FIFO waits for a writer, and a device may not end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        PackageError: unreadable, with text that UTF-8 cannot hold, of another schema version, or with a missing or
            wrong field, which the message names.
    """
    try:
        check_regular(path)
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        # "\ud800", half a character, is JSON; as a key or a value it could never be written into an answer.
        json.dumps(document, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:  # besides syntax: 4,300 digits, a thousand brackets
        raise PackageError(f"{path}: cannot be read as JSON ({error})") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise PackageError(
            f"{path}: schema version {version!r}, but this server reads {SCHEMA_VERSION}; "
            "build the package again with the hiera-export of this release"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise PackageError(f"{path}: {faults_of(error)}") from error


def faults_of(error: ValidationError, whole: str = "manifest", most: int = 3) -> str:
    """Which fields are wrong and why, in one line: `most` of them. `whole` is what the document is called."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    told = "; ".join(
        # Pydantic puts an exception's name before what our own validators say.
        f"{'.'.join(str(part)[:40] for part in fault['loc']) or whole}: {fault['msg'].removeprefix('Value error, ')}"
        for fault in faults[:most]
    )
    return told if len(faults) <= most else f"{told}; and {len(faults) - most} more"

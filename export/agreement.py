"""The gate for lower precision and for other engines: do they name the classes that fp32 names, over a thousand rows?

The golden sample is a handful of rows, which a server can run at every start. This is the long look that is taken
once: photos from a folder, or rendered rows, through the engine as the server would run it and through torch in fp32.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from app.engines.base import Engine, Features, Probabilities, Rows, feature_dim, features_of
from app.engines.factory import EngineOptions, candidates
from app.errors import EngineUnavailable, RequestError, UnsupportedMedia
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.spec import ImageSpec
from app.repository.store import Package
from app.serving.proven import build_engine
from export.errors import BuildRefused, ParityFailed
from export.golden import render_row
from export.hiera import Hiera
from export.media_files import read_media
from export.parity import TOLERANCES, normalise

# What must agree, in rows of 1: weights that were trained are sure of most rows, random ones of few.
LEAST_AGREEMENT_TRAINED = 1.0
LEAST_AGREEMENT_RANDOM = 0.999
_SETTING = re.compile(r"HIERA_(?P<name>ENGINE\w*)(?P<value>=)?")


@dataclass(frozen=True)
class Agreement:
    """An engine beside torch in fp32.

    Attributes:
        rows: how many were looked at.
        top1: share of rows with the same likeliest class.
        max_probability, mean_probability: largest difference of any class's probability, of any row and on average.
        largest_lead: the most by which torch preferred its class to the engine's, as a difference of probabilities.
        engine: what computed, in words.
        features: smallest cosine of an angle between the features of a row; None where either gives none.
    """

    rows: int
    top1: float
    max_probability: float
    mean_probability: float
    largest_lead: float
    engine: str
    features: float | None = None


class Judge(Protocol):
    """Torch in fp32, or what stands for it: uint8 rows [n, …] to probabilities [n, classes], and features [n, D] if it
    gives any."""

    def __call__(self, rows: Rows) -> tuple[Probabilities, Features | None]: ...


def rendered(row_shape: tuple[int, ...], count: int) -> Iterator[NDArray[np.uint8]]:
    """`count` rows of the series that golden samples are from, one by one."""
    return (render_row(row_shape, index) for index in range(count))


def photos(folder: Path, package: Package) -> Iterator[NDArray[np.uint8]]:
    """The rows of every image file below `folder`, by path; files that are no images are passed over, and with a word
    on standard error those that are damaged, too large or cannot be opened.

    Raises:
        BuildRefused: the package is of videos, or there is no image.
    """
    manifest = package.manifest
    if manifest.task != "image":
        raise BuildRefused(f"{manifest.name} is of videos: pass --rows a number instead of a folder")
    geometry = manifest.preprocessing
    spec = ImageSpec(geometry.resize_short_side, geometry.height, geometry.width, geometry.interpolation, exact=True)
    limits, found = MediaLimits(), False
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        row = np.empty(manifest.row_shape, np.uint8)
        try:
            decode_image(read_media(path, limits), spec, limits, row)
        except UnsupportedMedia:
            continue
        except (RequestError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            tqdm.write(f"passed over: {path}: {reason}", file=sys.stderr)
            continue
        found = True
        yield row
    if not found:
        raise BuildRefused(f"{folder} holds no image")


def rows_to_compare(asked: str, package: Package) -> Iterator[NDArray[np.uint8]]:
    """What `--rows` asks for: so many rendered rows, or those of a folder's photos. Raises BuildRefused."""
    try:
        count = int(asked)
    except ValueError:
        if not Path(asked).is_dir():
            raise BuildRefused(f"--rows {asked!r} is neither a number nor a folder") from None
        return photos(Path(asked), package)
    if count < 1:
        raise BuildRefused("--rows must be 1 or more, or a folder")
    return rendered(package.manifest.row_shape, count)


def torch_judge(model: Hiera, package: Package, device: str = "cpu") -> Judge:
    """The model in fp32, its normalisation outside the graph."""
    model.to(device).eval()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # what is called fp32 is fp32

    def judge(rows: Rows) -> tuple[Probabilities, Features]:
        with torch.inference_mode():
            features = model.forward_features(normalise(rows, package.manifest.preprocessing).to(device))
            probabilities = model.head(features).softmax(dim=1)
        return probabilities.cpu().numpy(), features.cpu().numpy()

    return judge


def open_engine(package: Package, options: EngineOptions) -> Engine:
    """The engine that a server with these settings tries first.

    Raises:
        EngineUnavailable: it cannot be had; the message names flags, `--engine` and others, where a server's names
            settings.
        PackageError: it cannot load the graph, or disagrees with the golden sample.
    """
    try:
        return build_engine(package, candidates(options)[0], options)
    except EngineUnavailable as error:
        raise EngineUnavailable(_SETTING.sub(_flag, str(error))) from error


def _flag(setting: re.Match[str]) -> str:
    """`--engine-device cpu` of HIERA_ENGINE_DEVICE=cpu."""
    return "--" + setting["name"].lower().replace("_", "-") + (" " if setting["value"] else "")


def measure_agreement(engine: Engine, judge: Judge, rows: Iterator[NDArray[np.uint8]], batch: int) -> Agreement:
    """Run rows through both, in batches that bound the memory."""
    same = 0
    count = 0
    largest = lead = total = 0.0
    cosines = np.empty(0)
    bar = tqdm(desc="rows", unit="row", leave=False, disable=None)
    while chunk := list(islice(rows, batch)):
        stack = np.stack(chunk)
        (expected, read), actual = judge(stack), engine.run(stack)
        if read is not None and feature_dim(engine):
            cosines = np.append(cosines, _cosines(features_of(engine), read))
        best, chosen = expected.argmax(axis=1), actual.argmax(axis=1)
        at = np.arange(len(stack))
        same += int((best == chosen).sum())
        count += len(stack)
        differences = np.abs(actual - expected).max(axis=1)
        # Written so that what is not a number stays: it compares false with everything.
        largest = largest if float(differences.max()) <= largest else float(differences.max())
        total += float(differences.sum())
        lead = max(lead, float((expected[at, best] - expected[at, chosen]).max()))
        bar.update(len(stack))
    bar.close()
    computed = f"{engine.info.name} {engine.info.precision}, {engine.info.detail}"
    features = float(cosines.min()) if cosines.size else None
    return Agreement(count, same / count, largest, total / count, lead, computed, features)


def _cosines(features: Features, others: Features) -> NDArray[np.float64]:
    """Of the angles between rows, [n]."""
    a, b = features.astype(np.float64), others.astype(np.float64)
    cosines: NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


def least_agreement(package: Package) -> float:
    """The share of rows that must get fp32's class."""
    return LEAST_AGREEMENT_RANDOM if package.manifest.random_weights else LEAST_AGREEMENT_TRAINED


def check_agreement(agreement: Agreement, package: Package, computed_in: str) -> None:
    """Raises ParityFailed where too many rows get another class, or a probability is too far off.

    Args:
        computed_in: the engine's precision; the looser bound of it and of the graph's counts.
    """
    manifest, least = package.manifest, least_agreement(package)
    allowed = max(bound.probability for name, bound in TOLERANCES.items() if name in (manifest.precision, computed_in))
    faults = []
    if agreement.top1 < least:
        faults.append(f"top-1 agreement is {agreement.top1:.2%}, at least {least:.1%} is needed")
    if not agreement.max_probability <= allowed:
        faults.append(f"a probability differs by {agreement.max_probability:.2g}, at most {allowed:g} is allowed")
    if faults:
        raise ParityFailed(f"over {agreement.rows} rows on {agreement.engine}: {'; '.join(faults)}")

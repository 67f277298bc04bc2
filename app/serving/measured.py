"""What was measured on this machine, kept on disk so that the next start need not measure again."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from app.serving.curve import BatchCurve
from app.serving.model import EngineTrial

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Which engine was fastest for a package, and what the others did.

    Attributes:
        streams: how many of its kind work side by side; 0 if it works alone.
        curve: the batch costs of one.
    """

    engine: str
    trials: tuple[EngineTrial, ...]
    streams: int
    curve: BatchCurve


class MeasuredStore:
    """One small JSON file per package, machine, and everything else that the figures depend on.

    Args:
        folder: made on the first write; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, key: tuple[str, ...]) -> Measured | None:
        """What was kept under `key`; None when there is nothing, or nothing that can be trusted."""
        if self._folder is None:
            return None
        try:
            record = json.loads(_file(self._folder, key).read_text(encoding="utf-8"))
            if record["key"] != list(key):
                return None
            curve = BatchCurve(tuple(record["curve"]["rows"]), tuple(record["curve"]["seconds"]))
            trials = tuple(EngineTrial(**trial) for trial in record["trials"])
            return Measured(record["engine"], trials, int(record["streams"]), curve)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("a kept measurement is ignored and taken again (%s)", error)
            return None

    def write(self, key: tuple[str, ...], measured: Measured) -> None:
        """Keep `measured`. A folder that cannot be written costs the next start some seconds and nothing else."""
        if self._folder is None:
            return
        file = _file(self._folder, key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Servers share the folder, and those in containers may even have the same process id.
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=f"{file.name}.", suffix=".partial") as own:
                whole = Path(own, file.name)
                whole.write_text(json.dumps({"key": key, **asdict(measured)}, indent=1), encoding="utf-8")
                whole.replace(file)
        except OSError as error:
            logger.warning("measurements cannot be kept in %s (%s)", self._folder, error.strerror)


def _file(folder: Path, key: tuple[str, ...]) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"

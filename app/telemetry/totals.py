"""One exposition for several processes: counts are added up, and those of processes that have ended are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from app.telemetry.metrics import encoder_for

_KEPT_TYPES = ("counter", "histogram")  # what must never go down; a gauge ends with its process
_OF_ONE_PROCESS = ("process_start_time_seconds", "process_max_fds")

_Key = tuple[str, tuple[tuple[str, str], ...]]


def encode_samples(registry: CollectorRegistry) -> bytes:
    """Every sample of `registry`, as JSON: `[[family, [[sample, labels, value], …]], …]`."""
    families = [
        [family.name, [[sample.name, sample.labels, sample.value] for sample in family.samples]]
        for family in registry.collect()
    ]
    return json.dumps(families).encode()


class Totals:
    """Adds the samples of other processes to those of this one, which knows every family.

    Args:
        own: this process's metrics.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own
        self._ended: dict[str, dict[_Key, float]] = {}

    def retire(self, samples: bytes) -> None:
        """A process has ended; these were its last samples."""
        kept = {family.name for family in self._own.collect() if family.type in _KEPT_TYPES}
        for name, values in _decoded(samples):
            if name in kept:
                _add(self._ended.setdefault(name, {}), values)

    def render(self, living: Iterable[bytes], accept: str) -> tuple[bytes, str]:
        """The exposition of all and its content type, as `Metrics.render`."""
        others = [dict(_decoded(samples)) for samples in living]
        families = []
        for family in self._own.collect():
            values = {_key(sample.name, sample.labels): float(sample.value) for sample in family.samples}
            if family.name not in _OF_ONE_PROCESS:
                for other in (self._ended, *others):
                    _add(values, other.get(family.name, {}))
            total = Metric(family.name, family.documentation, family.type)
            total.samples = [Sample(name, dict(labels), value) for (name, labels), value in values.items()]
            families.append(total)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Fixed(families))
        encode, content_type = encoder_for(accept)
        return encode(registry), content_type


class _Fixed(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _decoded(samples: bytes) -> Iterable[tuple[str, dict[_Key, float]]]:
    for family, values in json.loads(samples):
        yield family, {_key(name, labels): float(value) for name, labels, value in values}


def _key(name: str, labels: dict[str, str]) -> _Key:
    return name, tuple(labels.items())


def _add(totals: dict[_Key, float], values: dict[_Key, float]) -> None:
    for key, value in values.items():
        totals[key] = totals.get(key, 0.0) + value

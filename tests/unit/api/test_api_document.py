"""`docs/api.md` and `docs/open-inference.md` know what the code knows."""

from __future__ import annotations

import re
from pathlib import Path

from app.api import problems
from app.api.inference_schemas import InputParameters, OutputParameters, RequestParameters
from app.api.query import QueryLimits, parameters
from app.errors import HieraError, RequestError
from app.telemetry.metrics import REJECTION_REASONS, STAGES, Metrics

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "api.md").read_text(encoding="utf-8")
INFERENCE = (DOCS / "open-inference.md").read_text(encoding="utf-8")


def test_every_problem_stands_in_its_row() -> None:
    rows = dict(re.findall(r"^\| (\d{3}) \| (.+?) \|", TEXT, re.MULTILINE))
    for kind, status in problems._STATUS:
        if kind is not RequestError and status != problems.CLIENT_CLOSED_REQUEST:
            assert f"`{kind.code}`" in rows[str(status)]
    assert f"`{HieraError.code}`" in rows["500"]


def test_every_parameter_is_explained() -> None:
    for parameter in parameters("video", QueryLimits(3_600_000, 16)):
        assert f"| `{parameter['name']}` |" in TEXT
    assert "1 to 3600000" in TEXT


def test_every_metric_is_explained_with_its_labels() -> None:
    rows = dict(re.findall(r"^\| `(hiera_\w+)` \| (.*?) *\|", TEXT, re.MULTILINE))
    defined = {}
    for collector in vars(Metrics()).values():
        described = getattr(collector, "_labelnames", None)
        if described is not None:
            name = next(iter(collector.describe())).name + ("_total" if collector._type == "counter" else "")
            defined[name] = ", ".join(described)
    assert rows == defined
    assert all(word in TEXT for word in (*STAGES, *REJECTION_REASONS))


def test_every_parameter_of_the_open_inference_protocol_is_named() -> None:
    for model in (RequestParameters, InputParameters, OutputParameters):
        for name in model.model_fields:
            assert re.search(rf"`{name}[`:]", INFERENCE), name

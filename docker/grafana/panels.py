"""What the dashboard shows: rows of panels with their queries.

Grafana fills in `$instance`, `$model` and `$__rate_interval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SERVER = 'job="hiera",instance=~"$instance"'
MODEL = f'{SERVER},model=~"$model"'
ADMITTED = f'{MODEL},model!="none"'  # a refusal before admission is over at once, and has no model
RATE = "$__rate_interval"
GPU_ROW = "GPU"


@dataclass(frozen=True)
class Query:
    """PromQL, and how its series are called in the legend (`{{label}}` stands for a label's value)."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. `width` is in Grafana's columns, 24 to a line; `unit` is Grafana's name of it."""

    title: str
    queries: tuple[Query, ...]
    unit: str
    description: str
    width: int = 8
    kind: Literal["timeseries", "stat", "names", "bargauge"] = "timeseries"
    stacked: bool = False
    mapping: tuple[tuple[str, str, str], ...] = ()  # value, text, colour


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]
    height: int = 8
    collapsed: bool = False


def _per_second(metric: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))"


def _quantile(quantile: float, metric: str, labels: str, by: str) -> str:
    return f"histogram_quantile({quantile}, sum by ({by}, le) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


def _mean(metric: str, labels: str, by: str) -> str:
    total = _per_second(f"{metric}_sum", labels, by)
    return f"{total} / ({_per_second(f'{metric}_count', labels, by)} > 0)"


ROWS = (
    Row(
        "Now",
        (
            Panel(
                "Servers that answer",
                (Query(f"sum(up{{{SERVER}}})", "servers"),),
                "none",
                "Instances that Prometheus reaches.",
                width=4,
                kind="stat",
            ),
            Panel(
                "Models",
                (Query(f"min by (model) (hiera_model_ready{{{MODEL}}})", "{{model}}"),),
                "none",
                "Ready when every instance has proven the model against its golden sample.",
                width=8,
                kind="stat",
                mapping=(("0", "not ready", "red"), ("1", "ready", "green")),
            ),
            Panel(
                "Requests per second",
                (Query(f"sum(rate(hiera_requests_total{{{MODEL}}}[{RATE}]))", "requests"),),
                "reqps",
                "Everything that was answered, refusals included.",
                width=4,
                kind="stat",
            ),
            Panel(
                "Failed",
                (
                    Query(
                        f'(sum(rate(hiera_requests_total{{{MODEL},code=~"5.."}}[{RATE}])) or vector(0))'
                        f" / (sum(rate(hiera_requests_total{{{MODEL}}}[{RATE}])) > 0)",
                        "5xx",
                    ),
                ),
                "percentunit",
                "Share of answers with a status of 500 and above.",
                width=4,
                kind="stat",
            ),
            Panel(
                "Engines",
                (Query(f"hiera_engine_info{{{MODEL}}}", "{{model}}: {{engine}} {{precision}} on {{device}}"),),
                "none",
                "Which engine serves which model.",
                width=4,
                kind="names",
            ),
        ),
        height=5,
    ),
    Row(
        "Traffic",
        (
            Panel(
                "Requests by status",
                (Query(_per_second("hiera_requests_total", MODEL, "task, code") + " > 0", "{{task}} {{code}}"),),
                "reqps",
                "429: refused before decoding; 499: the caller left; 503: not ready; 504: the deadline passed.",
                width=12,
                stacked=True,
            ),
            Panel(
                "Requests by API key",
                (Query(_per_second("hiera_key_requests_total", SERVER, "key, code") + " > 0", "{{key}} {{code}}"),),
                "reqps",
                "Who sends how much; callers with keys of their own take turns. none: without an API key that fits.",
                width=12,
                stacked=True,
            ),
            Panel(
                "Request latency",
                tuple(
                    Query(_quantile(q, "hiera_request_duration_seconds", ADMITTED, "task"), f"{{{{task}}}} {name}")
                    for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
                ),
                "s",
                "From a request's headers to its answer, of requests that were admitted.",
                width=12,
            ),
            Panel(
                "Refused and dropped",
                (
                    Query(_per_second("hiera_rejected_total", MODEL, "reason"), "refused: {{reason}}"),
                    Query(_per_second("hiera_cancelled_total", MODEL, "stage"), "dropped in {{stage}}"),
                ),
                "reqps",
                "Refused by admission, by reason; dropped because the caller left or the deadline passed, by stage.",
                width=12,
            ),
        ),
    ),
    Row(
        "Where the time goes",
        (
            Panel(
                "Mean time by stage",
                (Query(_mean("hiera_stage_duration_seconds", MODEL, "stage"), "{{stage}}"),),
                "s",
                "The stages of one file, on top of one another.",
                width=12,
                stacked=True,
            ),
            Panel(
                "p99 by stage",
                (Query(_quantile(0.99, "hiera_stage_duration_seconds", MODEL, "stage"), "{{stage}}"),),
                "s",
                "The slowest hundredth of each stage.",
                width=12,
            ),
        ),
    ),
    Row(
        "Engines",
        (
            Panel(
                "Rows classified",
                (
                    Query(_per_second("hiera_rows_total", MODEL, "model"), "{{model}}"),
                    Query(_per_second("hiera_close_calls_total", MODEL, "model"), "{{model}} again in fp32"),
                ),
                "rps",
                "A row is an image or one view of a video. Close calls of bf16 are decided in fp32.",
            ),
            Panel(
                "Rows in a batch",
                (
                    Query(_mean("hiera_batch_rows", MODEL, "model"), "{{model}} mean"),
                    Query(_quantile(0.9, "hiera_batch_rows", MODEL, "model"), "{{model}} p90"),
                ),
                "none",
                "How full the batches are that ran.",
            ),
            Panel(
                "Rows that wait",
                (
                    Query(f"sum by (model) (hiera_queue_rows{{{MODEL}}})", "{{model}} rows"),
                    Query(
                        f"sum by (model) (instance:hiera_queue_work_seconds{{{MODEL}}})", "{{model}} seconds of work"
                    ),
                ),
                "none",
                "The engines' queues, and the time that they stand for at the price of a batch of one.",
            ),
            Panel(
                "Cost of a batch by its rows",
                (
                    Query(
                        f"sort(avg by (model, rows) (hiera_batch_cost_seconds{{{MODEL}}}))", "{{model}}, {{rows}} rows"
                    ),
                ),
                "s",
                "Measured at warm-up. Where twice the rows cost twice the time, batching gains nothing.",
                width=24,
                kind="bargauge",
            ),
        ),
    ),
    Row(
        "Media workers and the process",
        (
            Panel(
                "Media workers",
                (Query(f"sum by (state) (hiera_media_workers{{{SERVER}}})", "{{state}}"),),
                "none",
                "Decoding processes. Always all busy: decoding is the bottleneck.",
                stacked=True,
            ),
            Panel(
                "Media workers replaced",
                (
                    Query(
                        f"sum by (reason) (increase(hiera_media_worker_restarts_total{{{SERVER}}}[5m]))", "{{reason}}"
                    ),
                ),
                "none",
                "In the last 5 minutes, by reason. A crash costs one request and one worker.",
            ),
            Panel(
                "Server's memory",
                (Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}"),),
                "bytes",
                "Resident memory of the HTTP process with its engines; the media workers come on top.",
                width=4,
            ),
            Panel(
                "Busy cores",
                (Query(f"rate(process_cpu_seconds_total{{{SERVER}}}[{RATE}])", "{{instance}}"),),
                "none",
                "Cores of the HTTP process with its engines, without the media workers.",
                width=4,
            ),
        ),
    ),
    # The one row that stays empty on a machine without a GPU.
    Row(
        GPU_ROW,
        (
            Panel(
                "GPU utilisation",
                (Query(f"hiera_gpu_utilization_ratio{{{SERVER}}}", "GPU {{gpu}}, {{name}}"),),
                "percentunit",
                "Share of the time in which a kernel ran. Far below 1 under load: the card is not fed.",
            ),
            Panel(
                "GPU memory",
                (
                    Query(f"hiera_gpu_memory_used_bytes{{{SERVER}}}", "GPU {{gpu}} in use"),
                    Query(f"hiera_gpu_memory_total_bytes{{{SERVER}}}", "GPU {{gpu}}"),
                ),
                "bytes",
                "Device memory, of all programs on the card.",
            ),
            Panel(
                "GPU power",
                (Query(f"hiera_gpu_power_watts{{{SERVER}}}", "GPU {{gpu}}"),),
                "watt",
                "Draw of the board.",
                width=4,
            ),
            Panel(
                "GPU temperature",
                (Query(f"hiera_gpu_temperature_celsius{{{SERVER}}}", "GPU {{gpu}}"),),
                "celsius",
                "Of the chip.",
                width=4,
            ),
        ),
        collapsed=True,
    ),
)

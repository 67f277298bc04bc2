"""What the outcomes of `benchmarks.gpu` say: the table of the goals, and a line for each job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu_course import TORCH_PRECISION, TORCHES, fastest
from benchmarks.gpu_jobs import Outcome
from export.catalog import find_variant

GOALS = (
    ("base_224 against the reference's eager fp16", "3 times"),
    ("base_224 against torch.compile", "1.5 times"),
    ("base_224, rows/s", "15,000"),
    ("share of the measured matrix rate: large_224, huge_224, base_16x224, large_16x224", "45%"),
    ("base_224, one row, ms", "1"),
    ("HTTP against the bare engine: large_224", "0.8"),
    ("top-1 agreement with fp32: random weights, trained weights", "99.9%, 100%"),
)


def summarise(compared: str, done: Mapping[str, Outcome]) -> list[tuple[str, str, str]]:
    """Measure, goal and what was seen, "-" where it was not.

    Args:
        compared: the variant that torch was compared at.
    """
    by_engines = [job for job, _ in _results(done, "rates") if not job["contender"].startswith(TORCHES)]
    engines = list(dict.fromkeys(job["contender"] for job in by_engines))
    best = {job["variant"]: fastest(done, job["variant"], engines) for job in by_engines}
    base = best.get(compared)
    one_row = min(
        (result["one_row_ms"] for _, result in _results(done, "rates", compared) if "one_row_ms" in result),
        default=None,
    )
    agreements = [
        f"{job['variant']} {job['apart']} {job['contender']} {result['top1']:.2%}".replace("  ", " ")
        for job, result in _results(done, "agreement")
    ]
    seen = (
        _ratio(done, compared, base, ""),
        _ratio(done, compared, base, "-compiled"),
        f"{base[1]:.0f} ({base[0]})" if base else "",
        ", ".join(share for variant, found in best.items() if found and (share := _share(variant, found, done))),
        f"{one_row:.2f}" if one_row else "",
        ", ".join(http for variant in best if (http := _http(variant, done))),
        ", ".join(agreements),
    )
    return [(measure, goal, figure or "-") for (measure, goal), figure in zip(GOALS, seen, strict=True)]


def failures(done: Mapping[str, Outcome]) -> list[str]:
    """A line for each job that failed, or measured only a part."""
    whys = {key: outcome.get("error") or outcome["result"].get("stopped") for key, outcome in done.items()}
    return [f"{key}: {why}" for key, why in whys.items() if why]


def in_a_line(outcome: Outcome) -> str:
    """What became of one job."""
    if "error" in outcome:
        return str(outcome["error"])
    result: Mapping[str, Any] = outcome["result"]
    match outcome["job"]["what"]:
        case "matrix":
            return f"{result['best']:.1f} TFLOP/s"
        case "build":
            return "built" if result["built"] else "was there"
        case "rates":
            stopped = f", until {result['stopped']}" if "stopped" in result else ""
            return f"{max(result['rates'].values()):.1f} rows/s{stopped}"
        case "agreement":
            return f"{result['top1']:.2%}"
        case _:
            return f"{result['requests_per_s']:.1f} requests/s"


def _results(done: Mapping[str, Outcome], what: str, variant: str = "") -> Iterator[tuple[Any, Any]]:
    """Jobs of a kind that ran, of all variants or one, with their results."""
    for outcome in done.values():
        job = outcome["job"]
        if job["what"] == what and variant in ("", job["variant"]) and "result" in outcome:
            yield job, outcome["result"]


def _ratio(done: Mapping[str, Outcome], compared: str, base: tuple[str, float] | None, compiled: str) -> str:
    """The best of the engines over torch: over the reference, or where it did not run over this project's model."""
    for kind in TORCHES:
        theirs = fastest(done, compared, [f"{kind}{compiled} {TORCH_PRECISION}"])
        if base and theirs:
            return f"{base[1] / theirs[1]:.2f} ({theirs[0]})"
    return ""


def _share(variant: str, found: tuple[str, float], done: Mapping[str, Outcome]) -> str:
    """Two operations for each multiply-accumulate of a row, over what the card multiplies in that precision."""
    contender, rate = found
    matrix = done.get(f"matrix torch {contender.split()[1]}", {}).get("result")
    return f"{variant} {rate * 2 * find_variant(variant).gmacs / 1000 / matrix['best']:.1%}" if matrix else ""


def _http(variant: str, done: Mapping[str, Outcome]) -> str:
    """The better of the numbers of instances, against the same engine alone."""
    ratios = [
        (result["requests_per_s"] / alone[1], f"{job['contender']}, {job['apart']}")
        for job, result in _results(done, "http", variant)
        if (alone := fastest(done, variant, [job["contender"]]))
    ]
    if not ratios:
        return ""
    ratio, how = max(ratios)
    return f"{variant} {ratio:.2f} ({how})"

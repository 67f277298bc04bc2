"""Latency of small photos alone, and while 1080p videos are decoded beside them.

Photos arrive in an open loop at a rate well below what the server can do; videos come from a closed loop of a few
callers. With the no-op engine it is decoding that competes. Rounds alternate: alone, beside, alone, beside …

    python -m benchmarks.mixed --engine noop --rate 40 --video-connections 1
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.request import classify_request
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import Target, parse_target
from benchmarks.contenders import MODEL, ours
from benchmarks.media import add_photo_argument, synthetic_video
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, median, spread, write_results

VIDEO_MODEL = "hiera_base_16x224"


def measure(
    target: Target, arguments: argparse.Namespace, video: Path | None, seed: int
) -> tuple[Summary, Summary | None]:
    """One round: photos, and videos beside them unless `video` is None."""
    photos = Workload(
        target,
        (classify_request(target, arguments.photo, model=MODEL),),
        connections=256,
        rate_per_s=arguments.rate,
        seconds=arguments.seconds,
        warmup_s=1.0,
        seed=seed,
    )
    if video is None:
        return summarise(photos, run_isolated(photos)), None
    videos = Workload(
        target,
        (classify_request(target, video, model=VIDEO_MODEL),),
        connections=arguments.video_connections,
        seconds=arguments.seconds,
        warmup_s=1.0,
    )
    with ThreadPoolExecutor(2) as both:
        of_photos, of_videos = both.map(run_isolated, (photos, videos))
    return summarise(photos, of_photos), summarise(videos, of_videos)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="noop")
    parser.add_argument("--rate", type=float, default=40.0, help="photos per second")
    parser.add_argument("--video-connections", type=int, default=1)
    parser.add_argument("--video", type=Path, help="a video (a synthetic 10 s H.264 file of 1920 x 1080)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    add_photo_argument(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    video = arguments.video or synthetic_video()
    build_packages([MODEL, VIDEO_MODEL])
    alone: list[Summary] = []
    beside: list[Summary] = []
    videos: list[Summary] = []
    with ours(arguments.engine, "", REPOSITORY).start() as server:
        target = parse_target(server.url)
        for number in range(arguments.rounds):
            alone.append(measure(target, arguments, None, number)[0])
            photos, of_videos = measure(target, arguments, video, number)
            beside.append(photos)
            if of_videos is not None:
                videos.append(of_videos)
    _print(alone, beside, videos)
    write_results(
        arguments.output,
        "mixed",
        {"engine": arguments.engine, "photos_per_s": arguments.rate, "video_connections": arguments.video_connections},
        {
            name: [asdict(run) for run in runs]
            for name, runs in (("alone", alone), ("beside", beside), ("videos", videos))
        },
    )


def _print(alone: list[Summary], beside: list[Summary], videos: list[Summary]) -> None:
    rows = []
    for name, runs in (("photos alone", alone), ("photos beside videos", beside), ("videos", videos)):
        latencies = [run.latency_ms for run in runs if run.latency_ms]
        rows.append(
            (
                name,
                f"{median([run.throughput_per_s for run in runs]):.1f}",
                f"{median([latency.p50 for latency in latencies]):.1f}",
                f"{median([latency.p99 for latency in latencies]):.1f}",
                str(sum(sum(run.errors.values()) for run in runs)),
            )
        )
    print(text_table(("", "per second", "p50 ms", "p99 ms", "errors"), rows))
    pairs = [
        (b.latency_ms.p99 / a.latency_ms.p99)
        for a, b in zip(alone, beside, strict=True)
        if a.latency_ms and b.latency_ms
    ]
    print(f"p99 of photos beside videos ÷ alone: {spread(pairs)} (2 or less wanted)")


if __name__ == "__main__":
    main()

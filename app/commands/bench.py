"""`hiera-serve bench`: how much load a server takes, and what it adds to decoding and inference."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from app.commands.api_key import api_key
from app.errors import InvalidParameter, Unavailable
from app.interpreter import MODULE_COMMAND, import_path
from app.load.ask import ask
from app.load.generator import MAX_REQUESTS, Workload
from app.load.isolated import run_isolated
from app.load.plot import svg, terminal
from app.load.progress import ProgressBar
from app.load.report import HEADER, latency_over_load, row
from app.load.request import classify_request, shown
from app.load.server import ServerProcess, free_port
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import Target, parse_target

SAMPLE_PHOTO = Path(__file__).parent.parent / "load" / "sample.jpg"

# Offered rates of the open loop, as parts of what the closed loop reached; the last is more than the server can do.
_AUTOMATIC_RATES = (0.25, 0.5, 0.75, 0.9, 1.1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = __doc__
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="photos or videos to send in turn")
    parser.add_argument("--url", help="a running server; without it, one is started for the run with HIERA_* as set")
    parser.add_argument("--model", help="the model that answers (the task's default)")
    parser.add_argument(
        "--connections", type=_counts, default=[1, 4, 16], metavar="N,…", help="closed loop (1,4,16); 0 for none"
    )
    parser.add_argument(
        "--rates",
        type=_rate_list,
        default="auto",
        metavar="R,…",
        help="open loop, Poisson arrivals per second: numbers, none, or auto (parts of what the closed loop reached)",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (5)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each that do not count (1)")
    parser.add_argument(
        "--max-requests",
        type=int,
        default=1_000_000,
        help=f"of each measurement after its warm-up (at most {MAX_REQUESTS:,})",
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until a request is given up (30)")
    parser.add_argument("--raw", action="store_true", help="send the file as the body, not as multipart/form-data")
    parser.add_argument("--api-key", type=api_key, help="sent as a bearer token")
    parser.add_argument("--allow-remote", action="store_true", help="load a server that is not on this machine")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write results.json and latency.svg there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report. Returns the exit status: 1 when the server answered nothing at all."""
    files = arguments.files or [SAMPLE_PHOTO]
    for file in files:
        if not file.is_file():
            raise InvalidParameter(f"{shown(file)}: no such file")
    if not any(arguments.connections) and isinstance(arguments.rates, str):
        raise InvalidParameter("nothing is to be measured: give --connections, or numbers to --rates")
    if arguments.output:
        with _writing_to(arguments.output):  # now: a folder that cannot be made should not cost a measurement
            arguments.output.mkdir(parents=True, exist_ok=True)
    with _server(arguments) as target:
        summaries, answer = _measure(arguments, target, files)
        engine_rows_per_s = None
        if answer and not answer.get("noop"):
            engine_rows_per_s = _engine_rows_per_s(target, answer.get("name"), arguments.api_key)
    results: dict[str, object] = {
        "target": target.url,
        "model": answer,
        "files": [file.name for file in files],
        "engine_rows_per_s": engine_rows_per_s,
        "runs": [asdict(summary) for summary in summaries],
    }
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        _print_report(summaries, answer, files, engine_rows_per_s)
    if arguments.output:
        with _writing_to(arguments.output):
            _write(arguments.output, results, summaries, answer)
    return 0 if any(summary.succeeded for summary in summaries) else 1


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidParameter(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[Target]:
    if arguments.url:
        target = parse_target(arguments.url, allow_remote=arguments.allow_remote)
        _refuse_silence(target, arguments.api_key)
        yield target
        return
    port = free_port()
    environment = {"HIERA_HOST": "127.0.0.1", "HIERA_PORT": str(port), "PYTHONPATH": import_path()}
    print("Starting a server for the run …", file=sys.stderr)
    command = [*MODULE_COMMAND, "app.cli", "run"]
    with _left_at_signals(), ServerProcess(command, port=port, environment=environment) as server:
        target = parse_target(server.url)
        _refuse_silence(target, arguments.api_key)  # its environment may have keys for it
        yield target


@contextlib.contextmanager
def _left_at_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that a server that was started for the run ends with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ending = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for number in ending:  # one that is ignored is nohup's wish
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def _refuse_silence(target: Target, key: str | None) -> None:
    """Raises Unavailable for a server that would refuse each of some thousand requests, or is none."""
    status, _ = _ask(target, "/models", key)
    if status in (401, 403):
        raise Unavailable(f"{target.url} answers {status}: give a key that opens it with --api-key")


def _ask(target: Target, path: str, key: str | None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return ask(target.url, target.address, target.port, path, headers=headers)


def _measure(
    arguments: argparse.Namespace, target: Target, files: list[Path]
) -> tuple[list[Summary], dict[str, object]]:
    """Every run, and the `model` of an answer."""
    try:
        requests = tuple(
            classify_request(
                target, file, model=arguments.model, multipart=not arguments.raw, api_key=arguments.api_key
            )
            for file in files
        )
    except OSError as error:
        raise InvalidParameter(f"{error.filename}: cannot be read ({error.strerror})") from error
    summaries: list[Summary] = []
    answer: dict[str, object] = {}

    def one(connections: int, rate_per_s: float | None) -> None:
        workload = Workload(
            target,
            requests,
            connections=connections,
            seconds=arguments.seconds,
            warmup_s=arguments.warmup,
            rate_per_s=rate_per_s,
            max_requests=arguments.max_requests,
            timeout_s=arguments.timeout,
        )
        label = f"{rate_per_s:,.1f}/s" if rate_per_s is not None else f"{connections} at once"
        with ProgressBar(f"{label:>14}") as bar:
            samples = run_isolated(workload, bar.show)
        summaries.append(summarise(workload, samples))
        if not answer:
            answer.update(_model_of(samples.bodies))

    for connections in arguments.connections:
        if connections:
            one(connections, None)
    for rate_per_s in _rates(arguments.rates, summaries):
        one(512, rate_per_s)
    return summaries, answer


def _rates(asked: str | list[float], closed: list[Summary]) -> list[float]:
    if asked == "none":
        return []
    if isinstance(asked, list):
        return asked
    reached = max((summary.throughput_per_s for summary in closed), default=0.0)
    return [round(part * reached, 1) for part in _AUTOMATIC_RATES if part * reached >= 0.1]


def _model_of(bodies: dict[int, bytes]) -> dict[str, object]:
    """Who answered, out of the first good answer; the first bad one is printed, since it says what is wrong."""
    for status, body in bodies.items():
        if status not in (200, 429) and body:
            print(f"HTTP {status}: {body[:400].decode(errors='replace')}", file=sys.stderr)
    try:
        model = json.loads(bodies.get(200, b"{}")).get("model", {})
    except (ValueError, AttributeError):
        return {}
    return model if isinstance(model, dict) else {}


def _engine_rows_per_s(target: Target, model: object, api_key: str | None) -> float | None:
    """The bare engine's best rate by the batch curve in /models, or None when the server tells none."""
    try:
        entry = json.loads(_ask(target, f"/models/{quote(str(model))}", api_key)[1])
        rates = [cost["rows"] / cost["milliseconds"] * 1000 for cost in entry.get("batch_curve", [])]
        return max(rates, default=0.0) * (entry.get("instances") or 1) or None
    except (Unavailable, ValueError, ArithmeticError, AttributeError, KeyError, TypeError):
        return None  # not this project's server: the table does without


def _print_report(
    summaries: list[Summary], answer: dict[str, object], files: list[Path], engine_rows_per_s: float | None
) -> None:
    names = ", ".join(shown(Path(file.name)) for file in files[:3]) + (" …" if len(files) > 3 else "")
    print(
        f"{answer.get('name', 'unknown model')} on {answer.get('engine', '?')} {answer.get('precision', '')}, {names}"
    )
    if answer.get("noop"):
        print("The no-op engine is on: this measures the server alone, and the predictions mean nothing.")
    if engine_rows_per_s:
        print(f"The bare engine, at its best batch size: {engine_rows_per_s:,.1f} rows/s")
    print()
    print(text_table(HEADER, [row(summary, engine_rows_per_s) for summary in summaries]))
    print("\noverhead: what a caller waited beyond decoding and inference (HTTP, hand-overs, queue), the median")
    busiest = max((summary.generator_share for summary in summaries), default=0.0)
    if busiest > 0.5:
        print(f"the generator itself took up to {busiest:.0%} of a core: these figures are its limit as well")
    print()
    print(terminal(latency_over_load(summaries), x_label="requests per second", y_label="ms"))


def _write(folder: Path, results: dict[str, object], summaries: list[Summary], answer: dict[str, object]) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    title = f"Latency over load: {answer.get('name', 'server')} on {answer.get('engine', '?')}"
    picture = svg(latency_over_load(summaries), title=title, x_label="requests per second", y_label="latency, ms")
    (folder / "latency.svg").write_text(picture, encoding="utf-8")
    print(f"written: {folder / 'results.json'}, {folder / 'latency.svg'}", file=sys.stderr)


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,4,16") from None


def _rate_list(text: str) -> str | list[float]:
    if text in ("auto", "none"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto, none nor a list such as 50,100") from None

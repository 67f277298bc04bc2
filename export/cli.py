"""`hiera-export`: from a checkpoint to a model package."""

from __future__ import annotations

import argparse
import io
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from app.errors import HieraError
from app.open_files import drop_output, open_standard_files
from app.repository.manifest import faults_of
from export.commands import run_build, run_inspect, run_list, run_tensorrt, run_verify
from export.errors import ExportError

_BUILD_NOTES = """\
without --weights or --random-weights the official file is fetched, once, into HIERA_WEIGHTS_DIR (a folder in the
user's cache by default), from HIERA_WEIGHTS_URL if that names a mirror's folder. --weights reads the original .pth
and .safetensors files, those of transformers and those of timm.

  hiera-export build hiera_base_224 hiera_base_16x224
  hiera-export build hiera_base_16x224 --weights ssv2.pth --labels ssv2.txt --sampling uniform --name ssv2
  hiera-export build hiera_tiny_224 --random-weights 0      (for benchmarks)
"""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is to clean up just as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 1 with a message on stderr; 130 when interrupted, 141 when nobody reads on, 143 when
        terminated, as a shell has them.
    """
    open_standard_files()
    options = _parser().parse_args(arguments)
    show_any_text()
    try:
        with _terminated_by_sigterm():
            status: int = options.run(options)
            sys.stdout.flush()  # now: what the interpreter cannot write at its end, it complains of
    except BrokenPipeError:  # behind `| head -1`
        drop_output()
        return 128 + signal.SIGPIPE
    except _Terminated:
        print("hiera-export: terminated; nothing half-written was left", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("hiera-export: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    except ValidationError as error:
        print(f"hiera-export: {faults_of(error)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = "tensorrt" if options.run is run_tensorrt else "export"
        print(
            f"hiera-export: {error.name} is not installed here; this command needs: pip install 'hiera-serve[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except (ExportError, HieraError, OSError) as error:
        print(f"hiera-export: {error}", file=sys.stderr)
        drop_output()
        return 1
    return status


def show_any_text() -> None:
    """Have what the terminal's encoding lacks, and names of files that are no text, printed as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    def terminate(_: int, __: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # no other thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hiera-export", description="Turn Hiera checkpoints into model packages.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_build(
        commands.add_parser(
            "build",
            help="trace, verify and package one or more variants",
            description="Trace, verify and package variants.",
            epilog=_BUILD_NOTES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )

    listing = commands.add_parser("list", help="the variants: task, size, licence, accuracy")
    listing.set_defaults(run=run_list)

    verify = commands.add_parser(
        "verify", help="measure a package against torch and write the result into its manifest"
    )
    verify.add_argument("package", type=Path, help="<repository>/<name>, or one version of it")
    verify.add_argument(
        "--weights", type=Path, metavar="FILE", help="what the package was built from, if not official or random"
    )
    verify.add_argument(
        "--max-batch", type=positive, metavar="ROWS", help="the largest batch to measure (32 images, 8 clips)"
    )
    verify.add_argument(
        "--rows",
        metavar="N|FOLDER",
        help="instead: the gate over N rendered rows, or over a folder's photos, on the engine that serves",
    )
    verify.add_argument("--engine", default="auto", choices=("auto", "onnxruntime", "openvino", "tensorrt"))
    verify.add_argument("--engine-precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    verify.add_argument("--engine-device", type=_device, default="auto", metavar="auto|cpu|cuda:N")
    verify.set_defaults(run=run_verify)

    _add_tensorrt(
        commands.add_parser(
            "tensorrt",
            help="build a TensorRT plan for the GPU of this machine, beside the package's graph",
            description="Build a TensorRT plan and check it against the golden sample.",
        )
    )

    inspect = commands.add_parser("inspect", help="check a package's files and show what its manifest says")
    inspect.add_argument("package", type=Path, help="<repository>/<name>, or one version of it")
    inspect.add_argument("--json", action="store_true", help="print the manifest itself")
    inspect.set_defaults(run=run_inspect)
    return parser


def _add_build(build: argparse.ArgumentParser) -> None:
    build.set_defaults(run=run_build)
    build.add_argument("variants", nargs="+", metavar="NAME", help="a variant of `hiera-export list`")
    weights = build.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="FILE", help="your own checkpoint instead of the official one")
    weights.add_argument(
        "--random-weights", type=int, metavar="SEED", help="weights that were never trained, for benchmarks"
    )
    build.add_argument("--labels", type=Path, metavar="FILE", help="one class a line, in the head's order")
    build.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the graph (default: fp32)"
    )
    build.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("model_repo"),
        help="the model repository (default: model_repo)",
    )
    build.add_argument("--name", help="of the package (default: the variant's)")
    build.add_argument("--version", type=positive, default=1, metavar="N", help="of the package (default: 1)")
    build.add_argument("--replace", action="store_true", help="overwrite that version if it exists")
    build.add_argument(
        "--max-batch", type=positive, metavar="ROWS", help="the largest batch to verify (default: 32 images, 8 clips)"
    )
    build.add_argument(
        "--resize-short-side", type=positive, metavar="PIXELS", help="before the crop, if your model was evaluated so"
    )
    build.add_argument(
        "--sampling", choices=("dense", "uniform"), help="of video frames: dense as for Kinetics, uniform as for SSv2"
    )
    build.add_argument(
        "--frame-stride", type=positive, metavar="N", help="dense sampling takes every Nth frame at --target-fps (4)"
    )
    build.add_argument("--target-fps", type=_rate, metavar="FPS", help="frames a second that the stride counts (30)")
    build.add_argument("--licence", metavar="NAME", help="of your weights, for the manifest")
    build.add_argument("--commercial-use", action="store_true", help="that licence allows commercial use")


def _add_tensorrt(tensorrt: argparse.ArgumentParser) -> None:
    tensorrt.set_defaults(run=run_tensorrt)
    tensorrt.add_argument("package", type=Path, help="<repository>/<name>, or one version of it")
    tensorrt.add_argument("--device", type=int, default=0, metavar="N", help="the GPU to build on and for (default: 0)")
    tensorrt.add_argument(
        "--target",
        type=_architecture,
        metavar="sm_NN",
        help="build for a GPU that is not here, unchecked; tensorrt_rtx only",
    )
    tensorrt.add_argument(
        "--flavour", choices=("tensorrt", "tensorrt_rtx"), help="which TensorRT (default: the first that is installed)"
    )
    tensorrt.add_argument("--max-batch", type=positive, metavar="ROWS", help="largest batch (64 images, 8 clips)")
    tensorrt.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="what earlier builds timed (default: in the user's cache)"
    )
    tensorrt.add_argument(
        "--unfused-attention", action="store_true", help="in fp16 and bf16 too, take apart what has no fused kernel"
    )
    tensorrt.add_argument("--replace", action="store_true", help="overwrite a plan that is there")


def positive(text: str) -> int:
    """The type of an argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < 1000:
        raise argparse.ArgumentTypeError("must be frames a second")
    return number


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError("must be auto, cpu or cuda:N")
    return text


def _architecture(text: str) -> str:
    if not re.fullmatch(r"sm_[0-9]+", text):  # it becomes a part of file names
        raise argparse.ArgumentTypeError("must be sm_ and a number")
    return text


if __name__ == "__main__":
    sys.exit(main())

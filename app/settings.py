"""Every setting of the server: environment variables with the prefix HIERA_, or the flags of `hiera-serve run`.

Each name ends in its unit where it has one. `docs/configuration.md` is written from this file, and a test keeps it so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.caches import cache_folder

PREFIX = "HIERA_"
_OF_OTHER_COMMANDS = ("HIERA_WEIGHTS_DIR", "HIERA_WEIGHTS_URL")  # hiera-export's

_MIB = 1024 * 1024

# An Origin header as browsers write it (RFC 6454, 6.2): compared as it is, so nothing else ever matches. `null` is that
# of a page without an origin, such as a file; an extension or an app has a scheme of its own.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _folder_or_none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == "none" else value


def _matching(pattern: str, requirement: str) -> AfterValidator:
    """Takes what matches `pattern` as a whole; `requirement` says the same in words."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(requirement)
        return text

    return AfterValidator(check)


def _no_keys_or_some(keys: SecretStr) -> SecretStr:
    # Such as "${KEY_A},${KEY_B}" with neither set: who writes that wants a server that asks for keys.
    text = keys.get_secret_value()
    if text.strip() and not _listed(text):
        raise ValueError("lists no key, only commas; leave it empty if there are to be none")
    return keys


def _host_or_address(text: str) -> str:
    try:
        text.encode("idna")  # as sockets do
    except UnicodeError:
        raise ValueError("must be an address or a host name") from None
    return text


def _origins(text: str) -> str:
    for origin in _listed(text):
        if _ORIGIN.fullmatch(origin) is None or _DEFAULT_PORT.fullmatch(origin) is not None:
            raise ValueError(
                f"{origin!r} can match no page: an origin is scheme://host[:port] as browsers send it (in lower case, "
                "without the scheme's usual port and without a slash at the end), or * for all"
            )
    return text


class Settings(BaseSettings):
    """What an operator may choose. Frozen; parts of the server are handed the values that they use, not this object."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    # Addresses
    host: Annotated[str, AfterValidator(_host_or_address)] = "0.0.0.0"  # noqa: S104 - a server in a container must be reachable from outside it
    """Address that the HTTP server listens on."""
    port: Port = 8000
    """TCP port of the HTTP server; 0 takes a free one."""
    grpc_port: Port = 8001
    """TCP port of the Open Inference Protocol over gRPC, where the extra `grpc` is installed; 0 leaves it off."""
    http_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that speak HTTP; above 1 they share the engines of one more process (docs/http-workers.md)."""

    # Models
    model_repository: Path = Path("model_repo")
    """Folder of model packages."""
    default_image_model: str | None = None
    """Model that answers image requests which name none; else a real package before a demo one."""
    default_video_model: str | None = None
    """Model that answers video requests which name none; else a real package before a demo one."""
    engine: Literal["auto", "onnxruntime", "openvino", "tensorrt", "noop"] = "auto"
    """What computes: auto takes the fastest that agrees with the reference; noop runs no model and answers nonsense."""
    engine_precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """What the engine computes in; auto is the fastest that the device is made for, a CPU's close calls in fp32."""
    engine_device: Annotated[
        str,
        _matching(
            r"auto|cpu|cuda(:\d+)?|cuda:\d+(,cuda:\d+)+", "must be auto, cpu, cuda, cuda:N, or cuda:0,cuda:1 and more"
        ),
    ] = "auto"
    """Where engines compute: auto (a usable GPU, else the CPU), cpu, cuda, cuda:N, or cuda:0,cuda:1 and more."""
    engine_threads: Count = 0
    """CPU threads of one model; 0 means the cores that are really available, container quotas included."""
    engine_instances: Count = 0
    """Engines per model, each with a thread; 0 measures how many side by side give the most throughput."""
    engine_stuck_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 20.0
    """How many times its predicted time a batch may take before its engine counts as stuck and is rebuilt."""
    engine_stuck_seconds: PositiveSeconds = 20.0
    """A batch that has run for less than this never counts as stuck."""
    engine_rebuild_pause_seconds: PositiveSeconds = 60.0
    """Longest pause before a lost engine is rebuilt; pauses begin at half a second and double."""
    engine_cache_folder: Annotated[Path | None, BeforeValidator(_folder_or_none)] = Field(default_factory=cache_folder)
    """Folder that keeps compiled models and measured batch costs for the next start; none keeps nothing."""
    max_batch_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """Most rows in one batch; within it the size that pays is found by measuring."""
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = 0.0
    """Longest time that an idle engine waits for a fuller batch, from the oldest row on."""
    warmup_budget_seconds: PositiveSeconds = 10.0
    """Time for measuring a model's batch costs at its first start on a machine."""
    watch_seconds: Seconds = 0.0
    """Time between two looks at the repository for new, changed and removed packages; 0 looks only when told to."""
    model_drain_seconds: PositiveSeconds = 600.0
    """Longest time that a replaced or unloaded model may take to finish its requests; longer than any request may."""

    # Requests
    image_timeout_seconds: PositiveSeconds = 30.0
    """Longest time from the start of an image's upload to its answer; a caller's timeout_ms can only shorten it."""
    video_timeout_seconds: PositiveSeconds = 120.0
    """The same for videos."""
    max_image_bytes: PositiveCount = 32 * _MIB
    """Largest image file."""
    max_video_bytes: PositiveCount = 512 * _MIB
    """Largest video file."""
    max_request_bytes: PositiveCount = 128 * _MIB
    """Most bytes of all images of one request together."""
    max_files_per_request: PositiveCount = 16
    """Most images in one request; of videos it is always one."""
    max_clips: Annotated[int, Field(ge=1, le=333)] = 16
    """Most temporal views that a caller may ask for."""
    max_queue_rows: PositiveCount = 1024
    """Most rows that are admitted and not answered (429); no less than max_files_per_request."""
    max_in_flight_bytes: PositiveCount = 2048 * _MIB
    """Most bytes of uploads and decoded rows that are held at a time; more is refused with 429."""
    upload_idle_timeout_seconds: PositiveSeconds = 10.0
    """Longest pause in an upload (408)."""
    upload_grace_seconds: PositiveSeconds = 10.0
    """Time after which an upload must have come at upload_min_bytes_per_second (408)."""
    upload_min_bytes_per_second: PositiveCount = 10_000
    """Slowest mean rate of an upload once upload_grace_seconds are over."""

    # Connections
    max_connections: PositiveCount = 2048
    """Most open connections; further ones are answered 503 at once. A low `ulimit -n` lowers it."""
    header_timeout_seconds: PositiveSeconds = 10.0
    """Longest time for a request's headers to arrive, from the connection's start or the request's first byte."""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024
    """Largest request line and headers together (431)."""
    keep_alive_seconds: PositiveSeconds = 30.0
    """How long an idle connection is kept."""
    shutdown_grace_seconds: Seconds = 1.0
    """After SIGTERM (or SIGINT, SIGHUP): how long requests are still taken while readiness already says no."""
    shutdown_timeout_seconds: PositiveSeconds = 25.0
    """After that: how long accepted requests may take to finish."""

    # Media
    image_workers: Count = 0
    """Processes that decode images; 0 means one for each available core, and two on one core: one may be lost."""
    video_workers: Count = 0
    """Processes that decode videos; 0 means one for every two available cores."""
    media_worker_memory_bytes: Annotated[int, Field(ge=64 * _MIB)] = 2048 * _MIB
    """Address space that one media worker may take for its file."""
    image_decode_timeout_seconds: PositiveSeconds = 10.0
    """Longest time for decoding one image; the worker is then replaced."""
    video_decode_timeout_seconds: PositiveSeconds = 60.0
    """Longest time for decoding one video; the worker is then replaced."""
    max_image_pixels: PositiveCount = 100_000_000
    """Most pixels of an image."""
    max_side_pixels: PositiveCount = 32_768
    """Longest side of an image or a video."""
    max_aspect_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 50.0
    """Largest ratio of the longer side to the shorter."""
    max_video_frame_pixels: PositiveCount = 8192 * 4320
    """Most pixels of one frame of a video."""
    max_video_seconds: PositiveSeconds = 4 * 3600.0
    """Longest video."""
    max_video_frames: PositiveCount = 2_000_000
    """Most frames of a video."""
    max_media_streams: PositiveCount = 32
    """Most streams in a video file: sound, subtitles and pictures together."""
    exact_resize: bool = False
    """Forbid the JPEG decoder's own scaling of large photos: several times slower, and exact to a level."""

    # Who may call
    api_keys: Annotated[SecretStr, AfterValidator(_no_keys_or_some)] = SecretStr("")
    """Keys that open the server, as name:secret or a secret alone, between commas; without any it is open to all."""
    api_keys_file: Path | None = None
    """File of further keys, one a line; read again when it changes."""
    admin_keys: Annotated[SecretStr, AfterValidator(_no_keys_or_some)] = SecretStr("")
    """Keys that open the admin calls alone, as name:secret, separated by commas; without any those calls are off."""
    admin_keys_file: Path | None = None
    """File of further admin keys, one a line; read again when it changes."""
    metrics_need_key: bool = False
    """Whether /metrics asks for a key too."""
    cors_origins: Annotated[str, AfterValidator(_origins)] = ""
    """Origins (scheme://host[:port]), separated by commas, whose pages may call from a browser; * for all."""

    # Logs
    log_format: Literal["plain", "json"] = "plain"
    """Lines for people, or JSON lines for programs."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important kind of line that is written."""
    access_log: bool = True
    """Whether each request is written to the log; probes and scrapes that went well only at level debug."""

    # Traces
    otlp_endpoint: (
        Annotated[str, _matching(r"https?://\S+", "must be http://host:port or https://host:port")] | None
    ) = None
    """Where traces go as OTLP over HTTP, such as http://collector:4318; none makes none. Needs the extra `otel`."""

    @model_validator(mode="after")
    def _request_holds_an_image(self) -> Settings:
        if self.max_request_bytes < self.max_image_bytes:
            raise ValueError("HIERA_MAX_REQUEST_BYTES must be at least HIERA_MAX_IMAGE_BYTES")
        return self

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Settings:
        if self.max_queue_rows < self.max_files_per_request:  # told to try again, it would for ever
            raise ValueError("HIERA_MAX_QUEUE_ROWS must be at least HIERA_MAX_FILES_PER_REQUEST")
        return self

    @property
    def api_key_entries(self) -> tuple[str, ...]:
        """The entries of `api_keys`, not checked yet."""
        return _listed(self.api_keys.get_secret_value())

    @property
    def admin_key_entries(self) -> tuple[str, ...]:
        """The entries of `admin_keys`, not checked yet."""
        return _listed(self.admin_keys.get_secret_value())

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        return _listed(self.cors_origins)


class SettingsError(Exception):
    """Some settings are wrong; `lines` has a readable line for each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the environment; `overrides`, by field name, come before it.

    Raises:
        SettingsError: with one line for each wrong value.
    """
    given = dict(overrides or {})
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError([_explain(fault, given) for fault in error.errors(include_url=False)]) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A warning for each HIERA_ variable that is no setting, with the nearest one that is."""
    known = [variable_of(name) for name in Settings.model_fields]
    warnings = []
    for variable in sorted(environment):
        if variable.upper().startswith(PREFIX) and variable.upper() not in (*known, *_OF_OTHER_COMMANDS):
            near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else "`hiera-serve run --help` lists the settings"
            warnings.append(f"{variable} is no setting and has no effect; {hint}")
    return warnings


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def _explain(fault: Any, given: Mapping[str, Any]) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return str(message)
    name = str(fault["loc"][0])
    source = f"--{name.replace('_', '-')}" if name in given else variable_of(name)
    message = message[:1].lower() + message[1:]
    requirement = message.replace("input should be", "must be").replace("string should", "must")
    return (
        f"{source}: {requirement}" if name.endswith("_keys") else f"{source} is {fault['input']!r}, but {requirement}"
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())

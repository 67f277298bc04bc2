"""`hiera-serve run`: the server, until a signal ends it."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

from app.commands.setting_flags import add_setting_flags, settings_from
from app.open_files import allow_open_files
from app.settings import Settings, unknown_variables
from app.telemetry import logs

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("hiera.server")

_SWITCH_INTERVAL_S = 0.0002


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting is a flag; a flag comes before its environment variable."""
    parser.description = (
        "Serve the packages of the model repository over HTTP. Every setting is an environment variable, named on the "
        "right, or a flag, which comes first."
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve. Returns the exit status: 0 after a drain, 1 when the server could not start.

    Raises:
        SettingsError: a setting is wrong.
    """
    settings = settings_from(arguments)
    _handle_signals_of_the_start()
    logs.configure(settings.log_format, settings.log_level, access_log=settings.access_log)
    for warning in unknown_variables(os.environ):
        _log.warning("%s", warning)
    # Imported here so that --help and a wrong setting answer at once.
    from app.main import create_app
    from app.server import listen

    allow_open_files()
    # An engine thread that has its probabilities waits for the interpreter at most so long: 5 ms cost 6% of throughput.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        _say_cannot_listen(settings.host, settings.port, error, "PORT or --port")
        return 1
    if _speaks_grpc(settings):
        try:
            listen(settings.host, settings.grpc_port).close()
        except OSError as error:
            if "grpc_port" in settings.model_fields_set:
                _say_cannot_listen(settings.host, settings.grpc_port, error, "GRPC_PORT or --grpc-port")
                return 1
            _log.warning("gRPC is off: port %d is taken; HIERA_GRPC_PORT names another", settings.grpc_port)
            settings = settings.model_copy(update={"grpc_port": 0})
    app = create_app(settings) if settings.http_workers == 1 else None
    status = _serve_alone(app, settings, listener) if app is not None else _serve_with_workers(settings, listener)
    _log.info("stopped")
    _end_process_if_threads_live(status)
    return status


def _speaks_grpc(settings: Settings) -> bool:
    return bool(settings.grpc_port) and importlib.util.find_spec("grpc") is not None


def _say_cannot_listen(host: str, port: int, error: OSError, port_setting: str) -> None:
    setting = port_setting if error.errno in (errno.EADDRINUSE, errno.EACCES) else "HOST or --host"
    _log.error("cannot listen on %s port %d: %s; set HIERA_%s", host, port, error.strerror or error, setting)


def _handle_signals_of_the_start() -> None:
    signal.signal(signal.SIGTERM, _end_at_once)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's wish
        signal.signal(signal.SIGHUP, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Until the server handles signals itself there is nothing to drain. An exception would come up wherever the main
    thread is just then: within an import it is lost, and where uvloop starts its loop it ends the process with 1."""
    os._exit(0)


def _serve_alone(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    from app.main import connection_limits
    from app.server import DrainingServer

    server = DrainingServer(
        app,
        connection_limits(settings),
        app.state.gate,
        grace_s=settings.shutdown_grace_seconds,
        timeout_s=settings.shutdown_timeout_seconds,
        on_drain=app.state.server.begin_drain,
        on_stop=app.state.server.refuse_requests,
        on_drop=app.state.server.drop_calls,
    )
    _say_where_to_look(settings, listener)
    server.run(sockets=[listener])
    return 0


def _serve_with_workers(settings: Settings, listener: socket.socket) -> int:
    from app.processes import serve

    return serve(settings, listener, on_serving=lambda: _say_where_to_look(settings, listener))


def _say_where_to_look(settings: Settings, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    fields = {
        "url": url,
        "docs": f"{url}/docs",
        "ready": f"{url}/health/ready",
        "models": str(settings.model_repository),
    }
    if _speaks_grpc(settings):
        fields["grpc"] = f"{host}:{settings.grpc_port}"
    _log.info("listening", extra={"fields": fields})
    _log.info("try: curl -F file=@photo.jpg %s/classify/image", url)
    if not settings.api_key_entries and settings.api_keys_file is None:
        _log.info("no API keys are set: whoever reaches %s port %d may classify", settings.host, port)


def _end_process_if_threads_live(status: int) -> None:
    """A thread that still compiles a model, or hangs in an engine, would run into a dying interpreter and abort it."""
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

"""Fetches official weights into a cache folder, with a progress bar, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from app.caches import cache_folder
from export.catalog import Download
from export.errors import DownloadFailed
from export.formats import wrong_start
from export.unfinished import in_progress, remove_abandoned

TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from and go to.

    `base_url` replaces the official addresses: a mirror's flat folder that holds the files under their catalog names.
    """

    cache: Path
    base_url: str | None = None

    def url(self, download: Download) -> str:
        if self.base_url is None:
            return download.url
        return f"{self.base_url.rstrip('/')}/{urllib.parse.quote(download.file)}"


def source_from_environment(environment: Mapping[str, str]) -> WeightsSource:
    """`HIERA_WEIGHTS_DIR` (default: hiera-serve in the user's caches) and `HIERA_WEIGHTS_URL` (default: official)."""
    folder = environment.get("HIERA_WEIGHTS_DIR") or cache_folder(environment)
    return WeightsSource(Path(folder), environment.get("HIERA_WEIGHTS_URL") or None)


def fetch(download: Download, source: WeightsSource) -> Path:
    """The path of the weights, which are fetched unless the cache has them.

    Raises:
        DownloadFailed: no address, no connection, an error of the server, an answer that is not the file, a short or a
            changed file.
    """
    target = source.cache / download.file
    url = source.url(download)
    partial = source.cache / f".{download.file}.{os.getpid()}.part"
    try:
        if target.is_file():
            return target
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadFailed(f"{url} is no http or https address; mend HIERA_WEIGHTS_URL")
        source.cache.mkdir(parents=True, exist_ok=True)
        remove_abandoned(source.cache, f".{download.file}.*.part")
        partial.touch()
        with in_progress(partial):
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 (the scheme was checked)
                _refuse_other_answers(response.status, response.headers)
                digest = _save(response, _total_bytes(response.headers), partial, download.file)
            fault = wrong_start(partial, download.file)
            if fault is not None:
                raise OSError(f"{fault}; a log-in page of the network, or a proxy, may have answered")
            if download.sha256 not in (None, digest):
                raise DownloadFailed(
                    f"{url}: the file has sha256 {digest}, not {download.sha256}; try again, or another mirror"
                )
            os.replace(partial, target)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no address, here or in a redirect
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DownloadFailed(
            f"cannot fetch {url} ({_reason(error)}).\n"
            f"Without a connection: fetch that address elsewhere and put the file at {target}, then run this again.\n"
            "Or pass it with --weights FILE, name a mirror in HIERA_WEIGHTS_URL or another folder in HIERA_WEIGHTS_DIR."
        ) from error
    finally:
        with suppress(OSError):  # of the cache folder, which the error above tells
            partial.unlink(missing_ok=True)
    return target


def _refuse_other_answers(status: int, headers: HTTPMessage) -> None:
    """Raises OSError for an answer that urllib takes for a success, but whose body is not the file as it is."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if status != 200:
        raise OSError(f"HTTP {status}, not 200")
    if encoding not in ("", "identity"):
        raise OSError(f"the answer is encoded ({encoding}), which was not asked for")


def _save(response: BinaryIO, total: int | None, path: Path, title: str) -> str:
    digest = hashlib.sha256()
    received = 0
    with (
        path.open("wb") as file,
        tqdm(desc=title, total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar,
    ):
        if total is not None and shutil.disk_usage(path.parent).free < total:
            raise OSError(f"the file has {total / 1e9:.1f} GB and {path.parent} has less room than that")
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received != total:
        raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def _total_bytes(headers: HTTPMessage) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _reason(error: OSError | HTTPException | ValueError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    if isinstance(error, UnicodeError):
        return "no host can have that name"
    return str(error) or type(error).__name__

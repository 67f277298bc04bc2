"""Keys: named, several, from the environment or a file that may change while the server runs. One ring opens the
classification, another the admin calls.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_RELOAD_CHECK_S = 1.0
_MOST_SECRETS = 8  # of one request: each is compared with every key, for callers who may have none
_log = logging.getLogger("hiera.keys")


class KeyRing:
    """The keys that open something.

    Args:
        keys: entries `name:secret`, or a secret alone (which is then called "key1", "key2", …).
        file: one entry a line, blank lines and lines with # in front aside; read again when it changes. A file that can
            no longer be read leaves the last keys in force.
        called: what such a key is called in messages.
        clock: monotonic seconds.

    Raises:
        ValueError: an entry is not in that form; OSError: the file cannot be read.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        file: Path | None = None,
        called: str = "API key",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._called = called
        self._fixed = _digests(keys, called)
        self._file = file
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = None
        self._checked = clock()
        self._digests = dict(self._fixed)
        if file is not None:
            self._load(file)

    @property
    def required(self) -> bool:
        """Whether there are keys at all. A file of keys counts even while it is empty."""
        return bool(self._fixed) or self._file is not None

    @property
    def names(self) -> tuple[str, ...]:
        """What the keys are called, each once."""
        return tuple(dict.fromkeys(self._digests.values()))

    def shares_a_secret_with(self, other: KeyRing) -> bool:
        """Whether some secret is in both rings now."""
        return not self._digests.keys().isdisjoint(other._digests)

    def name_of(self, headers: Iterable[tuple[bytes, bytes]], unless_of: KeyRing | None = None) -> str | None:
        """The name of the key that a request carries, or None if it carries none that fits. Beside it there may be
        others, such as a token for a proxy on the way. What is in `unless_of` too does not count.
        """
        self._reload_if_changed()
        found = None
        for secret in itertools.islice(_sent_secrets(headers), _MOST_SECRETS):
            digest = hashlib.sha256(secret).digest()
            name = self._name_by(digest)
            shared = unless_of is not None and unless_of._name_by(digest) is not None
            if found is None and not shared:
                found = name
        return found

    def _name_by(self, digest: bytes) -> str | None:
        found = None
        # Every key is compared, in constant time, so that timing tells neither a prefix nor which key was near.
        for known, name in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reload_if_changed(self) -> None:
        if self._file is None or self._clock() - self._checked < _RELOAD_CHECK_S:
            return
        self._checked = self._clock()
        try:
            if _stamp(self._file) != self._stamp:
                self._load(self._file)
                _log.info("%ss reloaded", self._called, extra={"fields": {"keys": len(self._digests)}})
        except (OSError, ValueError) as error:
            _log.warning("%ss could not be reloaded; the last ones stay in force: %s", self._called, error)

    def _load(self, file: Path) -> None:
        self._stamp = _stamp(file)
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        entries = (line for line in lines if line and not line.startswith("#"))
        self._digests = self._fixed | _digests(entries, self._called, before=len(self._fixed))


def _digests(entries: Iterable[str], called: str, before: int = 0) -> dict[bytes, str]:
    """Names by SHA-256 of the secret; the secrets themselves are not kept. Who has none is called by its number, after
    so many `before`."""
    digests = {}
    for number, entry in enumerate(entries, start=1):
        name, colon, secret = (part.strip() for part in entry.partition(":"))
        if not colon:
            name, secret = f"key{before + number}", name
        if not name or not secret or not (name + secret).isprintable() or " " in secret:
            raise ValueError(
                f"{called} {number} is not of the form name:secret, in printable characters without spaces"
            )
        digests[hashlib.sha256(secret.encode()).digest()] = name
    return digests


def _sent_secrets(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino

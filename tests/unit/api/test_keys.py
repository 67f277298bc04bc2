"""API keys."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.api.keys import KeyRing


def sent(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"x-api-key", secret.encode())]


def test_without_keys_none_is_required() -> None:
    assert not KeyRing().required


def test_every_key_is_compared_whichever_fits_and_as_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the time tells must depend neither on how much of a secret was guessed nor on whose it is."""
    compared: list[tuple[int, int]] = []
    same = hmac.compare_digest

    def watched(known: bytes, given: bytes) -> bool:
        compared.append((len(known), len(given)))
        return same(known, given)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ring = KeyRing(["alice:aaa", "bob:bbb", "carol:ccc"])
    for secret in ("aaa", "ccc", "wrong", "", "a" * 5000):
        compared.clear()
        ring.name_of(sent(secret))
        assert compared == [(32, 32)] * 3


def test_names_are_told_once_each() -> None:
    assert KeyRing(["alice:aaa", "bob:bbb", "alice:ccc"]).names == ("alice", "bob")
    assert KeyRing().names == ()


def test_secrets_without_a_name_are_callers_of_their_own_wherever_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("third\nfourth\n")
    assert KeyRing(["first", "second"], file).names == ("key1", "key2", "key3", "key4")


def test_a_key_is_known_by_its_name() -> None:
    keys = KeyRing(["alice:aaa", "bob:b:b:b", "plain", " dave : ddd "])
    assert keys.required
    assert [keys.name_of(sent(secret)) for secret in ("aaa", "b:b:b", "plain")] == ["alice", "bob", "key3"]
    assert [keys.name_of(sent(secret)) for secret in (" aaa ", "ddd")] == ["alice", "dave"]
    assert [keys.name_of(sent(secret)) for secret in ("aa", "aaaa", "", "alice", "AAA")] == [None] * 5
    for scheme in (b"Bearer ", b"bearer ", b"BEARER  "):
        assert keys.name_of([(b"authorization", scheme + b"aaa")]) == "alice"
    assert keys.name_of([(b"authorization", b"Digest aaa")]) is None
    assert keys.name_of([]) is None


def test_a_key_is_found_among_secrets_for_others_and_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, others = KeyRing(["alice:aaa", "bob:bbb"]), KeyRing(["op:root", "both:bbb"])
    foreign, own = (b"authorization", b"Bearer foreign"), (b"x-api-key", b"aaa")
    for headers in ([foreign, own], [own, foreign], [own, (b"x-api-key", b"bbb")], [foreign, *[own] * 3]):
        assert keys.name_of(headers) == "alice"
    assert keys.name_of([foreign, (b"x-api-key", b"bbb")], unless_of=others) is None
    assert keys.name_of([(b"x-api-key", b"bbb"), own], unless_of=others) == "alice"
    compared: list[bytes] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda known, given: compared.append(given))
    assert keys.name_of([(b"x-api-key", b"%d" % guess) for guess in range(1000)]) is None
    assert len(compared) == 8 * 2


@pytest.mark.parametrize("entry", ["", ":", "alice:", ":xyzzy", "alice:two words", "alice:xy\x00", "a\x00:xyzzy"])
def test_an_entry_that_is_no_key_is_refused_without_showing_it(entry: str) -> None:
    with pytest.raises(ValueError, match="API key 1 is not of the form") as raised:
        KeyRing([entry])
    assert "xy" not in str(raised.value)


def test_a_file_is_read_again_when_it_changes_and_kept_when_it_cannot_be(tmp_path: Path) -> None:
    now = [0.0]
    file = tmp_path / "keys"
    file.write_text("# comment\n\nalice:one\n")
    keys = KeyRing(["fixed:stays"], file, clock=lambda: now[0])
    assert keys.name_of(sent("one")) == "alice"
    file.write_text("alice:another\n")
    assert keys.name_of(sent("another")) is None  # not looked at again yet
    now[0] += 2
    assert keys.name_of(sent("another")) == "alice"
    assert keys.name_of(sent("one")) is None
    file.unlink()
    now[0] += 2
    assert keys.name_of(sent("another")) == "alice"
    file.write_text("broken entry here\n")
    now[0] += 2
    assert keys.name_of(sent("another")) == "alice"
    assert keys.name_of(sent("stays")) == "fixed"


def test_a_file_of_keys_closes_the_server_even_while_it_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch()
    assert KeyRing(file=file).required


def _a_moment_later(file: Path) -> None:
    file.write_text("alice:two\n")
    os.utime(file, ns=(9, 10))


def _longer(file: Path) -> None:
    file.write_text("alice:two\n\n")
    os.utime(file, ns=(9, 9))


def _another_file(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("alice:two\n")
    os.utime(other, ns=(9, 9))
    other.rename(file)


@pytest.mark.parametrize("change", [_a_moment_later, _longer, _another_file])
def test_a_key_that_gives_way_to_another_opens_nothing_more(tmp_path: Path, change: Callable[[Path], None]) -> None:
    now = [0.0]
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    os.utime(file, ns=(9, 9))
    keys = KeyRing((), file, clock=lambda: now[0])
    change(file)
    now[0] += 2
    assert keys.name_of(sent("two")) == "alice"
    assert keys.name_of(sent("one")) is None


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    class Changing(type(tmp_path)):  # type: ignore[misc]
        def read_text(self, *how: Any, **more: Any) -> str:
            text: str = super().read_text(*how, **more)
            if text == "alice:one\n":
                self.write_text("alice:another\n")
            return text

    now = [0.0]
    file = Changing(tmp_path / "keys")
    file.write_text("alice:one\n")
    keys = KeyRing((), file, clock=lambda: now[0])
    now[0] += 2
    assert keys.name_of(sent("another")) == "alice"


def test_the_log_tells_of_a_change_once_and_of_a_file_that_is_gone_once_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    keys = KeyRing((), file, clock=lambda: now[0])

    def ask_for_three_seconds() -> list[str]:
        caplog.clear()
        for _ in range(3):
            now[0] += 1
            keys.name_of(sent("one"))
            keys.name_of(sent("one"))
        return [record.levelname for record in caplog.records]

    with caplog.at_level(logging.INFO):
        assert ask_for_three_seconds() == []
        file.write_text("alice:one\nbob:two\n")
        assert ask_for_three_seconds() == ["INFO"]
        file.unlink()
        assert ask_for_three_seconds() == ["WARNING"] * 3
    assert "the last ones stay in force" in caplog.text


def test_rings_share_a_secret_wherever_they_have_it_from(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    assert KeyRing(["bob:two"], file).shares_a_secret_with(KeyRing(["op:one"]))
    assert not KeyRing(["bob:two"], file).shares_a_secret_with(KeyRing(["alice:three"]))

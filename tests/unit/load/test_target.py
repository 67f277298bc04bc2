import pytest

from app.errors import InvalidParameter
from app.load.target import parse_target


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "127.0.0.1:8000", "http://127.0.0.1:8000/"])
def test_an_address_of_this_machine_is_taken(url: str) -> None:
    target = parse_target(url)
    assert (target.address, target.port, target.url) == ("127.0.0.1", 8000, "http://127.0.0.1:8000")


def test_ipv4_is_preferred_for_a_name_with_both() -> None:
    assert parse_target("http://localhost:8000").address == "127.0.0.1"


@pytest.mark.parametrize("url", ["http://192.0.2.7:8000", "http://0.0.0.0:8000", "http://[2001:db8::1]:80"])
def test_another_machine_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter, match="--allow-remote"):
        parse_target(url)


def test_another_machine_is_taken_when_said_in_so_many_words() -> None:
    assert parse_target("http://192.0.2.7:8000", allow_remote=True).address == "192.0.2.7"


@pytest.mark.parametrize("url", ["https://127.0.0.1", "http://127.0.0.1/classify", "http://", "http://127.0.0.1:99999"])
def test_what_is_not_a_plain_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_target(url)

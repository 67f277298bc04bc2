"""Which CPUs the storm's server and its clients get."""

import os
import sys
from collections.abc import Iterator

import pytest

import benchmarks.chaos.__main__ as chaos


class _SeenEnough(Exception):
    pass


@pytest.fixture
def all_cores() -> Iterator[set[int]]:
    cores = os.sched_getaffinity(0)
    yield cores
    os.sched_setaffinity(0, cores)


def test_clients_keep_all_cores_where_only_the_server_is_pinned(
    all_cores: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(all_cores) < 2:
        pytest.skip("there is one core to choose from")
    one = min(all_cores)
    seen: list[set[int]] = []

    class Server:
        url = "http://127.0.0.1:9"

        def __enter__(self) -> None:
            seen.append(os.sched_getaffinity(0))

        def __exit__(self, *_: object) -> None:
            pass

    def set_scene(*_: object) -> None:
        seen.append(os.sched_getaffinity(0))
        raise _SeenEnough

    monkeypatch.setattr(chaos, "own_server", lambda *_: Server())
    monkeypatch.setattr(chaos, "set_scene", set_scene)
    monkeypatch.setattr(sys, "argv", ["chaos", "--model", "hiera_demo_objects", "--server-cores", str(one)])
    with pytest.raises(_SeenEnough):
        chaos.main()
    assert seen == [{one}, all_cores]

"""The sandbox's numbers are those of the kernel's own headers, on both architectures, as far as these are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.media import sandbox

X86_64 = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
AARCH64 = Path("/usr/include/asm-generic/unistd.h")  # what aarch64 numbers its calls by; on every machine

pytestmark = pytest.mark.skipif(not (X86_64.exists() and AARCH64.exists()), reason="needs Debian's linux-libc-dev")


def calls(header: Path) -> dict[int, str]:
    """Number to name. Where 32 and 64 bits share a number it is `__NR3264_`."""
    found = re.findall(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    return {int(number): name for name, number in found}


def test_an_allowed_call_is_the_call_of_its_name() -> None:
    x86_64, aarch64 = calls(X86_64), calls(AARCH64)
    for name, (on_x86_64, on_aarch64) in sandbox._ALLOWED.items():
        assert x86_64[on_x86_64] == name
        if on_aarch64 == sandbox._NONE:
            assert name not in aarch64.values()
        else:
            assert aarch64[on_aarch64] == name


def test_a_call_with_conditions_is_one_and_the_same_on_both() -> None:
    x86_64, aarch64 = calls(X86_64), calls(AARCH64)
    pairs = [each.numbers for each in sandbox._conditional()]
    names = {"x86_64": x86_64, "aarch64": aarch64}
    assert [x86_64[pair[0]] for pair in pairs] == [aarch64[pair[1]] for pair in pairs]
    assert {names[machine][each.seccomp] for machine, each in sandbox._ARCHITECTURES.items()} == {"seccomp"}
    assert x86_64[sandbox._CLONE3] == aarch64[sandbox._CLONE3] == "clone3"

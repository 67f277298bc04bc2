"""Cores are counted by affinity and by control group quota."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from app.engines.cpus import available_cpus, machine_id


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty /proc and /sys/fs/cgroup of a machine with eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroup.mkdir()
    return proc, cgroup


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_affinity_counts(machine: tuple[Path, Path]) -> None:
    assert available_cpus(*machine) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("5000 100000", 1),
        ("1600000 100000", 8),
        ("200000", 2),
    ],
)
def test_a_version_2_quota_is_rounded_up_to_whole_cores(machine: tuple[Path, Path], quota: str, cores: int) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "0::/app.slice/server\n")
    write(cgroup / "app.slice" / "server" / "cpu.max", quota + "\n")
    assert available_cpus(proc, cgroup) == cores


def test_the_tightest_quota_of_the_groups_above_counts(machine: tuple[Path, Path]) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "0::/app.slice/server\n")
    write(cgroup / "app.slice" / "server" / "cpu.max", "400000 100000")
    write(cgroup / "app.slice" / "cpu.max", "300000 100000")
    assert available_cpus(proc, cgroup) == 3


def test_a_container_whose_own_group_is_mounted_as_the_root_is_read_there(machine: tuple[Path, Path]) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "0::/docker/0123abcd\n")
    write(cgroup / "cpu.max", "200000 100000")
    assert available_cpus(proc, cgroup) == 2


def test_a_group_may_have_a_colon_in_its_name_and_what_lies_beside_the_groups_is_none(
    machine: tuple[Path, Path],
) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "0::/machine.slice/a:b\n")
    write(cgroup / "machine.slice" / "a:b" / "cpu.max", "300000 100000")
    write(cgroup.parent / "cpu.max", "100000 100000")
    assert available_cpus(proc, cgroup) == 3


def test_a_group_that_cannot_be_read_has_no_quota(machine: tuple[Path, Path]) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "0::/app.slice/server\n")
    write(cgroup / "app.slice", "no folder")
    assert available_cpus(proc, cgroup) == 8


def test_a_version_1_quota_is_that_of_the_cpu_controller_alone(machine: tuple[Path, Path]) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "4:cpuset:/elsewhere\n3:cpu:/job\n")
    for group, quota in (("job", "500000"), ("elsewhere", "100000")):
        write(cgroup / "cpu" / group / "cpu.cfs_period_us", "100000\n")
        write(cgroup / "cpu" / group / "cpu.cfs_quota_us", f"{quota}\n")
    assert available_cpus(proc, cgroup) == 5
    write(proc / "self" / "cgroup", "4:cpuset:/elsewhere\n3:cpuacct,cpu:/job\n")  # mounted as both and as either
    assert available_cpus(proc, cgroup) == 5


def test_a_version_1_quota_counts_and_minus_one_means_none(machine: tuple[Path, Path]) -> None:
    proc, cgroup = machine
    write(proc / "self" / "cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n")
    write(cgroup / "cpu,cpuacct" / "job" / "cpu.cfs_period_us", "100000\n")
    write(cgroup / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us", "-1\n")
    assert available_cpus(proc, cgroup) == 8
    write(cgroup / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us", "250000\n")
    assert available_cpus(proc, cgroup) == 3


def test_this_machine_has_a_name_and_a_core() -> None:
    assert available_cpus() >= 1
    assert f"x{available_cpus()}" in machine_id()


def test_machines_with_other_names_or_instructions_are_told_apart(tmp_path: Path) -> None:
    def identity(cpuinfo: str) -> str:
        write(tmp_path / "cpuinfo", cpuinfo)
        return machine_id(tmp_path)

    epyc = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t: fpu\n"
    assert identity(epyc).startswith("AMD EPYC x")
    others = [epyc, epyc.replace("EPYC", "Ryzen"), epyc.replace(" avx512_bf16", ""), "Features\t: asimd bf16\n", ""]
    assert len({identity(each) for each in others}) == len(others)
    assert identity(epyc) == identity(epyc)
    assert identity(epyc.replace("\nflags\t: fpu\n", "\nflags\t: other\n")) == identity(epyc)


def test_a_machine_of_another_architecture_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_id()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert machine_id() != here


def test_arm_s_cores_are_told_apart_by_the_numbers_that_are_their_names(tmp_path: Path) -> None:
    def identity(part: str, more: str = "") -> str:
        name = f"CPU implementer\t: 0x41\nCPU part\t: {part}\n{more}"
        write(tmp_path / "cpuinfo", f"processor\t: 0\nFeatures\t: asimd\n{name}")
        return machine_id(tmp_path)

    assert identity("0xd0c").startswith("0x41 0xd0c x")
    assert (
        len({identity("0xd0c"), identity("0xd40"), *(identity("0xd0c", f"CPU variant\t: {n}\n") for n in (1, 2))}) == 4
    )

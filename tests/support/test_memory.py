import pytest

from cifar_resnets.support import memory
from cifar_resnets.support.memory import available_bytes


@pytest.fixture
def machine(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:    100 kB\nHugePages_Total:   0\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    return tmp_path


def test_what_linux_says(machine):
    assert available_bytes(machine) == 100 * 1024


def test_a_container_may_have_less(machine):
    (machine / "memory.max").write_text("70000\n")
    (machine / "memory.current").write_text("50000\n")
    (machine / "memory.stat").write_text("anon 1\ninactive_file 20000\n")
    assert available_bytes(machine) == 40_000
    (machine / "memory.max").write_text("max\n")
    assert available_bytes(machine) == 100 * 1024


def test_so_may_one_of_cgroups_of_version_1(machine):
    (machine / "memory").mkdir()
    (machine / "memory/memory.limit_in_bytes").write_text("70000\n")
    (machine / "memory/memory.usage_in_bytes").write_text("90000\n")
    (machine / "memory/memory.stat").write_text("inactive_file 0\n")
    assert available_bytes(machine) == 0


def test_elsewhere_than_on_linux_it_is_the_memory_of_the_machine(machine, monkeypatch):
    monkeypatch.setattr(memory, "_MEMORY", machine / "absent")
    assert available_bytes(machine) > 1e8

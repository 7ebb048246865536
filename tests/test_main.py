"""The entry of the command line: what must be quick, and what must be the same elsewhere."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_resnets import __version__
from cifar_resnets.__main__ import COMMANDS

LIGHT = """
import sys
from cifar_resnets.__main__ import main
main(sys.argv[1:])
heavy = {"torch", "lightning", "timm", "numpy", "torchvision"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["-h"], []])
def test_light_commands_import_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "--version" in args:
        assert done.stdout == f"cifar-resnets {__version__}\n"
    else:
        assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
        assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.process
def test_another_encoding_of_the_locale_is_replaced_by_utf8(tmp_path: Path) -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    (tmp_path / "Läufe").mkdir()
    command = [sys.executable, "-m", "cifar_resnets", "collect", "Läufe"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 3 and done.stderr.startswith("cifar-resnets: collect: there is no run below Läufe, ")


def test_help_lists_the_commands_there_are() -> None:
    from cifar_resnets.cli.train import CLI

    assert set(COMMANDS) == {*CLI.subcommands(), "summary", "find-lr", "export", "report", "collect", "recipes"}


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import cifar_resnets.cli.train
    from cifar_resnets.__main__ import main

    def fail(args: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cifar_resnets.cli.train, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fit"])


def test_exhausted_memory_ends_in_a_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import cifar_resnets.cli.train
    from cifar_resnets.__main__ import main

    def fail(args: list[str]) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(cifar_resnets.cli.train, "run", fail)
    with pytest.raises(SystemExit) as stop:
        main(["fit"])
    assert stop.value.code == 6
    assert capfd.readouterr().err.startswith("cifar-resnets: memory is exhausted (Unable to allocate 9 GiB)")


def test_letters_that_the_output_has_not_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from cifar_resnets.__main__ import main

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    main(["--version"])
    print("Bär", flush=True)
    assert written.getvalue().endswith(b"B\\xe4r\n")


def test_modules_of_the_current_folder_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from cifar_resnets.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    (tmp_path / "of_the_user.py").write_text("import timm\nnet = timm.models.resnet10t")
    main(["summary", "of_the_user:net"])
    assert "resnet10t" in capfd.readouterr().out

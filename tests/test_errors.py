import ast
import errno
import os
import subprocess
import sys

import pytest

from cifar_resnets import errors

EXIT_STATUSES = {
    "UserError": 2,
    "ConfigurationError": 2,
    "DataError": 3,
    "CheckpointError": 4,
    "DivergenceError": 5,
    "SearchError": 5,
    "OutputError": 6,
    "ResourceError": 6,
}
# run before and after the import, because a start of Python brings some modules of its own
IMPORTS = "import sys; before = set(sys.modules); import cifar_resnets.errors; print(*set(sys.modules) - before)"


def error_classes() -> dict[str, type]:
    return {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def test_each_class_has_the_exit_status_that_the_command_line_promises():
    assert {name: error.exit_status for name, error in error_classes().items()} == EXIT_STATUSES


@pytest.mark.parametrize("name", EXIT_STATUSES)
def test_errors_are_value_errors_and_can_be_caught_together(name):
    with pytest.raises(ValueError, match="^what, where, remedy$") as caught:
        raise getattr(errors, name)("what, where, remedy")
    assert isinstance(caught.value, errors.UserError)


def test_siblings_are_not_caught_by_each_other():
    siblings = [error for name, error in error_classes().items() if name != "UserError"]
    assert all(error.__bases__ == (errors.UserError,) for error in siblings)


def test_require_names_the_key_the_value_and_what_is_allowed():
    errors.require("model", True, "lr", 0.1, "a number above 0")
    with pytest.raises(errors.ConfigurationError, match=r"^model\.lr: -1 is not allowed, give a number above 0$"):
        errors.require("model", False, "lr", -1, "a number above 0")


def test_the_module_imports_nothing_that_python_has_not_loaded():
    with open(errors.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["errno", "os"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_importing_it_loads_nothing_but_the_package():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"cifar_resnets", "cifar_resnets.errors"}


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "last.ckpt: No space left on device"),
        (errno.EROFS, "last.ckpt: Read-only file system"),
        (errno.EEXIST, "last.ckpt: File exists"),
    ],
)
def test_what_cannot_be_written_is_the_user_s_to_mend(number, line):
    assert str(errors.output_error(OSError(number, os.strerror(number), "last.ckpt"))) == line
    assert errors.output_error(ConnectionResetError(errno.ECONNRESET, "of another rank")) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1.2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_exhausted_memory_is_a_line(error):
    line = str(errors.memory_error(error))
    assert line.startswith("memory is exhausted (") and line.endswith(
        "give a smaller batch, network or number of images"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError(errno.ENOENT, "no file"), ValueError("out of memory")]
)
def test_other_errors_have_nothing_to_do_with_memory(error):
    assert errors.memory_error(error) is None

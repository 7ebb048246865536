"""Entry point of the command line: dispatches commands before torch is imported, and prints errors as one line."""

import importlib
import io
import locale
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from cifar_resnets import __version__
from cifar_resnets.distributed.rank_failure import WAIT, ending_together, report, wait_for_launcher
from cifar_resnets.distributed.scheduler import (
    REQUEUE_TIMEOUT,
    forget_leftovers,
    is_under_torchrun,
    rank_by_environment,
    requeue,
)
from cifar_resnets.distributed.signals import SIGNALS_OF_PROCESS, Stopped
from cifar_resnets.errors import ConfigurationError, UserError, memory_error, output_error
from cifar_resnets.support.malloc import keep_freed_memory

COMMANDS = {
    "fit": "train a network, then test its best checkpoint",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images, class by class",
    "predict": "predict the classes of any images, or of the test images",
    "find-lr": "run a learning-rate range test on what a recipe would train",
    "summary": "show a network's layers and their receptive fields",
    "export": "write a checkpoint's network as ONNX, torch.export or safetensors",
    "report": "write one HTML file about a run, or several side by side",
    "collect": "put the runs of several seeds into one table, with mean and spread",
    "recipes": "list, show or copy the recipes that come with the package",
}
OWN_MODULE = ("find-lr", "summary", "export", "report", "collect", "recipes")  # the others are LightningCLI's
HELP = f"""usage: cifar-resnets [--version] [--help] [--debug] COMMAND ...

Train, test and compare residual networks on CIFAR-10 and on image folders.

commands:
{chr(10).join(f"  {name:<10} {what}" for name, what in COMMANDS.items())}

options:
  --version  print the version
  --debug    show the traceback of an error

  cifar-resnets fit -c quickstart      a recipe by its name, or a file
  cifar-resnets predict cat.jpg photos/ --ckpt_path best.ckpt
  cifar-resnets summary cifar_resnet20 --verify
  cifar-resnets COMMAND --help   lists all options of a command"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: with the exit status of an error (see `cifar_resnets.errors`), or 128 + n after signal n.
    """
    _set_up_output()
    if argv is None:
        _use_utf8()
    forget_leftovers(os.environ)  # before Lightning is imported, which reads the rank
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("--help", "-h"):
        print(HELP)
    elif args[0] == "--version":
        print(f"cifar-resnets {__version__}")
    else:
        with ending_together():
            _run(args, debug)


def _use_utf8() -> None:
    """Starts Python again in its UTF-8 mode, the default from 3.15 on, if the locale has another encoding.

    Recipes, and the names of files and classes, are in UTF-8, also in `LC_ALL=POSIX` on a cluster.
    """
    is_utf8 = locale.getencoding().lower().replace("-", "") == "utf8"
    if sys.executable and not (is_utf8 or sys.flags.utf8_mode):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _set_up_output() -> None:
    """Makes printing possible where output was closed, and names of classes where its encoding has no such letters."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _find_modules_here() -> None:
    """Lets recipes name modules of the current folder, as with `python -m`; those that are installed come first."""
    with suppress(OSError):  # the folder may be gone
        if not {"", here := os.getcwd()} & set(sys.path):
            sys.path.append(here)


def _run(args: list[str], debug: bool) -> None:
    try:
        if args[0] not in COMMANDS:
            raise ConfigurationError(f"{args[0]!r} is not a command, give one of {', '.join(COMMANDS)}")
        keep_freed_memory()
        _find_modules_here()
        with SIGNALS_OF_PROCESS.installed():
            _runner(args)(args)
    except Stopped as stop:
        _end(stop, args[0])
    except UserError as error:
        if debug:
            raise
        _fail(str(error), error.exit_status)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        culprit = memory_error(error) or (output_error(error) if isinstance(error, OSError) else None)
        if debug or culprit is None:
            raise
        _fail(str(culprit), culprit.exit_status)


def _runner(args: Sequence[str]) -> Callable[[list[str]], None]:
    """Imports the module of a subcommand alone: torch takes seconds to import, lightning some more."""
    module = args[0].replace("-", "_") if args[0] in OWN_MODULE else "train"
    if args[0] == "predict" and importlib.import_module("cifar_resnets.cli.predict").takes(args):
        module = "predict"
    run: Callable[[list[str]], None] = importlib.import_module(f"cifar_resnets.cli.{module}").run
    return run


def _end(stop: Stopped, command: str) -> NoReturn:
    """Ends a run that a signal has stopped; SLURM sends SIGUSR1 before the time limit."""
    SIGNALS_OF_PROCESS.ignore()  # a job that is requeued gets more of them
    is_time_up = stop.signum == signal.SIGUSR1
    if rank_by_environment():
        status = 75 if is_time_up else 128 + stop.signum
        if not is_under_torchrun():  # another launcher would end rank 0 before it has reported
            wait_for_launcher(REQUEUE_TIMEOUT if is_time_up else WAIT, status)
        raise SystemExit(status)
    line, status = f"stopped by {signal.Signals(stop.signum).name}", 128 + stop.signum
    if is_time_up:
        problem = requeue()
        line += " and requeued" if problem is None else f", not requeued: {problem}"
        status = 75 if problem is None else status
    if stop.checkpoint or command == "fit":
        line += f"; the checkpoint is {stop.checkpoint}" if stop.checkpoint else "; no checkpoint was written"
    _fail(line, status)


def _fail(message: str, status: int) -> NoReturn:
    report(message)
    raise SystemExit(status)


if __name__ == "__main__":
    main()

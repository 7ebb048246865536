"""`cifar-resnets recipes`: lists, shows and copies the recipes and hardware files that come with the package.

`find_recipe` is how every command finds them by their names. Neither torch nor YAML is imported.
"""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_resnets.cli.parser import CommandParser
from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.support.atomic_file import naming
from cifar_resnets.support.text import did_you_mean

FOLDER = Path(__file__).parents[1] / "configs"  # in the repository a link to its folder of this name
ENDING = ".yaml"
EXAMPLES = """  cifar-resnets recipes
  cifar-resnets recipes show resnet20_onecycle
  cifar-resnets recipes copy resnet20_onecycle     writes resnet20_onecycle.yaml
  cifar-resnets fit -c resnet20_onecycle -c gpu

`-c NAME` takes the file NAME or NAME.yaml in the current folder, such as a copy, else the one that is listed here."""
OF_SOURCE = "* the source's figure; recipes show NAME says what was measured here, on which images"


@dataclass(frozen=True)
class Header:
    """What the comment at the head of a recipe says: a line of summary, accuracy and time, each in few words."""

    summary: str
    accuracy: str
    time: str


def shipped(kind: str = "*") -> dict[str, Path]:
    """Returns the files that come with the package by their names; of one kind, `recipes` or `hardware`, or all."""
    return {path.stem: path for path in sorted(FOLDER.glob(f"{kind}/*{ENDING}"))}


def find_recipe(text: str) -> str:
    """Returns the path of a recipe or hardware file that was given by `-c`.

    Args:
        text: a path, which is returned as it is, or the name of one that comes with the package. A file of this name,
            or with `.yaml` behind it, in the current folder comes first.

    Raises:
        ConfigurationError: when it is a name, but neither a file nor one that comes with the package.
    """
    is_name = re.fullmatch(r"[\w-]+", text) is not None
    if not is_name or _is_file(text):
        return text
    if _is_file(text + ENDING):
        return text + ENDING
    return str(_named("--config", text, "file or recipe"))


def _is_file(path: str) -> bool:
    """Returns whether there is something else than a folder, such as a pipe, or a link to a copy that is gone."""
    return os.path.lexists(path) and not os.path.isdir(path)


def with_paths(args: Sequence[str]) -> list[str]:
    """Returns a command line with the paths of recipes in the place of their names; raises as `find_recipe`."""
    found: list[str] = []
    for arg in args:
        option = re.match(r"--config=|-c(?=[^-])", arg)
        if found and found[-1] in ("-c", "--config"):
            found.append(find_recipe(arg))
        else:
            found.append(option[0] + find_recipe(arg[option.end() :]) if option else arg)
    return found


def _named(key: str, name: str, what: str) -> Path:
    known = shipped()
    if name not in known:
        hint = did_you_mean(name, known) or "; `cifar-resnets recipes` lists them"
        raise ConfigurationError(f"{key}: there is no {what} {name}{hint}")
    return known[name]


def hint_for_missing(path: Path) -> str:
    """Returns how to name the recipe that was probably meant by the path of a missing file; nothing for any other."""
    return f"; the one that comes with the package is -c {path.stem}" if path.stem in shipped() else ""


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user."""
    parser = CommandParser("recipes", "List, show or copy the recipes that come with the package.", EXAMPLES)
    parser.add_argument("action", nargs="?", choices=("show", "copy"), help="print one, or write it to this folder")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a recipe or a hardware file")
    given = parser.parse_args(args[1:])
    if given.action is None:
        print(listing(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
        return
    if given.name is None:
        parser.error(f"{given.action} takes the NAME of a recipe, `cifar-resnets recipes` lists them")
    path = _named(f"recipes {given.action}", given.name, "recipe")
    if given.action == "show":
        print(path.read_text(encoding="utf-8"), end="")
    else:
        _copy(path, Path(path.name))


def _copy(path: Path, target: Path) -> None:
    content = path.read_bytes()
    try:
        file = open(target, "xb")  # noqa: SIM115  closed below, where what is half written is removed
    except FileExistsError as error:
        raise OutputError(f"recipes copy: {target} is already there, and stays as it is") from error
    try:
        with naming(target), file:
            file.write(content)
    except OSError:
        target.unlink()
        raise
    print(f"{target}, from now on what `-c {path.stem}` means in this folder")


def listing(width: int | None = None) -> str:
    """Returns a line for each recipe and hardware file, cut to the width of a terminal, with headings."""
    recipes = {name: read_header(path) for name, path in shipped("recipes").items()}
    longest = max(map(len, recipes))
    rows = [f"  {n:<{longest}}  {h.accuracy:>9}  {h.summary} {h.time}".rstrip() for n, h in recipes.items()]
    hardware = {name: read_header(path).summary for name, path in shipped("hardware").items()}
    others = [f"  {name:<{longest}}  {summary}" for name, summary in hardware.items()]
    lines = [*rows, f"  {OF_SOURCE}", "hardware, as a second -c:", *others]
    short = [line if width is None or len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return "\n".join(["recipes, for fit -c NAME, with their accuracy:", *short])


def read_header(path: Path) -> Header:
    """Reads the comment at the head of a recipe or a hardware file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
    text = " ".join(comment)
    summary = re.split(r"(?<=\.) (?=[A-Z])| Source:", text)[0].strip()
    accuracy, time = (_entry(text, name) for name in ("Accuracy", "Time"))
    number = re.match(r"\d+\.\d+ %", accuracy)
    is_of_source = re.search(r"\((the )?(source|paper)'s figure", accuracy) is not None
    shown = "" if number is None else number[0] + ("*" if is_of_source else " ")
    time = re.split(r"[,;(]", time)[0].strip()
    return Header(summary, shown, "" if not time or time.startswith("not measured") else f"({time})")


def _entry(text: str, name: str) -> str:
    """Returns what follows `name:` in a header, up to the next entry."""
    match = re.search(rf"\b{name}:\s+(.*?)(?= (?:Source|Accuracy|Time|Command):|$)", text)
    return match[1] if match else ""

"""README.md and the pages below docs: each command is parsed, each key and link exists, each message is the code's."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import benchmark
import numpy as np
import pytest
from documentation import PAGES, ROOT, anchors, code_lines, code_spans, commands, examples, section
from image_samples import noise, save
from PIL import Image
from support import Result

from cifar_resnets import __main__ as main
from cifar_resnets.callbacks.confusion import Confusion
from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.cli import collect, export, predict, report, summary
from cifar_resnets.cli.default_callbacks import Explanations
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.cifar import CIFAR100
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.support.signature import parameters_of
from cifar_resnets.training.schedules import Cosine, OneCycle, Step

LIGHT = {"summary": summary, "export": export, "report": report, "collect": collect, "predict": predict}
OWN_CODE = """
from lightning.pytorch.callbacks import Callback as Hello
from torch.optim import SGD as MySGD
from cifar_resnets.data.digits import Digits as Shapes, Digits as Stripes
from cifar_resnets.training.schedules import Cosine as MySchedule
from torch.nn import Identity as net
"""


def in_page(page: str) -> list[list[str]]:
    return [words for words in commands(PAGES[page]) if words[0] == "cifar-resnets"]


def lightning_s(words: list[str]) -> bool:
    """Whether a command line is LightningCLI's, which `--print_config` parses without running it."""
    return words[1] in ("fit", "validate", "test", "find-lr") or (
        words[1] == "predict" and not predict.takes(words[1:])
    )


ALL = {" ".join(words): words for page in PAGES for words in in_page(page)}
PARSED = {line: words for line, words in ALL.items() if lightning_s(words) and len(words) > 2}


@pytest.fixture
def elsewhere(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the recipes, a module of the user's and the checkpoint that pages name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copy(checkpoint, tmp_path / "best.ckpt")
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("command", PARSED)
def test_a_command_that_trains_or_evaluates_is_parsed(
    cli: Callable[..., Result], elsewhere: Path, command: str
) -> None:
    args = PARSED[command][1:]
    if args[0] in ("validate", "test", "predict") and "--ckpt_path" in args:
        path = elsewhere / args[args.index("--ckpt_path") + 1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copy(elsewhere / "best.ckpt", path)
    result = cli(*args, "--print_config")
    assert result.status == 0, result.err


def test_the_other_commands_are_parsed(cli: Callable[..., Result]) -> None:
    for words in ALL.values():
        assert words[1] in (*main.COMMANDS, "COMMAND"), words
        if words[1] in LIGHT and not lightning_s(words) and words[2:] != ["--help"]:
            LIGHT[words[1]]._parser().parse_args(words[2:])
        elif words[1] == "recipes":
            result = cli(*words[1:])
            assert (result.status, result.err) == (0, ""), words


def test_the_benchmarks_are_parsed() -> None:
    found = [words for page in PAGES for words in commands(PAGES[page]) if words[0] == "scripts/benchmark.py"]
    assert {words[1] for words in found} == benchmark.PARTS.keys()
    for words in found:
        benchmark.parse(words[1:])


@cache
def known_options() -> set[str]:
    """All options of the commands, of the scripts and of their benchmarks."""
    known = {option for each in LIGHT.values() for option in each._parser()._option_string_actions}
    for path in (*ROOT.glob("scripts/*"), *ROOT.glob("scripts/benchmarks/*.py")):
        known |= set(re.findall(r"--[\w-]+", path.read_text())) if path.is_file() else set()
    sections = {"data": [CIFAR100, ImageFolder], "data.augment": [Augmentation], "trainer.callbacks": [LRFinder]}
    sections |= {"explain": [Explanations], "explain.misclassified": [Misclassified], "explain.confusion": [Confusion]}
    sections |= {"model.schedule": [OneCycle, Step, Cosine]}
    return known | {
        f"--{key}.{name}" for key, classes in sections.items() for each in classes for name in parameters_of(each)
    }


# of other programs; of networks and loggers, whose keys the parser knows when it has their class
OF_OTHERS = """
    --array --backend-store-uri --force-reinstall --gpus-per-node --kill-on-bad-exit --logdir --max-restarts --nodes
    --shutdown-timeout --strict --model.network_args. --trainer.logger. --gpus --ipc --rm --tag --user --volume
""".split()


def test_each_key_exists(cli: Callable[..., Result]) -> None:
    helps = [main.HELP, *(cli(command, "--help").out for command in ("fit", "find-lr"))]
    known = {*known_options(), *OF_OTHERS, *re.findall(r"--[\w.+-]+", " ".join(helps))}
    for page, text in PAGES.items():
        code = " ".join([*code_lines(text), *code_spans(text)])
        for option in set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)):
            is_known = option in known or any(each.endswith(".") and option.startswith(each) for each in known)
            assert is_known, f"{page}: there is no {option}"


def test_each_link_leads_somewhere() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if path.startswith(("http://", "https://")):
                continue
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            known = anchors(file.read_text()) if file.suffix == ".md" else set()
            assert not anchor or anchor in known, f"{page}: {target}"


def test_each_script_and_file_that_is_named_exists() -> None:
    for page, text in PAGES.items():
        code = " ".join([*code_lines(text), *code_spans(text)])
        named = r"(?<![\w/.])(?:scripts|tests|configs|docs|cifar_resnets)/[\w./-]+\.\w+(?![\w/*<])"
        for name in re.findall(named, code):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_the_first_pages_lead_to_all_others() -> None:
    pages = {Path(page).name for page in PAGES if page.startswith("docs/") and "/api/" not in page} - {"index.md"}
    for first, folder in (("README.md", "docs/"), ("docs/index.md", "")):
        linked = set(re.findall(rf"\]\({folder}(\w+\.md)[)#]", PAGES[first]))
        assert linked == pages, first
    api = {page.removeprefix("docs/") for page in PAGES if "/api/" in page}
    assert api == set(re.findall(r"\]\((api/\w+\.md)\)", PAGES["docs/python_api.md"]))


def test_the_readme_is_short() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 150
    assert all(len(line) <= 125 for line in lines if not line.startswith("|"))


EXAMPLES = {f"{page} {i}": text for page in PAGES for i, text in enumerate(examples(page))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_python_example_compiles_and_its_imports_exist(name: str) -> None:
    try:
        tree = ast.parse(EXAMPLES[name])
    except SyntaxError:  # a line of a table
        tree = ast.parse(f"{{{EXAMPLES[name]}}}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                importlib.import_module(each.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)


NAMED = {call for text in PAGES.values() for call in re.findall(r"`(\w+)\([^`]*\)` from\s+`([\w.]+)`", text)}


@pytest.mark.parametrize("call", sorted(NAMED), ids=" ".join)
def test_functions_that_are_named_can_be_imported(call: tuple[str, str]) -> None:
    assert callable(getattr(importlib.import_module(call[1]), call[0]))


def test_the_examples_of_the_python_api_run(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(elsewhere)
    save(elsewhere / "cat.jpg", noise(40, 50, 3))
    names = {"pil_image": Image.open("cat.jpg"), "array": np.asarray(Image.open("cat.jpg"))}
    names["batch"] = noise(16, 16, 3)[None].repeat(2, 0)
    for text in examples("docs/python_api.md"):
        exec(compile(text, "python_api.md", "exec"), names)
    assert names["images"].shape == (2, 3, 16, 16) and names["maps"].shape == (2, 2, 16, 16)
    assert names["agrees"] and names["trainer"].callback_metrics["test/acc"] >= 0
    assert sorted(names["labels"].unique().tolist()) == [0, 1]


@cache
def templates() -> list[re.Pattern[str]]:
    """Each text of the package's code, of three words or more, as a pattern in which anything may stand for a value."""
    found = set()
    for path in (ROOT / "cifar_resnets").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            values = node.values if isinstance(node, ast.JoinedStr) else [] if id(node) in parts else [node]
            texts = [each.value if isinstance(each, ast.Constant) else None for each in values]
            if len(" ".join(text for text in texts if isinstance(text, str)).split()) >= 3:
                pattern = "".join(".*" if text is None else re.escape(str(text)) for text in texts)
                found.add(re.sub(r"\\\\\d", ".*", pattern))  # a group of an expression
    return [re.compile(each) for each in sorted(found)]


LINES = PAGES["docs/troubleshooting.md"].partition("## Status 2")[2]
MESSAGES = {message for _, message in re.findall(r"^\| (`+)(.+?)\1 \|", LINES, re.MULTILINE)}
# of the system, and of scripts/torchrun.py
NOT_OF_PACKAGE = {"No space left on device", "rank 1 was killed by signal 9"}


@pytest.mark.parametrize("message", sorted(MESSAGES - NOT_OF_PACKAGE))
def test_a_message_of_the_troubleshooting_page_is_one_of_the_code(message: str) -> None:
    assert any(each.search(message) for each in templates())


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    errors = importlib.import_module("cifar_resnets.errors")
    known = {cls.exit_status for _, cls in inspect.getmembers(errors, inspect.isclass) if hasattr(cls, "exit_status")}
    rows = re.findall(r"^\| (\d) \|", section("docs/troubleshooting.md", "Exit status"), re.MULTILINE)
    assert {int(row) for row in rows} == known | {0, 1}


@pytest.mark.process
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="NOT TESTED: there is no mkdocs, run scripts/setup.sh dev")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of the theme, about its successor
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")}
    assert pages >= {Path(page).relative_to("docs").with_suffix(".html") for page in PAGES if page.startswith("docs/")}
    assert "Loads the classifier of a checkpoint" in (tmp_path / "site/api/inference.html").read_text()
    for path in pages:
        text = (tmp_path / "site" / path).read_text()
        assert not re.findall(
            r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//', text
        ), path

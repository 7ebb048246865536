"""`cifar-resnets find-lr` as a user runs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from processes import run
from support import PLAIN, Result

Run = Callable[..., Result]
METHODS = ("valley", "steep", "minimum", "slide")
SHORT = ("--num_steps", "20", "--max_lr", "1")  # too short for a suggestion, long enough for a table
FLAT = ("--num_steps", "20", "--min_lr", "1e-9", "--max_lr", "1e-8")
DIVERGING = ("--min_lr", "1e3", "--max_lr", "1e6")
FINDER = """
data: {init_args: {batch_size: 80}}
trainer:
  callbacks: [{class_path: LRFinder, init_args: {num_steps: 50, min_lr: 0.001, method: METHOD, on_failure: FAILURE}}]
"""
ONE_CYCLE = "model: {schedule: {class_path: OneCycle, init_args: {lr_min: found}}}"


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, str]:
    """The arguments that name a recipe."""
    (tmp_path / "tiny.yaml").write_text(PLAIN)
    return ("-c", "tiny.yaml")


def finder(folder: Path, method: str = "valley", failure: str = "keep") -> tuple[str, str]:
    """The arguments that name a recipe with a finder."""
    (folder / "finder.yaml").write_text(FINDER.replace("METHOD", method).replace("FAILURE", failure))
    return ("-c", "finder.yaml")


def numbers(result: Result) -> dict[str, list[float]]:
    """For each row of the table its rate, and those of the lowest and the highest run."""
    assert (result.status, result.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.out.splitlines() if line[0] == "│"]
    return {name: [float(cell) for cell in cells if cell] for name, *cells in rows}


def check_table(result: Result, low: float, high: float) -> None:
    found = numbers(result)
    assert list(found) == [*METHODS, "lr_min"]
    assert low <= found.pop("lr_min")[0] <= high
    for name, (rate, lowest, highest) in found.items():
        assert low / (10 if name == "minimum" else 1) <= lowest <= rate <= highest <= high
    assert max(map(len, result.out.rpartition("┘")[0].splitlines())) <= 80


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# What is found.


def test_the_table_of_a_recipe_and_nothing_else(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    before = contents(tmp_path)
    result = cli("find-lr", *tiny)
    check_table(result, 1e-4, 10)
    assert result.out.startswith("Range test of 100 steps from 0.0001")
    assert "\r" not in result.out
    assert "epoch" not in result.out
    assert contents(tmp_path) == before


@pytest.mark.process
def test_as_a_process(tiny: tuple[str, str], tmp_path: Path) -> None:
    before = contents(tmp_path).keys()
    result = run("find-lr", *tiny, *SHORT, "--plot", "curve.png", cwd=tmp_path)
    check_table(result, 1e-4, 1)
    assert "written: curve.png\n" in result.out
    files = {str(tmp_path / name) for name in ("curve.png", ".out-0", ".err-0")}  # two for what it prints
    assert contents(tmp_path).keys() - before == files


def test_what_is_typed_is_used(cli: Run, tiny: tuple[str, str]) -> None:
    typed = ("--num_runs", "2", "--num_steps", "30", "--min_lr", "0.001", "--max_lr", "1")
    result = cli("find-lr", *tiny, *typed)
    check_table(result, 0.001, 1)
    assert result.out.startswith("Range test of 30 steps from 0.001")
    assert any(lowest < highest for _, lowest, highest in (row for row in numbers(result).values() if len(row) == 3))


def test_one_run_is_the_lowest_and_the_highest(cli: Run, tiny: tuple[str, str]) -> None:
    rows = numbers(cli("find-lr", *tiny, *SHORT))
    assert all(len(set(rows[name])) == 1 for name in METHODS)


@pytest.mark.parametrize("method", ["valley", "slide"])
def test_the_recipe_s_own_method_is_bold(
    cli: Run, tiny: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = cli("find-lr", *tiny, *finder(tmp_path, method), *SHORT)
    assert [name for name in METHODS if re.search(rf"\x1b\[1m{name}\b", result.out)] == [method]
    assert "of 20 steps from 0.001" in result.out  # typed, and the recipe's


def test_the_recipe_s_settings_count_where_nothing_is_typed(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    settings = finder(tmp_path)
    typed = ("--data.batch_size", "80", "--num_steps", "50", "--min_lr", "0.001")
    common = (*tiny, "--max_lr", "2")  # at a higher rate, the loss of some processors diverges before the last step
    of_the_recipe, by_hand = cli("find-lr", *common, *settings), cli("find-lr", *common, *typed)
    assert "Range test of 50 steps from 0.001" in of_the_recipe.out
    assert of_the_recipe == by_hand


def test_a_fit_finds_the_same(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "cycle.yaml").write_text(ONE_CYCLE)
    recipe = (*tiny, *finder(tmp_path), "-c", "cycle.yaml")
    table, fit = numbers(cli("find-lr", *recipe)), cli("fit", *recipe)
    printed = re.search(r"^learning rate: (\S+) \(valley of 50 steps\), from (\S+)$", fit.out, re.MULTILINE)
    assert printed, fit
    assert [float(printed[1]), float(printed[2])] == [table["valley"][0], table["lr_min"][0]]


@pytest.mark.parametrize(
    "more",
    [
        "trainer: {max_epochs: -1, max_steps: 20}",
        "trainer: {callbacks: [ReceptiveField, {class_path: EarlyStopping, init_args: {monitor: none}}]}",
        "trainer: {logger: true, enable_progress_bar: true, fast_dev_run: true, num_sanity_val_steps: -1}",
        "trainer: {max_epochs: 3}\nmodel: {schedule: {class_path: Constant}}\nname: other",
        "model: {lr: 3.0}",
    ],
    ids=["max_steps", "other callbacks", "output", "schedule", "lr"],
)
def test_what_does_not_matter_changes_nothing(cli: Run, tiny: tuple[str, str], tmp_path: Path, more: str) -> None:
    (tmp_path / "more.yaml").write_text(more)
    before = contents(tmp_path)
    assert cli("find-lr", *tiny, "-c", "more.yaml", *SHORT) == cli("find-lr", *tiny, *SHORT)
    assert contents(tmp_path) == before


@pytest.mark.process
def test_two_ranks_show_one_table(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    before = contents(tmp_path)
    two_ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
    result = cli("find-lr", *tiny, *SHORT, *two_ranks)
    check_table(result, 1e-4, 1)
    assert [result.out.count(word) for word in ("Range test", "slide")] == [1, 1]
    assert result.out.count("not to be trusted") <= 1
    assert contents(tmp_path) == before


def test_plot(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    result = cli("find-lr", *tiny, *SHORT, "--plot", "curve.png")
    check_table(result, 1e-4, 1)
    assert "written: curve.png\n" in result.out
    with Image.open(tmp_path / "curve.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").quantize(16).getcolors()) > 4  # not a blank sheet
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "curve.png"}


def test_the_plot_of_a_cycle_whose_start_is_still_to_be_found(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "cycle.yaml").write_text(ONE_CYCLE)
    for more, name in ((SHORT, "untrusted.png"), (finder(tmp_path), "found.png")):
        assert cli("find-lr", *tiny, "-c", "cycle.yaml", *more, "--plot", name).status == 0
        assert (tmp_path / name).is_file()


# What is not found.


@pytest.mark.parametrize(("args", "words"), [(FLAT, "flat"), (DIVERGING, "diverged after")])
def test_a_curve_that_says_nothing(cli: Run, tiny: tuple[str, str], args: tuple[str, ...], words: str) -> None:
    result = cli("find-lr", *tiny, *args)
    assert (result.status, result.err) == (0, "")
    last = result.out.splitlines()[-1]
    assert last.startswith("not to be trusted: the loss ")
    assert words in last
    assert "try" in last
    assert result.out.count("trusted") == 1


def test_a_curve_too_short_to_be_drawn_leaves_its_numbers(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    result = cli("find-lr", *tiny, *DIVERGING, "--plot", "curve.png", "--csv", "curve.csv")
    assert "not written: curve.png" in result.out
    assert not (tmp_path / "curve.png").exists()
    assert (tmp_path / "curve.csv").read_text().startswith("run,step,lr,loss,smoothed_loss\n0,0,1000.0,")


def test_two_finders_are_refused(cli: Run, tiny: tuple[str, str], tmp_path: Path) -> None:
    result = cli("find-lr", *tiny, *finder(tmp_path), "--trainer.callbacks+=LRFinder")
    assert (result.status, result.err) == (2, "cifar-resnets: trainer.callbacks: LRFinder is there twice\n")


@pytest.mark.parametrize("args", [FLAT, DIVERGING])
def test_an_error_where_the_recipe_says_so(
    cli: Run, tiny: tuple[str, str], tmp_path: Path, args: tuple[str, ...]
) -> None:
    result = cli("find-lr", *tiny, *finder(tmp_path, failure="error"), *args)
    assert (result.status, result.err.count("\n")) == (5, 1), result
    assert result.err.startswith("cifar-resnets: LRFinder: the loss ")
    assert "try" in result.err
    assert "trusted" not in result.out


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--plot", "curve.txt"], 2, ("--plot", "curve.txt", ".png")),
        (["--plot", "nowhere/curve.png"], 6, ("--plot", "nowhere")),
        (["--num_steps", "3"], 2, ("num_steps: 3", "20 or more")),
        (["--num_steps", "many"], 2, ("num_steps: many",)),
        (["--num_runs", "0"], 2, ("num_runs: 0",)),
        (["--min_lr", "1", "--max_lr", "0.1"], 2, ("min_lr, max_lr", "the smaller first")),
        (["--min_lr", "0"], 2, ("min_lr",)),
        (["--max_lr", "nan"], 2, ("max_lr",)),
        (["--num_step", "30"], 2, ("num_step: there is no such key", "num_steps")),
        (["--ckpt_path", "missing.ckpt"], 2, ("ckpt_path", "no such key")),
        (["-c", "missing.yaml"], 2, ("missing.yaml",)),
        (["--trainer.max_epochs", "-1"], 2, ("max_epochs or max_steps",)),
        (["--model.network", "cifar_resnet21"], 2, ("cifar_resnet21",)),
        (["--data", "ImageFolder", "--data.root", "nowhere"], 3, ("nowhere",)),
    ],
)
def test_errors_are_one_line_with_a_status(
    cli: Run, tiny: tuple[str, str], tmp_path: Path, args: list[str], status: int, words: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    result = cli("find-lr", *tiny, *args)
    assert (result.status, result.err.count("\n")) == (status, 1), result
    assert all(word in result.err for word in words), result.err
    assert result.out == ""
    assert contents(tmp_path) == before

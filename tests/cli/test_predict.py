"""`predict` on images of any kind, as a user runs it; and its probabilities beside those of `test`."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import NoReturn

import numpy as np
import prediction_probe
import pytest
import torch
from image_samples import as_another_user, noise, open_copy, save
from PIL import Image
from processes import run
from support import Result, terminal

from cifar_resnets import load
from cifar_resnets.cli import predict
from cifar_resnets.inference.decoding import FEW, decode_files
from cifar_resnets.inference.paths import find, names_in
from cifar_resnets.inference.row_files import CsvFile
from cifar_resnets.inference.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., Result]


@pytest.fixture
def best(checkpoint: Path, cli: Run) -> tuple[str, str]:
    """The arguments that name the checkpoint, in an empty folder."""
    return "--ckpt_path", str(checkpoint)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


# The same numbers as `test`.


@pytest.mark.process
@pytest.mark.parametrize("ranks", [1, 2])
def test_probabilities_are_those_of_a_test_to_the_last_bit(
    ranks: int, cli: Run, best: tuple[str, str], image_folder: Path, tmp_path: Path
) -> None:
    probe = f"{{class_path: prediction_probe.KeepsProbabilities, init_args: {{path: {tmp_path / 'kept'}}}}}"
    (tmp_path / "probe.yaml").write_text(f"trainer: {{callbacks: [{probe}]}}\nexplain: null")
    strategy = ("--trainer.devices", str(ranks), "--trainer.strategy", "ddp_fork" if ranks > 1 else "auto")
    assert cli("test", "-c", "probe.yaml", *best, *strategy).status == 0
    for tta in (False, True):
        flags = ("--devices", str(ranks), "--json", *["--tta"] * tta)
        found = json.loads(cli("predict", str(image_folder / "test"), *best, *flags).out)
        names = load(best[1], "cpu").class_names
        ours = [[next(c["probability"] for c in row["top"] if c["class"] == name) for name in names] for row in found]
        expected = prediction_probe.kept(tmp_path / "kept", ranks, tta)
        assert (
            len(expected) == 27
            and [Path(row["path"]).parent.name for row in found] == ["blue"] * 9 + ["green"] * 9 + ["red"] * 9
        )
        assert torch.equal(torch.tensor(ours, dtype=torch.float32), expected)


def test_a_table_has_all_digits_of_the_probabilities(cli: Run, best: tuple[str, str], image_folder: Path) -> None:
    assert cli("predict", f"{image_folder}/test/red", *best, "--output", "out").status == 0
    table = rows(Path("out/predictions.csv"))
    images = sorted((image_folder / "test/red").iterdir())
    for row, prediction in zip(table, load(best[1], "cpu").predict(images), strict=True):
        (first, *others) = prediction.top(3)
        assert (row["predicted"], np.float32(row["probability"])) == (first[0], np.float32(first[1]))
        assert [(row[f"class_{n}"], np.float32(row[f"probability_{n}"])) for n in (2, 3)] == others
        assert float(row["margin"]) == pytest.approx(first[1] - others[0][1], abs=1e-6)
        p = np.array(list(prediction.probabilities.values()))
        assert float(row["entropy"]) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)


# What is written and printed.


def test_one_image_is_answered_in_one_line(cli: Run, best: tuple[str, str]) -> None:
    save(Path("cat.png"), noise(40, 30, 3))
    result = cli("predict", "cat.png", *best)
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(r"cat\.png: \w+ [\d.]+ %, \w+ [\d.]+ %, \w+ [\d.]+ %\n", result.out)
    assert sorted(os.listdir()) == ["cat.png"]


def test_several_images_go_into_the_next_folder_of_the_run(cli: Run, best: tuple[str, str]) -> None:
    for number in range(2):
        save(Path(f"{number}.png"), noise(9, 9, 3))
    assert cli("predict", "0.png", "1.png", *best, "--json").status == 0 and not Path("logs").exists()
    for number in range(2):
        result = cli("predict", "0.png", "1.png", *best)
        folder = Path(f"logs/cifar_resnet20/version_{number}")
        assert result.out == f"predictions: {folder}/predictions.csv\ncontact sheet: {folder}/predictions.html\n"
        assert [row["path"] for row in rows(folder / "predictions.csv")] == ["0.png", "1.png"]


def test_nothing_is_overwritten(cli: Run, best: tuple[str, str]) -> None:
    save(Path("a.png"), noise(9, 9, 3))
    for name in ("out/predictions.csv", "out/predictions.html"):
        Path("out").mkdir(exist_ok=True)
        Path(name).write_text("precious")
        result = cli("predict", "a.png", *best, "--output", "out")
        assert (result.status, Path(name).read_text()) == (2, "precious")
        assert result.err == f"cifar-resnets: --output: out holds {name[4:]} already, give another folder\n"
        Path(name).unlink()
    Path("out/mine.png").touch()
    result = cli("predict", "a.png", *best, "--heatmaps", "out")
    assert result.err == "cifar-resnets: --heatmaps: out is not empty, give another folder\n"


def test_heatmaps_are_a_picture_for_each_image(cli: Run, best: tuple[str, str]) -> None:
    names = ["a/x.png", "b/x.png", "c/x y'\n.png"]
    for name in names:
        save(Path(name), noise(20, 20, 3))
    result = cli("predict", *names, *best, "--heatmaps", "heat", "--layers", "layer1", "--output", "out")
    assert (result.status, result.err) == (0, "") and "heatmaps: heat (gradcam at layer1 (16x16))" in result.out
    pictures = [row["heatmap"] for row in rows(Path("out/predictions.csv"))]
    assert pictures == ["000000-x.png", "000001-x.png", "000002-x_y.png"] == sorted(os.listdir("heat"))
    width, height = Image.open("heat/000000-x.png").size
    assert width > 3 * height
    wrong = cli("predict", "a/x.png", *best, "--heatmaps", "more", "--layers", "layer9")
    assert wrong.status == 2 and "layer9" in wrong.err and not Path("more").exists()


@pytest.mark.process
def test_a_terminal_shows_a_table_of_up_to_twenty(checkpoint: Path, tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number}.png", noise(9, 9, 3))
    (tmp_path / "20.png").touch()
    args = ["predict", *(f"{n}.png" for n in range(1, 21)), "--ckpt_path", str(checkpoint)]
    result = terminal(*args, cwd=tmp_path)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;?]*\w", "", result.out).replace("\r", "\n").split("\n")]
    assert result.status == 3
    table = [line for line in lines if re.match(r"\d+\.png  ", line)]
    assert len(table) == 20 and max(map(len, table)) <= 80 and re.fullmatch(r"20\.png +the file is empty", table[-1])
    assert "predict" in result.out.partition("image")[0]  # the bar


# Images of all kinds.


def of_all_kinds(folder: Path) -> dict[str, Image.Image | bytes]:
    """Writes files, and returns their names with what they hold."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    animated = [Image.fromarray(noise(20, 30, 3)) for _ in range(3)]
    save(folder / "exif.jpg", noise(20, 30, 3), exif=exif)
    save(folder / "palette.png", Image.fromarray(noise(20, 30, 3)).convert("P", palette=Image.Palette.ADAPTIVE))
    save(folder / "16 bits.png", noise(20, 30, dtype=np.uint16))
    save(folder / "cmyk.jpg", Image.fromarray(noise(20, 30, 3)).convert("CMYK"))
    save(folder / "alpha.png", noise(20, 30, 4))
    animated[0].save(folder / "animated.gif", save_all=True, append_images=animated[1:])
    animated[0].save(folder / "animated.webp", save_all=True, append_images=animated[1:], lossless=True)
    save(folder / "large.jpg", Image.new("RGB", (6000, 5000), "red"))
    save(folder / "grey.png", noise(20, 30))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_images_of_all_kinds_are_read_as_in_a_test(cli: Run, best: tuple[str, str], tmp_path: Path) -> None:
    kinds = of_all_kinds(tmp_path / "data/test/red")
    save(tmp_path / "data/test/blue/b.png", noise(9, 9, 3))
    save(tmp_path / "data/test/green/g.png", noise(9, 9, 3))
    assert cli("test", *best, "--data.root", "data", "--explain", "null").status == 0
    (written,) = tmp_path.glob("logs/*/version_*/test_predictions.csv")
    expected = rows(written)[2:]
    result = cli("predict", "data/test", *best, "--json")
    found = json.loads(result.out)[2:]
    assert result.status == 0 and [os.path.basename(row["path"]) for row in found] == list(kinds)
    for row, reference in zip(found, expected, strict=True):
        assert row["predicted"] == reference["predicted"]
        for each in row["top"]:
            assert f"{float(np.float32(each['probability'])):.6f}" == reference[f"p({each['class']})"]


def test_names_of_any_bytes_lead_back_to_their_files(cli: Run, best: tuple[str, str]) -> None:
    names = [
        b"plain.png",
        b"two words.png",
        b"quote\"and'.png",
        b"line\nbreak.png",
        b"caf\xe9.png",
        "é,ü;.png".encode(),
    ]
    save(Path("first.png"), noise(9, 9, 3))
    os.mkdir("odd")
    for name in names:
        Path(os.fsdecode(b"odd/" + name)).write_bytes(Path("first.png").read_bytes())
    expected = sorted(b"odd/" + name for name in names)
    assert cli("predict", "odd", *best, "--output", "out").status == 0
    assert sorted(os.fsencode(row["path"]) for row in rows(Path("out/predictions.csv"))) == expected
    found = json.loads(cli("predict", "odd", *best, "--json").out)
    assert sorted(os.fsencode(row["path"]) for row in found) == expected
    Path("zero").write_bytes(b"\0".join(expected) + b"\0")
    found = json.loads(cli("predict", "--list", "zero", *best, "--json").out)
    assert [os.fsencode(row["path"]) for row in found] == expected and all("predicted" in row for row in found)
    one = cli("predict", os.fsdecode(b"odd/line\nbreak.png"), *best)
    assert one.out.startswith("odd/line\\nbreak.png: ") and one.out.count("\n") == 1


def test_what_cannot_be_read_is_a_row_with_its_reason(cli: Run, best: tuple[str, str]) -> None:
    save(Path("good.png"), noise(9, 9, 3))
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:100])
    Path("zero.png").touch()
    Path("text.png").write_text("no image")
    os.mkfifo("pipe.png")
    os.mkdir("empty")
    bad = ["cut.png", "zero.png", "text.png", "pipe.png", "empty", "none*.png", "missing.png", "/dev/zero", "x\0y"]
    for flags, status in (((), 3), (("--skip_unreadable",), 0)):
        result = cli("predict", *bad, "good.png", *best, "--output", f"out{status}", *flags)
        assert result.status == status
        *failed, good = rows(Path(f"out{status}/predictions.csv"))
        assert good["predicted"] and [row["path"] for row in failed] == bad
        reasons = [row["error"] for row in failed]
        assert reasons[1:4] == ["the file is empty", "cannot identify image file", "no regular file"]
        assert reasons[4:6] == ["there is no image file in it", "no file matches it"]
        assert reasons[6:8] == ["No such file or directory", "no regular file"]
        assert all(reasons) and all(row["predicted"] == row["probability"] == "" for row in failed)
        assert result.err.count("\n") == 1 and "9 of 10 files could not be read, the first is 'cut.png': " in result.err
        page = Path(f"out{status}/predictions.html").read_text()
        assert "9 files could not be read" in page and "the file is empty" in page
    alone = cli("predict", "zero.png", *best)
    assert (alone.status, alone.out) == (3, "")
    assert alone.err == "cifar-resnets: predict: 'zero.png': the file is empty\n"


def test_a_bomb_is_unreadable(cli: Run, best: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("bomb.png"), noise(30, 30, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    result = cli("predict", "bomb.png", *best)
    assert result.status == 3 and "bomb" in result.err


# Where the images are.


def test_files_folders_patterns_and_lists_in_their_order(
    cli: Run, best: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "z.png",
        "flat/b.png",
        "flat/a.png",
        "deep/x/y/1.png",
        "deep/2.png",
        "p/1.png",
        "p/q/2.png",
        "[1].png",
    ):
        save(Path(name), noise(9, 9, 3))
    Path("flat/notes.txt").write_text("no image")
    Path("flat/.hidden.png").write_text("hidden")
    Path("list.txt").write_text("z.png\r\n\nflat\n")
    monkeypatch.setattr(sys, "stdin", open("list.txt"))  # noqa: SIM115
    args = ("z.png", "flat", "deep/", "p/**/*.png", "[1].png", "-", "--list", "list.txt")
    found = [row["path"] for row in json.loads(cli("predict", *args, *best, "--json").out)]
    flat = ["flat/a.png", "flat/b.png"]
    assert found[:3] == ["z.png", *flat]
    assert found[3:7] == ["deep/2.png", "deep/x/y/1.png", "p/1.png", "p/q/2.png"]
    assert found[7:] == ["[1].png", "z.png", *flat, "z.png", *flat]


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["x.png"], 2, "predict: --ckpt_path is missing, give the checkpoint of a fit"),
        (["x.png", "--ckpt_path", "none.ckpt"], 4, "--ckpt_path: there is no file none.ckpt"),
        (["x.png", "--ckpt_path", "x.png"], 4, "--ckpt_path: x.png is empty"),
        (["--list", "none.txt", "--ckpt_path", "y"], 3, "--list: none.txt cannot be read: No such file or directory"),
        (["--list", "empty.txt", "--ckpt_path", "y"], 3, "predict: the list names no image"),
        (["x.png", "--ckpt_path", "y", "--tpo_k", "3"], 2, "predict: unrecognized arguments: --tpo_k 3"),
        (["x.png", "--top_k", "0"], 2, "predict: argument --top_k/--top-k: 0 is not allowed, give 1 or more"),
        (["x.png", "--top_k", "two"], 2, "predict: argument --top_k/--top-k: two is not allowed, give 1 or more"),
        (
            ["x.png", "--ckpt_path", "y", "--layers", "layer1"],
            2,
            "--layers: there are no heatmaps without --heatmaps DIR, give it or leave this out",
        ),
        (["x.png", "--ckpt_path", "y", "--output", ""], 2, "predict: argument --output: the path is empty"),
        (["x.png", "--ckpt_path", "y", "--output", "x.png"], 6, "--output: x.png is no folder"),
    ],
)
def test_mistakes_are_one_line(args: list[str], status: int, message: str, cli: Run) -> None:
    Path("x.png").touch()
    Path("empty.txt").touch()
    result = cli("predict", *args)
    assert (result.status, result.err) == (status, f"cifar-resnets: {message}\n")
    assert sorted(os.listdir()) == ["empty.txt", "x.png"]


def test_mistakes_about_the_checkpoint_are_one_line(cli: Run, best: tuple[str, str]) -> None:
    save(Path("x.png"), noise(9, 9, 3))
    result = cli("predict", "x.png", *best, "--heatmaps", "h", "--method", "magic")
    assert result.status == 2 and result.err.startswith("cifar-resnets: --method: magic is not allowed, give one of ")
    result = cli("predict", "x.png", *best, "--accelerator", "gpu", "--devices", "99")
    assert result.status == 2 and "--accelerator gpu --devices 99: there are" in result.err


@pytest.mark.parametrize(
    ("args", "images"),
    [
        (["x.png"], True),
        (["--ckpt_path", "best.ckpt", "x.png"], True),
        (["--ckpt_path=best.ckpt", "--json", "x.png"], True),
        (["--ckpt_path", "best.ckpt", "-"], True),
        (["--list", "l"], True),
        (["--help"], True),
        (["--ckpt_path", "best.ckpt"], False),
        (["--ckpt_path", "best.ckpt", "--data.root", "images"], False),
        (["--ckpt_path", "best.ckpt", "--data", "Digits", "--trainer.accelerator", "cpu"], False),
        (["-c", "recipe.yaml", "--ckpt_path", "best.ckpt"], False),
        (["--print_config"], False),
    ],
)
def test_images_that_are_named_are_told_from_the_test_images(args: list[str], images: bool) -> None:
    assert predict.takes(["predict", *args]) is images


def test_the_help_tells_both_forms(cli: Run) -> None:
    out = cli("predict", "--help").out
    assert "usage: cifar-resnets predict " in out and "the test\nimages of a data source" in out
    assert max(map(len, out.splitlines())) <= 80


# Many files.


@pytest.mark.process
def test_many_files_are_decoded_in_processes(best: tuple[str, str], tmp_path: Path) -> None:
    for number in range(FEW + 10):
        save(tmp_path / f"images/{number}.png", noise(4, 4, 3))
    (tmp_path / "images/broken.png").touch()
    args = ("predict", "images", *best, "--json")
    several, one = (run(*args, "--workers", str(number), cwd=tmp_path) for number in (2, 1))
    assert (several.status, several.err) == (3, one.err) and "'images/broken.png': the file is empty" in one.err
    assert several.out == one.out and len(json.loads(one.out)) == FEW + 11


def test_what_cannot_be_read_in_a_folder_hides_nothing_else(tmp_path: Path) -> None:
    for name in ("a.png", "locked/b.png", "deep/c.png", "d.png"):
        save(tmp_path / name, noise(9, 9, 3))
    with open_copy(tmp_path) as folder:
        root = folder / "root"
        root.chmod(0o755)
        (root / "deep/loop.png").symlink_to("loop.png")
        (root / "loop").symlink_to("loop")
        (root / "d.png").chmod(0)
        (root / "locked").chmod(0)
        with as_another_user():
            found = decode_files(find([str(root)]), 4, "white").found
        (root / "locked").chmod(0o700)
    names = [os.path.relpath(each.path, root) for each in found]
    assert names == ["a.png", "d.png", "deep/c.png", "deep/loop.png", "locked"]
    denied = "Permission denied"
    assert [each.problem for each in found] == ["", denied, "", "Too many levels of symbolic links", denied]


def test_a_carriage_return_in_a_name_ends_no_row(cli: Run, best: tuple[str, str]) -> None:
    save(Path("folder/cr\rlf.png"), noise(9, 9, 3))
    save(Path("folder/z.png"), noise(9, 9, 3))
    assert cli("predict", "folder", *best, "--output", "out").status == 0
    assert [row["path"] for row in rows(Path("out/predictions.csv"))] == ["folder/cr\rlf.png", "folder/z.png"]
    assert Path("out/predictions.csv").read_bytes().count(b"\r") == 1


def test_a_full_disk_is_named_with_the_file(cli: Run, best: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(Path("x.png"), noise(9, 9, 3))
    monkeypatch.setattr(Image.Image, "save", full)
    result = cli("predict", "x.png", *best, "--heatmaps", "heat")
    assert (result.status, result.err) == (6, "cifar-resnets: heat/000000-x.png: No space left on device\n")
    os.symlink("/dev/full", "table.csv")
    with pytest.raises(OSError) as caught, CsvFile(Path("opened.csv"), 1) as file:
        file._file = open("table.csv", "w")  # noqa: SIM115  as if the disk had become full
        file.add(Row("x.png", "a problem"))
    assert caught.value.filename == "opened.csv"


def test_a_prediction_that_was_stopped_can_be_given_again(
    cli: Run, best: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        save(Path(f"folder/{name}.png"), noise(9, 9, 3))
    args = ("predict", "folder", *best, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr("cifar_resnets.reports.contact_sheet.ContactSheet.add", lambda *_: os.kill(os.getpid(), SIGTERM))
        assert cli(*args).status == 128 + SIGTERM
    assert [path.name for path in Path("out").iterdir()] == ["predictions.csv.partial"]
    assert rows(Path("out/predictions.csv.partial"))[0]["path"] == "folder/a.png"
    assert cli(*args).status == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["predictions.csv", "predictions.html"]
    assert [row["path"] for row in rows(Path("out/predictions.csv"))] == ["folder/a.png", "folder/b.png"]


def test_a_closed_standard_input_is_one_line(cli: Run, best: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    result = cli("predict", "-", *best)
    assert (result.status, result.err) == (
        3,
        "cifar-resnets: predict -: standard input is closed, give a list by --list FILE\n",
    )


def test_a_list_may_begin_as_editors_of_windows_write_it() -> None:
    assert names_in("\ufeffa.png\r\nb.png".encode()) == ["a.png", "b.png"]

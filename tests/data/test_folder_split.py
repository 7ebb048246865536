"""One folder of classes, split by names or by a file: what stays where, and what is wrong with the file."""

import csv
import hashlib
import itertools
import math
import unicodedata

import numpy as np
import pytest
from image_samples import message_of

from cifar_resnets.data.folder_split import add_to_split_file, place, read_split_file, split_by_name
from cifar_resnets.data.image_files import ImageFile


def files_of(**numbers):
    """Classes with so many files, whose names are all different."""
    count = itertools.count()
    return {name: [ImageFile(f"{name}/IMG_{next(count)}.jpg") for _ in range(num)] for name, num in numbers.items()}


def of_test(sides, name=""):
    return {path for path, side in sides.items() if side == "test" and path.startswith(name)}


def test_a_file_is_tested_if_the_sha_256_of_its_name_is_below_the_fraction():
    sides = split_by_name(files_of(cat=200, dog=300), [], 0.2)
    for path, side in sides.items():
        first = hashlib.sha256(path.split("/", 1)[1].encode()).hexdigest()[:12]
        assert (side == "test") == (int(first, 16) / 16**12 < 0.2)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_each_class_has_about_its_share(fraction):
    numbers = {f"class{index}": 400 for index in range(20)}
    sides = split_by_name(files_of(**numbers), [], fraction)
    deviations = [len(of_test(sides, f"{name}/")) - 400 * fraction for name in numbers]
    std = math.sqrt(400 * fraction * (1 - fraction))  # of a binomial distribution
    assert max(map(abs, deviations)) < 4 * std and 0.6 * std < np.std(deviations) < 1.5 * std


def test_images_stay_on_their_sides_when_others_are_added_or_removed():
    files = files_of(cat=300, dog=300)
    before = split_by_name({name: of_class[:100] for name, of_class in files.items()}, [], 0.2)
    after = split_by_name(files, [], 0.2)
    assert {path: after[path] for path in before} == before
    assert len(after) == 600


def test_a_larger_fraction_keeps_the_test_images():
    files = files_of(cat=100, dog=100)
    small, large = (of_test(split_by_name(files, [], fraction)) for fraction in (0.1, 0.3))
    assert small < large


def test_an_image_keeps_its_place_in_another_class_and_on_a_mac():
    assert place("cat/é.jpg") == place("dog/" + unicodedata.normalize("NFD", "é.jpg"))
    assert place("cat/a/1.jpg") == place("dog/a/1.jpg") != place("cat/b/1.jpg")
    assert place("cat/IMG.jpg") != place("cat/img.jpg")
    assert 0 <= place("cat/\udcff.jpg") < 1  # a name that is no UTF-8


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("num", "least"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_small_classes_keep_two_images_to_train_on_and_then_one_to_test(num, least, seed):
    files = {"cat": [ImageFile(f"cat/{seed}-{index}.png") for index in range(num)]}
    for fraction in (0.01, 0.5, 0.99):
        number = len(of_test(split_by_name(files, [], fraction)))
        assert least <= number <= max(num - 2, 0)


def test_nothing_is_tested_with_a_fraction_of_0():
    assert not of_test(split_by_name(files_of(cat=9, dog=3), [], 0.0))


# Files of equal content.


def test_equal_files_stay_together():
    files = files_of(cat=120, dog=60)
    paths = [file.path for of_class in files.values() for file in of_class]
    groups = [paths[start : start + 2] for start in range(0, 180, 9)]
    sides = split_by_name(files, groups, 0.5)
    assert all(len({sides[path] for path in group}) == 1 for group in groups)
    assert {sides[group[0]] for group in groups} == {"train", "test"}


def test_a_copy_never_makes_a_training_image_a_test_image():
    files = files_of(cat=200)
    before = split_by_name(files, [], 0.3)
    for number, file in enumerate(files["cat"]):
        copied = {"cat": [*files["cat"], ImageFile(f"cat/copy{number}.jpg")]}
        after = split_by_name(copied, [[file.path, f"cat/copy{number}.jpg"]], 0.3)
        assert of_test(after) - {f"cat/copy{number}.jpg"} <= of_test(before)


def test_equal_files_in_two_classes_stay_together_too():
    files = files_of(cat=3, dog=3)
    for fraction in (0.1, 0.9):
        group = [files["cat"][0].path, files["dog"][0].path]
        sides = split_by_name(files, [group], fraction)
        assert sides[group[0]] == sides[group[1]]


def test_three_copies_are_one_image():
    files = files_of(cat=3, dog=9)
    sides = split_by_name(files, [[file.path for file in files["cat"]]], 0.9)
    assert not of_test(sides, "cat/")


# The file of splits.


def test_what_the_file_says_wins():
    files = files_of(cat=50, dog=50)
    by_name = split_by_name(files, [], 0.2)
    listed = {path: "train" if side == "test" else "test" for path, side in list(by_name.items())[::2]}
    sides = split_by_name(files, [], 0.2, listed)
    assert sides == by_name | listed


def test_a_copy_follows_the_file_that_is_listed():
    files = files_of(cat=10)
    paths = [file.path for file in files["cat"]]
    for side in ("train", "val", "test"):
        assert split_by_name(files, [paths[:2]], 0.5, {paths[0]: side})[paths[1]] == side
    # equal images that are listed on two sides stay there; their copy is not tested
    sides = split_by_name(files, [paths[:3]], 0.5, {paths[0]: "test", paths[1]: "train"})
    assert [sides[path] for path in paths[:3]] == ["test", "train", "train"]


ODD = [
    "cat/a,b.png",
    'cat/"q".png',
    "cat/é.png",
    "dog/new\nline.png",
    "dog/cr\rlf.png",
    "dog/\udcff.png",
    "dog/=1+1.png",
    "dog/ .png",
]


def test_a_file_that_is_written_is_read_back(tmp_path):
    sides = dict(zip(ODD, itertools.cycle(["train", "test", "val"]), strict=False))
    add_to_split_file(tmp_path / "splits.csv", sides)
    assert read_split_file(tmp_path / "splits.csv", tmp_path, ODD) == sides
    with (tmp_path / "splits.csv").open(newline="", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["path", "split"], *map(list, sides.items())]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no end", "lf", "crlf"])
def test_rows_are_added_below_what_is_there(tmp_path, end):
    before = b"\xef\xbb\xbfpath,split" + (end or "\n").encode() + b'"cat/1.png",test' + end.encode()
    (tmp_path / "splits.csv").write_bytes(before)
    add_to_split_file(tmp_path / "splits.csv", {"cat/2.png": "train"})
    assert (tmp_path / "splits.csv").read_bytes() == before + ("" if end else "\n").encode() + (
        b"cat/2.png,train" + (end or "\n").encode()
    )
    assert read_split_file(tmp_path / "splits.csv", tmp_path, ["cat/1.png", "cat/2.png"])["cat/1.png"] == "test"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the header is nothing, not path,split"),
        ("path;split\ncat/1.png;test\n", "line 1: the header is path;split, not path,split: save it as CSV in UTF-8"),
        ("cat/1.png,test\n", "line 1: the header is cat/1.png,test, not path,split"),
        ("path,split\n\ncat/1.png\n", r"line 3: it has 1 cells (cat/1.png), not path,split"),
        ("path,split\ncat/1.png,test,x\n", r"line 2: it has 3 cells (cat/1.png,test,x), not path,split"),
        ("path,split\ncat/1.png,tset\n", "line 2: 'tset' is no split, give train, val or test"),
        ("path,split\ncat/1.png,\n", "line 2: '' is no split"),
        ("path,split\ncat/1.png,test\ncat/2.png,train\ncat/1.png,test\n", "line 4: 'cat/1.png' is in line 2 already"),
        ("path,split\ncat/9.png,test\n", "line 2: 'cat/9.png' is no image below ROOT, remove the line"),
        ('path,split\n"cat/1.png,test\n', "line 2: unexpected end of data"),
        ('path,split\n"cat/1.png"x,test\n', "line 2: ',' expected after '\"'"),
    ],
)
def test_damaged_rows_are_named_by_their_line(tmp_path, content, message):
    (tmp_path / "splits.csv").write_text(content)
    line = message_of(lambda: read_split_file(tmp_path / "splits.csv", tmp_path / "photos", ["cat/1.png", "cat/2.png"]))
    start = f"data.split_file: {tmp_path / 'splits.csv'}, "
    assert line.startswith(start + message.replace("ROOT", str(tmp_path / "photos")))


def test_what_is_no_file_is_not_read(tmp_path):
    absent = "is missing: give --data.test_fraction 0.2, with which fit writes it"
    for name, what in (("absent.csv", absent), (".", "is no file"), ("/dev/zero", "is no file")):
        assert message_of(lambda: read_split_file(tmp_path / name, tmp_path, [])).endswith(what)  # noqa: B023


def test_a_file_that_a_spreadsheet_has_saved(tmp_path):
    content = 'path,split\r\ncat/1.png,test\r\n"dog/a, b.png",train\r\n'
    (tmp_path / "splits.csv").write_bytes(content.encode("utf-8-sig"))
    sides = read_split_file(tmp_path / "splits.csv", tmp_path, ["cat/1.png", "dog/a, b.png"])
    assert sides == {"cat/1.png": "test", "dog/a, b.png": "train"}
    (tmp_path / "splits.csv").write_bytes(content.encode("utf-16"))  # "Unicode text" of Excel
    line = message_of(lambda: read_split_file(tmp_path / "splits.csv", tmp_path, []))
    assert line.isprintable() and line.endswith("save it as CSV in UTF-8, with a comma between the cells")

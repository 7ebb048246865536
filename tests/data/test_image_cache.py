import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from image_samples import as_another_user, assert_fresh, expected, noise, open_copy, save, start, write_samples
from PIL import Image

from cifar_resnets.data import image_cache, image_folder
from cifar_resnets.data.image_cache import cache_folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "cifar_resnets.data")
    return caplog


@pytest.fixture
def root(tmp_path):
    return write_samples(tmp_path / "root")


@pytest.fixture
def open_folder(root):
    with open_copy(root) as folder:
        yield folder


def num_decoded(log):
    """How many splits were decoded."""
    return sum(message.startswith("decoded ") for message in log.messages)


def test_second_start_decodes_nothing(root, log, monkeypatch):
    assert_fresh(root)
    assert num_decoded(log) == 2
    monkeypatch.setattr(image_folder, "decode", None)
    assert_fresh(root)
    assert_fresh(root)


def test_sizes_do_not_push_each_other_out(root, log):
    start(root, 8), start(root, 4)
    log.clear()
    assert start(root, 4)["train"][0].shape == (6, 4, 4, 3) and start(root, 8)["train"][0].shape == (6, 8, 8, 3)
    assert not log.messages


def touch(root):
    status = (root / "train/cat/0.png").stat()
    os.utime(root / "train/cat/0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES = {
    "changed": lambda root: save(root / "train/cat/0.png", noise(8, 8, 3)),
    "added": lambda root: save(root / "train/cat/9.png", noise(8, 8, 3)),
    "removed": lambda root: (root / "train/cat/0.png").unlink(),
    "renamed": lambda root: (root / "train/cat/0.png").rename(root / "train/dog/00.png"),
    "touched": touch,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(root, log, change):
    assert_fresh(root)
    log.clear()
    change(root)
    assert_fresh(root)
    assert [message.split(":")[0].split("/")[-1] for message in log.messages] == ["train"]


TIMES = (1_600_000_000, 1_600_000_000)


def overwrite(root):
    (root / "train/cat/0.png").write_bytes((root / "train/dog/0.png").read_bytes())
    os.utime(root / "train/cat/0.png", TIMES)


def exchange(root):
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (root / "train" / old).rename(root / "train" / new)


@pytest.mark.parametrize("change", [overwrite, exchange])
def test_files_of_equal_names_sizes_and_times_are_told_apart(root, log, change):
    for path in root.rglob("*.png"):
        Image.open(path).save(path, "BMP")  # without compression
        os.utime(path, TIMES)
    assert_fresh(root)
    log.clear()
    change(root)
    assert_fresh(root)
    assert num_decoded(log) == 1


def test_new_class_shifts_the_labels_of_both_splits(root):
    start(root)
    for split in ("train", "test"):
        save(root / split / "ape/0.png", noise(8, 8, 3))
    assert_fresh(root)


def test_new_pillow_or_format_decodes_again(root, log, monkeypatch):
    start(root)
    monkeypatch.setattr(image_cache, "CACHE_FORMAT", 0)
    start(root)
    assert num_decoded(log) == 4


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "pixel": lambda path: flip(path, -1),
    "checksum": lambda path: flip(path, 66),
    "fingerprint": lambda path: flip(path, 3),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "short": lambda path: path.write_bytes(path.read_bytes()[:70]),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_made_again(root, cache, log, damage):
    start(root)
    [path] = cache.glob("*/train-8")
    damage(path)
    log.clear()
    assert_fresh(root)
    assert num_decoded(log) == 1
    if path.is_file():
        log.clear()
        assert_fresh(root)
        assert not log.messages
    assert not list(cache.glob("*/.*"))


def test_what_a_killed_process_left_is_removed(root, cache):
    left = cache_folder(root) / ".train-8.4711"
    left.parent.mkdir(parents=True)
    left.touch()
    start(root)
    assert not left.exists()


def test_flipped_bit_is_told(root, cache, log):
    start(root)
    [path] = cache.glob("*/train-8")
    flip(path, -1)
    log.clear()
    assert_fresh(root)
    assert log.messages[0] == f"{path} is damaged: the images are decoded again"


def test_full_disk(root, cache, log, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_fresh(root)
    assert num_decoded(log) == 2  # each split once, though it could not be kept
    assert sum("cannot be kept" in message and "No space left" in message for message in log.messages) == 2
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_cache_below_a_file(root, tmp_path, log, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(tmp_path / "file"))
    assert_fresh(root)
    assert_fresh(root)
    assert num_decoded(log) == 4


def test_cache_that_cannot_be_written(open_folder, monkeypatch, log):
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(open_folder / "cache"))
    (open_folder / "cache").mkdir(mode=0o555)
    with as_another_user():
        assert_fresh(open_folder / "root")
    assert num_decoded(log) == 2 and sum("cannot be kept" in message for message in log.messages) == 2


def test_full_cache_that_cannot_be_written_is_used(open_folder, monkeypatch, log):
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(open_folder / "cache"))
    start(open_folder / "root")
    for path in (open_folder / "cache").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    log.clear()
    with as_another_user():
        assert_fresh(open_folder / "root")
    assert not log.messages


def test_two_starts_at_once_decode_once(root, log):
    results = []
    threads = [threading.Thread(target=lambda: results.append(start(root)["train"][0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_decoded(log) == 2
    for images in results:
        np.testing.assert_array_equal(images, expected(root, "train")[0])


def test_place_of_the_cache(root, tmp_path, monkeypatch):
    def place():
        return cache_folder(root).parent

    assert place() == tmp_path / "cache"
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place() == tmp_path / "xdg/cifar_resnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place() == tmp_path / "home/.cache/cifar_resnets"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without any home
    assert place() == Path("/dev/null/cifar_resnets")


def test_roots_have_caches_of_their_own(tmp_path, root):
    twin = tmp_path / "deeper" / root.name
    assert cache_folder(twin).name.startswith("root-")
    assert cache_folder(twin) != cache_folder(root)
    (tmp_path / "link").symlink_to(root)
    assert cache_folder(tmp_path / "link") == cache_folder(root)

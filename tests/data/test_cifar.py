import contextlib
import logging
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import pytest
import torchvision
from cifar_archives import PROXIES, Tiny, archives, sends, serving

from cifar_resnets.data import cifar
from cifar_resnets.data.cifar import CIFAR10, CIFAR100
from cifar_resnets.errors import ConfigurationError, DataError, OutputError


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=lambda module: module.__name__)
def tiny(request, monkeypatch):
    return Tiny(request.param, monkeypatch)


@pytest.fixture
def tiny10(monkeypatch):
    return Tiny(CIFAR10, monkeypatch)


@pytest.fixture
def serve(monkeypatch):
    """Serves what the function given writes to the handler, and points torchvision's class there."""
    with contextlib.ExitStack() as stack:

        def start(source, respond):
            url, requests = stack.enter_context(serving(respond))
            monkeypatch.setattr(source, "url", f"{url}/{source.filename}")
            return requests

        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
        yield start


def message_of(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def fails_cleanly(tiny, root, error=DataError):
    """The one line of a `prepare_data` that fails; nothing may be left behind."""
    before = sorted(root.rglob("*"))
    message = message_of(tiny.module(str(root)).prepare_data, error)
    assert sorted(root.rglob("*")) == before
    source = tiny.source
    assert f"put {source.filename} (md5 {source.tgz_md5}) or the folder {source.base_folder} into {root}" in message
    return message


@contextlib.contextmanager
def folder_without_permission():
    """A folder that may be read and not be written, also when the tests run as root."""
    folder = Path(tempfile.mkdtemp())  # tmp_path is closed to other users
    is_root = os.geteuid() == 0
    try:
        nobody = 65534
        if is_root:
            try:
                os.seteuid(nobody)
                os.seteuid(0)
            except OSError:
                pytest.skip("root may write everywhere, and its rights cannot be dropped here")

        @contextlib.contextmanager
        def closed():
            folder.chmod(0o555)
            if is_root:
                os.seteuid(nobody)
            try:
                yield
            finally:
                if is_root:
                    os.seteuid(0)
                folder.chmod(0o755)

        yield folder, closed
    finally:
        shutil.rmtree(folder)


# Classes.


def test_classes_need_no_files(tmp_path):
    assert CIFAR10(str(tmp_path / "nothing")).class_names == [
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ]  # fmt: skip
    names = CIFAR100(str(tmp_path / "nothing")).class_names
    assert len(set(names)) == 100 and names == sorted(names)
    assert names[:3] == ["apple", "aquarium_fish", "baby"] and names[-3:] == ["wolf", "woman", "worm"]
    assert not list(tmp_path.iterdir())


def test_other_classes_in_the_meta_file(tiny, tmp_path):
    tiny.set_meta(["thing", *tiny.module._names[1:]])
    folder = tiny.write_folder(tmp_path / tiny.source.base_folder)
    message = message_of(lambda: tiny.module(str(tmp_path)).load("train"))
    assert str(folder / tiny.source.meta["filename"]) in message


def test_coarse_labels_of_cifar100(monkeypatch, tmp_path):
    tiny = Tiny(CIFAR100, monkeypatch)
    tiny.write_folder(tmp_path / tiny.source.base_folder)
    data = CIFAR100(str(tmp_path), coarse=True)
    assert len(data.class_names) == 20 and data.class_names == sorted(data.class_names)
    assert data.class_names[0] == "aquatic_mammals" and data.class_names[-1] == "vehicles_2"
    assert data.describe()["init_args"]["coarse"] is True
    data.prepare_data()
    for split in ("train", "test"):
        assert data.load(split)[1].tolist() == [label % 20 for label in tiny.labels[f"{split}_list"]]


def test_addresses_are_no_folders():
    for module in (CIFAR10, CIFAR100):
        with pytest.raises(ConfigurationError, match=r"^data.root: s3://bucket is an address"):
            module("s3://bucket")


# A folder that is there.


def test_folder_inside_root(tiny, tmp_path):
    tiny.write_folder(tmp_path / tiny.source.base_folder)
    tiny.check(tmp_path)


@pytest.mark.parametrize("name", [None, "renamed"])
def test_root_is_the_folder(tiny, tmp_path, name):
    tiny.check(tiny.write_folder(tmp_path / (name or tiny.source.base_folder)))


def test_home_folder(tiny10, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny10.write_folder(tmp_path / "sets" / tiny10.source.base_folder)
    tiny10.check("~/sets")
    assert CIFAR10("~/sets").describe()["init_args"]["root"] == "~/sets"


def test_a_relative_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CIFAR10("sets").describe()["init_args"]["root"] == str(tmp_path / "sets")


def test_nothing_is_downloaded_where_a_checkpoint_says(tmp_path):
    data = CIFAR10(str(tmp_path / "sets"))
    data.may_download = False
    assert message_of(data.prepare_data).endswith("where the checkpoint has them: give --data.root DIR")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path / tiny.source.base_folder)
    data = tiny.module(str(tmp_path))
    for name, content in tiny.contents.items():
        (folder / name).write_bytes(content[:-1] + b"x")
        for call in (data.prepare_data, lambda: data.load("test")):
            message = message_of(call)
            assert str(folder / name) in message and "damaged" in message and "remove the folder" in message
        (folder / name).unlink()
        assert f"{folder / name} is missing" in message_of(data.prepare_data)
        (folder / name).write_bytes(content)
    data.prepare_data()


def test_folder_that_cannot_be_written(tiny10):
    with folder_without_permission() as (root, closed):
        tiny10.write_folder(root / tiny10.source.base_folder)
        (root / tiny10.source.base_folder).chmod(0o555)
        before = sorted(root.rglob("*"))
        with closed():
            tiny10.check(root)
        assert sorted(root.rglob("*")) == before


def test_load_without_any_folder(tiny10, tmp_path):
    assert "there is no cifar-10-batches-py" in message_of(lambda: CIFAR10(str(tmp_path)).load("train"))


# Downloads.


def test_download_once(tiny, tmp_path, serve):
    requests = serve(tiny.source, sends(tiny.archive))
    root = tmp_path / "new" / "folder"
    tiny.check(root)
    tiny.check(root)
    assert len(requests) == 1
    assert [path.name for path in root.iterdir()] == [tiny.source.base_folder]


@pytest.mark.process
def test_two_processes_download_once(tiny10, tmp_path, serve):
    requests = serve(tiny10.source, sends(tiny10.archive, pause=0.3))
    context = multiprocessing.get_context("fork")  # the children share the small archive
    children = [context.Process(target=tiny10.check, args=(tmp_path,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == [tiny10.source.base_folder]


@pytest.mark.process
def test_second_process_goes_on_where_the_first_failed(tiny10, tmp_path, serve):
    archive, attempts = tiny10.archive, []

    def respond(handler):
        attempts.append(None)
        sends(archive if len(attempts) > 1 else archive[:50], len(archive), pause=0.2)(handler)

    serve(tiny10.source, respond)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=tiny10.check, args=(tmp_path,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert sorted(child.exitcode for child in children) == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == [tiny10.source.base_folder]


def test_leftovers_of_a_killed_process(tiny10, tmp_path, serve):
    serve(tiny10.source, sends(tiny10.archive))
    leftover = tmp_path / f".{tiny10.source.base_folder}.part"
    leftover.mkdir()
    (leftover / tiny10.source.filename).write_bytes(tiny10.archive[:100])
    (tmp_path / f".{tiny10.source.filename}.lock").touch()
    tiny10.check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [tiny10.source.base_folder]


def test_refused_connection(tiny10, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        monkeypatch.setattr(tiny10.source, "url", f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz")
        message = fails_cleanly(tiny10, tmp_path)
    assert f"{tiny10.source.url} cannot be downloaded" in message and "refused" in message


def test_unknown_page(tiny10, tmp_path, serve):
    serve(tiny10.source, lambda handler: handler.send_error(404))
    assert "404" in fails_cleanly(tiny10, tmp_path)


@pytest.mark.parametrize("kept", [0, 100])
def test_download_that_ends_early(tiny10, tmp_path, serve, kept):
    archive = tiny10.archive
    serve(tiny10.source, sends(archive[:kept], len(archive)))
    assert f"ended after {kept:,} of {len(archive):,} bytes" in fails_cleanly(tiny10, tmp_path)


def test_damaged_download(tiny10, tmp_path, serve):
    serve(tiny10.source, sends(tiny10.archive[:-1] + b"x"))
    assert "md5 is wrong" in fails_cleanly(tiny10, tmp_path)


def test_no_http_server(tiny10, tmp_path, serve):
    serve(tiny10.source, lambda handler: handler.wfile.write(b"220 ready\r\n"))
    assert "cannot be downloaded" in fails_cleanly(tiny10, tmp_path)


def test_server_that_hangs(tiny10, tmp_path, serve, monkeypatch):
    monkeypatch.setattr(cifar, "TIMEOUT", 0.2)
    serve(tiny10.source, sends(tiny10.archive, pause=3))
    started = time.monotonic()
    assert "timed out" in fails_cleanly(tiny10, tmp_path)
    assert time.monotonic() - started < 2


def test_root_that_cannot_be_written(tiny10, serve):
    requests = serve(tiny10.source, sends(tiny10.archive))
    with folder_without_permission() as (root, closed), closed():
        message = fails_cleanly(tiny10, root, OutputError)
    assert "cannot be written" in message and "Permission denied" in message and not requests


def test_root_that_is_a_file(tiny10, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in fails_cleanly(tiny10, tmp_path / "file", OutputError)


def test_full_disk(tiny10, tmp_path, serve, monkeypatch):
    serve(tiny10.source, sends(tiny10.archive))
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(cifar.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(full))
    message = fails_cleanly(tiny10, tmp_path, OutputError)
    assert f"{tiny10.source.url} cannot be downloaded" in message and "No space left" in message


def test_full_disk_while_unpacking(tiny10, tmp_path, monkeypatch):
    (tmp_path / tiny10.source.filename).write_bytes(tiny10.archive)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(cifar.tarfile.TarFile, "extractall", lambda *_, **__: (_ for _ in ()).throw(full))
    message = fails_cleanly(tiny10, tmp_path, OutputError)
    assert f"{tiny10.source.filename} cannot be unpacked" in message and "No space left" in message


def test_interrupt(tiny10, tmp_path, serve, monkeypatch):
    serve(tiny10.source, sends(tiny10.archive))
    monkeypatch.setattr(cifar.shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        CIFAR10(str(tmp_path)).prepare_data()
    assert not list(tmp_path.iterdir())


def test_log_of_the_download(tiny10, tmp_path, serve, caplog):
    serve(tiny10.source, sends(tiny10.archive))
    with caplog.at_level(logging.INFO):
        tiny10.check(tmp_path)
    assert caplog.messages == [f"downloading {tiny10.source.url} into {tmp_path}"]


# Archives.


def test_archive_of_the_user(tiny, tmp_path, serve):
    requests = serve(tiny.source, sends(b""))
    (tmp_path / tiny.source.filename).write_bytes(tiny.archive)
    tiny.check(tmp_path)
    assert not requests
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([tiny.source.base_folder, tiny.source.filename])


@pytest.mark.parametrize("damage", [lambda archive: archive[:-1] + b"x", lambda archive: archive[: len(archive) // 2]])
def test_damaged_archive_of_the_user(tiny10, tmp_path, damage):
    (tmp_path / tiny10.source.filename).write_bytes(damage(tiny10.archive))
    message = fails_cleanly(tiny10, tmp_path)
    assert f"{tiny10.source.filename} cannot be unpacked (its md5 is not {tiny10.source.tgz_md5})" in message


@pytest.mark.parametrize(("make", "expected"), archives().values(), ids=archives())
def test_bad_archives_with_the_right_checksum(tiny10, tmp_path, make, expected):
    root = tmp_path / "root"
    root.mkdir()
    tiny10.set_archive(make(tiny10))
    (root / tiny10.source.filename).write_bytes(tiny10.archive)
    message = fails_cleanly(tiny10, root)
    assert "cannot be unpacked" in message and expected in message
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_checksums_are_torchvisions():
    assert CIFAR10._source is torchvision.datasets.CIFAR10 and CIFAR100._source is torchvision.datasets.CIFAR100


def test_batches_without_names_have_none(monkeypatch, tmp_path):
    tiny = Tiny(CIFAR10, monkeypatch, with_names=False)
    tiny.write_folder(tmp_path / "cifar-10-batches-py")
    assert CIFAR10(str(tmp_path)).file_names("test") is None

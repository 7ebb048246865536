import contextlib
import logging
import multiprocessing
import socket

import pytest
from cifar_archives import (
    PROXIES,
    Host,
    archives,
    folder_without_permission,
    message_of,
    sends,
    serving,
)

from cifar_resnets.data import cifar_archive, download
from cifar_resnets.data.cifar import CIFAR10, CIFAR100
from cifar_resnets.data.download import host_of
from cifar_resnets.errors import DataError, OutputError


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


def fails_cleanly(tiny, root, error=DataError):
    """The one line of a `prepare_data` that fails; nothing may be left behind."""
    before = sorted(root.rglob("*"))
    message = message_of(tiny.module(str(root)).prepare_data, error)
    assert sorted(root.rglob("*")) == before
    source = tiny.source
    assert f"put {source.filename} (md5 {source.tgz_md5}) or the folder {source.base_folder} into {root}" in message
    return message


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
    host = Host(tiny10.archive, breaks=[50, 0], pause=0.02)
    serve(tiny10.source, host)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=tiny10.check, args=(tmp_path,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert sorted(child.exitcode for child in children) == [0, 1]
    assert host.wanted == [0, 50, 50]
    assert [path.name for path in tmp_path.iterdir()] == [tiny10.source.base_folder]


def test_leftovers_of_a_killed_process(tiny10, tmp_path, serve):
    host = Host(tiny10.archive)
    serve(tiny10.source, host)
    leftover = tmp_path / f".{tiny10.source.base_folder}.part"
    leftover.mkdir()
    (leftover / "data_batch_1").write_bytes(b"half")
    (tmp_path / f".{tiny10.source.filename}.lock").touch()
    (tmp_path / f"{tiny10.source.filename}.part").write_bytes(tiny10.archive[:100])
    tiny10.check(tmp_path)
    assert host.wanted == [100]
    assert [path.name for path in tmp_path.iterdir()] == [tiny10.source.base_folder]


def test_sources_in_their_order(tiny, tmp_path, serve, caplog):
    """The mirrors, the original, and what the user gives."""
    hosts = [Host(tiny.archive[:1]), Host(tiny.archive[:2]), Host(tiny.archive, breaks=[0]), Host(tiny.archive)]
    urls = []
    for host in hosts:
        serve(tiny.source, host)
        urls.append(tiny.source.url)
    tiny.monkeypatch.setattr(tiny.source, "url", urls[2])
    tiny.set_mirrors(*urls[:2])
    with caplog.at_level(logging.INFO):
        tiny.module(str(tmp_path), urls=[urls[3], urls[0]]).prepare_data()
    assert [len(host.wanted) for host in hosts] == [1, 1, 1, 1]
    size = f"{len(tiny.archive):,} bytes"
    assert caplog.messages == [
        f"downloading {tiny.source.filename} into {tmp_path}",
        f"{host_of(urls[0])}: something else is there, of 1 instead of {size}",
        f"{host_of(urls[1])}: something else is there, of 2 instead of {size}",
        f"{host_of(urls[2])}: the connection ended after 0 of {size}",
    ]
    tiny.check(tmp_path)


def test_known_sources():
    for module, number in ((CIFAR10, 10), (CIFAR100, 100)):
        (*mirrors, original) = [*cifar_archive.MIRRORS[module.__name__], module._source.url]
        assert mirrors and all(url.startswith("https://") for url in (*mirrors, original))
        assert all(url.endswith(f"/cifar-{number}-python.tar.gz") for url in (*mirrors, original))
        assert original.startswith("https://www.cs.toronto.edu/")


def test_refused_connection(tiny10, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        monkeypatch.setattr(tiny10.source, "url", f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz")
        message = fails_cleanly(tiny10, tmp_path)
    assert (
        f"{tiny10.source.filename} cannot be downloaded: {host_of(tiny10.source.url)} (" in message
        and "refused" in message
    )


def test_damaged_download(tiny10, tmp_path, serve):
    serve(tiny10.source, sends(tiny10.archive[:-1] + b"x"))
    assert "md5 is wrong" in fails_cleanly(tiny10, tmp_path)


def test_part_of_a_download_is_kept(tiny10, tmp_path, serve, monkeypatch, caplog):
    monkeypatch.setattr(download, "PAUSE", 0)
    host = Host(tiny10.archive, breaks=[100, 0])
    serve(tiny10.source, host)
    part = tmp_path / "new" / f"{tiny10.source.filename}.part"
    message = message_of(tiny10.module(str(part.parent)).prepare_data)
    assert f"; 100 bytes are kept in {part}, to go on there next time; put " in message
    assert part.read_bytes() == tiny10.archive[:100]
    with caplog.at_level(logging.INFO):
        tiny10.check(part.parent)
    assert f"downloading {tiny10.source.filename} into {part.parent}, {part.name} goes on" in caplog.messages
    assert host.wanted == [0, 100, 100]
    assert [path.name for path in part.parent.iterdir()] == [tiny10.source.base_folder]


def test_empty_part_is_not_kept(tiny10, tmp_path, serve):
    serve(tiny10.source, Host(tiny10.archive, breaks=[0]))
    assert "bytes are kept" not in fails_cleanly(tiny10, tmp_path)


def test_root_that_cannot_be_written(tiny10, serve):
    requests = serve(tiny10.source, sends(tiny10.archive))
    with folder_without_permission() as (root, closed), closed():
        message = fails_cleanly(tiny10, root, OutputError)
    assert "cannot be written" in message and "Permission denied" in message and not requests


def test_root_that_is_a_file(tiny10, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in fails_cleanly(tiny10, tmp_path / "file", OutputError)


def test_full_disk(tiny10, tmp_path, serve):
    serve(tiny10.source, sends(tiny10.archive))
    (tmp_path / f"{tiny10.source.filename}.part").symlink_to("/dev/full")
    message = message_of(tiny10.module(str(tmp_path)).prepare_data, OutputError)
    assert f"{tiny10.source.filename} cannot be downloaded (" in message and "No space left" in message
    assert not list(tmp_path.iterdir())


def test_full_disk_while_unpacking(tiny10, tmp_path, monkeypatch):
    (tmp_path / tiny10.source.filename).write_bytes(tiny10.archive)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(cifar_archive.tarfile.TarFile, "extractall", lambda *_, **__: (_ for _ in ()).throw(full))
    message = fails_cleanly(tiny10, tmp_path, OutputError)
    assert f"{tiny10.source.filename} cannot be unpacked" in message and "No space left" in message


def test_downloaded_archive_is_kept_when_it_cannot_be_unpacked(tiny10, tmp_path, serve, monkeypatch):
    requests = serve(tiny10.source, sends(tiny10.archive))
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(cifar_archive.tarfile.TarFile, "extractall", lambda *_, **__: (_ for _ in ()).throw(full))
        message_of(tiny10.module(str(tmp_path)).prepare_data, OutputError)
    assert [path.name for path in tmp_path.iterdir()] == [f"{tiny10.source.filename}.part"]
    tiny10.check(tmp_path)
    assert len(requests) == 1


def test_interrupt(tiny10, tmp_path, serve, monkeypatch):
    def interrupted(url, start, wanted):
        return contextlib.nullcontext(lambda size: (_ for _ in ()).throw(KeyboardInterrupt()))

    serve(tiny10.source, host := Host(tiny10.archive, pause=0.01))
    with monkeypatch.context() as patch:
        patch.setattr(download, "_progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            CIFAR10(str(tmp_path)).prepare_data()
    part = tmp_path / f"{tiny10.source.filename}.part"
    assert 0 < (size := part.stat().st_size) < len(tiny10.archive)
    tiny10.check(tmp_path)
    assert host.wanted == [0, size]


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

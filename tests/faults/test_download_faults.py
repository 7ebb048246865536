"""What can go wrong with the images of CIFAR-10 and on the way to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cifar_archives import PROXIES, Host, Tiny, archives, patch, sends, serving
from faults.matrix import ends_well, fault, files_in, leaves_nothing, one_line
from processes import Process
from support import TINY, Result

from cifar_resnets.data.cifar import CIFAR10
from cifar_resnets.data.download import host_of

pytestmark = pytest.mark.process

GROUP = "download"
NOBODY = 65534
RECIPE = TINY.replace("class_path: Digits", "class_path: CIFAR10").replace("num_train: 200", "root: data")
ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
PART = f"{ARCHIVE}.part"


class Place:
    """A folder with a recipe that trains on a small CIFAR-10 in `data`."""

    def __init__(self, path: Path, tiny: Tiny) -> None:
        self.path, self.tiny = path, tiny
        self.data = path / "data"
        self.data.mkdir()
        (path / "recipe.yaml").write_text(RECIPE + "explain: null\n")
        self.before = files_in(path)

    def start(self, uid: int | None = None, **limits: float) -> Process:
        """Starts a fit that knows of nothing but the small archive, and of no proxy; with limits of `download`."""
        limits = {"PAUSE": 0.0, **limits}
        source = partial(patch, *self.tiny.patched(), limits)
        # one batch: a whole run shows no more of the images, and takes twice as long
        quick = ("fit", "-c", "recipe.yaml", "--trainer.fast_dev_run", "true")
        return Process(*quick, cwd=self.path, env=dict.fromkeys(PROXIES), uid=uid, before=source)

    def fit(self, **kwargs: Any) -> Result:
        """Runs a fit to its end."""
        return self.start(**kwargs).wait()

    def check_failed(self, result: Result, status: int, *culprits: str, remedy: bool = True) -> None:
        """Asserts that a fit failed with a line that says what to put where, and left nothing in `data`."""
        line = one_line(result, status, *culprits)
        assert not remedy or f"put {ARCHIVE} (md5 {self.tiny.source.tgz_md5})" in line
        leaves_nothing(self.path, self.before)

    def check_complete(self, *beside: str) -> None:
        """Asserts that `data` holds the images, whole, and nothing else."""
        assert sorted(path.name for path in self.data.iterdir()) == sorted([FOLDER, *beside])
        for name, content in self.tiny.contents.items():
            assert (self.data / FOLDER / name).read_bytes() == content


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, Tiny(CIFAR10, monkeypatch, num_each=40))


@pytest.fixture
def open_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A place that other users may enter; pytest's folders are closed to them."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: files of another user take root")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield Place(path, Tiny(CIFAR10, monkeypatch, num_each=40))


@pytest.fixture
def serve(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Serves what a function writes, in the place of the real server; returns what is asked for."""
    with contextlib.ExitStack() as stack:

        def start(respond: Callable[[Any], None]) -> list[str]:
            url, requests = stack.enter_context(serving(respond))
            monkeypatch.setattr(place.tiny.source, "url", f"{url}/{ARCHIVE}")
            return requests

        yield start


# No network, and bad ones.


@fault("no network")
@pytest.mark.parametrize("reason", ["refused", "no such host"])
def test_no_network(place: Place, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        host = f"127.0.0.1:{free.getsockname()[1]}" if reason == "refused" else "no-such-host.invalid"
        monkeypatch.setattr(place.tiny.source, "url", f"http://{host}/{ARCHIVE}")
        place.check_failed(place.fit(), 3, f"{host} (", "cannot be downloaded")


def redirects(handler: Any) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


BAD_SERVERS: dict[str, Callable[[Any], None]] = {
    "HTTP Error 404": lambda handler: handler.send_error(404),
    "HTTP Error 500": lambda handler: handler.send_error(500),
    "redirect": redirects,
    "220 ready": lambda handler: handler.wfile.write(b"220 ready\r\n"),
    "of 12 instead of": sends(b"<html>Log in"),
    "of 1,000,000 instead of": sends(b"x" * 50, 10**6),
    "of 0 instead of": sends(b""),
}


@fault("servers that refuse, redirect or lie", tries=7)
def test_bad_servers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serving(each))[0] for each in BAD_SERVERS.values()]
        place.tiny.set_mirrors(*urls[:-1])
        monkeypatch.setattr(place.tiny.source, "url", urls[-1])
        result = place.fit()
    place.check_failed(result, 3, "cannot be downloaded: ", *map(host_of, urls), *BAD_SERVERS)


@fault("a server that falls silent")
def test_silent_server(place: Place, serve: Any) -> None:
    serve(sends(place.tiny.archive, pause=30))
    place.check_failed(place.fit(SLOW_SECONDS=0.5), 3, host_of(place.tiny.source.url), "timed out")


@fault("a server that stops half-way, and goes on for the next run")
def test_server_that_stops(place: Place, serve: Any) -> None:
    host = Host(place.tiny.archive, breaks=[1000, 0])
    serve(host)
    line = one_line(place.fit(), 3, host_of(place.tiny.source.url), "the connection ended after 1,000 of")
    assert f"1,000 bytes are kept in {place.data / PART}, to go on there next time; put {ARCHIVE}" in line
    ends_well(place.fit(), f"{PART} goes on")
    assert host.wanted == [0, 1000, 1000]
    place.check_complete()


@fault("a mirror that refuses, one that crawls, one with other bytes")
def test_bad_mirrors(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = place.tiny.archive
    crawls = Host(archive, pause=0.3)
    with contextlib.ExitStack() as stack:
        hosts = [lambda h: h.send_error(403), crawls, sends(archive[1:] + b"x"), good := Host(archive)]
        urls = [stack.enter_context(serving(each))[0] for each in hosts]
        place.tiny.set_mirrors(*urls[:3])
        monkeypatch.setattr(place.tiny.source, "url", urls[3])
        result = place.fit(SLOW_SECONDS=0.5, SLOW_RATE=10**9)
    ends_well(
        result,
        f"{host_of(urls[0])}: HTTP Error 403",
        f"{host_of(urls[1])}: it delivers ",
        f"{host_of(urls[2])}: something else came",
    )
    assert good.wanted == [0]  # the third one has spoilt what the second one had sent
    place.check_complete()


@fault("an archive with another checksum from the server")
def test_wrong_checksum(place: Place, serve: Any) -> None:
    serve(sends(place.tiny.archive[:-1] + b"x"))
    place.check_failed(place.fit(), 3, host_of(place.tiny.source.url), "md5 is wrong")


# Several at once, and the end in the middle.


class Slow:
    """Sends the first half, and the rest when it may; later requests get what they lack at once."""

    def __init__(self, content: bytes) -> None:
        self.content, self.may_end, self.is_half_way = content, threading.Event(), threading.Event()
        self.rest = Host(content)

    def __call__(self, handler: Any) -> None:
        if self.is_half_way.is_set():
            self.rest(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.content)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(self.content[: len(self.content) // 2])
            handler.wfile.flush()
            self.is_half_way.set()
            self.may_end.wait(60)
            handler.wfile.write(self.content[len(self.content) // 2 :])


@fault("two processes that download at once", tries=2)
def test_two_at_once(place: Place, serve: Any) -> None:
    requests = serve(sends(place.tiny.archive, pause=1))
    both = [place.start(), place.start()]
    for process in both:
        ends_well(process.wait(), "CIFAR10: ")
    assert len(requests) == 1
    assert sum("waiting for another process" in process.out for process in both) == 1
    place.check_complete()


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        pytest.param(signal.SIGKILL, 137, marks=fault("kill -9 in the middle of a download")),
        pytest.param(signal.SIGTERM, 143, marks=fault("SIGTERM in the middle of a download")),
        pytest.param(signal.SIGINT, 130, marks=fault("Ctrl-C in the middle of a download")),
    ],
)
def test_ended_in_the_middle_and_started_again(place: Place, serve: Any, signum: int, status: int) -> None:
    slow = Slow(place.tiny.archive)
    requests = serve(slow)
    first = place.start()
    first.wait_for(slow.is_half_way.is_set)
    first.wait_for(lambda: (place.data / PART).exists() and (place.data / PART).stat().st_size > 0)
    first.signal(signum)
    result = first.wait()
    assert result.status == status, result
    if signum != signal.SIGKILL:
        one_line(result, status, f"stopped by {signal.Signals(signum).name}")
        assert [path.name for path in place.data.iterdir()] == [PART]
    slow.may_end.set()
    kept = (place.data / PART).stat().st_size
    ends_well(place.fit(), "CIFAR10: ", f"{PART} goes on")
    assert len(requests) == 2 and slow.rest.wanted == [kept]
    place.check_complete()


@fault("kill -9 of the one that downloads while another waits")
def test_the_one_that_waits_takes_over(place: Place, serve: Any) -> None:
    slow = Slow(place.tiny.archive)
    serve(slow)
    first = place.start()
    first.wait_for(slow.is_half_way.is_set)
    second = place.start()
    second.wait_for(lambda: "waiting for another process" in second.out)
    first.signal(signal.SIGKILL)
    assert first.wait().status == 137
    ends_well(second.wait(), "CIFAR10: ")
    place.check_complete()


# Archives and batches that are there, and damaged.


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], marks=fault("a truncated archive")),
        pytest.param(lambda content: content[:-1] + b"x", marks=fault("an archive with a flipped byte")),
        pytest.param(lambda content: b"", marks=fault("an empty archive")),
    ],
)
def test_damaged_archive(place: Place, damage: Callable[[bytes], bytes]) -> None:
    (place.data / ARCHIVE).write_bytes(damage(place.tiny.archive))
    place.before = files_in(place.path)
    place.check_failed(place.fit(), 3, f"{ARCHIVE} cannot be unpacked", "its md5 is not")


BAD_INSIDE = {
    "above": "an archive member with ../",
    "absolute": "an archive member with an absolute path",
    "truncated": "a truncated archive with the right checksum",
    "lacks a file": "an archive that lacks a file",
    "bad file": "an archive with a damaged file",
    "no archive": "a file that is no archive",
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=fault(what)) for kind, what in BAD_INSIDE.items()])
def test_archive_that_is_bad_inside(place: Place, kind: str) -> None:
    make, said = archives()[kind]
    place.tiny.set_archive(make(place.tiny))
    (place.data / ARCHIVE).write_bytes(place.tiny.archive)
    place.before = files_in(place.path)
    place.check_failed(place.fit(), 3, f"{ARCHIVE} cannot be unpacked", said)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        pytest.param("data_batch_3", lambda c: c[:-1] + b"x", "is damaged", marks=fault("a corrupted batch")),
        pytest.param("test_batch", lambda c: c[:-1] + b"x", "is damaged", marks=fault("a corrupted batch")),
        pytest.param("batches.meta", lambda c: b"", "is damaged", marks=fault("an empty batches.meta")),
        pytest.param("data_batch_5", None, "is missing", marks=fault("a missing batch")),
    ],
)
def test_damaged_batch(place: Place, name: str, damage: Callable[[bytes], bytes] | None, said: str) -> None:
    path = place.tiny.write_folder(place.data / FOLDER) / name
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    place.before = files_in(place.path)
    place.check_failed(place.fit(), 3, f"data/{FOLDER}/{name} {said}", "remove the folder", remedy=False)


@fault("an empty folder in the place of the batches")
def test_empty_batches(place: Place) -> None:
    (place.data / FOLDER).mkdir()
    place.before = files_in(place.path)
    place.check_failed(place.fit(), 3, f"{FOLDER}/data_batch_1 is missing", remedy=False)


# Folders that cannot be written, and full disks.


@fault("a data folder that cannot be written")
def test_closed_folder(open_place: Place) -> None:
    open_place.data.chmod(0o555)
    result = open_place.fit(uid=NOBODY)
    open_place.check_failed(result, 6, str(open_place.data), "Permission denied")


@fault("a data folder that can only be read, with the batches")
def test_readable_folder(open_place: Place) -> None:
    folder = open_place.tiny.write_folder(open_place.data / FOLDER)
    folder.chmod(0o555)
    open_place.data.chmod(0o555)
    open_place.before = files_in(open_place.path)
    ends_well(open_place.fit(uid=NOBODY), "CIFAR10: ")
    leaves_nothing(open_place.path, open_place.before)


@fault("batches that cannot be read")
def test_closed_batches(open_place: Place) -> None:
    folder = open_place.tiny.write_folder(open_place.data / FOLDER)
    (folder / "data_batch_2").chmod(0o000)
    open_place.before = files_in(open_place.path)
    result = open_place.fit(uid=NOBODY)
    open_place.check_failed(result, 3, "data_batch_2 cannot be read", "Permission denied", remedy=False)


@fault("a file in the place of the data folder")
def test_file_as_folder(place: Place) -> None:
    place.data.rmdir()
    place.data.touch()
    place.before = files_in(place.path)
    place.check_failed(place.fit(), 6, str(place.data), "cannot be written")


@pytest.fixture
def small_disk(place: Place) -> Iterator[Callable[[int], None]]:
    """Makes `data` a disk of so many KiB."""
    mounted = []

    def mount(kibibytes: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place.data)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("NOT TESTED: a small disk takes the right to mount one")
        mounted.append(place.data)

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@fault("a disk that is full in a download")
def test_full_disk(place: Place, serve: Any, small_disk: Any) -> None:
    serve(sends(place.tiny.archive))
    small_disk(len(place.tiny.archive) // 2 // 1024)
    place.check_failed(place.fit(), 6, "cannot be downloaded", "No space left on device")
    assert shutil.disk_usage(place.data).used == 0


@fault("a disk that is full while the archive is unpacked")
def test_full_disk_while_it_is_unpacked(place: Place, serve: Any, small_disk: Any) -> None:
    serve(sends(place.tiny.archive))
    small_disk(int(1.5 * len(place.tiny.archive)) // 1024)
    one_line(place.fit(), 6, f"{PART} cannot be unpacked", "No space left on device", f"put {ARCHIVE}")
    assert [path.name for path in place.data.iterdir()] == [PART]  # it need not come again
    assert (place.data / PART).read_bytes() == place.tiny.archive

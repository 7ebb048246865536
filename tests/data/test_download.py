import contextlib
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from cifar_archives import PROXIES, Host, md5, sends, serving

from cifar_resnets.data import download as module
from cifar_resnets.data.download import DownloadError, download, host_of

CONTENT = np.random.default_rng(0).bytes(1000)
ABROAD = "http://127.0.0.1:9/file"  # the port of the discard service, where nothing listens


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve():
    """Serves what a function writes to the handler; returns the address of a file there."""
    with contextlib.ExitStack() as stack:
        yield lambda respond: stack.enter_context(serving(respond))[0] + "/file"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.part"


def fetch(urls, part, content=CONTENT):
    download(urls, part, len(content), md5(content))
    assert part.read_bytes() == content


def reasons_of(urls, part):
    with pytest.raises(DownloadError) as caught:
        fetch(urls, part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One host.


def test_a_file_is_fetched_whole(serve, part):
    fetch([serve(host := Host(CONTENT))], part)
    assert host.wanted == [0]


def test_a_file_that_is_there_takes_no_host(part):
    part.write_bytes(CONTENT)
    fetch([ABROAD], part)


def test_a_part_is_completed(serve, part):
    part.write_bytes(CONTENT[:400])
    fetch([serve(host := Host(CONTENT))], part)
    assert host.wanted == [400]


def test_a_part_is_completed_by_a_host_without_ranges(serve, part):
    part.write_bytes(CONTENT[:400])
    fetch([serve(Host(CONTENT, ranges=False))], part)


def test_a_host_without_ranges_that_breaks_off_loses_nothing(serve, part):
    part.write_bytes(CONTENT[:400])
    assert "ended after 100 of 1,000 bytes" in reasons_of([serve(Host(CONTENT, ranges=False, breaks=[100]))], part)
    assert part.read_bytes() == CONTENT[:400]


def test_breaks_are_gone_over(serve, part, caplog):
    with caplog.at_level(logging.INFO):
        fetch([url := serve(host := Host(CONTENT, breaks=[300, 200]))], part)
    assert host.wanted == [0, 300, 500]
    lines = [f"{host_of(url)}: the connection ended after {size} of 1,000 bytes; going on there" for size in (300, 500)]
    assert caplog.messages == lines


def test_a_host_that_breaks_off_for_ever_is_left(serve, part, monkeypatch):
    monkeypatch.setattr(module, "MOST_TRIES", 3)
    assert "it broke off 3 times" in reasons_of([serve(Host(CONTENT, breaks=[10] * 3))], part)
    assert part.read_bytes() == CONTENT[:30]


@pytest.mark.parametrize("wrong", [b"x" * 400, b"x" * 1000, b"x" * 2000])
def test_wrong_bytes_of_an_earlier_download_are_fetched_again(serve, part, wrong):
    part.write_bytes(wrong)
    fetch([serve(host := Host(CONTENT))], part)
    assert host.wanted == ([400, 0] if len(wrong) == 400 else [0])


def test_redirects_are_followed_with_the_range(serve, part):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    target = serve(host := Host(CONTENT))
    part.write_bytes(CONTENT[:400])
    fetch([serve(redirect)], part)
    assert host.wanted == [400]


def test_a_host_may_say_no_length(serve, part):
    def respond(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    fetch([serve(respond)], part)


def test_an_endless_file_is_cut_where_it_should_end(serve, part):
    def respond(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x" * 4096)

    assert "the md5 is wrong" in reasons_of([serve(respond)], part)
    assert not part.exists()


def test_a_disk_that_is_full_is_an_error_of_its_own(serve, part):
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        fetch([serve(Host(CONTENT))], part)


# Several hosts.


def part_of(start, total, body):
    """Sends an answer to a request for a range, whatever was asked for."""

    def respond(handler):
        handler.send_response(206)
        if start is not None:
            handler.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def to_itself(handler):
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


BAD = {
    "403": (lambda handler: handler.send_error(403), "403"),
    "404": (lambda handler: handler.send_error(404), "404"),
    "500": (lambda handler: handler.send_error(500), "500"),
    "redirects to itself": (to_itself, "redirect"),
    "no HTTP": (lambda handler: handler.wfile.write(b"220 ready\r\n"), "220"),
    "wrong bytes": (sends(CONTENT[:-1] + b"x"), "the md5 is wrong"),
    "a login page": (sends(b"<html>Log in first"), "of 18 instead of 1,000 bytes"),
    "too long": (sends(CONTENT + b"x"), "of 1,001 instead of 1,000 bytes"),
    "nothing": (sends(b"", 1000), "ended after 0 of 1,000 bytes"),
    "stops": (sends(CONTENT[:300], 1000), "ended after 300 of 1,000 bytes"),
    "another part": (part_of(700, 1000, CONTENT[700:]), "another part"),
    "a part of another file": (part_of(0, 900, CONTENT[:900]), "of 900 instead of 1,000 bytes"),
    "an unknown part": (part_of(None, 1000, CONTENT), "an unknown part of the file ('')"),
    "silence": (sends(CONTENT, pause=0.6), "timed out"),
}


@pytest.mark.parametrize(("respond", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("have", [0, 400])
def test_a_bad_host_is_left_for_the_next_one(serve, part, caplog, monkeypatch, respond, reason, have):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.2)
    part.write_bytes(CONTENT[:have])
    urls = [serve(respond), serve(Host(CONTENT))]
    with caplog.at_level(logging.INFO):
        fetch(urls, part)
    assert caplog.messages[-1].startswith(f"{host_of(urls[0])}: ") and reason in caplog.messages[-1]


@pytest.mark.parametrize("url", [ABROAD, "http://no-such-host.invalid/file", "http://[1/file", "http://a:b/file"])
def test_a_host_that_cannot_be_reached_is_left(serve, part, url):
    fetch([url, serve(Host(CONTENT))], part)


def test_a_host_that_crawls_is_left_and_the_next_goes_on(serve, part, caplog, monkeypatch):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.1)
    crawling = serve(Host(CONTENT, pause=0.03))
    with caplog.at_level(logging.INFO):
        fetch([crawling, serve(host := Host(CONTENT))], part)
    assert 0 < host.wanted[0] < 1000
    (line,) = caplog.messages
    assert line.startswith(f"{host_of(crawling)}: it delivers ") and line.endswith(" kB/s, less than 100 kB/s for 0 s")


def test_a_host_that_crawls_is_better_than_none(serve, part, caplog, monkeypatch):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.1)
    with caplog.at_level(logging.INFO):
        fetch([url := serve(host := Host(CONTENT, pause=0.03)), ABROAD], part)
    assert host.wanted[0] == 0 and 0 < host.wanted[1] < 1000
    assert caplog.messages[-1] == f"no other host delivers: back to {host_of(url)}, however slow"


def test_a_fast_host_is_not_left(serve, part, monkeypatch):
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(module, "SLOW_RATE", 1000)
    fetch([serve(host := Host(CONTENT, pause=0.02))], part)
    assert len(host.wanted) == 1


def test_the_reason_of_each_host_is_told(serve, part):
    urls = [serve(BAD["404"][0]), ABROAD]
    message = reasons_of(urls, part)
    assert message.startswith(f"{host_of(urls[0])} (HTTP Error 404: Not Found), 127.0.0.1:9 (Connection refused)")
    assert not part.exists()


def test_a_password_is_not_shown():
    assert host_of("http://me:secret@host:80/file") == "host:80"
    assert host_of("http://host") == "host"


# Progress.


def test_lines_tell_the_progress_without_a_terminal(serve, part, caplog, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    content = CONTENT * 200
    part.write_bytes(content[:100_000])
    with caplog.at_level(logging.INFO):
        fetch([serve(Host(content, pause=0.01))], part, content)
    assert len(caplog.messages) > 1
    assert all(" of 0.2 MB, " in line and line.endswith(" min left") for line in caplog.messages)
    assert all(line.startswith("127.0.0.1:") and ("kB/s" in line or "MB/s" in line) for line in caplog.messages)


def test_few_lines_tell_the_progress_of_a_quick_download(serve, part, caplog):
    with caplog.at_level(logging.INFO):
        fetch([serve(Host(CONTENT, pause=0.001))], part)
    assert caplog.messages == []


SCRIPT = """
import sys
from pathlib import Path
from cifar_resnets.data.download import download
download([sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
"""


@pytest.mark.process
def test_a_terminal_shows_a_bar_with_rate_and_time(serve, part):
    content = CONTENT * 2000
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        serve(Host(content, pause=0.1)),
        str(part),
        str(len(content)),
        md5(content),
    ]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 2**16):
                shown += piece
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "127.0.0.1:" in text and "/2.0 MB" in text and "MB/s" in text and "0:00:0" in text
    assert part.read_bytes() == content


def test_the_limits_are_those_of_the_documentation():
    assert (module.SLOW_RATE, module.SLOW_SECONDS) == (100_000, 30)

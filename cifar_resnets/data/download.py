"""Downloads a file of known size and MD5 from the first address that delivers it, and goes on with a part of it."""

import hashlib
import http.client
import logging
import math
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifar_resnets.errors import one_line
from cifar_resnets.support.text import elide, printable

SLOW_RATE = 100_000  # bytes a second: a host that delivers less,
SLOW_SECONDS = 30.0  # over so many seconds, is left for the next one; no byte in that time is an error
MOST_TRIES = 20  # of one host, each with new bytes
PAUSE = 1.0  # seconds after a break
LINE_SECONDS = 30.0  # between two lines of progress without a terminal
BLOCK = 1 << 16
AGENT = {"User-Agent": "cifar-resnets"}  # some hosts refuse urllib's own name

logger = logging.getLogger(__name__)


class DownloadError(Exception):
    """No address delivers the file; the message has the reason of each."""


class _HostError(Exception):
    """A host does not deliver."""


class _Broken(_HostError):
    """A connection has ended before the file did."""


class _Slow(_HostError):
    """A host delivers less than `SLOW_RATE`."""


def download(urls: Sequence[str], part: Path, size: int, md5: str) -> None:
    """Downloads a file to `part`, unless it is there, from the first address that delivers it.

    What `part` holds is not asked for again, whoever delivered it: the file is the same at all addresses. Hosts that
    crawl are left, and taken after all if no other one delivers. After an error or a kill, `part` keeps what has come.

    Args:
        urls: http or https addresses of the file, in the order in which they are tried.
        part: path of the file while it is incomplete.
        size: of the whole file, in bytes.
        md5: of the whole file.

    Raises:
        DownloadError: when no address delivers the file.
        OSError: when `part` cannot be written.
    """
    wanted = _File(part, size, md5)
    if wanted.is_complete():
        return
    reasons: dict[str, str] = {}
    slow: list[str] = []
    for url in urls:
        try:
            return _from_host(url, wanted, SLOW_RATE)
        except _HostError as error:
            reasons[url] = str(error)
            slow += [url] if isinstance(error, _Slow) else []
            logger.info("%s: %s", host_of(url), error)
    for url in slow:
        logger.info("no other host delivers: back to %s, however slow", host_of(url))
        try:
            return _from_host(url, wanted, least_rate=0)
        except _HostError as error:
            reasons[url] = str(error)
    raise DownloadError(", ".join(f"{host_of(url)} ({reason})" for url, reason in reasons.items()))


def md5_of(path: Path) -> str:
    """Returns the MD5 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _File(NamedTuple):
    """A file that is downloaded, see `download`."""

    part: Path
    size: int
    md5: str

    @property
    def have(self) -> int:
        """Number of bytes that are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def is_complete(self) -> bool:
        """Returns whether the file is whole; removes it if its bytes are wrong: which ones are is not known."""
        if self.have < self.size:
            return False
        if self.have == self.size and md5_of(self.part) == self.md5:
            return True
        self.part.unlink()
        return False


def host_of(url: str) -> str:
    """Returns host and port of an address, without the password that may be there."""
    return printable(url.split("/")[2].rpartition("@")[2])


def _from_host(url: str, wanted: _File, least_rate: float) -> None:
    """Downloads from one host, again after each break that followed new bytes."""
    for _ in range(MOST_TRIES):
        had = wanted.have
        try:
            start = _receive(url, wanted, least_rate)
        except _Broken as error:
            if wanted.have <= had:
                raise
            logger.info("%s: %s; going on there", host_of(url), error)
            time.sleep(PAUSE)
            continue
        if wanted.is_complete():
            return
        if start == 0:  # otherwise the wrong bytes may be those that were there
            raise _HostError("something else came: the md5 is wrong")
    raise _HostError(f"it broke off {MOST_TRIES} times")


def _receive(url: str, wanted: _File, least_rate: float) -> int:
    """Adds to `part` what it lacks; returns from which byte on the host has sent it.

    A host that knows no ranges sends the file from its start; then the same bytes are written over those that are
    there, so that nothing is lost if it breaks off early.
    """
    with _opened(url, wanted.have) as response:
        start, total = _range_of(response)
        if total not in (None, wanted.size):
            raise _HostError(f"something else is there, of {total:,} instead of {wanted.size:,} bytes")
        if start > wanted.have:
            raise _HostError("it sends another part of the file")
        with open(wanted.part, "r+b" if wanted.part.exists() else "wb") as file, _progress(url, start, wanted) as show:
            file.seek(start)
            for block in _blocks(response, least_rate):
                file.write(block[: wanted.size - file.tell()])
                show(file.tell())
                if file.tell() == wanted.size:
                    return start
            raise _Broken(f"the connection ended after {file.tell():,} of {wanted.size:,} bytes")


@contextmanager
def _opened(url: str, have: int) -> Iterator[Any]:
    """Asks for the bytes of an address from `have` on."""
    headers = AGENT | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SLOW_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise _HostError(one_line(error)) from error
    except urllib.error.URLError as error:
        cause = error.reason if isinstance(error.reason, OSError) else error
        raise _HostError(cause.strerror or str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _HostError(one_line(error)) from error
    with response:
        yield response


def _range_of(response: Any) -> tuple[int, int | None]:
    """Returns from which byte on a host sends the file, and the file's length if the host says so."""
    if response.status != http.client.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    text = response.headers.get("Content-Range", "")
    if (found := re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())) is None:
        raise _HostError(f"it sends an unknown part of the file ({text!r})")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _blocks(response: Any, least_rate: float) -> Iterator[bytes]:
    """Yields what a host sends, as it comes.

    Raises:
        _Broken: when the connection breaks, or is silent for `SLOW_SECONDS`.
        _Slow: when fewer than `least_rate` bytes a second came over `SLOW_SECONDS`.
    """
    since, count = time.monotonic(), 0
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(one_line(error)) from error
        if not block:
            return
        yield block
        count += len(block)
        if (seconds := time.monotonic() - since) >= SLOW_SECONDS:
            if count < least_rate * seconds:
                rates = f"{_as_text(count / seconds)}, less than {least_rate / 1000:.0f} kB/s"
                raise _Slow(f"it delivers {rates} for {SLOW_SECONDS:.0f} s")
            since, count = time.monotonic(), 0


@contextmanager
def _progress(url: str, start: int, wanted: _File) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes there are: as a bar on a terminal, otherwise as a line now and then."""
    host = host_of(url)
    if not sys.stdout.isatty():
        yield _Lines(host, start, wanted.size).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(None), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True, expand=True) as bar:
        task = bar.add_task(escape(elide(host, 24)), total=wanted.size, completed=start)
        yield lambda size: bar.update(task, completed=size)


class _Lines:
    """Prints a line of progress every `LINE_SECONDS`."""

    def __init__(self, host: str, start: int, total: int) -> None:
        self._host, self._start, self._total = host, start, total
        self._began = self._printed = time.monotonic()

    def show(self, size: int) -> None:
        """Takes the number of bytes that there are, those of an earlier download included."""
        now = time.monotonic()
        if now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        rate = (size - self._start) / (now - self._began)
        minutes, seconds = divmod(math.ceil((self._total - size) / max(rate, 1)), 60)
        done = f"{size / 1e6:.1f} of {self._total / 1e6:.1f} MB"
        logger.info("%s: %s, %s, %d:%02d min left", self._host, done, _as_text(rate), minutes, seconds)


def _as_text(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s" if rate >= 1e6 else f"{rate / 1000:.0f} kB/s"

"""Data sets in CIFAR's format that are small enough for a test, and a server that hands them out."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from cifar_resnets.data import cifar, cifar_archive, cifar_files, download
from cifar_resnets.data.cifar import CIFAR10
from cifar_resnets.errors import DataError

NUM_EACH = 6  # images a batch file
PATCHED = ("url", "tgz_md5", "train_list", "test_list", "meta")
PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def md5(content):
    return hashlib.md5(content).hexdigest()


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def tar_of(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def message_of(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
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


class Tiny:
    """A data set in CIFAR's format, small enough for a test; torchvision's class gets its checksums."""

    def __init__(self, module, monkeypatch, num_each=NUM_EACH, with_names=True):
        self.module, self.source, self.monkeypatch = module, module._source, monkeypatch
        rng = np.random.default_rng(0)
        self.contents, self.rows, self.labels, self.files = {}, {}, {}, {}
        for key in ("train_list", "test_list"):
            names = [name for name, _ in getattr(self.source, key)]
            for name in names:
                rows = rng.integers(0, 256, (num_each, 3072), dtype=np.uint8)
                labels = rng.permutation(np.arange(num_each) % len(module._names)).tolist()
                fine = "labels" if module is CIFAR10 else "fine_labels"
                coarse, files = [label % 20 for label in labels], [f"{name}_s_{n:06}.png" for n in range(num_each)]
                batch = {"data": rows, fine: labels, "coarse_labels": coarse}
                self.contents[name] = pickle.dumps({**batch, "filenames": files} if with_names else batch)
                self.files.setdefault(key, []).extend(files)
                self.rows.setdefault(key, []).append(rows)
                self.labels.setdefault(key, []).extend(labels)
            monkeypatch.setattr(self.source, key, [[name, md5(self.contents[name])] for name in names])
        self.set_meta(module._names)

    def set_meta(self, names):
        meta = self.source.meta
        content = pickle.dumps({meta["key"]: list(names), "coarse_label_names": cifar.CIFAR100_COARSE_CLASSES})
        self.contents[meta["filename"]] = content
        self.monkeypatch.setattr(self.source, "meta", {**meta, "md5": md5(content)})
        self.set_archive(tar_of({f"{self.source.base_folder}/{name}": c for name, c in self.contents.items()}))

    def set_archive(self, content):
        self.archive = content
        self.monkeypatch.setattr(self.source, "tgz_md5", md5(content))
        self.monkeypatch.setitem(cifar_archive.SIZES, self.source.__name__, len(content))
        self.monkeypatch.setitem(cifar_archive.MIRRORS, self.source.__name__, ())

    def set_mirrors(self, *urls):
        self.monkeypatch.setitem(cifar_archive.MIRRORS, self.source.__name__, urls)

    def patched(self):
        """What differs from the real data set, for `patch` in another process."""
        name = self.source.__name__
        values = {name: getattr(self.source, name) for name in PATCHED}
        return name, values, cifar_archive.SIZES[name], cifar_archive.MIRRORS[name]

    def write_folder(self, folder):
        folder.mkdir(parents=True)
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return folder

    def write_binary(self, folder):
        """The binary version, as CIFAR's own page describes it."""
        folder.mkdir(parents=True)
        kept = cifar_files.BINARY[self.source.__name__]
        checksums = {}
        for split, names in kept[1].items():
            rows, labels = np.concatenate(self.rows[f"{split}_list"]), self.labels[f"{split}_list"]
            first = [[n % 20, n] if self.module is not CIFAR10 else [n] for n in labels]
            parts = np.array_split(np.hstack([np.array(first, np.uint8), rows]), len(names))
            contents = dict(zip(names, (part.tobytes() for part in parts), strict=True))
            for name, content in contents.items():
                (folder / name).write_bytes(content)
            checksums[split] = {name: names[name] and md5(content) for name, content in contents.items()}
        self.monkeypatch.setitem(cifar_files.BINARY, self.source.__name__, (kept[0], checksums))
        return folder

    def write_parquet(self, path, split, names=None, **columns):
        """A file as Hugging Face's hub has it, with other columns if they are given."""
        import pyarrow.parquet

        label = "label" if self.module is CIFAR10 else "fine_label"
        labels = self.labels[f"{split}_list"]
        images = [{"bytes": png(image), "path": None} for image in self.pixels(split)]
        coarse = [n % 20 for n in labels]
        table = pyarrow.table({"img": images, label: labels, "coarse_label": coarse} | columns)
        feature = {"names": names or self.module._names, "_type": "ClassLabel"}
        metadata = {"huggingface": json.dumps({"info": {"features": {label: feature}}})}
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)

    def pixels(self, split):
        """The images as CIFAR's own description says: 1024 red values row by row, then green, then blue."""
        rows = np.concatenate(self.rows[f"{split}_list"])
        return np.stack([rows[:, 1024 * c : 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)], axis=-1)

    def check(self, root, has_names=True):
        data = self.module(str(root))
        data.prepare_data()
        for split in ("train", "test"):
            images, labels = data.load(split)
            assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
            np.testing.assert_array_equal(images, self.pixels(split))
            assert labels.tolist() == self.labels[f"{split}_list"]
            assert data.file_names(split) == (self.files[f"{split}_list"] if has_names else None)


def patch(name, values, size, mirrors, constants):
    """Puts a `Tiny` in the place of a data set for the rest of the process, and sets constants of `download`."""
    for key, value in values.items():
        setattr(getattr(torchvision.datasets, name), key, value)
    cifar_archive.SIZES[name], cifar_archive.MIRRORS[name] = size, mirrors
    for key, value in constants.items():
        setattr(download, key, value)


@contextlib.contextmanager
def serving(respond):
    """Serves on this machine what a function writes to the handler; the URL, and the paths that were asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            respond(self)

        def log_message(self, *_):
            pass

    requests = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def sends(content, length=None, pause=0.0):
    """Sends a content, after so many seconds, and may promise more."""

    def respond(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(length or len(content)))
        handler.end_headers()
        time.sleep(pause)
        with contextlib.suppress(OSError):
            handler.wfile.write(content)

    return respond


class Host:
    """Hands out a content as a web server does.

    Args:
        content: all of it.
        ranges: whether it sends the part that it is asked for.
        breaks: after how many bytes each of the first connections ends.
        pause: seconds between two of ten pieces.
    """

    def __init__(self, content, ranges=True, breaks=(), pause=0.0):
        self.content, self.ranges, self.breaks, self.pause = content, ranges, list(breaks), pause
        self.wanted = []  # from which byte on, for each request

    def __call__(self, handler):
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.wanted.append(start)
        start = start if self.ranges else 0
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: self.breaks.pop(0)] if self.breaks else body
        with contextlib.suppress(OSError):
            for piece in np.array_split(np.frombuffer(body, np.uint8), 10 if self.pause else 1):
                handler.wfile.write(piece.tobytes())
                time.sleep(self.pause)


def archives():
    """Archives that are bad inside: what makes each, and what is said of it."""

    def with_member(name):
        return lambda tiny: tar_of({name: b"outside", f"{tiny.source.base_folder}/data_batch_1": b""})

    def truncated(tiny):
        return tiny.archive[: len(tiny.archive) // 2]

    def lacks_a_file(tiny):
        return tar_of({f"{tiny.source.base_folder}/{n}": c for n, c in tiny.contents.items() if n != "test_batch"})

    def has_a_bad_file(tiny):
        return tar_of({f"{tiny.source.base_folder}/{n}": c + b"x" for n, c in tiny.contents.items()})

    return {
        "above": (with_member("../outside"), "outside"),
        "absolute": (with_member("/outside/../../outside"), "outside"),
        "truncated": (truncated, ""),
        "lacks a file": (lacks_a_file, "in it cifar-10-batches-py/test_batch is missing"),
        "bad file": (has_a_bad_file, "in it cifar-10-batches-py/data_batch_1 is damaged"),
        "no archive": (lambda _: b"not an archive", ""),
    }

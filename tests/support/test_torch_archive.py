"""Archives of torch.save, and what is made to look like one, against zipfile and torch."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifar_resnets.support.torch_archive import LEGACY, MAGIC, ArchiveError, check_archive, check_is_file, check_legacy


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rewritten(change: Callable[[dict[str, bytes]], object], content: Any, how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of torch.save with other records."""
    with zipfile.ZipFile(io.BytesIO(saved(content))) as source:
        records = {item.filename: source.read(item) for item in source.infolist()}
    change(records)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as target:
        for name, data in records.items():
            target.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "dtype",
    [*(torch.uint8, torch.int8, torch.bool, torch.int16, torch.half, torch.bfloat16, torch.int32, torch.float32),
     *(torch.int64, torch.float64, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn)],
)  # fmt: skip
def test_tensors_of_every_type_pass(dtype: torch.dtype) -> None:
    base = torch.zeros(6, dtype=dtype)
    check_archive(io.BytesIO(saved({"a": base, "b": base[2:].reshape(2, 2), "c": torch.nn.Parameter(torch.ones(3))})))


def test_what_public_trainers_save_passes() -> None:
    content = {"acc": np.float64(0.9), "args": {"betas": ((0.9, 0.999), (1,)), "sizes": {1, 2}}, "state": torch.ones(3)}
    check_archive(io.BytesIO(saved(content)))


def test_both_formats_of_torch_are_known_by_their_first_bytes() -> None:
    assert saved({}).startswith(MAGIC)
    assert saved({}, _use_new_zipfile_serialization=False).startswith(LEGACY)


def test_compressed_records_are_refused_unread() -> None:
    def bomb(records: dict[str, bytes]) -> None:
        records["archive/data/9"] = b"\0" * 2**24

    data = rewritten(bomb, {"a": torch.ones(3)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 2**16
    with pytest.raises(ArchiveError, match="compressed"):
        check_archive(io.BytesIO(data))


def test_a_tensor_larger_than_its_record_is_refused() -> None:
    def shorten(records: dict[str, bytes]) -> None:
        records["archive/data/0"] = b"\0" * 4

    with pytest.raises(ArchiveError, match="larger than its record"):
        check_archive(io.BytesIO(rewritten(shorten, {"a": torch.ones(3)})))


def test_a_record_that_is_there_twice_is_refused() -> None:
    def again(records: dict[str, bytes]) -> None:
        records["archive/DATA/0"] = b"\0" * 12

    with pytest.raises(ArchiveError, match="overlap"):
        check_archive(io.BytesIO(rewritten(again, {"a": torch.ones(3)})))


def test_nested_tuples_that_repeat_are_refused_at_once() -> None:
    def nest(records: dict[str, bytes]) -> None:
        nested: Any = ((),)
        for _ in range(200):  # 2^200 tuples to hash
            nested = (nested, nested)
        records["archive/data.pkl"] = pickle.dumps({"key": nested}, 2)

    with pytest.raises(ArchiveError, match="repeats a tuple"):
        check_archive(io.BytesIO(rewritten(nest, {})))


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    check_archive(io.BytesIO(saved({"x": Payload(), "y": {Payload(): 1}, "z": [Payload()]})))
    assert list(tmp_path.iterdir()) == []


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ArchiveError, match="no regular file"):
            check_is_file(path)
    (tmp_path / "file").touch()
    check_is_file(tmp_path / "file")


# Pickles by hand: a dict with a deep tuple as a key, and calls that fill the memory.
START, END = b"\x80\x02", b"."
LIST = b"](" + b"K\x01" * 2**16 + b"eq\x00"  # appended and memorized
HOSTILE = {
    "deep": b"})" + b"\x85" * 200_000 + b"K\x01s",
    "bytearray": b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R",
    "encode": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R",
    "encode by another": b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nNX\x01\x00\x00\x00a\x85NtR",
    "copies": b"](" + LIST + b"cbuiltins\nset\nh\x00\x85R" * 1000 + b"e",
    "copies of copies": b"](ccollections\nOrderedDict\n)R("
    + b"".join(b"M" + k.to_bytes(2, "little") + b"K\x01" for k in range(2**16))
    + b"uq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000 + b"e",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_crash_or_fill_the_memory_is_refused(name: str) -> None:
    evil = START + HOSTILE[name] + END

    def plant(records: dict[str, bytes]) -> None:
        records["archive/data.pkl"] = evil

    with pytest.raises(ArchiveError, match="torch.save does not|nests|copies|plain tensors"):
        check_archive(io.BytesIO(rewritten(plant, {})))
    old = saved({}, _use_new_zipfile_serialization=False)
    head = b"".join(pickle.dumps(each, 2) for each in pickles(old)[:3])
    with pytest.raises(ArchiveError, match="torch.save does not|nests|copies|plain tensors"):
        check_legacy(io.BytesIO(head + evil))


def pickles(data: bytes) -> list[Any]:
    file = io.BytesIO(data)
    return [pickle.load(file) for _ in range(4)]


def test_old_files_pass() -> None:
    content = {"a": torch.ones(5)[1:], "sizes": {1}, "acc": np.float64(0.9), "raw": b"\xff"}
    check_legacy(io.BytesIO(saved(content, _use_new_zipfile_serialization=False)))


def test_an_archive_with_a_second_table_of_records_is_refused() -> None:
    """zipfile reads the table before the end of the file; torch the one that the end names, here of a bomb."""
    content = saved({"a": torch.ones(3)})
    good = rewritten(lambda records: None, {"a": torch.ones(3)})
    bomb = rewritten(lambda records: records.update({"archive/data/9": b"\0" * 2**20}), {}, zipfile.ZIP_DEFLATED)
    for data in (content, good):
        check_archive(io.BytesIO(data))
        with pytest.raises(ArchiveError, match="two tables"):
            check_archive(io.BytesIO(bomb + data))
    place = int.from_bytes(bomb[-6:-2], "little")
    evil = bomb + good[:-6] + place.to_bytes(4, "little") + good[-2:]
    with pytest.raises(ArchiveError, match="two tables"):
        check_archive(io.BytesIO(evil))


def test_names_that_zipfile_and_torch_would_decode_differently_are_refused() -> None:
    data = rewritten(lambda records: records.update({"archive/data/\xe9": b"0"}), {})
    with pytest.raises(ArchiveError, match="names"):
        check_archive(io.BytesIO(data))

"""Checks a file of torch.save before torch reads it: what a stranger's file says of its sizes need not be true.

torch would unpack two compressed megabytes to gigabytes, and read memory beyond a record that is shorter than the
tensor in it. Nothing of the file is executed here, and of its records only the pickle is read, which lists the tensors.
"""

import io
import os
import pickle
import stat
import struct
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"PK\x03\x04"  # of an archive
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6, which wrote no archives
LARGEST_PICKLE = 2**24  # bytes; a tensor takes about a hundred
DEEPEST = 10  # levels of tuples in tuples
# of which a few bytes of a pickle make torch fill the memory; no file of plain tensors has them
GROWING = ("bytearray", "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy")
# bytes of an element, by the name that a pickle gives the tensor's memory
ELEMENT = {"Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4}
ELEMENT |= {"Long": 8, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1}


class ArchiveError(ValueError):
    """A file that torch.save has not written; the message follows its name."""


def check_is_file(path: Path) -> None:
    """Raises ArchiveError for a pipe or a device, whose reading might never end, and OSError if there is nothing."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder gives an error of its own
        raise ArchiveError("is no regular file")


def check_archive(file: BinaryIO) -> None:
    """Checks an archive of torch.save.

    Raises:
        ArchiveError: when a record is compressed, or larger than it can be; or when a tensor is larger than its record.
        Exception: of zipfile or pickle, when it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        _check_table(archive, file)
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise ArchiveError(
                "holds a TorchScript program, which is not executed: give a file with its state dict alone"
            )
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ArchiveError("holds compressed records, which torch.save does not write")
        names = {record.filename.lower() for record in records}  # torch ignores the case
        if not all(name.partition("/")[2].isascii() for name in names):
            raise ArchiveError("holds records whose names torch.save does not write")
        if len(names) < len(records) or sum(record.file_size for record in records) > file.seek(0, io.SEEK_END):
            raise ArchiveError("holds records that overlap")
        folder = records[0].filename.partition("/")[0]  # which torch takes for that of all records
        sizes = {record.filename.removeprefix(f"{folder}/"): record.file_size for record in records}
        if sizes["data.pkl"] > LARGEST_PICKLE:
            raise ArchiveError("lists more tensors than a network has")
        _Pickle(io.BytesIO(archive.read(f"{folder}/data.pkl")), sizes).load()


def check_legacy(file: BinaryIO) -> None:
    """Checks a file of torch before 1.6, which is four pickles, a list of the tensors' memory, and that memory.

    Raises:
        ArchiveError: as `check_archive`, of the whole file in place of a record.
        Exception: of pickle, when it is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    for _ in range(4):
        _Pickle(file, {"": size}).load()


def _check_table(archive: zipfile.ZipFile, file: BinaryIO) -> None:
    """Raises ArchiveError if torch would read another table of records: from where the end of the file says it is.

    zipfile reads the table that lies before the end, wherever the end says that it is.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - len(archive.comment) - 98))
    tail = file.read()[: size - len(archive.comment)].rjust(98, b"\0")[:98]
    large, locator, end = tail[:56], tail[56:76], tail[76:]
    is_large, place = locator[:4] == b"PK\6\7", size - len(archive.comment) - 22
    place -= 76 if is_large else 0
    table = len(archive.infolist()), place - archive.start_dir, archive.start_dir
    small = struct.unpack("<HII", end[10:20])
    said = [small] if not is_large else [struct.unpack("<QQQ", large[32:56])]
    limits = (2**16 - 1, 2**32 - 1, 2**32 - 1)
    is_same = all(mine in (theirs, limit) for mine, theirs, limit in zip(small, table, limits, strict=True))
    if is_large:
        is_same = is_same and large[:4] == b"PK\6\6" and struct.unpack("<Q", locator[8:16])[0] == place
    if not (is_same and said == [table] and end[:4] == b"PK\5\6"):
        raise ArchiveError("has two tables of its records, or bytes around them, which torch.save does not write")


class _Nothing:
    """Stands for each object that a pickle asks for; knows how many values torch would copy into it."""

    size = 0

    def __init__(self, *args: object) -> None:
        if any(isinstance(each, types.MethodType) for each in args):
            raise ArchiveError("calls a function by another one, which torch.save does not write")
        self.size = _size(args)

    def __setstate__(self, state: object) -> None:
        self.size += _size(state)

    def __setitem__(self, key: object, value: object) -> None:
        self.size += 1

    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...


def _size(value: object) -> int:
    """Returns how many values, letters or bytes a call with an argument can copy."""
    if isinstance(value, _Nothing):
        return value.size
    if isinstance(value, tuple):
        return len(value) + sum(map(_size, value))
    return len(value) if isinstance(value, (str, bytes, list, dict, set)) else 0


# not of C, whose single steps cannot be overridden; private, but as old as Python 3
class _Pickle(pickle._Unpickler):
    """Reads which part of the file each tensor says it takes, and builds none of them."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self.sizes = sizes
        self.copied = 0

    def encode(self, text: object, encoding: object) -> _Nothing:
        """Stands for the function by which torch.save writes bytes, in this encoding; others make them longer."""
        if not (isinstance(text, str) and encoding == "latin1"):
            raise ArchiveError("encodes text in a way that torch.save does not")
        return _Nothing(text)

    def find_class(self, module: str, name: str) -> Any:
        """Returns the size of an element for the class of a tensor's memory, and nothing for any other class."""
        if name in GROWING:
            raise ArchiveError(f"asks for {name}, which a file of plain tensors does not hold")
        if (module, name) == ("_codecs", "encode"):
            return self.encode
        of_torch = module in ("torch", "torch.storage") and name.endswith("Storage")
        return ELEMENT.get(name.removesuffix("Storage"), _Nothing) if of_torch else _Nothing

    def get_extension(self, code: int) -> None:
        """Refuses a class by its number, which torch.save does not write."""
        raise pickle.UnpicklingError("a class by its number")

    def persistent_load(self, pid: Any) -> Any:
        """Compares the size of a tensor's memory with that of its record."""
        if pid[0] == "module":  # the class of a network, with its source code, in old files
            return _Nothing
        _, element, key, _, number, *_ = pid
        largest = self.sizes[""] if "" in self.sizes else self.sizes[f"data/{key}"]
        if not (isinstance(number, int) and 0 <= number * element <= largest):
            raise ArchiveError("declares a tensor that is larger than its record")
        return None


def _checked(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a step that repeats a value: torch would hash nested tuples, each twice in the next, for ever."""

    def step(pickled: Any) -> None:
        load(pickled)
        value = pickled.stack[-1]
        if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
            raise ArchiveError("repeats a tuple of tuples, which torch.save does not write")

    return step


def _shallow(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a step that builds a tuple: Python would crash when it hashes a very deep one."""

    def step(pickled: Any) -> None:
        load(pickled)
        level = [pickled.stack[-1]]
        for _ in range(DEEPEST):
            level = [item for value in level for item in value if isinstance(item, tuple)]
        if level:
            raise ArchiveError("nests tuples more deeply than torch.save does")

    return step


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a step that calls something: an argument that is used again and again could be copied without end."""

    def step(pickled: Any) -> None:
        pickled.copied += _size(pickled.stack[-1])
        if pickled.copied > LARGEST_PICKLE:
            raise ArchiveError("copies its values more often than torch.save does")
        load(pickled)

    return step


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Pickle.dispatch[_code[0]] = _shallow(_Pickle.dispatch[_code[0]])
for _code in (pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD):
    _Pickle.dispatch[_code[0]] = _counted(_Pickle.dispatch[_code[0]])
for _code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP):
    _Pickle.dispatch[_code[0]] = _checked(_Pickle.dispatch[_code[0]])

"""Checks a file of torch.save before torch reads it: what a stranger's file says of its sizes need not be true.

torch would unpack two compressed megabytes to gigabytes, and read memory beyond a record that is shorter than the
tensor in it. Nothing of the file is executed here, and of its records only the pickle is read, which lists the tensors.
"""

import io
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"PK\x03\x04"  # of an archive
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of torch before 1.6, which wrote no archives
LARGEST_PICKLE = 2**24  # bytes; a tensor takes about a hundred
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
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise ArchiveError(
                "holds a TorchScript program, which is not executed: give a file with its state dict alone"
            )
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ArchiveError("holds compressed records, which torch.save does not write")
        names = {record.filename.lower() for record in records}  # torch ignores the case
        if len(names) < len(records) or sum(record.file_size for record in records) > file.seek(0, io.SEEK_END):
            raise ArchiveError("holds records that overlap")
        folder = records[0].filename.partition("/")[0]  # which torch takes for that of all records
        sizes = {record.filename.removeprefix(f"{folder}/"): record.file_size for record in records}
        if sizes["data.pkl"] > LARGEST_PICKLE:
            raise ArchiveError("lists more tensors than a network has")
        _Pickle(io.BytesIO(archive.read(f"{folder}/data.pkl")), sizes).load()


class _Nothing:
    """Stands for each object that a pickle asks for."""

    def __init__(self, *args: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...


# not of C, whose single steps cannot be overridden; private, but as old as Python 3
class _Pickle(pickle._Unpickler):
    """Reads which part of the file each tensor says it takes, and builds none of them."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """Returns the size of an element for the class of a tensor's memory, and nothing for any other class."""
        of_torch = module in ("torch", "torch.storage") and name.endswith("Storage")
        return ELEMENT.get(name.removesuffix("Storage"), _Nothing) if of_torch else _Nothing

    def get_extension(self, code: int) -> None:
        """Refuses a class by its number, which torch.save does not write."""
        raise pickle.UnpicklingError("a class by its number")

    def persistent_load(self, pid: Any) -> None:
        """Compares the size of a tensor's memory with that of its record."""
        _, element, key, _, number = pid
        if not (isinstance(number, int) and 0 <= number * element <= self.sizes[f"data/{key}"]):
            raise ArchiveError("declares a tensor that is larger than its record")


def _checked(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a step that repeats a value: torch would hash nested tuples, each twice in the next, for ever."""

    def step(pickled: Any) -> None:
        load(pickled)
        value = pickled.stack[-1]
        if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
            raise ArchiveError("repeats a tuple of tuples, which torch.save does not write")

    return step


for _code in (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.DUP):
    _Pickle.dispatch[_code[0]] = _checked(_Pickle.dispatch[_code[0]])

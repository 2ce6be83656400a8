"""What the first bytes of an array file say, `.npy` or a member of `.npz`, and where the data behind them lie."""

import os
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from timm_paf.data.errors import BadArchive, naming
from timm_paf.data.stored import StoredArray

_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name and its extra field


def read_npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of a `.npy` stream, which is left at the first byte of the data.

    Raises:
        ValueError: if it is not one, holds objects or has a format that no numpy writes for plain arrays.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise BadArchive(f'{where} is in .npy format {version}, expected (1, 0) or (2, 0); save it anew')
    if dtype.hasobject:
        raise BadArchive(
            f'{where} is of dtype {dtype}: pickled objects can execute code and are not read; save plain arrays'
        )
    return shape, fortran, dtype


@dataclass(frozen=True)
class Header:
    """What the first bytes of an array say.

    Args:
        path: the file.
        key: its name in the archive; empty for a file of its own.
        shape: as numpy shows it.
        fortran: whether the first axis changes fastest in the file.
        dtype: as stored.
        offset: where the data begin; None where they are deflated.
        checked: as in `StoredArray`.
        crc: CRC-32 of the zip member, deflated or not.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int | None
    checked: tuple[int, int, int] | None = None
    crc: int | None = None

    @property
    def where(self) -> str:
        """The start of a message about this array."""
        return f"{self.path}: '{self.key}'" if self.key else f'{self.path}:'

    @property
    def nbytes(self) -> int:
        """Length of the data."""
        return prod(self.shape) * self.dtype.itemsize

    def stored(self) -> StoredArray:
        """The array in place, axes reversed if it is in Fortran order (which makes it row-major)."""
        assert self.offset is not None
        shape = self.shape[::-1] if self.fortran else self.shape
        return StoredArray(self.path, self.key, self.offset, shape, self.dtype, self.checked)


def npy_header(path: Path) -> Header:
    """Look at a `.npy` file.

    Raises:
        ValueError: if it is not one, or not as long as its header says.
    """
    where = f'{path}:'
    with naming(where, f'{path}: not a readable .npy file'), open(path, 'rb') as file:
        shape, fortran, dtype = read_npy_header(file, where)
        header = Header(path, '', shape, fortran, dtype, file.tell())
        _check_length(header, os.fstat(file.fileno()).st_size - file.tell())
    return header


def zip_header(path: Path, archive: zipfile.ZipFile, key: str) -> Header:
    """Look at a member of an `.npz` archive; makes sure that it is as long as its header says.

    Raises:
        ValueError: if it is not an array or not as long as that.
    """
    info = archive.getinfo(f'{key}.npy')
    where = f"{path}: '{key}'"
    with naming(where):
        if info.flag_bits & 1:
            raise BadArchive(f'{where} is encrypted; write the archive without a password')
        with archive.open(info) as file:
            shape, fortran, dtype = read_npy_header(file, where)
            start = file.tell()
        offset, checked = None, None
        if info.compress_type == zipfile.ZIP_STORED:
            member = _member_offset(path, info, where)
            offset, checked = member + start, (member, info.file_size, info.CRC)
    header = Header(path, key, shape, fortran, dtype, offset, checked, info.CRC)
    _check_length(header, info.file_size - start)
    return header


def _member_offset(path: Path, info: zipfile.ZipInfo, where: str) -> int:
    """Where a member's data begin: behind its local header, whose lengths differ from the central directory's."""
    with open(path, 'rb') as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL_HEADER)
        size = os.fstat(file.fileno()).st_size
    if len(local) < _LOCAL_HEADER or local[:4] != b'PK\x03\x04':
        raise BadArchive(f'{where} has no zip header at offset {info.header_offset}; get the file again')
    name, extra = struct.unpack('<HH', local[26:30])
    offset = info.header_offset + _LOCAL_HEADER + name + extra
    if offset + info.file_size > size:
        raise BadArchive(f'{where} should end at offset {offset + info.file_size} of {size}; get the file again')
    return offset


def _check_length(header: Header, held: int) -> None:
    if held != header.nbytes:
        raise BadArchive(
            f'{header.where} holds {held} bytes but its header promises {header.nbytes}; get the file again')

"""Headers of arrays in `.npy` files and `.npz` archives: where the data begin, and which axis of images is which."""

import os
import struct
import zipfile
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from timm_paf.data.errors import BadArchive, name_in_errors
from timm_paf.data.stored import Stamp, StoredArray

LAYOUTS = ('NHWC', 'NCHW', 'HWCN', 'CHWN')
_CHANNELS = (1, 3)  # sizes of an axis that is taken for the channels if the caller does not name their number
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name and its extra field


def npy_header(path: Path) -> StoredArray:
    """Read the header of a `.npy` file.

    Raises:
        ValueError: If it is not such a file, or its length is not the one in the header.
    """
    with name_in_errors(f'{path}: not a readable .npy file'), open(path, 'rb') as file:
        status = os.fstat(file.fileno())
        shape, fortran, dtype = _read_header(file, f'{path}:')
        array = StoredArray(path, '', shape, dtype, Stamp.of(status), file.tell(), fortran)
    return _check_length(array, status.st_size - (array.offset or 0))


def zip_header(path: Path, archive: zipfile.ZipFile, key: str) -> StoredArray:
    """Read the header of a member of an `.npz` archive.

    Raises:
        ValueError: If it is not an array, or its length is not the one in the header.
    """
    info = archive.getinfo(f'{key}.npy')
    where = f"{path}: '{key}'"
    with name_in_errors(f'{where} cannot be read'):
        if info.flag_bits & 1:
            raise BadArchive(f'{where} is encrypted; write the archive without a password')
        with archive.open(info) as member:
            shape, fortran, dtype = _read_header(member, where)
            start = member.tell()
        with open(path, 'rb') as file:
            array = StoredArray(
                path, key, shape, dtype, Stamp.of(os.fstat(file.fileno())), None, fortran, crc=info.CRC)
            if info.compress_type == zipfile.ZIP_STORED:
                begin = _member_offset(file, info, array)
                array = replace(array, offset=begin + start, member=begin)
    return _check_length(array, info.file_size - start)


def row_major(array: StoredArray, layout: str) -> tuple[StoredArray, str]:
    """The array and its axes as they are in the file: both reversed if the order is column-major."""
    return (replace(array, shape=array.shape[::-1], fortran=False), layout[::-1]) if array.fortran else (array, layout)


def rows_first(axes: str) -> str:
    """The axes with that of the images, N, moved to the front."""
    return 'N' + axes.replace('N', '')


def check_image_header(image: StoredArray) -> None:
    """Raise ValueError if an array cannot be images."""
    if image.dtype != np.uint8 and image.dtype.kind != 'f':
        raise BadArchive(
            f'{image.where} is of dtype {image.dtype}, expected uint8 (0 to 255) or floats in [0, 1] or [0, 255]; '
            f'convert it'
        )
    if len(image.shape) != 4 or 0 in image.shape:
        raise BadArchive(
            f'{image.where} has shape {image.shape}, expected (N, H, W, C) or (N, C, H, W) with nothing empty; '
            f'reshape it'
        )


def check_label_header(label: StoredArray, count: int, num_classes: int) -> None:
    """Raise ValueError if an array cannot be labels of `count` images: integers (N,) or floats (N, num_classes)."""
    if len(label.shape) == 2 and label.dtype.kind == 'f':
        expected: tuple[int, ...] = (count, num_classes)
    elif label.dtype.kind in 'iu':
        expected = (count,)
    else:
        raise BadArchive(
            f'{label.where} is of dtype {label.dtype}, expected integers, or floats (N, {num_classes}) as soft labels; '
            f'convert it'
        )
    if label.shape != expected:
        raise BadArchive(
            f'{label.where} has shape {label.shape} for {count} images, expected {expected}; correct the labels')


def find_layout(image: StoredArray, label: StoredArray, channels: int | None, layout: str | None) -> str:
    """The axes of images.

    Args:
        image: Their header, with four axes.
        label: Header of the labels; their number shows whether the image axis is first or last.
        channels: Number of channels; 1 or 3 if None.
        layout: One of `LAYOUTS` if the caller knows it.

    Raises:
        ValueError: If no layout fits, or more than one.
    """
    shape, accepted = image.shape, _CHANNELS if channels is None else (channels,)
    count = label.shape[0] if label.shape else 0
    last = layout in LAYOUTS[2:] if layout else shape[0] != count and shape[3] == count
    readings = LAYOUTS[2:] if last else LAYOUTS[:2]
    fitting = [name for name in readings if shape[name.index('C')] in accepted and layout in (None, name)]
    if not fitting:
        wanted, places = ' or '.join(map(str, accepted)), 'first or third' if last else 'last or second'
        raise BadArchive(
            f'{image.where} has shape {shape}, expected {wanted} channels as the {places} axis'
            f'{f" ({layout})" if layout else ""}; is this archive for another data set?'
        )
    if len(fitting) == 2 and prod(shape) != count:
        raise BadArchive(
            f'{image.where} has shape {shape}, which can be {fitting[0]} or {fitting[1]}; choose one with layout=')
    return fitting[0]


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is column-major, and dtype; leaves the stream at the first byte of the data."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise BadArchive(f'{where} is in .npy format {version}, expected (1, 0) or (2, 0); save it with numpy.save')
    if dtype.hasobject:
        raise BadArchive(
            f'{where} is of dtype {dtype}: pickled objects can execute code and are not read; save plain arrays'
        )
    return shape, fortran, dtype


def _member_offset(file: IO[bytes], info: zipfile.ZipInfo, array: StoredArray) -> int:
    """Position of a member's data: after its local header, whose lengths differ from the central directory's."""
    file.seek(info.header_offset)
    local = file.read(_LOCAL_HEADER)
    if len(local) < _LOCAL_HEADER or local[:4] != b'PK\x03\x04':
        raise BadArchive(f'{array.where} has no zip header at offset {info.header_offset}; get the file again')
    name, extra = struct.unpack('<HH', local[26:30])
    offset = info.header_offset + _LOCAL_HEADER + name + extra
    if offset + info.file_size > array.stamp.size:
        raise BadArchive(
            f'{array.where} should end at offset {offset + info.file_size} of {array.stamp.size}; get the file again')
    return offset


def _check_length(array: StoredArray, found: int) -> StoredArray:
    if found != array.nbytes:
        raise BadArchive(f'{array.where} holds {found} bytes but its header says {array.nbytes}; get the file again')
    return array

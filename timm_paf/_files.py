"""File helpers: atomic writes, SHA-256, and the cache folder."""
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ['cache_dir', 'file_sha256', 'whole_file', 'write_text']


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when the block ends, complete and on the disk.

    An existing file is replaced in one step. If the block raises, no file remains.

    Args:
        path: The file to write; its folder must exist.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp')
    try:
        with open(partial, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a text file as UTF-8; it appears complete or not at all, see `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode())


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits; reads 1 MiB at a time."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cache_dir() -> Path:
    """The cache folder: $TIMM_PAF_CACHE, else timm_paf in $XDG_CACHE_HOME or ~/.cache. Its files can be remade."""
    if own := os.environ.get('TIMM_PAF_CACHE'):
        return Path(own).expanduser()
    shared = Path(os.environ.get('XDG_CACHE_HOME', ''))
    # the XDG specification ignores relative paths
    return (shared if shared.is_absolute() else Path.home() / '.cache') / 'timm_paf'

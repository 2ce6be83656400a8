"""Files as every room needs them: written whole or not at all, known by their hash, and where a cache may be."""
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ['cache_dir', 'file_sha256', 'whole_file']


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into that appears under its name when it is complete and on the disk, on leaving the block.

    One that was there is replaced in one step. If the block raises, nothing is left behind.

    Args:
        path: The file to write; its folder must exist.

    Raises:
        OSError: If it cannot be written.
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


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits; read in pieces of 1 MiB."""
    digest = hashlib.sha256()  # hashlib.file_digest is there from Python 3.11 only
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where files that can be made again are kept: $TIMM_PAF_CACHE, else timm_paf in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get('TIMM_PAF_CACHE'):
        return Path(own).expanduser()
    shared = Path(os.environ.get('XDG_CACHE_HOME', ''))
    # the XDG specification wants relative paths ignored
    return (shared if shared.is_absolute() else Path.home() / '.cache') / 'timm_paf'

"""What goes wrong with data on the disk: on opening a ValueError, in the middle of a run `DataChanged`."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

# what zipfile, zlib, numpy and the operating system raise about a file that is not as it should be
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


class BadArchive(ValueError):
    """A finished message about data that cannot be used, told apart from errors of the libraries that read them."""


class DataChanged(RuntimeError):
    """Data on the disk are no longer what was found on opening, or turned out not to be it where nobody had looked yet.

    The file was changed, replaced, cut or taken away, cannot be read any more, or holds a label or a pixel outside its
    range at an index that the sample on opening left out. No batch is made of such data; a run cannot go on.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def human_bytes(count: int) -> str:
    """A number of bytes for messages, such as 6.1 GB (10**9 bytes)."""
    for unit, size in (('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count} bytes'


@contextmanager
def naming(where: str, message: str | None = None) -> Iterator[None]:
    """Tell what could not be read; the libraries' messages do not."""
    try:
        yield
    except BadArchive:
        raise
    except BROKEN as error:
        start = message or f'{where} cannot be read'
        raise BadArchive(f'{start} ({first_line(error)}); get the file again') from error

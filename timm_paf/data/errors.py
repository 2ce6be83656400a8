"""Errors of data on disk: `BadArchive` on opening, `DataChanged` during a run."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# raised by zipfile, zlib, numpy and the operating system for a damaged file
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)
# raised by Pillow for an image that it cannot decode
UNDECODABLE = (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError)


class BadArchive(ValueError):
    """Data that cannot be used. Its message is complete, unlike those of the libraries that read files."""


class DataChanged(RuntimeError):
    """Data on disk changed after opening, or hold an error that opening did not find.

    A file was changed, replaced, truncated or removed, cannot be read any more, or holds a label or a pixel out of
    range at an index outside the sample that opening checks. Batches never contain such data, so the run must stop.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def errors_on_opening() -> Iterator[None]:
    """Turn `DataChanged` into `BadArchive`: no run has started yet."""
    try:
        yield
    except DataChanged as error:
        raise BadArchive(str(error)) from error


@contextmanager
def name_in_errors(start: str, remedy: str = 'get the file again') -> Iterator[None]:
    """Turn errors of libraries into `BadArchive`; `start` names the file and what failed, as they do not."""
    try:
        with errors_on_opening():
            yield
    except BadArchive:
        raise
    except _BROKEN as error:
        raise BadArchive(f'{start} ({first_line(error)}); {remedy}') from error

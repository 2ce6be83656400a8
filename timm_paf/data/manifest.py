"""The manifest of synthetic images that are stored in parts: how they were made, and a hash of each part."""

import json
import os
from pathlib import Path
from typing import Any

from timm_paf._files import file_sha256

MANIFEST_NAME = 'manifest.json'
FORMAT = 'timm_paf synthetic images 1'


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read manifest.json of a folder, without the parts.

    It holds the plan, which is everything that determines the images (seed, num_images, num_parts, source, generator,
    labeller, filters, …), and `complete`; `counts`, sums over the parts; `parts`, in order, each with `file`,
    `images`, `per_class`, `drawn`, `rejected` (number by reason), `sha256` and `versions`. Raises FileNotFoundError if
    there is none, ValueError if it is not a manifest of this format.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
        if manifest['format'] != FORMAT:
            raise ValueError(f'format {manifest["format"]!r}, expected {FORMAT!r}')
        for part in manifest['parts']:
            # a path that leads out of the folder must not be followed
            if Path(part['file']).name != part['file'] or not isinstance(part['sha256'], str):
                raise ValueError(f'part {part["file"]!r}, expected a file name')
        manifest['complete'] = len(manifest['parts']) == manifest['num_parts']
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file; check the path') from None
    except (ValueError, TypeError, KeyError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        raise ValueError(
            f'{path}: not a manifest of recipes/make_synthetic.py ({reason}); get the file again') from None
    return manifest


def manifest_parts(folder: str | os.PathLike[str], *, verify: bool = False) -> list[Path]:
    """List the archives of a finished folder, in order, for `open_archives`.

    Raises FileNotFoundError if the manifest or a part is missing, ValueError if parts are not finished yet, or, with
    `verify`, which reads every part, if a part has another hash than in the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest['complete']:
        raise ValueError(
            f'{folder}: {len(manifest["parts"])} of {manifest["num_parts"]} parts are finished; '
            f'start recipes/make_synthetic.py again with the same settings')
    paths = [folder / part['file'] for part in manifest['parts']]
    for path, part in zip(paths, manifest['parts'], strict=True):
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing, but {folder / MANIFEST_NAME} lists it; copy this file again.')
        if verify and file_sha256(path) != part['sha256']:
            raise ValueError(f'{path}: its SHA-256 is not the one in {folder / MANIFEST_NAME}; get the file again')
    return paths

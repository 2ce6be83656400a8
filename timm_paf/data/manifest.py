"""The record beside synthetic images that were written in parts: what made them, from what, and a hash of each part."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from timm_paf._files import file_sha256, whole_file

MANIFEST_NAME = 'manifest.json'
FORMAT = 'timm_paf synthetic images 1'


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is known of one part; it stands beside the part and again in the manifest.

    Args:
        file: name of the archive in the folder, such as part-00000.npz.
        images: how many it holds.
        per_class: how many of each class.
        drawn: how many images the generator made for it; `images` and all of `rejected` add up to it.
        rejected: why the others were left out, and how many for each reason.
        sha256: of the archive's bytes, hex.
        versions: of the libraries that made it.
    """

    file: str
    images: int
    per_class: tuple[int, ...]
    drawn: int
    rejected: Mapping[str, int]
    sha256: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A folder of synthetic images: the plan that it is made by, and the parts that are finished.

    Args:
        plan: everything that decides the images, as plain JSON values: seed, num_images, num_parts, num_classes, source
            (the training set), generator, labeller and filters. It names no folder of the machine that made them.
        parts: records of the finished parts, in the order of their numbers.
    """

    plan: Mapping[str, Any]
    parts: tuple[PartRecord, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every part is there."""
        return len(self.parts) == self.plan['num_parts']

    def counts(self) -> dict[str, Any]:
        """Sums over the parts: images, per_class, drawn and rejected (reason to number)."""
        reasons = dict.fromkeys(reason for part in self.parts for reason in part.rejected)
        return {
            'images': sum(part.images for part in self.parts),
            'per_class': [sum(column) for column in zip(*(part.per_class for part in self.parts), strict=True)],
            'drawn': sum(part.drawn for part in self.parts),
            'rejected': {reason: sum(part.rejected.get(reason, 0) for part in self.parts) for reason in reasons},
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write manifest.json in one step; equal manifests give equal bytes."""
        content = {
            'format': FORMAT, 'complete': self.complete, **self.plan, 'counts': self.counts(),
            'parts': [asdict(part) for part in self.parts],
        }
        write_json(Path(folder) / MANIFEST_NAME, content)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a folder; the parts themselves are not looked at.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a manifest of a form that is known here.
    """
    path = Path(folder) / MANIFEST_NAME
    content = _read_json(path)
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        held = content.get('format') if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path}: got format {held!r}, expected {FORMAT!r}; was it made by recipes/make_synthetic.py?')
    plan = {key: value for key, value in content.items() if key not in ('format', 'complete', 'counts', 'parts')}
    records = content.get('parts')
    if not isinstance(records, list) or not isinstance(plan.get('num_parts'), int):
        raise ValueError(f'{path}: parts or num_parts is missing; was it changed by hand?')
    return Manifest(plan=plan, parts=tuple(_record(path, record) for record in records))


def read_part_record(path: str | os.PathLike[str]) -> PartRecord:
    """Read the record of one part, part-00000.json.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not such a record.
    """
    return _record(Path(path), _read_json(Path(path)))


def manifest_parts(folder: str | os.PathLike[str], *, verify: bool = False) -> list[Path]:
    """The archives of a finished folder, in order, for `open_archives`.

    Args:
        folder: where manifest.json lies.
        verify: read every part and compare its hash; without it only presence is checked.

    Raises:
        FileNotFoundError: if the manifest or a part is missing.
        ValueError: if the folder is not finished, or a part is not the one that the manifest records.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise ValueError(
            f'{folder}: {len(manifest.parts)} of {manifest.plan["num_parts"]} parts are made; '
            f'start recipes/make_synthetic.py again with the same settings to finish it')
    paths = [folder / part.file for part in manifest.parts]
    for path, part in zip(paths, manifest.parts, strict=True):
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such file, but {folder / MANIFEST_NAME} lists it; get it again')
        if verify and file_sha256(path) != part.sha256:
            raise ValueError(f'{path}: its SHA-256 is not the one in {folder / MANIFEST_NAME}; get the file again')
    return paths


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write plain values as JSON; the file appears under its name only when it is complete and on the disk.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + '\n').encode())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file; check the path') from None
    except ValueError as error:
        raise ValueError(f'{path}: not readable as JSON ({str(error).splitlines()[0]}); get the file again') from None


def _record(path: Path, content: Any) -> PartRecord:
    names = [field.name for field in fields(PartRecord)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        held = ', '.join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f'{path}: a part is recorded as {held}; expected {", ".join(names)}; was it changed by hand?')
    per_class, rejected = content['per_class'], content['rejected']
    if not isinstance(per_class, list) or not isinstance(rejected, dict) or not all(
            isinstance(count, int) for count in (content['images'], content['drawn'], *per_class, *rejected.values())):
        raise ValueError(f'{path}: a count of a part is no whole number; was it changed by hand?')
    # names come from a file: one that points elsewhere must not be followed
    if Path(str(content['file'])).name != content['file']:
        raise ValueError(f'{path}: got part {content["file"]!r}, expected a plain name of a file beside it')
    return PartRecord(**{**content, 'per_class': tuple(content['per_class'])})

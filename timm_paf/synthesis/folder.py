"""A folder of parts of synthetic images, with a manifest: written by several processes, resumed after an interrupt."""
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm_paf._distributed import Processes
from timm_paf._files import file_sha256, whole_file
from timm_paf._versions import library_versions
from timm_paf.data import LabelledImages, save_archive
from timm_paf.data.manifest import FORMAT, MANIFEST_NAME, read_manifest
from timm_paf.synthesis.config import first_difference
from timm_paf.synthesis.parts import PartMaker, part_name

__all__ = ['PartsFolder']


@dataclasses.dataclass(frozen=True)
class PartsFolder:
    """A folder of parts that are made by one plan.

    Args:
        path: The folder; it is made if it does not exist.
        plan: Everything that determines the images, as plain values; None if it is not known yet.

    Raises:
        ValueError: If the folder was begun with another plan, or holds parts of something else.
    """
    path: Path
    plan: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if (self.path / MANIFEST_NAME).exists():
            begun = read_manifest(self.path)
            begun = {key: begun[key] for key in begun if key not in ('format', 'complete', 'counts', 'parts')}
            difference = first_difference(self.plan, begun) if self.plan else 'a generator that is missing'
            if difference:
                raise ValueError(f'{self.path} was begun with {difference}; use the same settings or another --output.')
        elif others := sorted(path.name for path in self.path.glob('part-*')):
            raise ValueError(f'{self.path} holds {others[0]} but no {MANIFEST_NAME}; give another --output.')

    def fill(
            self, maker: PartMaker, processes: Processes, *, progress: Callable[[int], None] = lambda done: None,
            report: Callable[[dict[str, Any]], None] = lambda record: None) -> dict[str, Any]:
        """Make the parts that are missing and write the manifest.

        Args:
            maker: Makes a part.
            processes: Those of the run; process r of W makes the parts r, r + W, r + 2W, …
            progress: Called with the number of images that this process has finished.
            report: Called with the record of each part that this process has made.

        Returns:
            The manifest, see `read_manifest`; in other processes than process 0 it lists no parts.

        Raises:
            SynthesisFailed: If too few of the sampled images can be kept.
            OSError: If the folder cannot be written.
        """
        self.path.mkdir(exist_ok=True)
        if not (self.path / MANIFEST_NAME).exists():
            _write_json(self.path / MANIFEST_NAME, self.manifest([]))
        records, done = [], 0
        with processes.patient() as group:
            for part in range(processes.rank, maker.num_parts, processes.world_size):
                record = self.finished(part)
                if record is None:
                    record = self.write(part, *maker.make(part, lambda kept: progress(done + kept)))  # noqa: B023
                    report(record)
                records.append(record)
                done += record['images']
                progress(done)
            records = [record for each in group.gather_object(records) for record in each]
        manifest = self.manifest(sorted(records, key=lambda record: record['file']))
        if processes.is_primary:
            _write_json(self.path / MANIFEST_NAME, manifest)
        return manifest

    def finished(self, part: int) -> dict[str, Any] | None:
        """Record of a part if it is complete and intact, else None."""
        path = self.path / part_name(part)
        try:
            record = json.loads(path.with_suffix('.json').read_text())
            return record if record['file'] == path.name and file_sha256(path) == record['sha256'] else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, part: int, data: LabelledImages, rejected: Mapping[str, int], drawn: int) -> dict[str, Any]:
        """Write a part, then its record, which makes it a finished part."""
        path = self.path / part_name(part)
        for partial in self.path.glob(f'.{path.stem}.*.tmp'):  # of a process that was killed while it wrote this part
            partial.unlink(missing_ok=True)
        save_archive(path, data)
        record = {
            'file': path.name, 'images': len(data),
            'per_class': data.labels.bincount(minlength=data.num_classes).tolist(), 'drawn': drawn,
            'rejected': dict(rejected), 'sha256': file_sha256(path),
            'versions': library_versions('diffusers')}
        _write_json(path.with_suffix('.json'), record)
        return record

    def manifest(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Content of manifest.json for the finished parts."""
        assert self.plan is not None
        counts = {
            'images': sum(record['images'] for record in records),
            'per_class': [sum(column) for column in zip(*(record['per_class'] for record in records), strict=True)],
            'drawn': sum(record['drawn'] for record in records),
            'rejected': {
                reason: sum(record['rejected'][reason] for record in records)
                for reason in (records[0]['rejected'] if records else ())}}
        complete = len(records) == self.plan['num_parts']
        return {'format': FORMAT, 'complete': complete, **self.plan, 'counts': counts, 'parts': records}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + '\n').encode())

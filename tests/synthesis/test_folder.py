"""A folder of parts: written, resumed, and kept apart from other plans."""
import contextlib
import json

import pytest
import torch

from timm_paf._distributed import Processes
from timm_paf.data import LabelledImages, manifest_parts, open_archive, open_archives, read_manifest
from timm_paf.synthesis import PartsFolder, SynthesisFailed

CLASSES, SIZES = 4, (23, 23, 4)
PLAN = {'seed': 0, 'num_images': 50, 'num_parts': 3, 'num_classes': CLASSES, 'filters': {'min_confidence': 0.9}}
ALONE = Processes(torch.device('cpu'))


class Maker:
    """Makes parts as PartMaker does, and notes which; fails at one of them."""

    num_parts = 3

    def __init__(self, fails_at=None):
        self.made, self.fails_at = [], fails_at

    def make(self, part, progress):
        if part == self.fails_at:
            raise SynthesisFailed('no more')
        self.made.append(part)
        labels = torch.arange(SIZES[part]) % CLASSES
        images = torch.randint(0, 256, (len(labels), 1, 2, 3), generator=torch.Generator().manual_seed(part))
        progress(len(labels))
        data = LabelledImages(images.to(torch.uint8), labels, CLASSES, f'part {part}')
        return data, {'duplicate': 2, 'surplus': part}, len(labels) + 2 + part


@pytest.fixture
def folder(tmp_path):
    """Parts 0 and 1 of 3 are finished."""
    with pytest.raises(SynthesisFailed):
        PartsFolder(tmp_path / 'parts', PLAN).fill(Maker(fails_at=2), ALONE)
    return tmp_path / 'parts'


def test_manifest_lists_all_parts_at_the_end(folder):
    assert read_manifest(folder)['parts'] == []
    for read in (manifest_parts, lambda path: open_archive(path, num_classes=CLASSES)):
        with pytest.raises(ValueError, match='0 of 3 parts'):
            read(folder)
    (folder / '.part-00002.npz.1.ab.tmp').write_bytes(b'of a killed process')
    maker, shown, reported = Maker(), [], []
    manifest = PartsFolder(folder, PLAN).fill(maker, ALONE, progress=shown.append, report=reported.append)
    assert maker.made == [2] and shown == [23, 46, 50, 50]
    assert manifest == read_manifest(folder) and manifest['complete'] and reported == manifest['parts'][2:]
    assert manifest['counts'] == {
        'images': 50, 'per_class': [13, 13, 13, 11], 'drawn': 59, 'rejected': {'duplicate': 6, 'surplus': 3}}
    assert len(open_archives(manifest_parts(folder, verify=True), num_classes=CLASSES, channels=1)) == 50
    assert not list(folder.glob('.*'))


def test_a_record_holds_counts_and_versions(folder):
    record = json.loads((folder / 'part-00000.json').read_text())
    assert record['versions']['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert (record['images'], record['per_class'], record['drawn']) == (23, [6, 6, 6, 5], 25)


DAMAGE = {
    'archive gone': lambda folder: (folder / 'part-00000.npz').unlink(),
    'archive cut': lambda folder: (folder / 'part-00000.npz').write_bytes(
        (folder / 'part-00000.npz').read_bytes()[:-1]),
    'record gone': lambda folder: (folder / 'part-00000.json').unlink(),
    'record cut': lambda folder: (folder / 'part-00000.json').write_text('{"file": '),
    'record of another form': lambda folder: (folder / 'part-00000.json').write_text('[]'),
    'record of another': lambda folder: (folder / 'part-00000.json').write_bytes(
        (folder / 'part-00001.json').read_bytes()),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_part_is_made_again(folder, damage):
    DAMAGE[damage](folder)
    maker = Maker()
    assert PartsFolder(folder, PLAN).fill(maker, ALONE)['complete']
    assert maker.made == [0, 2]


PLANS = {
    'the same': (PLAN, ''),
    'another seed': (PLAN | {'seed': 1}, 'seed = 0, now it is 1'),
    'another filter': (PLAN | {'filters': {'min_confidence': 0.5}}, 'filters.min_confidence = 0.9, now it is 0.5'),
    'something new': (PLAN | {'extra': 1}, 'extra = None, now it is 1'),
    'something less': ({k: v for k, v in PLAN.items() if k != 'seed'}, 'seed = 0, now it is None'),
    'unknown': (None, 'a generator that is missing'),
}


@pytest.mark.parametrize('case', PLANS)
def test_a_folder_is_resumed_with_its_own_plan_only(folder, case):
    plan, message = PLANS[case]
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        PartsFolder(folder, plan)


def test_parts_of_something_else_are_not_used(tmp_path):
    (tmp_path / 'part-00000.npz').write_bytes(b'')
    with pytest.raises(ValueError, match=r'part-00000.npz but no manifest.json'):
        PartsFolder(tmp_path, PLAN)
    PartsFolder(tmp_path / 'new', PLAN)

"""Parts of synthetic images: what is kept, what is left out and why; the folder, resumed and kept apart from others."""
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from timm_paf._distributed import Processes
from timm_paf.data import LabelledImages, manifest_parts, open_archive, open_archives, read_manifest
from timm_paf.synthesis import Labeller, PartMaker, SynthesisFailed, SyntheticConfig, check_folder, load_labeller
from timm_paf.synthesis.parts import REASONS

CLASSES, SHAPE = 4, (1, 2, 3)


def images_of(labels, generator):
    """Class k has pixels 60k+10 to 60k+29."""
    noise = torch.randint(10, 30, (len(labels), *SHAPE), generator=generator)
    return (noise + 60 * labels[:, None, None, None]).to(torch.uint8)


class Draws:
    """A generator that draws the classes it is asked for, or of its own accord mostly class 0."""
    record, device = {'name': 'draws'}, torch.device('cpu')

    def __init__(self, *, conditional):
        self.conditional = conditional

    def draw(self, count, labels, generator):
        if not self.conditional:
            weights = torch.tensor([0.4, 0.2, 0.2, 0.2])
            labels = torch.multinomial(weights, count, replacement=True, generator=generator)
        return images_of(labels, generator)


class Brightness(nn.Module):
    """Knows the class by its brightness."""
    sharpness = 100.

    def forward(self, x):
        centres = (torch.arange(CLASSES) * 60 + 20) / 255
        return -self.sharpness * (x.mean((1, 2, 3))[:, None] - centres).abs()


@pytest.fixture(scope='module')
def source():
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10 + [3] * 10)
    return LabelledImages(images_of(labels, torch.Generator().manual_seed(0)), labels, CLASSES, 'real')


def maker(source, generator=None, labeller=True, **settings):
    settings = dict(num_images=50, part_size=23, batch_size=16, min_distance=0.) | settings
    config = SyntheticConfig(
        method='diffusion', generator='x', output='folder', labeller_checkpoint='x' if labeller else None, **settings)
    return PartMaker(
        config=config, generator=generator or Draws(conditional=False),
        labeller=Labeller(Brightness(), {}) if labeller else None, source=source)


WAYS = {
    'unconditional, labelled': dict(generator=Draws(conditional=False)),
    'conditional, trusted': dict(generator=Draws(conditional=True), labeller=False),
    'conditional, checked': dict(generator=Draws(conditional=True)),
}


@pytest.mark.parametrize('way', WAYS)
def test_labels_are_right_and_balanced_in_each_part_and_in_all(source, way):
    made = [maker(source, **WAYS[way]).make(part) for part in range(3)]
    assert [len(data) for data, _, _ in made] == [23, 23, 4]
    labels = torch.cat([data.labels for data, _, _ in made])
    assert labels.bincount().tolist() == [13, 13, 12, 12]
    for data, rejected, drawn in made:
        counts = data.labels.bincount(minlength=CLASSES)
        assert counts.max() - counts.min() <= 1
        assert torch.equal(data.images.float().mean((1, 2, 3)).div(60).long(), data.labels)
        assert list(rejected) == list(REASONS) and len(data) + sum(rejected.values()) == drawn
    # parts that drew from one stream would hold the same images
    assert len(torch.cat([data.images for data, _, _ in made]).flatten(1).unique(dim=0)) == 50
    # classes are not in the order in which they were filled
    assert made[0][0].labels.tolist() != sorted(made[0][0].labels.tolist())


NAMES = ('ant', 'bee', 'cat', 'dog')
LABELLERS = {  # names in its checkpoint, its number for each class of the training set; or what is refused
    'no names': (None, [0, 1, 2, 3], ''), 'the same': (NAMES, [0, 1, 2, 3], ''),
    'another order': (('bee', 'dog', 'ant', 'cat'), [2, 0, 3, 1], ''),
    'another class': (('ant', 'bee', 'cat', 'eel'), None, 'without dog, with eel'),
}


@pytest.mark.parametrize('case', LABELLERS)
def test_parts_have_the_class_names_and_numbers_of_the_training_set(source, tmp_path, monkeypatch, case):
    names, order, message = LABELLERS[case]
    named, path = dataclasses.replace(source, class_names=NAMES), tmp_path / 'labeller.pth'
    torch.save({'arch': 'x', 'state_dict': {}, 'args': {'class_names': list(names or ())}}, path)

    class Ordered(Brightness):
        def forward(self, x):
            return super().forward(x)[:, torch.tensor(order).argsort()]

    monkeypatch.setattr('timm_paf.synthesis.parts.build_model', lambda *_, **__: Ordered())
    monkeypatch.setattr('timm_paf.synthesis.parts.load_network', lambda model, *_, **__: SimpleNamespace(
        model=model, weights='weights', warning=''))
    parts = maker(named)
    config = dataclasses.replace(parts.config, labeller_checkpoint=str(path))
    if message:
        with pytest.raises(ValueError, match=message):
            load_labeller(config, named, torch.device('cpu'))
        return
    parts = dataclasses.replace(parts, labeller=load_labeller(config, named, torch.device('cpu')))
    parts.fill(tmp_path / 'parts', Processes(torch.device('cpu')))
    made = open_archive(tmp_path / 'parts', num_classes=CLASSES)
    assert made.class_names == NAMES and read_manifest(tmp_path / 'parts')['class_names'] == list(NAMES)
    images, labels = made.take(torch.arange(len(made)))
    assert torch.equal(images.float().mean((1, 2, 3)).div(60).long(), labels)


@pytest.mark.parametrize('way', WAYS)
def test_a_part_depends_on_its_number_and_the_seed_alone(source, way):
    one, other = maker(source, **WAYS[way]), maker(source, **WAYS[way])
    forward = [one.make(part)[0].fingerprint() for part in (0, 1)]
    assert [other.make(part)[0].fingerprint() for part in (1, 0)] == forward[::-1]
    assert forward[0] != forward[1]
    assert maker(source, seed=1, **WAYS[way]).make(0)[0].fingerprint() != forward[0]


def test_without_balance_images_come_as_they_are_drawn(source):
    settings = dict(balance=False, num_images=2000, part_size=2000, batch_size=200)
    own, rejected, drawn = maker(source, **settings).make(0)
    asked, _, _ = maker(source, Draws(conditional=True), labeller=False, **settings).make(0)
    # the generator's own shares and the training set's; a share of 0.4 of 2000 has a standard deviation of 0.011
    assert (own.labels.bincount() / 2000 - torch.tensor([.4, .2, .2, .2])).abs().max() < 0.05
    assert (asked.labels.bincount() / 2000 - torch.tensor([.6, .2, .1, .1])).abs().max() < 0.05
    assert drawn - 2000 == sum(rejected.values())


class Script:
    """Draws the images given, then new ones of all classes in turn."""
    device = torch.device('cpu')

    def __init__(self, first, *, conditional=False):
        self.first, self.conditional = first, conditional

    def draw(self, count, labels, generator):
        images = images_of(torch.arange(count) % CLASSES if labels is None else labels, generator)
        if self.first is not None:
            images[:len(self.first)], self.first = self.first, None
        return images


def pixels(value):
    return torch.full((1, *SHAPE), value, dtype=torch.uint8)


def between_classes():
    return pixels(50)  # halfway between classes 0 and 1: confidence 0.5


SCRIPTS = {
    'low_confidence': (lambda source: between_classes(), dict(min_confidence=0.9)),
    'duplicate': (lambda source: source.images[:1], {}),
    'near_duplicate': (lambda source: source.images[:1] + 1, dict(min_distance=1.01 / 255)),
    'repeated': (lambda source: pixels(5).expand(2, *SHAPE), {}),
    'nothing, far enough': (lambda source: source.images[:1] + 1, dict(min_distance=0.99 / 255)),
    'nothing, sure enough': (lambda source: between_classes(), dict(min_confidence=0.5)),
}


@pytest.mark.parametrize('reason', SCRIPTS)
def test_why_an_image_is_left_out(source, reason):
    first, settings = SCRIPTS[reason]
    first = first(source)
    data, rejected, _ = maker(source, Script(first), balance=False, num_images=16, part_size=16, **settings).make(0)
    left_out = {key: count for key, count in rejected.items() if count and key != 'surplus'}
    assert left_out == ({} if reason.startswith('nothing') else {reason: 1})
    held = (data.images == first[0]).flatten(1).all(1).sum()
    assert held == (reason == 'repeated' or reason.startswith('nothing'))


def test_a_conditional_image_that_looks_like_another_class_is_left_out(source):
    asks_for_3 = LabelledImages(source.images[-10:], source.labels[-10:], CLASSES, 'all of class 3')
    script = Script(pixels(20), conditional=True)
    data, rejected, _ = maker(asks_for_3, script, balance=False, num_images=8, part_size=8).make(0)
    assert rejected['other_label'] == 1 and data.labels.tolist() == [3] * 8


def test_a_class_that_never_comes_and_nan_of_the_labeller_are_errors(source, monkeypatch):
    lonely = Draws(conditional=True)
    lonely.draw = lambda count, labels, generator: images_of(torch.zeros(count, dtype=torch.int64), generator)
    with pytest.raises(SynthesisFailed, match=r'part-00000.npz: .* 112 .*other_label.*class 1 lacks 6'):
        maker(source, lonely, max_draws=4).make(0)
    monkeypatch.setattr(Brightness, 'sharpness', float('nan'))
    with pytest.raises(SynthesisFailed, match='NaN or infinite logits'):
        maker(source).make(0)


def fill(source, folder, *, fails_at=None, **callbacks):
    """Fill a folder with three parts; return the manifest and the parts that were made."""
    made, parts = [], maker(source)

    def make(part, progress):
        if part == fails_at:
            raise SynthesisFailed('no more')
        made.append(part)
        return PartMaker.make(parts, part, progress)

    object.__setattr__(parts, 'make', make)
    return parts.fill(folder, Processes(torch.device('cpu')), **callbacks), made


@pytest.fixture
def folder(tmp_path, source):
    """Parts 0 and 1 of 3 are finished."""
    with pytest.raises(SynthesisFailed, match='no more'):
        fill(source, tmp_path / 'parts', fails_at=2)
    return tmp_path / 'parts'


def test_manifest_lists_all_parts_at_the_end(source, folder):
    assert read_manifest(folder)['parts'] == []
    for read in (manifest_parts, lambda path: open_archive(path, num_classes=CLASSES)):
        with pytest.raises(ValueError, match='0 of 3 parts'):
            read(folder)
    (folder / '.part-00002.npz.1.ab.tmp').write_bytes(b'of a killed process')
    shown, reported = [], []
    manifest, made = fill(source, folder, progress=shown.append, report=reported.append)
    assert made == [2] and shown[:2] == [23, 46] and shown[-1] == 50
    assert manifest == read_manifest(folder) and manifest['complete'] and reported == manifest['parts'][2:]
    counts = manifest['counts']
    assert counts['images'] == 50 and counts['per_class'] == [13, 13, 12, 12]
    assert list(counts['rejected']) == list(REASONS) and counts['drawn'] == 50 + sum(counts['rejected'].values())
    assert manifest['parts'][0]['versions']['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert len(open_archives(manifest_parts(folder, verify=True), num_classes=CLASSES, channels=1)) == 50
    assert not list(folder.glob('.*'))


DAMAGE = {
    'archive gone': ('npz', lambda path: path.unlink()),
    'archive cut': ('npz', lambda path: path.write_bytes(path.read_bytes()[:-1])),
    'record gone': ('json', lambda path: path.unlink()),
    'record cut': ('json', lambda path: path.write_text('{"file": ')),
    'record of another form': ('json', lambda path: path.write_text('[]')),
    'record of another': ('json', lambda path: path.write_bytes(path.with_name('part-00001.json').read_bytes())),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_part_is_made_again(source, folder, damage):
    suffix, change = DAMAGE[damage]
    change(folder / f'part-00000.{suffix}')
    manifest, made = fill(source, folder)
    assert manifest['complete'] and made == [0, 2]


def test_a_folder_is_resumed_with_its_own_plan_only(source, folder, tmp_path):
    plan = json.loads(json.dumps(maker(source).plan()))
    check_folder(folder, plan)
    for other, message in (
            (plan | {'seed': 1}, 'seed = 0, now it is 1'), (plan | {'extra': 1}, 'extra = None, now it is 1'),
            (plan | {'filters': plan['filters'] | {'min_confidence': 0.5}}, r'filters\.min_confidence = 0\.0, now'),
            (None, 'a generator that is missing')):
        with pytest.raises(ValueError, match=message):
            check_folder(folder, other)
    check_folder(tmp_path, {})
    (tmp_path / 'part-00000.npz').write_bytes(b'')
    with pytest.raises(ValueError, match=r'part-00000.npz but no manifest.json'):
        check_folder(tmp_path, {})

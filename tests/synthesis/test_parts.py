"""Parts of synthetic images: what is kept, what is left out and why; a part depends on its number alone."""
import pytest
import torch
from torch import nn

from timm_paf.data import LabelledImages
from timm_paf.synthesis import Labeller, PartMaker, SynthesisFailed, SyntheticConfig
from timm_paf.synthesis.parts import REASONS

CLASSES, SHAPE = 4, (1, 2, 3)


def images_of(labels, generator):
    """Class k has pixels 60k+10 to 60k+29."""
    noise = torch.randint(10, 30, (len(labels), *SHAPE), generator=generator)
    return (noise + 60 * labels[:, None, None, None]).to(torch.uint8)


class Draws:
    """A generator that draws the classes it is asked for, or of its own accord mostly class 0."""

    def __init__(self, *, conditional):
        self.conditional = conditional

    def draw(self, count, labels, generator):
        if not self.conditional:
            weights = torch.tensor([0.4, 0.2, 0.2, 0.2])
            labels = torch.multinomial(weights, count, replacement=True, generator=generator)
        return images_of(labels, generator)


class Brightness(nn.Module):
    """Knows the class by its brightness; `sharpness` says how sure it is."""

    def __init__(self, sharpness=100.):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, x):
        centres = (torch.arange(CLASSES) * 60 + 20) / 255
        return -self.sharpness * (x.mean((1, 2, 3))[:, None] - centres).abs()


@pytest.fixture(scope='module')
def source():
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10 + [3] * 10)
    return LabelledImages(images_of(labels, torch.Generator().manual_seed(0)), labels, CLASSES, 'real')


def maker(source, generator=None, labeller=True, **settings):
    settings = dict(num_images=50, part_size=23, batch_size=16, min_distance=0.) | settings
    cpu = torch.device('cpu')
    config = SyntheticConfig(
        method='diffusion', generator='x', output='folder', labeller_checkpoint='x' if labeller else None, **settings)
    return PartMaker(
        config=config, generator=generator or Draws(conditional=False),
        labeller=Labeller(Brightness(), cpu) if labeller else None, source=source, device=cpu)


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
    'nothing': (lambda source: source.images[:1] + 1, dict(min_distance=0.99 / 255)),
}


@pytest.mark.parametrize('reason', SCRIPTS)
def test_why_an_image_is_left_out(source, reason):
    first, settings = SCRIPTS[reason]
    first = first(source)
    data, rejected, _ = maker(source, Script(first), balance=False, num_images=16, part_size=16, **settings).make(0)
    left_out = {key: count for key, count in rejected.items() if count and key != 'surplus'}
    assert left_out == ({} if reason == 'nothing' else {reason: 1})
    held = (data.images == first[0]).flatten(1).all(1).sum()
    assert held == (reason in ('repeated', 'nothing'))


def test_a_conditional_image_that_looks_like_another_class_is_left_out(source):
    asks_for_3 = LabelledImages(source.images[-10:], source.labels[-10:], CLASSES, 'all of class 3')
    script = Script(pixels(20), conditional=True)
    data, rejected, _ = maker(asks_for_3, script, balance=False, num_images=8, part_size=8).make(0)
    assert rejected['other_label'] == 1 and data.labels.tolist() == [3] * 8


def test_a_sure_enough_labeller_keeps(source):
    data, rejected, _ = maker(source, Script(between_classes()), balance=False, min_confidence=0.5).make(0)
    assert rejected['low_confidence'] == 0 and (data.images == 50).flatten(1).all(1).any()


def test_a_class_that_never_comes_is_an_error(source):
    zeros = LabelledImages(source.images[:60], source.labels[:60], CLASSES, 'only class 0')
    lonely = Draws(conditional=True)
    lonely.draw = lambda count, labels, generator: images_of(torch.zeros(count, dtype=torch.int64), generator)
    with pytest.raises(SynthesisFailed, match=r'part-00000.npz: .* 112 .*other_label.*class 1 lacks 6'):
        maker(zeros, lonely, max_draws=4).make(0)


def test_nan_of_the_labeller_is_an_error(source):
    with pytest.raises(SynthesisFailed, match='NaN or infinite logits'):
        Labeller(Brightness(float('nan')), torch.device('cpu'))(source.images)

"""Mixed batches: exact shares, exact passes, and an order that is a function of (seed, epoch, step)."""

from collections import Counter
from itertools import islice

import pytest
import torch

from timm_paf.data import Augment, LabelledImages, MixedBatches

REAL, SYNTHETIC = 1, 2  # the green channel of an image says where it comes from


def numbered(count, kind, *, num_classes=10, dtype=torch.uint8, size=4):
    """Images that carry their own index, sorted by class as archives in the wild are."""
    index = torch.arange(count)
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0] = (index % 256)[:, None, None].to(torch.uint8)
    images[:, 1] = kind
    images[:, 2] = (index // 256)[:, None, None].to(torch.uint8)
    if dtype == torch.float32:
        images = images.float() / 255
    return LabelledImages(images, index * num_classes // count, num_classes, f'kind {kind}')


def indices(batch, kind):
    """Which images of one kind a batch holds, read from the pixels and not from what the code says of itself."""
    pixels = (batch.x[:, :, 2, 2] * 255).round().long()
    chosen = pixels[pixels[:, 1] == kind]
    return (chosen[:, 0] + 256 * chosen[:, 2]).tolist()


def mixed(num_real=50, num_synthetic=70, batch_size=8, fraction=0.5, seed=0, **settings):
    synthetic = numbered(num_synthetic, SYNTHETIC) if num_synthetic else None
    return MixedBatches(
        numbered(num_real, REAL), synthetic, batch_size=batch_size, synthetic_fraction=fraction, seed=seed, **settings,
    )


# real, synthetic, batch size, fraction -> steps, real and synthetic a batch, real and synthetic in the last batch
SHAPES = {
    'no synthetic set': (50, 0, 8, 0.0, 7, (8, 0), (2, 0)),
    'the paper': (100, 130, 52, 0.5, 4, (26, 26), (22, 22)),
    'Wang 2023': (100, 130, 51, 0.7, 7, (15, 36), (10, 24)),
    'rest of one': (49, 70, 8, 0.5, 13, (4, 4), (1, 1)),
    'one batch': (5, 70, 100, 0.3, 1, (70, 30), (5, 2)),
    'synthetic only': (50, 70, 8, 1.0, 7, (0, 8), (0, 2)),
    'rounded to none': (50, 70, 8, 0.06, 7, (8, 0), (2, 0)),
    'a half rounds to even': (40, 70, 5, 0.5, 14, (3, 2), (1, 1)),
    'one synthetic': (50, 1, 16, 0.5, 7, (8, 8), (2, 2)),
    'last of one left out': (49, 0, 8, 0.0, 6, (8, 0), (8, 0)),
    'last synthetic one left out': (49, 70, 8, 1.0, 6, (0, 8), (0, 8)),
    'last real one of mostly real left out': (49, 70, 8, 0.1, 7, (7, 1), (7, 1)),
    'batches of one': (5, 0, 1, 0.0, 5, (1, 0), (1, 0)),
    'only one image': (1, 0, 8, 0.0, 1, (8, 0), (1, 0)),
}


@pytest.mark.parametrize('case', SHAPES)
def test_shares_and_passes(case):
    num_real, num_synthetic, batch_size, fraction, steps, (real, synthetic), last = SHAPES[case]
    batches = mixed(num_real, num_synthetic, batch_size, fraction)
    assert len(batches) == steps
    assert (batches.real_per_batch, batches.synthetic_per_batch) == (real, synthetic)
    stream = []
    for epoch in range(3):
        seen_real = []
        for step, batch in enumerate(batches.epoch(epoch)):
            expected = (real, synthetic) if step < steps - 1 else last
            assert (len(indices(batch, REAL)), len(indices(batch, SYNTHETIC))) == expected
            seen_real += indices(batch, REAL)
            stream.append(indices(batch, SYNTHETIC))
        assert step == steps - 1
        # all real images once, or all but those of a last batch that is left out
        assert len(set(seen_real)) == len(seen_real) == (num_real - batches.left_out if real else 0)
    uses = Counter()
    for chosen in stream:
        uses.update(chosen)
        # nothing is used for the (k+1)-th time before all have been used k times
        every = [uses[index] for index in range(num_synthetic)] or [0]
        assert max(every) - min(every) <= 1
    assert sum(uses.values()) == sum(len(chosen) for chosen in stream)


@pytest.mark.parametrize('world_size, last', [(1, 3), (2, 8), (4, 8)])
def test_a_last_batch_with_a_share_of_one_is_left_out(world_size, last):
    """43 images in batches of 8: with two processes, one of them would get one of the last three."""
    ranks = [mixed(43, 0, 8, 0., rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {6 if last == 3 else 5}
    epochs = [[sum(len(batch) for batch in step) for step in zip(*(b.epoch(e) for b in ranks), strict=True)]
              for e in range(2)]
    assert [sizes[-1] for sizes in epochs] == [last, last] and ranks[0].left_out == (0 if last == 3 else 3)


def snapshot(batches):
    return [(batch.x.tolist(), batch.y.tolist(), batch.synthetic.tolist()) for batch in batches]


@pytest.mark.parametrize('fraction', [0, 0.3, 1])
@pytest.mark.parametrize('start_step', [1, 5])
def test_resuming_gives_the_same_batches(fraction, start_step):
    settings = {'num_synthetic': 11, 'fraction': fraction, 'real_augment': Augment(crop_padding=1)}
    before = torch.get_rng_state()
    whole = snapshot(mixed(**settings).epoch(3))
    assert torch.equal(torch.get_rng_state(), before)
    resumed = mixed(**settings)
    list(islice(resumed.epoch(0), 2))  # what was done before must not matter
    torch.rand(3)
    assert snapshot(resumed.epoch(3, start_step=start_step)) == whole[start_step:]
    assert snapshot(resumed.epoch(3, start_step=len(resumed))) == []


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch, kind):
        # which images meet in which batch: their places inside a batch are shuffled in any case
        return tuple(frozenset(indices(batch, kind)) for batch in mixed(seed=seed).epoch(epoch))

    for kind in (REAL, SYNTHETIC):
        assert len({order(seed, epoch, kind) for seed in (-1, 0, 2**70) for epoch in (0, 10**6)}) == 6


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32], ids=str)
def test_form_of_a_batch(dtype):
    real = numbered(50, REAL, dtype=dtype)
    strided = numbered(70, SYNTHETIC).images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    synthetic = LabelledImages(strided, numbered(70, SYNTHETIC).labels, 10, 'strided')
    for fraction in (0, 0.5, 1):
        for batch in MixedBatches(real, synthetic, batch_size=8, synthetic_fraction=fraction, seed=0).epoch(0):
            x, y = batch
            assert x is batch.x and y is batch.y and len(batch) == len(x)
            assert x.dtype == torch.float32 and x.is_contiguous() and x.shape == (len(y), 3, 4, 4)
            assert y.dtype == torch.int64 and batch.synthetic.dtype == torch.bool
            assert torch.equal(batch.synthetic, (x[:, 1, 0, 0] * 255).round() == SYNTHETIC)
            # x is exactly what was stored, over 255, and y is its label
            red, green, blue = (x[:, :, 0, 0] * 255).round().unbind(1)
            index = (red + 256 * blue).long()
            assert torch.equal(x, torch.stack([red, green, blue], 1)[:, :, None, None].expand_as(x) / 255)
            assert torch.equal(y, torch.where(batch.synthetic, index * 10 // 70, index * 10 // 50))


def test_real_and_synthetic_are_shuffled_together():
    # over many batches each place holds a synthetic image half of the time
    places = torch.stack([batch.synthetic for batch in mixed(2000, 2000, 20, 0.5).epoch(0)]).double()
    assert (places.mean(0) - 0.5).abs().max() < 5 * (0.25 / 200) ** 0.5


def test_sets_sorted_by_class_give_mixed_batches():
    # the class counts of a batch vary as those of a random sample without replacement
    batches = list(mixed(2000, 2000, 80, 0.5, seed=3).epoch(0))
    for labels in ([batch.y[batch.synthetic] for batch in batches], [batch.y[~batch.synthetic] for batch in batches]):
        counts = torch.stack([torch.bincount(each, minlength=10) for each in labels]).double()
        assert counts.shape == (50, 10) and counts.sum(0).tolist() == [200] * 10
        variance = 40 * 0.1 * 0.9 * (2000 - 40) / (2000 - 1)
        chi2 = float(((counts - 4) ** 2 / variance).sum()) * 0.9
        assert abs(chi2 - 9 * 49) < 5 * (2 * 9 * 49) ** 0.5


def test_augmentation_is_for_real_images_only_by_default():
    shift = Augment(crop_padding=2)
    plain, real_only, both = (list(mixed(**settings).epoch(0)) for settings in (
        {}, {'real_augment': shift}, {'real_augment': shift, 'synthetic_augment': shift}))
    for before, after, shifted in zip(plain, real_only, both, strict=True):
        assert torch.equal(before.y, after.y) and torch.equal(before.synthetic, after.synthetic)
        assert torch.equal(before.x[before.synthetic], after.x[before.synthetic])
        assert torch.equal(after.x[~before.synthetic], shifted.x[~before.synthetic])
    assert not all(torch.equal(before.x, after.x) for before, after in zip(plain, real_only, strict=True))
    assert not all(torch.equal(after.x, shifted.x) for after, shifted in zip(real_only, both, strict=True))


def test_augmentation_is_drawn_again_for_each_seed_epoch_step_and_source():
    white = LabelledImages(torch.full((40, 1, 5, 5), 255, dtype=torch.uint8), torch.zeros(40).long(), 1, 'white')
    shift = Augment(crop_padding=2)
    settings = {'batch_size': 20, 'synthetic_fraction': 0.5, 'real_augment': shift, 'synthetic_augment': shift}
    drawn = []
    for seed in (0, 1):
        batches = MixedBatches(white, white, seed=seed, **settings)
        for batch in (batch for epoch in range(2) for batch in batches.epoch(epoch)):
            # the images are all alike, so sorting them leaves nothing but the shifts that were drawn
            drawn += [sorted(batch.x[chosen].flatten(1).tolist()) for chosen in (batch.synthetic, ~batch.synthetic)]
    assert len(drawn) == len(set(map(str, drawn))) == 2 * 2 * 4 * 2


@pytest.mark.parametrize(
    ('weights', 'per_ten'), [(None, (10, 10, 10)), ((0.5, 0.2, 0.3), (15, 6, 9))], ids=str)
def test_weighted_sources_have_exact_shares_and_passes(weights, per_ten):
    sizes = (31, 17, 8)
    sources = [numbered(size, SYNTHETIC + number) for number, size in enumerate(sizes)]
    batches = MixedBatches(
        numbered(50, REAL), sources, batch_size=8, synthetic_fraction=3 / 8, seed=0, synthetic_weights=weights)
    uses = [Counter() for _ in sources]
    for step, batch in enumerate(batch for epoch in range(4) for batch in batches.epoch(epoch)):
        assert int(batch.synthetic.sum()) == 3
        for number, size in enumerate(sizes):
            uses[number].update(indices(batch, SYNTHETIC + number))
            every = [uses[number][index] for index in range(size)]
            assert max(every) - min(every) <= 1
            assert abs(uses[number].total() - per_ten[number] / 10 * (step + 1)) <= 1
    assert step == 39
    assert [use.total() for use in uses] == [4 * count for count in per_ten]


def test_each_source_is_treated_in_its_own_way():
    sources = [numbered(40, SYNTHETIC), numbered(40, SYNTHETIC + 1)]
    settings = {'batch_size': 12, 'synthetic_fraction': 2 / 3, 'seed': 0}
    plain = MixedBatches(numbered(40, REAL), sources, **settings)
    treated = MixedBatches(
        numbered(40, REAL), sources, **settings, smoothing=0.1, synthetic_smoothing=(0.5, 0.),
        synthetic_augment=(Augment(), Augment(color_jitter=0.9)))
    for before, after in zip(plain.epoch(0), treated.epoch(0), strict=True):
        assert torch.equal(before.target, before.y) and torch.equal(before.y, after.y)
        kinds = (before.x[:, 1, 0, 0] * 255).round().long()
        smoothing = torch.tensor([0., 0.1, 0.5, 0.])[kinds][:, None]
        expected = torch.nn.functional.one_hot(before.y, 10) * (1 - smoothing) + smoothing / 10
        torch.testing.assert_close(after.target, expected)
        jittered = kinds == SYNTHETIC + 1
        assert torch.equal(after.x[~jittered], before.x[~jittered])
        assert (after.x[jittered] != before.x[jittered]).flatten(1).any(1).all()


def test_soft_labels_reach_the_target():
    soft = torch.rand(70, 10, generator=torch.Generator().manual_seed(0))
    soft = soft / soft.sum(1, keepdim=True)
    source = LabelledImages(numbered(70, SYNTHETIC).images, soft, 10, 'soft')
    batch = next(MixedBatches(numbered(50, REAL), source, batch_size=20, synthetic_fraction=0.5, seed=0).epoch(0))
    taken = torch.tensor(indices(batch, SYNTHETIC))
    torch.testing.assert_close(batch.target[batch.synthetic], soft[taken])
    assert torch.equal(batch.y[batch.synthetic], soft[taken].argmax(1))
    assert torch.equal(batch.target[~batch.synthetic].max(1).values, torch.ones(10))
    # all batches of a run are of one form, also those without one of the soft labels
    alone = MixedBatches(numbered(32, REAL), source, batch_size=16, synthetic_fraction=1 / 16, seed=0)
    assert [tuple(batch.target.shape) for batch in alone.epoch(0)] == [(16, 10), (16, 10), (2, 10)]


def test_cutmix_stays_within_a_source():
    mixed_up = {'real_augment': Augment(cutmix=1.), 'synthetic_augment': Augment()}
    for before, after in zip(mixed(batch_size=20).epoch(0), mixed(batch_size=20, **mixed_up).epoch(0), strict=True):
        assert torch.equal(before.x[before.synthetic], after.x[after.synthetic])
        assert (after.x[~after.synthetic, 1] * 255).round().unique().tolist() == [REAL]
        # a real image's red and blue say which image each of its pixels is from; labels must follow the pixels
        codes = (after.x[~after.synthetic] * 255).round().long()
        labels = torch.nn.functional.one_hot((codes[:, 0] + 256 * codes[:, 2]) * 10 // 50, 10).float().mean((1, 2))
        torch.testing.assert_close(after.target[~after.synthetic], labels)
    assert (after.target[~after.synthetic].max(1).values < 1).any()


ALL_OF_IT = {
    'num_real': 53, 'batch_size': 13, 'fraction': 0.4, 'smoothing': 0.1,
    'real_augment': Augment(crop_padding=1, hflip=True, color_jitter=0.2, erase_prob=0.5, cutmix=1.),
    'synthetic_augment': Augment(cutout=2, cutmix=0.5),
}


def rows(batch):
    """The images of a batch with all that belongs to them, in a sorted order."""
    columns = [batch.x.flatten(1), batch.y[:, None], batch.target, batch.synthetic[:, None]]
    return sorted(torch.cat(columns, 1).tolist())


@pytest.mark.gpu
def test_batches_on_a_gpu_are_the_same():
    """Bit for bit, for all 256 values of a pixel."""
    settings = {
        'num_real': 300, 'num_synthetic': 300, 'smoothing': 0.1,
        'real_augment': Augment(crop_padding=1, hflip=True, cutout=1, cutmix=1.)}
    for here, there in zip(mixed(**settings).epoch(1), mixed(**settings, device='cuda').epoch(1), strict=True):
        assert all(tensor.is_cuda for tensor in (there.x, there.y, there.synthetic, there.target))
        assert torch.equal(here.x, there.x.cpu()) and torch.equal(here.y, there.y.cpu())
        torch.testing.assert_close(here.target, there.target.cpu())


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_together_see_what_one_process_sees(world_size):
    alone = list(mixed(**ALL_OF_IT).epoch(2))
    shares = zip(*(
        mixed(**ALL_OF_IT, rank=rank, world_size=world_size).epoch(2) for rank in range(world_size)), strict=True)
    for whole, parts in zip(alone, shares, strict=True):
        # exactly the same images, each with the same augmentation, and none twice
        assert sorted(row for part in parts for row in rows(part)) == rows(whole)
        assert {part.total for part in parts} == {len(whole)} == {whole.total}
        sizes, synthetic = [len(part) for part in parts], [int(part.synthetic.sum()) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and max(synthetic) - min(synthetic) <= 1


BAD = {
    'fraction above 1': ({'fraction': 1.01}, 'synthetic_fraction=1.01, expected a number from 0 to 1'),
    'batch of 0': ({'batch_size': 0}, 'batch_size=0'),
    'nothing to mix in': ({'num_synthetic': 0}, 'without synthetic images'),
    'smoothing above 1': ({'smoothing': 1.1}, 'smoothing=1.1'),
    'two smoothings for one source': ({'synthetic_smoothing': (0.1, 0.2)}, '2 values of synthetic_smoothing for 1'),
    'rank': ({'rank': 2, 'world_size': 2}, 'got rank=2'),
    'no process': ({'world_size': 0}, 'world_size=0'),
    'more processes than images': ({'world_size': 5}, 'smallest batch has 4 images for world_size=5'),
}


@pytest.mark.parametrize('case', BAD)
def test_settings_out_of_range(case):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        mixed(**settings)
    assert '\n' not in str(caught.value)
    for epoch, start_step in (-1, 0), (0, -1), (0, 14):
        with pytest.raises(ValueError, match='expected'):
            mixed().epoch(epoch, start_step)

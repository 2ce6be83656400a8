"""The small diffusion model that --train fits."""
import pytest
import torch

from timm_paf.data import LabelledImages
from timm_paf.synthesis import SynthesisFailed, SyntheticConfig, fit_diffusion, load_diffusion, read_training_record

pytest.importorskip('diffusers')
CPU = torch.device('cpu')
SHAPE = (1, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def two_greys():
    """Class 0 is dark, class 1 bright, in no regular order."""
    labels = torch.randint(0, 2, (64,), generator=seeded())
    noise = torch.randint(0, 30, (64, *SHAPE), generator=seeded(1))
    return LabelledImages((noise + 20 + 180 * labels[:, None, None, None]).to(torch.uint8), labels, 2, 'greys')


def config_for(folder, **settings):
    settings = dict(train_width=8, train_steps=60, train_batch_size=32, train_lr=1e-2) | settings
    return SyntheticConfig(method='diffusion', train=True, output=str(folder), **settings)


def fit(train, folder, progress=lambda done: None, **settings):
    return fit_diffusion(config_for(folder, **settings), train, device=CPU, progress=progress)


def load(train, folder):
    return load_diffusion(folder / 'generator', train, sampler='ddim', steps=10, device=CPU)


def test_classes_are_learned(tmp_path, two_greys):
    seen = []
    loss = fit(two_greys, tmp_path, progress=seen.append)
    assert seen == list(range(1, 61))
    assert 0 < loss < 0.5  # noise that is not predicted at all has a squared error of 1
    diffusion = load(two_greys, tmp_path)
    assert diffusion.conditional
    # from the same noise: so short a training learns the difference between classes, but not each image
    dark, bright = (diffusion.draw(16, torch.full((16,), label), seeded()).float().mean((1, 2, 3)) for label in (0, 1))
    assert (bright > dark + 10).all()


def test_weights_depend_on_the_seed_alone(tmp_path, two_greys):
    hashes = []
    for name, seed in (('first', 0), ('again', 0), ('other', 1)):
        torch.rand(len(name))  # what the program drew before must not matter
        fit(two_greys, tmp_path / name, train_steps=3, seed=seed)
        hashes.append(load(two_greys, tmp_path / name).record['sha256'])
    assert hashes[0] == hashes[1] != hashes[2]


def test_divergence_is_an_error_and_leaves_nothing(tmp_path, two_greys):
    with pytest.raises(SynthesisFailed, match='lower --train-lr'):
        fit(two_greys, tmp_path, train_lr=1e30, train_steps=25)
    assert not list(tmp_path.iterdir())


def test_training_record(tmp_path, two_greys):
    settings = dict(train_steps=1, conditional=False, labeller_checkpoint='x')
    config = config_for(tmp_path, **settings)
    fit_diffusion(config, two_greys, device=CPU)
    assert read_training_record(config, two_greys) == config.training_record(two_greys)
    assert not load(two_greys, tmp_path).conditional
    with pytest.raises(ValueError, match=r'train_lr = 0\.01, now it is 0\.02'):
        read_training_record(config_for(tmp_path, train_lr=0.02, **settings), two_greys)
    for content in ('[1]', '{'):
        (tmp_path / 'generator' / 'training.json').write_text(content)
        with pytest.raises(ValueError, match=r'training\.json cannot be read'):
            read_training_record(config, two_greys)


@pytest.mark.parametrize(('shape', 'multiple'), [((1, 7, 8), 2), ((3, 30, 32), 4)], ids=str)
def test_sizes_that_cannot_be_fitted(tmp_path, shape, multiple):
    train = LabelledImages(torch.zeros(2, *shape), torch.arange(2), 2, 'odd')
    with pytest.raises(ValueError, match=f'multiples of {multiple}'):
        fit(train, tmp_path)

"""Diffusion models: against diffusers' own pipelines and closed forms; unexpected folders; the one --train fits."""
import json
import os
import shutil
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from timm_paf.data import LabelledImages
from timm_paf.synthesis import Diffusion, SynthesisFailed, SyntheticConfig, fit_diffusion, load_diffusion

diffusers = pytest.importorskip('diffusers')
CPU = torch.device('cpu')
SHAPE = (1, 8, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_unet(**settings):
    torch.manual_seed(0)
    settings = dict(sample_size=8, in_channels=1, out_channels=1) | settings
    return diffusers.UNet2DModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2, **settings)


def save(folder, unet, scheduler):
    unet.save_pretrained(folder / 'unet')
    scheduler.save_pretrained(folder / 'scheduler')
    return folder


SOURCE = LabelledImages(torch.zeros(10, *SHAPE), torch.arange(10), 10, 'training set')


def load(folder, source=SOURCE, **settings):
    settings = dict(sampling_steps=5, generator=str(folder)) | settings
    return load_diffusion(SyntheticConfig(method='diffusion', output='x', **settings), source, device=CPU)


@pytest.mark.parametrize('name', ['DDPM', 'DDIM'])
def test_images_are_those_of_diffusers_own_pipeline(tmp_path, name):
    pipeline = getattr(diffusers, f'{name}Pipeline')
    scheduler = getattr(diffusers, f'{name}Scheduler')(num_train_timesteps=100)
    drawn = load(save(tmp_path, tiny_unet(), scheduler)).draw(4, None, seeded())
    own = pipeline(tiny_unet().eval(), scheduler)
    own.set_progress_bar_config(disable=True)
    expected = own(batch_size=4, generator=seeded(), num_inference_steps=5, output_type='np').images
    assert drawn.dtype == torch.uint8 and drawn.shape == (4, *SHAPE)
    assert np.array_equal(drawn.permute(0, 2, 3, 1).numpy(), np.rint(expected * 255))
    assert len(drawn.flatten(1).unique(dim=0)) == 4


def test_a_known_distribution_is_drawn_with_edm():
    """All images of class k are mean[k]: D(x) = mean, so that F = (mean - c_skip x) / c_out (Karras et al., 2022)."""
    scheduler = diffusers.EDMEulerScheduler(num_train_timesteps=100)
    mean, data = torch.linspace(-0.9, 0.9, 3 * 64).reshape(3, *SHAPE), scheduler.config.sigma_data

    def unet(scaled, t, class_labels):
        sigma = (4 * t).exp()  # c_noise = log(sigma) / 4
        x = scaled * (sigma**2 + data**2).sqrt()
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
        return types.SimpleNamespace(sample=(mean[class_labels] - skip * x) / out)

    diffusion = Diffusion(
        unet=unet, scheduler=scheduler, image_shape=SHAPE, conditional=True, steps=20, device=CPU)
    labels = torch.tensor([2, 0, 1, 2])
    # half a grey level of rounding, and the last noise level of the sampler
    assert (diffusion.draw(4, labels, seeded()).float() - (mean[labels] + 1) * 127.5).abs().max() < 3


def test_draws_depend_on_their_generator_alone(tmp_path):
    diffusion = load(save(tmp_path, tiny_unet(num_class_embeds=10), diffusers.DDPMScheduler(100)))
    labels = torch.arange(4)
    before = torch.get_rng_state()
    first = diffusion.draw(4, labels, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    diffusion.draw(4, labels, seeded(1))
    assert torch.equal(diffusion.draw(4, labels, seeded()), first)
    assert not torch.equal(diffusion.draw(4, labels.flip(0), seeded()), first)


def test_nan_is_not_made_into_pixels():
    diffusion = Diffusion(
        unet=lambda x, t: types.SimpleNamespace(sample=x * float('nan')), scheduler=diffusers.DDPMScheduler(100),
        image_shape=SHAPE, conditional=False, steps=2, device=CPU)
    with pytest.raises(SynthesisFailed):
        diffusion.draw(2, None, seeded())


@pytest.mark.parametrize('scheduler, sampler, steps, name, expected', [
    ('DDPM', None, None, 'DDPMScheduler', 100), ('EDMEuler', None, None, 'EDMEulerScheduler', 50),
    ('DDPM', 'ddim', None, 'DDIMScheduler', 50), ('DDIM', 'ddpm', 7, 'DDPMScheduler', 7)])
def test_sampler_and_steps(tmp_path, scheduler, sampler, steps, name, expected):
    save(tmp_path, tiny_unet(), getattr(diffusers, f'{scheduler}Scheduler')(num_train_timesteps=100))
    loaded = load(tmp_path, sampler=sampler, sampling_steps=steps)
    assert (type(loaded.scheduler).__name__, loaded.steps, loaded.conditional) == (name, expected, False)


def test_all_files_in_one_folder_and_weights_as_torch_saves_them(tmp_path, capfd):
    save(tmp_path / 'new', tiny_unet(), diffusers.DDPMScheduler(100))
    for name, safe in (('one folder', True), ('bin', False)):
        tiny_unet().save_pretrained(tmp_path / name, safe_serialization=safe)
        diffusers.DDPMScheduler(100).save_pretrained(tmp_path / name)
    capfd.readouterr()
    new, old, plain = (load(tmp_path / name) for name in ('new', 'one folder', 'bin'))
    assert new.record['sha256'] == old.record['sha256'] != plain.record['sha256']
    images = [model.draw(2, None, seeded()) for model in (new, old, plain)]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert capfd.readouterr() == ('', '')


class Harm(str):
    """Unpickled with code allowed, it makes the folder of this name."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


def unet(**settings):
    return lambda folder: tiny_unet(**settings).save_pretrained(folder / 'unet')


def scheduler_named(name):
    def change(folder):
        path = folder / 'scheduler' / 'scheduler_config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | {'_class_name': name}))
    return change


def weights(change):
    return lambda folder: change(folder / 'unet' / 'diffusion_pytorch_model.safetensors')


def without_one(path):
    save_file({key: value for key, value in load_file(path).items() if key != 'conv_norm_out.weight'}, path)


def harmful(path):
    path.unlink()
    torch.save({'weight': Harm(path.parents[1] / 'executed')}, path.with_suffix('.bin'))


FOLDERS = {
    'weights incomplete': (weights(without_one), {}, 'conv_norm_out.weight'),
    'no weights': (weights(lambda path: path.unlink()), {}, 'not a readable'),
    'weights cut': (weights(lambda path: path.write_bytes(path.read_bytes()[:-10])), {}, 'not a readable UNet2DModel'),
    'weights with code': (weights(harmful), {}, 'not a readable UNet2DModel'),
    'more output channels': (unet(out_channels=2), {}, '2 channels, but DDPMScheduler takes 1'),
    'other channels': (unet(in_channels=3, out_channels=3), {}, r'\(3, 8, 8\), expected \(1, 8, 8\)'),
    'other size': (unet(sample_size=(8, 16)), {}, r'\(1, 8, 16\), expected \(1, 8, 8\)'),
    'other classes': (unet(num_class_embeds=7), {}, '7 classes, but the data set has 10'),
    'scheduler without steps': (scheduler_named('ScoreSdeVeScheduler'), {}, 'not a scheduler'),
    'scheduler is no scheduler': (scheduler_named('UNet2DModel'), {}, 'not a scheduler'),
    'too many steps': (lambda folder: None, {'sampling_steps': 101}, 'sampling-steps = 101.*100'),
    'edm as ddim': (
        lambda folder: diffusers.EDMEulerScheduler().save_pretrained(folder / 'scheduler'), {'sampler': 'ddim'},
        'EDMEulerScheduler; leave --sampler unset'),
    'no folder': (lambda folder: shutil.rmtree(folder), {}, 'does not exist'),
}


@pytest.mark.parametrize('case', FOLDERS)
def test_a_folder_that_is_not_as_expected(tmp_path, capfd, case):
    change, settings, message = FOLDERS[case]
    change(save(tmp_path, tiny_unet(), diffusers.DDPMScheduler(100)))
    capfd.readouterr()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(tmp_path, **settings)
    assert '\n' not in str(caught.value) and capfd.readouterr() == ('', '')
    assert not (tmp_path / 'executed').exists()


@pytest.fixture(scope='module')
def two_greys():
    """Class 0 is dark, class 1 bright, in no regular order."""
    labels = torch.randint(0, 2, (64,), generator=seeded())
    noise = torch.randint(0, 30, (64, *SHAPE), generator=seeded(1))
    return LabelledImages((noise + 20 + 180 * labels[:, None, None, None]).to(torch.uint8), labels, 2, 'greys')


def config_for(folder, **settings):
    settings = dict(train_width=8, train_steps=40, train_batch_size=32, train_lr=1e-2) | settings
    return SyntheticConfig(method='diffusion', train=True, output=str(folder), **settings)


def fit(train, folder, progress=lambda done: None, **settings):
    return fit_diffusion(config_for(folder, **settings), train, device=CPU, progress=progress)


def load_fitted(train, folder):
    return load(folder / 'generator', train, sampler='ddim', sampling_steps=10)


def test_classes_are_learned(tmp_path, two_greys):
    seen = []
    loss = fit(two_greys, tmp_path, progress=seen.append)
    assert seen == list(range(1, 41))
    assert 0 < loss < 0.5  # noise that is not predicted at all has a squared error of 1
    diffusion = load_fitted(two_greys, tmp_path)
    assert diffusion.conditional
    # from the same noise: so short a training learns the difference between classes, but not each image
    dark, bright = (diffusion.draw(16, torch.full((16,), label), seeded()).float().mean((1, 2, 3)) for label in (0, 1))
    assert (bright > dark + 10).all()


def test_weights_depend_on_the_seed_alone(tmp_path, two_greys):
    hashes = []
    for name, seed in (('first', 0), ('again', 0), ('other', 1)):
        torch.rand(len(name))  # what the program drew before must not matter
        fit(two_greys, tmp_path / name, train_steps=3, seed=seed)
        hashes.append(load_fitted(two_greys, tmp_path / name).record['sha256'])
    assert hashes[0] == hashes[1] != hashes[2]


def test_divergence_is_an_error_and_leaves_nothing(tmp_path, two_greys):
    with pytest.raises(SynthesisFailed, match='lower --train-lr'):
        fit(two_greys, tmp_path, train_lr=1e30, train_steps=25)
    assert not list(tmp_path.iterdir())


def test_training_record(tmp_path, two_greys):
    settings = dict(train_steps=1, conditional=False, labeller_checkpoint='x')
    config = config_for(tmp_path, **settings)
    fit_diffusion(config, two_greys, device=CPU)
    loaded = load_diffusion(config, two_greys, device=CPU)
    assert loaded.record['trained_here'] == config.training_record(two_greys) and not loaded.conditional
    with pytest.raises(ValueError, match=r'train_lr = 0\.01, now it is 0\.02'):
        load_diffusion(config_for(tmp_path, train_lr=0.02, **settings), two_greys, device=CPU)
    for content in ('[1]', '{'):
        (tmp_path / 'generator' / 'training.json').write_text(content)
        with pytest.raises(ValueError, match=r'training\.json: not the settings'):
            load_diffusion(config, two_greys, device=CPU)


@pytest.mark.parametrize(('shape', 'multiple'), [((1, 7, 8), 2), ((3, 30, 32), 4)], ids=str)
def test_sizes_that_cannot_be_fitted(tmp_path, shape, multiple):
    with pytest.raises(ValueError, match=f'multiples of {multiple}'):
        fit(LabelledImages(torch.zeros(2, *shape), torch.arange(2), 2, 'odd'), tmp_path)

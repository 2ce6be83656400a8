"""make_synthetic.py from the command line: mixtures, and diffusion models resumed, in two processes, with bad input."""
import errno
import json
import os
import shutil
import subprocess
import sys

import make_synthetic
import pytest
import torch

from timm_paf._distributed import Processes
from timm_paf.data import (
    LabelledImages,
    digits_splits,
    manifest_parts,
    open_archive,
    open_archives,
    read_manifest,
    sample_synthetic,
    save_archive,
)
from timm_paf.data.synthetic import distance_to_nearest
from timm_paf.engine.model import build_model

pytest.importorskip('diffusers')

FIT = ['--train', '--train-steps', '3', '--train-width', '8', '--train-batch-size', '16']
DRAW = ['--method', 'diffusion', '--sampler', 'ddim', '--sampling-steps', '2', '--num-images', '55',
        '--part-size', '20', '--batch-size', '16', '--device', 'cpu']


def main(*args):
    return make_synthetic.main([str(arg) for arg in args])


def test_mixture_and_an_existing_archive(tmp_path, capsys):
    path = tmp_path / 'd.npz'
    path.write_bytes(b'precious')
    arguments = ['--dataset', 'digits', '--num-images', '105', '--output', path, '--seed', '4']
    assert main(*arguments) == 2
    assert 'already exists' in capsys.readouterr().err and path.read_bytes() == b'precious'
    assert main(*arguments, '--overwrite') == 0
    shown = capsys.readouterr().out
    assert '105 images' in shown and '[11, 11, 11, 11, 11, 10, 10, 10, 10, 10]' in shown
    data = open_archive(path, num_classes=10)
    assert data.fingerprint() == sample_synthetic(digits_splits().train, 105, seed=4).fingerprint()
    assert os.listdir(tmp_path) == ['d.npz']


def content(folder):
    """Every file of a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthesis') / 'whole'
    assert main(*DRAW, *FIT, '--output', folder) == 0
    return folder


@pytest.fixture(scope='module')
def generator(made, tmp_path_factory):
    return shutil.copytree(made / 'generator', tmp_path_factory.mktemp('generator') / 'ddpm')


@pytest.fixture(scope='module')
def unconditional(generator, tmp_path_factory):
    from diffusers import UNet2DModel
    folder = shutil.copytree(generator, tmp_path_factory.mktemp('generator') / 'unconditional')
    config = json.loads((folder / 'unet' / 'config.json').read_text())
    torch.manual_seed(0)
    UNet2DModel.from_config(config | {'num_class_embeds': None}).save_pretrained(folder / 'unet')
    return folder


@pytest.fixture(scope='module')
def labeller(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('labeller') / 'model.pth.tar'
    model = build_model('wrn10_2_relu', num_classes=10, in_chans=1)
    model.get_classifier().weight.data.mul_(60)  # sure of some images, unsure of others
    torch.save({'arch': 'wrn10_2_relu', 'state_dict': model.state_dict()}, path)
    return path


def test_folder_is_what_its_manifest_says(made):
    manifest = read_manifest(made)
    train = digits_splits().train
    assert manifest['complete'] and manifest['source']['sha256'] == train.fingerprint()
    assert manifest['generator']['trained_here']['train_steps'] == 3
    paths = manifest_parts(made, verify=True)
    assert [path.name for path in paths] == ['part-00000.npz', 'part-00001.npz', 'part-00002.npz']
    data = open_archives(paths, num_classes=10, channels=1)
    images, labels = data.take(torch.arange(len(data)))
    assert labels.bincount().tolist() == manifest['counts']['per_class'] == [6] * 5 + [5] * 5
    assert distance_to_nearest(images, train).min() >= 0.02
    assert not [name for name in content(made) if name.endswith('.tmp')]
    assert str(made.parent) not in (made / 'manifest.json').read_text()


def test_started_again_nothing_is_made_twice(made, capsys):
    before = content(made)
    assert main(*DRAW, *FIT, '--output', made) == 0
    assert content(made) == before and 'part-0' not in capsys.readouterr().out


FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('name, call, error, status', [
    ('diffusion._save', 1, KeyboardInterrupt(), 130), ('parts.save_archive', 2, KeyboardInterrupt(), 130),
    ('parts._write_json', 2, KeyboardInterrupt(), 130), ('parts.save_archive', 2, FULL, 1),
], ids=['before the generator is saved', 'in the second part', 'between a part and its record', 'disk full'])
def test_stopped_and_started_again_is_as_if_it_had_not_been(
        made, tmp_path, monkeypatch, capsys, name, call, error, status):
    command = [*DRAW, *FIT, '--output', tmp_path / 'folder']
    module, function = name.split('.')
    plain, calls = getattr(sys.modules[f'timm_paf.synthesis.{module}'], function), []

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(f'timm_paf.synthesis.{name}', stopping)
        assert main(*command) == status
    shown = capsys.readouterr().err
    assert shown.count('\n') == 1 and str(error) in shown
    assert content(tmp_path / 'folder') != content(made)
    assert main(*command) == 0
    assert content(tmp_path / 'folder') == content(made)


def test_processes_share_the_parts_and_the_result_is_the_same(generator, tmp_path):
    arguments = [*DRAW, '--generator', generator, '--output']
    assert main(*arguments, tmp_path / 'one') == 0
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run(
        [*launcher, make_synthetic.__file__, *map(str, arguments), tmp_path / 'two'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(':')[0] for line in done.stdout.splitlines()]
    assert sorted(lines) == [
        str(tmp_path / 'two'), 'part-00000.npz', 'part-00001.npz', 'part-00002.npz'], done.stdout
    assert content(tmp_path / 'two') == content(tmp_path / 'one')


@pytest.mark.parametrize('method', ['mixture', 'diffusion'])
def test_images_of_an_archive(tmp_path, method):
    """16x16 pixels in colour, of three classes; the images held out by --val-size are not used."""
    train = torch.rand(120, 3, 16, 16).mul(99).byte() + 50 * (torch.arange(120) % 3)[:, None, None, None].byte()
    for name in ('train', 'test'):
        save_archive(tmp_path / f'{name}.npz', LabelledImages(train, torch.arange(120) % 3, 3, name))
    command = ['--dataset', tmp_path / 'train.npz', '--test-data', tmp_path / 'test.npz', '--num-classes', 3,
               '--val-size', 30, '--class-names', 'a', 'b', 'c']
    if method == 'mixture':
        path = tmp_path / 'made.npz'
        assert main(*command, '--output', path, '--num-images', 30, '--components', 4) == 0
    else:
        path = tmp_path / 'made'
        assert main(*command, *DRAW, *FIT, '--output', path, '--num-images', 30) == 0
        assert read_manifest(path)['source']['images'] == 90
        assert read_manifest(path)['class_names'] == ['a', 'b', 'c']
    images, labels = open_archive(path, num_classes=3).take(torch.arange(30))
    assert images.shape == (30, 3, 16, 16) and labels.bincount().tolist() == [10, 10, 10]


def test_labels_are_the_labellers(unconditional, labeller, tmp_path, capsys):
    command = [*DRAW, '--generator', unconditional, '--no-balance', '--output', tmp_path / 'folder']
    assert main(*command) == 2
    assert 'not class-conditional; give --labeller-checkpoint' in capsys.readouterr().err
    assert main(*command, '--labeller-checkpoint', labeller, '--min-confidence', '0.4') == 0
    data = open_archives(manifest_parts(tmp_path / 'folder'), num_classes=10, channels=1)
    images, labels = data.take(torch.arange(len(data)))
    model = build_model('wrn10_2_relu', num_classes=10, in_chans=1).eval()
    model.load_state_dict(torch.load(labeller, weights_only=True)['state_dict'])
    confidence, expected = model(images.float() / 255).softmax(1).max(1)
    assert torch.equal(labels, expected) and confidence.min() >= 0.4
    manifest = read_manifest(tmp_path / 'folder')
    assert manifest['labeller']['model'] == 'wrn10_2_relu'
    assert manifest['counts']['rejected']['low_confidence'] > 0


MIXTURE = ['--method', 'mixture', '--output', 'd.npz']
BAD = {
    'no output': (['--output', ''], '--output is missing'),
    'mixture: too few': ([*MIXTURE, '--num-images', '9'], 'at least one for each of 10'),
    'mixture with a generator': ([*FIT, *MIXTURE], '--train belongs to --method diffusion'),
    'no generator': ([], '--generator FOLDER or --train'),
    'no such generator': (['--generator', 'nowhere'], '--generator = nowhere'),
    'an archive': ([*FIT, '--output', 'd.npz'], 'give the name of a folder'),
    'no such parent': ([*FIT, '--output', 'a/b'], 'the folder a does not exist'),
    'overwrite': ([*FIT, '--overwrite'], '--overwrite belongs to --method mixture'),
    'too much sampling': ([*FIT, '--sampling-steps', '1001'], 'at most 1000'),
    'width': ([*FIT, '--train-width', '12'], 'a multiple of 8'),
    'confidence of nobody': ([*FIT, '--min-confidence', '0.5'], 'need --labeller-checkpoint'),
    'nobody to label': ([*FIT, '--no-conditional'], '--no-conditional needs --labeller-checkpoint'),
    'no such checkpoint': ([*FIT, '--labeller-checkpoint', 'nowhere.pth'], 'nowhere.pth'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    assert main(*DRAW, '--output', 'folder', *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''
    assert not os.listdir(tmp_path)


def test_fitting_needs_one_process_and_diffusers(tmp_path, monkeypatch, capsys):
    two = Processes(torch.device('cpu'), rank=0, world_size=2)
    monkeypatch.setattr(make_synthetic, 'start_processes', lambda device: two)
    assert main(*DRAW, *FIT, '--output', tmp_path / 'folder') == 2
    assert '--train runs in one process' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    assert main(*DRAW, *FIT, '--output', tmp_path / 'folder') == 2
    assert 'pip install "timm-paf[synthetic]"' in capsys.readouterr().err

"""Class names: a class has one number in all images of a run, of a later run and of a measurement, or is refused."""
import contextlib
import json
import os

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import FAST, open_measurement, open_trainer, rows_of, train
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

from timm_paf._distributed import Processes
from timm_paf.data import LabelledImages, open_archive
from timm_paf.engine import Measurement, TrainConfig, Trainer, ValidateConfig, validate
from timm_paf.engine import train as train_command
from timm_paf.engine.classes import check_same_classes

# each class has its own level of gray, so that a label can be told from a pixel
GRAY = {'a': 30, 'b': 90, 'c': 150, 'd': 210, '0': 30, '1': 90, '2': 150, '00': 30, '01': 90, '02': 150}
FOLDER = ['--dataset', 'folder', '--test-split', 'val', '--img-size', '8', '--crop-pct', '1', '--in-chans', '1',
          '--train-crop-mode', 'resize', '--workers', '0', '--synthetic-fraction', '0']
SHORT = ['--val-size', '3', '--batch-size', '6', '--updates-per-epoch', '2', '--epochs', '1']


def folder(root, names, count=4):
    """One folder of images per class."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8), GRAY[name], np.uint8)).save(root / name / f'{number}.png')
    return root


def archive(path, names, count=4, *, named=True):
    """An archive whose classes are numbered in the order of `names`, which it holds if `named`."""
    labels = np.arange(len(names)).repeat(count)
    image = np.array([GRAY[name] for name in names], np.uint8)[labels][:, None, None, None].repeat(8, 1).repeat(8, 2)
    np.savez(path, image=image, label=labels, **({'class_names': np.array(list(names))} if named else {}))
    return path


def tree(root, train, val):
    folder(root / 'train', train)
    folder(root / 'val', val)
    return root


def numbers(source):
    """{gray: set of labels} of all images of a source."""
    images, labels = source.take(torch.arange(len(source)))
    images = images if images.dtype == torch.uint8 else (255 * images).round().to(torch.uint8)
    found = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        found.setdefault(int(image.flatten()[0]), set()).add(label)
    return found


def by_name(names):
    return {GRAY[name]: {number} for number, name in enumerate(names)}


def opened(tmp_path, *argv):
    return open_trainer([*FAST, '--model', 'tiny_smooth', '--output', str(tmp_path / 'out'), *SHORT, *map(str, argv)])


# training folders, those of the test split; what is refused, or nothing
TREES = {
    'the same': ('abc', 'abc', ''),
    'one missing in the test split': ('abc', 'bc', ''),
    'as many, but others': ('abc', 'bcd', 'val.* class d'),
    'one more in the test split': ('abc', 'abcd', 'val.* class d'),
    'numbers with zeros': (['0', '1', '2'], ['00', '01', '02'], ''),
}


@pytest.mark.parametrize('case', TREES)
def test_test_folders(tmp_path, case):
    names, others, message = TREES[case]
    root = tree(tmp_path / 'data', names, others)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        trainer = opened(tmp_path, *FOLDER, '--data-dir', root)
        assert trainer.config.class_names == tuple(names)
        assert numbers(trainer.data.real) == numbers(trainer.val) == by_name(names)
        assert numbers(trainer.test) == {GRAY[name]: {names.index(str(int(name)) if name.isdigit() else name)}
                                         for name in others}
        assert trainer.model.fc.out_features == len(names)


# form and names of training, test and synthetic images; the part that is refused or of which a line speaks
ARCHIVES = {
    'folders': (folder, 'abc', folder, 'bc', folder, 'abc', '', ''),
    'folders, others': (folder, 'abc', folder, 'bcd', folder, 'abc', 'class d', ''),
    'synthetic folder lacks one': (folder, 'abc', folder, 'abc', folder, 'ac', '', ''),
    'synthetic folder has others': (folder, 'abc', folder, 'abc', folder, 'abd', 'class d', ''),
    'archives in another order': (archive, 'abc', archive, 'cab', archive, 'bca', '', ''),
    'archive against a folder': (archive, 'cab', folder, 'abc', folder, 'abc', '', ''),
    'folder against an archive': (folder, 'abc', archive, 'bca', archive, 'ca', '', ''),
    'an archive without names': (folder, 'abc', 'nameless', 'abc', archive, 'cab', '', 'test images'),
    'synthetic without names': (folder, 'abc', archive, 'abc', 'nameless', 'abc', '', 'synthetic images'),
    'training without names': ('nameless', 'abc', folder, 'abc', 'nameless', 'abc', '', 'test images'),
    'numbers for names': (folder, 'abc', folder, 'abc', folder, '012', '', 'synthetic images'),
    'numbers beyond the names': (archive, 'ab', archive, 'ab', folder, '012', 'class 2', ''),
    'numbers for names in an archive': (archive, 'abc', archive, 'abc', archive, '012', '', 'synthetic images'),
    'nobody has names': ('nameless', 'abc', 'nameless', 'abc', 'nameless', 'abc', '', None),
}


@pytest.mark.parametrize('case', ARCHIVES)
def test_archives_and_synthetic_images(tmp_path, case):
    *parts, message, line = ARCHIVES[case]
    names = parts[1]
    paths = []
    for number, (make, classes) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if make is folder:
            paths.append(folder(tmp_path / str(number), classes))
        else:
            paths.append(archive(tmp_path / f'{number}.npz', classes, named=make is archive))
    argv = ['--dataset', paths[0], '--test-data', paths[1], '--synthetic', paths[2], '--in-chans', '1',
            '--synthetic-fraction', '0.5', *(['--num-classes', 3] if parts[0] == 'nameless' else [])]
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        trainer = opened(tmp_path, *argv)
        (synthetic,) = trainer.data.synthetic
        assert numbers(trainer.data.real) == by_name(names)
        for source, classes in ((trainer.test, parts[3]), (synthetic, parts[5])):
            assert numbers(source) == {GRAY[name]: {'012'.find(name) if name in '012' else names.index(name)}
                                       for name in classes}
        told = [note for note in trainer.notes if 'by number' in note]
        assert [note for note in told if line and note.startswith(line)] == told
        assert bool(told) == bool(line)


GIVEN = {
    'another number of classes': (['--num-classes', 4], '4 classes, but .* has 3|has 3 classes, but .* 4'),
    'other names': (['--class-names', *'abd'], 'class c'),
    'one name more': (['--class-names', *'abcd'], 'no image of class d'),
    'the same number': (['--num-classes', 3], ''),
    'another order': (['--class-names', *'cab'], ''),
}


@pytest.mark.parametrize('case', GIVEN)
def test_flags_against_the_data(tmp_path, case):
    argv, message = GIVEN[case]
    root = tree(tmp_path / 'data', 'abc', 'ab')
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        trainer = opened(tmp_path, *FOLDER, '--data-dir', root, *argv)
        names = argv[1:] if argv[0] == '--class-names' else 'abc'
        assert trainer.config.class_names == tuple(names)
        assert numbers(trainer.data.real) == numbers(trainer.val) == by_name(names)
        assert numbers(trainer.test) == {GRAY[name]: {names.index(name)} for name in 'ab'}


def test_folders_of_numbers_that_get_names_are_still_cropped_at_random(tmp_path):
    root = tree(tmp_path / 'data', '012', '01')
    trainer = opened(tmp_path, *FOLDER, '--data-dir', root, '--class-names', *'abc')
    assert trainer.config.class_names == tuple('abc') and hasattr(trainer.data.real, 'prefetch')
    assert numbers(trainer.data.real) == numbers(trainer.val) == by_name('abc')
    assert numbers(trainer.test) == by_name('ab')


def test_flags_give_names_to_archives(tmp_path):
    paths = [archive(tmp_path / 'train.npz', 'cab', named=False), folder(tmp_path / 'test', 'abc')]
    trainer = opened(tmp_path, '--dataset', paths[0], '--test-data', paths[1], '--in-chans', 1, '--synthetic-fraction',
                     0, '--num-classes', 3, '--class-names', *'cab')
    assert numbers(trainer.data.real) == numbers(trainer.test) == by_name('cab')


def tensor_folder(root, **more):
    return ImageFolder(root, lambda image: torch.from_numpy(np.array(image)[..., 0])[None], **more)


def test_names_that_reports_cannot_hold_are_refused(tmp_path):
    """A folder from a file system with Latin-1 names."""
    root = folder(tmp_path / 'data', 'abc')
    os.rename(os.fsencode(root / 'c'), os.fsencode(root) + b'/caf\xe9')
    with pytest.raises(ValueError, match=r"class name 'caf\\udce9' is not UTF-8"):
        opened(tmp_path, '--dataset', root, '--test-data', root, '--in-chans', '1', '--synthetic-fraction', '0')


OWN = {
    'folders that number alike': (
        lambda root: ConcatDataset([tensor_folder(root / 'train'), tensor_folder(root / 'train')]), ''),
    'folders that number differently': (
        lambda root: ConcatDataset([tensor_folder(root / 'train'), tensor_folder(root / 'val')]), 'without a'),
    'a folder that lacks one': (lambda root: tensor_folder(root / 'val'), ''),
    'a part of a folder': (lambda root: Subset(tensor_folder(root / 'val'), [0, 4, 5]), ''),
    'a source in another order': (lambda root: LabelledImages(
        torch.tensor([150, 30], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8), torch.tensor([0, 1]), 2, 'own',
        ('c', 'a')), ''),
    'arrays': (lambda root: (torch.full((2, 1, 8, 8), 90, dtype=torch.uint8), torch.tensor([1, 1])), 'by number'),
    'arrays with another class': (
        lambda root: (torch.full((2, 1, 8, 8), 90, dtype=torch.uint8), torch.tensor([1, 3])), 'labels from 1 to 3'),
    'other classes': (lambda root: tensor_folder(root / 'other'), 'class d'),
}


@pytest.mark.parametrize('case', OWN)
@pytest.mark.parametrize('place', ['val', 'test'])
def test_own_images_in_python(tmp_path, case, place):
    make, message = OWN[case]
    root = tree(tmp_path / 'data', 'abc', 'bc')
    folder(root / 'other', 'abd')
    config = TrainConfig(model='tiny_smooth', output=str(tmp_path / 'out'), val_size=3, batch_size=6, device='cpu')
    with pytest.raises(ValueError, match=message) if message and message != 'by number' else contextlib.nullcontext():
        trainer = Trainer(config, train=tensor_folder(root / 'train'), **{place: make(root)})
        assert trainer.config.class_names == tuple('abc') and numbers(trainer.data.real) == by_name('abc')
        images = numbers(getattr(trainer, place))
        assert images and images.items() <= by_name('abc').items()
        assert any('by number' in note for note in trainer.notes) == (message == 'by number')


def test_labels_that_a_data_set_changes_are_not_those_of_its_names(tmp_path):
    root = folder(tmp_path / 'data', 'abc')
    config = TrainConfig(model='tiny_smooth', output=str(tmp_path / 'out'), val_size=3, batch_size=6, device='cpu')
    trainer = Trainer(config, train=tensor_folder(root, target_transform=lambda label: 2 - label))
    assert trainer.config.class_names == ()
    assert numbers(trainer.data.real) == numbers(trainer.val) == by_name('cba')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run on three folders."""
    root = tmp_path_factory.mktemp('run')
    tree(root / 'data', 'abc', 'bc')
    assert train(root, *FOLDER, '--data-dir', str(root / 'data'), *SHORT, '--checkpoint-hist', '2') == 0
    return root


def test_names_are_kept_with_the_results(run):
    checkpoint = torch.load(run / 'run' / 'model_best.pth.tar', weights_only=True)
    report = json.loads((run / 'run' / 'report.json').read_text())
    settings = yaml.safe_load((run / 'run' / 'args.yaml').read_text())
    assert TrainConfig.from_yaml(run / 'run' / 'args.yaml').class_names == tuple('abc')
    assert checkpoint['args']['class_names'] == settings['class_names'] == report['class_names'] == list('abc')
    assert [entry['label'] for entry in report['by_class']] == [1, 2]
    page = (run / 'run' / 'report.html').read_text()
    assert '1 (b)' in page and 'a, b, c' in page


# images of a later measurement; message if they are refused, or a line that is shown, or nothing
LATER = {
    'the run\'s': (lambda root: [], ''),
    'folders in which one is missing': (
        lambda root: ['--dataset', 'folder', '--data-dir', str(tree(root, 'ac', 'ca'))], ''),
    'folders with one more': (lambda root: ['--dataset', 'folder', '--data-dir', str(tree(root, 'abcd', 'ab'))],
                              'class d'),
    'an archive in another order': (lambda root: [
        '--dataset', str(archive(root.with_suffix('.npz'), 'cba')), '--test-data',
        str(archive(root.with_name('t.npz'), 'bac'))], ''),
    'an archive without names': (lambda root: [
        '--dataset', str(archive(root.with_suffix('.npz'), 'abc', named=False)), '--num-classes', '3', '--test-data',
        str(archive(root.with_name('t.npz'), 'abc', named=False))], 'compared by number'),
    'an archive of four classes': (lambda root: [
        '--dataset', str(archive(root.with_suffix('.npz'), 'abcd', named=False)), '--num-classes', '4', '--test-data',
        str(archive(root.with_name('t.npz'), 'abcd', named=False))], '4 classes'),
    'flags that differ': (lambda root: ['--class-names', 'a', 'b', 'd'], '--class-names'),
}


@pytest.mark.parametrize('case', LATER)
def test_a_later_measurement(run, tmp_path, capsys, case):
    make, message = LATER[case]
    argv = [*FOLDER[2:-2], '--val-size', '2', *make(tmp_path / 'later')]
    argv += ['--checkpoint', str(run / 'run' / 'model_best.pth.tar'), '--device', 'cpu', '--pgd-steps', '1',
             '--no-trust', '--autoattack', 'none']
    if message and message != 'compared by number':
        assert validate(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
        return
    measurement = open_measurement(argv)
    found = numbers(measurement.data)
    assert found and found.items() <= by_name('abc').items()
    measurement.write(measurement.run())
    assert ('by number' in capsys.readouterr().out) == bool(message)
    assert measurement.model.fc.out_features == 3


CORRUPTED = {  # lines of class_names.txt, labels; message if it is refused
    'no names': (None, [2, 1], ''), 'another order': ('bca', [1, 0], ''), 'one missing': ('bc', [1, 0], ''),
    'another class': ('bcd', [1, 0], 'class d'), 'a number too large': (None, [3, 1], 'labels from 1 to 3'),
}


@pytest.mark.parametrize('case', CORRUPTED)
def test_corrupted_images(run, tmp_path, capsys, case):
    names, labels, message = CORRUPTED[case]
    np.save(tmp_path / 'labels.npy', labels)
    np.save(tmp_path / 'fog.npy', np.zeros((10, 8, 8, 1), np.uint8))
    if names:
        (tmp_path / 'class_names.txt').write_text('\n'.join(names) + '\n')
    argv = ['--checkpoint', str(run / 'run' / 'last.pth.tar'), '--device', 'cpu', '--corruptions', str(tmp_path)]
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        measurement = open_measurement(argv)
        assert measurement.corruptions.labels.tolist() == [2, 1]  # c, b
        assert any(note.startswith('corrupted images') for note in measurement.notes) == (names is None)


def test_attacked_images_keep_the_names(run, tmp_path):
    path = tmp_path / 'attacked.npz'
    assert validate([
        '--checkpoint', str(run / 'run' / 'last.pth.tar'), '--device', 'cpu', '--pgd-steps', '1', '--n-examples', '2',
        '--save-adv', str(path), '--no-trust', '--eps', '0.001']) == 0
    assert open_archive(path).class_names == tuple('abc')


def test_a_later_measurement_in_python(run):
    config = ValidateConfig(checkpoint=str(run / 'run' / 'model_best.pth.tar'), device='cpu')
    measurement = Measurement(config, data=tensor_folder(run / 'data' / 'val'))
    assert numbers(measurement.data) == {90: {1}, 150: {2}}


RESUMED = {
    'a new class': (lambda data: folder(data / 'train', 'd'), 'd'),
    'a renamed class': (lambda data: (data / 'train' / 'c').rename(data / 'train' / 'd'), 'd'),
    'nothing': (lambda data: None, ''),
}


@pytest.mark.parametrize('case', RESUMED)
@pytest.mark.parametrize('way', ['auto', 'path'])
def test_a_resumed_run(tmp_path, capsys, case, way):
    change, name = RESUMED[case]
    data = tree(tmp_path / 'data', 'abc', 'ab')
    argv = [*FOLDER, '--data-dir', str(data), *SHORT[:-1], '2']
    assert train(tmp_path, *argv) == 0
    (tmp_path / 'run' / 'report.json').unlink()
    change(data)
    capsys.readouterr()
    status = train(tmp_path, *argv, '--resume', 'auto') if way == 'auto' else train_command(
        ['--resume', str(tmp_path / 'run')])
    error = capsys.readouterr().err
    assert status == (2 if name else 0) and error.count('\n') == bool(name)
    assert f'class {name}' in error or f'with {name}' in error if name else len(rows_of(tmp_path / 'run')) == 2


@pytest.mark.parametrize('names, size, message', [
    ('abc', 5, ''), ('acb', 5, 'in another order'), ('abd', 5, 'without c, with d'), ('abc', 4, r'\(3, 4\)')])
def test_processes_have_the_same_classes(names, size, message):
    class Two(Processes):
        def all_gather_object(self, value):
            return [value, (tuple(names), 3, size)]

    source = LabelledImages(torch.zeros(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1]), 3, 'train', tuple('abc'))
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check_same_classes(Two(torch.device('cpu'), world_size=2), tuple('abc'), source)

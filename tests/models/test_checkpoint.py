import argparse
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_paf  # noqa: F401
from timm_paf.models import load_weights, read_checkpoint, select_state_dict


def model(name='wrn10_2_pssilu', **kwargs):
    return timm.create_model(name, in_chans=1, **kwargs)


class Payload:
    def __init__(self, function=print, *arguments):
        self.call = function, arguments or ('this must never be printed',)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('value', [
    np.float64(91.25), np.float32(0.5), np.int64(3), np.bool_(True), np.str_('best'), np.dtype('float32'),
    argparse.Namespace(lr=np.float64(0.1))], ids=str)
def test_numpys_scalars_are_read(tmp_path, value):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'value': value}, tmp_path / 'c.pt')
    found = read_checkpoint(tmp_path / 'c.pt')['value']
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize('value, words', [
    (Payload(), 'print'), (torch.nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'), (np.zeros(2), '_reconstruct'),
    (Payload(np.dtype, 'O'), 'dtype O'), (np.zeros(1, [('a', 'O')])[0], 'numpy'),
    (Payload(os.getenv, 'HOME'), 'getenv'),
], ids=['function', 'module', 'array', 'objects', 'record', 'os'])
def test_other_objects_are_refused_in_a_readable_line(tmp_path, capsys, value, words):
    torch.save({'state_dict': {'a': torch.ones(1)}, 'value': value}, tmp_path / 'c.pt')
    with pytest.raises(ValueError, match=words) as caught:
        read_checkpoint(tmp_path / 'c.pt')
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert 'never be printed' not in capsys.readouterr().out


@pytest.mark.parametrize('wrap, use_ema, source', [
    (lambda raw, average: {'state_dict': raw, 'state_dict_ema': average, 'epoch': 3}, None, 'state_dict_ema'),
    (lambda raw, average: {'state_dict': raw, 'state_dict_ema': average}, False, 'state_dict'),
    (lambda raw, average: raw, None, 'weights'),
    (lambda raw, average: {'state_dict': {f'module.{key}': v for key, v in raw.items()}}, None, 'state_dict'),
    (lambda raw, average: {'model': {f'_orig_mod.{key}': v for key, v in raw.items()}, 'args': argparse.Namespace(a=1)},
     None, 'model'),
    (lambda raw, average: {'state_dict': {}, 'model_ema': average}, None, 'model_ema'),
    (lambda raw, average: {'state_dict': raw, 'swadict': average}, None, 'state_dict'),
    (lambda raw, average: {'state_dict': raw, 'swadict': {f'module.{key}': v for key, v in average.items()}},
     True, 'swadict'),
    (lambda raw, average: {'unaveraged_model_state_dict': raw, 'model_state_dict': average}, None, 'model_state_dict'),
    (lambda raw, average: {'unaveraged_model_state_dict': raw, 'model_state_dict': average}, False,
     'unaveraged_model_state_dict'),
    (lambda raw, average: {'state_dict': raw, 'swa': {
        'n_averaged': torch.tensor(2), **{f'module.{key}': v for key, v in average.items()}}}, None, 'swa'),
    (lambda raw, average: {'best': raw, 'last': average}, None, 'last'),
], ids=['both', 'raw', 'bare', 'data parallel', "timm's train.py, compiled", 'averaged alone', 'authors',
        'authors, average', 'DM-Improves-AT', 'DM-Improves-AT, raw', 'AveragedModel', 'RobustBench, last'])
def test_choice_of_weights(tmp_path, wrap, use_ema, source):
    raw, average = model().state_dict(), model().state_dict()
    torch.save(wrap(raw, average), tmp_path / 'c.pth')
    target = model()
    assert load_weights(target, tmp_path / 'c.pth', use_ema=use_ema) == source
    expected = raw if source in ('state_dict', 'weights', 'model', 'unaveraged_model_state_dict') else average
    assert all(torch.equal(v, expected[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize('checkpoint', [{'state_dict': {}}, {'state_dict': {'a': torch.zeros(1)}, 'swadict': {}}],
                         ids=['none', 'empty'])
def test_missing_average(checkpoint):
    with pytest.raises(ValueError, match='no averaged weights'):
        select_state_dict(checkpoint, use_ema=True)


@pytest.mark.parametrize('write, error, message', [
    (lambda p: None, FileNotFoundError, 'no such file'),
    (lambda p: p.write_bytes(b'not a checkpoint'), ValueError, 'cannot be read'),
    (lambda p: torch.save([1, 2], p), ValueError, 'holds a list; expected a dictionary'),
    (lambda p: torch.save({'epoch': 1, 'note': 'x'}, p), ValueError, 'holds no state_dict; it holds epoch, note'),
    (lambda p: p.write_bytes(pickle.dumps(Payload())), ValueError, 'cannot be read'),
    (lambda p: torch.save(model('wrn10_2_relu').state_dict(), p), ValueError,
     'does not fit WideResNet: weights for wrn10_2_pssilu: the file has no parametric activation'),
    (lambda p: torch.save(model(num_classes=3).state_dict(), p), ValueError,
     r'does not fit WideResNet: .* fc\.weight has shape \(3, 128\), expected \(10, 128\)'),
], ids=['absent', 'text', 'list', 'foreign', 'pickle', 'other activation', 'other classes'])
def test_bad_files_are_named_and_change_nothing(tmp_path, capsys, write, error, message):
    path = tmp_path / 'c.pth.tar'
    write(path)
    target = model()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_weights(target, path)
    assert str(path) in str(caught.value) or 'holds no state_dict' in message
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert 'never be printed' not in capsys.readouterr().out


@pytest.mark.parametrize('name, save', [
    ('c.pth', torch.save), ('c.safetensors', save_file)], ids=['torch', 'safetensors'])
def test_whole_and_truncated_files(tmp_path, name, save):
    path, source, target = tmp_path / name, model(), model()
    save(source.state_dict(), path)
    assert load_weights(target, path) == 'weights'
    assert torch.equal(target.fc.weight, source.fc.weight)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match='cannot be read'):
        read_checkpoint(path)

import argparse
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_paf  # noqa: F401
from timm_paf.models import load_weights, read_checkpoint, select_state_dict


def model(name='wrn10_2_pssilu', **kwargs):
    return timm.create_model(name, in_chans=1, **kwargs)


class Payload:
    def __reduce__(self):
        return print, ('this must never be printed',)


@pytest.mark.parametrize('use_ema, expected, source', [
    (None, 2., 'state_dict_ema'), (True, 2., 'state_dict_ema'), (False, 1., 'state_dict')])
def test_choice_of_weights(tmp_path, use_ema, expected, source):
    raw, average = model().state_dict(), model().state_dict()
    raw['layer1.0.act1.alpha'][:], average['layer1.0.act1.alpha'][:] = 1., 2.
    torch.save({'state_dict': raw, 'state_dict_ema': average, 'epoch': 3}, tmp_path / 'c.pth.tar')
    target = model()
    assert load_weights(target, tmp_path / 'c.pth.tar', use_ema=use_ema) == source
    assert target.act.alpha.item() == expected


def test_bare_state_dict(tmp_path):
    torch.save(model().state_dict(), tmp_path / 'c.pth')
    assert load_weights(model(), tmp_path / 'c.pth') == 'weights'


@pytest.mark.parametrize('write, error, message', [
    (lambda p: None, FileNotFoundError, 'there is no such file'),
    (lambda p: p.write_bytes(b'not a checkpoint'), ValueError, 'cannot be read'),
    (lambda p: p.write_bytes(b''), ValueError, 'cannot be read'),
    (lambda p: torch.save([1, 2], p), ValueError, 'holds a list; expected a dictionary'),
    (lambda p: torch.save({'epoch': 1, 'note': 'x'}, p), ValueError, 'holds no state_dict; it holds epoch, note'),
    (lambda p: torch.save({'state_dict': Payload()}, p), ValueError, 'cannot be read'),
    (lambda p: p.write_bytes(pickle.dumps(Payload())), ValueError, 'cannot be read'),
    (lambda p: torch.save(model('wrn10_2_relu').state_dict(), p), ValueError,
     'does not fit WideResNet: weights for wrn10_2_pssilu: the file has no parametric activation'),
    (lambda p: torch.save(model(num_classes=3).state_dict(), p), ValueError,
     r'does not fit WideResNet: .* fc\.weight has shape \(3, 128\), expected \(10, 128\)'),
], ids=['absent', 'text', 'empty', 'list', 'foreign', 'object', 'pickle', 'other activation', 'other classes'])
def test_bad_files_are_named_and_change_nothing(tmp_path, capsys, write, error, message):
    path = tmp_path / 'c.pth.tar'
    write(path)
    target = model()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        load_weights(target, path)
    assert str(path) in str(caught.value) or 'holds no state_dict' in message
    assert '\n' not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert 'never be printed' not in capsys.readouterr().out


@pytest.mark.parametrize('name, save', [
    ('c.pth', torch.save), ('c.safetensors', save_file)], ids=['torch', 'safetensors'])
def test_truncated_file(tmp_path, name, save):
    path = tmp_path / name
    save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match='cannot be read'):
        read_checkpoint(path)


def test_averaged_weights_that_are_not_there():
    with pytest.raises(ValueError, match='no averaged weights'):
        select_state_dict({'state_dict': {}}, use_ema=True)


@pytest.mark.parametrize('wrap', [
    lambda s: {'state_dict': {f'module.{key}': value for key, value in s.items()}},
    lambda s: {'model': {f'_orig_mod.{key}': value for key, value in s.items()}, 'args': argparse.Namespace(lr=0.1)},
    lambda s: {'state_dict': {}, 'model_ema': s},
], ids=['data parallel', "timm's train.py, compiled", 'averaged'])
def test_wrappers(tmp_path, wrap):
    source, target = model(), model()
    torch.save(wrap(source.state_dict()), tmp_path / 'c.pth')
    load_weights(target, tmp_path / 'c.pth')
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_safetensors(tmp_path):
    source, target = model(), model()
    save_file(source.state_dict(), tmp_path / 'c.safetensors')
    assert load_weights(target, tmp_path / 'c.safetensors') == 'weights'
    assert torch.equal(target.fc.weight, source.fc.weight)


@pytest.mark.parametrize('use_ema, source', [(None, 'state_dict'), (False, 'state_dict'), (True, 'swadict')])
def test_the_authors_average_is_taken_when_asked_for(use_ema, source):
    checkpoint = {'state_dict': {'a': torch.zeros(1)}, 'swadict': {'module.a': torch.ones(1)}}
    weights, found = select_state_dict(checkpoint, use_ema=use_ema)
    assert found == source and weights == {'a': torch.full((1,), float(source == 'swadict'))}


def test_an_empty_average_of_the_authors_is_none():
    with pytest.raises(ValueError, match='no averaged weights'):
        select_state_dict({'state_dict': {'a': torch.zeros(1)}, 'swadict': {}}, use_ema=True)

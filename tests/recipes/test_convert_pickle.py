"""convert_pickle.py: arrays are converted bit for bit, and nothing else in a pickle is run."""
import os
import pickle
import pickletools
import re

import numpy as np
import pytest
from convert_pickle import main

from timm_paf.data import open_archive

NHWC = np.random.RandomState(0).randint(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABEL = np.array([0, 1, 2, 2, 1, 0])


def convert(tmp_path, content, *flags):
    (tmp_path / 'a.pickle').write_bytes(content)
    return main([str(tmp_path / 'a.pickle'), '--output', str(tmp_path / 'a.npz'), '--num-classes', '3', *flags])


def ti(data=NHWC, targets=LABEL, **more):
    return {'data': data, 'extrapolated_targets': targets, **more}


GOOD = {
    **{f'protocol {p}': (lambda p=p: pickle.dumps(ti(), protocol=p)) for p in (0, 2, 4, 5)},
    'NCHW': lambda: pickle.dumps(ti(np.ascontiguousarray(NHWC.transpose(0, 3, 1, 2)))),
    'Fortran order': lambda: pickle.dumps(ti(np.asfortranarray(NHWC))),
    'big-endian labels': lambda: pickle.dumps(ti(targets=LABEL.astype('>i4'))),
    'labels as a list': lambda: pickle.dumps(ti(targets=LABEL.tolist())),
    'labels as a list of numpy numbers': lambda: pickle.dumps(ti(targets=list(LABEL))),
    'other members': lambda: pickle.dumps(ti(ti_index=np.arange(6), note='text', sizes={'a': (1, None)})),
    'keys as bytes': lambda: pickle.dumps({key.encode(): value for key, value in ti().items()}),
    'numpy 1': lambda: pickle.dumps(ti(), protocol=2).replace(b'numpy._core', b'numpy.core'),
}


@pytest.mark.parametrize('case', GOOD)
def test_arrays_come_through(tmp_path, case):
    assert convert(tmp_path, GOOD[case]()) == 0
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as archive:
        assert archive['image'].dtype == np.uint8 and np.array_equal(archive['image'], NHWC)
        assert archive['label'].dtype == np.int64 and np.array_equal(archive['label'], LABEL)
    assert len(open_archive(tmp_path / 'a.npz', num_classes=3)) == 6


class Call:
    """Pickles as a call of something, which plain unpickling would make."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def altering(names):
    """A pickle that takes something by name and sets an attribute of it, as BUILD can with a pair of dictionaries."""
    return b'\x80\x02c' + names + b'N}U\x0c__defaults__)s\x86b.'


REFUSED = {
    'a function that is altered': (lambda path: altering(b'_codecs\nencode\n'), 'not a readable pickle'),
    'a class that is altered': (lambda path: altering(b'numpy\nndarray\n'), 'not a readable pickle'),
    'system call': (lambda path: pickle.dumps(ti(x=Call(os.system, f'touch {path}'))), r'posix\.system|nt\.system'),
    'open': (lambda path: pickle.dumps(ti(x=Call(open, str(path), 'w'))), r'_?io\.open'),
    'eval': (lambda path: pickle.dumps(Call(eval, f'open({str(path)!r}, "w")')), r'builtins\.eval'),
    'import by numpy': (
        lambda path: b'cnumpy.testing._private.utils\nrunstring\n(S"open(%a)"\n(dtR.' % str(path), 'numpy.testing'),
    'a dotted name': (lambda path: b'\x80\x04\x8c\x05numpy\x8c\x0bos.getcwd()\x93.', r'numpy\.os\.getcwd'),
    'array of objects': (lambda path: pickle.dumps(ti(targets=LABEL.astype(object))), "dtype 'O8'"),
    'array of text': (lambda path: pickle.dumps(ti(targets=LABEL.astype(str))), "dtype 'U"),
    'structured array': (lambda path: pickle.dumps(ti(targets=LABEL.view([('a', 'i8')]))), "dtype 'V8'"),
    'shape that is not there': (
        lambda path: pickle.dumps(ti(), protocol=2).replace(b'K\x06K\x05K\x04K\x03t', b'K\x07K\x05K\x04K\x03t'),
        'size 360'),
    'no dictionary': (lambda path: pickle.dumps([NHWC]), 'dictionary'),
    'truncated': (lambda path: pickle.dumps(ti())[:-100], 'not a readable pickle'),
    'text': (lambda path: b'<html>', 'not a readable pickle'),
    'empty': (lambda path: b'', 'not a readable pickle'),
    'no data': (lambda path: pickle.dumps({'extrapolated_targets': LABEL}), r"'data', only \['extrapolated_targets'\]"),
    'float images': (lambda path: pickle.dumps(ti(NHWC / 255)), 'expected .* uint8'),
    'label out of range': (lambda path: pickle.dumps(ti(targets=LABEL + 1)), 'labels from 1 to 3, expected 0 to 2'),
    'labels of another length': (lambda path: pickle.dumps(ti(targets=LABEL[:5])), r'\(5,\) for 6 images'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_anything_else_is_refused_and_not_run(tmp_path, capsys, case):
    make, message = REFUSED[case]
    bomb = tmp_path / 'exploded'
    assert convert(tmp_path, make(bomb)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count('\n') == 1 and str(tmp_path / 'a.pickle') in error
    assert not bomb.exists() and not (tmp_path / 'a.npz').exists()


def test_the_bombs_would_explode(tmp_path):
    # otherwise the test above would pass whatever the command does
    make, _ = REFUSED['open']
    pickle.loads(make(tmp_path / 'exploded'))['x'].close()
    assert (tmp_path / 'exploded').exists()
    assert any(op.name == 'REDUCE' for op, _, _ in pickletools.genops(REFUSED['system call'][0](tmp_path)))


def test_other_keys_an_existing_archive_and_no_such_file(tmp_path, capsys):
    content = pickle.dumps({'x': NHWC, 'y': LABEL})
    flags = ['--image-key', 'x', '--label-key', 'y']
    assert [convert(tmp_path, content, *flags) for _ in range(2)] == [0, 2]
    assert '--overwrite' in capsys.readouterr().err
    assert convert(tmp_path, content, *flags, '--overwrite') == 0
    (tmp_path / 'a.pickle').unlink()
    assert main([str(tmp_path / 'a.pickle'), '--output', str(tmp_path / 'b.npz')]) == 2
    assert 'a.pickle' in capsys.readouterr().err

import numpy as np
import pytest
import torch

from timm_paf.attacks import AutoAttackResult, pointwise_worst_case, write_verdicts
from timm_paf.data import open_archives

B = torch.tensor


def test_worst_case_per_image():
    clean = B([True, True, True, True, False])
    robust, broken_by = pointwise_worst_case(clean, {
        'pgd': B([True, False, True, False, False]), 'square': B([True, True, False, False, True])})
    assert robust.tolist() == [True, False, False, False, False]
    assert broken_by == (None, 'pgd', 'square', 'pgd', 'clean')
    assert clean.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize('mask', [B([True]), B([1, 0])], ids=['count', 'dtype'])
def test_masks_of_other_images_are_refused(mask):
    with pytest.raises(ValueError, match='mask of pgd'):
        pointwise_worst_case(B([True, True]), {'pgd': mask})


def test_saved_images_are_the_images(tmp_path):
    x, y = torch.rand(3, 3, 5, 5), B([2, 0, 1])
    result = AutoAttackResult(y > 1, y < 1, x, ('square',), (), (None, 'square', 'clean'))
    result.save(tmp_path / 'adv.npz', y)
    with np.load(tmp_path / 'adv.npz', allow_pickle=False) as content:
        assert content['image'].dtype == np.float32 and np.array_equal(content['image'], x.numpy())
        assert content['label'].tolist() == [2, 0, 1]
        assert content['broken_by'].tolist() == ['', 'square', 'clean']
    assert len(open_archives([str(tmp_path / 'adv.npz')], num_classes=3, channels=3)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['adv.npz']


def test_verdicts_as_a_table(tmp_path):
    write_verdicts(
        tmp_path / 'verdicts.csv', B([2, 0]), {'clean': B([True, True]), 'pgd': B([True, False])},
        broken_by=(None, 'pgd'))
    assert (tmp_path / 'verdicts.csv').read_text() == 'image,label,clean,pgd,broken_by\n0,2,1,1,\n1,0,1,0,pgd\n'

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from timm_paf.attacks import FGSM, PGD, CompileSettings, PixelCheck, autoattack, check_images
from timm_paf.evaluation import accuracy_under_attack, adversarial_examples, clean_accuracy, robustness_curve

GOOD = torch.rand(4, 3, 8, 8).round(decimals=2)
GOOD[:, :, 0, 0], GOOD[:, :, 0, 1] = 0, 1  # the ends of the range
FIRST = torch.arange(GOOD.numel()).view(GOOD.shape) == 0
IMAGES = {  # what other pipelines make of images
    'normalised': (GOOD - 0.45) / 0.225, '-1 to 1': 2 * GOOD - 1, '0 to 255': 255 * GOOD, 'uint8': (255 * GOOD).byte(),
    'bool': GOOD > 0.5, 'nan': torch.where(FIRST, torch.nan, GOOD), 'infinite': torch.where(FIRST, torch.inf, GOOD),
    'a little dark': GOOD - 1e-3,
}
CALLS = {
    'PGD': lambda net, x, y: PGD(eps=0.1, steps=1)(net, x, y),
    'restarts': lambda net, x, y: PGD(eps=0.1, steps=1, restarts=2)(net, x, y),
    'compiled': lambda net, x, y: PGD(eps=0.1, steps=1, compile=CompileSettings(backend='eager'))(net, x, y),
    'FGSM': lambda net, x, y: FGSM(eps=0.1)(net, x, y),
    'AutoAttack': lambda net, x, y: autoattack(net, x, y, eps=0.1, version='custom', attacks=['apgd-ce']),
    'clean accuracy': clean_accuracy,
    'accuracy': lambda net, x, y: accuracy_under_attack(net, x, y, attack=lambda model, x, y: x),
    'curve': lambda net, x, y: robustness_curve(net, x, y, eps=[0.1], steps=1),
    'examples': lambda net, x, y: adversarial_examples(net, x, y, attack=PGD(eps=0.1, steps=1), title=''),
}


@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('name', CALLS)
def test_images_that_are_not_floats_in_0_to_1_are_refused(name, kind):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ValueError, match='expected') as error:
        CALLS[name](net, IMAGES[kind], torch.arange(4))
    assert '\n' not in str(error.value)


def test_rounding_is_no_error_in_training():
    x = GOOD.clone()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1 + 2e-6, -2e-6
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert torch.equal(PGD(eps=0.1, seed=1)(net, x, torch.arange(4)), PGD(eps=0.1, seed=1)(
        net, x.clamp(0, 1), torch.arange(4)))


def test_a_check_can_be_copied_and_compiled():
    check = PixelCheck()
    for again in (copy.deepcopy(check), pickle.loads(pickle.dumps(check))):
        with pytest.raises(ValueError, match='255'):
            again(IMAGES['0 to 255'])
    step = torch.compile(lambda x: (check(x), x + 1)[1], backend='eager', fullgraph=True)
    assert torch.equal(step(GOOD), GOOD + 1)


@pytest.mark.gpu
def test_on_a_gpu_no_call_after_the_first_ones_waits():
    good, bad, check = GOOD.cuda(), IMAGES['normalised'].cuda(), PixelCheck()
    with pytest.raises(ValueError, match='expected'):
        PixelCheck()(bad)
    for _ in range(PixelCheck.first):
        check(good)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(100):
            check(good)
        with pytest.raises(ValueError, match='expected'):
            for _ in range(100):
                check(bad)
                torch.cuda._sleep(1_000_000)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('x, y, message', [
    (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), 'x is a torch.uint8'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(3).long(), r'y has shape \(3,\)'),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]), 'from 0 to 3; expected 0 to 2'),
    (torch.zeros(2, 1, 4, 4), torch.zeros(2), 'y is a torch.float32'),
    (torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), 'no images'),
], ids=['uint8', 'count', 'label', 'label dtype', 'none'])
def test_bad_input_is_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        check_images(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), x, y, device=torch.device('cpu'))


@pytest.mark.parametrize('model, shape, message', [
    (nn.Conv2d(3, 8, 3), (2, 8, 8, 3), r'\(8, 8, 3\).*last axis'), (nn.Conv2d(3, 8, 3), (2, 1, 8, 8), r'\(1, 8, 8\)'),
    (timm.create_model('vit_tiny_patch16_224', num_classes=3), (2, 3, 8, 8), '224')], ids=['last', 'grey', 'size'])
def test_images_of_another_shape_than_the_models_are_named(model, shape, message):
    with pytest.raises(ValueError, match=message):
        check_images(model, torch.rand(shape), torch.zeros(2).long(), device=torch.device('cpu'))


def test_number_of_classes_and_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 7)).train()
    assert check_images(model, torch.rand(3, 1, 4, 4), torch.tensor([0, 6, 2]), device=torch.device('cpu')) == 7
    assert model[1].training and model[1].num_batches_tracked == 0

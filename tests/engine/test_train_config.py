"""Every configuration that is shipped is read without a complaint and says its source, command and expected result."""
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml

from timm_paf.activations import paf_parameters
from timm_paf.engine.cli import parse_config
from timm_paf.engine.optim import make_optimizer
from timm_paf.engine.train_config import TrainConfig
from timm_paf.tasks import AdversarialTrainingTask

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
CONFIGS = sorted(path for path in (RECIPES / 'configs').glob('*.yaml') if not path.stem.startswith('sweep_'))
PUBLISHED = [path for path in CONFIGS if path.name != 'digits.yaml']


def read(*argv):
    return parse_config(TrainConfig, list(argv))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_is_read_and_names_things_that_exist(path):
    config = read('-c', str(path))
    assert timm.is_model(config.model)
    for name, value in yaml.safe_load(path.read_text()).items():
        held = getattr(config, name)
        assert held == (tuple(value) if isinstance(value, list) else type(held)(value)) or float(held) == value, name


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_says_where_it_comes_from_how_it_is_run_and_what_is_expected(path):
    head = path.read_text().split('dataset:')[0]
    assert re.search(r'arXiv \d{4}\.\d{5}', head)
    assert f'-c recipes/configs/{path.name}' in head
    assert '# Expected: ' in head and 'Not measured here' in head.replace('\n# ', ' ')
    assert '# Data: ' in head  # docs/configuration_pages.py reads these lines


CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
# real and synthetic images per batch, learning rate, epochs, and mean and std inside the network, as in their code
SOURCES = {
    'dai2021_cifar10_linf': (256, 256, 0.1, 200, None), 'dai2021_cifar10_linf_resnet18': (256, 256, 0.1, 200, None),
    'dai2021_cifar10_l2': (256, 256, 0.1, 200, None), 'dai2021_cifar100_linf': (256, 256, 0.1, 200, None),
    'dai2021_cifar10_linf_real': (256, 0, 0.1, 200, None), 'dai2021_imagenette_linf': (128, 128, 0.1, 200, None),
    'rebuffi2021_cifar10_linf': (308, 716, 0.4, 400, CIFAR10), 'rice2020_cifar10_linf': (128, 0, 0.1, 200, CIFAR10),
    'wang2023_cifar10_linf_wrn28_10': (615, 1433, 0.2, 2400, CIFAR10),
    'wang2023_cifar10_linf_wrn70_16': (615, 1433, 0.2, 2400, CIFAR10),
    'awp_cifar10_linf': (128, 0, 0.1, 200, None), 'xcit_cifar10_linf': (512, 0, 2e-4, 100, None),
}


@pytest.mark.parametrize('name', [path.stem for path in PUBLISHED])
def test_batch_rate_and_normalisation_are_those_of_the_source(name):
    real, synthetic, lr, epochs, normalisation = SOURCES[name]
    config = read('-c', str(RECIPES / 'configs' / f'{name}.yaml'))
    assert (config.batch_size, config.epochs, config.lr) == (real + synthetic, epochs, lr)
    assert config.batch_size * (config.synthetic_fraction or 0) == pytest.approx(synthetic, abs=1)
    assert config.warmup_epochs == (5 if 'xcit' in name else 0)
    with torch.device('meta'):
        model = timm.create_model(config.model, num_classes=10, **config.model_arguments())
    assert ('normalize.mean' in dict(model.named_buffers())) == (normalisation is not None)
    held = config.model_arguments()
    assert normalisation is None or (tuple(held['input_mean']), tuple(held['input_std'])) == normalisation


@pytest.mark.parametrize('name, updates', [
    ('wang2023_cifar10_linf_wrn28_10', 25), ('rebuffi2021_cifar10_linf', 49)])
def test_epochs_of_the_recipes_that_count_all_images(name, updates):
    config = read('-c', str(RECIPES / 'configs' / f'{name}.yaml'))
    assert config.updates_per_epoch == updates == -(-50_000 // config.batch_size)


WITH_ALPHA = [path for path in CONFIGS if path.stem.split('_')[0] in ('dai2021', 'digits')]


def extreme_alphas(*argv, updates=300):
    """Alpha after as many updates with the largest gradients of one sign, at the highest rate of the settings."""
    config, found = read(*argv), []
    for gradient in (1e6, -1e6):
        model = timm.create_model('wrn10_2_pssilu')
        optimizer = make_optimizer(config, model)
        task = AdversarialTrainingTask(model, None, options=config.task_options(100), verbose=False)
        task.attach_optimizer(optimizer)
        (alpha,) = paf_parameters(model, 'alpha').values()
        for _ in range(updates):
            alpha.grad = torch.full_like(alpha, gradient)
            optimizer.step()
        found.append(alpha.item())
    return found


@pytest.mark.parametrize('path', [path for path in WITH_ALPHA if path.stem != 'digits'], ids=lambda path: path.stem)
def test_no_gradients_can_take_alpha_out_of_its_range_in_300_updates(path):
    least, most = extreme_alphas('-c', str(path))
    assert 0.2 <= least < 0.9 and 1.1 < most <= 10
    assert extreme_alphas('-c', str(path), '--alpha-grad-clip', 'none', updates=2)[0] < 0


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_which_models_have_an_alpha_to_lose(path):
    config = read('-c', str(path))
    with torch.device('meta'):
        model = timm.create_model(config.model, **config.model_arguments())
    assert bool(paf_parameters(model, 'alpha')) is (path in WITH_ALPHA)

"""Every configuration that is shipped is read without a complaint and says its source, command and expected result."""
import re
from pathlib import Path

import pytest
import timm
import yaml

from timm_paf.engine.cli import parse_config
from timm_paf.engine.train_config import TrainConfig

RECIPES = Path(__file__).resolve().parents[2] / 'recipes'
DOCS = RECIPES.parent / 'docs'
CONFIGS = sorted((RECIPES / 'configs').glob('*.yaml'))
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
    assert path.name in (DOCS / 'configurations.md').read_text()


def test_the_batch_of_the_paper():
    config = read('-c', str(RECIPES / 'configs' / 'dai2021_cifar10_linf.yaml'))
    # 256 real and 256 synthetic images; 0.1 for each 128 real ones
    assert round(config.synthetic_fraction * config.batch_size) == 256
    assert config.lr_base * config.batch_size / config.lr_base_size == pytest.approx(0.1 * 256 / 128)


@pytest.mark.parametrize('name, updates', [
    ('wang2023_cifar10_linf_wrn28_10', 25), ('rebuffi2021_cifar10_linf', 49)])
def test_epochs_of_the_recipes_that_count_all_images(name, updates):
    config = read('-c', str(RECIPES / 'configs' / f'{name}.yaml'))
    assert config.updates_per_epoch == updates == -(-50_000 // config.batch_size)

"""What is known about published networks: the names of their tensors, and their mean and standard deviation.

The keys of a file show its layout. A new layout is one more `Layout` in `LAYOUTS`. Known are those of arXiv 2110.05626
and RobustBench's `Dai2021Parameterizing` (one copy of the activation in each block), RobustBench's generic WideResNet,
ResNet and PreActResNet, DeepMind's WideResNet (arXiv 2010.03593), and our own.

Many networks normalise their input, and their files hold neither mean nor std. They are known by the file's name; the
source is RobustBench 1.1.1, which takes them from the authors' code.
"""
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = [
    'CIFAR_STATISTICS', 'LAYOUTS', 'OURS', 'PIXELS', 'Layout', 'Statistics', 'published_difference',
    'published_normalization',
]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the tensors in a family of published networks."""
    name: str  # in messages
    has: tuple[str, ...]  # keys that every file has, and that the model itself does not have
    lacks: tuple[str, ...] = ()  # keys that no file has
    # (regular expression at the beginning of a key, replacement); only the first match counts
    renames: tuple[tuple[str, str], ...] = ()
    unused: str | None = None  # regular expression of keys that the original forward pass does not use
    optional_bias: bool = False  # the classifier may lack a bias
    deepmind: bool = False  # strided convolutions have 'same' padding, and the network normalises inside

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights have the names of this layout."""
        return all(key in weights for key in self.has) and not any(key in weights for key in self.lacks)

    def rename(self, key: str) -> str:
        """Convert a key to our name for it."""
        for pattern, replacement in self.renames:
            if re.match(pattern, key):
                return re.sub(f'^{pattern}', replacement, key)
        return key


OURS = Layout(name='our layout', has=())
LAYOUTS = (
    Layout(
        name="RobustBench's WideResNet",
        has=('block1.layer.0.conv1.weight', 'bn1.weight'),
        renames=(
            (r'block(\d)\.layer\.(\d+)\.bn(\d)\.', r'layer\1.\2.norm\3.'),
            (r'block(\d)\.layer\.(\d+)\.convShortcut\.', r'layer\1.\2.shortcut.'),
            (r'block(\d)\.layer\.(\d+)\.', r'layer\1.\2.'), (r'bn1\.', 'norm.')),
        unused=r'sub_block1\.',
        optional_bias=True),
    Layout(
        name="DeepMind's WideResNet",
        has=('init_conv.weight', 'layer.0.block.0.conv_0.weight'),
        renames=(
            (r'init_conv\.', 'conv1.'),
            *((rf'layer\.{stage}\.block\.(\d+)\.{theirs}\.', rf'layer{stage + 1}.\1.{ours}.')
              for stage in range(3)
              for theirs, ours in (
                  ('batchnorm_0', 'norm1'), ('relu_0', 'act1'), ('conv_0', 'conv1'),
                  ('batchnorm_1', 'norm2'), ('relu_1', 'act2'), ('conv_1', 'conv2'), ('shortcut', 'shortcut'))),
            (r'batchnorm\.', 'norm.'), (r'relu\.', 'act.'), (r'logits\.', 'fc.'),
        ),
        deepmind=True),
    Layout(
        name="RobustBench's ResNet",
        has=('linear.weight', 'bn1.weight', 'layer1.0.bn1.weight'),
        renames=((r'(layer\d\.\d+)\.shortcut\.', r'\1.downsample.'), (r'linear\.', 'fc.'))),
    Layout(
        name="RobustBench's PreActResNet",
        has=('linear.weight', 'layer1.0.bn1.weight'),
        lacks=('bn1.weight',),
        renames=(
            (r'(layer\d\.\d+)\.bn(\d)\.', r'\1.norm\2.'), (r'(layer\d\.\d+)\.shortcut\.0\.', r'\1.shortcut.'),
            (r'bn\.', 'norm.'), (r'linear\.', 'fc.'))),
)

Statistics = tuple[Sequence[float], Sequence[float]]

PIXELS: Statistics = (0., 0., 0.), (1., 1., 1.)  # no normalisation
HALF: Statistics = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10: Statistics = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100: Statistics = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
CIFAR_STATISTICS = {10: ('CIFAR-10', CIFAR10), 100: ('CIFAR-100', CIFAR100)}  # by the number of classes

ROUNDED: Statistics = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
EXACT: Statistics = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628))
EXACT_100: Statistics = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404))

# number of classes -> mean and std, and the beginnings of the names
KNOWN: tuple[tuple[dict[int, Statistics], tuple[str, ...]], ...] = (
    ({10: CIFAR10, 100: CIFAR100}, (
        'Gowal2020Uncovering', 'Gowal2021Improving', 'Rebuffi2021Fixing', 'Rade2021Helper', 'Pang2022Robustness',
        'Wang2023Better', 'Xu2023Exploring', 'Cui2023Decoupled_WRN-28-10', 'Bartoldson2024Adversarial',
        'Debenedetti2022Light_XCiT')),
    ({10: CIFAR10, 100: EXACT_100}, ('Rice2020Overfitting',)),
    ({10: CIFAR10, 1000: IMAGENET}, ('Wong2020Fast',)),
    ({10: (CIFAR10[0], (0.2023, 0.1994, 0.2010)), 1000: IMAGENET}, ('Engstrom2019Robustness',)),
    ({1000: IMAGENET}, ('Salman2020Do',)),
    ({10: PIXELS, 100: EXACT_100}, ('Wu2020Adversarial',)),
    ({10: CIFAR10, 100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))}, ('Chen2020Efficient',)),
    ({10: IMAGENET}, ('Chen2020Adversarial',)),
    ({10: EXACT}, ('Augustin2020Adversarial',)),
    ({10: ROUNDED}, ('Rony2019Decoupling',)),
    ({10: ROUNDED, 100: CIFAR100}, ('Diffenderfer2021Winning',)),
    ({10: CIFAR10}, ('Kireev2021Effectiveness', 'Kang2021Stable')),
    ({10: HALF, 100: HALF}, ('Hendrycks2019Using', 'Hendrycks2020AugMix')),
    ({10: PIXELS, 100: PIXELS}, (
        'Andriushchenko2020Understanding', 'Carmon2019Unlabeled', 'Sehwag2020Hydra', 'Wang2020Improving',
        'Zhang2019Theoretically', 'Huang2020Self', 'Zhang2019You', 'Zhang2020Attacks', 'Zhang2020Geometry',
        'Sehwag2021Proxy', 'Sitawarin2020Improving', 'Cui2020Learnable', 'Sridhar2021Robust', 'Huang2021Exploring',
        'Addepalli2021Towards', 'Dai2021Parameterizing', 'Chen2021LTD', 'Jia2022LAS-AT', 'Addepalli2022Efficient',
        'Cui2023Decoupled_WRN-34-10', 'Chen2024Data_WRN_34')),
)

DIFFERENT = {  # their files have the names of a network here, which computes something else
    'Ding2020MMA': 'standardises each image by its own mean and std, which this network does not do',
    'Pang2020Boosting': 'normalises the features and the weights of its classifier, which this network does not do',
}


def published_normalization(path: str | os.PathLike, *, num_classes: int) -> Statistics | None:
    """Mean and std of a published network, by the name of its file.

    Args:
        path: A name of RobustBench's model zoo, or a file whose name contains one, such as 'Rice2020Overfitting.pt'.
        num_classes: Number of classes: 10 for CIFAR-10, 100 for CIFAR-100, 1000 for ImageNet.

    Returns:
        One mean and one std per channel, in units of [0, 1]; zeros and ones if the network is known to take pixels in
        [0, 1] as they are; None if the name is not known, or not with this number of classes.
    """
    file = Path(path).name.lower()
    found = (known for known, names in KNOWN for name in names if name.lower() in file)
    return next(found, {}).get(num_classes)


def published_difference(path: str | os.PathLike) -> str | None:
    """What a published network of this name computes that ours cannot, as a sentence; None if nothing is known."""
    file = Path(path).name.lower()
    return next((f'{name} {difference}.' for name, difference in DIFFERENT.items() if name.lower() in file), None)

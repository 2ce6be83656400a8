"""Mean and standard deviation of published networks whose files hold neither, by the file's name.

Source: the model classes of RobustBench 1.1.1, which takes them from the authors' code.
"""
import os
from pathlib import Path

__all__ = ['CIFAR_STATISTICS', 'published_normalization']

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

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
    ({10: CIFAR10}, ('Kireev2021Effectiveness', 'Kang2021Stable', 'Pang2020Boosting')),
    ({10: HALF, 100: HALF}, ('Hendrycks2019Using', 'Hendrycks2020AugMix')),
    ({10: PIXELS, 100: PIXELS}, (
        'Andriushchenko2020Understanding', 'Carmon2019Unlabeled', 'Sehwag2020Hydra', 'Wang2020Improving',
        'Zhang2019Theoretically', 'Huang2020Self', 'Zhang2019You', 'Zhang2020Attacks', 'Zhang2020Geometry',
        'Sehwag2021Proxy', 'Sitawarin2020Improving', 'Cui2020Learnable', 'Sridhar2021Robust', 'Huang2021Exploring',
        'Addepalli2021Towards', 'Dai2021Parameterizing', 'Chen2021LTD', 'Jia2022LAS-AT', 'Addepalli2022Efficient',
        'Cui2023Decoupled_WRN-34-10', 'Chen2024Data_WRN_34')),
)


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

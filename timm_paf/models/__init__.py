"""Architectures of the paper, registered in timm as `<architecture>_<activation>`, and their checkpoints."""
import timm

from .card import model_card, save_for_hf
from .checkpoint import load_weights, read_checkpoint, select_state_dict
from .cifar_resnet import CifarResNet
from .cifar_vgg import CifarVGG
from .imagenet_resnet import ImageNetResNet
from .preact_resnet import PreActResNet
from .robustbench import to_robustbench
from .robustbench_names import register_robustbench_names
from .wide_resnet import WideResNet

register_robustbench_names(timm.list_models(
    module=['cifar_resnet', 'preact_resnet', 'wide_resnet', 'cifar_vgg', 'imagenet_resnet']))

__all__ = [
    'CifarResNet', 'PreActResNet', 'WideResNet', 'CifarVGG', 'ImageNetResNet',
    'load_weights', 'read_checkpoint', 'select_state_dict', 'model_card', 'save_for_hf', 'to_robustbench',
    'register_robustbench_names',
]

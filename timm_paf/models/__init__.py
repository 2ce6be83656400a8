"""Architectures of the paper, registered in timm as `<architecture>_<activation>`, and their checkpoints."""
from .checkpoint import load_weights, read_checkpoint, select_state_dict
from .cifar_resnet import CifarResNet
from .wide_resnet import WideResNet

__all__ = ['CifarResNet', 'WideResNet', 'load_weights', 'read_checkpoint', 'select_state_dict']

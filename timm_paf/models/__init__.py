"""Networks of the paper, registered in timm as `<architecture>_<activation>`, and their checkpoints."""
from timm_paf.models.card import model_card, save_for_hf
from timm_paf.models.checkpoint import load_weights, read_checkpoint, select_state_dict
from timm_paf.models.cifar_resnet import CifarResNet
from timm_paf.models.cifar_vgg import CifarVGG
from timm_paf.models.imagenet_resnet import ImageNetResNet
from timm_paf.models.known import published_normalization
from timm_paf.models.preact_resnet import PreActResNet
from timm_paf.models.robustbench import to_robustbench
from timm_paf.models.wide_resnet import WideResNet

__all__ = [
    'CifarResNet', 'PreActResNet', 'WideResNet', 'CifarVGG', 'ImageNetResNet',
    'load_weights', 'read_checkpoint', 'select_state_dict', 'model_card', 'published_normalization',
    'save_for_hf', 'to_robustbench',
]

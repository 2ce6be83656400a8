"""Networks of the paper, registered in timm as `<architecture>_<activation>`, and their checkpoints."""
from timm_paf.models.card import model_card, save_for_hf
from timm_paf.models.checkpoint import checkpoint_normalization, load_weights, read_checkpoint, select_state_dict
from timm_paf.models.cifar_resnet import CifarResNet
from timm_paf.models.cifar_vgg import CifarVGG
from timm_paf.models.imagenet_resnet import ImageNetResNet
from timm_paf.models.preact_resnet import PreActResNet
from timm_paf.models.published import published_normalization
from timm_paf.models.robustbench import to_robustbench
from timm_paf.models.wide_resnet import WideResNet

__all__ = [
    'CifarResNet', 'PreActResNet', 'WideResNet', 'CifarVGG', 'ImageNetResNet',
    'checkpoint_normalization', 'load_weights', 'model_card', 'published_normalization', 'read_checkpoint',
    'save_for_hf', 'select_state_dict', 'to_robustbench',
]

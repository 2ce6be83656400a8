"""Entry of the activations into timm's tables: the one file that touches them."""
from types import ModuleType

from timm.layers import create_act

from timm_paf.activations.modules import REGISTERED
from timm_paf.activations.sharing import SHARED

__all__ = ['register_activations']


def register_activations(tables: ModuleType = create_act) -> None:
    """Add every name of `REGISTERED` and `SHARED` to timm's activation layers; existing names stay as they are.

    `softplus` is added because the paper compares with it and timm has none. timm looks layers up in
    `_ACT_LAYER_DEFAULT` when exporting or scripting, and there second otherwise, so that one table suffices.

    Args:
        tables: timm's module with the tables.

    Raises:
        RuntimeError: If the tables are not what this version of timm_paf knows.
    """
    default = getattr(tables, '_ACT_LAYER_DEFAULT', None)
    efficient = getattr(tables, '_ACT_LAYER_ME', None)
    if not isinstance(default, dict) or not isinstance(efficient, dict) or 'relu' not in default:
        import timm
        raise RuntimeError(
            f'timm {timm.__version__} does not keep its activation layers where timm_paf expects them '
            '(the dicts _ACT_LAYER_DEFAULT and _ACT_LAYER_ME of timm.layers.create_act); '
            'install a release of timm that this version of timm_paf names as supported.')
    for name, layer in {**REGISTERED, **SHARED}.items():
        if name not in efficient:
            default.setdefault(name, layer)

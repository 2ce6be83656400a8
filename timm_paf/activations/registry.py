"""Registration of the activations in timm's tables: the only file that touches them."""
from types import ModuleType

from timm.layers import create_act

from timm_paf.activations.modules import REGISTERED
from timm_paf.activations.sharing import shared_layers

__all__ = ['register_activations']


def register_activations(tables: ModuleType = create_act) -> None:
    """Add every name of `REGISTERED` and its `shared_` form to timm's activation layers; existing names stay.

    `softplus` is included because the paper compares with it and timm has none. One table is enough: timm looks in
    `_ACT_LAYER_DEFAULT` first when exporting or scripting, and second otherwise.

    Args:
        tables: timm's module with the tables.

    Raises:
        RuntimeError: If this release of timm has other tables.
    """
    default = getattr(tables, '_ACT_LAYER_DEFAULT', None)
    efficient = getattr(tables, '_ACT_LAYER_ME', None)
    if not isinstance(default, dict) or not isinstance(efficient, dict) or 'relu' not in default:
        import timm
        raise RuntimeError(
            f'timm {timm.__version__} does not keep its activation layers where timm_paf expects them '
            '(the dicts _ACT_LAYER_DEFAULT and _ACT_LAYER_ME of timm.layers.create_act); '
            'install a release of timm that this version of timm_paf supports.')
    for name, layer in {**REGISTERED, **shared_layers()}.items():
        if name not in efficient:
            default.setdefault(name, layer)

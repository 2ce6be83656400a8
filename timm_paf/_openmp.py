"""OpenMP setting of the commands `python -m timm_paf ...` and of the recipes, made before torch is imported."""
import os
import sys

# By default OpenMP threads spin at every barrier. On a CPU that other programs use as well, training is then up to
# forty times slower. Values that the user has set stay.
_RECIPES = 'adv_train.py', 'adv_validate.py', 'make_synthetic.py', 'shape_sweep.py'
_arguments = sys.orig_argv
_is_command = os.path.basename(''.join(sys.argv[:1])) in _RECIPES or (
    '-m' in _arguments and _arguments[_arguments.index('-m') + 1:][:1] == ['timm_paf'])
if _is_command and 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')  # GNU
    os.environ.setdefault('KMP_BLOCKTIME', '1')  # LLVM and Intel, in milliseconds

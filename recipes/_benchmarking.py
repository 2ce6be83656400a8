"""What several benchmarks need: a clock that waits for the device, and a real network with real images."""
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

__all__ = ['seconds', 'shipped_network']


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of an action, the device's work included."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def shipped_network() -> tuple[nn.Module, Tensor, Tensor]:
    """The CIFAR-10 ResNet-18 that pyautoattack ships, and foolbox's 20 images (20, 3, 32, 32) in [0, 1] with labels."""
    import foolbox
    import pyautoattack
    examples = Path(pyautoattack.__file__).parent / 'examples'
    spec: Any = importlib.util.spec_from_file_location('pyautoattack_resnet', examples / 'resnet.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet18()
    model.load_state_dict(torch.load(examples / 'model_test.pt', map_location='cpu', weights_only=True))
    files = sorted((Path(foolbox.__file__).parent / 'data').glob('cifar10_*.png'))
    images = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    return model.eval(), x, torch.tensor([int(file.stem.rsplit('_', 1)[1]) for file in files])

"""Models for the Hugging Face hub: timm's files, and a model card with activation, training data and accuracy."""
import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm.models
from timm.models._hub import generate_readme
from torch import nn

from timm_paf._normalized import Normalized
from timm_paf.activations import paf_modules
from timm_paf.models.converted import built_from, conversion_args
from timm_paf.models.options import network_options

__all__ = ['model_card', 'save_for_hf']

_CITATION = """@article{dai2021parameterizing,
  title = {Parameterizing Activation Functions for Adversarial Robustness},
  author = {Dai, Sihui and Mahloujifar, Saeed and Mittal, Prateek},
  journal = {arXiv preprint arXiv:2110.05626},
  year = {2021}
}"""


def model_card(
        model: nn.Module, *, training_data: str | Sequence[str], report: Mapping[str, Any] | None = None,
        license: str | None = None, source: str = 'local-dir:FOLDER', description: str | None = None,
) -> dict[str, Any]:
    """Build a model card for timm's `push_to_hf_hub(model_card=...)` and `generate_readme`.

    Args:
        model: A model from `timm.create_model`, alone or in `timm_paf.attacks.Normalized`.
        training_data: Names of the data sets in training, one or several.
        report: Content of a `report.json` ('clean', 'pgd', 'autoattack' with the integers `correct` and `total`); None
            for a model that was not measured. Its `class_names` go to the card, and as `label_names` to config.json.
        license: Licence of the weights; by default the `license` of the model's `pretrained_cfg`.
        source: Name of the model for `timm.create_model` in the example of use.
        description: First paragraph; by default the architecture and the measured accuracy.

    Raises:
        ValueError: If training_data is empty, or the report has no measurement or a measurement without counts.
    """
    data = [training_data] if isinstance(training_data, str) else list(training_data)
    if not data or not all(isinstance(name, str) and name.strip() for name in data):
        raise ValueError(f'training_data = {training_data!r}: expected the names of the data sets.')
    normalized, model = isinstance(model, Normalized), _network(model)
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    architecture, _ = built_from(model)
    command = f"timm.create_model('{source}', pretrained=True)"
    note = 'pixels in [0, 1]'
    options = dict(input_mean=cfg['mean'], input_std=cfg['std']) if normalized else network_options(model)
    if 'input_mean' in options:
        mean, std = (', '.join(f'{value:.4g}' for value in options[name]) for name in ('input_mean', 'input_std'))
        note = f'pixels in [0, 1]; the network normalises with mean ({mean}) and std ({std})'
    measured = {'Robust accuracy': 'not measured'} if report is None else _measurements(report)
    summary = '; '.join(f'{name.lower()}: {value}' for name, value in measured.items())
    if report and report.get('dataset'):
        measured['Measured on'] = ', '.join(str(report[key]) for key in ('dataset', 'split') if report.get(key))
    if report and report.get('class_names'):
        measured['Classes'] = ', '.join(report['class_names'])
    return {
        'tags': ['image-classification', 'timm', 'timm_paf', 'adversarial-robustness'],
        'license': license or cfg.get('license') or 'unknown',
        'description': description or f'{architecture} for adversarial robustness; {summary}.',
        'details': {
            'Architecture': architecture, 'Input': note, 'Activation': _activation(model), 'Training data': data,
            **measured},
        'usage': (
            '```python\nimport timm\n'
            'import timm_paf  # registers the network and its activation\n'
            f'{"from timm_paf.attacks import Normalized" if normalized else ""}\n'
            f'model = {f"Normalized.of_timm({command})" if normalized else command}.eval()\n'
            'logits = model(x)  # x: float32 (B, C, H, W), pixels in [0, 1]\n```'),
        'citation': _CITATION,
    }


def save_for_hf(
        model: nn.Module, folder: str | os.PathLike, *, training_data: str | Sequence[str],
        report: Mapping[str, Any] | None = None, license: str | None = None,
        model_args: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` reads.

    The folder holds the files of timm's `save_for_hf` (with safetensors) and `README.md` with the model card.
    Run `import timm_paf` before you create the model from it.

    Other arguments are those of `model_card`.

    Args:
        folder: Created if it does not exist; its files of the same names are overwritten.
        model_args: Further arguments of `create_model` for this model that its weights do not show, such as
            `dict(act_layer='shared_pssilu')`; for timm before 1.0.29, which does not record them.

    Raises:
        ValueError: As `model_card`, if an argument of the model cannot be written as JSON, and if the model was changed
            after construction in other ways than by `convert_activations`.
    """
    folder = Path(folder)
    card = model_card(model, training_data=training_data, report=report, license=license, source=f'local-dir:{folder}')
    model = _network(model)
    built_with = {
        **{name: getattr(model, name) for name in ('in_chans', 'num_classes') if hasattr(model, name)},
        **network_options(model), **(model_args or {})}
    converted = conversion_args(model, built_with)
    names = list((report or {}).get('class_names') or ())
    if names and len(names) != getattr(model, 'num_classes', len(names)):
        raise ValueError(
            f'report: {len(names)} class names for a model of {model.num_classes} classes; give its own report.')
    config: dict[str, Any] = {'label_names': names} if names else {}
    if converted:
        config['architecture'] = 'paf_converted'
    timm.models.save_for_hf(
        model, str(folder), model_args={**built_with, **converted}, model_config=config, safe_serialization=True)
    (folder / 'README.md').write_text(generate_readme(card, card['details']['Architecture']), encoding='utf-8')
    return folder


def _measurements(report: Mapping[str, Any]) -> dict[str, str]:
    """'Clean accuracy', 'PGD-20 accuracy', … to a percentage with its counts and norm ball."""
    lines = {}
    for name in ('clean', 'pgd', 'autoattack'):
        if (found := report.get(name)) is None:
            continue
        correct, total = (found.get(key) if isinstance(found, Mapping) else None for key in ('correct', 'total'))
        if not isinstance(correct, int) or not isinstance(total, int) or not 0 <= correct <= total or total < 1:
            raise ValueError(f'report[{name!r}] = {found!r}: expected integers 0 <= correct <= total, total >= 1.')
        title = 'Clean' if name == 'clean' else found.get('attack') or name
        ball = f' in the {found["norm"]} ball of radius {found["eps"]}' if found.get('norm') else ''
        lines[f'{title} accuracy'] = f'{100 * correct / total:.2f} % ({correct} of {total} images){ball}'
    if not lines:
        raise ValueError(f'report with {", ".join(map(str, report)) or "nothing"}: expected clean, pgd or autoattack.')
    return lines


def _activation(model: nn.Module) -> str | list[str]:
    """The parametric activations with their values; if there is none, the names of the other activations."""
    plain = {type(m).__name__ for m in model.modules() if type(m).__module__.startswith((
        'torch.nn.modules.activation', 'timm.layers.activations', 'timm_paf.activations'))}
    parametric = [f'{type(m).__name__}: {m.extra_repr()} (`{name}`)' for name, m in paf_modules(model)]
    return parametric or ', '.join(sorted(plain)) or 'none found'


def _network(model: nn.Module) -> nn.Module:
    """The network inside of `Normalized`, with mean and std in its `pretrained_cfg`, where timm keeps them."""
    if not isinstance(model, Normalized):
        return model
    network = copy.copy(model.model)
    mean, std = model.mean.tolist(), model.std.tolist()
    cfg: Any = {**getattr(network, 'pretrained_cfg', {}), 'mean': tuple(mean), 'std': tuple(std)}
    network.pretrained_cfg = cfg
    return network

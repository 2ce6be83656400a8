"""Settings that training and validation share, and what they are made into."""
import dataclasses
import difflib
from pathlib import Path
from typing import Any, Optional

import timm
import torch
from _cli import setting
from torch import nn

import timm_paf  # noqa: F401  (registers the models)
from timm_paf.attacks import ThreatModel
from timm_paf.data import DigitsSplits, digits_splits

DATASETS = ('digits',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How robustness is measured."""
    eps: str = setting('8/255', 'radius of the Linf ball as in papers, 8/255, or a number; pixels are in [0,1]')
    pgd_steps: int = setting(20, 'steps of the PGD attack that the result is measured with')
    autoattack: str = setting(
        'standard', 'version of AutoAttack in the final measurement, or none', choices=('standard', 'rand', 'none'))
    n_examples: Optional[int] = setting(None, 'images that AutoAttack attacks: the first N of the split; all if unset')
    eval_batch_size: int = setting(250, 'images a batch when measuring')
    device: Optional[str] = setting(None, 'cpu, cuda, cuda:1, …; unset takes a GPU if there is one')
    seed: int = setting(0, 'seed of everything random')

    def __post_init__(self) -> None:
        ThreatModel(eps=self.eps)
        for name in ('pgd_steps', 'eval_batch_size'):
            at_least(self, name, 1)
        if self.n_examples is not None:
            at_least(self, 'n_examples', 1)
        at_least(self, 'seed', 0)

    def evaluation(self) -> dict[str, Any]:
        """The arguments of `evaluate_robustness` that are settings."""
        return dict(
            threat=ThreatModel(eps=self.eps), pgd_steps=self.pgd_steps, n_examples=self.n_examples,
            autoattack_version=None if self.autoattack == 'none' else self.autoattack,
            batch_size=self.eval_batch_size, seed=self.seed)


def at_least(config: Any, name: str, least: float) -> None:
    """Raise ValueError if a setting is smaller than allowed; NaN is."""
    value = getattr(config, name)
    if not value >= least:
        raise ValueError(f'--{name.replace("_", "-")} = {value}: expected {least} or more.')


def choose_device(name: Optional[str]) -> torch.device:
    """The device asked for, or a GPU if there is one.

    Raises:
        ValueError: If the name is no device, or the device is not there.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f'--device = {name}: not to be had here ({reason}); try --device cpu.') from None
    return device


def open_dataset(name: str) -> DigitsSplits:
    """The train, validation and test splits of a data set.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in DATASETS:
        raise ValueError(f'--dataset = {name!r}: there is no such data set; expected {" or ".join(DATASETS)}.')
    return digits_splits()


def build_model(name: str, *, num_classes: int, in_chans: int) -> nn.Module:
    """A model by its name in timm's registry.

    Raises:
        ValueError: If timm knows no such model; the message names near ones.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'timm.list_models("*_pssilu") lists ours.'
        raise ValueError(f'--model = {name!r}: timm knows no such model; {hint}')
    return timm.create_model(name, num_classes=num_classes, in_chans=in_chans)


def free_folder(output: str, experiment: str) -> Path:
    """The folder of a new run.

    Raises:
        FileExistsError: If it holds something already.
    """
    folder = Path(output) / experiment
    if (folder / 'report.json').exists():
        raise FileExistsError(f'{folder} holds a finished run; choose another --experiment or --output.')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} is not empty; choose another --experiment or --output, or remove it.')
    return folder

"""Settings of a measurement."""
import dataclasses
from pathlib import Path
from typing import Any

from timm_paf.attacks import parse_eps
from timm_paf.engine.fields import flag, settings_by_group
from timm_paf.engine.shared_config import DataConfig, EvaluationConfig

__all__ = ['REQUIRED_ENTRY', 'ValidateConfig']

REQUIRED_ENTRY = ('link', 'name', 'authors', 'venue', 'additional_data')  # keys that RobustBench requires

_run, _data, _model, _attack, _measure, _entry = settings_by_group(
    'run', 'data', 'model', 'attack', 'measurement', 'RobustBench entry')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateConfig(DataConfig, EvaluationConfig):
    """Settings of a measurement; the checkpoint gives those that are not set."""
    checkpoint: str = _model('', 'Required. Checkpoint to measure.', metavar='FILE', unset='none')
    model: str = _model('', 'Name of a model in the registry of timm.', unset='from the checkpoint')
    dataset: str = _data(
        '', "Data set: 'digits', a name that timm knows ('torch/cifar10', 'folder', 'hfds/NAME', ...), or the path of "
        'an archive.', unset='the one that the checkpoint was trained on')
    split: str = _data('test', 'Split to measure.', choices=('test', 'val', 'train'))
    attack: str = _attack(
        'autoattack', 'Attacks to run. pgd: PGD alone. autoattack: PGD, then AutoAttack.',
        choices=('pgd', 'autoattack'))
    norm: str = _attack('', 'Norm of the attack.', choices=('', 'linf', 'l2', 'l1'), unset='from the checkpoint')
    eps: str = _attack(
        '', 'Radius of the attack, such as 8/255 or a number, for pixels in [0, 1].', metavar='EPS',
        unset='from the checkpoint')
    use_ema: bool | None = _model(
        None, 'Measure the EMA of the weights, not the raw weights.', unset='on if the checkpoint has an EMA')
    output: str | None = _run(
        None, 'Folder for report.json, report.html and verdicts.csv.', metavar='DIR', unset='print the tables only')
    save_adv: str | None = _run(
        None, 'Archive (.npz) for the images that AutoAttack made, with their labels.', metavar='FILE',
        unset='not written')
    resume: bool = _run(False, 'Resume an interrupted measurement in --output.')
    trust: bool = _measure(True, 'Check for signs that the measured robustness is too high.')
    n_trust: int = _measure(256, 'Number of images for --trust, the first ones of the split.', least=1)
    eps_curve: tuple[str, ...] = _measure(
        (), 'Radii at which PGD accuracy is measured, such as 0,2/255,4/255,8/255.', metavar='EPS', unset='no curve')
    n_curve: int = _measure(1000, 'Number of images for --eps-curve, the first ones of the split.', least=1)
    corruptions: str | None = _measure(
        None, 'Folder with files as in CIFAR-10-C: CORRUPTION.npy and labels.npy.', metavar='DIR', unset='not measured')
    html: bool | None = _run(None, 'Write report.html next to report.json.', unset='on with --output')
    robustbench_json: str | None = _entry(
        None, 'File for a RobustBench model-info entry. The other --robustbench flags fill it.', metavar='FILE',
        unset='not written')
    robustbench_link: str | None = _entry(None, 'RobustBench entry: web address of the paper.', metavar='URL')
    robustbench_name: str | None = _entry(None, 'RobustBench entry: title of the paper.', metavar='TITLE')
    robustbench_authors: str | None = _entry(None, 'RobustBench entry: authors, separated by commas.')
    robustbench_venue: str | None = _entry(None, "RobustBench entry: venue, such as 'NeurIPS 2025'.")
    robustbench_additional_data: bool | None = _entry(
        None, 'RobustBench entry: whether training used data beyond the data set.')
    robustbench_architecture: str | None = _entry(
        None, 'RobustBench entry: architecture.', unset='name of the model')
    robustbench_reported: float | None = _entry(
        None, 'RobustBench entry: robust accuracy that your paper reports, in percent.', unset='the measured one')
    robustbench_footnote: str | None = _entry(
        None, 'RobustBench entry: footnote on the leaderboard.', unset='none')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps and self.norm:  # else the checkpoint gives the norm
            parse_eps(self.eps, label='--eps', norm=self.norm)
        if self.resume and self.output is None:
            raise ValueError('--resume needs --output, the folder of the interrupted run.')
        if self.save_adv is not None and self.autoattack_arguments()['autoattack_version'] is None:
            raise ValueError('--save-adv needs AutoAttack; use --attack autoattack --autoattack standard.')
        if self.robustbench_json is None:
            given = [field.name for field in dataclasses.fields(self)
                     if field.name.startswith('robustbench_') and getattr(self, field.name) is not None]
            if given:
                raise ValueError(f'{flag(given[0])} needs --robustbench-json FILE.')
        elif missing := [name for name in REQUIRED_ENTRY if getattr(self, f'robustbench_{name}') in (None, '')]:
            raise ValueError(f'--robustbench-json needs {", ".join(flag(f"robustbench_{name}") for name in missing)}.')

    def radii(self) -> tuple[str, ...]:
        """The radii of --eps-curve."""
        return tuple(text.strip() for word in self.eps_curve for text in word.split(',') if text.strip())

    def autoattack_arguments(self) -> dict[str, Any]:
        """Version and components of AutoAttack as arguments of `evaluate_robustness`."""
        none = {'autoattack_version': None, 'attacks': None}
        return none if self.attack == 'pgd' else super().autoattack_arguments()

    @property
    def writes_page(self) -> bool:
        """Whether to write report.html."""
        return self.output is not None and self.html is not False

    @property
    def state(self) -> Path | None:
        """Folder with the state of an interrupted measurement."""
        return None if self.output is None else Path(self.output) / 'autoattack'

"""Settings that training and measurement share: images, model and attacks."""
import dataclasses
from collections.abc import Callable
from typing import Any

from timm_paf.attacks import BALLS, COMPONENTS, ThreatModel
from timm_paf.data import DatasetOptions, Decoding
from timm_paf.engine.fields import Settings, assignments, settings_by_group

__all__ = ['DataConfig', 'EvaluationConfig']

_run, _data, _model, _act, _attack, _speed, _measure = settings_by_group(
    'run', 'data', 'model', 'activation', 'attack', 'speed and memory', 'measurement')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Where images come from."""
    dataset: str = _data(
        'digits', "Data set: 'digits' (included, 8x8 pixels), a name that timm knows ('torch/cifar10', 'hfds/NAME', "
        "'wds/NAME', 'folder' for image files in --data-dir, ...), or the path of an archive of training images (.npz, "
        '.npy, .bin, or a folder of such files).')
    data_dir: str | None = _data(None, 'Folder with the files of the data set.', metavar='DIR', unset="timm's default")
    dataset_download: bool = _data(False, 'Download the data set if it is missing.')
    num_classes: int | None = _data(
        None, 'Number of classes. Needed only for a data set that does not say it.', least=1, unset='from the data set')
    class_names: tuple[str, ...] = _data(
        (), 'Names of the classes, in the order of their numbers. All other images are matched by these names.',
        unset='from the data set, if it has names')
    test_data: tuple[str, ...] = _data(
        (), 'Archives of test images, for a --dataset that is an archive.', metavar='FILE', unset='none')
    test_labels: str | None = _data(
        None, 'File with the labels of --test-data, a .npy or .bin file whose labels have another name.',
        metavar='FILE', unset='found by the name of the images')
    input_key: str | None = _data(
        None, 'Name of the column with the images, for a data set of Hugging Face or WebDataset.', metavar='NAME',
        unset="timm's default, 'image' for hfds")
    target_key: str | None = _data(
        None, 'Name of the column with the labels, for a data set of Hugging Face or WebDataset.', metavar='NAME',
        unset="timm's default, 'label' for hfds")
    val_size: int | None = _data(
        None, 'Number of training images that are held out for validation, the same share of every class. '
        'The digits have a fixed validation split instead.', least=1, unset='a tenth of them, at most 1024')
    split_seed: int = _data(0, 'Seed of the train/validation split.')
    train_split: str = _data('train', 'Name that the data set gives to its training split.')
    val_split: str | None = _data(
        None, 'Name that the data set gives to its validation split.', unset='--val-size images of the training split')
    test_split: str = _data('validation', 'Name that the data set gives to its test split.')
    in_chans: int = _data(3, 'Number of channels that image files are converted to.', choices=(1, 3))
    img_size: int | None = _data(
        None, 'Height and width in pixels that image files are resized to.', least=1,
        unset='the size of the images if all have one size, else 224')
    train_crop_mode: str | None = _data(
        None, 'Crop of training images from files: rrc, rkrc and rkrr are random crops as in timm; resize is the '
        'centre crop of evaluation.', choices=('rrc', 'rkrc', 'rkrr', 'resize'),
        unset='no crop if all images have the right size, else rrc')
    crop_pct: float | None = _data(
        None, 'Share of a resized image file that the centre crop of evaluation keeps.', above=0, most=1,
        unset='no resizing if all images have the right size, else 0.875')
    workers: int | None = _speed(
        None, 'Number of processes that decode training images from files, and of threads that decode the others. Data '
        'sets that are stored as arrays, such as digits and archives, need none.', least=0,
        unset='the number of cores, at most 4')

    def dataset_options(self, progress: Callable[[str, int, int], None] | None = None) -> DatasetOptions:
        """The arguments of `timm_paf.data.open_dataset`."""
        decoding = Decoding(
            channels=self.in_chans, size=self.img_size, train_crop_mode=self.train_crop_mode, crop_pct=self.crop_pct,
            **({} if self.workers is None else {'workers': self.workers}))
        return DatasetOptions(
            data_dir=self.data_dir, download=self.dataset_download, num_classes=self.num_classes,
            test_data=self.test_data, test_labels=self.test_labels, input_key=self.input_key,
            target_key=self.target_key, val_size=self.val_size, split_seed=self.split_seed, decoding=decoding,
            train_split=self.train_split, val_split=self.val_split, test_split=self.test_split, progress=progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """Settings of the model and of the robustness measurement."""
    model_kwargs: tuple[str, ...] = _model(
        (), 'Extra arguments of the model, such as drop_path_rate=0.1.', metavar='NAME=VALUE',
        unset='none; in a measurement those of the checkpoint')
    act_sharing: str | None = _act(
        None, 'Part of the network that shares one activation: the whole network, each stage, each layer, or each '
        'channel.', choices=('network', 'stage', 'layer', 'channel'),
        unset='as the model defines it, network for our models; in a measurement as in the checkpoint')
    input_mean: tuple[float, ...] = _model(
        (), 'Mean of the images that the model was trained on, one number per channel, for pixels in [0, 1]. The model '
        'subtracts it from its input and divides by --input-std.', unset='from the weights or from timm')
    input_std: tuple[float, ...] = _model(
        (), 'Standard deviation of the images that the model was trained on, as --input-mean.', above=0,
        unset='from the weights or from timm')
    normalize: bool | None = _model(
        None, "Normalise the input inside the model with timm's mean and std of the model, also without weights. "
        '--no-normalize: never normalise.', unset='on for weights that need it')
    eps: str = _attack(
        '8/255', 'Radius of the attack, a fraction or a number, for pixels in [0, 1].', metavar='EPS')
    norm: str = _attack('linf', 'Norm of the attack, in training and measurement.', choices=tuple(BALLS))
    pgd_steps: int = _measure(20, 'Number of steps of the PGD attack in the final measurement.', least=1)
    n_pgd: int | None = _measure(
        None, 'Number of images that PGD attacks in the final measurement, the first ones of the split.', least=1,
        unset='all')
    autoattack: str = _measure(
        'standard', 'AutoAttack in the final measurement. rand: for models with random outputs. none: skip AutoAttack. '
        'PARTS: only these parts of it, such as apgd-ce,apgd-t,fab-t.', metavar='{standard,rand,none,PARTS}')
    n_examples: int | None = _measure(
        None, 'Number of images that AutoAttack attacks, the first ones of the split.', least=1, unset='all')
    eval_batch_size: int = _measure(250, 'Number of images per batch in validation and measurement.', least=1)
    capture: str = _speed(
        'auto', 'CUDA graphs for attacks on a GPU. auto: record the steps of an attack and replay them, which takes no '
        'time on the host. none: run every step from Python.', choices=('auto', 'none'))
    torchcompile: str | None = _speed(
        None, 'Compile attacks and evaluation, and in training the model, with this backend of torch.compile, such as '
        'inductor.', metavar='BACKEND', unset='not compiled')
    torchcompile_mode: str | None = _speed(
        None, 'Mode of torch.compile, such as reduce-overhead (CUDA graphs).', unset='default of the backend')
    device: str | None = _run(
        None, 'Device to run on: cpu, cuda, cuda:1, ...', unset='cuda if a GPU is available, else cpu')
    seed: int = _run(0, 'Seed of all random numbers.', least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.input_mean) != len(self.input_std):
            raise ValueError(
                f'--input-mean = {self.input_mean}, --input-std = {self.input_std}: expected both, one number per '
                'channel in each.')
        if any(abs(value) > 1.5 for value in self.input_mean):
            raise ValueError(f'--input-mean = {self.input_mean}: expected units of [0, 1]; divide mean and std by 255.')
        if self.normalize is False and self.input_mean:
            raise ValueError('--no-normalize and --input-mean exclude each other; leave one out.')
        if self.autoattack not in ('standard', 'rand', 'none') and not set(self.parts()) <= set(COMPONENTS):
            raise ValueError(
                f'--autoattack = {self.autoattack!r}: expected standard, rand, none, or parts of AutoAttack, separated '
                f'by commas: {", ".join(COMPONENTS)}.')
        self.model_arguments()

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        sharing = {} if self.act_sharing is None else {'act_sharing': self.act_sharing}
        return {**assignments(self.model_kwargs, '--model-kwargs'), **sharing}

    def parts(self) -> list[str]:
        """The components that --autoattack names."""
        return [part.strip() for part in self.autoattack.split(',')]

    def threat(self) -> ThreatModel:
        """Norm and radius of the attack."""
        return ThreatModel(eps=self.eps, norm=self.norm or 'linf')

    def evaluation(self) -> dict[str, Any]:
        """The arguments of `evaluate_robustness` that are settings."""
        return dict(
            threat=self.threat(), pgd_steps=self.pgd_steps, n_pgd=self.n_pgd, n_examples=self.n_examples,
            capture=self.capture, batch_size=self.eval_batch_size, seed=self.seed, **self.autoattack_arguments())

    def autoattack_arguments(self) -> dict[str, Any]:
        """Version and components of AutoAttack as arguments of `evaluate_robustness`."""
        if self.autoattack == 'none':
            return {'autoattack_version': None, 'attacks': None}
        if self.autoattack in ('standard', 'rand'):
            return {'autoattack_version': self.autoattack, 'attacks': None}
        return {'autoattack_version': 'custom', 'attacks': self.parts()}

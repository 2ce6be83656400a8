"""Settings of training and measurement: one dataclass a command, one field a flag."""
import dataclasses
from pathlib import Path
from typing import Any

from timm_paf.activations import BETA_BOUND
from timm_paf.attacks import BALLS, LOSSES, PGD, STEP_RULES, CompileSettings, ThreatModel, parse_eps
from timm_paf.data import Augment, DatasetOptions, Decoding
from timm_paf.data.stored import Progress as Callback
from timm_paf.engine.cli import assignments, setting
from timm_paf.engine.compilation import compile_settings
from timm_paf.tasks import TASKS, TaskOptions

__all__ = [
    'DataConfig', 'EvaluationConfig', 'ReportConfig', 'TrainConfig', 'ValidateConfig', 'at_least', 'plain', 'ENTRY',
    'INCIDENTAL']

ENTRY = ('link', 'name', 'authors', 'venue', 'additional_data')  # of RobustBench, which has to be given

# What may differ in a run that is resumed: where and how it runs, not what comes out of it.
INCIDENTAL = frozenset({
    'output', 'experiment', 'resume', 'resume_changed', 'dry_run', 'device', 'workers', 'prefetch', 'verify_data',
    'data_on_device', 'data_on_device_budget', 'dataset_download', 'log_interval', 'checkpoint_minutes',
    'checkpoint_hist', 'synchronize_step', 'log_tensorboard', 'log_wandb', 'wandb_project', 'wandb_tags'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from; the flags are timm's where timm has them."""
    dataset: str = setting(
        'digits', 'digits (embedded, 8x8), torch/cifar10, torch/cifar100, folder, hfds/NAME, wds/NAME … as timm names '
        'them, or the path of an archive')
    data_dir: str | None = setting(None, 'folder of the data set')
    dataset_download: bool = setting(False, 'download the data set if it is not there')
    num_classes: int | None = setting(None, 'number of classes, where the data set does not say')
    test_data: tuple[str, ...] = setting((), 'archives of test images, where the data set is an archive')
    val_size: int = setting(1024, 'training images held out for validation, stratified; digits have their own split')
    split_seed: int = setting(0, 'decides which ones')
    train_split: str = setting('train', "name of the data set's training split")
    val_split: str | None = setting(None, 'name of a validation split; unset: taken from the training images')
    test_split: str = setting('validation', "name of the data set's test split")
    in_chans: int = setting(3, 'channels that images in files are converted to, 1 or 3')
    img_size: int = setting(224, 'height and width that images in files are brought to')
    train_crop_mode: str = setting(
        'rrc', 'how training images in files are cropped; resize: as in evaluation',
        choices=('rrc', 'rkrc', 'rkrr', 'resize'))
    crop_pct: float = setting(0.875, 'part of a resized image that evaluation looks at')
    workers: int = setting(4, 'processes that decode images in files; arrays need none')

    def __post_init__(self) -> None:
        for name in ('val_size', 'img_size'):
            at_least(self, name, 1)
        at_least(self, 'workers', 0)
        if self.num_classes is not None:
            at_least(self, 'num_classes', 1)
        if self.in_chans not in (1, 3):
            raise ValueError(f'--in-chans = {self.in_chans}: expected 1 or 3.')
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f'--crop-pct = {self.crop_pct}: expected a number above 0, up to 1.')

    def dataset_options(self, progress: Callback | None = None) -> DatasetOptions:
        """The settings as `timm_paf.data.open_dataset` takes them."""
        decoding = Decoding(
            channels=self.in_chans, size=self.img_size, train_crop_mode=self.train_crop_mode, crop_pct=self.crop_pct,
            workers=self.workers)
        return DatasetOptions(
            data_dir=self.data_dir, download=self.dataset_download, num_classes=self.num_classes,
            test_data=self.test_data, val_size=self.val_size, split_seed=self.split_seed, decoding=decoding,
            train_split=self.train_split, val_split=self.val_split, test_split=self.test_split, progress=progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How robustness is measured."""
    eps: str = setting('8/255', 'radius of the ball as in papers, 8/255, or a number; pixels are in [0,1]')
    pgd_steps: int = setting(20, 'steps of the PGD attack that the result is measured with')
    autoattack: str = setting(
        'standard', 'version of AutoAttack in the final measurement, or none', choices=('standard', 'rand', 'none'))
    n_examples: int | None = setting(None, 'images that AutoAttack attacks: the first N of the split; all if unset')
    eval_batch_size: int = setting(250, 'images a batch when measuring')
    device: str | None = setting(None, 'cpu, cuda, cuda:1, …; unset takes a GPU if there is one')
    seed: int = setting(0, 'seed of everything random')

    def __post_init__(self) -> None:
        self.threat()
        for name in ('pgd_steps', 'eval_batch_size'):
            at_least(self, name, 1)
        if self.n_examples is not None:
            at_least(self, 'n_examples', 1)
        at_least(self, 'seed', 0)

    def threat(self) -> ThreatModel:
        """The ball that images are attacked in."""
        return ThreatModel(eps=self.eps)

    def evaluation(self) -> dict[str, Any]:
        """The arguments of `evaluate_robustness` that are settings."""
        return dict(
            threat=self.threat(), pgd_steps=self.pgd_steps, n_examples=self.n_examples,
            autoattack_version=None if self.autoattack == 'none' else self.autoattack,
            batch_size=self.eval_batch_size, seed=self.seed)


def at_least(config: Any, name: str, least: float) -> None:
    """Raise ValueError if a setting is smaller than allowed; NaN is."""
    value = getattr(config, name)
    if not value >= least:
        raise ValueError(f'--{name.replace("_", "-")} = {value}: expected {least} or more.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, EvaluationConfig):
    """Settings of a training run; the flags are timm's where timm has them."""
    model: str = setting('wrn10_2_pssilu', "a name of timm's registry, ours or any other")
    model_kwargs: tuple[str, ...] = setting((), 'arguments of the model as NAME=VALUE, such as drop_path_rate=0.1')
    initial_checkpoint: str | None = setting(None, 'start from the weights of this file')
    act_fixed: tuple[str, ...] = setting(
        (), 'parameters of the activations that stay at a value, as NAME=VALUE, such as alpha=2.0')
    act_sharing: str | None = setting(
        None, "what shares one activation; unset: the model's own, one for the network",
        choices=('network', 'stage', 'layer', 'channel'))
    output: str = setting('output/train', 'folder of runs')
    experiment: str | None = setting(None, 'name of the run in it; unset: date, time and model')
    resume: str | None = setting(
        None, 'auto: go on from the newest checkpoint of --experiment, or start it; or the folder or checkpoint of a '
        'run, whose settings hold then unless -c names others')
    resume_changed: bool = setting(False, 'resume although settings have changed')
    dry_run: bool = setting(False, 'show settings, sizes and an estimate of memory and time; write nothing')

    synthetic: tuple[str, ...] = setting(
        (), 'archives of synthetic images, together one source; with --synthetic-weights each is a source of its own, '
        'and a quoted pattern such as "part*.npz" stands for the parts of one; "generated" makes digits from the '
        'training split')
    num_synthetic: int = setting(10000, 'how many images "generated" makes')
    synthetic_fraction: float = setting(0., 'share of synthetic images in every batch, 0 to 1')
    synthetic_weights: tuple[float, ...] = setting(
        (), 'how often each synthetic source is drawn from, beside the others')
    crop_padding: int = setting(0, 'augmentation: random shifts by up to this many pixels')
    hflip: bool = setting(False, 'augmentation: random mirroring')
    color_jitter: float = setting(0., 'augmentation: strength of changes of brightness, contrast and saturation')
    cutout: int = setting(0, 'augmentation: side of a square that is blanked, in pixels')
    reprob: float = setting(0., 'augmentation: probability of blanking a random rectangle')
    cutmix: float = setting(0., 'augmentation: alpha of cutmix between images of one source')
    synthetic_augment: str = setting(
        'none', 'augmentation of synthetic images: none, or the same as of real ones', choices=('none', 'same'))
    smoothing: float = setting(0., 'label smoothing of real images')
    synthetic_smoothing: float = setting(0., 'label smoothing of synthetic images')
    verify_data: bool = setting(False, 'read the archives whole before training and check every image and label')
    data_on_device: str = setting(
        'auto', 'keep images on the device: auto as far as the budget goes, on a GPU; yes all, or stop; no none',
        choices=('auto', 'yes', 'no'))
    data_on_device_budget: str = setting('25%', "memory for it: GiB, or a share of the device's free memory with %")
    prefetch: bool | None = setting(None, 'make batches ahead in a thread; unset: on a GPU')

    task: str = setting('pgd-at', 'what is trained on', choices=tuple(TASKS))
    trades_beta: float = setting(6., 'task trades: weight of the divergence between clean and attacked predictions')
    mart_beta: float = setting(5., 'task mart: weight of its divergence')
    norm: str = setting('linf', 'norm of the ball, in training and measuring', choices=tuple(BALLS))
    eps_warmup_epochs: float = setting(0., "epochs over which the training attack's radius and step grow to their size")
    attack_steps: int = setting(10, 'PGD steps in training')
    attack_step_size: str | None = setting(None, 'PGD step, as eps; unset: 2.5 eps / attack_steps')
    attack_step_rule: str = setting('fixed', 'how PGD steps in training follow each other', choices=tuple(STEP_RULES))
    attack_loss: str | None = setting(
        None, 'loss that the training attack climbs; unset: ce, and kl for trades', choices=tuple(LOSSES))
    attack_mode: str = setting(
        'eval', "BatchNorm while attacking in training: eval, running statistics; train, the batch's, and the running "
        'ones stay as they are', choices=('eval', 'train'))
    attack_random_start: bool = setting(True, 'PGD in training starts at a random point of the ball')
    awp_gamma: float = setting(
        0., 'adversarial weight perturbation: its norm over that of each weight, such as 0.005; 0 for none')
    awp_start_epoch: float = setting(0., 'epochs before weights are perturbed')
    beta_penalty: float = setting(10., 'weight of |beta| in the loss, for activations with a learned beta')
    beta_grad_clip: float | None = setting(0.01, 'largest gradient norm of beta')
    beta_bound: float | None = setting(
        BETA_BOUND, 'largest |beta| that training reaches; none: as far as the formula goes')

    epochs: int = setting(12, 'epochs, each one pass over the real training images')
    updates_per_epoch: int | None = setting(
        None, 'length of an epoch in updates, instead of one pass; the passes go on from epoch to epoch')
    batch_size: int = setting(
        128, 'images an update, real and synthetic, of all processes and accumulation steps together')
    grad_accum_steps: int = setting(1, 'pieces that each process takes its share of a batch in')
    opt: str = setting('sgd', "optimizer, by timm's name; sgd is Nesterov's")
    opt_fused: bool | None = setting(
        None, "update all weights in one pass over memory; unset: where torch's optimizer can, and float16 does not "
        'forbid it')
    opt_eps: float | None = setting(None, "optimizer's epsilon")
    opt_betas: tuple[float, ...] = setting((), "optimizer's betas")
    lr: float | None = setting(None, 'learning rate; unset: lr_base * batch_size / lr_base_size')
    lr_base: float = setting(0.1, 'learning rate for lr_base_size images')
    lr_base_size: int = setting(128, 'see lr_base')
    momentum: float = setting(0.9, 'momentum')
    weight_decay: float = setting(5e-4, 'weight decay')
    filter_bias_and_bn: bool = setting(False, 'leave BatchNorm, biases, alpha and beta out of weight decay')
    layer_decay: float | None = setting(None, 'learning rates fall by this factor from layer to layer')
    paf_lr: float | None = setting(None, "learning rate of alpha and beta; unset: the others'")
    paf_weight_decay: float | None = setting(None, "weight decay of alpha and beta; unset: the others'")
    clip_grad: float | None = setting(None, 'clip gradients: their norm, each value, or the factor of agc')
    clip_mode: str = setting('norm', 'how gradients are clipped', choices=('norm', 'value', 'agc'))
    sched: str = setting('cosine', "learning rate schedule: onecycle, or by timm's name, none for none")
    sched_on_updates: bool = setting(True, 'the schedule moves at every update; else at every epoch')
    min_lr: float = setting(0.001, 'where the schedule ends')
    warmup_epochs: int = setting(0, 'epochs of linear warm-up')
    warmup_lr: float = setting(1e-5, 'where the warm-up starts')
    cooldown_epochs: int = setting(0, 'epochs at min_lr after the others')
    decay_epochs: float = setting(90., 'sched step: epochs between decays')
    decay_milestones: tuple[int, ...] = setting((100, 150), 'sched multistep: epochs at which the rate decays')
    decay_rate: float = setting(0.1, 'sched step, multistep: factor of a decay')
    onecycle_pct_start: float = setting(0.025, 'sched onecycle: share of the run in which the rate rises')
    onecycle_div_factor: float = setting(25., 'sched onecycle: it starts at lr divided by this')
    onecycle_final_div_factor: float = setting(1e4, 'sched onecycle: it ends at the start divided by this')
    onecycle_momentum: tuple[float, ...] = setting(
        (0.85, 0.95), 'sched onecycle: momentum at the highest and at the lowest rate; empty: as --momentum says')

    model_ema: bool = setting(False, 'average the weights, and validate and keep the average as well')
    model_ema_decay: float = setting(0.995, 'decay of the average, each update')
    model_ema_warmup: bool = setting(False, 'decay min(model_ema_decay, (1 + n) / (10 + n)) after n updates')
    model_ema_copy: float = setting(
        0., 'share of all updates at the start in which the average is a copy of the weights; n counts after it')

    amp: bool = setting(False, 'mixed precision, in the attack and in the loss')
    amp_dtype: str = setting('bfloat16', 'its half precision', choices=('bfloat16', 'float16'))
    channels_last: bool = setting(False, 'memory format with the channels last')
    torchcompile: str | None = setting(
        None, 'compile attack steps, model and evaluation with this backend, such as inductor')
    torchcompile_mode: str | None = setting(
        None, 'mode of torch.compile, such as reduce-overhead, which means CUDA graphs on a GPU')
    grad_checkpointing: bool = setting(False, 'recompute activations in the backward pass: less memory, more time')
    synchronize_step: bool = setting(False, 'wait for the GPU after every update')
    sync_bn: bool = setting(False, 'BatchNorm statistics over all processes, on GPUs')
    dist_bn: str = setting(
        'reduce', "running statistics of BatchNorm before validation: reduce to the processes' mean, broadcast the "
        "first one's, or none", choices=('reduce', 'broadcast', 'none'))

    val_interval: int = setting(1, 'epochs between validations; the last epoch is always validated')
    val_attack_steps: int | None = setting(None, 'PGD steps in validation; unset: as in training')
    val_attack_step_size: str | None = setting(None, 'PGD step in validation, as eps; unset: 2.5 eps / steps')
    eval_metric: str = setting(
        'robust', 'what the best checkpoint is chosen by, on the validation split: robust or clean accuracy',
        choices=('robust', 'clean'))
    checkpoint_hist: int = setting(1, 'how many of the best checkpoints to keep, beside the newest two')
    checkpoint_minutes: float = setting(10., 'minutes between checkpoints inside an epoch; 0: only at its end')
    log_interval: int = setting(5, 'updates between looks at the loss')
    log_tensorboard: bool = setting(False, "write TensorBoard's files into the run's folder")
    log_wandb: bool = setting(False, 'log to Weights & Biases')
    wandb_project: str | None = setting(None, 'project there')
    wandb_tags: tuple[str, ...] = setting((), 'tags there')

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        EvaluationConfig.__post_init__(self)
        for name in ('attack_steps', 'epochs', 'batch_size', 'lr_base_size', 'checkpoint_hist', 'log_interval',
                     'num_synthetic', 'grad_accum_steps', 'val_interval'):
            at_least(self, name, 1)
        for name in ('updates_per_epoch', 'val_attack_steps'):
            if getattr(self, name) is not None:
                at_least(self, name, 1)
        for name in ('crop_padding', 'beta_penalty', 'momentum', 'weight_decay', 'min_lr', 'warmup_epochs', 'lr_base',
                     'warmup_lr', 'cooldown_epochs', 'decay_rate', 'checkpoint_minutes', 'eps_warmup_epochs',
                     'awp_start_epoch'):
            at_least(self, name, 0)
        for name, least, most in (
                ('synthetic_fraction', 0, 1), ('model_ema_copy', 0, 1), ('onecycle_pct_start', 0, 1)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f'--{name.replace("_", "-")} = {getattr(self, name)}: expected a number from {least} to {most}.')
        if not 0 <= self.model_ema_decay < 1:
            raise ValueError(f'--model-ema-decay = {self.model_ema_decay}: expected a number from 0 to below 1.')
        for name in ('clip_grad', 'onecycle_div_factor', 'onecycle_final_div_factor', 'layer_decay', 'decay_epochs'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f'--{name.replace("_", "-")} = {value}: expected a number above 0.')
        if len(self.onecycle_momentum) not in (0, 2):
            raise ValueError(f'--onecycle-momentum = {self.onecycle_momentum}: expected two numbers or none.')
        for name in ('attack_step_size', 'val_attack_step_size'):
            if getattr(self, name) is not None:
                parse_eps(getattr(self, name), label=f'--{name.replace("_", "-")}', norm=self.norm)
        if any(milestone < 1 for milestone in self.decay_milestones):
            raise ValueError(f'--decay-milestones = {self.decay_milestones}: expected epochs from 1 on.')
        self.task_options(1)
        assignments(self.model_kwargs, '--model-kwargs')
        assignments(self.act_fixed, '--act-fixed')

    def threat(self) -> ThreatModel:
        """The ball that images are attacked in."""
        return ThreatModel(eps=self.eps, norm=self.norm)

    def task_options(self, updates_per_epoch: int) -> TaskOptions:
        """The settings of the task; labels are smoothed with the data, each source by its own."""
        names = ('trades_beta', 'mart_beta', 'beta_penalty', 'beta_grad_clip', 'beta_bound', 'awp_gamma')
        return TaskOptions(
            awp_start_update=round(self.awp_start_epoch * updates_per_epoch),
            eps_warmup_updates=round(self.eps_warmup_epochs * updates_per_epoch),
            **{name: getattr(self, name) for name in names})

    def augment(self) -> Augment:
        """What is done to real images."""
        return Augment(
            crop_padding=self.crop_padding, hflip=self.hflip, color_jitter=self.color_jitter, cutout=self.cutout,
            erase_prob=self.reprob, cutmix=self.cutmix)

    def validation_attack(self, seed: int, *, compile: CompileSettings | None = None) -> PGD:
        """The PGD of validation."""
        steps = self.val_attack_steps
        step_size = self.val_attack_step_size
        if steps is None:
            steps, step_size = self.attack_steps, step_size or self.attack_step_size
        return PGD(eps=self.eps, norm=self.norm, step_size=step_size, steps=steps, seed=seed, compile=compile)

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        sharing = {} if self.act_sharing is None else {'act_sharing': self.act_sharing}
        return {**assignments(self.model_kwargs, '--model-kwargs'), **sharing}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is measured and written beside the attacks."""
    trust: bool = setting(True, 'look for signs of a false number')
    n_trust: int = setting(256, 'on the first N images')
    eps_curve: tuple[str, ...] = setting((), 'radii of a curve of PGD accuracy, such as 0,2/255,4/255,8/255')
    n_curve: int = setting(1000, 'on the first N images')
    corruptions: str | None = setting(None, "folder in CIFAR-10-C's form: CORRUPTION.npy and labels.npy")
    html: bool | None = setting(None, 'write report.html beside report.json; unset: where there is an --output')
    robustbench_json: str | None = setting(
        None, "write RobustBench's model-info file; the next ones say what is in it")
    robustbench_link: str | None = setting(None, 'address of the paper')
    robustbench_name: str | None = setting(None, 'title of the paper')
    robustbench_authors: str | None = setting(None, 'authors, separated by commas')
    robustbench_venue: str | None = setting(None, "such as 'NeurIPS 2025'")
    robustbench_additional_data: bool | None = setting(None, 'data beyond the data set were used')
    robustbench_architecture: str | None = setting(None, "as the leaderboard shows it; unset: the model's name")
    robustbench_reported: float | None = setting(None, 'robust accuracy that the paper states, %; unset: measured')
    robustbench_footnote: str | None = setting(None, 'remark that the leaderboard shows')

    def __post_init__(self) -> None:
        at_least(self, 'n_trust', 1)
        at_least(self, 'n_curve', 1)
        if self.robustbench_json is None:
            given = [f.name for f in dataclasses.fields(ReportConfig)
                     if f.name.startswith('robustbench_') and getattr(self, f.name) is not None]
            if given:
                raise ValueError(f'{_flag(given[0])} is for --robustbench-json FILE, which is missing.')
        elif missing := [name for name in ENTRY if getattr(self, f'robustbench_{name}') in (None, '')]:
            raise ValueError(
                f'--robustbench-json wants {", ".join(_flag(f"robustbench_{name}") for name in missing)} as well.')

    def radii(self) -> tuple[str, ...]:
        """The radii of the curve."""
        return tuple(text.strip() for word in self.eps_curve for text in word.split(',') if text.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateConfig(DataConfig, EvaluationConfig, ReportConfig):
    """Settings of a measurement; unset ones are taken from the checkpoint."""
    checkpoint: str = setting('', 'the file to measure (required)')
    model: str = setting('', "a name of timm's registry")
    model_kwargs: tuple[str, ...] = setting((), "arguments of the model as NAME=VALUE; unset: the checkpoint's")
    act_sharing: str | None = setting(
        None, "what shares one activation; unset: the checkpoint's", choices=('network', 'stage', 'layer', 'channel'))
    dataset: str = setting('', 'data set, as adv_train.py names it')
    split: str = setting('test', 'which part of it', choices=('test', 'val', 'train'))
    attack: str = setting(
        'autoattack', 'pgd, or autoattack after pgd (its version: --autoattack)', choices=('pgd', 'autoattack'))
    norm: str = setting('', "norm of the ball; unset: the checkpoint's", choices=('', 'linf', 'l2', 'l1'))
    eps: str = setting('', 'radius of the ball: 8/255, or a number')
    use_ema: bool | None = setting(None, 'averaged or raw weights; unset: averaged if the file has them')
    torchcompile: str | None = setting(None, 'compile the attacks with this backend, such as inductor')
    torchcompile_mode: str | None = setting(None, 'mode of torch.compile')
    output: str | None = setting(
        None, 'folder for report.json, report.html and verdicts.csv; unset: only the tables')
    save_adv: str | None = setting(None, "file.npz for AutoAttack's images, with their labels")
    resume: bool = setting(False, 'go on with an interrupted AutoAttack in --output')

    def __post_init__(self) -> None:
        if self.dataset:
            DataConfig.__post_init__(self)
        if self.eps:
            EvaluationConfig.__post_init__(self)
        ReportConfig.__post_init__(self)
        compile_settings(self)
        if self.resume and self.output is None:
            raise ValueError('--resume: give the --output folder of the interrupted run.')
        if self.save_adv is not None and 'none' in (self.autoattack, {'pgd': 'none'}.get(self.attack)):
            raise ValueError("--save-adv takes AutoAttack's images; use --attack autoattack and a version of it.")

    def threat(self) -> ThreatModel:
        """The ball that images are attacked in."""
        return ThreatModel(eps=self.eps, norm=self.norm or 'linf')

    def evaluation(self) -> dict[str, Any]:
        """The arguments of `evaluate_robustness` that are settings."""
        settings = super().evaluation()
        return {**settings, 'autoattack_version': None} if self.attack == 'pgd' else settings

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model."""
        sharing = {} if self.act_sharing is None else {'act_sharing': self.act_sharing}
        return {**assignments(self.model_kwargs, '--model-kwargs'), **sharing}

    @property
    def state(self) -> Path | None:
        """Folder in which an interrupted AutoAttack is kept."""
        attacked = self.evaluation()['autoattack_version'] is not None
        return None if self.output is None or not attacked else Path(self.output) / 'autoattack'


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as YAML and checkpoints hold them."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}

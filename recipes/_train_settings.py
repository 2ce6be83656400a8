"""Settings of a training run."""
import dataclasses
from typing import Any, Optional

from _cli import assignments, setting
from _settings import DataConfig, EvaluationConfig, at_least

from timm_paf.activations import BETA_BOUND
from timm_paf.attacks import BALLS, LOSSES, PGD, STEP_RULES, CompileSettings, ThreatModel, parse_eps
from timm_paf.data import Augment
from timm_paf.tasks import TASKS, TaskOptions

__all__ = ['TrainConfig', 'plain', 'INCIDENTAL']

# What may differ in a run that is resumed: where and how it runs, not what comes out of it.
INCIDENTAL = frozenset({
    'output', 'experiment', 'resume', 'resume_changed', 'dry_run', 'device', 'workers', 'prefetch', 'verify_data',
    'data_on_device', 'data_on_device_budget', 'dataset_download', 'log_interval', 'checkpoint_minutes',
    'checkpoint_hist', 'synchronize_step', 'log_tensorboard', 'log_wandb', 'wandb_project', 'wandb_tags'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, EvaluationConfig):
    """Settings of a training run; the flags are timm's where timm has them."""
    model: str = setting('wrn10_2_pssilu', "a name of timm's registry, ours or any other")
    model_kwargs: tuple[str, ...] = setting((), 'arguments of the model as NAME=VALUE, such as drop_path_rate=0.1')
    initial_checkpoint: Optional[str] = setting(None, 'start from the weights of this file')
    act_fixed: tuple[str, ...] = setting(
        (), 'parameters of the activations that stay at a value, as NAME=VALUE, such as alpha=2.0')
    act_sharing: Optional[str] = setting(
        None, "what shares one activation; unset: the model's own, one for the network",
        choices=('network', 'stage', 'layer', 'channel'))
    output: str = setting('output/train', 'folder of runs')
    experiment: Optional[str] = setting(None, 'name of the run in it; unset: date, time and model')
    resume: Optional[str] = setting(
        None, 'auto: go on from the newest checkpoint of --experiment, or start it; or the folder or checkpoint of a '
        'run, whose settings hold then unless -c names others')
    resume_changed: bool = setting(False, 'resume although settings have changed')
    dry_run: bool = setting(False, 'show settings, sizes and an estimate of memory and time; write nothing')

    synthetic: tuple[str, ...] = setting(
        (), 'archives of synthetic images, together one source; with --synthetic-weights each is a source of its own, '
        'and a quoted pattern such as "part*.npz" stands for the parts of one; "generated" makes digits from the '
        'training split')
    num_synthetic: int = setting(10000, 'how many images "generated" makes')
    synthetic_fraction: float = setting(0.5, 'share of synthetic images in every batch, 0 to 1')
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
    prefetch: Optional[bool] = setting(None, 'make batches ahead in a thread; unset: on a GPU')

    task: str = setting('pgd-at', 'what is trained on', choices=tuple(TASKS))
    trades_beta: float = setting(6., 'task trades: weight of the divergence between clean and attacked predictions')
    mart_beta: float = setting(5., 'task mart: weight of its divergence')
    norm: str = setting('linf', 'norm of the ball, in training and measuring', choices=tuple(BALLS))
    eps_warmup_epochs: float = setting(0., "epochs over which the training attack's radius and step grow to their size")
    attack_steps: int = setting(10, 'PGD steps in training')
    attack_step_size: Optional[str] = setting(None, 'PGD step, as eps; unset: 2.5 eps / attack_steps')
    attack_step_rule: str = setting('fixed', 'how PGD steps in training follow each other', choices=tuple(STEP_RULES))
    attack_loss: Optional[str] = setting(
        None, 'loss that the training attack climbs; unset: ce, and kl for trades', choices=tuple(LOSSES))
    attack_mode: str = setting(
        'eval', "BatchNorm while attacking in training: eval, running statistics; train, the batch's, and the running "
        'ones stay as they are', choices=('eval', 'train'))
    attack_random_start: bool = setting(True, 'PGD in training starts at a random point of the ball')
    awp_gamma: float = setting(
        0., 'adversarial weight perturbation: its norm over that of each weight, such as 0.005; 0 for none')
    awp_start_epoch: float = setting(0., 'epochs before weights are perturbed')
    beta_penalty: float = setting(10., 'weight of |beta| in the loss, for activations with a learned beta')
    beta_grad_clip: Optional[float] = setting(0.01, 'largest gradient norm of beta')
    beta_bound: Optional[float] = setting(
        BETA_BOUND, 'largest |beta| that training reaches; none: as far as the formula goes')

    epochs: int = setting(12, 'epochs, each one pass over the real training images')
    updates_per_epoch: Optional[int] = setting(
        None, 'length of an epoch in updates, instead of one pass; the passes go on from epoch to epoch')
    batch_size: int = setting(
        128, 'images an update, real and synthetic, of all processes and accumulation steps together')
    grad_accum_steps: int = setting(1, 'pieces that each process takes its share of a batch in')
    opt: str = setting('sgd', "optimizer, by timm's name; sgd is Nesterov's")
    opt_fused: Optional[bool] = setting(
        None, "update all weights in one pass over memory; unset: where torch's optimizer can, and float16 does not "
        'forbid it')
    opt_eps: Optional[float] = setting(None, "optimizer's epsilon")
    opt_betas: tuple[float, ...] = setting((), "optimizer's betas")
    lr: Optional[float] = setting(None, 'learning rate; unset: lr_base * batch_size / lr_base_size')
    lr_base: float = setting(0.1, 'learning rate for lr_base_size images')
    lr_base_size: int = setting(128, 'see lr_base')
    momentum: float = setting(0.9, 'momentum')
    weight_decay: float = setting(5e-4, 'weight decay')
    filter_bias_and_bn: bool = setting(False, 'leave BatchNorm, biases, alpha and beta out of weight decay')
    layer_decay: Optional[float] = setting(None, 'learning rates fall by this factor from layer to layer')
    paf_lr: Optional[float] = setting(None, "learning rate of alpha and beta; unset: the others'")
    paf_weight_decay: Optional[float] = setting(None, "weight decay of alpha and beta; unset: the others'")
    clip_grad: Optional[float] = setting(None, 'clip gradients: their norm, each value, or the factor of agc')
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
    torchcompile: Optional[str] = setting(
        None, 'compile attack steps, model and evaluation with this backend, such as inductor')
    torchcompile_mode: Optional[str] = setting(
        None, 'mode of torch.compile, such as reduce-overhead, which means CUDA graphs on a GPU')
    grad_checkpointing: bool = setting(False, 'recompute activations in the backward pass: less memory, more time')
    synchronize_step: bool = setting(False, 'wait for the GPU after every update')
    sync_bn: bool = setting(False, 'BatchNorm statistics over all processes, on GPUs')
    dist_bn: str = setting(
        'reduce', "running statistics of BatchNorm before validation: reduce to the processes' mean, broadcast the "
        "first one's, or none", choices=('reduce', 'broadcast', 'none'))

    val_interval: int = setting(1, 'epochs between validations; the last epoch is always validated')
    val_attack_steps: Optional[int] = setting(None, 'PGD steps in validation; unset: as in training')
    val_attack_step_size: Optional[str] = setting(None, 'PGD step in validation, as eps; unset: 2.5 eps / steps')
    eval_metric: str = setting(
        'robust', 'what the best checkpoint is chosen by, on the validation split: robust or clean accuracy',
        choices=('robust', 'clean'))
    checkpoint_hist: int = setting(1, 'how many of the best checkpoints to keep, beside the newest two')
    checkpoint_minutes: float = setting(10., 'minutes between checkpoints inside an epoch; 0: only at its end')
    log_interval: int = setting(5, 'updates between looks at the loss')
    log_tensorboard: bool = setting(False, "write TensorBoard's files into the run's folder")
    log_wandb: bool = setting(False, 'log to Weights & Biases')
    wandb_project: Optional[str] = setting(None, 'project there')
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

    def validation_attack(self, seed: int, *, compile: Optional[CompileSettings] = None) -> PGD:
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


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as YAML and checkpoints hold them."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}

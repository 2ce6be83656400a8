"""Settings of a training run. The flags have timm's names where timm has them."""
import dataclasses

from timm_paf.activations import BETA_BOUND
from timm_paf.attacks import LOSSES, PGD, STEP_RULES, CompileSettings, parse_eps
from timm_paf.data import Augment
from timm_paf.engine.fields import assignments, flag, settings_by_group
from timm_paf.engine.shared_config import DataConfig, EvaluationConfig
from timm_paf.tasks import TASKS, TaskOptions

__all__ = ['INCIDENTAL', 'TrainConfig']

_run, _data, _synthetic, _augment, _model, _act, _attack, _loss, _optim, _sched, _ema, _speed, _measure, _log = (
    settings_by_group(
        'run', 'data', 'synthetic images', 'augmentation', 'model', 'activation', 'attack', 'loss', 'optimizer',
        'schedule', 'EMA', 'speed and memory', 'measurement', 'checkpoints and logs'))

# Settings that a resumed run may change: they decide where and how it runs, not its result.
INCIDENTAL = frozenset({
    'config', 'output', 'experiment', 'resume', 'resume_changed', 'dry_run', 'device', 'workers', 'prefetch',
    'verify_data', 'data_on_device', 'data_on_device_budget', 'dataset_download', 'log_interval',
    'checkpoint_minutes', 'checkpoint_hist', 'synchronize_step', 'capture', 'log_tensorboard', 'log_wandb',
    'wandb_project', 'wandb_tags'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, EvaluationConfig):
    """Settings of a training run."""
    config: str | None = _run(
        None, 'YAML file with settings, or the name of a shipped configuration such as rice2020_cifar10_linf. Flags '
        'override the file.', metavar='FILE', unset='digits for --dataset digits, else no file')
    model: str = _model('wrn10_2_pssilu', 'Name of a model in the registry of timm.')
    initial_checkpoint: str | None = _model(
        None, 'File with weights to start training from.', metavar='FILE', unset='random weights')
    act_fixed: tuple[str, ...] = _act(
        (), 'Parameters of the activation that keep a value and are not trained, such as alpha=2.0.',
        metavar='NAME=VALUE', unset='none')
    output: str = _run('output/train', 'Folder that holds the folders of runs.', metavar='DIR')
    experiment: str | None = _run(
        None, "Name of the run's folder inside --output.", unset='date, time and model')
    resume: str | None = _run(
        None, 'Resume an interrupted run. auto: resume from the newest checkpoint of --experiment, or start that run. '
        'A folder or checkpoint: resume that run with its settings.', metavar='auto|PATH', unset='start a new run')
    resume_changed: bool = _run(
        False, 'Let --resume continue a run although its settings differ from those given now. The new settings apply.')
    dry_run: bool = _run(
        False, 'Print settings, sizes and estimates of memory and time, then exit. Writes nothing.')

    synthetic: tuple[str, ...] = _synthetic(
        (), 'Archives of synthetic images, read as one source. With --synthetic-weights each argument is a source of '
        'its own, and a quoted pattern such as "part*.npz" is one source of many parts. "generated" makes digits from '
        'the training split.', metavar='FILE', unset='none')
    num_synthetic: int = _synthetic(10000, 'Number of images that --synthetic generated makes.', least=1)
    synthetic_fraction: float | None = _synthetic(
        None, 'Share of synthetic images in every batch.', least=0, most=1, unset='0.5 with --synthetic, else 0')
    synthetic_weights: tuple[float, ...] = _synthetic(
        (), 'Relative frequency of each synthetic source in a batch.', unset='one source')
    crop_padding: int = _augment(0, 'Augmentation: random shifts by up to this many pixels.', least=0)
    hflip: bool = _augment(False, 'Augmentation: flip each image horizontally with probability 0.5.')
    color_jitter: float = _augment(
        0., 'Augmentation: strength of random changes of brightness, contrast and saturation.', least=0)
    cutout: int = _augment(0, 'Augmentation: side in pixels of a random square that is set to 0.', least=0)
    reprob: float = _augment(0., 'Augmentation: probability of erasing a random rectangle.', least=0, most=1)
    cutmix: float = _augment(0., 'Augmentation: alpha of CutMix between images of one source. 0 disables it.', least=0)
    synthetic_augment: str = _synthetic(
        'none', 'Augmentation of synthetic images: none, or the same as for real images.', choices=('none', 'same'))
    smoothing: float = _augment(0., 'Label smoothing of real images.', least=0, below=1)
    synthetic_smoothing: float = _synthetic(0., 'Label smoothing of synthetic images.', least=0, below=1)
    verify_data: bool = _data(False, 'Before training, read all archives and check every image and label.')
    data_on_device: str = _speed(
        'auto', 'Keep training images in the memory of the device. auto: as many sources as fit in the budget, on a '
        'GPU only. yes: all, or fail. no: none.', choices=('auto', 'yes', 'no'))
    data_on_device_budget: str = _speed(
        '25%', 'Memory for --data-on-device: a number of GiB, or a percentage of the free memory of the device.',
        metavar='GIB|PERCENT')
    prefetch: bool | None = _speed(
        None, 'Prepare batches in advance, in a thread.', unset='on for a GPU, off for a CPU')

    task: str = _loss(
        'pgd-at', 'Training method. pgd-at: loss on attacked images. trades and mart: their losses. plain: no attack.',
        choices=tuple(TASKS))
    trades_beta: float = _loss(
        6., 'Task trades: weight of the KL divergence between clean and attacked predictions.', least=0)
    mart_beta: float = _loss(
        5., 'Task mart: weight of the KL divergence between clean and attacked predictions.', least=0)
    eps_warmup_epochs: float = _attack(
        0., 'Number of epochs over which radius and step size of the training attack grow from 0.', least=0)
    attack_steps: int = _attack(10, 'Number of steps of the training attack (PGD).', least=1)
    attack_step_size: str | None = _attack(
        None, 'Step size of the training attack, a fraction or a number, for pixels in [0, 1].', metavar='EPS',
        unset='2.5 * eps / attack-steps, which is 2/255 for eps 8/255 and 10 steps')
    attack_step_rule: str = _attack(
        'fixed', 'Steps of the training attack. fixed: all of one size. cosine: they shrink to 0. momentum: they '
        'follow an average of the gradients.', choices=tuple(STEP_RULES))
    attack_loss: str | None = _attack(
        None, 'Loss that the training attack increases.', choices=tuple(LOSSES), unset='kl for task trades, else ce')
    attack_mode: str = _attack(
        'eval', 'BatchNorm during the training attack. eval: running statistics. train: statistics of the batch; the '
        'running statistics do not change.', choices=('eval', 'train'))
    attack_random_start: bool = _attack(True, 'Start the training attack at a random point of the ball.')
    awp_gamma: float = _loss(
        0., 'Adversarial weight perturbation: norm of the perturbation relative to the norm of each weight, such as '
        '0.005. 0 disables it.')
    awp_start_epoch: float = _loss(
        0., 'Epoch in which adversarial weight perturbation starts. 0 is the start of training, 0.5 the middle of the '
        'first epoch.', least=0)

    beta_penalty: float = _act(
        10., 'Penalty on beta, the parameter of the activation: this number times |beta| is added to the loss.',
        least=0)
    beta_grad_clip: float | None = _act(
        0.01, 'Gradient clipping of beta, the parameter of the activation: largest norm of the gradient of each beta. '
        'none: no limit.', unset='no limit')
    alpha_grad_clip: float | None = _act(
        0.002, 'Gradient clipping of alpha, the parameter of the activation: largest norm of the gradient of each '
        'alpha. With SGD the gradients change alpha by at most lr * alpha-grad-clip / (1 - momentum) per update. none: '
        'no limit, as in arXiv 2110.05626; alpha can then run away in the first updates.', unset='no limit')
    beta_bound: float | None = _act(
        BETA_BOUND, 'Largest |beta| in training, where beta is the parameter of the activation. none: the limit of the '
        'formula, 0.99.', unset='0.99')
    epochs: int = _sched(12, 'Number of epochs. An epoch is one pass over the real training images.', least=1)
    updates_per_epoch: int | None = _sched(
        None, 'Number of updates of the weights per epoch. The next epoch continues where this one stopped.',
        least=1, unset='as many as one pass over the real training images needs')
    batch_size: int = _optim(
        128, 'Number of images per update, real and synthetic, over all processes and micro-batches.', least=1)
    grad_accum_steps: int = _optim(
        1, 'Number of micro-batches. Each process computes its part of a batch in this many steps and adds the '
        'gradients. More micro-batches need less memory.', least=1)
    opt: str = _optim(
        'sgd', "Name of an optimizer of timm. 'sgd' is SGD with Nesterov momentum, 'momentum' is SGD with ordinary "
        'momentum.')
    opt_fused: bool | None = _speed(
        None, "Use torch's fused optimizer, which updates all weights in one pass over memory.",
        unset='on where torch supports it, off with --amp-dtype float16')
    opt_eps: float | None = _optim(None, 'Epsilon of the optimizer.', unset='default of the optimizer')
    opt_betas: tuple[float, ...] = _optim((), 'Betas of the optimizer.', unset='defaults of the optimizer')
    lr: float | None = _optim(None, 'Learning rate.', unset='lr-base * batch-size / lr-base-size')
    lr_base: float = _optim(0.1, 'Learning rate for --lr-base-size images per batch, without --lr.', least=0)
    lr_base_size: int = _optim(128, 'Number of images per batch that --lr-base is meant for.', least=1)
    momentum: float = _optim(0.9, 'Momentum of the optimizer.', least=0)
    weight_decay: float = _optim(5e-4, 'Weight decay.', least=0)
    filter_bias_and_bn: bool = _optim(
        False, 'Exclude BatchNorm, biases and the parameters of the activation from weight decay.')
    norm_weight_decay: float | None = _optim(
        None, 'Weight decay of the weights and biases of normalisation layers, such as BatchNorm. Overrides '
        '--filter-bias-and-bn for them.', least=0, unset='as for other weights and biases')
    layer_decay: float | None = _optim(
        None, 'Learning rate of a layer divided by that of the layer after it. With 0.75, the first layers learn '
        'slowest.', above=0, unset='the same rate for all')
    paf_lr_scale: float | None = _act(
        None, 'Learning rate of the parameters of the activation divided by that of the weights, at any time of the '
        'schedule.', above=0, unset='1')
    paf_weight_decay: float | None = _act(
        None, 'Weight decay of the parameters of the activation.', least=0, unset='as for the weights')
    clip_grad: float | None = _optim(
        None, 'Limit for gradient clipping. --clip-mode says what is limited.', above=0, unset='no clipping')
    clip_mode: str = _optim(
        'norm', 'What --clip-grad limits. norm: the norm of all gradients together. value: each element of the '
        'gradients. agc: the norm of each gradient divided by the norm of its weight (adaptive gradient clipping).',
        choices=('norm', 'value', 'agc'))
    sched: str = _sched('cosine', "Learning rate schedule: onecycle, none, or the name of a schedule of timm.")
    sched_on_updates: bool = _sched(True, 'Change the learning rate after every update, not after every epoch.')
    min_lr: float = _sched(0.001, 'Learning rate at the end of the schedule.', least=0)
    warmup_epochs: int = _sched(
        0, 'Number of epochs in which the learning rate rises linearly from --warmup-lr.', least=0)
    warmup_lr: float = _sched(1e-5, 'Learning rate at the start of the warm-up.', least=0)
    cooldown_epochs: int = _sched(0, 'Number of extra epochs at --min-lr after the schedule.', least=0)
    decay_epochs: float = _sched(90., 'Schedule step: number of epochs between decays of the learning rate.', above=0)
    decay_milestones: tuple[int, ...] = _sched(
        (100, 150), 'Schedule multistep: epochs at which the learning rate decays.', least=1)
    decay_rate: float = _sched(
        0.1, 'Schedules step and multistep: factor of the learning rate at each decay.', least=0)
    onecycle_pct_start: float = _sched(
        0.025, 'Schedule onecycle: share of the run in which the learning rate rises.', least=0, most=1)
    onecycle_div_factor: float = _sched(
        25., 'Schedule onecycle: highest learning rate divided by the first one.', above=0)
    onecycle_final_div_factor: float = _sched(
        1e4, 'Schedule onecycle: first learning rate divided by the last one.', above=0)
    onecycle_momentum: tuple[float, ...] = _sched(
        (0.85, 0.95), 'Schedule onecycle: momentum at the highest and at the lowest learning rate. Without values, '
        '--momentum applies.', unset='--momentum')
    model_ema: bool = _ema(False, 'Keep an exponential moving average (EMA) of the weights, and validate it as well.')
    model_ema_decay: float = _ema(0.995, 'Decay of the EMA per update.', least=0, below=1)
    model_ema_warmup: bool = _ema(
        False, 'Use the decay min(model-ema-decay, (1 + n) / (10 + n)) in update n of the EMA.')
    model_ema_copy: float = _ema(
        0., 'Share of all updates, at the start, in which the EMA is a copy of the weights.', least=0, most=1)
    amp: bool | None = _speed(
        None, 'Use mixed precision in the attack and in the loss. --no-amp: float32.',
        unset='on for a GPU that computes in --amp-dtype, off for a CPU')
    amp_dtype: str = _speed('bfloat16', 'Data type of mixed precision.', choices=('bfloat16', 'float16'))
    channels_last: bool | None = _speed(
        None, 'Use the channels-last memory format.', unset='on for a GPU, off for a CPU')
    grad_checkpointing: bool = _speed(
        False, 'Save memory: compute the layer outputs again in the backward pass instead of storing them.')
    synchronize_step: bool = _speed(False, 'Wait for the GPU after every update, to measure times.')
    sync_bn: bool = _speed(False, 'Compute BatchNorm statistics over all processes. GPUs only.')
    dist_bn: str = _speed(
        'reduce', 'Running statistics of BatchNorm before validation with several processes. reduce: mean of all '
        'processes. broadcast: those of process 0. none: each keeps its own.', choices=('reduce', 'broadcast', 'none'))

    val_interval: int = _measure(
        1, 'Number of epochs between validations. The last epoch is always validated.', least=1)
    val_attack_steps: int | None = _measure(
        None, 'Number of PGD steps in validation.', least=1, unset='attack-steps')
    val_attack_step_size: str | None = _measure(
        None, 'Step size of PGD in validation, a fraction or a number, for pixels in [0, 1].', metavar='EPS',
        unset='attack-step-size, or 2.5 * eps / steps with --val-attack-steps')
    eval_metric: str = _measure(
        'robust', 'Validation accuracy that selects the best checkpoint: robust (under PGD) or clean.',
        choices=('robust', 'clean'))
    checkpoint_hist: int = _log(
        1, 'Number of best checkpoints to keep, in addition to the newest two.', least=1)
    checkpoint_minutes: float = _log(
        10., 'Minutes between checkpoints within an epoch. 0: only at the end of an epoch.', least=0)
    log_interval: int = _log(5, 'Number of updates between reports of the running loss.', least=1)
    log_tensorboard: bool = _log(False, "Write TensorBoard files into the run's folder.")
    log_wandb: bool = _log(False, 'Log to Weights & Biases.')
    wandb_project: str | None = _log(None, 'Project in Weights & Biases.', unset='default of wandb')
    wandb_tags: tuple[str, ...] = _log((), 'Tags of the run in Weights & Biases.', unset='none')

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_eps(self.eps, label='--eps', norm=self.norm)
        if self.synthetic_fraction is None:
            object.__setattr__(self, 'synthetic_fraction', 0.5 if self.synthetic else 0.)
        if len(self.onecycle_momentum) not in (0, 2):
            raise ValueError(
                f'--onecycle-momentum = {self.onecycle_momentum}: expected two numbers such as 0.85 0.95, or no value.')
        for name in ('attack_step_size', 'val_attack_step_size'):
            if getattr(self, name) is not None:
                parse_eps(getattr(self, name), label=flag(name), norm=self.norm)
        self.task_options(1)
        assignments(self.act_fixed, '--act-fixed')

    def task_options(self, updates_per_epoch: int) -> TaskOptions:
        """The options of the task; the data apply label smoothing."""
        names = (
            'trades_beta', 'mart_beta', 'beta_penalty', 'beta_grad_clip', 'alpha_grad_clip', 'beta_bound', 'awp_gamma')
        return TaskOptions(
            awp_start_update=round(self.awp_start_epoch * updates_per_epoch),
            eps_warmup_updates=round(self.eps_warmup_epochs * updates_per_epoch),
            **{name: getattr(self, name) for name in names})

    def augment(self) -> Augment:
        """The augmentation of real images."""
        return Augment(
            crop_padding=self.crop_padding, hflip=self.hflip, color_jitter=self.color_jitter, cutout=self.cutout,
            erase_prob=self.reprob, cutmix=self.cutmix)

    def validation_attack(self, seed: int, *, compile: CompileSettings | None = None) -> PGD:
        """The PGD attack of validation."""
        steps, step_size = self.val_attack_steps, self.val_attack_step_size
        if steps is None:
            steps, step_size = self.attack_steps, step_size or self.attack_step_size
        return PGD(
            eps=self.eps, norm=self.norm, step_size=step_size, steps=steps, seed=seed, compile=compile,
            capture=self.capture)

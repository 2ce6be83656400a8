"""Adversarial training, from a data set and a model's name to a robustness report.

    python recipes/adv_train.py --model resnet18_psoftplus

Without other arguments it trains on the embedded digits as configs/digits.yaml says. A run's folder (--output DIR,
--experiment NAME) receives args.yaml, summary.csv, last.pth.tar, model_best.pth.tar and report.json.
"""
import dataclasses
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from _cli import RunFailed, parse_config, run, setting
from _saver import RunSaver
from _settings import (
    DataConfig,
    EvaluationConfig,
    at_least,
    build_model,
    choose_device,
    free_folder,
    open_dataset,
    open_synthetic,
    placed,
    verify,
)
from _view import AttackView, TrainingView, duration
from rich.console import Console
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from timm.utils import update_summary
from torch import nn

from timm_paf import paf_parameters
from timm_paf.attacks import PGD, parse_eps
from timm_paf.data import Augment, DataChanged, ImageSource, LabelledImages, MixedBatches, Prefetched
from timm_paf.evaluation import accuracy_under_attack, clean_accuracy, evaluate_robustness
from timm_paf.models import load_weights
from timm_paf.tasks import AdversarialTrainingTask

CONFIGS = Path(__file__).parent / 'configs'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, EvaluationConfig):
    """Settings of a training run; the flags are timm's where timm has them."""
    model: str = setting('wrn10_2_pssilu', "a name of timm's registry, ours or any other")
    initial_checkpoint: Optional[str] = setting(None, 'start from the weights of this file')
    output: str = setting('output/train', 'folder of runs')
    experiment: Optional[str] = setting(None, 'name of the run in it; unset: date, time and model')

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

    task: str = setting('pgd-at', 'pgd-at: adversarial training; plain: none', choices=('pgd-at', 'plain'))
    attack_steps: int = setting(10, 'PGD steps in training and validation')
    attack_step_size: Optional[str] = setting(None, 'PGD step, as eps; unset: 2.5 eps / attack_steps')
    beta_penalty: float = setting(10., 'weight of |beta| in the loss, for activations with a learned beta')
    beta_grad_clip: Optional[float] = setting(0.01, 'largest gradient norm of beta')

    epochs: int = setting(12, 'passes over the real training images')
    batch_size: int = setting(128, 'images a batch, real and synthetic')
    opt: str = setting('sgd', "optimizer, by timm's name")
    lr: Optional[float] = setting(None, 'learning rate; unset: lr_base * batch_size / lr_base_size')
    lr_base: float = setting(0.1, 'learning rate for lr_base_size images')
    lr_base_size: int = setting(128, 'see lr_base')
    momentum: float = setting(0.9, 'momentum')
    weight_decay: float = setting(5e-4, 'weight decay')
    filter_bias_and_bn: bool = setting(False, 'leave BatchNorm, biases, alpha and beta out of weight decay')
    sched: str = setting('cosine', "learning rate schedule, by timm's name; one step an update")
    min_lr: float = setting(0.001, 'where the schedule ends')
    warmup_epochs: int = setting(0, 'epochs of linear warm-up')
    model_ema: bool = setting(False, 'average the weights, and validate and keep the average')
    model_ema_decay: float = setting(0.995, 'decay of the average, each update')
    eval_metric: str = setting(
        'robust', 'what the best checkpoint is chosen by, on the validation split: robust or clean accuracy',
        choices=('robust', 'clean'))
    checkpoint_hist: int = setting(1, 'how many of the best checkpoints to keep')
    log_interval: int = setting(5, 'updates between looks at the loss')

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        EvaluationConfig.__post_init__(self)
        for name in ('attack_steps', 'epochs', 'batch_size', 'lr_base_size', 'checkpoint_hist', 'log_interval',
                     'num_synthetic'):
            at_least(self, name, 1)
        for name in ('crop_padding', 'beta_penalty', 'momentum', 'weight_decay', 'min_lr', 'warmup_epochs', 'lr_base'):
            at_least(self, name, 0)
        if not 0 <= self.synthetic_fraction <= 1:
            raise ValueError(f'--synthetic-fraction = {self.synthetic_fraction}: expected a number from 0 to 1.')
        if not 0 <= self.model_ema_decay < 1:
            raise ValueError(f'--model-ema-decay = {self.model_ema_decay}: expected a number from 0 to below 1.')
        if self.attack_step_size is not None:
            parse_eps(self.attack_step_size, label='--attack-step-size')

    def augment(self) -> Augment:
        """What is done to real images."""
        return Augment(
            crop_padding=self.crop_padding, hflip=self.hflip, color_jitter=self.color_jitter, cutout=self.cutout,
            erase_prob=self.reprob, cutmix=self.cutmix)

    def training_attack(self, seed: int) -> PGD:
        """The PGD that training, or with another seed validation, uses."""
        return PGD(eps=self.eps, step_size=self.attack_step_size, steps=self.attack_steps, seed=seed)


@dataclasses.dataclass
class Run:
    """Everything that a run needs, opened and checked; nothing has been written yet."""
    config: TrainConfig
    folder: Path
    device: torch.device
    batches: MixedBatches
    val: LabelledImages
    test: LabelledImages
    task: TrainingTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    console: Console


def prepare(argv: Optional[list[str]] = None) -> Run:
    """Settings to a run that is ready to start."""
    config = parse_config(
        TrainConfig, argv, description=(__doc__ or '').splitlines()[0], default_config=lambda: CONFIGS / 'digits.yaml')
    device = choose_device(config.device)
    experiment = config.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{config.model}'
    folder = free_folder(config.output, experiment)
    console = Console()
    train, val, test = open_dataset(config.dataset, config)
    synthetic: list[ImageSource] = []
    if config.synthetic_fraction > 0:
        synthetic = open_synthetic(
            config.synthetic, joined=not config.synthetic_weights, num_synthetic=config.num_synthetic,
            dataset=config.dataset, like=train)
    if config.verify_data:
        verify(archives_of(config, train, synthetic), console)
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=train.num_classes, in_chans=train.image_shape[0])
    if config.initial_checkpoint is not None:
        load_weights(model, config.initial_checkpoint)
    model.to(device)

    train, *synthetic = placed(
        [train, *synthetic], device, mode=config.data_on_device, budget=config.data_on_device_budget)
    batches = MixedBatches(
        train, synthetic, batch_size=config.batch_size, synthetic_fraction=config.synthetic_fraction, seed=config.seed,
        synthetic_weights=config.synthetic_weights or None, real_augment=config.augment(),
        synthetic_augment=config.augment() if config.synthetic_augment == 'same' else Augment(),
        smoothing=config.smoothing, synthetic_smoothing=config.synthetic_smoothing, device=device)

    task: TrainingTask
    criterion = nn.CrossEntropyLoss()
    if config.task == 'plain':
        task = ClassificationTask(model, criterion, device=device, verbose=False)
    else:
        task = AdversarialTrainingTask(
            model, config.training_attack(config.seed), criterion=criterion, beta_penalty=config.beta_penalty,
            beta_grad_clip=config.beta_grad_clip, device=device, verbose=False)
    lr = config.lr_base * config.batch_size / config.lr_base_size if config.lr is None else config.lr
    optimizer = create_optimizer_v2(
        model, opt=config.opt, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum,
        filter_bias_and_bn=config.filter_bias_and_bn)
    if isinstance(task, AdversarialTrainingTask):
        task.attach_optimizer(optimizer)
    if config.model_ema:
        task.setup_ema(decay=config.model_ema_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched=config.sched, num_epochs=config.epochs, warmup_epochs=config.warmup_epochs,
        min_lr=config.min_lr, step_on_epochs=False, updates_per_epoch=len(batches))
    if scheduler is None:
        raise ValueError(f'--sched = {config.sched!r}: timm knows no such schedule.')
    config = dataclasses.replace(config, device=str(device), lr=lr, experiment=experiment)
    return Run(config, folder, device, batches, val, test, task, optimizer, scheduler, console)


def archives_of(config: TrainConfig, train: ImageSource, synthetic: list[ImageSource]) -> list[ImageSource]:
    """Those sources that are archives on disk."""
    return [*([train] if Path(config.dataset).exists() else []), *synthetic]


def train(job: Run) -> None:
    """Train, keep the checkpoint that is best on the validation split, measure it on the test split."""
    config, view = job.config, TrainingView(job.console, epochs=job.config.epochs, steps=len(job.batches))
    settings = {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / 'args.yaml').write_text(yaml.safe_dump(settings, sort_keys=False))
    saver = RunSaver(
        settings=settings, model=job.task.get_trainable_module(), optimizer=job.optimizer, task=job.task,
        checkpoint_dir=str(job.folder), max_history=config.checkpoint_hist)

    view.say(announcement(job))
    with view:
        for epoch in range(config.epochs):
            try:
                trained = train_epoch(job, epoch, view)
            except DataChanged as error:
                raise RunFailed(
                    f'{error}; the checkpoints in {job.folder} are from before epoch {epoch + 1}.') from error
            checked = validate(job)
            metric = checked[config.eval_metric]
            best, best_epoch = saver.save_checkpoint(epoch, metric)
            shape = shape_values(job.task.get_trainable_module())
            update_summary(
                epoch, trained, {**checked, **shape}, str(job.folder / 'summary.csv'),
                lr=job.optimizer.param_groups[0]['lr'], write_header=epoch == 0)
            view.epoch(
                epoch, loss=trained['loss'], robust=trained['robust'], val_clean=checked['clean'],
                val_robust=checked['robust'], images_per_second=trained['images_per_second'], shape=shape,
                best=best_epoch == epoch, data_wait=trained['data_wait'])
    measured = f'under PGD-{config.attack_steps}' if config.eval_metric == 'robust' else 'clean'
    view.say(f'best on the validation split: epoch {best_epoch + 1}, {best:.1f} % {measured}')

    checkpoint = job.folder / 'model_best.pth.tar'
    model = build_model(config.model, num_classes=job.test.num_classes, in_chans=job.test.image_shape[0])
    load_weights(model, checkpoint)
    report_robustness(model.to(job.device), job, checkpoint)


def train_epoch(job: Run, epoch: int, view: TrainingView) -> dict[str, float]:
    """One pass over the real images; returns means over the images of the epoch."""
    with Prefetched(job.batches.epoch(epoch), device=job.device, threaded=job.config.prefetch) as batches:
        return train_on(job, epoch, batches, view)


def train_on(job: Run, epoch: int, batches: Prefetched, view: TrainingView) -> dict[str, float]:
    """`train_epoch` on its batches."""
    task, optimizer, steps = job.task, job.optimizer, len(job.batches)
    task.train()
    totals = torch.zeros(2, device=job.device)  # loss times images, correct under attack: read back once in a while
    bad_step = torch.full((), -1, device=job.device)
    images, started, measured_from = 0, time.monotonic(), 0
    for step, batch in enumerate(batches):
        result = task(batch.x, batch.target)
        optimizer.zero_grad(set_to_none=True)
        result['loss'].backward()
        optimizer.step()
        task.update_ema(step=epoch * steps + step + 1)
        job.scheduler.step_update(num_updates=epoch * steps + step + 1)

        loss = result['loss'].detach()
        bad_step = torch.where((bad_step < 0) & ~torch.isfinite(loss), step, bad_step)
        totals += torch.stack([loss * len(batch), (result['output'].argmax(1) == batch.y).sum().to(loss)])
        images += len(batch)
        if step % job.config.log_interval and step != steps - 1:
            view.step(epoch, step, loss=None, robust=None, images_per_second=None, shape={})
            continue
        if (first := int(bad_step)) >= 0:
            raise RunFailed(
                f'the loss became NaN or infinite at step {first} of epoch {epoch + 1}; the checkpoints in '
                f'{job.folder} are from before it. Try a smaller --lr, or --warmup-epochs.')
        seconds = time.monotonic() - started
        view.step(
            epoch, step, loss=float(totals[0]) / images, robust=100 * float(totals[1]) / images,
            images_per_second=images / seconds, shape=shape_values(task.get_trainable_module()),
            data_wait=100 * batches.waited / seconds)
        if epoch == 0 and step == 0:  # the first update also warms up; the estimate is made from the next ones
            measured_from, warm = images, time.monotonic()
        elif epoch == 0 and step <= job.config.log_interval:
            view.say(time_estimate(job, (time.monotonic() - warm) / (images - measured_from)))
    seconds = time.monotonic() - started
    return {
        'loss': float(totals[0]) / images, 'robust': 100 * float(totals[1]) / images,
        'images_per_second': images / seconds, 'data_wait': 100 * batches.waited / seconds,
    }


@torch.no_grad()
def validate(job: Run) -> dict[str, float]:
    """Clean accuracy and accuracy under the training attack on the validation split, in percent."""
    model = job.task.get_eval_model(ema=job.config.model_ema)
    arguments = dict(batch_size=job.config.eval_batch_size, device=job.device)
    # the seed is fixed so that epochs are compared under one and the same attack
    attack = job.config.training_attack(job.config.seed + 1)
    clean = clean_accuracy(model, job.val.images, job.val.labels, **arguments)
    robust = accuracy_under_attack(model, job.val.images, job.val.labels, attack=attack, **arguments)
    return {'clean': clean.percent, 'robust': robust.percent}


def report_robustness(model: nn.Module, job: Run, checkpoint: Path) -> None:
    """Clean, PGD and AutoAttack accuracy on the test split: report.json and a table."""
    try:
        with AttackView(job.console, 'the test split') as view:
            report = evaluate_robustness(
                model, job.test.images, job.test.labels, **job.config.evaluation(), device=job.device,
                progress=view.progress,
                model_name=job.config.model, dataset=job.config.dataset, split='test', checkpoint=checkpoint)
    except ValueError as error:
        raise RunFailed(f'{error} The checkpoints in {job.folder} are kept.') from error
    report.save(job.folder / 'report.json')
    job.console.print(report.table())
    job.console.print(f'results in {job.folder}', highlight=False, soft_wrap=True)


def shape_values(model: nn.Module) -> dict[str, float]:
    """alpha and beta of a model by name; a parameter with one value per channel gives one entry each."""
    values: dict[str, float] = {}
    for name, parameter in paf_parameters(model).items():
        entries = parameter.detach().flatten().tolist()
        values.update({name: entries[0]} if len(entries) == 1 else {f'{name}[{i}]': v for i, v in enumerate(entries)})
    short = {name.rsplit('.', 1)[-1]: value for name, value in values.items()}
    return short if len(short) == len(values) else values


def announcement(job: Run) -> str:
    """One line that says what is trained on what."""
    config, batches = job.config, job.batches
    parameters = sum(p.numel() for p in job.task.get_trainable_module().parameters())
    attack = f'PGD-{config.attack_steps} at eps {config.eps}' if config.task == 'pgd-at' else 'no attack'
    return (
        f'{config.model} ({parameters:,} parameters) on {config.dataset}: {len(batches.real):,} real images, '
        f'{batches.synthetic_per_batch} synthetic in {config.batch_size}, {config.epochs} epochs of {len(batches)} '
        f'updates, {attack}, on {job.device}')


def time_estimate(job: Run, seconds_per_image: float) -> str:
    """How long the run will take, from the first updates."""
    config = job.config
    passes = 1 if config.task == 'plain' else config.attack_steps + 1
    training = config.epochs * len(job.batches) * config.batch_size * seconds_per_image
    text = f'about {duration(training)} of training'
    if config.autoattack == 'standard':
        # An image that stands to the end costs AutoAttack 1910 forward and backward passes and 5949 forward passes;
        # a forward pass is a third of both together. Most images do not stand that long.
        attacked = min(config.n_examples or len(job.test), len(job.test))
        measuring = attacked * (1910 + 5949 / 3) * seconds_per_image / passes
        text += f', then up to {duration(measuring)} of AutoAttack on {attacked} images'
    return text


if __name__ == '__main__':
    sys.exit(run(prepare, train))

"""Accuracy under the attacks of the settings, and examples of attacked images, for training and measurement."""
import dataclasses
from typing import Any

import torch
from torch import nn

from timm_paf.attacks import PGD
from timm_paf.data import LabelledImages
from timm_paf.engine.compilation import compile_settings
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.validate_config import ValidateConfig
from timm_paf.evaluation import RobustnessReport, adversarial_examples, evaluate_robustness

__all__ = ['measure_attacks', 'with_examples']


def measure_attacks(
        model: nn.Module, data: LabelledImages, config: TrainConfig | ValidateConfig, **more: Any) -> RobustnessReport:
    """Clean, PGD and AutoAttack accuracy on float32 images; `more` are further arguments of `evaluate_robustness`.

    Raises:
        ValueError: If images, labels or logits are not as expected.
    """
    return evaluate_robustness(
        model, data.images, data.labels, **config.evaluation(), model_name=config.model, dataset=config.dataset,
        compile=compile_settings(config), **more)


def with_examples(
        report: RobustnessReport, model: nn.Module, data: LabelledImages, config: TrainConfig | ValidateConfig,
        device: torch.device,
) -> RobustnessReport:
    """The report with examples of images that PGD attacks."""
    threat = config.threat()
    return dataclasses.replace(report, examples=adversarial_examples(
        model, data.images, data.labels, title=f'PGD-{config.pgd_steps} ({threat})', device=device,
        attack=PGD(eps=threat.radius, steps=config.pgd_steps, norm=threat.norm, seed=config.seed),
        seeds=torch.arange(len(data))))

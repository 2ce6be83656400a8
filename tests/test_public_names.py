"""The public names of each module: what contributing.md promises to keep, or to remove with a warning first."""
import importlib
import pkgutil
from pathlib import Path

import pytest
import yaml

import timm_paf

ROOT = Path(__file__).resolve().parents[1]
# A new name is added here. Before a name is removed here, it has warned for the time that contributing.md states.
PUBLIC = {
    'timm_paf': '''
        __version__ activation_summary convert_activations fix_parameters functional kernels models paf_parameters
        project_parameters register_activations shape shared to_robustbench''',
    'timm_paf.activations': '''
        ACTIVATIONS BETA_BOUND ConversionReport LeftAlone PELU PELUPlus PReLU0 PReLUPlus PSSiLU PSSiLUFixed PSiLU
        PSoftplus ParametricActivation REGISTERED ReBLU Replacement SHARING SSiLU Softplus activation_class
        activation_places activation_summary check_parameters convert_activations fix_parameters functional paf_modules
        paf_parameters project_parameters put_activations register_activations shape shared shared_activations''',
    'timm_paf.attacks': '''
        AutoAttackResult BALLS Ball COMPONENTS CompileSettings CompiledModel ComponentRun Expected FGSM LOSSES
        Normalized PGD PixelCheck STEP_RULES ThreatModel attack_mode autoattack autoattack_passes check_images
        check_pixels check_state eval_mode frozen_parameters kl_divergence parse_eps pointwise_worst_case
        rehearse_autoattack release_graphs still_statistics write_verdicts''',
    'timm_paf.data': '''
        Augment Batch ConcatenatedImages DataChanged DataSplits DatasetOptions Decoding EvaluationImages ImageSource
        ImagesWithout LabelledImages MixedBatches Prefetched all_labels cached_synthetic_digits check_classes
        class_names derive_seed digits_splits free_bytes held_out manifest_parts match_classes names_of_classes
        open_archive open_archives open_dataset place_on_device read_manifest sample_report sample_synthetic
        save_archive source_notes to_unit_range verify_archive''',
    'timm_paf.engine': '''
        Callback Cell EMA Measurement RunFailed RunFinished RunStopped Sweep SweepConfig TrainConfig TrainStep Trainer
        ValidateConfig cell_state check_sweep dry_run list_cells measure open_run parse_train_config
        parse_validate_config read_sweep run run_cell run_sweep submit_sweep sweep_page sweep_rows train validate
        write_table''',
    'timm_paf.evaluation': '''
        Accuracy BENCHMARK_CORRUPTIONS ClassAccuracy CorruptionArchive CorruptionReport CurvePoint Example Measurement
        RobustnessCurve RobustnessReport TrustCheck TrustReport accuracy_by_class accuracy_under_attack
        adversarial_examples check_state check_trust clean_accuracy corruption_accuracy curve_radius
        evaluate_robustness library_versions robustbench_info robustbench_obstacles robustness_curve''',
    'timm_paf.kernels': '''
        batch_norm_act runs_as_written use''',
    'timm_paf.models': '''
        CifarResNet CifarVGG ImageNetResNet PreActResNet WideResNet checkpoint_normalization load_weights model_card
        published_normalization read_checkpoint save_for_hf select_state_dict to_robustbench''',
    'timm_paf.synthesis': '''
        Diffusion Labeller PartMaker SynthesisFailed SyntheticConfig check_folder fit_diffusion import_diffusers
        load_diffusion load_labeller''',
    'timm_paf.tasks': '''
        AdversarialTrainingTask BatchLoss MARTTask TASKS TRADESTask TaskOptions WeightPerturbation
        boosted_cross_entropy create_task learnable_betas mart_loss paf_parameter_groups trades_loss''',
    'timm_paf.activations.functional': '''
        ALPHA_MAX BETA_MAX PSOFTPLUS_ALPHA_MIN pelu peluplus prelu0 preluplus psilu psoftplus pssilu pssilu_fixed reblu
        ssilu''',
    'timm_paf.activations.shape': '''
        Activation ActivationShape Break MEAN_RANGE describe plot''',
    'timm_paf.evaluation.page': '''
        Section figure image_uri number render''',
}


@pytest.mark.parametrize('module', PUBLIC)
def test_public_names_are_those_of_this_list(module):
    listed, found = set(PUBLIC[module].split()), importlib.import_module(module).__all__
    assert set(found) == listed and len(found) == len(listed)


def test_every_folder_of_the_package_has_a_list():
    folders = {f'timm_paf.{info.name}' for info in pkgutil.iter_modules(timm_paf.__path__) if info.ispkg}
    assert folders - {'timm_paf.configs'} <= set(PUBLIC)


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == timm_paf.__version__

"""For every flag of the recipes a test that fails when the value of the flag is dropped.

As a command it proves it: each test is run with the flag read and then forgotten, and the flags whose test passes all
the same are printed. `python tests/recipes/flag_tests.py [train|validate] [FLAG …]` looks at some of them alone.
"""
import contextlib
import importlib
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPTS = {'train': 'adv_train', 'validate': 'adv_validate'}

_CHANGES = 'adv_train_tasks::test_the_flag_changes_the_weights'
_ENGINE = 'adv_train_engine::test_'
_REFUSED = 'adv_train_engine::test_bad_settings_are_one_line_and_write_nothing'
_WRONG = 'adv_train::test_bad_settings_are_one_line_and_write_nothing'
_SCHEDULES = 'adv_train_engine::test_timms_schedules'
_ONECYCLE = 'adv_train_engine::test_onecycle_is_that_of_its_formula'
_AVERAGE = 'adv_train_engine::test_average_follows_its_rule_and_copies_buffers'
_TRACKED = 'trackers::test_a_run_tells_those_that_its_flags_name'
_OPENED = 'data_flags::test_the_flag_decides_what_is_opened'
_PIXELS = 'data_flags::test_the_flag_decides_which_pixels_validation_sees'
_ARCHIVES = 'data_flags::test_archives_are_those_named'
_DOWNLOAD = 'data_flags::test_a_data_set_is_downloaded_only_when_asked_for'
_TRAINED = 'measuring_flags::test_training_measures_as_told'
_MEASURED = 'measuring_flags::test_validation_measures_as_told'
_REPORT = 'adv_validate::test_everything_that_was_asked_for_is_in_the_report'
_TRUST = 'adv_validate::test_signs_of_a_false_number_are_looked_for_as_told'
_ENTRY = 'adv_validate::test_robustbench_entry_with_what_is_in_its_way'


def _of_data(recipe: str) -> dict[str, str]:
    opened = ('dataset', 'data-dir', 'val-size', 'train-split', 'val-split', 'test-split', 'in-chans', 'img-size',
              'train-crop-mode', 'workers')
    return {
        **{flag: f'{_OPENED}[{flag}-{recipe}]' for flag in opened},
        **{flag: f'{_PIXELS}[{flag}-{recipe}]' for flag in ('split-seed', 'crop-pct')},
        **dict.fromkeys(('num-classes', 'test-data'), f'{_ARCHIVES}[{recipe}]'),
        'dataset-download': f'{_DOWNLOAD}[{recipe}]'}


TESTS = {'train': {
    **_of_data('train'),
    'train-crop-mode': 'data_flags::test_every_way_of_cropping_is_another',
    'config': 'cli::test_config_flag_replaces_the_default_file',
    **{flag: f'{_TRAINED}[{flag}]' for flag in ('pgd-steps', 'autoattack', 'n-examples', 'eval-batch-size')},
    'device': f'{_WRONG}[device]',
    **{flag: f'{_CHANGES}[{name}]' for flag, name in {
        'eps': 'eps', 'seed': 'seed', 'attack-steps': 'attack steps', 'attack-step-size': 'attack step size',
        'attack-step-rule': 'step rule', 'attack-loss': 'attack loss', 'attack-mode': 'attack mode',
        'attack-random-start': 'random start', 'task': 'trades', 'trades-beta': 'trades_beta', 'mart-beta': 'mart_beta',
        'norm': 'norm', 'eps-warmup-epochs': 'eps_warmup', 'awp-gamma': 'awp', 'awp-start-epoch': 'awp start',
        'beta-penalty': 'penalty', 'beta-grad-clip': 'beta clip', 'beta-bound': 'beta bound',
        'epochs': 'epochs', 'updates-per-epoch': 'updates of an epoch', 'batch-size': 'batch size', 'opt': 'optimizer',
        'lr': 'rate', 'lr-base': 'base rate', 'lr-base-size': 'base size', 'momentum': 'momentum',
        'weight-decay': 'weight decay', 'paf-lr': 'rate of alpha and beta',
        'paf-weight-decay': 'decay of alpha and beta', 'sched': 'schedule', 'min-lr': 'lowest rate',
        'decay-epochs': 'decay epochs', 'amp': 'precision', 'amp-dtype': 'half precision',
        'num-synthetic': 'images made', 'synthetic-fraction': 'weights of real images alone',
        'synthetic-augment': 'augmented synthetic images', 'synthetic-smoothing': 'synthetic smoothing',
        'smoothing': 'smoothing', 'crop-padding': 'shifts', 'hflip': 'mirroring', 'color-jitter': 'brightness',
        'cutout': 'blank square', 'reprob': 'blank rectangle', 'cutmix': 'cutmix',
        'onecycle-div-factor': 'onecycle start', 'onecycle-final-div-factor': 'onecycle end'}.items()},
    'model': f'{_ENGINE}dry_run_shows_and_writes_nothing',
    'model-kwargs': f'{_REFUSED}[model argument]',
    'initial-checkpoint': 'adv_train::test_initial_checkpoint_is_where_training_starts',
    'act-fixed': f'{_ENGINE}fixed_activation_stays',
    'act-sharing': 'adv_train_tasks::test_sharing_of_activations[layer-7]',
    'output': f'{_ENGINE}fixed_activation_stays',
    'experiment': f'{_ENGINE}fixed_activation_stays',
    'resume': 'adv_train_resume::test_stopped_run_goes_on_to_the_same_result[3-SIGTERM]',
    'resume-changed': 'adv_train_resume::test_changed_settings_hold_when_allowed',
    'dry-run': f'{_ENGINE}dry_run_shows_and_writes_nothing',
    'synthetic': 'adv_train::test_archives_of_synthetic_images_are_read',
    'synthetic-weights': 'adv_train::test_weights_make_sources_of_paths_and_patterns',
    'verify-data': 'adv_train::test_verification_asks_for_every_archive',
    'data-on-device': 'loop_flags::test_images_that_must_stay_on_the_device[yes-0-False]',
    'data-on-device-budget': 'loop_flags::test_images_that_must_stay_on_the_device[yes-0-False]',
    'prefetch': 'loop_flags::test_batches_are_made_in_a_thread[prefetch]',
    'grad-accum-steps': f'{_ENGINE}accumulation_runs_the_model_on_pieces',
    'opt-fused': "compilation::test_fused_where_it_can_be[['--no-opt-fused']-False]",
    **dict.fromkeys(('opt-eps', 'opt-betas'), f'{_ENGINE}optimizer_options'),
    'filter-bias-and-bn': 'adv_train::test_weight_decay_of_alpha_is_the_settings_choice[False]',
    'layer-decay': f'{_ENGINE}layer_decay',
    **dict.fromkeys(('clip-grad', 'clip-mode'), f'{_ENGINE}clipping'),
    'sched-on-updates': f'{_SCHEDULES}[by epochs]',
    'decay-rate': f'{_SCHEDULES}[by epochs]',
    'decay-milestones': f'{_SCHEDULES}[multistep]',
    **dict.fromkeys(('warmup-epochs', 'warmup-lr'), f'{_SCHEDULES}[warm-up]'),
    'cooldown-epochs': f'{_ENGINE}cool_down_comes_after_the_other_epochs',
    'onecycle-pct-start': _ONECYCLE,
    'onecycle-momentum': f'{_ENGINE}onecycle_by_epochs_and_without_momentum',
    **dict.fromkeys(('model-ema', 'model-ema-decay', 'model-ema-warmup', 'model-ema-copy'), _AVERAGE),
    'channels-last': f'{_ENGINE}channels_last_reaches_images_and_weights',
    **dict.fromkeys(('torchcompile', 'torchcompile-mode'), 'measuring_flags::test_compilation_of_training_is_as_told'),
    'grad-checkpointing': f'{_ENGINE}checkpointed_gradients_recompute',
    'synchronize-step': 'loop_flags::test_every_update_waits_for_the_gpu[cuda-synchronize]',
    'sync-bn': f'{_REFUSED}[sync_bn]',
    'dist-bn': 'loop_flags::test_running_statistics_of_several_processes[broadcast]',
    'val-interval': f'{_ENGINE}validation_now_and_then_and_at_the_end',
    **dict.fromkeys(('val-attack-steps', 'val-attack-step-size'), f'{_ENGINE}validation_attack_is_its_own'),
    'eval-metric': 'adv_train::test_best_checkpoint_can_be_the_most_accurate',
    'checkpoint-hist': f'{_ENGINE}best_checkpoints_are_kept_by_number',
    'checkpoint-minutes': 'loop_flags::test_checkpoints_inside_an_epoch[1e-9-5]',
    'log-interval': 'loop_flags::test_looks_at_the_loss[1]',
    'log-tensorboard': f'{_TRACKED}[tensorboard]',
    **dict.fromkeys(('log-wandb', 'wandb-project', 'wandb-tags'), f'{_TRACKED}[wandb]'),
}, 'validate': {
    **_of_data('validate'),
    **{flag: f'{_MEASURED}[{flag}]' for flag in (
        'pgd-steps', 'autoattack', 'n-examples', 'eval-batch-size', 'seed', 'torchcompile', 'attack',
        'save-adv')},
    'torchcompile-mode': f'{_MEASURED}[torchcompile]',
    **dict.fromkeys(('eps', 'norm'), f'{_MEASURED}[eps and norm]'),
    'device': 'adv_validate::test_mistakes_are_told_before_anything_is_measured[--device abacus-]',
    'checkpoint': f'{_MEASURED}[seed]',
    **dict.fromkeys(('model', 'model-kwargs', 'act-sharing'), 'measuring_flags::test_arguments_of_the_model'),
    'split': 'adv_train::test_archive_as_data_set_trains_to_a_report',
    'use-ema': 'measuring_flags::test_averaged_or_raw_weights[raw]',
    'resume': 'adv_validate_autoattack::test_interrupted_run_goes_on',
    **dict.fromkeys(('output', 'eps-curve', 'n-curve', 'corruptions'), _REPORT),
    'trust': f'{_TRUST}[--no-trust]',
    'n-trust': f'{_TRUST}[--n-trust 9]',
    'html': 'adv_validate::test_a_report_of_other_weights_is_not_compared_with',
    **{f'robustbench-{name}': _ENTRY for name in (
        'json', 'link', 'name', 'authors', 'venue', 'additional-data', 'architecture', 'reported', 'footnote')},
}}


def node(test: str) -> str:
    """What pytest calls a test of the tables."""
    return f'{HERE}/test_{test}'.replace('::', '.py::', 1)


class Forgetful:
    """A pytest plugin: the command line of one recipe forgets the value of a flag."""

    def __init__(self, recipe: str, flag: str) -> None:
        self.recipe, self.flag = recipe, flag

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Around a test and its fixtures."""
        import _cli
        script = importlib.import_module(SCRIPTS[self.recipe])
        others = {importlib.import_module(name).__doc__ for name in SCRIPTS.values()} - {script.__doc__}
        original, name = _cli._Parser.parse_args, self.flag.replace('-', '_')

        def parse_args(parser, *arguments):
            given = original(parser, *arguments)
            if not any(text.startswith(parser.description or '\0') for text in others):
                vars(given).pop(name, None)
            return given

        _cli._Parser.parse_args = parse_args
        try:
            return (yield)
        finally:
            _cli._Parser.parse_args = original


def survives(recipe: str, flag: str) -> bool:
    """Whether the test of a flag does not fail without it."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        status = pytest.main(
            ['-q', '-m', '', '-p', 'no:cacheprovider', '-c', str(HERE.parents[1] / 'pyproject.toml'),
             node(TESTS[recipe][flag])],
            plugins=[Forgetful(recipe, flag)])
    return status != pytest.ExitCode.TESTS_FAILED  # nor is a test that is not there one that fails


def main(recipes: tuple[str, ...], flags: tuple[str, ...]) -> int:
    """Print the flags whose tests do without them; their number, 1 at most, is the status."""
    left = [f'--{flag} of {SCRIPTS[recipe]}.py: {TESTS[recipe][flag]}'
            for recipe in recipes for flag in TESTS[recipe] if not flags or flag in flags if survives(recipe, flag)]
    print('\n'.join(left))
    return min(1, len(left))


if __name__ == '__main__':
    sys.path[:0] = [str(HERE.parents[1] / 'recipes'), str(HERE)]
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)  # a run that forgets its folder writes into this one
        named = tuple(word for word in sys.argv[1:] if word in SCRIPTS)
        sys.exit(main(named or tuple(SCRIPTS), tuple(word for word in sys.argv[1:] if word not in SCRIPTS)))

"""Every flag has a test that fails without it: none is missing, each is there, and (slow) each does fail."""
import dataclasses
import subprocess
import sys
from pathlib import Path

import adv_train
import adv_validate
import flag_tests
import pytest

FLAGS = {
    recipe: {field.name.replace('_', '-') for field in dataclasses.fields(config)} | more
    for recipe, config, more in (
        ('train', adv_train.TrainConfig, {'config'}), ('validate', adv_validate.ValidateConfig, set()))}


@pytest.mark.parametrize('recipe', flag_tests.TESTS)
def test_every_flag_names_its_test(recipe):
    assert set(flag_tests.TESTS[recipe]) == FLAGS[recipe]


def test_the_tests_are_there():
    """Collected by their names; pytest's status is another if one of them is not found."""
    named = sorted({flag_tests.node(test) for tests in flag_tests.TESTS.values() for test in tests.values()})
    # in a process of its own: collecting again here would make the test modules twice
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '--collect-only', '-qq', '-m', '', '-p', 'no:cacheprovider', *named],
        capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('recipe', flag_tests.TESTS)
def test_a_flag_whose_value_is_dropped_is_missed(recipe):
    result = subprocess.run([sys.executable, flag_tests.__file__, recipe], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ''), result.stdout + result.stderr

"""Cost of a network against sums by hand."""
from recipes.benchmarks import model_cost


def test_cost_of_one_architecture(figures):
    found = {column: value for (_, column), value in figures(model_cost.main, '--arch', 'wrn10_2').items()}
    multiply_adds = 1024 * (9 * 3 * 16 + 9 * 16 * 32 + 16 * 32 + 9 * 32 * 32)
    multiply_adds += 256 * (9 * 32 * 64 + 32 * 64 + 9 * 64 * 64) + 64 * (9 * 64 * 128 + 64 * 128 + 9 * 128 * 128) + 1280
    assert found['parameters'] == 303_706 and found['multiply-adds'] == multiply_adds / 1e9
    assert round(found['kept, relu, elu'], 2) == 1.01 and round(found['kept, all others'], 2) == 1.48

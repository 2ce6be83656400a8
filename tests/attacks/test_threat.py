from fractions import Fraction

import pytest

from timm_paf.attacks import ThreatModel, parse_eps


@pytest.mark.parametrize('text, value', [
    ('8/255', 8 / 255), (' 8 / 255 ', 8 / 255), ('0.5/255', 0.5 / 255), ('0.031', 0.031), (1, 1.), ('1e-3', 1e-3),
    (Fraction(1, 3), 1 / 3)], ids=str)
def test_numbers_and_fractions(text, value):
    assert parse_eps(text) == value


@pytest.mark.parametrize('text, message', [
    ('-8/255', 'greater than 0'), (0., 'greater than 0'), ('8', 'Did you mean 8/255'), (8, 'Did you mean 8/255'),
    *[(text, 'expected a number') for text in ('eight', '8/0', '8/', '1/2/3', float('nan'), 'inf', None, True)],
], ids=str)
def test_bad_radii_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_eps(text)


def test_threat_model_keeps_the_text():
    threat = ThreatModel(eps='8/255')
    assert (threat.eps, threat.radius, threat.norm, str(threat)) == ('8/255', 8 / 255, 'linf', 'linf 8/255')
    assert (ThreatModel(eps=12, norm='l1').radius, str(ThreatModel(eps=12, norm='l1'))) == (12., 'l1 12')
    with pytest.raises(ValueError, match="norm = 'l7'"):
        ThreatModel(eps='8/255', norm='l7')

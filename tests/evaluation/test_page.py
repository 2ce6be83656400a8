"""Report pages, parsed again by the parser of the standard library."""
import base64
import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from timm_paf.evaluation import (
    Accuracy,
    ClassAccuracy,
    CorruptionReport,
    CurvePoint,
    Example,
    Measurement,
    RobustnessCurve,
    RobustnessReport,
    TrustCheck,
    TrustReport,
    plots,
)
from timm_paf.evaluation.page import Section, figure, image_uri, number

VOID = {'meta', 'img', 'br'}
EVIL = '<script>alert("1")</script> & \'"'
PREFIX = 'data:image/png;base64,'


class Parsed(HTMLParser):
    """Tags with their attributes, and the text; checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.classes = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open
        self.text = ' '.join(' '.join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, attrs))
            for name in (dict(attrs).get('class') or '').split():
                self.classes.setdefault(name, []).append([])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def of(self, name):
        """The text of each element of a class."""
        return [' '.join(' '.join(texts).split()) for texts in self.classes.get(name, ())]

    def handle_data(self, data):
        if 'style' not in [tag for tag, _ in self.open]:
            self.texts.append(data)
        for _, attrs in self.open:
            for name in (dict(attrs).get('class') or '').split():
                self.classes[name][-1].append(data)

    def charts(self):
        return [attrs['aria-label'] for tag, attrs in self.tags if tag == 'figure' and 'aria-label' in attrs]

    def pictures(self):
        return [attrs['src'] for tag, attrs in self.tags if tag == 'img']


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX))))


def example(label=3, prediction=5, attack='PGD-20 (linf 0.2)'):
    return Example(
        original=torch.zeros(1, 8, 8), adversarial=torch.ones(1, 8, 8), label=label, clean_prediction=label,
        prediction=prediction, attack=attack)


def full_report(text='', **changes):
    """A report with every part; `text` is added to each of its texts."""
    check = TrustCheck(f'black box{text}', 'warn', f'found it{text}', f'gradients are masked{text}')
    attacked = Measurement(
        accuracy=Accuracy(50, 100), attack=f'PGD-20{text}', norm='linf', eps='8/255', steps=20, seed=0, seconds=3.,
        details={'warnings': [f'odd{text}'], 'clean_correct': 0, 'by': {'apgd-ce': 2}, 'runs': [1]})
    values = dict(
        measurements={'clean': Measurement(accuracy=Accuracy(90, 100), attack='none'), 'pgd': attacked},
        model=f'net{text}', dataset=f'digits{text}', split='test', checkpoint=f'a.pth{text}', checkpoint_sha256='ab12',
        by_class=(ClassAccuracy(label=4, clean=Accuracy(9, 10), robust=Accuracy(2, 10)),),
        trust=TrustReport(
            checks=(check,), images=10, norm='linf', eps='8/255', seed=7, forwards=20, backwards=30, square_images=3,
            seconds=1.),
        curve=RobustnessCurve(
            points=(CurvePoint(eps='0', eps_value=0., alone=Accuracy(9, 10), worst=Accuracy(9, 10)),
                    CurvePoint(eps='8/255', eps_value=8 / 255, alone=Accuracy(6, 10), worst=Accuracy(5, 10))),
            attack='PGD-20', norm='linf', steps=20, seed=7, seconds=1.),
        corruptions=CorruptionReport(
            accuracies={f'fog{text}': tuple(Accuracy(n, 10) for n in (9, 8, 7, 6, 5))}, archive=f'folder{text}',
            seconds=1.),
        examples=(example(attack=f'PGD-20{text}'), example(2, 2)))
    return RobustnessReport(**{**values, **changes})


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)


def test_every_part_is_on_the_page(tmp_path):
    full_report().save_page(tmp_path / 'report.html')
    text = (tmp_path / 'report.html').read_text()
    page = Parsed(text)
    for words in (
            'Robustness of net', '50 of 100 images', '40.4 to 59.6', 'PGD-20', '8/255', '50 / 100', 'ab12',
            '1 of 1 trust checks warn', 'gradients are masked',
            '3 forward and backward passes and 2 forward passes each',
            'at this or a smaller eps', 'Least robust: class 4', 'fog', 'attacked: 5', 'attacked: 2',
            'odd; clean correct: 0; by: apgd-ce 2', torch.__version__.split('+')[0]):
        assert words in page.text
    assert len(page.charts()) == 3
    # clean, attacked, and the change, which is stretched to the full range
    assert [np.asarray(decoded(uri)).max() for uri in page.pictures()] == [0, 255, 255, 0, 255, 255]
    assert Parsed(figure(EVIL, Figure)).charts() == [EVIL]
    # nothing is loaded from elsewhere
    links = ('src', 'href', 'xlink:href')
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in links]
    assert all(value.startswith((PREFIX, '#')) for value in sources)
    assert text.count('url(') == text.count('url(#') and '@import' not in text


@pytest.mark.usefixtures('no_matplotlib')
def test_all_text_is_escaped():
    section = Section(title=EVIL, text=[EVIL], header=[EVIL], rows=[[EVIL], [None]], columns='t', note=EVIL)
    text = full_report(EVIL).page(title=EVIL, subtitle=EVIL, sections=[section])
    page = Parsed(text)
    assert not any(tag in ('script', 'link', 'iframe') for tag, _ in page.tags) and '<script' not in text
    assert page.text.count('<script>alert("1")</script> &') >= 20  # shown as given


@pytest.mark.usefixtures('no_matplotlib')
def test_without_matplotlib_the_page_says_so():
    page = Parsed(full_report().page())
    assert page.text.count("pip install 'timm-paf[plot]'") == 3
    assert len(page.pictures()) == 6 and not page.charts() and '5 / 10' in page.text


@pytest.mark.usefixtures('no_matplotlib')
@pytest.mark.parametrize('missing, words', [
    ('trust', 'gradients are masked'), ('curve', 'Robust accuracy by eps'), ('corruptions', 'Common corruptions'),
    ('by_class', 'Accuracy by class'), ('examples', 'Attacked images')])
def test_parts_that_were_not_measured_are_left_out(missing, words):
    empty = () if missing in ('by_class', 'examples') else None
    assert words not in Parsed(full_report(**{missing: empty}).page()).text


def measured(correct, attack='none', total=360):
    return Measurement(accuracy=Accuracy(correct, total), attack=attack, **(
        {} if attack == 'none' else {'norm': 'linf', 'eps': '8/255'}))


@pytest.mark.parametrize('names', [
    ('clean',), ('clean', 'pgd'), ('clean', 'pgd', 'autoattack'), ('clean', 'pgd', 'autoattack', 'worst_case')])
@pytest.mark.parametrize('warned', [None, 0, 2])
def test_the_page_opens_with_the_numbers_of_the_json_file(names, warned, tmp_path):
    report = full_report(trust=None if warned is None else dataclasses.replace(full_report().trust, checks=tuple(
        TrustCheck(str(i), 'warn' if i < warned else 'pass', '', '') for i in range(5))), measurements={
            name: found for name, found in (
                ('clean', measured(346)), ('pgd', measured(194, 'PGD-20')), ('autoattack', measured(55, 'AA', 128)),
                ('worst_case', measured(54, 'worst of both', 128))) if name in names})
    report.save(tmp_path / 'report.json')
    stored = json.loads((tmp_path / 'report.json').read_text())
    page = Parsed(report.page())
    verdict, tiles = page.of('verdict')[0].replace('\N{NO-BREAK SPACE}', ' '), page.of('tile')
    strongest = stored[names[-1]]
    found = [stored['clean']] + [strongest] * (names[-1] != 'clean')
    assert re.findall(r'([\d.]+) % of ([\d,]+) ', verdict) == [
        (f'{100 * one["correct"] / one["total"]:.1f}', str(one['total'])) for one in found]
    if names[-1] != 'clean':
        low, high = (f'{100 * end:.1f}' for end in strongest['interval'])
        assert f'interval {low} to {high} %' in verdict and '8/255' in verdict
    words = {None: 'not run', 0: 'None of the 5', 2: '2 of 5'}[warned]
    assert words in verdict
    assert len(tiles) == min(len(names), 3)
    for tile, name in zip(tiles, (*names[:2], names[-1]), strict=False):
        assert f'{stored[name]["correct"]} of {stored[name]["total"]} images' in tile


@pytest.mark.parametrize('value, text', [
    (0., '0.000'), (100., '100.0'), (1e-7, '1.000e-07'), (-0.012346, '-0.01235'), (1234.6, '1235'),
    (float('nan'), 'nan'), (float('inf'), 'inf'), (12, '12'), (None, ''), ('x', 'x')], ids=str)
def test_numbers(value, text):
    assert number(value) == text


def test_equal_figures_give_equal_text_in_the_colours_of_the_page():
    curve = full_report().curve
    one, other = (figure('x', plots.plot_curve, curve) for _ in range(2))
    assert one == other and not re.search(r'(fill|stroke): #(000000|ffffff)', one) and 'var(--accent)' in one


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (3, 'RGB'), (5, 'L')])
def test_images_become_png(channels, mode):
    image = torch.rand(channels, 5, 4)
    read = decoded(image_uri(image))
    shown = image.mean(0) if channels == 5 else image.permute(1, 2, 0).squeeze()
    assert read.mode == mode
    np.testing.assert_allclose(np.asarray(read) / 255, shown, atol=0.51 / 255)

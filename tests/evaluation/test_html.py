"""Pages parsed again by the standard library's parser."""
import base64
import io
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
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
    html,
    report_page,
)

VOID = {'meta', 'img', 'br'}
EVIL = '<script>alert("1")</script> & \'"'


class Parsed(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.texts).split())

    def pictures(self):
        return [base64.b64decode(attrs['src'].removeprefix('data:image/png;base64,'))
                for tag, attrs in self.tags if tag == 'img']


def example(label=3, prediction=5):
    return Example(
        original=torch.zeros(1, 8, 8), adversarial=torch.ones(1, 8, 8), label=label, clean_prediction=label,
        prediction=prediction, attack='PGD-20 (linf 0.2)')


def full_report(**changes):
    check = TrustCheck(name='black box', status='warn', finding='found it', meaning='gradients are masked')
    values = dict(
        measurements={
            'clean': Measurement(accuracy=Accuracy(90, 100), attack='none'),
            'pgd': Measurement(
                accuracy=Accuracy(50, 100), attack='PGD-20', norm='linf', eps='8/255', steps=20, seed=7, seconds=3.)},
        model='net', dataset='digits', split='test', checkpoint='a.pth', checkpoint_sha256='ab12',
        by_class=(ClassAccuracy(label=4, clean=Accuracy(9, 10), robust=Accuracy(2, 10)),),
        trust=TrustReport(
            checks=(check,), images=10, norm='linf', eps='8/255', seed=7, forwards=20, backwards=30, square_images=3,
            seconds=1.),
        curve=RobustnessCurve(
            points=(CurvePoint(eps='0', eps_value=0., alone=Accuracy(9, 10), worst=Accuracy(9, 10)),
                    CurvePoint(eps='8/255', eps_value=8 / 255, alone=Accuracy(6, 10), worst=Accuracy(5, 10))),
            attack='PGD-20', norm='linf', steps=20, seed=7, seconds=1.),
        corruptions=CorruptionReport(
            accuracies={'fog': tuple(Accuracy(n, 10) for n in (9, 8, 7, 6, 5))}, archive='folder', seconds=1.),
        examples=(example(), example(2, 2)))
    return RobustnessReport(**{**values, **changes})


def test_text_is_escaped_wherever_it_comes_from():
    png = html.image_png(torch.zeros(1, 2, 2))
    text = html.page(EVIL, [
        html.section(EVIL, EVIL, html.table([(EVIL, 1, None)], header=(EVIL, 'b', 'c'), caption=EVIL),
                     html.figure(png, EVIL, EVIL), html.badge(EVIL, EVIL), html.tiles([(EVIL, 0.5, EVIL)]),
                     html.pictures([html.Picture(png, EVIL, EVIL, 'bad')]), html.paragraph(EVIL, soft=True))],
        subtitle=EVIL)
    page = Parsed(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({'script', 'link', 'iframe'})
    assert text.count('<script') == 0
    assert page.text.count('<script>alert("1")</script> &') == 14  # each of them is shown as it was given
    assert {attrs['alt'] for tag, attrs in page.tags if tag == 'img'} == {EVIL}


def test_every_part_is_on_the_page():
    page = Parsed(report_page(full_report()))
    for words in (
            'Robustness of net', '50 of 100 images; 40.4 to 59.6 %', 'PGD-20', '8/255', '50 / 100', 'ab12',
            '1 of 1 checks warn', 'gradients are masked', '3 forward and backward passes and 2 forward passes each',
            'worst of this and smaller', 'Least robust: class 4', 'fog', 'attacked: 3 is taken for 5',
            'attacked: 2 is recognised', torch.__version__.split('+')[0]):
        assert words in page.text
    shown = [Image.open(io.BytesIO(png)) for png in page.pictures()]
    assert len(shown) == 3 + 4
    assert [np.asarray(image).max() for image in shown[-4:]] == [0, 255, 0, 255]


def test_nothing_is_fetched_from_elsewhere():
    text = report_page(full_report())
    page = Parsed(text)
    assert not any(tag in ('script', 'link') for tag, _ in page.tags)
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in ('src', 'href')]
    assert sources and all(value.startswith('data:') for value in sources)
    assert 'url(' not in text and '@import' not in text


@pytest.mark.parametrize('missing, words', [
    ('trust', 'Can it be believed?'), ('curve', 'Robust accuracy over eps'), ('corruptions', 'Common corruptions'),
    ('by_class', 'By class'), ('examples', 'Examples')])
def test_what_was_not_measured_is_not_shown(missing, words):
    assert words in Parsed(report_page(full_report())).text
    empty = () if missing in ('by_class', 'examples') else None
    assert words not in Parsed(report_page(full_report(**{missing: empty}))).text


def test_without_matplotlib_the_page_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    page = Parsed(report_page(full_report()))
    assert page.text.count("No figure: figures need matplotlib; install it with: pip install 'timm-paf[plot]'") == 3
    assert len(page.pictures()) == 4 and '5 / 10' in page.text


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (3, 'RGB'), (2, 'L'), (5, 'L')])
def test_images_become_png(channels, mode):
    image = torch.rand(channels, 5, 4)
    read = Image.open(io.BytesIO(html.image_png(image)))
    shown = image if channels in (1, 3) else image.mean(0, keepdim=True)
    assert (read.mode, read.size) == (mode, (4, 5))
    pixels = torch.from_numpy(np.asarray(read).copy()).reshape(5, 4, -1).permute(2, 0, 1)
    torch.testing.assert_close(pixels / 255, shown, atol=0.51 / 255, rtol=0)


def test_rows_must_fit_their_header():
    with pytest.raises(ValueError, match='a row of 1 cells under 2 titles'):
        html.table([('a',)], header=('b', 'c'))


def test_only_png_is_a_picture():
    with pytest.raises(ValueError, match='expected the bytes of a PNG file'):
        html.figure(b'GIF89a', 'moving')


def test_pairs_stay_together():
    shown = [html.Picture(html.image_png(torch.zeros(1, 1, 1)), 'a', str(n)) for n in range(4)]
    groups = [attrs for tag, attrs in Parsed(html.page('p', [html.pictures(shown, together=2)])).tags
              if attrs.get('class') == 'group']
    assert len(groups) == 2

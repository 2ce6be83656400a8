"""The built documentation in a browser: every page at the width of a desktop and of a phone.

    pytest -m slow tests/test_site.py

It builds the site first; the environment variable TIMM_PAF_SITE names the folder of one that is built already.
"""
import functools
import html
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def site(browser, tmp_path_factory):
    if os.environ.get('TIMM_PAF_SITE'):
        return Path(os.environ['TIMM_PAF_SITE']).resolve()
    folder = tmp_path_factory.mktemp('site')
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '-b', 'html', str(ROOT / 'docs'), str(folder)],
                   check=True, env={**os.environ, 'PYTHONPATH': path})
    return folder


@pytest.fixture(scope='module')
def address(site):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def pages(site):
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob('*.html') if '_static' not in path.parts)
    assert 'index.html' in found
    return found


def watched(context, address):
    """A tab, and a list of what goes wrong in it."""
    page, wrong = context.new_page(), []
    page.on('console', lambda message: message.type in ('error', 'warning') and wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('response', lambda reply: reply.status >= 400 and wrong.append(f'{reply.status} {reply.url}'))
    page.on('requestfailed', lambda request: request.failure != 'net::ERR_ABORTED' and wrong.append(  # left the page
        f'{request.failure}: {request.url}'))
    page.on('request', lambda request: request.url.startswith((f'{address}/', 'data:', 'blob:')) or wrong.append(
        f'leaves the machine: {request.url}'))
    return page, wrong


@pytest.mark.parametrize('width', [1280, 390])
def test_every_page_is_whole(browser, site, address, width):
    context = browser.new_context(viewport={'width': width, 'height': 900})
    page, wrong = watched(context, address)
    found = {}
    for name in pages(site):
        page.goto(f'{address}/{name}')
        broken = page.evaluate('[...document.images].filter(image => !image.naturalWidth).map(image => image.src)')
        if page.evaluate('document.documentElement.scrollWidth') > width:
            broken.append('wider than the window')
        if page.evaluate('[...document.querySelectorAll(".explorer .plot svg")].some('
                         'svg => svg.getBoundingClientRect().width != svg.getAttribute("width"))'):
            broken.append('a chart of another size than it was drawn for')
        found |= {name: [*wrong, *broken]} if wrong or broken else {}
        wrong.clear()
    context.close()
    assert found == {}


def test_no_link_is_dead(site):
    texts = {name: (site / name).read_text(encoding='utf-8') for name in pages(site)}
    places = {name: set(re.findall(r'\sid="([^"]+)"', text)) | {'', 'top'} for name, text in texts.items()}
    dead = []
    for name, text in texts.items():
        for link in {html.unescape(link) for link in re.findall(r'<a\s[^>]*?href="([^"]+)"', text)}:
            target, place = map(unquote, urldefrag(link))
            if re.match(r'[a-z]+:', link):
                continue
            file = os.path.normpath(Path(name).parent / target) if target else name
            if not (site / file).is_file() or place not in places.get(file, {place}):
                dead.append(f'{name}: {link}')
    assert dead == []


def test_search_finds_a_page(browser, site, address):
    context = browser.new_context()
    page, wrong = watched(context, address)
    page.goto(f'{address}/index.html')
    page.get_by_role('textbox', name='Search').first.fill('curvature')
    page.get_by_role('textbox', name='Search').first.press('Enter')
    page.locator('#search-results li a').first.click()
    page.wait_for_function("!location.pathname.endsWith('search.html')")
    assert 'curvature' in page.locator('article').inner_text().lower()
    context.close()
    assert wrong == []

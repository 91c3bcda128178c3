"What a reader meets on each page: code and its result within the first screens, few checks, pictures with words, no fault that axe knows"
import importlib.util
from pathlib import Path
import pytest
from chrome import Chrome, find
from measure import measure, pages
import front

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not find(), reason='no Chromium here: install the package `chromium` to run the browser tests')]
root = Path(__file__).resolve().parent.parent.parent
library = {front.page(p) for p in (root/'nbs').glob('[0-6]*.ipynb')}
lists = {'at_a_glance.html', 'api_index.html'} # of names: no code of their own

@pytest.fixture(scope='module')
def chrome():
    with Chrome() as c: yield c

@pytest.fixture(scope='module')
def found(chrome, site):
    "page → what `measure` says of it"
    return measure(chrome, site.as_uri()+'/', pages(site))

def late(d): return [k for k in ('use', 'output') if d[k] is None or d[k] > 1500]

def test_a_page_begins_with_the_payoff(found):
    bad = {n: (late(d), d['use'], d['output']) for n,d in found.items() if n not in lists and late(d)}
    assert not bad, f'first code or first output more than 1,500 pixels down: {bad}'

def test_few_of_the_visible_lines_are_checks(found):
    bad = {n: f"{d['asserts']} of {d['lines']}" for n,d in found.items() if d['asserts'] > .1*d['lines']}
    assert not bad, f'more than 10 % of the visible lines of code are checks: {bad}'

def test_pictures_say_what_is_seen(found):
    alts = [(n, a) for n,d in found.items() for a in d['alts']]
    bad = [(n, a) for n,a in alts if len(a.split()) < 4 or a=='Plot drawn by the code above']
    assert not bad, f'write `#| fig-alt: "what is seen"` into the cells of these pictures: {bad}'

def test_every_chapter_page_has_a_picture_and_questions(found):
    bad = {n: (found[n]['pictures'], found[n]['exercises']) for n in library if not found[n]['pictures'] or found[n]['exercises'] < 2}
    assert not bad, f'(pictures, questions): {bad}'

def test_lines_of_text_are_short(found):
    "But for one in twenty: letters differ in width"
    bad = {n: d['longest'] for n,d in found.items() if d['longest'] > 75}
    assert not bad, f'characters in the longest line of text: {bad}'

def test_late_and_wordless_pages_are_seen(chrome, tmp_path):
    "A page with each fault is found out"
    code = '<div class="sourceCode"><pre><code>{}</code></pre></div>'
    text = '<article><p style="max-width: 90rem; font: 12px monospace">' + 'word '*100 + '</p><img src="x.png" alt="x"><div style="height: 2000px"></div>' + code.format('assert x\nassert y\nz') + '</article>'
    (tmp_path/'bad.html').write_text(f'<!doctype html><body>{text}</body>')
    d = measure(chrome, tmp_path.as_uri()+'/', ['bad.html'])['bad.html']
    assert d['use'] > 2000 and d['asserts']==2 and d['lines']==3 and d['longest'] > 75 and d['alts']==['x'] and not d['exercises']

@pytest.fixture(scope='module')
def axe():
    spec = importlib.util.find_spec('axe_core_python')
    if not spec: pytest.skip('pip install axe-core-python')
    return (Path(spec.origin).parent/'axe.min.js').read_text(encoding='utf-8')

def violations(chrome, axe, theme):
    "What axe says of the page that is open, with all folds open"
    chrome.js(f"document.documentElement.dataset.theme = '{theme}'; document.querySelectorAll('article details').forEach(e => e.open = true)")
    chrome.js(axe + '; 0')
    return chrome.js("axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 100)).join(' | ')))")

@pytest.mark.parametrize('theme,width', [('light', 1400), ('dark', 390)])
def test_axe_finds_no_fault(chrome, axe, site, theme, width):
    chrome.size(width, 900)
    bad = {}
    for n in [*pages(site), '404.html']:
        chrome.open((site/n).as_uri())
        if v := violations(chrome, axe, theme): bad[n] = v
    assert not bad, bad

def test_axe_is_at_work(chrome, axe, tmp_path):
    (tmp_path/'bad.html').write_text('<!doctype html><html lang="en"><head><title>x</title></head><body><main><h1>x</h1><p style="color: #ccc; background: #fff">pale</p><img src="x.png"><table><tr><th></th></tr></table></main></body></html>')
    chrome.open((tmp_path/'bad.html').as_uri())
    seen = ' '.join(violations(chrome, axe, 'light'))
    assert 'color-contrast' in seen and 'image-alt' in seen

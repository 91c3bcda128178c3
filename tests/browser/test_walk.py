"The player in a real browser: by keys, buttons and clicks, with tabs, two on a page, dark, on a phone, in a notebook's cell; it asks for nothing and complains of nothing"
import json
from types import SimpleNamespace
import pytest, torch, torch.nn.functional as F
from chrome import Chrome, find
from nntrain.core import set_seed
from nntrain.events import CancelEpochException
from nntrain.learner import Learner, MetricsS
from nntrain.player import replay

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not find(), reason='no Chromium here: install the package `chromium` to run the browser tests')]

@pytest.fixture(scope='module')
def recs():
    set_seed(0)
    x,y = torch.rand(16, 1, 8, 8),torch.arange(16)%4
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    learn = Learner(model, SimpleNamespace(train=[(x, y)]*3, valid=[(x, y)]*3), F.cross_entropy, torch.optim.SGD, .1, [MetricsS()])
    return dict(nothing=learn.record(), CancelBatchException=learn.record(cancel=('after_loss', 1)), CancelEpochException=learn.record(cancel=('after_loss', 0, CancelEpochException)),
                an_error=learn.record(fail=('after_loss', 1)))

@pytest.fixture(scope='module')
def chrome():
    with Chrome() as c: yield c

class Walk:
    "The player of number `i` on the page that `chrome` shows"
    def __init__(self, chrome, i=0): self.chrome,self.root = chrome,f"document.querySelectorAll('.nnt-player')[{i}].shadowRoot"
    def js(self, code): return self.chrome.js(code.replace('ROOT', self.root))
    def click(self, selector, i=0): self.js(f"ROOT.querySelectorAll('{selector}')[{i}].click()")
    def text(self, selector): return self.js(f"ROOT.querySelector('{selector}').textContent")
    def texts(self, selector): return self.js(f"[...ROOT.querySelectorAll('{selector}')].map(e => e.textContent)")
    def press(self, *keys):
        for k in keys: self.chrome.key(k)
    @property
    def event(self): return self.text('.name')
    @property
    def at(self): return int(self.js("ROOT.querySelector('input').value"))

@pytest.fixture
def show(chrome, tmp_path):
    def open_page(*players, head='', width=1200):
        page = tmp_path/'page.html'
        page.write_text(f'<!doctype html><html lang="en"{head}><meta charset="utf-8"><title>t</title><main><h1>t</h1>{"<p>between</p>".join(p._repr_html_() for p in players)}</main>', encoding='utf-8')
        chrome.size(width, 850)
        chrome.open(page.as_uri())
        return [Walk(chrome, i) for i in range(len(players))]
    yield open_page
    assert [c for c in chrome.complaints() if not c.endswith('/page.html')]==[]

def test_keys(show, recs):
    p, = show(recs['nothing'])
    assert (p.event, p.at)==('before_fit', 0)
    p.js("ROOT.querySelector('.player').focus()")
    scroll = p.js('scrollY')
    p.press('ArrowRight'); assert p.event=='before_epoch' and p.text('.count')=='2 / 37'
    p.press('b'); assert p.event=='before_batch' and p.texts('.new dt')==['batch[0]', 'batch[1]'] and p.js("ROOT.querySelector('img').naturalWidth")==8*9
    p.press('ArrowRight', 'ArrowRight'); assert p.event=='after_loss' and p.texts('.new dt')==['loss']
    assert p.text('.here').strip()=='# after_loss' and 'learn.loss = learn.loss_fn(learn.preds, learn._targets)' in p.texts('.ran')
    p.press('e'); assert p.event=='after_loss' and 'epoch 0, training, batch 1' in p.text('[aria-live]')
    p.press('ArrowLeft'); assert p.event=='after_predict'
    p.press('End', 'ArrowRight'); assert p.event=='cleanup_fit' and p.at==36 and p.js("ROOT.querySelectorAll('.bar button')[1].getAttribute('aria-disabled')")=='true'
    p.press('Home', 'ArrowLeft'); assert p.at==0
    p.press(' '); p.chrome.until(p.root + ".querySelector('input').value >= 2"); p.press(' ')
    at = p.at
    p.js("new Promise(r => setTimeout(r, 1100))"); assert p.at==at, 'it stays where it was halted'
    assert p.js('scrollY')==scroll, 'neither space nor arrows move the page'

def test_buttons_scrubber_and_lines(show, recs):
    p, = show(recs['nothing'])
    p.click('.bar button', 1); p.click('.bar button', 1); p.click('.bar button', 0); assert p.event=='before_epoch'
    p.click('.bar button', 3); assert p.event=='before_batch'
    at = p.at
    p.click('.bar button', 2); assert p.event=='before_batch' and p.at > at
    p.js("(e => { e.value = 5; e.dispatchEvent(new Event('input')) })(ROOT.querySelector('input'))"); assert p.event=='after_backward' and p.js("ROOT.querySelector('input').getAttribute('aria-valuetext')")=='after_backward, epoch 0, training, batch 0'
    lines = p.texts('.code button')
    i = next(i for i,t in enumerate(lines) if t.strip()=='# after_batch')
    p.click('.code button', i); at = p.at; assert p.event=='after_batch'
    p.click('.code button', i); assert p.event=='after_batch' and p.at > at, 'a second click goes to the next one'
    p.js("ROOT.querySelector('.code button[tabindex=\"0\"]').focus()")
    p.press('ArrowUp'); assert p.js('ROOT.activeElement.textContent.trim()')=='# cleanup_step' and p.event=='after_batch'
    assert p.js("ROOT.querySelectorAll('.code [tabindex=\"0\"]').length")==1

def test_what_an_exception_leaves_out(show, recs):
    p, = show(replay(recs, start='after_loss', lead='Raised:'))
    assert p.event=='after_loss' and p.texts('.labels button')==['nothing', 'CancelBatchException', 'CancelEpochException', 'an_error'] and not p.texts('.lost')
    p.click('.labels button', 1)
    lost = [t.strip() for t in p.texts('.lost')]
    assert p.event=='after_loss' and p.text('.says')=='CancelBatchException is raised here. Left out: after_backward, before_step, after_step, cleanup_step, after_batch.'
    assert {'learn.loss.backward()', 'learn.opt.step()', 'else: learn.opt.zero_grad()', '# after_batch', 'metrics.after_batch(learn)'} <= {*lost} and not {'# after_epoch', '# cleanup_batch', '# after_loss'} & {*lost}
    p.click('.bar button', 1); assert p.event=='cleanup_batch' and 'ends here. The pass goes on with its next batch.' in p.text('.says') and p.texts('.lost')
    p.click('.bar button', 1); assert not p.texts('.lost') and p.text('.says')==''
    p.click('.labels button', 2)
    lost = {t.strip() for t in p.texts('.lost')}
    assert {'# after_epoch', 'learn.opt.step()'} <= lost and not {'# after_fit', '# before_batch', '# after_predict'} & lost, 'what ran in this batch is not left out, though later batches are'
    p.click('.labels button', 3)
    for e in ('cleanup_batch', 'cleanup_epoch', 'cleanup_fit'): p.click('.bar button', 1); assert p.event==e and 'RuntimeError is on its way' in p.text('.says') and '# after_fit' in [t.strip() for t in p.texts('.lost')]
    assert 'the caller of fit gets it' in p.text('.says') and p.js("ROOT.querySelectorAll('.bars .bad').length")==4
    p.click('.labels button', 0); assert p.event=='after_batch' or not p.texts('.lost')

def test_two_on_a_page(show, recs):
    "Two, and the same one twice: each has its own place"
    a,b,c = show(recs['nothing'], recs['an_error'], recs['nothing'])
    for o,n in ((a, 2), (b, 1), (c, 4)):
        for _ in range(n): o.click('.bar button', 1)
    assert (a.at, b.at, c.at)==(2, 1, 4)

def dark(p): return p.js("getComputedStyle(ROOT.querySelector('.player')).backgroundColor")=='rgb(20, 24, 27)'

def test_light_and_dark(show, recs, chrome):
    p, = show(recs['nothing'], head=' data-theme="dark"')
    assert dark(p)
    p.js("document.documentElement.dataset.theme = 'light'"); p.js('new Promise(r => setTimeout(r, 50))'); assert not dark(p)
    chrome('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark')])
    assert not dark(p), 'what the page says comes first'
    p, = show(recs['nothing'])
    assert dark(p)
    chrome('Emulation.setEmulatedMedia', features=[])

def luminance(rgb):
    c = [v/12.92 if (v := int(o)/255) <= .04045 else ((v+.055)/1.055)**2.4 for o in rgb[4:-1].split(',')[:3]]
    return .2126*c[0]+.7152*c[1]+.0722*c[2]

def test_contrast_names_and_focus(show, recs, chrome):
    for theme in ('light', 'dark'):
        p, = show(replay(recs, start='after_loss'), head=f' data-theme="{theme}"')
        p.click('.labels button', 1)
        for selector in ('.name', '.dim', '.says', '.new dt', '.new .dim', '.lost', '.here', '.code b', '.code i', '.labels button', '.bar button', '.bar .main', '.bar button[aria-disabled]', '.hint'):
            a,b = p.js(f"""(e => {{ let o = e, bg; const text = getComputedStyle(e).color;
                while (o && (bg = getComputedStyle(o).backgroundColor) == 'rgba(0, 0, 0, 0)') o = o.parentElement; return [text, bg] }})(ROOT.querySelector('{selector}') || ROOT.querySelector('.dim'))""")
            hi,lo = sorted((luminance(a), luminance(b)), reverse=True)
            assert (hi+.05)/(lo+.05) >= 4.5, (theme, selector, a, b)
    assert p.js("[...ROOT.querySelectorAll('button, input, summary, img')].every(e => e.textContent || e.ariaLabel || e.alt)")
    assert p.js("ROOT.querySelector('.player').getAttribute('aria-label') && ROOT.querySelector('.labels').getAttribute('role')")=='group'
    assert [p.js(f"ROOT.querySelectorAll('.labels button')[{i}].getAttribute('aria-pressed')") for i in (0, 1)]==['false', 'true']

def test_on_a_phone(show, recs):
    p, = show(replay(recs, start='after_loss'), width=390)
    assert p.js('document.documentElement.scrollWidth') <= 390
    code,state = (p.js(f"ROOT.querySelector('{s}').getBoundingClientRect().{end}") for s,end in (('.code', 'bottom'), ('.name', 'top')))
    assert code <= state, 'one below the other'
    box,here = (p.js(f"(r => [r.top, r.bottom])(ROOT.querySelector('{s}').getBoundingClientRect())") for s in ('.code', '.here'))
    assert box[0] <= here[0] and here[1] <= box[1], 'the line is in sight'

def test_in_a_notebook(show, recs, chrome):
    "As a notebook puts an output into a page: markup first, then the script; with style sheets and keys of its own"
    p, = show(recs['nothing'])
    html = recs['nothing']._repr_html_()
    chrome.js("document.body.innerHTML = '<style>* { text-align: right; color: red } button { all: revert }</style><div id=out></div>'; document.body.dataset.jpThemeLight = 'false'; window.keys = 0; addEventListener('keydown', () => keys++); 0")
    chrome.js("(h => { const o = document.querySelector('#out'); o.innerHTML = h; for (const s of o.querySelectorAll('script')) { const n = document.createElement('script'); n.textContent = s.textContent; s.replaceWith(n) } })(" + json.dumps(html) + ')')
    assert p.event=='before_fit' and dark(p) and p.js("getComputedStyle(ROOT.querySelector('.name')).textAlign") in ('start', 'left')
    p.js("ROOT.querySelector('.player').focus()")
    p.press('b', 'e', 'ArrowRight', ' ', ' '); assert p.event!='before_fit' and chrome.js('keys')==0, 'its keys are none of the notebook'

def test_without_script(recs, chrome, tmp_path):
    chrome('Emulation.setScriptExecutionDisabled', value=True)
    try:
        recs['nothing'].save(tmp_path/'still.html')
        chrome.events.clear()
        chrome('Page.navigate', url=(tmp_path/'still.html').as_uri())
        while not any(e.get('method')=='Page.loadEventFired' for e in chrome.events): chrome.events.append(chrome.message())
        root = chrome('DOM.getDocument')['root']['nodeId']
        cells = chrome('DOM.querySelectorAll', nodeId=root, selector='.nnt-player td')['nodeIds']
        assert len(cells)==37*4 and all(chrome('DOM.getBoxModel', nodeId=n)['model']['height'] > 5 for n in cells[:9]), 'the table is in sight'
    finally: chrome('Emulation.setScriptExecutionDisabled', value=False)

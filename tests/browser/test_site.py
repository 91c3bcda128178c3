"The built site in a real browser: every page opens quietly, search finds, and the sidebar works on a phone and on a desk"
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import pytest
from chrome import Chrome, find

pytestmark = pytest.mark.skipif(not find(), reason='no Chromium here: install the package `chromium` to run the browser tests')

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown(); server.server_close()

@pytest.fixture(scope='module')
def chrome():
    with Chrome() as c: yield c

def shown(selector): return f"(e => {{ const r = e.getBoundingClientRect(); return getComputedStyle(e).visibility=='visible' && r.width > 0 && r.right > 1 && r.left < innerWidth-1 }})(document.querySelector('{selector}'))"

def test_every_page_opens_quietly_and_fits(chrome, url, site):
    for width in (1400, 400):
        chrome.size(width, 900)
        for page in [p.relative_to(site).as_posix() for p in site.rglob('*.html') if 'pagefind' not in p.parts and p.name!='404.html']:
            assert chrome.open(url+page)==[], page
            assert chrome.js("document.querySelector('h1').textContent.length"), page
            assert chrome.js('document.documentElement.scrollWidth') <= width, f'{page} is wider than a window of {width} pixels'
            assert chrome.js("[...document.images].every(i => i.complete && i.naturalWidth)"), page

def test_a_complaint_is_heard(chrome, url):
    chrome.open(url+'index.html')
    chrome.js("console.error('oh dear')"); chrome.js("setTimeout(() => nothing_of_that_name, 0)"); chrome.js("fetch('none.html').then(r => r.status)")
    chrome.js('new Promise(r => setTimeout(r, 50))')
    heard = '\n'.join(chrome.complaints())
    assert 'oh dear' in heard and 'nothing_of_that_name' in heard and '404' in heard

@pytest.mark.parametrize('query,page', [('RunningMean', 'core.html#runningmean'), ('set_seed', 'core.html#set_seed'), ('Subscriber', 'events.html#subscriber'), ('Learner', 'learner.html#learner')])
def test_search(chrome, url, query, page):
    chrome.size(1400, 900); chrome.open(url+'index.html')
    chrome.key('/', text='/')
    chrome.until("document.querySelector('#search').open")
    chrome('Input.insertText', text=query)
    hits = chrome.until("[...document.querySelectorAll('#results a')].map(a => a.getAttribute('href')).join(' ')")
    assert page in hits, hits
    assert chrome.complaints()==[]
    chrome.key('Enter')
    chrome.until("!location.pathname.endsWith('index.html')")

questions = {'early stopping': 'early-stopping', 'resume': 'resume-after', 'gpu': 'use-the-gpu', 'multi gpu': 'use-several-gpus', 'custom metric': 'custom-metric', 'learning rate finder': 'learning-rate-finder',
    'lr_find': 'predict.html#lr_find', 'mixed precision': 'mixed-precision', 'NaN': 'that-is-nan', 'save model': 'save-and-load', 'load model': 'save-and-load', 'transfer learning': 'transfer-learning',
    'freeze layers': 'freeze-layers', 'callback': 'write-a-callback', 'tensorboard': 'tensorboard', 'batch size': 'batch-size', 'data augmentation': 'data-augmentation',
    'gradient accumulation': 'gradient-accumulation', 'segmentation': 'segmentation.html', 'overfitting': 'overfitting', 'early stoping': 'early-stopping'}

@pytest.mark.parametrize('query', questions)
def test_the_right_page_comes_first(chrome, url, query):
    "What people type who don't know our names. A page and its best place: one of the first two hits"
    chrome.size(1400, 900); chrome.open(url+'index.html')
    chrome.key('/', text='/')
    chrome.until("document.querySelector('#search').open")
    chrome('Input.insertText', text=query)
    hits = chrome.until("[...document.querySelectorAll('#results a')].slice(0, 2).map(a => a.getAttribute('href')).join(' ')")
    assert questions[query] in hits, hits

def test_every_section_can_be_seen(chrome, url):
    chrome.size(1400, 900); chrome.open(url+'how_do_i.html')
    assert chrome.js("[...document.querySelectorAll('#sidebar :is(h2, summary)')].every(e => e.getBoundingClientRect().bottom < innerHeight)")

def test_a_page_that_is_not_there(chrome, site):
    "The host shows 404.html for any address: its links begin at the root of the site"
    text = (site/'404.html').read_text()
    assert 'href="/nntrain/core.html"' in text and 'src="/nntrain/site.js"' in text and 'href="core.html"' not in text

def test_sidebar_on_a_phone(chrome, url):
    chrome.size(400, 800); chrome.open(url+'core.html')
    assert not chrome.js(shown('#sidebar')) and chrome.js(shown('#menu'))
    chrome.js("document.querySelector('#menu').click()")
    chrome.until(shown('#sidebar'))
    assert chrome.js("document.querySelector('#menu').getAttribute('aria-expanded')")=='true'
    chrome.key('Escape')
    chrome.until("!document.body.classList.contains('menu-open')")
    chrome.js("document.querySelector('#menu').click()")
    chrome.js("document.querySelector('#sidebar a[href$=\"events.html\"]').click()")
    chrome.until("location.pathname.endsWith('events.html') && document.querySelector('h1')?.textContent=='Events'")
    chrome.until("document.querySelector('.toc.small a') && true")

def test_sidebar_on_a_desk(chrome, url):
    chrome.size(1400, 800); chrome.open(url+'core.html')
    assert chrome.js(shown('#sidebar')) and not chrome.js(shown('#menu')) and chrome.js(shown('aside.toc'))
    assert chrome.js("document.querySelector('#sidebar [aria-current]').textContent")=='Core'
    chrome.js("scrollTo(0, 3000)")
    assert chrome.js("document.querySelector('#sidebar').getBoundingClientRect().top") < 100, 'the sidebar stays when the text moves'

def test_a_page_from_the_disk(chrome, site):
    "Without a server all but the search works"
    chrome.size(400, 800); chrome.open((site/'core.html').as_uri())
    chrome.js("document.querySelector('#menu').click()")
    chrome.until(shown('#sidebar'))
    chrome.js("document.querySelector('#find').click()")
    chrome.until("document.querySelector('#results').textContent.includes('needs a web server')")

def test_theme_is_remembered(chrome, url):
    chrome.size(1400, 800); chrome.open(url+'core.html')
    before = chrome.js('getComputedStyle(document.body).backgroundColor')
    chrome.js("document.querySelector('#theme').click()")
    after = chrome.js('getComputedStyle(document.body).backgroundColor')
    assert before!=after
    chrome.open(url+'events.html')
    assert chrome.js('getComputedStyle(document.body).backgroundColor')==after
    chrome.js('localStorage.clear()')

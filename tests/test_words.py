"The notebooks speak plain English of today, say of each argument what it is, and hide no warning from the reader"
import json, re
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
nbs = sorted((root/'nbs').glob('*.ipynb')) + sorted((root/'nbs'/'tutorials').glob('*.ipynb'))
old = re.compile(r"\b(whoever|anew|shall|mend(s|ed|ing)?|betwixt|thereof|whilst|lest|belongs? into|named at once|in the midst|come to pass|comes to pass|of one's own"
                 r"|one (wants|has to)|(?<!times )(what|as|that|which|when|where|whose end) one (does|can|can't|may|might|would|should))\b", re.I)

def cells(path): return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def odd_words(text):
    "Phrases that tire a reader, with what stands around them"
    return [text[max(0, m.start()-30):m.end()+20] for m in old.finditer(text)]

def questions(code):
    "Comments of arguments that ask instead of telling"
    return [l.strip() for l in code.splitlines() if re.match(r"\s+\*{0,2}\w+(:[^#=]+)?(=[^#]+)?,? # .*\?$", l) and not l.lstrip().startswith(('if ', 'return ', 'else'))]

def silences(code):
    "Does a hidden cell switch off warnings for the cells after it?"
    return bool(re.search(r'^#\|\s*(hide|include: *false|echo: *false)', code, re.M)) and bool(re.search(r'^(?!\s|with).*(filterwarnings|simplefilter)\(', code, re.M))

@pytest.mark.parametrize('path', nbs, ids=lambda p: p.stem)
def test_plain_english(path):
    for kind,text in cells(path):
        assert not odd_words(text), odd_words(text)
        if kind=='code' and re.search(r'^#\|\s*exports?\b', text, re.M): assert not questions(text), f'write a statement, such as "Whether to ...": {questions(text)}'
        assert not silences(text), f'a hidden cell silences warnings that a reader will see: {text[:100]!r}'

def test_the_front_page_is_short_and_plain():
    text = (root/'README.md').read_text(encoding='utf-8')
    assert not odd_words(text)
    n = sum(bool(re.search(r'\w', o)) for o in text.split('The [licence]')[0].split())
    assert n <= 800, f'{n} words before the licence'

@pytest.mark.parametrize('text', ['Whoever wants it', 'it is made anew', 'mistakes are named at once', 'what one wants', 'it belongs into the list', 'shall we?', 'it was mended', 'for data that one can wait for'])
def test_odd_words_are_seen(text): assert odd_words(text)

@pytest.mark.parametrize('text', ['the last one can be read', 'a recommendation', 'one of them', 'an even one has no middle', 'each one needs a folder'])
def test_good_words_stay(text): assert not odd_words(text)

def test_questions_and_silence_are_seen():
    assert questions('def f(\n    train=True, # Train?\n    n:int=1 # How many\n):') and not questions('def f(\n    train=True, # Whether to train\n): pass\nif x: y = 1 # really?')
    assert silences("#| hide\nwarnings.filterwarnings('ignore')") and not silences("warnings.filterwarnings('ignore')")
    assert not silences("#| hide\nwith warnings.catch_warnings():\n    warnings.simplefilter('ignore')\n    f()")

"""Write what follows from the notebooks: README.md and the sidebar of the site. `make export` calls it.

`nbdev_readme` makes a README too, but only with Quarto installed, and `nbdev_sidebar` knows no sections. README.md also has to read well on a
package index, so the links in index.ipynb are absolute, and pictures that a cell drew are left out."""
import json, re, sys
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path

moves = 'A batch goes through the training loop: the lines that run, the events, and what changes'
start = 'from_bare_loop_to_learner','digit_classifier' # of the tutorials: where people begin
tutorials = ('fashion_mnist', 'write_a_subscriber', 'deeper', 'fine_tuning', 'segmentation', 'multi_label', 'text_classification',
             'language_model', 'tables', 'gan', 'callbacks') # in this order; others follow
questions = 'how_do_i','coming_from'

def read(path): return json.loads(path.read_text(encoding='utf-8'))

def source(cell): return ''.join(cell['source'])

@lru_cache
def site(root, key=None):
    "Where the site is published, or another setting"
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT'][key] if key else cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl']

def page(path): return re.sub(r'^\d+[a-z0-9]*_', '', path.stem.lower()) + '.html' # nbdev's rule

@lru_cache
def heading(path):
    "Title and one-line description of a notebook"
    m = re.match(r'# (.+)\n+> (.+)', source(read(path)['cells'][0]))
    return m.groups() if m else (None, None)

chapters = {'0': 'Ground', '1': 'Data', '2': 'The loop', '3': 'Training better', '4': 'Nothing is lost', '5': 'Looking', '6': 'Other shapes',
            '7': 'Reference', '9': 'From scratch'} # by the tens of the notebooks' numbers
library = [v for k,v in chapters.items() if k in '0123456'] # which the sidebar shows under one roof

def sections(root):
    "The notebooks in reading order, by the section of the site that they belong to: numbered ones by chapter. Raises `KeyError` for a chapter without a name."
    nbs = root/'nbs'
    plain = {p.stem: p for p in sorted(nbs.glob('[!0-9]*.ipynb'))}
    tuts = {p.stem: p for p in sorted((nbs/'tutorials').glob('*.ipynb'), key=lambda p: ((*tutorials, p.stem).index(p.stem), p.stem))}
    res = {'Start': [plain.pop('index'), *(tuts.pop(k) for k in start if k in tuts)],
           'How do I ...?': [plain.pop(k) for k in questions if k in plain], 'Tutorials': list(tuts.values())}
    numbered = {}
    for p in sorted(nbs.glob('[0-9]*.ipynb')): numbered.setdefault(chapters[p.name[0]], []).append(p)
    reference = [*plain.values(), *numbered.pop('Reference', [])]
    return {k: v for k,v in (res | numbered | {'Reference': reference}).items() if v}

def sidebar(root):
    "The sidebar in the form that Quarto reads"
    res = ['# Written by tools/front.py', 'website:', '  sidebar:', '    contents:']
    for name,paths in sections(root).items():
        res += [f'      - section: "{name}"', '        contents:', *(f"          - {p.relative_to(root/'nbs').as_posix()}" for p in paths)]
    return '\n'.join(res)

def table(html):
    "The rows of an HTML table, such as a progress table, as a Markdown table"
    rows = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S) for r in re.findall(r'<tr.*?</tr>', html, re.S)]
    if not rows: return ''
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [rows[0], ['---']*len(rows[0]), *rows[1:]])

def shown(o):
    "An output of a cell as Markdown; pictures are left out"
    data = {k: ''.join(v) for k,v in o.get('data', {}).items()}
    if 'text/html' in data: return table(data['text/html'])
    text = ''.join(o.get('text', '')) or ('' if 'image/png' in data else data.get('text/plain', ''))
    text = re.sub(r'\x1b\[[\d;]*m', '', text).rstrip()
    return f'```text\n{text}\n```' if text else ''

def markdown(cell, home):
    "A cell as plain Markdown: text as it is, code fenced with what it gave below, hidden cells as nothing, a player as a picture that the site at `home` has"
    src = source(cell)
    if cell['cell_type']=='markdown': return src
    if 'nnt-player' in str(cell['outputs']): return f'![{moves}]({home}/images/fit.svg)'
    if cell['cell_type']!='code' or re.search(r'^#\|\s*(hide|default_exp|export\w*|echo: *false)\b', src, re.M): return ''
    code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
    return '\n\n'.join(filter(None, [f'```python\n{code}\n```', *map(shown, cell['outputs'])]))

def write(root):
    "Bring the two files of the project at `root` up to date"
    nb = read(root/'nbs'/'index.ipynb')
    (root/'nbs'/'sidebar.yml').write_text(sidebar(root) + '\n', encoding='utf-8')
    (root/'README.md').write_text('\n\n'.join(filter(None, (markdown(c, site(root)) for c in nb['cells']))) + '\n', encoding='utf-8')

if __name__ == '__main__': write(Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent.parent).resolve())

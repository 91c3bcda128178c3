"""Write README.md, and the table of rooms in nbs/index.ipynb, from the notebooks: `make export` calls it.

`nbdev_readme` does the first half, but only with Quarto installed. README.md also has to read well on a package index, so links in the
notebook are absolute, and pictures that a cell drew are left out."""
import json, re, sys
from configparser import ConfigParser
from pathlib import Path

mark = '<!-- rooms: tools/readme.py writes this table from the notebooks -->'

def read(path): return json.loads(path.read_text(encoding='utf-8'))

def source(cell): return ''.join(cell['source'])

def site(root):
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl']

def page(path, nb):
    "The name under which nbdev publishes a notebook: its module, or its own name without the number"
    exp = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(source(c) for c in nb['cells'] if c['cell_type']=='code'), re.M)
    return exp[1] if exp else re.sub(r'^\d+[a-z]?_', '', path.stem)

def heading(nb):
    "Title and one-line description of a notebook"
    m = re.match(r'# (.+)\n+> (.+)', source(nb['cells'][0]))
    return m.groups() if m else (None, None)

def rooms(root):
    "A Markdown table of the notebooks, in reading order"
    res = [mark, '', '| notebook | what it is about |', '| --- | --- |']
    for p in sorted((root/'nbs').glob('[0-9]*.ipynb')) + sorted((root/'nbs'/'tutorials').glob('*.ipynb')):
        nb = read(p)
        title,about = heading(nb)
        folder = p.parent.relative_to(root/'nbs').as_posix()
        res.append(f"| [{title}]({site(root)}/{'' if folder=='.' else folder+'/'}{page(p, nb)}.html) | {about} |")
    return '\n'.join(res)

def markdown(cell):
    "A cell as plain Markdown: text as it is, code fenced with what it printed below, hidden cells as nothing"
    src = source(cell)
    if cell['cell_type']=='markdown': return src
    if cell['cell_type']!='code' or re.search(r'^#\|\s*(hide|default_exp|export\w*|echo: *false)\b', src, re.M): return ''
    code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
    out = ''.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) if 'image/png' not in o.get('data', {}) else '' for o in cell['outputs'])
    out = re.sub(r'\x1b\[[\d;]*m', '', out).rstrip()
    return f'```python\n{code}\n```' + (f'\n\n```text\n{out}\n```' if out else '')

def write(root):
    "Bring both files of the project at `root` up to date"
    index = root/'nbs'/'index.ipynb'
    nb = read(index)
    for c in nb['cells']:
        if source(c).startswith(mark): c['source'] = rooms(root).splitlines(True)
    new = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
    if new != index.read_text(encoding='utf-8'): index.write_text(new, encoding='utf-8')
    (root/'README.md').write_text('\n\n'.join(filter(None, map(markdown, nb['cells']))) + '\n', encoding='utf-8')

if __name__ == '__main__': write(Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent.parent).resolve())

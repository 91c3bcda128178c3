"""Build the documentation site in _docs: `make docs`.

nbdev's processed notebooks become Markdown, pandoc (the engine inside Quarto) makes HTML of it, and Pagefind a search index. All of that comes with
pip, and the pages that are published are the ones that the tests look at. `_quarto.yml` is for people who preview a page with Quarto."""
import ast, base64, json, os, re, shutil, subprocess, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
import nbdev.serve, pypandoc, yaml
from nbdev.config import get_config
import check_docs, filters, front

root = Path(__file__).resolve().parent.parent

def fence(text, kind): return f'``````{{.{kind}}}\n{text.rstrip()}\n``````' if text.strip() else ''

def output(o, stem, opts, out):
    "One output of a cell as Markdown; a picture becomes a file"
    data = {k: ''.join(v) if isinstance(v, list) else v for k,v in o.get('data', {}).items()}
    if o['output_type']=='error': return fence('\n'.join(o['traceback']), 'error')
    if o['output_type']=='stream': return fence(''.join(o['text']), 'output')
    for kind,ext in (('image/svg+xml', 'svg'), ('image/png', 'png')):
        if kind not in data: continue
        path = out.parent/'images'/f'{out.stem}-{stem}.{ext}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data[kind]) if ext=='png' else data[kind].encode())
        return f"![{opts.get('fig-cap', '')}](images/{path.name}){{.plot alt=\"{opts.get('fig-alt', opts.get('fig-cap', 'Plot drawn by the code above'))}\"}}"
    if 'text/markdown' in data: return data['text/markdown'] if '.api}' in data['text/markdown'] else f"::: md-output\n{data['text/markdown']}\n:::"
    if 'text/html' in data and not re.search(r'<(img|svg|table|video)', data['text/html']) and not re.sub(r'<style.*?</style>|<[^>]+>', '', data['text/html'], flags=re.S).strip(): return ''
    if 'text/html' in data: return f"``````{{=html}}\n<div class=\"html-output\">{data['text/html']}</div>\n``````"
    return fence(data.get('text/plain', ''), 'output')

def draws(cell): return any({'text/html', 'image/png', 'image/svg+xml'} & {*o.get('data', ())} for o in cell.get('outputs', ()))

def is_proof(cell):
    """Is a cell there for its checks? At least one line in five is one, in four where it shows a value; none that draws.
    The page folds it; `nbdev_test` runs it all the same."""
    lines = [l for l in ''.join(cell['source']).splitlines() if l.strip() and not l.lstrip().startswith('#')]
    checks = sum(bool(re.search(r'\b(assert |test_\w+\(|expect_fail)', l)) for l in lines)
    return (checks > 1 and checks*4 >= len(lines) if cell.get('outputs') else checks*5 >= max(len(lines), 1)) and not draws(cell)

proof = 'Proof: what the tests run here'
check = re.compile(r'(assert|test_\w+\(|with expect_fail)')

def without_checks(code, draws):
    "Code without the checks at its end (but for a last line that shows a value), and those checks; a single one stays, unless the cell draws"
    lines = code.strip().splitlines()
    tail = lines[-1:] if lines and not check.match(lines[-1]) else []
    rest = lines[:len(lines)-len(tail)]
    k = len(rest)
    while k and check.match(rest[k-1]): k -= 1
    shown,checks = '\n'.join(rest[:k]+tail),'\n'.join(rest[k:])
    try: ast.parse(shown), ast.parse(checks)
    except SyntaxError: return code,''
    return (shown, checks) if k and len(rest)-k >= 2-draws else (code, '')

def fold(kind, summary, *parts):
    "Parts of a page that open on a click"
    ignored = ' data-pagefind-ignore="all"' if kind=='proof' else ''
    return '\n\n'.join(filter(None, [f'<details class="{kind}"{ignored}><summary>{summary}</summary>', *parts, '</details>']))

def answer(src, code, outs):
    "A cell that answers a question of *Predict, then run*: the comment at its top is the answer, the rest shows it"
    text = re.match(r'((?:# .*\n?)*)', re.sub(r'^#\|.*\n', '', src, flags=re.M).lstrip())[1]
    return fold('exercise', 'Answer', re.sub(r'^# ', '', text, flags=re.M), code.replace(text, '', 1), *outs)

def cell_md(cell, i, out, after=True):
    "A cell as Markdown. A proof is folded `after` the page has shown its first output."
    src = ''.join(cell['source'])
    if cell['cell_type']!='code': return src
    opts = {k: v.strip().strip('"\'') for k,v in re.findall(r'^#\|\s*([\w-]+):\s*(.+)$', src, re.M)}
    text = re.sub(r'^#\|\s*[\w-]+:.*\n?', '', src, flags=re.M) if opts.get('echo')!='false' else ''
    code = fence(text, 'python')
    outs = [output(o, f'{i}-{j}', opts, out) for j,o in enumerate(cell.get('outputs', []))] if opts.get('output')!='false' else []
    if opts.get('include')=='false': return ''
    if opts.get('code-summary')=='Answer': return answer(src, code, outs)
    if code and (opts.get('code-fold')=='true' or after and is_proof(cell)): return fold('proof', opts.get('code-summary', proof), code, *outs)
    text,checks = without_checks(text, draws(cell))
    return '\n\n'.join(filter(None, [fence(text, 'python'), *outs, checks and fold('proof', proof, fence(checks, 'python'))]))

folded = {*front.library, 'Tutorials', 'From scratch'} # in the sidebar, unless the reader is there

index = 'API index', 'api_index.html'

def api():
    "The page that lists every public name with the first sentence of its docstring, chapter by chapter"
    rows = {}
    for page,name,doc in check_docs.documented(root):
        if isinstance(doc, str): rows.setdefault(page, []).append((name, re.split(r'(?<=[.:])\s|\n\n', doc, maxsplit=1)[0].rstrip('.:').replace('\n', ' ')))
    def link(page, n): return f"[`{n}`]({(filters.homes if page.startswith('scratch') else filters.names).get(n, (f'{page}#{n.lower()}',))[0]})"
    def plain(doc): return re.sub(r'`([A-Z]\w*)`', lambda m: link('', m[1]) if m[1] in filters.names else m[0], doc.replace('|', r'\|'))
    def table(page): return '\n'.join(['| name | what it does |', '| --- | --- |', *(f'| {link(page, n)} | {plain(doc)} |' for n,doc in rows[page])])
    parts = []
    for name,ps in front.sections(root).items():
        found = [p for p in ps if front.page(p) in rows and p.name[0].isdigit()]
        if found: parts += [f'## {name}', *(f'### {front.heading(p)[0]} {{#page-{p.stem}}}\n\n{table(front.page(p))}' for p in found)]
    text = 'Every public function, class and method, chapter by chapter, with a link to its place. The search (press <kbd>/</kbd>) knows them, too.'
    return '\n\n'.join([text, *parts])

def menu(here, up):
    "The sidebar, the name of the section, and the pages before and after this one"
    pages = [(name, 'Home' if p.stem=='index' else front.heading(p)[0], '/'.join((*p.relative_to(root/'nbs').parts[:-1], front.page(p))))
             for name,ps in front.sections(root).items() for p in ps] + [('Reference', *index)]
    link = lambda o, extra='': f'<a href="{up}{o[2]}"{extra}>{o[1]}</a>'
    i = [o[2] for o in pages].index(here)
    side = []
    for name in dict.fromkeys(o[0] for o in pages):
        items = '<ul>' + ''.join('<li>' + link(o, ' aria-current="page"' if o[2]==here else '') for o in pages if o[0]==name) + '</ul>'
        if name==front.library[0]: side.append('<h2>The library</h2>')
        side.append(f'<details{" open" if name==pages[i][0] else ""}><summary>{name}</summary>{items}</details>' if name in folded else f'<h2>{name}</h2>{items}')
    ends = [link(pages[j], f' rel="{rel}"') if 0<=j<len(pages) else '<span></span>' for j,rel in ((i-1, 'prev'), (i+1, 'next'))]
    return '\n'.join(side), pages[i][0], '\n'.join(ends)

def render(src, proc, docs):
    "Make the page of the processed notebook `src`"
    nb = json.loads(src.read_text(encoding='utf-8'))
    rel = src.relative_to(proc)
    head = yaml.safe_load(''.join(nb['cells'][0]['source']).strip().strip('-'))
    out = docs/rel.with_name(head['output-file'])
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = nb['cells'][1:]
    first = next((i for i,c in enumerate(cells) if any('.api}' not in ''.join(o.get('data', {}).get('text/markdown', '')) for o in c.get('outputs', ()))), -1)
    md = '\n\n'.join(filter(None, (cell_md(c, i, out, i > first) for i,c in enumerate(cells))))
    md = re.sub(r'(\]\((?!\w+:)[^)\s]*?)(\w+)\.ipynb(?=[)#])', lambda m: m[1]+front.page(Path(m[2])), md) # as Quarto does
    write(md, head, out, docs, rel.as_posix())

def write(md, head, out, docs, source):
    "Make the page `out` of Markdown; `source` is the notebook that it comes from"
    here = out.relative_to(docs).as_posix()
    up = '../'*here.count('/')
    side,section,ends = menu(here, up)
    title = 'nntrain' if here=='index.html' else f"{head['title']} – nntrain"
    values = dict(up=up, here=here, sidebar=side, section=section, ends=ends, pagetitle=title, repo=front.site(root, 'git_url'), notebook=source,
                  site=front.site(root), about=re.sub(r'[`*]', '', head.get('description') or title))
    args = ['--template', str(root/'tools'/'site'/'page.html'), '--toc', '--toc-depth=3', '--mathml', '--wrap=none', '--fail-if-warnings']
    for k,v in values.items(): args += ['-V', f'{k}={v}']
    top = '---\n' + yaml.safe_dump({k: head.get(k, '') for k in ('title', 'description')}) + '---\n\n'
    res = subprocess.run([pypandoc.get_pandoc_path(), '--from=markdown', '--to=html5', '-o', out, *args], input=top+md, capture_output=True, text=True, encoding='utf-8')
    if res.returncode: sys.exit(f'{here}: {res.stderr}')
    out.write_text(re.sub(r'<th([^>]*)>\s*</th>', r'<td\1></td>', out.read_text(encoding='utf-8')), encoding='utf-8') # the corner of a table is no heading

def main(out=None):
    os.chdir(root); sys.path.insert(0, str(root))
    warnings.simplefilter('ignore') # what an import warns about is not for the reader
    nbdev.serve.FilterDefaults = filters.Filters
    cfg = get_config(); cfg.d['renderer'] = 'filters.Doc'
    docs = Path(out or cfg.doc_path)
    proc = nbdev.serve.proc_nbs(n_workers=0, force=True)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(proc, docs, ignore=shutil.ignore_patterns('*.ipynb', '*.yml', 'styles.css'))
    for name in ('site.css', 'site.js'): shutil.copy(root/'tools'/'site'/name, docs)
    pages = sorted(proc.rglob('*.ipynb'))
    with ThreadPoolExecutor(os.cpu_count()) as ex: list(ex.map(lambda p: render(p, proc, docs), pages))
    about = dict(title=index[0], description='Every public name of nntrain, and what it does')
    write(api(), about, docs/index[1], docs, '')
    names = sorted(p.relative_to(docs).as_posix() for p in docs.rglob('*.html'))
    urls = ''.join(f'<url><loc>{front.site(root)}/{n}</loc></url>\n' for n in names)
    (docs/'sitemap.xml').write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n')
    home = (docs/'index.html').read_text(encoding='utf-8')
    lost = '<article><div class="title"><h1>There is no such page</h1></div><p>It may have moved: the menu and the search (press <kbd>/</kbd>) know where things are.</p></article>'
    home = re.sub(r'<aside class="toc".*?</aside>', '<aside class="toc"></aside>', home, flags=re.S)
    home = re.sub(r'<article>.*</article>', lost, home, flags=re.S).replace(' data-pagefind-body', '').replace(' aria-current="page"', '')
    base = urlsplit(front.site(root)).path+'/' # the host shows it for any address, so its links begin at the root
    (docs/'404.html').write_text(re.sub(r'(href|src)="(?!\w+:|#|/)', rf'\1="{base}', home).replace('data-up=""', f'data-up="{base}"'), encoding='utf-8')
    subprocess.run([sys.executable, '-m', 'pagefind', '--site', docs, '--quiet'], check=True)
    print(f'{len(pages)} pages in {docs.name}. Open {docs}/index.html; for the search: {Path(sys.executable).name} -m http.server -d {docs}, then http://localhost:8000')

if __name__ == '__main__': main(*sys.argv[1:])

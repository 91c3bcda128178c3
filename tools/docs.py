"""Build the documentation site in _docs: `make docs`.

With Quarto installed this is `nbdev_docs` with the filters below. Quarto is a large download that package indexes don't have, so CI and anybody
in a hurry get the same pages from what pip installs: nbdev's processed notebooks become Markdown, pandoc (the engine inside Quarto) makes HTML
of it, Pagefind a search index. The filters add what nbdev leaves out: the methods of a class, links that don't need an installed nntrain."""
import base64, inspect, json, os, re, shutil, subprocess, sys, warnings
from itertools import groupby
from pathlib import Path
from types import FunctionType, MethodType
import nbdev.serve, yaml
from fastcore.docments import DocmentText
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, add_show_docs
from nbdev.showdoc import BasicMarkdownRenderer
import front

root = Path(__file__).resolve().parent.parent
host = front.site(root)
modules = dict()
exec((root/'nntrain'/'_modidx.py').read_text(encoding='utf-8'), modules)
modules = modules['d']['syms']
names = {k.removeprefix(mod+'.'): v for mod,syms in reversed(modules.items()) for k,v in syms.items() if not re.search(r'(^|\.)_', k.removeprefix(mod+'.'))}
names.update({mod: (v[0].split('#')[0], v[1]) for mod,syms in modules.items() for v in list(syms.values())[:1]})
names.update({k.split('.')[1]: v for k,v in names.items() if k.startswith('Subscriber.')}) # an event by its bare name
anchors = {v[0].split('#')[-1] for v in names.values()} # a heading of the article must not take the place of a name

# ---- what nbdev leaves out
def usage(o, name):
    "How to call `o` as Markdown: the signature, then each parameter that has a comment"
    d = DocmentText(o, docstring=False)
    args,ret = [a for a,_ in d.params],d._ret_str[1:].split(':')[0]
    flat = f'{name}({", ".join(args)}){ret}'
    sig = flat if len(flat) < 90 else f'{name}(\n    ' + ',\n    '.join(args) + f'\n){ret}'
    star = dict(re.findall(r'^\s*(\*{1,2}\w+)[^#\n]*# (.+)$', inspect.getsource(o), re.M)) # fastcore overlooks the comments of these
    docs = [f'`{a}`\n:   ' + ' '.join(doc.split()) for a,doc in ((a, doc or star.get(a)) for a,doc in d.params) if doc]
    return f'```python\n{sig}\n```\n\n' + (inspect.getdoc(o) or '') + '\n\n' + ('::: params\n' + '\n\n'.join(docs) + '\n:::' if docs else '')

class Doc(BasicMarkdownRenderer):
    "A class is shown with its public methods; those that the notebook documents by `show_doc` have a heading of their own"
    shown = set()
    def _repr_markdown_(self):
        o,nm = self.sym,self.nm
        src = names.get(nm, names.get(nm.split('.')[0], ('', '')))[1]
        lines = (root/src).read_text(encoding='utf-8').splitlines() if src else []
        line = next((f'#L{i}' for i,l in enumerate(lines, 1) if re.match(rf'\s*(async )?(def|class) {nm.split(".")[-1]}\b', l)), '')
        res = [f"[source]({front.site(root, 'git_url')}/blob/main/{src}{line}){{.source}}", f"{'#'*self.title_level} `{nm}` {{#{nm.lower()} .api}}"]
        if not inspect.isclass(o): return '\n\n'.join(res + [usage(o, nm.split('.')[-1])])
        init = next((vars(c)['__init__'] for c in o.__mro__ if '__init__' in vars(c)), None)
        doc = inspect.cleandoc(o.__doc__ or '')
        sig = usage(MethodType(init, o), f'class {nm}') if isinstance(init, FunctionType) else f'```python\nclass {nm}\n```\n\n'
        bases = ', '.join(f'`{b.__name__}`' for b in o.__bases__ if b.__name__ in names)
        res += [sig.replace('```\n\n', f'```\n\n{doc}\n\n', 1), f'[Inherits from]{{.aside}} {bases}' if bases else '']
        answers,redefines = [],[]
        for k,m in vars(o).items():
            f = getattr(m, 'fget', None) or getattr(m, '__func__', m)
            if k[0]=='_' or not isinstance(f, FunctionType) or f'{nm}.{k}' in self.shown: continue
            doc,anchor = inspect.getdoc(getattr(o, k)),f'{nm}.{k}'.lower()
            if not f.__doc__ and doc: # says what its base class says: an event, or a method of torch's
                (answers if k in names else redefines).append(f'[[`{k}`]({names[k][0]})]{{#{anchor}}}' if k in names else f'[`{k}`]{{#{anchor}}}')
                continue
            sig = f'```python\n{k}\n```\n\n{doc}' if isinstance(m, property) else usage(getattr(o, k) if f is not m else MethodType(f, o), k)
            res.append(f'::: {{#{anchor} .member}}\n{sig}\n:::')
        res += [f'[{what}]{{.aside}} ' + ', '.join(ms) for what,ms in (('Answers', answers), ('Redefines', redefines)) if ms]
        return '\n\n'.join(res)

class note_shown(Processor):
    "Tell `Doc` what the notebook documents itself, and put the definitions of one cell, which nbdev shows last first, in their order"
    def begin(self):
        cells = self.nb.cells
        for has,run in [(has, list(run)) for has,run in groupby(range(len(cells)), key=lambda i: bool(getattr(cells[i], 'has_sd', 0)))]:
            if has: cells[run[0]:run[-1]+1] = cells[run[0]:run[-1]+1][::-1]
        Doc.shown = {n for c in self.nb.cells for n in re.findall(r'show_doc\(([\w.]+)', c.source)}

class link_names(Processor):
    "Link every name of ours in backticks, with relative links, outside code and headings"
    def begin(self): self.up = '../'*(len(Path(self.nb.path_).resolve().relative_to(root/'nbs').parts)-1)
    def link(self, m): return f'[{m[0]}]({self.up}{names[m[1]][0]})' if m[1] in names else m[0]
    def text(self, md):
        parts = re.split(r'(^(?:```|~~~).*?^(?:```|~~~)\s*?$|^#.*?$|\[`.+?`\])', md.replace(host+'/)', self.up+'index.html)').replace(host+'/', self.up), flags=re.M|re.S)
        parts = [f'{p} {{#about-{slug}}}' if p[:1]=='#' and (slug := re.sub(r'[^\w.]+', '-', p.strip('# ').lower())) in anchors else p for p in parts]
        return ''.join(p if i%2 else re.sub(r'`([A-Za-z_][\w.]*)(?:\(\))?`', self.link, p) for i,p in enumerate(parts))
    def cell(self, cell):
        if cell.cell_type=='markdown': cell.source = self.text(cell.source)
        for o in cell.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = self.text(''.join(o.data['text/markdown']))

class Filters(FilterDefaults):
    def base_procs(self):
        res = [link_names if p is add_links else p for p in super().base_procs()]
        return res[:(i := res.index(add_show_docs)+1)] + [note_shown] + res[i:]

# ---- processed notebook -> Markdown -> page
def fence(text, kind): return f'``````{{.{kind}}}\n{text.rstrip()}\n``````' if text.strip() else ''

def output(o, stem, opts, out):
    "One output of a cell as Markdown; a picture becomes a file"
    data = {k: ''.join(v) if isinstance(v, list) else v for k,v in o.get('data', {}).items()}
    if o['output_type']=='error': return fence('\n'.join(o['traceback']), 'error')
    if o['output_type']=='stream': return fence(''.join(o['text']), 'output')
    for kind,ext in (('image/svg+xml', 'svg'), ('image/png', 'png')):
        if kind not in data: continue
        path = out.parent/'images'/f'{out.stem}-{stem}.{ext}'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(data[kind]) if ext=='png' else data[kind].encode())
        return f"![{opts.get('fig-cap', '')}](images/{path.name}){{.plot alt=\"{opts.get('fig-alt', opts.get('fig-cap', 'Plot drawn by the code above'))}\"}}"
    if 'text/markdown' in data: return data['text/markdown']
    if 'text/html' in data: return f"``````{{=html}}\n<div class=\"html-output\">{data['text/html']}</div>\n``````"
    return fence(data.get('text/plain', ''), 'output')

def cell_md(cell, i, out):
    src = ''.join(cell['source'])
    if cell['cell_type']!='code': return src
    opts = {k: v.strip().strip('"\'') for k,v in re.findall(r'^#\|\s*([\w-]+):\s*(.+)$', src, re.M)}
    code = fence(re.sub(r'^#\|\s*[\w-]+:.*\n?', '', src, flags=re.M), 'python') if opts.get('echo')!='false' else ''
    outs = [output(o, f'{i}-{j}', opts, out) for j,o in enumerate(cell.get('outputs', []))] if opts.get('output')!='false' else []
    return '' if opts.get('include')=='false' else '\n\n'.join(filter(None, [code, *outs]))

def menu(here, up):
    "The sidebar, and the pages before and after this one"
    pages = [(name, p, '/'.join((*p.relative_to(root/'nbs').parts[:-1], front.page(p)))) for name,ps in front.sections(root).items() for p in ps]
    link = lambda o, extra='': f'<a href="{up}{o[2]}"{extra}>{"Home" if o[1].stem=="index" else front.heading(front.read(o[1]))[0]}</a>'
    side = [f'<h2>{name}</h2><ul>' + ''.join('<li>' + link(o, ' aria-current="page"' if o[2]==here else '') for o in pages if o[0]==name) + '</ul>'
            for name in dict.fromkeys(o[0] for o in pages)]
    i = [o[2] for o in pages].index(here)
    ends = [link(pages[j], f' rel="{rel}"') if 0<=j<len(pages) else '<span></span>' for j,rel in ((i-1, 'prev'), (i+1, 'next'))]
    return '\n'.join(side), '\n'.join(ends)

def render(src, proc, docs):
    "Make the page of the processed notebook `src`"
    import pypandoc
    nb = json.loads(src.read_text(encoding='utf-8'))
    rel = src.relative_to(proc)
    head = yaml.safe_load(''.join(nb['cells'][0]['source']).strip().strip('-'))
    out,up = docs/rel.with_name(head['output-file']),'../'*(len(rel.parts)-1)
    out.parent.mkdir(parents=True, exist_ok=True)
    here = out.relative_to(docs).as_posix()
    side,ends = menu(here, up)
    md = '\n\n'.join(filter(None, (cell_md(c, i, out) for i,c in enumerate(nb['cells'][1:]))))
    md = re.sub(r'(\]\((?!\w+:)[^)\s]*?)(\w+)\.ipynb(?=[)#])', lambda m: m[1]+front.page(Path(m[2])), md) # as Quarto does
    title = 'nntrain' if here=='index.html' else f"{head['title']} – nntrain"
    values = dict(up=up, here=here, sidebar=side, ends=ends, pagetitle=title, repo=front.site(root, 'git_url'), notebook=rel.as_posix())
    args = ['--template', str(root/'tools'/'site'/'page.html'), '--toc', '--toc-depth=3', '--mathml', '--wrap=none', '--fail-if-warnings']
    for k,v in values.items(): args += ['-V', f'{k}={v}']
    top = '---\n' + yaml.safe_dump({k: head.get(k, '') for k in ('title', 'description')}) + '---\n\n'
    try: pypandoc.convert_text(top+md, 'html5', 'markdown', extra_args=args, outputfile=str(out))
    except RuntimeError as e: sys.exit(f'{rel}: {e}')

def main(out=None):
    os.chdir(root); sys.path.insert(0, str(root))
    warnings.simplefilter('ignore') # what an import warns about is not for the reader
    nbdev.serve.FilterDefaults = Filters
    cfg = get_config(); cfg.d['renderer'] = 'docs.Doc'
    docs = Path(out or cfg.doc_path)
    if shutil.which('quarto') and not out:
        from nbdev.quarto import nbdev_docs
        return nbdev_docs(n_workers=0)
    proc = nbdev.serve.proc_nbs(n_workers=0, force=True)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(proc, docs, ignore=shutil.ignore_patterns('*.ipynb', '*.yml', 'styles.css'))
    for name in ('site.css', 'site.js'): shutil.copy(root/'tools'/'site'/name, docs)
    pages = sorted(proc.rglob('*.ipynb'))
    for p in pages: render(p, proc, docs)
    subprocess.run([sys.executable, '-m', 'pagefind', '--site', docs, '--quiet'], check=True)
    print(f'{len(pages)} pages in {docs.name}. To read them: python -m http.server -d {docs.name}')

if __name__ == '__main__': import docs; docs.main(*sys.argv[1:]) # as a module, so that nbdev finds `docs.Doc`

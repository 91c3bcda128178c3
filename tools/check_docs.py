"""Read the built site like a patient visitor and list every fault in it: `python tools/check_docs.py [folder]`.

Works on the HTML alone, whichever renderer made it, plus the source for what has to be documented."""
import ast, re, sys
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import front

root = Path(__file__).resolve().parent.parent
void = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'track', 'wbr'}
blocks = {'div', 'section', 'article', 'table', 'details', 'pre', 'figure', 'dl'}
code = {'pre', 'code', 'math', 'script', 'style', 'svg', 'kbd'}

class Page(HTMLParser):
    "What a check needs to know about a page: links, ids, pictures, prose, code and names in backticks"
    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.path,self.open,self.ids,self.links,self.images,self.faults = path,[],[],[],[],[]
        self.prose,self.blocks,self.names,self.math = [],[],[],[]
        self.linked = False # has a link just ended?
        self.feed(path.read_text(encoding='utf-8'))
        self.faults += [f'<{t}> is never closed' for t,_ in self.open if t in blocks]

    def inside(self, *tags): return any(t in tags for t,_ in self.open)

    def handle_starttag(self, tag, attrs):
        a,self.linked = dict(attrs),False
        if 'id' in a: self.ids.append(a['id'])
        if tag=='a' and 'href' in a: self.links.append(a['href'])
        if tag=='link' and 'href' in a and a.get('rel')!='canonical': self.links.append(a['href'])
        if tag=='script' and 'src' in a: self.links.append(a['src'])
        if tag=='img':
            self.images.append(a.get('src', ''))
            if not a.get('alt'): self.faults.append(f"image {a.get('src')} has no alternative text")
        if 'math' in a.get('class', '').split() and tag=='span': self.math.append('')
        if tag=='merror': self.faults.append('a formula has an error')
        if tag=='pre': self.blocks.append((a.get('class') or '', []))
        if tag in ('p', 'li', 'td', 'th', 'div', 'dd', 'dt', 'br'): self.prose.append('\n')
        if re.fullmatch(r'h\d', tag): self.prose.append('\n¶ ')
        if tag not in void: self.open.append((tag, a))

    def handle_endtag(self, tag):
        if tag in void or not any(t==tag for t,_ in self.open): return
        while (t := self.open.pop()[0])!=tag:
            if t in blocks: self.faults.append(f'<{t}> is never closed')
        self.linked = self.linked or tag=='a'

    def handle_data(self, data):
        if self.linked and data[0] in '{}' and not self.inside(*code): self.faults.append(f'an attribute is left after a link: {data.strip()[:60]}')
        self.linked = False
        if self.inside('pre'): self.blocks[-1][1].append(data)
        elif self.inside('code') and not self.inside('a', 'h1', 'h2', 'h3', 'h4', 'dt'): self.names.append(data)
        if self.math and not self.math[-1] and self.inside('span') and not self.inside('math'): self.math[-1] = data
        if self.inside('article') and not self.inside(*code, 'nav', 'summary'): self.prose.append(data)

left = [(r'\{\{[<%].*', 'a shortcode'), (r':::+', 'the fence of a div'), (r'(?<!\w)@(?:fig|tbl|sec|eq)-\w+', 'a cross-reference'), (r'#\|.*', 'a directive'),
        (r'`[^`]*`?', 'a backtick'), (r'\]\([^)\s]+\)?', 'a link'), (r'(?<![\w*])\*\*\w.*|\w\*\*(?![\w*])', 'bold'), (r'\n\s*(?:[-*+]|\d+\.) \S', 'a list (does a blank line come before it?)'),
        (r'\n#{1,6} \S.*', 'a heading'), (r'\|\s*-{3,}', 'a table'), (r'\$\$?(?=\S)[^$]*\\[a-z][^$]*\$', 'a formula'), (r'\\[([]', 'a formula'), (r'\{[.#][\w-]+[^}]*\}', 'an attribute')]

def unresolved(page, known, twins):
    "Names in backticks that look like ours but lead nowhere, and aren't defined by the page's own code"
    text = '\n'.join(''.join(t) for _,t in page.blocks)
    for n in dict.fromkeys(o.strip().removesuffix('()') for o in page.names):
        if not re.fullmatch(r'[A-Za-z_][\w.]*', n) or re.search(rf'\b{re.escape(n)}\b', text): continue
        first,_,rest = n.partition('.')
        ours = first=='nntrain' or (rest and first in known and first[0].isupper()) or re.fullmatch(r'[A-Z][a-z]\w*S|Cancel\w+|(before|after|cleanup)_(?!\w$)\w+', n)
        if ours and n not in known: yield f'`{n}` is no name of the library'
        elif n in known and '.' not in n and first[0].isupper() and (n not in twins or 'scratch' in page.path.name): yield f'`{n}` should be a link'

def documented(root):
    "Every public name in the source with its page and anchor, and whether it has a docstring: (page, name, has one?)"
    trees = {p: ast.parse(p.read_text(encoding='utf-8')) for p in sorted((root/'nntrain').rglob('*.py')) if p.name not in ('_modidx.py', '__init__.py')}
    classes = {n.name: n for t in trees.values() for n in t.body if isinstance(n, ast.ClassDef)}
    def inherited(cls, name): return any(isinstance(b, ast.Name) and b.id in classes and (any(isinstance(m, ast.FunctionDef) and m.name==name and
        ast.get_docstring(m) for m in classes[b.id].body) or inherited(classes[b.id], name))
        or ast.unparse(b).endswith('Module') and name in ('forward', 'extra_repr') for b in cls.bases) # torch's own words
    pages = {m.group(1): front.page(p) for p in (root/'nbs').glob('*.ipynb') if (m := re.search(r'#\|\s*default_exp\s+([\w.]+)', p.read_text(encoding='utf-8')))}
    for p,tree in trees.items():
        page = pages.get('.'.join(p.relative_to(root/'nntrain').with_suffix('').parts))
        if not page: continue
        for n in tree.body:
            if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or n.name[0]=='_': continue
            owner = next((ast.unparse(n.args.args[0].annotation)+'.' for d in n.decorator_list if 'patch' in ast.unparse(d) and n.args.args[0].annotation), '')
            yield page, owner+n.name, ast.get_docstring(n)
            for m in n.body if isinstance(n, ast.ClassDef) else []:
                if isinstance(m, ast.FunctionDef) and m.name[0]!='_' and 'setter' not in ''.join(map(ast.unparse, m.decorator_list)): yield page, f'{n.name}.{m.name}', ast.get_docstring(m) or inherited(n, m.name)

@lru_cache
def library(root):
    "What the source says: public names, those of scratch, and all that may be written in backticks"
    api = list(documented(root))
    twins = {n for p,n,_ in api if p.startswith('scratch')} # of torch's classes
    known = {n for _,n,_ in api} | {n.split('.')[1] for _,n,_ in api if n.startswith('Subscriber.')}
    mods = {'.'.join(p.relative_to(root).with_suffix('').parts): p for p in (root/'nntrain').rglob('*.py')}
    known |= {'.'.join(m.split('.')[:i]) for m in mods for i in (1, 2, 3)} | {f'{m}.{n}' for m,p in mods.items() for n in set(re.findall(r"[A-Za-z_]\w+", p.read_text(encoding='utf-8')))}
    source = '\n'.join(p.read_text(encoding='utf-8') for p in mods.values())
    attrs = {a for pair in re.findall(r'\bself\.(\w+)|^    (\w+) *=', source, re.M) for a in pair if a}
    known |= {f'{c}.{a}' for c in [n for n in known if n[0].isupper() and '.' not in n] for a in attrs}
    return api, twins, known

def check(docs, root=root):
    "All faults of the site in the folder `docs`, as text"
    docs,base = Path(docs).resolve(),urlsplit(front.site(root)).path+'/'
    pages = {p: Page(p) for p in sorted(docs.rglob('*.html')) if 'pagefind' not in p.relative_to(docs).parts}
    faults = [] if pages else [f'{docs.name} has no pages']
    api,twins,known = library(root)
    for path,page in pages.items():
        def fault(s, name=path.relative_to(docs).as_posix()): faults.append(f'{name}: {s}')
        for s in page.faults: fault(s)
        for i in {i for i in page.ids if page.ids.count(i) > 1}: fault(f'id {i} is used twice')
        for url in page.links + page.images:
            u = urlsplit(url)
            if url.startswith(front.site(root)): fault(f'link to {url} should be relative')
            if u.scheme or u.netloc: continue
            inside = unquote(u.path).removeprefix(base) if path.name=='404.html' else unquote(u.path) # that page is shown for any address
            to = (path.parent/inside).resolve() if u.path else path
            if to.is_dir(): to = to/'index.html'
            if not to.exists(): fault(f'{url} leads nowhere')
            elif u.fragment and to in pages and unquote(u.fragment) not in pages[to].ids: fault(f'{url}: no such place on that page')
            elif not u.path and not u.fragment: fault('an empty link')
        prose = re.sub(r'\s*\n\s*', '\n', ''.join(page.prose))
        for pattern,what in left:
            for m in re.findall(pattern, prose): fault(f'{what} is left in the text: {m.strip()[:60]}')
        for kind,text in page.blocks:
            text = ''.join(text)
            if re.search(r'^#\|', text, re.M) and 'output' not in kind: fault(f'a directive is left in the code: {text[:60]!r}')
            if 'error' in kind.split() or 'Traceback (most recent call last)' in text: fault(f'an error is shown: {text.strip()[-80:]!r}')
            for m in re.findall(r'(?:/home|/root|/Users|/tmp|/work|site-packages)/.*', text): fault(f'a path of the machine that ran it is shown: {m[:60]}')
            if re.search(r'mermaid|\{python', kind): fault(f'a block of kind {kind!r} was not rendered')
        for s in page.math:
            fault(f'bad TeX: {s[:60]}')
        for s in unresolved(page, known, twins): fault(s)
        if len(prose.split()) < (10 if path.name=='404.html' else 30): fault('the page is empty, or nearly')
    for name,n,doc in api:
        page = pages.get(docs/name)
        if page is None: faults.append(f'{name}: no such page, but {n} should be there'); continue
        if not {n, n.lower()} & set(page.ids): faults.append(f'{name}: {n} is public but not documented')
        if not doc: faults.append(f'{name}: {n} has no docstring')
    return list(dict.fromkeys(faults))

if __name__ == '__main__':
    docs = Path(sys.argv[1] if sys.argv[1:] else root/'_docs')
    if faults := check(docs): sys.exit(f'{len(faults)} faults in the documentation:\n  ' + '\n  '.join(faults))
    print('No faults in the documentation')

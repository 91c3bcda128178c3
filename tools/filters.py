"""What nbdev's documentation leaves out, as filters that tools/docs.py puts in the place of nbdev's own:

- a class is shown with all its public methods, and parameters are a list, not comments that run off the page;
- names in backticks link relatively, whether nntrain is installed or not, and a name of ours that torch has too isn't taken for torch's;
- an example keeps the outputs that it was saved with."""
import ast, inspect, re
from dataclasses import is_dataclass
from importlib import import_module
from inspect import Parameter
from itertools import groupby
from pathlib import Path
from types import FunctionType, MethodType
from execnb.nbio import mk_cell
from fastcore.docments import DocmentText
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs
from nbdev.showdoc import BasicMarkdownRenderer
import front

root = Path(__file__).resolve().parent.parent
host = front.site(root)
modules = dict()
exec((root/'nntrain'/'_modidx.py').read_text(encoding='utf-8'), modules)
modules = modules['d']['syms']
names,homes = {},{} # name -> (link, source file); the same for the twins of torch's classes in nntrain.scratch, which only their own pages mean
for mod,syms in reversed(modules.items()):
    for k,(url,src) in syms.items():
        n,(page,anchor) = k.removeprefix(mod+'.'),url.split('#')
        twin = n!=anchor and any(o.split('#')[-1]==anchor and k2[-len(n):]!=n for k2,(o,_) in syms.items()) # `Linear` and `linear` on one page
        if not re.search(r'(^|\.)_', n): (homes if '.scratch.' in mod else names)[n] = names[k] = f'{page}#{n if twin else anchor}',src
    names[mod] = page,src
names.update({k.split('.')[1]: v for k,v in names.items() if k.startswith('Subscriber.')}) # an event by its bare name
anchors = {v[0].split('#')[-1] for v in (names|homes).values()} # a heading of the article must not take the place of a name

def usage(o, name):
    "How to call `o` as Markdown: the signature, then each parameter that has a comment. A class is shown by its fields, without its docstring."
    d = DocmentText(o, docstring=False)
    given = inspect.signature(o).parameters if callable(o) else {} # what DocmentText takes from a default is no annotation
    plain = [a if k not in given or given[k].annotation is not Parameter.empty else re.sub(r':[^=]*(?==)', '', a) for a,k in ((a, a.split(':')[0].split('=')[0].lstrip('*')) for a,_ in d.params)]
    args,ret = [*plain],'' if inspect.isclass(o) else d._ret_str[1:].split(':')[0]
    kinds = [v.get('kind') for k,v in d.dm.items() if k!='return']
    if Parameter.KEYWORD_ONLY in kinds and Parameter.VAR_POSITIONAL not in kinds: args.insert(kinds.index(Parameter.KEYWORD_ONLY), '*')
    flat = f'{name}({", ".join(args)}){ret}'
    sig = flat if len(flat) < 90 else f'{name}(\n    ' + ',\n    '.join(args) + f'\n){ret}'
    star = dict(re.findall(r'^\s*(\*{1,2}\w+)[^#\n]*# (.+)$', inspect.getsource(o), re.M)) # fastcore overlooks the comments of these
    docs = [f'`{a}`\n:   ' + ' '.join(doc.split()) for a,doc in ((a, doc or star.get(a)) for a,(_,doc) in zip(plain, d.params)) if doc]
    return f'```python\n{sig}\n```\n\n' + (not inspect.isclass(o) and inspect.getdoc(o) or '') + '\n\n' + ('::: params\n' + '\n\n'.join(docs) + '\n:::' if docs else '')

class Doc(BasicMarkdownRenderer):
    "A class is shown with its public methods; those that the notebook documents by `show_doc` have a heading of their own"
    shown,lookup = set(),{}
    def _repr_markdown_(self):
        o,nm = self.sym,self.nm
        ref,src = self.lookup.get(nm) or self.lookup.get(nm.split('.')[0], ('', ''))
        lines = (root/src).read_text(encoding='utf-8').splitlines() if src else []
        line = next((f'#L{i}' for i,l in enumerate(lines, 1) if re.match(rf'\s*(async )?(def|class) {nm.split(".")[-1]}\b', l)), '')
        res = [f"[source]({front.site(root, 'git_url')}/blob/main/{src}{line}){{.source data-pagefind-ignore=all}}", f"{'#'*self.title_level} `{nm}` {{#{ref.split('#')[-1] if nm in self.lookup else nm.lower()} .api}}"]
        if nm.split('.')[-1][:2]=='__': return '' # Python calls these
        if isinstance(o, property): return '\n\n'.join(res + [f'```python\n{nm.split(".")[-1]}\n```\n\n{inspect.getdoc(o) or ""}'])
        if not inspect.isclass(o): return '\n\n'.join(res + [usage(o, nm.split('.')[-1])])
        init = next((vars(c)['__init__'] for c in o.__mro__ if '__init__' in vars(c)), None)
        doc = inspect.cleandoc(o.__doc__ or '')
        made = is_dataclass(o) and init.__code__.co_filename=='<string>' # by `@dataclass`: the fields are what has a source, and that only in the module
        sig = usage(getattr(import_module(src.removesuffix('.py').replace('/', '.')), nm) if made else MethodType(init, o), f'class {nm}') if isinstance(init, FunctionType) else f'```python\nclass {nm}\n```\n\n'
        bases = ', '.join(f'`{b.__name__}`' for b in o.__bases__ if b.__name__ in self.lookup)
        res += [sig.replace('```\n\n', f'```\n\n{doc}\n\n', 1), f'[Inherits from]{{.aside}} {bases}' if bases else '']
        answers,redefines = [],[]
        for k,m in vars(o).items():
            f = getattr(m, 'fget', None) or getattr(m, '__func__', m)
            if k[0]=='_' or not isinstance(f, FunctionType) or f'{nm}.{k}' in self.shown: continue
            doc,anchor = inspect.getdoc(getattr(o, k)),self.lookup.get(f'{nm}.{k}', (f'#{nm}.{k}'.lower(),))[0].split('#')[-1]
            if not f.__doc__ and doc: # says what its base class says: an event, or a method of torch's
                (answers if k in names else redefines).append(f'[[`{k}`]({names[k][0]})]{{#{anchor}}}' if k in names else f'[`{k}`]{{#{anchor}}}')
                continue
            sig = f'```python\n{k}\n```\n\n{doc or ""}' if isinstance(m, property) else usage(getattr(o, k) if f is not m else MethodType(f, o), k)
            res.append(f'::: {{#{anchor} .member}}\n{sig}\n:::')
        res += [f'[{what}]{{.aside}} ' + ', '.join(ms) for what,ms in (('Answers', answers), ('Redefines', redefines)) if ms]
        return '\n\n'.join(res)

class note_shown(Processor):
    "Tell `Doc` what the notebook documents itself, and put the definitions of one cell, which nbdev shows last first, in their order"
    def begin(self):
        cells = self.nb.cells
        for has,run in [(has, list(run)) for has,run in groupby(range(len(cells)), key=lambda i: bool(getattr(cells[i], 'has_sd', 0)))]:
            if has: cells[run[0]:run[-1]+1] = cells[run[0]:run[-1]+1][::-1]
        Doc.lookup = names | (homes if 'scratch' in Path(self.nb.path_).name else {})
        Doc.shown = {n for c in self.nb.cells for n in re.findall(r'show_doc\(([\w.]+)', c.source)}

class say_import(Processor):
    "Begin the page of a module with the line that imports it"
    def begin(self):
        m = next((m[1] for c in self.nb.cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M))), None)
        line = f'import nntrain.{m}' if m and m.startswith('scratch') else f'from nntrain.{m} import *' # scratch has names of torch's
        if m: self.nb.cells.insert(1, mk_cell(f'```python\n{line}\n```', 'markdown'))

class link_names(Processor):
    "Link every name of ours in backticks, with relative links, outside code and headings"
    def begin(self):
        path = Path(self.nb.path_)
        self.here,self.up = front.page(path),'../'*(len(path.resolve().relative_to(root/'nbs').parts)-1)
    def link(self, m):
        name = m[1] if m[1] in Doc.lookup else re.sub(r'^dls\.', 'DataLoaders.', re.sub(r'^learn\.', 'Learner.', m[1])) # as examples call them
        to = Doc.lookup.get(name, ('',))[0]
        word = re.fullmatch('[a-z]+', m[1]) and not to.startswith(self.here) # `train` elsewhere is a split, not a function
        return f'[{m[0]}]({self.up}{to})' if to and not word else m[0]
    def text(self, md):
        parts = re.split(r'(^(?:```|~~~).*?^(?:```|~~~)\s*?$|^#.*?$|\[`.+?`\])', md.replace(host+'/)', self.up+'index.html)').replace(host+'/', self.up), flags=re.M|re.S)
        parts = [f'{p} {{#about-{slug}}}' if p[:1]=='#' and (slug := re.sub(r'[^\w.]+', '-', re.sub(r'^[^a-z]+', '', p.strip('# `').lower()))) in anchors else p for p in parts]
        return ''.join(p if i%2 else re.sub(r'`([A-Za-z_][\w.]*)(?:\([^`]*\))?`', self.link, p) for i,p in enumerate(parts))
    def cell(self, cell):
        if cell.cell_type=='markdown': cell.source = self.text(cell.source)
        for o in cell.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = self.text(''.join(o.data['text/markdown']))

class run_cells(exec_show_docs):
    """nbdev runs each cell that has an import, with all that is in it. Of an example we run the imports alone, and only
    where a `show_doc` or `exec_doc` of the author's may need them; its outputs stay as they are."""
    def begin(self):
        super().begin()
        self.imports = any('exec_doc' in c.directives_ or is_doc(c) and not c.get('has_sd') for c in self.nb.cells)
    def __call__(self, cell):
        if is_doc(cell) or cell.directives_.keys() & {'export', 'exports', 'exec_doc'}: return super().__call__(cell)
        imports = [ast.unparse(n) for n in cell.parsed_() or [] if isinstance(n, (ast.Import, ast.ImportFrom))]
        if imports and self.imports and cell.directives_.get('eval:')!=['false']: super().__call__(mk_cell('\n'.join(imports)))

def is_doc(cell): return cell.cell_type=='code' and re.search(r'^show_doc\(', cell.source, re.M)

class Filters(FilterDefaults):
    def base_procs(self):
        res = [{add_links: link_names, exec_show_docs: run_cells}.get(p, p) for p in super().base_procs()]
        return [say_import] + res[:(i := res.index(add_show_docs)+1)] + [note_shown] + res[i:]

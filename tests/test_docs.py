"The site has no faults, and each kind of fault that the checker knows is really found"
import json, re, shutil
from xml.etree import ElementTree
import pytest
import check_docs, docs, front

def test_no_faults(site): assert check_docs.check(site)==[]

def test_a_page_for_every_notebook(site):
    pages = [(p.parent/front.page(p)).relative_to(docs.root/'nbs') for ps in front.sections(docs.root).values() for p in ps]
    assert sorted(pages)==sorted(p.relative_to(site) for p in site.rglob('*.html') if 'pagefind' not in p.parts and p.name not in ('404.html', 'api_index.html'))
    home = (site/'index.html').read_text()
    for p in pages: assert f'href="{p.as_posix()}"' in home, f'the sidebar lacks {p}'

def test_sitemap(site):
    urls = [o.text for o in ElementTree.parse(site/'sitemap.xml').iter() if o.tag.endswith('}loc')]
    assert f'{front.site(docs.root)}/api_index.html' in urls and len(urls)==len(set(urls)) > 50

def test_checks_are_folded_and_questions_are_answered(site):
    def cell(source, *outputs): return dict(cell_type='code', source=source, outputs=list(outputs))
    shown,drawn = dict(output_type='stream', text='1'),dict(output_type='display_data', data={'image/png': ''})
    assert docs.is_proof(cell('x = 1\ntest_eq(x, 1)')) and docs.is_proof(cell('x = 1\nassert x\nassert x\nx', shown))
    assert not docs.is_proof(cell('x = 1\ny = 2')) and not docs.is_proof(cell('assert x', drawn))
    md = docs.cell_md(cell('#| code-fold: true\n#| code-summary: "Answer"\n# It is one.\nf(1)', shown), 0, site)
    assert md.startswith('<details class="exercise"><summary>Answer</summary>\n\nIt is one.') and '# It is' not in md and 'f(1)' in md

def test_a_new_notebook_needs_no_edit_elsewhere(tmp_path):
    "Its number says which section of the sidebar it belongs to"
    shutil.copy(docs.root/'settings.ini', tmp_path)
    (tmp_path/'nbs'/'tutorials').mkdir(parents=True)
    def book(name): (tmp_path/'nbs'/f'{name}.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source=f'# About {name}\n\n> It does it')])))
    for name in ('index', '09_last', '10_collate', '17_new', '92_scratch_x', 'tutorials/first', 'a_list', '70_cli', 'how_do_i'): book(name)
    assert {k: [p.stem for p in v] for k,v in front.sections(tmp_path).items()}=={'Start': ['index'], 'Ground': ['09_last'],
        'Data': ['10_collate', '17_new'], 'From scratch': ['92_scratch_x'], 'Tutorials': ['first'], 'Reference': ['a_list', '70_cli'], 'How do I ...?': ['how_do_i']}
    assert '      - section: "Data"\n        contents:\n          - 10_collate.ipynb\n          - 17_new.ipynb\n      - section: "From scratch"' in front.sidebar(tmp_path)
    book('80_nowhere')
    with pytest.raises(KeyError): front.sections(tmp_path) # a chapter needs a name

def put(new): return lambda page: page.replace('</article>', f'{new}</article>')

faults = {
    'a dead link': (put('<p><a href="nowhere.html">x</a></p>'), 'nowhere.html leads nowhere'),
    'a missing place': (put('<p><a href="core.html#no-such-thing">x</a></p>'), 'core.html#no-such-thing: no such place'),
    'a missing place here': (put('<p><a href="#no-such-thing">x</a></p>'), '#no-such-thing: no such place'),
    'an absolute link to ourselves': (put('<p><a href="https://nntrain.github.io/nntrain/core.html">x</a></p>'), 'should be relative'),
    'a missing picture': (put('<img src="images/none.png" alt="a plot">'), 'images/none.png leads nowhere'),
    'a picture without words': (put('<img src="site.css">'), 'no alternative text'),
    'an open div': (put('<div class="callout-note">'), '<div> is never closed'),
    'an id twice': (put('<p id="main">x</p>'), 'id main is used twice'),
    'a shortcode': (put('<p>{{&lt; video x.mp4 &gt;}}</p>'), 'a shortcode is left'),
    'the fence of a div': (put('<p>::: {.callout-tip}</p>'), 'the fence of a div is left'),
    'a cross-reference': (put('<p>see @fig-loss</p>'), 'a cross-reference is left'),
    'a directive in code': (put('<pre class="python"><code>#| echo: false\nx=1</code></pre>'), 'a directive is left in the code'),
    'a list without a blank line': (put('<p>these:\n- one\n- two</p>'), 'a list (does a blank line'),
    'bold': (put('<p>this is **bold</p>'), 'bold is left'),
    'a backtick': (put('<p>this is `code</p>'), 'a backtick is left'),
    'half a link': (put('<p>[here](core.html</p>'), 'a link is left'),
    'half an attribute': (put('<p><a href="core.html">here</a>}</p>'), 'an attribute is left after a link: }'),
    'half an attribute of a name': (put('<p><a href="core.html"><code>here</code></a>{.nav</p>'), 'an attribute is left after a link: {.nav'),
    'a heading': (put('<p>text\n## heading</p>'), 'a heading is left'),
    'a table': (put('<p>| a |\n| --- |</p>'), 'a table is left'),
    'a formula': (put(r'<p>it is $\frac{1}{2}$</p>'), 'a formula is left'),
    'bad TeX': (put(r'<p><span class="math inline">\frac{1</span></p>'), 'bad TeX'),
    'a misspelt subscriber': (put('<p><code>MetrixS</code></p>'), '`MetrixS` is no name of the library'),
    'a misspelt event': (put('<p><code>before_bacth</code></p>'), '`before_bacth` is no name of the library'),
    'a misspelt method': (put('<p><code>Learner.fitt</code></p>'), '`Learner.fitt` is no name of the library'),
    'a misspelt module': (put('<p><code>nntrain.cores</code></p>'), '`nntrain.cores` is no name of the library'),
    'a misspelt package': (put('<p><code>nntrain.savings</code></p>'), '`nntrain.savings` is no name of the library'),
    'a class that is no link': (put('<p><code>RunningMean</code></p>'), '`RunningMean` should be a link'),
    'an error output': (put('<pre class="output"><code>Traceback (most recent call last)\nValueError</code></pre>'), 'an error is shown'),
    'a machine path': (put('<pre class="output"><code>/home/ann/x.py:3: warning</code></pre>'), 'a path of the machine'),
    'an unrendered diagram': (put('<pre class="mermaid"><code>graph LR</code></pre>'), 'was not rendered'),
    'an empty page': (lambda page: re.sub(r'<article>.*</article>', '<article><p>soon</p></article>', page, flags=re.S), 'the page is empty'),
    'a lost page': (None, 'core.html: no such page'),
}

@pytest.fixture(scope='module')
def small(site, tmp_path_factory):
    "Two pages of the site, which are quicker to check, and the faults that they have without our doing"
    copy = tmp_path_factory.mktemp('small')/'docs'
    shutil.copytree(site, copy, ignore=shutil.ignore_patterns('pagefind', '*.html'))
    for name in ('index.html', 'core.html'): shutil.copy(site/name, copy)
    return copy, check_docs.check(copy)

@pytest.mark.parametrize('name', faults)
def test_faults_are_found(small, tmp_path, name):
    (folder,before),(change,message) = small,faults[name]
    assert not any(message in f for f in before)
    copy = shutil.copytree(folder, tmp_path/'docs')
    page = copy/('index.html' if change else 'core.html')
    if change: page.write_text(change(page.read_text()))
    else: page.unlink()
    found = check_docs.check(copy)
    assert any(message in f for f in found), found

def test_undocumented_names_are_found(site, tmp_path):
    for name in ('nbs', 'nntrain'): shutil.copytree(docs.root/name, tmp_path/name)
    shutil.copy(docs.root/'settings.ini', tmp_path)
    core = tmp_path/'nntrain'/'core.py'
    core.write_text(core.read_text() + '\n\ndef brand_new(): pass\n')
    found = check_docs.check(site, tmp_path)
    assert 'core.html: brand_new is public but not documented' in found and 'core.html: brand_new has no docstring' in found

def test_bad_tex_stops_the_build():
    import pypandoc
    with pytest.raises(RuntimeError): pypandoc.convert_text(r'$\frac{1$', 'html5', 'markdown', extra_args=['--mathml', '--fail-if-warnings'])

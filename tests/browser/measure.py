"What a reader meets on each page of the built site: `python tests/browser/measure.py _docs` prints the table"
import sys
from pathlib import Path
from chrome import Chrome

look = """(() => {
  const code = e => e.querySelector('code').innerText, all = s => [...document.querySelectorAll(`article :is(${s})`)], seen = e => !e.closest('details:not(.exercise)') && e.getClientRects().length > 0
  const top = e => e ? Math.round(e.getBoundingClientRect().top + scrollY) : null
  const use = all('div.sourceCode').filter(e => seen(e) && !e.closest('.member, .import') && !/^h[34]$/i.test(e.previousElementSibling?.tagName)),
        out = all('pre.output, .html-output, .md-output, img, .player').filter(seen)
  const first = use.filter(e => !/^(from nntrain\\S* import \\*|import nntrain\\S*)\\s*$/.test(code(e)))[0]
  const lines = use.flatMap(e => code(e).split('\\n')).filter(l => l.trim() && !l.trim().startsWith('#'))
  const words = all(':is(p, li, td, dd, h1, h2, h3, h4, blockquote)').filter(e => seen(e) && !e.querySelector('p, li')).map(e => e.innerText).join(' ')
  return {use: top(first), output: top(out[0]), words: words.split(/\\s+/).length, pictures: all('img, svg, .player').filter(seen).length,
          lines: lines.length, asserts: lines.filter(l => /^\\s*(assert|test_\\w+\\()/.test(l)).length, exercises: all('details.exercise').length,
          wide: lines.filter(l => l.length > 100).length, alts: all('img').map(e => e.alt)}
})()"""

def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if 'pagefind' not in p.parts and p.name!='404.html')

def measure(chrome, url, names, width=1400):
    chrome.size(width, 900)
    res = {}
    for n in names:
        chrome.open(url+n)
        res[n] = chrome.js(look)
    return res

if __name__ == '__main__':
    site = Path(sys.argv[1]).resolve()
    with Chrome() as c: found = measure(c, site.as_uri()+'/', pages(site))
    print('page | words | first code | first output | pictures | asserts % | exercises | lines over 100')
    for n,d in found.items():
        print(f"{n} | {d['words']} | {d['use']} | {d['output']} | {d['pictures']} | {d['asserts']}/{d['lines']} = {100*d['asserts']/max(1, d['lines']):.0f} | {d['exercises']} | {d['wide']}")

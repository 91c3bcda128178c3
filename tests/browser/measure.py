"What a reader meets on each page of the built site: `python tests/browser/measure.py _docs` prints the table"
import sys
from pathlib import Path
from chrome import Chrome

look = """(() => {
  const code = e => e.querySelector('code').innerText, all = s => [...document.querySelectorAll(`article :is(${s})`)], seen = e => !e.closest('details:not(.exercise)') && e.getClientRects().length > 0
  const top = e => e ? Math.round(e.getBoundingClientRect().top + scrollY) : null
  const use = all('div.sourceCode').filter(e => seen(e) && !e.closest('.member, .import') && !/^h[34]$/i.test(e.previousElementSibling?.tagName)),
        out = all('pre.output, .html-output, .md-output, img:not(a img), .player, .nnt-player').filter(seen)
  const longest = e => { // characters in the full lines of an element's text
    const lines = new Map(), walk = document.createTreeWalker(e, NodeFilter.SHOW_TEXT), range = document.createRange()
    for (let t; t = walk.nextNode();) for (const m of t.data.matchAll(/\\S+\\s*/g)) {
      range.setStart(t, m.index); range.setEnd(t, m.index+m[0].trimEnd().length)
      const r = range.getClientRects()[0]
      if (r) lines.set(Math.round(r.bottom/8), (lines.get(Math.round(r.bottom/8)) ?? 0) + m[0].length)
    }
    return [...lines.values()].slice(0, -1)
  }
  const first = use.filter(e => !/^(from nntrain\\S* import \\*|import nntrain\\S*)\\s*$/.test(code(e)))[0]
  const lines = use.flatMap(e => code(e).split('\\n')).filter(l => l.trim() && !l.trim().startsWith('#'))
  const words = all(':is(p, li, td, dd, h1, h2, h3, h4, blockquote)').filter(e => seen(e) && !e.querySelector('p, li')).map(e => e.innerText).join(' ')
  return {use: top(first), output: top(out[0]), words: words.split(/\\s+/).length, pictures: all('img:not(a img), svg, .player, .nnt-player').filter(seen).length,
          lines: lines.length, asserts: lines.filter(l => /\\b(assert |test_\\w+\\(|expect_fail)/.test(l)).length, exercises: all('details.exercise').length,
          wide: lines.filter(l => l.length > 100).length, full: all('p, li, dd, blockquote').filter(e => seen(e) && !e.querySelector('p, ul, ol, dl')).flatMap(longest), alts: all('img:not(a img)').map(e => e.alt)}
})()"""

def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if 'pagefind' not in p.parts and p.name!='404.html')

def measure(chrome, url, names, width=1400):
    chrome.size(width, 900)
    res = {}
    for n in names:
        chrome.open(url+n)
        res[n] = d = chrome.js(look)
        full = sorted(d.pop('full')) or [0]
        d['longest'] = full[int(.95*len(full))] # of 95 lines in 100
    return res

if __name__ == '__main__':
    site = Path(sys.argv[1]).resolve()
    with Chrome() as c: found = measure(c, site.as_uri()+'/', pages(site))
    print('page | words | first code | first output | pictures | asserts % | exercises | code over 100 | longest line')
    for n,d in found.items():
        print(f"{n} | {d['words']} | {d['use']} | {d['output']} | {d['pictures']} | {d['asserts']}/{d['lines']} = {100*d['asserts']/max(1, d['lines']):.0f} | {d['exercises']} | {d['wide']} | {d['longest']}")

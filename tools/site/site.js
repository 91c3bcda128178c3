// Menu, theme, copy buttons, the place in the page contents, and search. No framework: the pages work without it.
const $ = (s, e=document) => e.querySelector(s), all = (s, e=document) => [...e.querySelectorAll(s)], root = document.documentElement

const menu = $('#menu')
menu.onclick = () => menu.setAttribute('aria-expanded', document.body.classList.toggle('menu-open'))
addEventListener('keydown', e => { if (e.key=='Escape' && document.body.classList.contains('menu-open')) { menu.click(); menu.focus() } })
$('#sidebar [aria-current]')?.scrollIntoView({block: 'nearest'})
scrollTo(0, location.hash ? scrollY : 0)

$('#theme').onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme=='dark' : matchMedia('(prefers-color-scheme: dark)').matches
  root.dataset.theme = dark ? 'light' : 'dark'
  try { localStorage.setItem('theme', root.dataset.theme) } catch {}
}

for (const h of all('article h2[id], article h3[id], article h4[id]')) {
  const a = Object.assign(document.createElement('a'), {className: 'anchor', href: '#'+h.id, textContent: '#', ariaLabel: 'Link to this place'})
  a.dataset.pagefindIgnore = ''
  h.append(a)
}
for (const d of all('div.sourceCode')) {
  const b = Object.assign(document.createElement('button'), {className: 'copy', textContent: 'Copy'})
  b.onclick = async () => { await navigator.clipboard.writeText($('pre', d).innerText); b.textContent = 'Copied'; setTimeout(() => b.textContent = 'Copy', 1500) }
  d.append(b)
}

for (const p of all('pre, .html-output, article table')) if (p.scrollWidth > p.clientWidth || p.scrollHeight > p.clientHeight) p.tabIndex = 0 // keys can scroll it
for (const c of all('.toc code')) c.innerHTML = c.innerHTML.replace(/[._]/g, '$&<wbr>') // a long name breaks between words
const contents = $('aside.toc > ul')?.cloneNode(true) // for narrow windows, above the text
if (contents) { all('[id]', contents).forEach(e => e.removeAttribute('id')); $('.toc.small').append(contents) }

const links = new Map(all('aside.toc a').map(a => [decodeURIComponent(a.hash.slice(1)), a]))
const seen = new IntersectionObserver(es => es.forEach(e => { if (e.isIntersecting) { links.forEach(a => a.classList.remove('here')); links.get(e.target.id)?.classList.add('here') } }), {rootMargin: '-10% 0px -75%'})
all('article h2[id], article h3[id]').forEach(h => links.has(h.id) && seen.observe(h))

// ---- search: Pagefind's index, made when the site is built
const box = $('#search'), input = $('input', box), results = $('#results'), up = document.body.dataset.up
let pf
const open = async () => {
  box.showModal(); input.select()
  try { pf ??= await import(new URL(up+'pagefind/pagefind.js', location.href)); show() } // somebody may have typed while it was loading
  catch { results.innerHTML = '<p>Search needs a web server: <code>python -m http.server -d _docs</code></p>' }
}
const item = (url, title, excerpt, part) => `<a role="listitem" href="${url}" class="${part ? 'part' : ''}"><b>${title}</b><small>${excerpt}</small></a>`
const stem = w => w.replace(/(.{3})(ings?|ed|es|s|e)$/, '$1').replace(/([^aeiou])\1$/, '$1') // stopping, stoping, stops: stop
const show = async () => {
  const q = input.value.trim(), words = q.toLowerCase().split(/[\s-]+/).map(stem)
  const name = s => s.title.replace(/#$/, ''), fits = t => words.every(w => t.toLowerCase().includes(w))
  const rank = s => name(s)==q ? 2 : +fits(name(s)) // headings say what a place is about; the best is the very name
  const look = async found => Promise.all(found.results.slice(0, 16).map(async r => {
    const p = await r.data()
    p.parts = p.sub_results.filter(s => s.url!=p.url).sort((a, b) => rank(b)-rank(a))
    p.rank = Math.max(fits(p.meta.title) ? 1.5 : 0, ...p.parts.map(rank))
    if (p.rank && /how_do_i/.test(p.url)) p.rank += .6 // the answer before the explanation
    return p
  }))
  const found = q ? await pf?.debouncedSearch(q, {}, 120) : {results: []}
  if (!found) return // a newer search is on its way
  let pages = await look(found)
  if (q && !pages.some(p => p.rank)) pages = [...await look(await pf.search(words.join(' '))), ...pages] // misspelt, perhaps
  pages.sort((a, b) => b.rank - a.rank)
  results.innerHTML = [...new Map(pages.map(p => [p.url, p])).values()].slice(0, 8).map(p => item(p.url, p.meta.title, p.excerpt) + p.parts.slice(0, 4).map(s => item(s.url, name(s), s.excerpt, true)).join('')).join('')
    || (q ? '<p>Nothing found.</p>' : '')
}
$('#find').onclick = open
input.oninput = show
box.onclick = e => { if (e.target==box || e.target.closest('a')) box.close() }
addEventListener('keydown', e => {
  if ((e.key=='/' && !/INPUT|TEXTAREA/.test(e.target.tagName)) || (e.key=='k' && (e.ctrlKey || e.metaKey))) { e.preventDefault(); open() }
  if (!box.open || !['ArrowDown', 'ArrowUp', 'Enter'].includes(e.key)) return
  const as = all('a', results), i = as.findIndex(a => a.classList.contains('here'))
  if (e.key=='Enter') return (as[i] ?? as[0])?.click()
  e.preventDefault(); as[i]?.classList.remove('here')
  const to = as[(i + (e.key=='ArrowDown' ? 1 : as.length-1) + as.length) % as.length]
  to?.classList.add('here'); to?.scrollIntoView({block: 'nearest'})
})

// Menu, theme, copy buttons, the place in the page contents, and search. No framework: the pages work without it.
const $ = (s, e=document) => e.querySelector(s), all = (s, e=document) => [...e.querySelectorAll(s)], root = document.documentElement

const menu = $('#menu')
menu.onclick = () => menu.setAttribute('aria-expanded', document.body.classList.toggle('menu-open'))
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
const show = async () => {
  const q = input.value.trim(), found = q ? await pf?.debouncedSearch(q, {}, 120) : {results: []}
  if (!found) return // a newer search is on its way
  const pages = await Promise.all(found.results.slice(0, 8).map(r => r.data()))
  const exact = s => s.title.replace(/#$/, '').toLowerCase()==q.toLowerCase() // the heading is the very name
  pages.sort((a, b) => b.sub_results.some(exact) - a.sub_results.some(exact))
  results.innerHTML = pages.map(p => item(p.url, p.meta.title, p.excerpt) + p.sub_results.filter(s => s.url!=p.url).sort((a, b) => exact(b)-exact(a)).slice(0, 4)
    .map(s => item(s.url, s.title.replace(/#$/, ''), s.excerpt, true)).join('')).join('') || (q ? '<p>Nothing found.</p>' : '')
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

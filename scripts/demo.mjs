// npm run demo: embeds texts, pictures, films, pages and sounds with the model that comes with the package, searches in every direction,
// and writes a page with what was found. CONAN_DEMO_MODEL: another model's directory.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { buildNative, buildTypeScript, install, root } from './setup.mjs'

install()
buildNative()
buildTypeScript()
// What is installed and built only now.
const { default: sharp } = await import('sharp')
const { loadModel, documentPages } = await import('../dist/index.mjs')

const began = performance.now()
const model = await loadModel(process.env.CONAN_DEMO_MODEL)
const { info } = model
console.log(
  `\n${path.basename(info.directory)}: ${info.layers} layers, ${info.dimensions} dimensions, ${info.dtype} on ${info.backend}, ${info.threads} threads`,
)

/** What is searched: everything has a kind, something to show, and an input for the model. */
const items = []
const media = path.join(root, 'demo/media')
const named = (file) =>
  path
    .basename(file, path.extname(file))
    .replace(/^spoken-/, '')
    .replace(/-/g, ' ')
const add = (kind, show, input, file) => {
  if (kind === 'text' || model.supports(kind)) items.push({ kind, show, input, file })
}
for (const text of readFileSync(path.join(root, 'demo/sentences.txt'), 'utf8').trim().split('\n')) add('text', text, text)
for (const name of readdirSync(media).sort()) {
  const file = path.join(media, name)
  if (name.endsWith('.svg')) add('image', named(name), { image: file }, file)
  if (name.endsWith('.webp')) add('video', named(name), { video: file }, file)
  if (name.endsWith('.ogg')) add('audio', `"${named(name)}"`, { audio: file }, file)
}
const out = path.join(root, 'build/demo')
mkdirSync(out, { recursive: true })
if (model.supports('image')) {
  for await (const { page, image } of documentPages(path.join(media, 'handbook.pdf'))) {
    const file = path.join(out, `handbook-${page}.png`)
    await sharp(image.data, { raw: image }).png().toFile(file)
    items.push({ kind: 'page', show: `handbook, page ${page}`, input: { document: file }, file })
  }
  for (const { name, file } of emoji()) {
    // As this model has seen pictures: on white, small.
    const small = path.join(out, `${path.basename(file, '.webp')}.png`)
    await sharp(file).flatten({ background: '#ffffff' }).resize(128, 128).png().toFile(small)
    add('image', `${name} (emoji)`, { image: small }, small)
  }
}

const kinds = ['text', 'image', 'video', 'page', 'audio']
const plural = { text: 'texts', image: 'pictures', video: 'films', page: 'pages', audio: 'sounds' }
const index = await model.embedDocument(items.map(({ input }) => input))
const counted = kinds.map((kind) => [items.filter((item) => item.kind === kind).length, plural[kind]]).filter(([count]) => count)
console.log(`${counted.map((pair) => pair.join(' ')).join(', ')}: loaded and embedded in ${((performance.now() - began) / 1000).toFixed(1)} s\n`)

/** Queries: a text, or one of the items by name; and the kind that is looked for. */
const searches = [
  ['astronomy', 'text'],
  ['how do I bake bread?', 'text'],
  ['a face', 'image'],
  ['an animal', 'image'],
  ['heart', 'image'],
  ['sun', 'video'],
  ['a flying balloon', 'video'],
  ['draw a graph of a file', 'page'],
  ['newspaper', 'audio'],
  ['a researcher', 'audio'],
  [{ image: 'umbrella' }, 'text'],
  [{ image: 'red heart' }, 'text'],
  [{ image: 'sailboat' }, 'image'],
  [{ image: 'fish' }, 'audio'],
  [{ audio: '"newspaper"' }, 'text'],
  [{ audio: '"rainbow"' }, 'text'],
  [{ audio: '"sun"' }, 'video'],
  [{ video: 'fish swimming' }, 'image'],
  [{ video: 'balloon flying' }, 'text'],
]
const sections = []
for (const [query, wanted] of searches) {
  const asked = typeof query === 'string' ? undefined : items.find(({ kind, show }) => kind === Object.keys(query)[0] && show === Object.values(query)[0])
  const places = items.flatMap((item, i) => (item.kind === wanted && item !== asked ? [i] : []))
  if (places.length === 0 || (typeof query !== 'string' && !asked)) continue
  const scores = model.similarity(await model.embedQuery(asked?.input ?? query), index)
  const best = places.sort((a, b) => scores[b] - scores[a]).slice(0, 3)
  console.log(`${asked ? `${asked.kind} ${asked.show}` : query} -> ${plural[wanted]}`)
  for (const i of best) console.log(`  ${scores[i].toFixed(3)}  ${items[i].show}`)
  sections.push({ query: asked ?? { kind: 'text', show: query }, wanted, found: best.map((i) => ({ ...items[i], score: scores[i] })) })
}
await model.dispose()
const page = path.join(out, 'index.html')
writeFileSync(page, html(sections))
console.log(`\n${path.relative(process.cwd(), page)}: the same with pictures and players`)

/** Pictures whose names no training has seen, from an npm package; none where the registry is out of reach. */
function emoji() {
  const folder = path.join(out, 'emoji')
  if (!existsSync(path.join(folder, 'package/assets'))) {
    mkdirSync(folder, { recursive: true })
    const packed = spawnSync('npm', ['pack', '@lobehub/fluent-emoji-3d@1.1.0', '--silent', '--pack-destination', folder], { encoding: 'utf8' })
    const archive = path.join(folder, packed.stdout?.trim().split('\n').at(-1) || 'none')
    if (packed.status !== 0 || spawnSync('tar', ['-xzf', archive, '-C', folder]).status !== 0) {
      console.log('(the emoji pictures of @lobehub/fluent-emoji-3d could not be fetched: they are left out)')
      return []
    }
  }
  return JSON.parse(readFileSync(path.join(root, 'demo/emoji.json'), 'utf8'))
    .map(([id, name]) => ({ name, file: path.join(folder, 'package/assets', `${id}.webp`) }))
    .filter(({ file }) => existsSync(file))
}

function html(sections) {
  const escaped = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)
  const card = ({ kind, show, file, score }) => {
    const source = file && escaped(path.relative(out, file))
    const body = kind === 'text' ? `<p>${escaped(show)}</p>` : kind === 'audio' ? `<audio controls src="${source}"></audio>` : `<img src="${source}" alt="">`
    const caption = [score?.toFixed(3), kind === 'text' ? '' : escaped(show)].filter(Boolean).join(' ')
    return `<figure class="${kind}">${body}<figcaption>${caption}</figcaption></figure>`
  }
  const rows = sections.map(
    ({ query, wanted, found }) =>
      `<section><div class="query">${card(query)}</div><div class="arrow">&rarr; ${plural[wanted]}</div>${found.map(card).join('')}</section>`,
  )
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>One space for everything</title>
<style>body{font:15px/1.4 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}section{display:flex;align-items:center;gap:14px;padding:10px 0;border-bottom:1px solid #ddd}
figure{margin:0;width:190px}figure p{margin:0}img{max-width:120px;max-height:120px;border:1px solid #eee}.page img{max-width:190px;max-height:190px}audio{width:180px}figcaption{font-size:12px;color:#666}
.query{background:#f3f6fb;padding:8px;border-radius:6px}.arrow{width:80px;color:#666;font-size:13px}</style>
<h1>One space for everything</h1><p>${escaped(path.basename(info.directory))}: what is nearest to each query, by cosine.</p>
${rows.join('\n')}
</html>
`
}

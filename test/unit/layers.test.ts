// The layer rules of CONTRIBUTING.md, checked by reading includes and imports; and that NativeBinding names exactly what
// the addon exports.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { binding } from '../../lib/binding'
import { root } from '../support'

const files = (directory: string) =>
  readdirSync(path.join(root, directory), { recursive: true })
    .map((file) => `${directory}/${String(file).replaceAll('\\', '/')}`)
    .filter((file) => /\.(h|cpp|inl|cu|ts)$/.test(file))

const read = (file: string) => readFileSync(path.join(root, file), 'utf8')

/** What each native folder may include besides itself. */
const allowed: Record<string, string[]> = {
  base: [],
  ops: ['base'],
  cpu: ['ops', 'base'],
  cuda: ['ops', 'base'],
  media: ['base'],
  merge: ['ops', 'base'],
  models: ['ops', 'base'],
  train: ['models', 'ops', 'base'],
  addon: ['media', 'merge', 'models', 'ops', 'base', 'train'],
}

test('native includes go downward only', () => {
  for (const [layer, below] of Object.entries(allowed))
    for (const file of files(`native/${layer}`))
      for (const [, folder] of read(file).matchAll(/#include "(\w+)\//g))
        assert.ok(folder === layer || below.includes(folder!), `${file} includes ${folder}/: ${layer} may see ${below.join(', ') || 'nothing'}`)
})

test('only the addon knows Node, and models name no device', () => {
  for (const layer of Object.keys(allowed))
    for (const file of files(`native/${layer}`)) {
      const text = read(file)
      if (layer !== 'addon') assert.doesNotMatch(text, /napi\.h|node_api\.h/, file)
      if (layer === 'models') assert.doesNotMatch(text, /avx|cuda|__m512|immintrin/i, file)
    }
})

test('only lib/binding.ts loads the addon; lib does not import the command line', () => {
  for (const file of files('lib')) {
    const text = read(file)
    if (file !== 'lib/binding.ts') assert.doesNotMatch(text, /node-gyp-build|\.node['"]/, file)
    if (!file.startsWith('lib/cli/')) assert.doesNotMatch(text, /from '[./]*cli\//, file)
  }
})

test('sources.gypi lists every C++ file', () => {
  const listed = Object.values(JSON.parse(read('native/sources.gypi')).variables as Record<string, string[]>).flat()
  for (const file of files('native').filter((name) => /\.(cpp|cu)$/.test(name))) assert.ok(listed.includes(file), `${file} is not in native/sources.gypi`)
})

test("NativeBinding names the addon's exports", () => {
  const body = /export interface NativeBinding \{([\s\S]*?)\n\}/.exec(read('lib/binding.ts'))![1]!
  const typed = [...body.matchAll(/^ {2}(\w+)\(/gm)].map(([, name]) => name).sort()
  assert.deepEqual(Object.keys(binding()).sort(), typed)
})

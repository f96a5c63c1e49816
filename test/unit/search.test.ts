// Search in files of vectors against comparing everything with everything, in blocks and whole; and the two commands about it and speed.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { loadModel, searchVectors } from '../../lib'
import { nearest, npySource } from '../../lib/embed/search'
import { pico, root, temporary } from '../support'

const run = (...args: string[]) => spawnSync(process.execPath, [path.join(root, 'dist', 'cli.js'), ...args], { encoding: 'utf8' })
const texts = Array.from({ length: 50 }, (_, i) => `${'abcde'[i % 5]} text, number ${i % 40}`) // some twice

test('the nearest, whatever the file and its blocks', async () => {
  const place = temporary()
  const input = path.join(place, 'texts.jsonl')
  writeFileSync(input, texts.map((text, i) => JSON.stringify({ id: `id${i}`, text })).join('\n'))
  const files = ['vectors.npy', 'vectors.jsonl', 'vectors.parquet'].map((name) => path.join(place, name))
  for (const out of files) assert.equal(run('embed', pico('bert'), '--input', input, '--out', out).status, 0)
  await using model = await loadModel(pico('bert'))
  const queries = ['a text', texts[7]!, 'something else']
  const documents = await model.embed(texts)
  const scores = model.similarity(await model.embedQuery(queries), documents)
  const expected = queries.map((_, q) =>
    texts
      .map((_, i) => ({ id: `id${i}`, score: scores[q * texts.length + i]!, row: i }))
      .sort((a, b) => b.score - a.score || a.row - b.row)
      .slice(0, 7)
      .map(({ id, score }) => ({ id, score })),
  )
  for (const file of files) assert.deepEqual(await searchVectors(model, file, queries, { top: 7 }), expected, file)
  const source = npySource(files[0]!)
  for (const block of [1, 3, 50, 1000]) {
    const found = nearest(model, source, await model.embedQuery(queries), 7, block)
    assert.deepEqual(
      found.map((hits) => hits.map(({ row }) => `id${row}`)),
      expected.map((hits) => hits.map(({ id }) => id)),
      `blocks of ${block}`,
    )
  }
  assert.equal((await searchVectors(model, files[0]!, 'a text'))[0]!.length, 10)
  assert.equal((await searchVectors(model, files[0]!, 'a text', { top: 1000 }))[0]!.length, texts.length)

  const found = run('search', pico('bert'), files[0]!, texts[7]!, '--top', '1', '--json')
  assert.deepEqual(JSON.parse(found.stdout), { query: '0', hits: [expected[1]![0]] }, found.stderr)
  assert.match(run('search', pico('bert'), files[1]!, 'a text', '--top', '2').stdout, /^-?\d\.\d{4} {2}id\d+\n-?\d\.\d{4} {2}id\d+\n$/)
})

test('what is no file of vectors of this model is named', async () => {
  const place = temporary()
  await using model = await loadModel(pico('bert'))
  const file = (name: string, content: string) => {
    writeFileSync(path.join(place, name), content)
    return path.join(place, name)
  }
  const fails = (file: string, code: string, message: RegExp, options = {}) => assert.rejects(searchVectors(model, file, 'a', options), { code, message })
  await fails(path.join(place, 'none.npy'), 'FILE_IO', /cannot be read/)
  await fails(file('text.npy', 'text'), 'FILE_CORRUPT', /expected a matrix of f32/)
  await fails(file('empty.jsonl', ''), 'INVALID_INPUT', /expected vectors, found none/)
  await fails(file('wrong.jsonl', '{"id": 1, "embedding": [1, "x"]}'), 'INVALID_INPUT', /line 1: expected an object with "embedding"/)
  await fails(file('uneven.jsonl', '{"embedding": [1, 2]}\n{"embedding": [1]}'), 'INVALID_INPUT', /line 2: .* of 2 numbers/)
  await fails(file('wide.jsonl', JSON.stringify({ embedding: Array(1000).fill(1) })), 'INVALID_INPUT', /at most the model's 32 dimensions, found 1000/)
  await fails(file('narrow.jsonl', '{"embedding": [1, 2]}'), 'INVALID_OPTION', /does not declare/)
  assert.equal((await searchVectors(model, path.join(place, 'narrow.jsonl'), 'a', { force: true }))[0]![0]!.id, '0')
  await fails(file('narrow.jsonl', '{"embedding": [1, 2]}'), 'INVALID_OPTION', /top: expected a positive/, { top: 0 })
  const out = path.join(place, 'vectors.npy')
  assert.equal(run('embed', pico('bert'), 'a', 'b', '--out', out).status, 0)
  file('vectors.ids.json', '["one"]')
  await fails(out, 'FILE_CORRUPT', /vectors\.ids\.json: expected 2 ids/)
  await assert.rejects(searchVectors(model, undefined as never, 'a'), { code: 'INVALID_OPTION' })
  assert.equal(run('search', pico('bert')).status, 2)
})

test('bench: measures what was asked for', () => {
  const { status, stdout, stderr } = run('bench', pico('bert'), '--lengths', '8,16', '--texts', '1,3', '--ms', '1', '--json')
  assert.equal(status, 0, stderr)
  const { results, device, dtype, firstVectorMs } = JSON.parse(stdout)
  assert.deepEqual([device, dtype, results.length], ['cpu', 'float32', 4])
  assert.ok(
    firstVectorMs > 0 && results.every(({ tokens, tokensPerSecond }: Record<string, number>) => tokens! >= 4 && tokens! <= 40 && tokensPerSecond! > 0),
    stdout,
  )
  assert.match(run('bench', pico('bert'), '--lengths', '8', '--texts', '2', '--ms', '1').stdout, /tokens\/s\n/)
  for (const lengths of ['x', '8,100000']) assert.equal(run('bench', pico('bert'), '--lengths', lengths).status, 2)
})

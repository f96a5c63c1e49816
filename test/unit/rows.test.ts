// Rows of Parquet files as `datasets` and pyarrow write them (test/fixtures/make_parquet.py), and what takes rows.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { type EmbedInput, evaluate, loadModel, mineNegatives } from '../../lib'
import { arrowSchema } from '../../lib/files/arrow-schema'
import { writeParquet } from '../../lib/files/parquet-vectors'
import { rowsOf } from '../../lib/files/rows'
import { readProbe } from '../../lib/fuse/probe'
import { readData } from '../../lib/train/data'
import { documentKey } from '../../lib/train/sampler'
import { fixtures, pico, root, temporary } from '../support'

const place = path.join(fixtures, 'parquet')
const media = path.join(place, 'media.parquet')
const vl = path.join(fixtures, 'vision', 'qwen3_vl')
const { png, wav } = JSON.parse(readFileSync(path.join(place, 'bytes.json'), 'utf8')) as { png: string[]; wav: string }

async function read(file: string): Promise<unknown[]> {
  const rows: unknown[] = []
  for await (const { value } of rowsOf(file)) rows.push(hex(value))
  return rows
}

/** With bytes in hexadecimal. */
const hex = (value: unknown) =>
  JSON.parse(JSON.stringify(value, (_, each) => (each instanceof Uint8Array ? Buffer.from(each).toString('hex') : each))) as unknown

test('every codec; nulls, large numbers, bytes that are text and bytes that are pictures', async () => {
  for (const codec of ['none', 'snappy', 'gzip', 'brotli', 'zstd', 'lz4'])
    assert.deepEqual(
      await read(path.join(place, `${codec}.parquet`)),
      [
        { id: 10, text: 'one', image: png[0], score: 1 },
        { id: 11, text: 'zwei ü', score: 0 },
        { id: '1152921504606846976', text: 'three', score: 1 },
        { id: 13, image: png[1] },
        { id: 14, text: 'five', score: 0 },
      ],
      codec,
    )
})

test('images and sounds of `datasets`: by its features where a column has a name of its own', async () => {
  const rows = (await read(media)) as Record<string, unknown>[]
  assert.equal(rows.length, 3)
  assert.deepEqual(Object.keys(rows[0]!.positive as object), ['image'])
  assert.deepEqual(rows[0], {
    anchor: 'picture 0',
    positive: rows[0]!.positive,
    negative: { audio: wav },
    negative_2: [{ image: png[2] }],
    label: 0,
    vector: [0.5, 0],
  })
  assert.deepEqual(Object.keys(rows[1]!.negative as object), ['text', 'image'])
  assert.ok(!('negative_2' in rows[1]!))
  const [{ rows: training }] = (await readData(media)) as [Awaited<ReturnType<typeof readData>>[0]]
  assert.deepEqual(
    training.map(({ positives, negatives, score, vector }) => [positives.length, negatives.length, score, Array.from(vector!())]),
    [
      [1, 2, 0, [0.5, 0]],
      [1, 1, 1, [0.5, 1]],
      [1, 2, 2, [0.5, 2]],
    ],
  )
})

test('a file that is damaged, and one that is none, are named', async () => {
  const broken = path.join(temporary(), 'broken.parquet')
  const bytes = readFileSync(media)
  writeFileSync(broken, bytes.subarray(0, bytes.length / 2))
  await assert.rejects(read(broken), { code: 'FILE_CORRUPT', message: /broken\.parquet: not a Parquet file that can be read/ })
  bytes.fill(0xff, 100, 2000)
  writeFileSync(broken, bytes)
  await assert.rejects(read(broken), { code: 'FILE_CORRUPT' })
  await assert.rejects(read(path.join(place, 'none here.parquet')), { code: 'FILE_IO' })
})

test('what is mined from bytes is written as data: URLs, and read again', async () => {
  const out = path.join(temporary(), 'mined.jsonl')
  const report = await mineNegatives(vl, media, { out, count: 1, relativeMargin: 100 })
  assert.deepEqual([report.rows, report.documents, report.negatives], [3, 3, 3])
  const [[before], [after]] = [await readData(media), await readData(out)]
  assert.equal(after!.rows[1]!.negatives.length, 2)
  await using model = await loadModel(vl)
  const first = (set: typeof before) => model.embed(set!.rows.map(({ positives }) => positives[0]!))
  assert.deepEqual((await first(after)).vectors, (await first(before)).vectors)
  const raw = [{ query: { image: { data: new Uint8Array(12), width: 2, height: 2, channels: 3 } }, positive: 'a' }]
  await assert.rejects(mineNegatives('none', raw, { out }), { code: 'INVALID_INPUT', message: /data: expected a path, a URL or the bytes/ })
})

test('embed, eval and probes take them as well', async () => {
  const run = spawnSync(process.execPath, [path.join(root, 'dist', 'cli.js'), 'embed', vl, '--input', path.join(place, 'zstd.parquet')], { encoding: 'utf8' })
  assert.equal(run.status, 0, run.stderr)
  const found = run.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { id: string; embedding: number[] })
  assert.deepEqual(
    found.map(({ id }) => id),
    ['10', '11', '1152921504606846976', '13', '14'],
  )
  await using model = await loadModel(vl)
  const { vectors, dimensions } = await model.embed([{ text: 'one', image: Buffer.from(png[0]!, 'hex') }, { image: Buffer.from(png[1]!, 'hex') }])
  assert.deepEqual(found[0]!.embedding, Array.from(vectors.slice(0, dimensions) as Float32Array))
  assert.deepEqual(found[3]!.embedding, Array.from(vectors.slice(dimensions) as Float32Array))

  const rows = path.join(temporary(), 'rows.jsonl')
  writeFileSync(rows, [0, 1].map((label) => JSON.stringify({ text: 'ab'[label], label })).join('\n'))
  const [same] = await evaluate(vl, [{ name: 'same', type: 'zero-shot', rows, labels: { 0: 'a', 1: 'b' } }])
  assert.equal(same!.scores.accuracy, 1)
  const labelled = path.join(place, 'labelled.parquet')
  const labels: Record<string, EmbedInput> = {}
  for await (const { value } of rowsOf(labelled)) {
    const { image, label } = value as { image: Uint8Array; label: number }
    labels[label] = { image }
  }
  const [seen] = await evaluate(vl, [{ name: 'pictures', type: 'zero-shot', rows: labelled, labels }])
  assert.equal(seen!.scores.accuracy, 1)
  const task = { name: 'x', type: 'zero-shot' as const, rows: path.join(place, 'zstd.parquet'), labels: { a: 'a', b: 'b' } }
  await assert.rejects(evaluate(vl, [task]), { code: 'INVALID_INPUT', message: /row 1: "label": expected a label, got undefined/ })
  assert.equal((await readProbe(media)).length, 3)
})

test('a corpus in files: what stands there as "document" is an id', async () => {
  const folder = temporary()
  const write = (name: string, rows: object[]) => writeFileSync(path.join(folder, name), rows.map((row) => JSON.stringify(row)).join('\n'))
  write('queries.jsonl', [{ id: 'q', text: 'a text' }])
  write('corpus.jsonl', [
    { id: 'd1', text: 'another one' },
    { id: 'd2', title: 'a', text: 'text' },
  ])
  write('qrels.jsonl', [{ query: 'q', document: 'd2', score: 1 }])
  const file = (name: string) => path.join(folder, `${name}.jsonl`)
  const task = { name: 'files', type: 'retrieval' as const, queries: file('queries'), corpus: file('corpus'), qrels: file('qrels') }
  const [result] = await evaluate(pico('bert'), [task])
  assert.equal(result!.scores.ndcg_at_10, 1)
  // As BEIR and MTEB publish them.
  write('queries.jsonl', [{ _id: 'q', text: 'a text', metadata: {} }])
  write('corpus.jsonl', [
    { _id: 'd1', title: '', text: 'another one', metadata: { url: 'x' } },
    { _id: 'd2', title: 'a', text: 'text', metadata: {} },
  ])
  write('qrels.jsonl', [{ 'query-id': 'q', 'corpus-id': 'd2', score: 1 }])
  assert.equal((await evaluate(pico('bert'), [task]))[0]!.scores.ndcg_at_10, 1)
  const pairs = ['a', 'b', 'c'].map((text, i) => ({ sentence1: text, sentence2: 'a', score: 3 - i }))
  assert.ok((await evaluate(pico('bert'), [{ name: 'pairs', type: 'sts', rows: pairs }]))[0]!.scores.cosine_spearman! > 0)
})

test('vectors are written as Parquet in pages and row groups', async () => {
  for (const [type, columns, rows] of [
    ['<f4', 8, 70_000], // three pages, two row groups
    ['<f4', 1, 3],
    ['|i1', 5, 2],
    ['|u1', 300_000, 3], // a page for each row
    ['<f4', 3, 0],
  ] as const) {
    const file = path.join(temporary(), 'vectors.parquet')
    const values = type === '<f4' ? new Float32Array(rows * columns) : type === '|i1' ? new Int8Array(rows * columns) : new Uint8Array(rows * columns)
    for (let i = 0; i < values.length; i++) values[i] = type === '<f4' ? i / 7 : i
    const width = values.BYTES_PER_ELEMENT * columns
    const ids = (function* () {
      for (let i = 0; i < rows; i++) yield `ü${i}`
    })()
    writeParquet(file, { rows, columns, type, ids, rowsAt: (first, count) => Buffer.from(values.buffer, first * width, count * width) })
    let row = 0
    for await (const { value } of rowsOf(file)) {
      const { id, embedding } = value as { id: string; embedding: number[] }
      assert.equal(id, `ü${row}`)
      if (row % 997 === 0 || rows < 10) assert.deepEqual(Array.from(embedding), Array.from(values.subarray(row * columns, (row + 1) * columns)))
      row++
    }
    assert.equal(row, rows)
  }
})

test("Arrow's schema of such a file", () => {
  // pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(...))) of pyarrow 26:
  // id: string not null, embedding: fixed_size_list<element: float not null>[3] not null; and of int8, [1024]
  const head = '/////xABAAAU'
  assert.equal(
    arrowSchema('<f4', 3),
    `${head}AAAAAAAAAAwAGAAWABUAEAAEAAwAAAAAAAAAAAAAAAAAAAAQAAAAAAEEAAgACAAAAAQACAAAAAQAAAACAAAAGAAAAEwAAAAQABQAEAAPAA4ACAAAAAQAEAAAABAAAAAcAAAAAAAFAAgAAAAAAAAAAgAAAGlkAAAEAAQABAAAABAAFAAQAA8ADgAIAAAABAAQAAAAEAAAACwAAAAAABAADAAAAAEAAAA0AAAACQAAAGVtYmVkZGluZwAAAAAABgAIAAQABgAAAAMAAAAQABQAEAAPAA4ACAAAAAQAEAAAABAAAAAkAAAAAAADAAgAAAAAAAAABwAAAGVsZW1lbnQAAAAGAAgABgAGAAAAAAABAA==`,
  )
  assert.equal(
    arrowSchema('|i1', 1024),
    `${head}AAAAAAAAAAwAFAASABEADAAEAAwAAAAAAAAAAAAAABAAAAAAAQQACAAIAAAABAAIAAAABAAAAAIAAAAYAAAATAAAABAAFAAQAA8ADgAIAAAABAAQAAAAEAAAABwAAAAAAAUACAAAAAAAAAACAAAAaWQAAAQABAAEAAAAEAAUABAADwAOAAgAAAAEABAAAAAQAAAALAAAAAAAEAAMAAAAAQAAADQAAAAJAAAAZW1iZWRkaW5nAAAAAAAGAAgABAAGAAAAAAQAABAAFAAQAA8ADgAIAAAABAAQAAAAEAAAACQAAAAAAAIACAAAAAAAAAAHAAAAZWxlbWVudAAIAAwACAAHAAgAAAAAAAABCAAAAA==`,
  )
})

test('a probe names its files from where it lies', async () => {
  const folder = temporary()
  const row = { query: 'a', positive: { image: 'picture.png' } }
  writeFileSync(path.join(folder, 'probe.jsonl'), `${JSON.stringify(row)}\n${JSON.stringify(row)}\n`)
  assert.deepEqual((await readProbe(path.join(folder, 'probe.jsonl')))[0]!.positive, { image: path.join(folder, 'picture.png') })
})

test('what tells documents apart: bytes by their digest, however they are held', () => {
  const bytes = Buffer.alloc(100_000, 7)
  const keys = [bytes, new Uint8Array(bytes)].map((image) => documentKey({ image }))
  assert.equal(keys[0], keys[1])
  assert.ok(keys[0]!.length < 60)
  assert.notEqual(documentKey({ image: bytes.fill(8, 5, 6) }), keys[1])
})

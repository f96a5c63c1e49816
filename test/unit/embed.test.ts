// The public API: options, usage, streaming, stopping, several models and threads at once.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { best, similarities, similarityTo, type VectorList } from '../../lib/embed/similarity'
import {
  attachAudio,
  type ConanError,
  devices,
  documentPages,
  drift,
  evaluate,
  extractLora,
  fuse,
  inspect,
  loadModel,
  mineNegatives,
  recoverProjector,
  rehearse,
  searchCoefficients,
  trainSpecialist,
} from '../../lib/index'
import { copyOf, editJson, editTensors, fixtures, largestDifference, pico, root } from '../support'

const bert = path.join(fixtures, 'st', 'bert-mean-dense')
const qwen = path.join(fixtures, 'st', 'qwen3-last')
const texts = Array.from({ length: 300 }, (_, i) => `text ${i} ${'word '.repeat(i % 7)}`)

test('one text, a list, objects: the same vectors', async () => {
  await using model = await loadModel(bert)
  const list = await model.embed(['a cat', { text: 'a dog' }])
  assert.equal(list.dimensions, 24)
  assert.equal(list.vectors.length, 48)
  assert.deepEqual((await model.embed('a cat')).vectors, list.vectors.subarray(0, 24))
  assert.deepEqual((await model.embed({ text: 'a dog' })).vectors, list.vectors.subarray(24))
  assert.equal((await model.embed([])).vectors.length, 0)
  assert.equal(list.usage.text, 'a cat'.length + 2 + 'a dog'.length + 2)
})

test('batch sizes change nothing, and progress is told', async () => {
  await using model = await loadModel(bert)
  const whole = await model.embed(texts)
  const seen: number[] = []
  for (const options of [{ batchSize: 7 }, { maxBatchTokens: 50 }, { maxBatchTokens: 1 }])
    assert.deepEqual((await model.embed(texts, { ...options, onProgress: (p) => seen.push(p.done) })).vectors, whole.vectors)
  assert.equal(seen.at(-1), texts.length)
})

test('prompts: by name, as text, as instruction, as query and document', async () => {
  await using model = await loadModel(bert)
  const plain = await model.embed('query: fox')
  assert.deepEqual((await model.embed('fox', { promptName: 'query' })).vectors, plain.vectors)
  assert.deepEqual((await model.embed('fox', { prompt: 'query: ' })).vectors, plain.vectors)
  assert.deepEqual((await model.embedQuery('fox')).vectors, plain.vectors)
  assert.deepEqual((await model.embedDocument('fox')).vectors, (await model.embed('doc: fox')).vectors)
  await assert.rejects(model.embed('fox', { promptName: 'nope' }), { code: 'INVALID_OPTION', message: /expected one of document, query/ })
  await assert.rejects(model.embed('fox', { promptName: 'query', prompt: 'x' }), { code: 'INVALID_OPTION' })
  await using decoder = await loadModel(qwen)
  assert.equal(decoder.info.finalToken, '<|endoftext|>')
  assert.deepEqual((await decoder.embed('fox', { instruction: 'rhyme' })).vectors, (await decoder.embed('fox', { prompt: 'Instruct: rhyme\nQuery:' })).vectors)
  assert.deepEqual((await decoder.embed('fox')).vectors, (await decoder.embedQuery('fox')).vectors, 'default_prompt_name')
})

test('dimensions need a Matryoshka model or force, and stay normalised', async () => {
  await using model = await loadModel(bert)
  await assert.rejects(model.embed('a', { dimensions: 8 }), { code: 'INVALID_OPTION', message: /Matryoshka/ })
  await assert.rejects(model.embed('a', { dimensions: 25 }), { code: 'INVALID_OPTION' })
  const full = await model.embed('a')
  const cut = await model.embed('a', { truncateDim: 8, force: true })
  const length = Math.hypot(...full.vectors.subarray(0, 8))
  assert.ok(
    largestDifference(
      cut.vectors,
      full.vectors.subarray(0, 8).map((x) => x / length),
    ) < 1e-6,
  )
  const directory = copyOf(bert)
  editJson(path.join(directory, 'config.json'), (config) => {
    config.matryoshka_dimensions = [8, 16]
  })
  await using matryoshka = await loadModel(directory)
  assert.deepEqual((await matryoshka.embed('a', { dimensions: 8 })).vectors, cut.vectors)
})

test('precisions', async () => {
  await using model = await loadModel(bert)
  const { vectors } = await model.embed(['a', 'b'])
  const int8 = await model.embed(['a', 'b'], { precision: 'int8' })
  assert.ok(int8.vectors instanceof Int8Array && int8.vectors.length === 48)
  const most = Math.max(...vectors.subarray(0, 24).map(Math.abs))
  assert.ok(
    largestDifference(
      int8.vectors.subarray(0, 24),
      vectors.subarray(0, 24).map((x) => (x / most) * 127),
    ) <= 0.5001,
  )
  const uint8 = await model.embed(['a', 'b'], { precision: 'uint8' })
  assert.deepEqual(
    [...uint8.vectors].map((x) => x - 128),
    [...int8.vectors],
  )
  const bits = await model.embed(['a', 'b'], { precision: 'ubinary' })
  assert.equal(bits.vectors.length, 6)
  assert.equal(bits.vectors[0]! >> 7, vectors[0]! > 0 ? 1 : 0)
  const signed = await model.embed(['a', 'b'], { precision: 'binary' })
  assert.deepEqual(
    [...signed.vectors].map((x) => x + 128),
    [...bits.vectors],
  )
  await assert.rejects(model.embed('a', { precision: 'int4' as never }), { code: 'INVALID_OPTION' })
  await assert.rejects(model.embed('a', { precision: 'binary', dimensions: 12, force: true }), { code: 'INVALID_OPTION' })
})

test('normalize: false leaves lengths', async () => {
  await using model = await loadModel(pico('bert'))
  const raw = await model.embed('hello', { normalize: false })
  const unit = await model.embed('hello')
  const length = Math.hypot(...raw.vectors)
  assert.ok(Math.abs(length - 1) > 0.1)
  assert.ok(
    largestDifference(
      unit.vectors,
      raw.vectors.map((x) => x / length),
    ) < 1e-6,
  )
})

test('truncation: reported, from either side, or an error', async () => {
  await using model = await loadModel(bert)
  const long = 'abcdefghij'.repeat(20)
  const end = await model.embed(['short', long])
  assert.deepEqual(end.usage.truncated, [1])
  assert.deepEqual((await model.embed(long.slice(0, 46))).vectors, end.vectors.subarray(24))
  assert.deepEqual((await model.embed(long, { truncate: 'start' })).vectors, (await model.embed(long.slice(-46))).vectors)
  await assert.rejects(model.embed(['short', long], { truncate: 'error' }), { code: 'INPUT_TOO_LONG', message: /input 1/ })
})

test('empty text, 1 MB of text, lone surrogates, NUL', async () => {
  await using model = await loadModel(bert)
  const odd = ['', 'x'.repeat(1 << 20), 'a\ud800b', '\0', '\ufeff']
  const { vectors } = await model.embed(odd)
  assert.ok(vectors.every(Number.isFinite))
  assert.deepEqual((await model.embed('a\ufffdb')).vectors, vectors.subarray(48, 72))
})

test('wrong inputs and options are named', async () => {
  await using model = await loadModel(bert)
  for (const input of [null, 5, ['a'], { text: 5 }, { text: 'a', extra: 1 }])
    await assert.rejects(model.embed(['ok', input as never]), { code: 'INVALID_INPUT', message: /input 1/ })
  await assert.rejects(model.embed([{ image: 'x.jpg' } as never]), { code: 'INVALID_INPUT', message: /image/ })
  for (const options of [{ batchSize: 0 }, { maxBatchTokens: 1.5 }, { dimensions: -1 }, { truncate: 'middle' }])
    await assert.rejects(model.embed('a', options as never), { code: 'INVALID_OPTION' })
  for (const options of [{ device: 'gpu' }, { dtype: 'int4' }, { threads: 0 }, { threads: 100000 }, { maxTokens: 0 }])
    await assert.rejects(loadModel(bert, options as never), { code: 'INVALID_OPTION' })
  await assert.rejects(model.embedStream(5 as never).next(), { code: 'INVALID_INPUT', message: /inputs: expected something to iterate over, got 5/ })
  // What is not even of the type that is asked for: a variable of the environment that is not set, null for nothing.
  const named = async (call: () => unknown, message: RegExp) => assert.rejects(async () => call(), { code: 'INVALID_OPTION', message })
  const nothing = undefined as never
  const passthrough = { merge_method: 'passthrough', models: [{ model: bert }] }
  await named(() => loadModel(5 as never), /model: expected a path, got 5/)
  await named(() => loadModel(bert, null as never), /options: expected an object, got null/)
  await named(() => loadModel(bert, { adapters: [5 as never] }), /adapters: expected a path, got 5/)
  await named(() => inspect(nothing), /model: expected a path, got undefined/)
  await named(() => model.embedQuery('a', null as never), /options: expected an object, got null/)
  await named(() => model.embed('a', { signal: {} as never }), /signal: expected an AbortSignal/)
  await named(() => model.embed('a', { onProgress: 5 as never }), /onProgress: expected a function, got 5/)
  await named(() => model.embed('a', { processor: null as never }), /processor: expected an object, got null/)
  await named(() => evaluate(model, 5 as never), /tasks: expected a path, got 5/)
  await named(() => drift(bert, nothing), /model: expected a path, got undefined/)
  await named(() => drift(bert, bert, { others: bert as never }), /others: expected a list of models/)
  await named(() => drift(bert, bert, { probe: 5 as never }), /probe: expected a file or rows, got 5/)
  await named(() => fuse(passthrough, { out: nothing }), /out: expected a path, got undefined/)
  await named(() => attachAudio(bert, bert, { out: nothing }), /out: expected a path, got undefined/)
  await named(() => mineNegatives(bert, [], { out: nothing }), /out: expected a path, got undefined/)
  await named(() => trainSpecialist({ model: bert, data: [], out: nothing }), /out: expected a path, got undefined/)
  await named(() => extractLora(bert, bert, { out: 'none', modules: 'x' as never }), /modules: expected a regular expression, got "x"/)
  await named(() => extractLora(bert, bert, { out: 'none', seed: 0.5 }), /seed: expected a whole number, got 0.5/)
  await named(() => extractLora(bert, bert, { out: 'none', threads: -1 }), /threads: expected 0 to 1024, got -1/)
  await named(() => attachAudio(bert, bert, { out: 'none', seed: 0.5 }), /seed: expected a whole number, got 0.5/)
  await named(() => drift(bert, bert, { threads: 'x' as never }), /threads: expected a whole number, got "x"/)
  await named(() => evaluate(model, [], { seed: 'x' as never }), /seed: expected a whole number, got "x"/)
  await named(() => searchCoefficients(passthrough, { grid: nothing }), /grid: expected numbers, .*got undefined/)
  await named(() => searchCoefficients(passthrough, { grid: [1], rounds: 0 }), /rounds: expected a positive whole number, got 0/)
  await named(() => searchCoefficients(passthrough, { grid: [1], tradeOff: 5 as never }), /tradeOff: expected mean, min or .*got 5/)
  await named(() => documentPages(path.join(fixtures, 'vision', 'images', 'rgb.png'), { pages: null as never }).next(), /pages: expected .*got null/)
  for (const call of [
    () => evaluate(model, [], null as never),
    () => drift(bert, bert, null as never),
    () => fuse(passthrough, nothing),
    () => searchCoefficients(passthrough, nothing),
    () => attachAudio(bert, bert, nothing),
    () => mineNegatives(bert, [], nothing),
    () => trainSpecialist(nothing),
    () => recoverProjector(nothing),
    () => rehearse(nothing),
    () => extractLora(bert, bert, nothing),
  ])
    await named(call, /options: expected an object, got (null|undefined)/)
  await assert.rejects(loadModel(bert, { device: 'cuda' }), { code: 'DEVICE_UNAVAILABLE' })
  assert.equal(model.supports('text'), true)
  assert.equal(model.supports('image'), false)
})

test('a stream of any length, in order', async () => {
  await using model = await loadModel(bert)
  const whole = await model.embed(texts)
  let given = 0
  let most = 0
  async function* source() {
    for (const text of texts) {
      given++
      yield text
    }
  }
  let index = 0
  for await (const { index: i, vector } of model.embedStream(source(), { maxBatchTokens: 200 })) {
    most = Math.max(most, given - index)
    assert.equal(i, index)
    assert.deepEqual(vector, whole.vectors.subarray(index * 24, (index + 1) * 24))
    index++
  }
  assert.equal(index, texts.length)
  assert.ok(most < 300, 'it does not read everything first')
  for await (const _ of model.embedStream(source())) break // leaving early must not hang or leak
  await assert.rejects(
    async () => {
      for await (const _ of model.embedStream(['a', 5 as never]));
    },
    { code: 'INVALID_INPUT' },
  )
})

test('abort: before, and in the middle', async () => {
  await using model = await loadModel(bert)
  await assert.rejects(model.embed('a', { signal: AbortSignal.abort() }), { code: 'ABORTED', name: 'AbortError' })
  const stop = new AbortController()
  const work = model.embed(Array(5000).fill('a rather long text for a small model'), {
    signal: stop.signal,
    maxBatchTokens: 100,
    onProgress: ({ done }) => done > 20 && stop.abort(new Error('enough')),
  })
  await assert.rejects(work, (error: ConanError) => error.code === 'ABORTED' && (error.cause as Error).message === 'enough')
  assert.equal((await model.embed('still usable')).dimensions, 24)
})

test('dispose: while running, twice, and use after it', async () => {
  const model = await loadModel(bert)
  const work = model.embed(texts, { maxBatchTokens: 100 }).then(
    () => 'done',
    (error) => error.code,
  )
  await model.dispose()
  await model.dispose()
  assert.ok(['done', 'DISPOSED'].includes(await work))
  await assert.rejects(model.embed('a'), { code: 'DISPOSED' })
})

test('two models and many calls at once', async () => {
  await using a = await loadModel(bert, { threads: 2 })
  await using b = await loadModel(qwen, { threads: 3 })
  const [wantA, wantB] = [await a.embed(texts), await b.embed(texts)]
  const all = await Promise.all(Array.from({ length: 8 }, (_, i) => (i % 2 ? a : b).embed(texts, { maxBatchTokens: 300 + i * 50 })))
  for (const [i, result] of all.entries()) assert.deepEqual(result.vectors, (i % 2 ? wantA : wantB).vectors)
})

test('on several devices: the same vectors in the same order; what fails, is aborted or disposed leaves nothing behind', async () => {
  await using one = await loadModel(bert)
  const several = await loadModel(bert, { device: 'cpu,cpu,cpu', threads: 1 })
  assert.equal(several.info.device, 'cpu,cpu,cpu')
  assert.ok(several.info.memoryBytes > one.info.memoryBytes)
  const want = await one.embed(texts)
  const options = { maxBatchTokens: 100 }
  for (const result of await Promise.all([several.embed(texts, options), several.embed(texts, options)])) assert.deepEqual(result.vectors, want.vectors)
  const seen: number[] = []
  await assert.rejects(async () => {
    for await (const { index } of several.embedStream([...texts.slice(0, 50), 5 as never], { batchSize: 1 })) seen.push(index)
  }, /input 50/)
  assert.deepEqual(
    seen,
    Array.from({ length: seen.length }, (_, i) => i),
  )
  const stop = new AbortController()
  await assert.rejects(several.embed(Array(5000).fill('a rather long text'), { ...options, signal: stop.signal, onProgress: () => stop.abort() }), {
    code: 'ABORTED',
  })
  const work = several.embed(texts, options).then(
    () => 'done',
    (error) => error.code,
  )
  await Promise.all([several.dispose(), several.dispose()])
  assert.ok(['done', 'DISPOSED'].includes(await work))
  for (const device of ['cpu,', 'cpu;cpu', 'gpu', 'cpu,auto']) await assert.rejects(loadModel(bert, { device }), { code: 'INVALID_OPTION' })
})

test('from worker threads, also when they end in the middle', async () => {
  await using model = await loadModel(bert)
  const want = await model.embed(['from a worker'])
  const code = `
    const { parentPort, workerData } = require('node:worker_threads')
    const { loadModel } = require(workerData.library)
    loadModel(workerData.model).then(async (model) => {
      parentPort.postMessage((await model.embed(['from a worker'])).vectors)
      for (;;) await model.embed(['again and again'])
    })`
  const run = () =>
    new Promise<Float32Array>((resolve, reject) => {
      const worker = new Worker(code, { eval: true, workerData: { library: path.join(root, 'dist/index.js'), model: bert } })
      worker.on('message', (vectors) => worker.terminate().then(() => resolve(vectors)))
      worker.on('error', reject)
    })
  for (const vectors of await Promise.all([run(), run(), run()])) assert.deepEqual(vectors, want.vectors)
  assert.deepEqual((await model.embed(['from a worker'])).vectors, want.vectors)
})

test('similarity', async () => {
  await using model = await loadModel(bert)
  const a = await model.embed(['one', 'two'])
  const scores = model.similarity(a, await model.embed(['two', 'three', 'one']))
  assert.equal(scores.length, 6)
  assert.ok(Math.abs(scores[2]! - 1) < 1e-5 && Math.abs(scores[3]! - 1) < 1e-5)
  const bad = (a: unknown, b: unknown, message: RegExp) =>
    assert.throws(() => model.similarity(a as typeof list, b as typeof list), { code: 'INVALID_INPUT', message })
  const list = { vectors: new Float32Array(8), dimensions: 4 }
  bad(null, list, /expected float32 vectors, got undefined/)
  bad(list, { ...list, vectors: new Int8Array(8) }, /expected float32 vectors/)
  bad(list, { ...list, dimensions: 3 }, /divide the 8 numbers, got 3/)
  bad(list, { ...list, dimensions: 2 }, /equal dimensions, got 4 and 2/)
})

test('similarities are those of their two rows, whatever stands beside them', () => {
  let state = 1
  const random = (rows: number, dimensions: number): VectorList => ({
    vectors: Float32Array.from({ length: rows * dimensions }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1),
    dimensions,
  })
  for (const measure of ['cosine', 'dot', 'euclidean', 'manhattan'] as const)
    for (const [rows, cols, d] of [
      [1, 1, 1],
      [3, 700, 33],
      [700, 600, 48],
      [600, 5, 384],
    ] as const) {
      const [a, b] = [random(rows, d), random(cols, d)]
      a.vectors.fill(0, 0, d)
      const all = similarities(measure, a, b, 2)
      const row = ({ vectors }: VectorList, i: number) => ({ vectors: vectors.subarray(i * d, (i + 1) * d), dimensions: d })
      const turned = similarities(measure, b, a, 1)
      for (const [i, j] of [
        [0, cols - 1],
        [rows - 1, 0],
        [rows >> 1, cols >> 1],
        [rows - 1, cols - 1],
      ] as const) {
        const [x, y] = [row(a, i), row(b, j)]
        const sum = (of: (x: number, y: number) => number) => x.vectors.reduce((sum, value, k) => sum + of(value, y.vectors[k]!), 0)
        const dot = sum((x, y) => x * y)
        const length = Math.sqrt(sum((x) => x * x) * sum((_, y) => y * y))
        const want = { cosine: dot / (length || 1), dot, euclidean: -Math.sqrt(sum((x, y) => (x - y) ** 2)), manhattan: -sum((x, y) => Math.abs(x - y)) }
        const got = all[i * cols + j]!
        assert.ok(
          Math.abs(got - want[measure]) <= 1e-6 * Math.max(1, Math.abs(want[measure])) + 1e-5 * (measure === 'dot' ? 1 : 0),
          `${measure}: ${got}, not ${want[measure]}`,
        )
        assert.equal(similarities(measure, x, y, 2)[0], got)
        assert.equal(turned[j * rows + i], got)
      }
      const toB = similarityTo(measure, b, 2)
      assert.equal([...toB(row(a, 0))].length, 1)
      let at = 0
      for (const scores of toB(a)) {
        assert.deepEqual(scores, all.subarray(at * cols, (at + 1) * cols))
        at++
      }
      assert.equal(at, rows)
    }
  assert.deepEqual(best(Float32Array.of(1, 3, 2, 3, 0), 3), [1, 3, 2])
  assert.deepEqual(best(Float32Array.of(1, 3, 2, 3, 0, 4), 9, 4, new Set([3])), [1, 2, 0, 4])
})

test('a NaN weight in an embedding shows in the vector, by input', async () => {
  const directory = copyOf(pico('bert'))
  editTensors(directory, (tensors) => {
    for (const [name, tensor] of tensors)
      if (name.endsWith('word_embeddings.weight'))
        new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.length).fill(0xff, 100 * 128, 101 * 128)
  })
  await using model = await loadModel(directory)
  const codes = Array.from({ length: 256 }, (_, i) => String.fromCharCode(i))
  await assert.rejects(model.embed(codes), { code: 'VECTOR_NOT_FINITE', message: /input \d+/ })
  assert.ok((await model.embed('a')).vectors.every(Number.isFinite))
})

test('devices and inspect', () => {
  const [first, second] = devices()
  assert.ok(first && 'cpu' in first && first.cpu.threads >= 1 && first.cpu.isa.length > 0)
  assert.ok(second && ('gpu' in second || ('unavailable' in second && second.unavailable.length > 0)))
  const report = inspect(bert)
  assert.equal(report.modelType, 'bert')
  assert.deepEqual(report.problems, [])
  assert.equal(report.pooling, 'mean')
  assert.deepEqual(report.dense, [{ inputs: 32, outputs: 24, bias: true, activation: 'tanh' }])
  assert.ok(report.unused.includes('pooler.dense.weight'))
})

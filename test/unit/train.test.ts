// Training runs: what they write, what they skip, how they stop and go on, samplers and data, and every way in which one can be wrong.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { ConanError, fuse, loadModel, mineNegatives, recoverProjector, rehearse, type TrainOptions, trainSpecialist } from '../../lib'
import { binding } from '../../lib/binding'
import { jsonLines } from '../../lib/files/json'
import { NpyWriter } from '../../lib/files/npy'
import { type Dataset, readData } from '../../lib/train/data'
import { documentKey, Sampler } from '../../lib/train/sampler'
import { learningRateAt } from '../../lib/train/train'
import { changedTensors } from '../../lib/train/write'
import { copyOf, editTensors, fixtures, floats, pico, readSafetensors, root, type Tensor, temporary } from '../support'

const audio = (name: string) => path.join(fixtures, 'audio', name)
const rows = Array.from({ length: 40 }, (_, i) => ({ query: `what is ${i}`, positive: `the number ${i}, ${(i * 7) % 13}` }))
const basic = (out: string, more: Partial<TrainOptions> = {}): TrainOptions => ({
  model: pico('qwen3'),
  out,
  data: rows,
  steps: 12,
  batchSize: 8,
  temperature: 0.1,
  learningRate: 5e-3,
  trainable: { mode: 'lora', rank: 4 },
  ...more,
})
const losses = (directory: string) =>
  JSON.parse(readFileSync(path.join(directory, 'training-report.json'), 'utf8')).log.map(({ loss }: { loss: number }) => loss)

test('a specialist: the loss falls, the adapter and the dense model are the same model', async () => {
  const place = temporary()
  const seen: number[] = []
  const report = await trainSpecialist(
    basic(path.join(place, 'out'), { steps: 40, probe: rows.slice(0, 10), probeEvery: 20, onProgress: ({ step }) => seen.push(step) }),
  )
  assert.ok(report.lastLoss < 0.8 * report.firstLoss, `${report.firstLoss} -> ${report.lastLoss}`)
  assert.deepEqual(
    seen,
    Array.from({ length: 40 }, (_, i) => i + 1),
  )
  assert.deepEqual([report.rows, report.skipped, report.trainedTensors, report.untouchedTensors], [320, 0, 14, 10])
  assert.equal(report.log.filter(({ probe }) => probe).length, 2)
  assert.match(readFileSync(path.join(place, 'out', 'training.html'), 'utf8'), /<svg/)
  assert.deepEqual(readdirSync(place), ['out'])
  await using dense = await loadModel(path.join(place, 'out'), { dtype: 'float32' })
  await using adapted = await loadModel(pico('qwen3'), { dtype: 'float32', adapters: path.join(place, 'out', 'adapter') })
  const texts = rows.map(({ query }) => query)
  const [a, b] = [await dense.embed(texts), await adapted.embed(texts)]
  for (const similarity of [dense.similarity(a, b)]) for (let i = 0; i < texts.length; i++) assert.ok(similarity[i * texts.length + i]! > 0.9999) // the dense one is rounded to bf16

  // What was trained is trained on, and fused: the papers of the first training do not come along.
  const again = path.join(place, 'again')
  await trainSpecialist({ ...basic(again, { steps: 2 }), model: path.join(place, 'out') })
  assert.equal(JSON.parse(readFileSync(path.join(again, 'training-report.json'), 'utf8')).steps, 2)
  assert.ok(existsSync(path.join(again, 'adapter/adapter_config.json')))
  await fuse({ merge_method: 'passthrough', models: [{ model: again }] }, { out: path.join(place, 'fused') })
  assert.deepEqual(
    readdirSync(path.join(place, 'fused')).filter((name) => /training|adapter/.test(name)),
    [],
  )
})

test('the same seed gives the same model; gradients of several batches make a step', async () => {
  const place = temporary()
  const run = async (name: string, more: Partial<TrainOptions>) => {
    await trainSpecialist(basic(path.join(place, name), { steps: 4, ...more }))
    return losses(path.join(place, name))
  }
  const one = await run('a', {})
  assert.deepEqual(await run('b', { threads: 1 }), one)
  assert.notDeepEqual(await run('c', { seed: 1 }), one)
  // GradCache: the curve is that of the whole batch, but for the order in which gradients are added.
  for (const [i, loss] of (await run('small', { chunkTokens: 64 })).entries()) assert.ok(Math.abs(loss - one[i]) < 1e-5)
  assert.equal((await run('d', { accumulate: 3, trainable: { mode: 'full' }, learningRate: 1e-4 })).length, 4)
})

/** Values of f32 or bf16. */
const wide = (tensor: Tensor) => {
  if (tensor.dtype === 'F32') return floats(tensor)
  const { data } = tensor
  return new Float32Array(Uint32Array.from({ length: data.length / 2 }, (_, i) => data.readUInt16LE(2 * i) << 16).buffer)
}

test('distillation: vectors become those of a teacher, from rows or a file', async () => {
  const place = temporary()
  const texts = rows.map(({ query }) => query)
  await using teacher = await loadModel(pico('bert'), { dtype: 'float32' })
  const { vectors, dimensions } = await teacher.embed(texts)
  const of = (i: number) => [...vectors.subarray(i * dimensions, (i + 1) * dimensions)] as number[]
  const data = texts.map((query, i) => ({ query, vector: of(i) }))
  const options = { trainable: { mode: 'full' as const }, learningRate: 3e-3, steps: 60, batchSize: 8, dtype: 'float32' as const }
  const report = await trainSpecialist(basic(path.join(place, 'out'), { ...options, data }))
  assert.ok(report.lastLoss < report.firstLoss / 3, `${report.firstLoss} -> ${report.lastLoss}`)
  writeFileSync(path.join(place, 'rows.jsonl'), texts.map((query) => JSON.stringify({ query })).join('\n'))
  const writer = new NpyWriter(path.join(place, 'vectors.npy'))
  for (let i = 0; i < texts.length; i++) writer.write(Float32Array.from(of(i)))
  writer.finish()
  const list = [{ path: path.join(place, 'rows.jsonl'), vectors: path.join(place, 'vectors.npy') }]
  await trainSpecialist(basic(path.join(place, 'file'), { ...options, data: list }))
  const all = (name: string) => losses(path.join(place, name))
  assert.deepEqual(all('file'), all('out'))
  const fails = (data: object[], message: RegExp) => assert.rejects(trainSpecialist(basic(path.join(place, 'bad'), { data })), { message })
  await fails([{ path: path.join(place, 'rows.jsonl'), vectors: path.join(place, 'rows.jsonl') }], /expected a matrix of f32 in NumPy's format/)
  await fails([{ rows: data.slice(1), vectors: path.join(place, 'vectors.npy') }], /expected 39 vectors, one for every row, found 40/)
  await fails([{ query: 'a', vector: 'b' }], /expected numbers as "vector"/)
  await fails([...data, { query: 'a', vector: [1] }], /expected vectors of \d+ numbers/)
  await fails([...data, { query: 'a' }], /expected a positive, found none/)
  await assert.rejects(trainSpecialist(basic(path.join(place, 'bad'), { loss: 'distillation' })), { message: /a teacher's vector for every row/ })
})

test('LoRA with dropout; an anchor holds weights near what they were', async () => {
  const place = temporary()
  const run = async (name: string, more: Partial<TrainOptions>) => {
    const out = path.join(place, name)
    await trainSpecialist(basic(out, { steps: 6, ...more }))
    const base = readSafetensors(path.join(pico('qwen3'), 'model.safetensors'))
    let sum = 0
    for (const [name, tensor] of readSafetensors(path.join(out, 'model.safetensors'))) {
      const before = wide(base.get(name)!)
      for (const [i, x] of wide(tensor).entries()) sum += (x - before[i]!) ** 2
    }
    return { losses: losses(out), moved: Math.sqrt(sum) }
  }
  const plain = await run('plain', {})
  const dropped = await run('dropped', { trainable: { mode: 'lora', rank: 4, dropout: 0.3 } })
  assert.deepEqual((await run('again', { trainable: { mode: 'lora', rank: 4, dropout: 0.3 }, threads: 1 })).losses, dropped.losses)
  assert.notDeepEqual(dropped.losses, plain.losses)
  assert.equal(dropped.losses[0], plain.losses[0]) // B is zero at first
  for (const mode of ['lora', 'full'] as const) {
    const free = await run(`${mode} free`, { trainable: { mode, rank: 4 }, learningRate: 1e-2 })
    const held = await run(`${mode} held`, { trainable: { mode, rank: 4 }, learningRate: 1e-2, anchor: 100 })
    assert.ok(held.moved < 0.8 * free.moved, `${mode}: ${held.moved} of ${free.moved}`)
  }
  await assert.rejects(run('bad', { trainable: { mode: 'lora', dropout: 1 } }), { code: 'INVALID_OPTION', message: /trainable.dropout: expected/ })
  await assert.rejects(run('bad', { anchor: -1 }), { code: 'INVALID_OPTION', message: /anchor: expected/ })
})

test('killed in the middle, a run goes on as if nothing had been', async () => {
  const place = temporary()
  writeFileSync(path.join(place, 'rows.jsonl'), rows.map((row) => JSON.stringify(row)).join('\n'))
  const args = (out: string) => [
    ...[path.join(root, 'dist/cli.js'), 'train', pico('qwen3'), '--data', path.join(place, 'rows.jsonl'), '--out', out],
    ...['--steps', '300', '--batch-size', '8', '--temperature', '0.1', '--rank', '4', '--learning-rate', '0.003', '--save-every', '20', '--json'],
  ]
  const whole = path.join(place, 'whole')
  assert.equal(spawnSync(process.execPath, args(whole)).status, 0)
  const out = path.join(place, 'out')
  const status = path.join(`${out}.partial`, '.training', 'status.json')
  const child = spawn(process.execPath, args(out), { stdio: 'ignore' })
  while (!existsSync(status)) await new Promise((resolve) => setTimeout(resolve, 2))
  child.kill('SIGKILL')
  await new Promise((resolve) => child.on('close', resolve))
  assert.ok(!existsSync(out))
  const second = spawnSync(process.execPath, args(out), { encoding: 'utf8' })
  assert.equal(second.status, 0, second.stderr)
  assert.ok(JSON.parse(second.stdout).resumedAt >= 20)
  assert.deepEqual(losses(out), losses(whole))
  assert.deepEqual(readFileSync(path.join(out, 'model.safetensors')), readFileSync(path.join(whole, 'model.safetensors')))
})

test('stopped by a signal, a run is saved; other settings do not go on with it', async () => {
  const place = temporary()
  const out = path.join(place, 'out')
  const stop = new AbortController()
  const options = basic(out, { signal: stop.signal, onProgress: ({ step }) => step === 5 && stop.abort() })
  await assert.rejects(trainSpecialist(options), { code: 'ABORTED', message: /stopped at step 5 of 12/ })
  await assert.rejects(trainSpecialist(basic(out, { temperature: 0.2 })), { code: 'OUTPUT_EXISTS', message: /other settings or data/ })
  const work = path.join(`${out}.partial`, '.training')
  const status = readFileSync(path.join(work, 'status.json'))
  writeFileSync(path.join(work, 'status.json'), '{"step":')
  await assert.rejects(trainSpecialist(basic(out)), { code: 'FILE_CORRUPT', message: /status\.json: not valid JSON/ })
  writeFileSync(path.join(work, 'status.json'), status)
  appendFileSync(path.join(work, 'log.jsonl'), '{"step": 6, "lo') // the disk was full
  const report = await trainSpecialist(basic(out))
  assert.equal(report.resumedAt, 5)
  await trainSpecialist(basic(path.join(place, 'whole')))
  assert.deepEqual(losses(out), losses(path.join(place, 'whole')))
})

test('a run whose place is taken when it is done is not lost', async () => {
  const place = temporary()
  const out = path.join(place, 'out')
  const taken = path.join(out, 'of somebody else')
  const options = basic(out, { onProgress: ({ step }) => step === 12 && mkdirSync(taken, { recursive: true }) })
  await assert.rejects(trainSpecialist(options), { code: 'OUTPUT_EXISTS', message: /found files in it/ })
  assert.deepEqual(readdirSync(out), ['of somebody else'])
  rmSync(out, { recursive: true })
  assert.equal((await trainSpecialist(basic(out))).resumedAt, 12)
  await trainSpecialist(basic(path.join(place, 'whole')))
  assert.deepEqual(readFileSync(path.join(out, 'model.safetensors')), readFileSync(path.join(place, 'whole', 'model.safetensors')))
  assert.deepEqual(readdirSync(out).sort(), readdirSync(path.join(place, 'whole')).sort())
})

const sounds = ['pcm16.wav', 'sound.flac', 'sound.ogg', 'double.wav'].map((name, i) => ({
  query: { audio: audio(name), duration: 0.2 + i / 20 },
  positive: `sound ${i}`,
}))

test('recovery: the projector and nothing else, from features that are kept', async () => {
  const out = path.join(temporary(), 'out')
  const report = await recoverProjector({ model: audio('omni'), out, data: sounds, steps: 15, batchSize: 4, temperature: 0.1, learningRate: 3e-2 })
  assert.ok(report.lastLoss < report.firstLoss)
  assert.deepEqual([report.trainedTensors, report.stage], [4, 'recover'])
  const changed = changedTensors(audio('omni'), out)
  assert.deepEqual(
    changed.map((name) => name.split('.')[0]),
    ['audio_projector', 'audio_projector', 'audio_projector', 'audio_projector'],
  )
  await assert.rejects(recoverProjector({ model: audio('omni'), out: `${out}2`, data: sounds, trainable: { mode: 'full' } }), { code: 'INVALID_OPTION' })
  await assert.rejects(recoverProjector({ model: pico('qwen3'), out: `${out}2`, data: rows }), { code: 'INVALID_OPTION', message: /no audio_projector/ })
})

test('recovery: texts are computed once, and sounds in chunks or whole learn the same', async () => {
  const place = temporary()
  const run = async (name: string, more: Partial<TrainOptions>) => {
    const options = { model: audio('omni'), data: sounds, steps: 8, batchSize: 4, temperature: 0.1, learningRate: 3e-2, ...more }
    await recoverProjector({ ...options, out: path.join(place, name) })
    return losses(path.join(place, name)) as number[]
  }
  const whole = await run('whole', {})
  for (const [i, loss] of (await run('chunks', { chunkTokens: 16 })).entries()) assert.ok(Math.abs(loss - whole[i]!) < 1e-5, `${loss}, ${whole[i]}`)
  // A state that is loaded again knows no texts yet.
  const stop = new AbortController()
  await assert.rejects(run('stopped', { signal: stop.signal, onProgress: ({ step }) => step === 3 && stop.abort() }), { code: 'ABORTED' })
  assert.deepEqual(await run('stopped', {}), whole)
  // Sounds that are given as bytes are kept as well.
  let kept = 0
  const inside = path.join(place, 'bytes.partial', '.training', 'sounds')
  const data = sounds.map(({ query, positive }) => ({ query: { ...query, audio: readFileSync(query.audio) }, positive }))
  assert.deepEqual(await run('bytes', { data, onProgress: () => (kept = readdirSync(inside).length) }), whole)
  assert.equal(kept, sounds.length)
})

test('rehearsal: every modality equally often, not the encoder and its projector', async () => {
  const out = path.join(temporary(), 'out')
  const image = (name: string) => path.join(fixtures, 'vision', 'images', name)
  const pictures = ['rgb.png', 'alpha.png', 'grey.png', 'tall.jpg'].map((name, i) => ({ query: { image: image(name) }, positive: `picture ${i}` }))
  const data = [
    { rows: sounds, modality: 'audio' },
    { rows: pictures, modality: 'image', bidirectional: false },
    { rows: rows.slice(0, 8), modality: 'text' },
  ]
  const report = await rehearse({ model: audio('omni'), out, data, steps: 3, batchSize: 6, temperature: 0.1 })
  assert.equal(report.steps, 3)
  const changed = changedTensors(audio('omni'), out)
  assert.ok(changed.some((name) => /visual\.blocks/.test(name)) && changed.some((name) => /language_model/.test(name)))
  assert.ok(!changed.some((name) => /^audio_/.test(name)))
})

test('graded pairs, Matryoshka, negatives', async () => {
  const place = temporary()
  const graded = rows.map((row, i) => ({ anchor: row.query, positive: rows[(i * 3) % 40]!.positive, score: (i % 5) / 4 }))
  const report = await trainSpecialist(basic(path.join(place, 'graded'), { data: graded, steps: 30 }))
  assert.ok(report.lastLoss < report.firstLoss)
  const hard = rows.map((row, i) => ({ ...row, negative_1: rows[(i + 1) % 40]!.positive, negative_2: [rows[(i + 2) % 40]!.positive] }))
  const other = await trainSpecialist(basic(path.join(place, 'hard'), { data: hard, batchSize: 1, steps: 3, matryoshka: [8, 16], falseNegativeMargin: 0.1 }))
  assert.ok(other.log.every(({ loss }) => Number.isFinite(loss)))
})

test('what cannot be read ends the run, or is left out and counted', async () => {
  const place = temporary()
  const data = [...sounds, { query: { audio: audio('none.wav') }, positive: 'nothing' }, { query: { audio: audio('pcm8.wav') }, positive: 'x'.repeat(5000) }]
  const options = { model: audio('omni'), data, steps: 4, batchSize: 6, temperature: 0.1, trainable: { mode: 'projector' as const } }
  await assert.rejects(trainSpecialist({ ...options, out: path.join(place, 'a') }), { code: 'FILE_IO', message: /none\.wav: expected a file/ })
  const report = await trainSpecialist({ ...options, out: path.join(place, 'b'), onError: 'skip' })
  assert.equal(report.skipped, 4)
  assert.equal(report.truncated, 4) // a caption longer than the model
  assert.match(report.skippedReasons[0]!, /none\.wav/)
})

test('wrong settings and data are named, and leave nothing behind', async () => {
  const place = temporary()
  const out = path.join(place, 'out')
  const fails = (more: Partial<TrainOptions>, code: string, message: RegExp) =>
    assert.rejects(trainSpecialist(basic(out, more)), (error: ConanError) => {
      assert.ok(error instanceof ConanError, String(error))
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails({ batchSize: 1 }, 'INVALID_OPTION', /batch of one row without negatives/)
  await fails({ data: [{ query: 'a' }] }, 'INVALID_INPUT', /row 1: expected a positive/)
  await fails({ data: [{ positive: 'a' }] }, 'INVALID_INPUT', /row 1: expected an object with "query"/)
  await fails({ data: [{ query: 1, positive: 'a' }] }, 'INVALID_INPUT', /row 1: expected texts or objects/)
  await fails({ data: path.join(place, 'none.jsonl') }, 'FILE_IO', /none\.jsonl: expected a file/)
  await fails({ steps: 1, epochs: 1 }, 'INVALID_OPTION', /steps or epochs/)
  await fails({ temperature: 0 }, 'INVALID_OPTION', /temperature/)
  await fails({ matryoshka: [64] }, 'INVALID_OPTION', /expected 1 to 32 dimensions, got 64/)
  await fails({ matryoshka: 16 as never }, 'INVALID_OPTION', /matryoshka: expected a list of sizes, got 16/)
  await fails({ trainable: { mode: 'lora', include: ['nothing'] } }, 'INVALID_OPTION', /found none/)
  await fails({ trainable: { mode: 'lora', include: ['('] } }, 'INVALID_OPTION', /regular expressions/)
  await fails({ trainable: { mode: 'magic' as 'lora' } }, 'INVALID_OPTION', /trainable\.mode/)
  await fails({ loss: 'graded' }, 'INVALID_INPUT', /expected a score in every row/)
  await fails({ learningRate: Number.NaN }, 'INVALID_OPTION', /learningRate/)
  mkdirSync(out)
  writeFileSync(path.join(out, 'taken'), '')
  await fails({}, 'OUTPUT_EXISTS', /found files in it/)
  await assert.rejects(trainSpecialist(basic(path.join(place, 'wild'), { learningRate: 1e30, warmup: 0, schedule: 'constant', clip: 0 })), {
    code: 'LOSS_NOT_FINITE',
    message: /step \d+: (the loss|the gradient of "|tensor ")/,
  })
  const broken = copyOf(pico('qwen3'))
  editTensors(broken, (tensors) => tensors.delete([...tensors.keys()].find((name) => name.includes('down_proj'))!))
  await assert.rejects(trainSpecialist(basic(path.join(place, 'b'), { model: broken })), ConanError)
})

test('data: JSON lines, Parquet, lists', async () => {
  const place = temporary()
  writeFileSync(
    path.join(place, 'a.jsonl'),
    '{"anchor": {"image": "x.png"}, "positive": ["one", "two"]}\n\n{"query": "q", "positive": "p", "negatives": ["n"]}\n',
  )
  writeFileSync(
    path.join(place, 'list.yaml'),
    'datasets:\n  - {path: a.jsonl, weight: 2, modality: image}\n  - {path: a.jsonl, name: again, bidirectional: false}\n',
  )
  const [first, second] = await readData(path.join(place, 'list.yaml'))
  assert.deepEqual([first!.weight, first!.modality, second!.name, second!.bidirectional], [2, 'image', 'again', false])
  assert.deepEqual(first!.rows[0], { query: { image: path.join(place, 'x.png') }, positives: ['one', 'two'], negatives: [] })
  assert.deepEqual(first!.rows[1]!.negatives, ['n'])
  writeFileSync(path.join(place, 'bad.yaml'), 'datasets:\n  - {file: a.jsonl}\n')
  await assert.rejects(readData(path.join(place, 'bad.yaml')), { code: 'INVALID_OPTION', message: /got "file"/ })
  const fails = async (yaml: string, code: string, message: RegExp) => {
    writeFileSync(path.join(place, 'bad.yaml'), yaml)
    await assert.rejects(readData(path.join(place, 'bad.yaml')), { code, message })
  }
  await fails('datasets: [', 'FILE_CORRUPT', /bad\.yaml: not valid YAML/)
  await fails('datasets: *none', 'FILE_CORRUPT', /bad\.yaml: not valid YAML/)
  await fails('', 'INVALID_INPUT', /expected a list "datasets"/)
  await fails('datasets: [null]', 'INVALID_OPTION', /expected an object with "path" or "rows", got null/)
  await fails('datasets: [a.jsonl]', 'INVALID_OPTION', /expected an object with "path" or "rows", got "a.jsonl"/)
  await fails('datasets: [{path: 5}]', 'INVALID_OPTION', /path: expected string, got 5/)
  writeFileSync(path.join(place, 'bad.parquet'), 'this is no parquet')
  await assert.rejects(readData(path.join(place, 'bad.parquet')), { code: 'FILE_CORRUPT', message: /not a Parquet file/ })
  const parquet = await readData(path.join(fixtures, 'pairs.parquet'))
  assert.deepEqual(parquet[0]!.rows, [
    { query: 'first', positives: ['one'], negatives: [], score: 0.5 },
    { query: 'second', positives: ['two'], negatives: [], score: 1 },
  ])
})

test('JSON lines of any size, wherever a piece of the file ends', () => {
  const file = path.join(temporary(), 'rows.jsonl')
  const values = Array.from({ length: 3000 }, (_, i) => ({ query: 'é€😀'.repeat(1 + ((i * 7919) % 400)), positive: `${i}` }))
  writeFileSync(file, `\ufeff${values.map((value) => JSON.stringify(value)).join('\r\n')}`)
  assert.deepEqual(
    Array.from(jsonLines(file), ({ value }) => value),
    values,
  )
  writeFileSync(file, '{}\n\n{"a"\n')
  assert.throws(() => [...jsonLines(file)], { code: 'INVALID_INPUT', message: /rows\.jsonl: line 3: expected JSON, got "{\\"a\\""/ })
  assert.throws(() => [...jsonLines(path.dirname(file))], { code: 'FILE_IO', message: /cannot be read/ })
})

test('samplers: no document twice in a batch, shares as asked for, the same again from the same seed', () => {
  const of = (name: string, count: number, more: Partial<Dataset> = {}): Dataset => ({
    name,
    modality: name,
    weight: 1,
    files: [],
    rows: Array.from({ length: count }, (_, i) => ({ query: `${name} ${i}`, positives: [`${name} ${i % 7}`], negatives: [] })),
    ...more,
  })
  const datasets = [of('a', 70), of('b', 14, { weight: 3 }), of('c', 14, { modality: 'b' })]
  const draw = (options: object, count = 60) => {
    const sampler = new Sampler(datasets, { batchSize: 7, sampling: 'shuffled', oneDatasetPerBatch: false, seed: 5, ...options })
    return Array.from({ length: count }, () => sampler.next())
  }
  for (const sampling of ['shuffled', 'proportional', 'weighted', 'equal'] as const)
    for (const oneDatasetPerBatch of [false, true])
      for (const { rows } of draw({ sampling, oneDatasetPerBatch })) {
        const keys = rows.flatMap(({ positives }) => positives.map(documentKey))
        assert.equal(new Set(keys).size, keys.length)
        if (oneDatasetPerBatch) assert.equal(new Set(rows.map(({ query }) => String(query)[0])).size, 1)
      }
  const share = (sampling: 'weighted' | 'equal' | 'proportional', name: string) => {
    const all = draw({ sampling, batchSize: 3 }, 600).flatMap(({ rows }) => rows)
    return all.filter(({ query }) => String(query).startsWith(name)).length / all.length
  }
  assert.ok(Math.abs(share('weighted', 'b') - 0.6) < 0.05)
  assert.ok(Math.abs(share('equal', 'a') - 0.5) < 0.05)
  assert.ok(Math.abs(share('proportional', 'a') - 70 / 98) < 0.05)
  assert.deepEqual(draw({}), draw({}))
  const epoch = new Sampler([of('a', 21)], { batchSize: 7, sampling: 'shuffled', oneDatasetPerBatch: false, seed: 1 })
  const seen = new Set([1, 2, 3].flatMap(() => epoch.next().rows.map(({ query }) => query)))
  assert.ok(seen.size >= 14)
})

test('schedules', () => {
  const at = (step: number, schedule: string) => learningRateAt(step, 100, { peak: 1, warmup: 0.1, schedule })
  assert.deepEqual([at(1, 'cosine'), at(10, 'cosine'), at(100, 'linear'), at(50, 'constant')], [0.1, 1, 0, 1])
  assert.ok(Math.abs(at(55, 'cosine') - 0.5) < 1e-12 && Math.abs(at(55, 'linear') - 0.5) < 1e-12)
})

test("hard negatives: similar, and nobody's positives", async () => {
  const place = temporary()
  const out = path.join(place, 'mined.jsonl')
  const report = await mineNegatives(pico('bert'), rows, { out, count: 3 })
  assert.equal(report.rows, 40)
  const mined = readFileSync(out, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  const documents = new Set(rows.map(({ positive }) => positive))
  for (const [i, row] of mined.entries()) {
    assert.deepEqual([row.query, row.positive], [rows[i]!.query, [rows[i]!.positive]])
    assert.ok(row.negatives.length <= 3 && row.negatives.every((document: string) => documents.has(document) && document !== rows[i]!.positive))
  }
  // Rows of one query share their positives.
  const shared = [
    { query: 'q', positive: 'one' },
    { query: 'q', positive: 'two' },
    { query: 'r', positive: 'three' },
  ]
  await mineNegatives(pico('bert'), shared, { out: path.join(place, 'shared.jsonl'), relativeMargin: 100 })
  const first = JSON.parse(readFileSync(path.join(place, 'shared.jsonl'), 'utf8').split('\n')[0]!)
  assert.deepEqual(first.negatives, ['three'])
  const run = spawnSync(
    process.execPath,
    [
      path.join(root, 'dist/cli.js'),
      'mine',
      pico('bert'),
      out,
      '--out',
      path.join(place, 'more.jsonl'),
      '--relative-margin',
      '2',
      '--count',
      '2',
      '--from',
      '2',
    ],
    { encoding: 'utf8' },
  )
  assert.match(run.stdout, /40 rows, 80 negatives among 40 documents/, run.stderr)
  await assert.rejects(mineNegatives(pico('bert'), rows, { out, from: 5, to: 4 }), { code: 'INVALID_OPTION' })
  // Not after all has been embedded: the model is not even looked for.
  await assert.rejects(mineNegatives('none', rows, { out: path.join(place, 'none', 'out.jsonl') }), {
    code: 'FILE_IO',
    message: /its directory does not exist/,
  })
  await assert.rejects(mineNegatives('none', rows, { out: place }), { code: 'OUTPUT_EXISTS', message: /found a directory/ })
})

test('a model that was not loaded for training cannot be trained', async () => {
  const native = binding()
  const model = await native.load({ directory: pico('qwen3'), adapters: [], dtype: 'float32', threads: 1, pooling: 'mean', dense: [] })
  assert.throws(() => native.gradients(model), { code: 'INVALID_INPUT' })
  native.dispose(model)
  const training = JSON.stringify({ dense: ['no.such.weight'], lowRank: [], seed: 0, optimizer: {} })
  await assert.rejects(native.load({ directory: pico('qwen3'), adapters: [], dtype: 'float32', threads: 1, pooling: 'mean', dense: [], training }), {
    code: 'INVALID_OPTION',
    message: /no\.such\.weight/,
  })
})

// Whole models on the CUDA backend against the CPU.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { devices, type EmbedInput, fuse, loadModel, recoverProjector, trainSpecialist } from '../../lib'
import { binding } from '../../lib/binding'
import { openParent } from '../../lib/fuse/parents'
import { chooseTrainable } from '../../lib/train/trainable'
import { contrastiveStep, cuda, fixtures, readSafetensors, root, type Tensor, temporary, worstCosine, writeSafetensors } from '../support'

const { device, skip, emulated } = cuda()

const texts = ['Sourdough needs patience.', 'a', 'The ferry stops in winter, and the harbour freezes over for weeks.']
const noise = Float32Array.from({ length: 30_000 }, (_, i) => Math.sin(i / 7) * Math.sin(i / 1000))
const picture = { data: Uint8Array.from({ length: 64 * 96 * 3 }, (_, i) => (i * 37) % 256), width: 96, height: 64, channels: 3 as const }
const models: [string, EmbedInput[]][] = [
  ['pico/bert', texts],
  ['pico/mpnet', texts],
  ['pico/modernbert', texts],
  ['pico/gte', texts],
  ['pico/qwen3', texts],
  ['pico/embeddinggemma', texts],
  ['vision/qwen3_vl', [...texts, { image: picture }]],
  ['audio/omni', [...texts, { audio: { samples: noise, samplingRate: 16000 } }]],
]

for (const [name, inputs] of models)
  for (const dtype of ['float32', 'bfloat16', 'int8'] as const)
    test(`${name} in ${dtype} on cuda`, { skip }, async () => {
      const directory = path.join(fixtures, name)
      await using cpu = await loadModel(directory, { dtype, device: 'cpu' })
      await using gpu = await loadModel(directory, { dtype, device })
      assert.match(gpu.info.backend, /^cuda:0/)
      const [want, got] = [await cpu.embed(inputs), await gpu.embed(inputs)]
      const worst = worstCosine(got.vectors as Float32Array, want.vectors as Float32Array, want.dimensions)
      assert.ok(worst > (dtype === 'float32' ? 0.99999 : dtype === 'bfloat16' ? 0.999 : 0.99), `cosine ${worst}`)
      // By itself, as often as it takes until the pass is recorded, and then another text of that length.
      const own = got.vectors.slice(2 * got.dimensions, 3 * got.dimensions)
      for (let i = 0; i < 4; i++) assert.deepEqual((await gpu.embed(inputs[2] as EmbedInput)).vectors, own, `time ${i}`)
      const other = 'The ferry stops in spring, and the harbour freezes over for weeks.'
      assert.deepEqual((await gpu.embed(other)).vectors, (await gpu.embed([other, 'a'])).vectors.slice(0, got.dimensions))
      await gpu.embed('word '.repeat(60)) // tables of rotations grow
      assert.deepEqual((await gpu.embed(inputs[2] as EmbedInput)).vectors, own)
    })

test('while a pass runs on cuda the next one is asked for: the same vectors, and a call that is aborted takes no other with it', { skip }, async () => {
  await using model = await loadModel(path.join(fixtures, 'pico/qwen3'), { device })
  const many = Array.from({ length: 60 }, (_, i) => texts[i % 3]!.repeat(1 + (i % 5)))
  const want = (await model.embed(many)).vectors
  const options = { maxBatchTokens: 40 }
  for (const { vectors } of await Promise.all([model.embed(many, options), model.embed(many, options)])) assert.deepEqual(vectors, want)
  const stop = new AbortController()
  const aborted = model.embed(many, { ...options, signal: stop.signal, onProgress: ({ done }) => done > 10 && stop.abort(new Error('enough')) })
  const [ended, whole] = await Promise.allSettled([aborted, model.embed(many, options)])
  assert.equal(ended.status === 'rejected' && ended.reason.code, 'ABORTED')
  assert.deepEqual(whole.status === 'fulfilled' && whole.value.vectors, want)
  const only = new AbortController()
  const work = model.embed(many, { signal: only.signal })
  setTimeout(() => only.abort(), 5)
  await assert.rejects(work, { code: 'ABORTED', name: 'AbortError' })
})

test('passes that grow take their memory elsewhere, and what was recorded before is recorded again', { skip }, async () => {
  await using model = await loadModel(path.join(fixtures, 'pico/qwen3'), { device })
  const few = async () => (await model.embed(texts[0]!)).vectors
  const own = await few()
  for (let i = 0; i < 3; i++) assert.deepEqual(await few(), own)
  for (let i = 1; i < 8; i++) {
    const many = Array.from({ length: 2 * i }, (_, j) => 'word '.repeat(5 * i + j))
    const { vectors, dimensions } = await model.embed(many)
    assert.deepEqual(vectors.slice(0, dimensions), (await model.embed(many[0]!)).vectors)
    for (let k = 0; k < 4; k++) assert.deepEqual(await few(), own)
  }
})

test('a model that does not fit is an error with the numbers, and leaves nothing behind', {
  skip: skip || (emulated ? false : 'only an emulated GPU has as little memory as one likes'),
}, async () => {
  const load = () => loadModel(path.join(fixtures, 'pico/qwen3'), { device })
  process.env.CONAN_EMULATED_MEMORY = String(4 << 20)
  try {
    await (await load()).dispose()
    process.env.CONAN_EMULATED_MEMORY = String(1 << 16)
    await assert.rejects(load(), { code: 'OUT_OF_MEMORY', message: /expected \d+ MiB .* found 0 of 0 MiB free/ })
    process.env.CONAN_EMULATED_MEMORY = String(1 << 20)
    await using model = await load()
    assert.equal((await model.embed('a')).errors.length, 0)
    await assert.rejects(model.embed(Array(200).fill('word '.repeat(40))), { code: 'OUT_OF_MEMORY' })
    assert.equal((await model.embed('a')).errors.length, 0)
  } finally {
    delete process.env.CONAN_EMULATED_MEMORY
  }
})

test('a projector is recovered and a specialist trained on cuda as on the CPU', { skip }, async () => {
  const place = temporary()
  // More rows than a batch has, so that one has texts that were computed before, and others.
  const rows = Array.from({ length: 6 }, (_, i) => ({
    query: { audio: { samples: noise.subarray(1500 * i, 1500 * i + 12_000), samplingRate: 16000 } },
    positive: `${texts[i % 3]} ${i}`,
  }))
  for (const [name, stage, more] of [
    ['recovered', recoverProjector, { learningRate: 1e-2 }],
    ['trained', trainSpecialist, { trainable: { mode: 'lora', rank: 2 } }],
  ] as const) {
    const losses: number[][] = []
    for (const where of ['cpu', device]) {
      const out = path.join(place, `${name}-${where}`)
      const report = await stage({
        model: path.join(fixtures, 'audio/omni'),
        out,
        data: rows,
        steps: 3,
        batchSize: 4,
        dtype: 'float32',
        device: where,
        ...more,
      })
      losses.push(report.log.map(({ loss }) => loss))
    }
    for (const [i, loss] of losses[0]!.entries()) assert.ok(Math.abs(loss - losses[1]![i]!) < 1e-4 * Math.abs(loss), `${name}: ${losses}`)
  }
})

test('several GPUs share the batches of a call', { skip }, async () => {
  const directory = path.join(fixtures, 'pico/qwen3')
  const both = devices().filter((report) => 'gpu' in report).length > 1 ? 'cuda:0,cuda:1' : 'cuda:0,cuda:0'
  await using one = await loadModel(directory, { device })
  await using two = await loadModel(directory, { device: both })
  assert.deepEqual((await two.embed(texts, { batchSize: 1 })).vectors, (await one.embed(texts)).vectors)
})

const quick = skip || (emulated ? false : 'a real GPU is done too soon')

test("passes on GPUs leave Node's own four threads to others", { skip: quick }, async () => {
  await using model = await loadModel(path.join(fixtures, 'pico/qwen3'), { device: Array(4).fill('cuda:0').join() })
  const order: string[] = []
  const passes = Array.from({ length: 8 }, () => model.embed(Array(8).fill('word '.repeat(60))).then(() => order.push('a pass')))
  await delay(20) // tokenised by then
  await stat(fixtures)
  order.push('a file')
  await Promise.all(passes)
  assert.equal(order[0], 'a file')
})

test('a program that ends, or a worker of one, does so when the passes on a GPU are done', { skip: quick }, () => {
  const script = path.join(temporary(), 'program.cjs')
  const work = `
    const { isMainThread, parentPort, Worker } = require('node:worker_threads')
    const { loadModel } = require(${JSON.stringify(root)})
    const passes = async () => {
      const model = await loadModel(${JSON.stringify(path.join(fixtures, 'pico/qwen3'))}, { device: 'cuda:0' })
      await model.embed('a')
      for (let i = 0; i < 3; i++) model.embed(Array(8).fill('word '.repeat(60))).then(() => console.log('a pass'))
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    if (!isMainThread) passes().then(() => parentPort.postMessage('busy'))
    else if (process.argv[2] === 'exit') passes().then(() => process.exit(3))
    else if (process.argv[2] === 'throw') passes().then(() => { throw new Error('enough') })
    else if (process.argv[2] === 'end') passes()
    else {
      const worker = new Worker(__filename)
      worker.once('message', () => worker.terminate().then(() => passes()))
    }`
  writeFileSync(script, work)
  const results = ['exit', 'throw', 'end', 'terminate'].map((way) => {
    const { status, signal, stdout } = spawnSync(process.execPath, [script, way], { encoding: 'utf8' })
    return [way, status ?? signal, stdout.split('a pass').length - 1]
  })
  assert.deepEqual(results, [
    ['exit', 3, 0],
    ['throw', 1, 0],
    ['end', 0, 3],
    ['terminate', 0, 3],
  ])
})

test('a GPU that is not there is an error that says so', { skip }, async () => {
  await assert.rejects(loadModel(path.join(fixtures, 'pico/bert'), { device: 'cuda:99' }), { code: 'DEVICE_UNAVAILABLE', message: /cuda:99/ })
})

/** A model of a pico one's kind whose widths are multiples of 64, as those of real models are: what passes between operations is bf16 then. */
function wide(name: string): string {
  const [from, to] = [path.join(fixtures, 'pico', name), temporary()]
  const config = JSON.parse(readFileSync(path.join(from, 'config.json'), 'utf8'))
  Object.assign(config, { hidden_size: 64, intermediate_size: 128 }, config.head_dim && { head_dim: 32 })
  writeFileSync(path.join(to, 'config.json'), JSON.stringify(config))
  const wider: Record<number, number> = { 16: 32, 32: 64, 48: 128, 64: 128 }
  const together = (tensor: string) => (tensor.includes('qkv') ? 3 * 64 : 2 * 128) // what a pico model has 96 rows of
  const norm = name.startsWith('gemma') ? 0 : 1 // Gemma adds one itself
  let seed = 1
  const tensors = new Map<string, Tensor>()
  for (const [name, { shape }] of readSafetensors(path.join(from, 'model.safetensors'))) {
    const own = shape.map((n) => (n === 96 ? together(name) : (wider[n] ?? n)))
    const values = Float32Array.from({ length: own.reduce((a, b) => a * b) }, () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
      return (seed / 2 ** 32 - 0.5) * (own.length === 1 ? 0.5 : 0.4) + (own.length === 1 ? norm : 0)
    })
    tensors.set(name, { dtype: 'F32', shape: own, data: Buffer.from(values.buffer) })
  }
  writeSafetensors(path.join(to, 'model.safetensors'), tensors)
  return to
}

for (const [name, pooling] of [
  ['qwen3', 'lasttoken'],
  ['gemma3', 'mean'],
  ['bert', 'mean'],
  ['gte', 'mean'],
  ['wide qwen3', 'lasttoken'],
  ['wide gemma3', 'mean'],
  ['wide bert', 'mean'],
  ['wide gte', 'mean'],
] as const)
  for (const mode of ['lora', 'full'] as const)
    test(`${name}, ${mode} in bfloat16 on cuda learns as on the CPU, whatever is remembered`, { skip }, async () => {
      const native = binding()
      const directory = name.startsWith('wide ') ? wide(name.slice(5)) : path.join(fixtures, 'pico', name)
      const curve = async (on: string, activationBytes: number) => {
        const { dense, lowRank } = chooseTrainable(openParent(directory, '.'), { mode, rank: 4, alpha: 8 })
        const training = JSON.stringify({ dense, lowRank, seed: 0, optimizer: { activationBytes } })
        const model = await native.load({ device: on, directory, adapters: [], dtype: 'bfloat16', threads: 2, pooling, dense: [], training })
        const chunk = { ids: Int32Array.from({ length: 210 }, (_, i) => ((i * 37 + 11) % 90) + 5), offsets: Int32Array.of(0, 20, 95, 135, 210) }
        const numbers: number[] = []
        for (let i = 0; i < 3; i++) {
          const { loss, gradientNorm } = await native.trainStep(model, [chunk], contrastiveStep(3e-3))
          numbers.push(loss, gradientNorm)
        }
        native.dispose(model)
        return numbers
      }
      const want = await curve('cpu', 1 << 30)
      for (const bytes of [0, 6e5, 1 << 30]) // nothing, some layers, all
        for (const [i, got] of (await curve(device, bytes)).entries())
          assert.ok(Math.abs(got - want[i]!) < 0.02 * want[i]! + 0.01, `number ${i} with ${bytes} bytes: ${got}, on the CPU ${want[i]}`)
    })

test('device auto takes no emulated GPU', { skip: skip || (emulated ? false : 'there is a real one') }, async () => {
  await using model = await loadModel(path.join(fixtures, 'pico/qwen3'), { device: 'auto' })
  assert.deepEqual([model.info.device, model.info.fallback], ['cpu', undefined])
})

test('device auto takes the GPU there is', { skip: skip || (emulated ? 'only a real GPU is chosen' : false) }, async () => {
  await using model = await loadModel(path.join(fixtures, 'pico/qwen3'), { device: 'auto' })
  assert.deepEqual([model.info.device, model.info.fallback], ['cuda:0', undefined])
})

test('fuse on cuda writes the bytes that the CPU writes', { skip }, async () => {
  const place = temporary()
  const shapes: [string, number[]][] = [
    ['layers.0.proj.weight', [600, 1001]],
    ['layers.0.norm.weight', [12]],
    ['one.weight', [1]],
  ]
  for (const [m, name] of ['base', 'a', 'b', 'c'].entries()) {
    const directory = path.join(place, name)
    cpSync(path.join(fixtures, 'merge', 'base', 'config.json'), path.join(directory, 'config.json'))
    const tensors = shapes.map(([tensor, shape]): [string, Tensor] => {
      const count = shape.reduce((a, b) => a * b)
      // Some alike in all, so that magnitudes meet at a threshold; all of one sign or of both.
      const values = Float32Array.from({ length: count }, (_, i) => Math.fround(Math.sin(i * 0.37) + (m === 0 || i % 5 === 0 ? 0 : Math.sin(i * m + m) / 8)))
      const words = new Uint16Array(new Uint32Array(values.buffer).map((bits) => bits >>> 16))
      return [tensor, { dtype: 'BF16', shape, data: Buffer.from(words.buffer) }]
    })
    writeSafetensors(path.join(directory, 'model.safetensors'), new Map(tensors))
  }
  const weights = (parameters: object[]) => ['a', 'b', 'c'].map((model, i) => ({ model, parameters: parameters[i] }))
  const even = [{ weight: 0.3 }, { weight: -0.2 }, { weight: 0.6 }]
  const sparse = [
    { weight: 0.3, density: 0.5 },
    { weight: -0.2, density: 0.31 },
    { weight: 0.6, density: 0.83 },
  ]
  for (const recipe of [
    { merge_method: 'linear', models: weights(even) },
    { merge_method: 'task_arithmetic', base_model: 'base', models: weights(even) },
    { merge_method: 'ties', base_model: 'base', models: weights(sparse) },
    { merge_method: 'breadcrumbs', base_model: 'base', models: weights(sparse.map((parameters) => ({ ...parameters, gamma: 0.05 }))) },
    { merge_method: 'ties', base_model: 'base', models: weights(sparse).slice(0, 1) },
  ]) {
    const files: Buffer[] = []
    const reports = []
    for (const where of ['cpu', device]) {
      const out = path.join(place, `${recipe.merge_method}-${recipe.models.length}-${where}`)
      reports.push(await fuse(recipe, { directory: place, out, device: where }))
      files.push(readFileSync(path.join(out, 'model.safetensors')))
    }
    assert.ok(files[0]!.equals(files[1]!), recipe.merge_method)
    const [want, got] = reports.map(({ manifest }) =>
      manifest.tensors.flatMap(({ parents, signConflicts }) => [...parents.map(({ norm }) => norm ?? 0), signConflicts ?? 0]),
    )
    for (const [i, value] of want!.entries())
      assert.ok(Math.abs(got![i]! - value) <= 1e-5 * Math.abs(value), `${recipe.merge_method}: ${got![i]}, on the CPU ${value}`)
  }
  await assert.rejects(fuse({ merge_method: 'linear', models: weights(even) }, { directory: place, out: path.join(place, 'no'), device: 'gpu' }), {
    code: 'INVALID_OPTION',
  })
})

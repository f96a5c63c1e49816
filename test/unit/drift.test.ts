// drift, extractLora, searchCoefficients.
import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { drift, driftHtml, extractLora, fuse, loadModel, searchCoefficients } from '../../lib'
import { copyOf, editTensors, fixtures, floats, pico, readSafetensors, temporary, worstCosine } from '../support'

const merge = (name: string) => path.join(fixtures, 'merge', name)
const texts = ['a text', 'another, longer one', 'third']
const probe = texts.map((text, i) => ({ query: `${text}?`, positive: text, ...(i === 2 && { modality: 'text' }) }))

/** pico qwen3 as it is, and with a LoRA adapter merged in. */
async function tunedModel(): Promise<{ base: string; tuned: string }> {
  const base = pico('qwen3')
  const tuned = path.join(temporary(), 'tuned')
  await fuse(
    { merge_method: 'task_arithmetic', base_model: base, models: [{ model: path.join(fixtures, 'adapter'), parameters: { weight: 1 } }], dtype: 'float32' },
    { out: tuned },
  )
  return { base, tuned }
}

test('the geometry of task vectors', async () => {
  const report = await drift(merge('a'), merge('b'), { base: merge('base'), others: [merge('base')] })
  const [base, a, b] = ['base', 'a', 'b'].map((name) => readSafetensors(path.join(merge(name), 'model.safetensors')))
  const delta = (model: typeof a, name: string) => floats(model!.get(name)!).map((x, i) => x - floats(base!.get(name)!)[i]!)
  const sums = (names: string[]) => {
    const total = { aa: 0, bb: 0, ab: 0, opposed: 0, both: 0 }
    for (const name of names) {
      const [x, y] = [delta(a, name), delta(b, name)]
      for (const [i, p] of x.entries()) {
        const q = y[i]!
        total.aa += p * p
        total.bb += q * q
        total.ab += p * q
        total.opposed += Number(p * q < 0)
        total.both += Number(p !== 0 && q !== 0)
      }
    }
    return total
  }
  const near = (got: number | undefined, want: number) => assert.ok(Math.abs(got! - want) < 1e-5 * (1 + Math.abs(want)), `${got} for ${want}`)
  for (const [part, names] of [
    [report.total, [...base!.keys()]],
    [report.layers[1]!, ['layers.1.proj.weight', 'layers.1.norm.weight']],
    [report.modules.find(({ name }) => name === 'norms')!, ['layers.0.norm.weight', 'layers.1.norm.weight']],
  ] as const) {
    const want = sums([...names])
    near(part.norms[0], Math.sqrt(want.aa))
    near(part.norms[1], Math.sqrt(want.bb))
    near(part.cosines[0]![1], want.ab / Math.sqrt(want.aa * want.bb))
    near(part.signConflicts[1]![0], want.opposed / want.both)
    assert.equal(part.norms[2], 0)
    assert.equal(part.cosines[0]![2], undefined)
  }
  assert.deepEqual(
    report.layers.map(({ stack, layer }) => [stack, layer]),
    [
      ['layers', 0],
      ['layers', 1],
    ],
  )
})

test('hidden states and retrieval of two models', async () => {
  const { base, tuned } = await tunedModel()
  const same = await drift(base, base, { probe, dtype: 'float32' })
  for (const { mean, low } of same.probe![0]!.directions) assert.ok(mean > 0.999999 && low > 0.99999)
  const moved = await drift(base, tuned, { probe, dtype: 'float32' })
  const { directions, tokens, pairs } = moved.probe![0]!
  assert.equal(pairs, 3)
  assert.equal(directions.length, 4) // embeddings, two layers, final norm
  assert.ok(tokens > 20)
  assert.ok(directions[0]!.mean > 0.999999 && directions.at(-1)!.mean < 0.9999 && directions.at(-1)!.low <= directions.at(-1)!.mean)
  assert.deepEqual(
    moved.retrieval!.map(({ model, scores }) => [model, scores[0]!.pairs]),
    [
      [base, 3],
      [tuned, 3],
    ],
  )
  const html = driftHtml(moved)
  assert.match(html, /<svg .*<polyline/s)
  assert.doesNotMatch(html, /(src|href)=|<script/)
  await assert.rejects(drift(base, tuned, { probe: [{ query: 'alone' }] }), { code: 'INVALID_INPUT' })
  await assert.rejects(drift(base, pico('bert')), { code: 'TENSOR_MISSING' })
  const stop = new AbortController()
  stop.abort()
  await assert.rejects(drift(base, tuned, { signal: stop.signal }), { name: 'AbortError' })
})

test('an extracted adapter gives the tuned model back', async () => {
  const { base, tuned } = await tunedModel()
  const rank = JSON.parse(readFileSync(path.join(fixtures, 'adapter', 'adapter_config.json'), 'utf8')).r as number
  const vectors = async (directory: string, adapters: string[] = []) => {
    await using model = await loadModel(directory, { dtype: 'float32', adapters })
    return (await model.embed(texts)).vectors as Float32Array
  }
  const want = await vectors(tuned)
  for (const options of [{ rank }, { energy: 0.99999999 }, { rank: 1000 }]) {
    const out = path.join(temporary(), 'adapter')
    const report = await extractLora(tuned, base, { out, ...options })
    assert.ok(report.energy > 0.9999999, JSON.stringify(options))
    if ('energy' in options) for (const module of report.modules) assert.ok(module.rank <= rank, `${module.name}: ${module.rank}`)
    assert.ok(worstCosine(await vectors(base, [out]), want, want.length / texts.length) > 0.999999)
  }
  const small = await extractLora(tuned, base, { out: path.join(temporary(), 'small'), rank: 1 })
  assert.ok(small.energy < 0.999 && small.energy > 0.1)

  const normed = copyOf(tuned)
  editTensors(normed, (tensors) => tensors.get('model.norm.weight')!.data.writeUInt16LE(0x4000, 2))
  const { leftOut } = await extractLora(normed, base, { out: path.join(temporary(), 'left'), rank: 2 })
  assert.ok(leftOut.includes('model.norm.weight'))

  const out = path.join(temporary(), 'none')
  await assert.rejects(extractLora(base, base, { out }), { code: 'INVALID_INPUT' })
  await assert.rejects(extractLora(tuned, base, { out, rank: 2, energy: 0.5 }), { code: 'INVALID_OPTION' })
  await assert.rejects(extractLora(tuned, base, { out, energy: 2 }), { code: 'INVALID_OPTION' })
  await assert.rejects(extractLora(tuned, pico('bert'), { out }), { code: 'TENSOR_MISSING' })
  await assert.rejects(extractLora(tuned, base, { out: fixtures }), { code: 'OUTPUT_EXISTS' })
  assert.ok(!existsSync(out) && !existsSync(`${out}.partial`))
  const onProgress = () => void mkdirSync(path.join(out, 'of somebody else'), { recursive: true })
  await assert.rejects(extractLora(tuned, base, { out, onProgress }), { code: 'OUTPUT_EXISTS', message: /found files in it/ })
})

test('coefficient search finds the best weights', async () => {
  const recipe = { merge_method: 'task_arithmetic', base_model: 'base', models: ['a', 'b'].map((model) => ({ model, parameters: { weight: 0 } })) }
  const directory = path.join(fixtures, 'merge')
  // Text wants a at 0.5, images want b at 0.75; what was fused is read from the directory itself.
  const score = async (fused: string) => {
    const { tensors } = JSON.parse(readFileSync(path.join(fused, 'fusion-manifest.json'), 'utf8'))
    const weight = (name: string) => tensors[0].parents.find((parent: { model: string }) => parent.model === name).parameters.weight
    return { text: 1 - (weight('a') - 0.5) ** 2, image: 1 - (weight('b') - 0.75) ** 2 }
  }
  const grid = [0, 0.25, 0.5, 0.75, 1]
  const all = await searchCoefficients(recipe, { grid, score, directory })
  assert.equal(all.candidates.length, 25)
  assert.deepEqual(all.best.weights, { a: 0.5, b: 0.75 })
  const steps = await searchCoefficients(recipe, { grid, score, directory, strategy: 'coordinate', tradeOff: 'min' })
  assert.ok(steps.candidates.length < 15, String(steps.candidates.length))
  assert.deepEqual(steps.best.weights, { a: 0.5, b: 0.75 })
  const one = await searchCoefficients(recipe, { grid: { b: [0.75, 1] }, score, directory, tradeOff: { image: 1, text: 0 } })
  assert.deepEqual(one.best.weights, { b: 0.75 })
  assert.deepEqual((one.recipe as typeof recipe).models[0], recipe.models[0])

  const { base, tuned } = await tunedModel()
  const retrieved = await searchCoefficients(
    { merge_method: 'task_arithmetic', base_model: base, models: [{ model: tuned, parameters: { weight: 1 } }] },
    { grid: [0, 1], probe },
  )
  assert.equal(retrieved.candidates.length, 2)
  assert.ok(retrieved.candidates.every(({ scores }) => scores.text! >= 0 && scores.text! <= 1))
  await assert.rejects(searchCoefficients(recipe, { grid, directory }), { code: 'INVALID_OPTION' })
  await assert.rejects(searchCoefficients(recipe, { grid: { z: [1] }, score, directory }), { code: 'INVALID_OPTION' })
  await assert.rejects(searchCoefficients(recipe, { grid, score, directory, tradeOff: { sound: 1 } }), { code: 'INVALID_OPTION' })
})

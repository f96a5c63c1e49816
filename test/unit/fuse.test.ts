// fuse: every method against the formulas in numpy (test/fixtures/make_merge.py) and mergekit's own results, the identities
// that must hold, accounting, vocabularies, interrupted runs, and every way a recipe can be wrong.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { type FuseOptions, fuse, inspect, loadModel } from '../../lib'
import { evaluateSetting, readRecipeFile } from '../../lib/fuse/recipe'
import { copyOf, dataDirectory, editJson, fixtures, floats, needs, pico, readSafetensors, root, type Tensor, temporary, writeSafetensors } from '../support'

const merge = path.join(fixtures, 'merge')
const recipes: Record<string, Record<string, unknown>> = JSON.parse(readFileSync(path.join(merge, 'recipes.json'), 'utf8'))

let made = 0
const fresh = () => path.join(temporary(), `out${made++}`)

async function fused(recipe: object, options: Partial<FuseOptions> = {}) {
  const out = fresh()
  const report = await fuse(recipe, { directory: merge, out, ...options })
  return { ...report, tensors: readAll(out) }
}

function readAll(directory: string): Map<string, Tensor> {
  const all = new Map<string, Tensor>()
  for (const file of readdirSync(directory).filter((name) => name.endsWith('.safetensors')))
    for (const [name, tensor] of readSafetensors(path.join(directory, file))) all.set(name, tensor)
  return all
}

const bf16 = (value: number): number => {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0]!
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}
const widen = ({ data }: Tensor): Float32Array => {
  const half = new Uint16Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length))
  return new Float32Array(Uint32Array.from(half, (bits) => bits << 16).buffer)
}

/** |a - b| / |b| over the whole tensor. */
function relativeError(a: Float32Array, b: Float32Array): number {
  let difference = 0
  let size = 0
  for (const [i, value] of b.entries()) {
    difference += (value - (a[i] as number)) ** 2
    size += value ** 2
  }
  return a.length === b.length ? (size === 0 ? difference : Math.sqrt(difference / size)) : Number.POSITIVE_INFINITY
}

function same(a: Map<string, Tensor>, b: Map<string, Tensor>, what: string): void {
  assert.deepEqual([...a.keys()].sort(), [...b.keys()].sort(), what)
  for (const [name, tensor] of a) assert.ok(tensor.data.equals(b.get(name)!.data), `${what}: ${name} differs`)
}

const rejects = (recipe: object, code: string, message: RegExp, options: Partial<FuseOptions> = {}) =>
  assert.rejects(fused(recipe, options), (error: Error & { code?: string }) => {
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    return true
  })

/** A copy of the merge fixtures whose models a test may spoil. */
function spoiled(model: string, edit: (tensors: Map<string, Tensor>) => void): string {
  const directory = path.join(temporary(), 'merge')
  for (const name of ['base', 'a', 'b', 'c']) cpSync(path.join(merge, name), path.join(directory, name), { recursive: true })
  const file = path.join(directory, model, 'model.safetensors')
  const tensors = new Map([...readSafetensors(file)].map(([name, tensor]) => [name, { ...tensor, data: Buffer.from(tensor.data) }]))
  edit(tensors)
  writeSafetensors(file, tensors)
  return directory
}

const taskArithmetic = (weights: Record<string, number>, more: object = {}) => ({
  merge_method: 'task_arithmetic',
  base_model: 'base',
  models: Object.entries(weights).map(([model, weight]) => ({ model, parameters: { weight } })),
  ...more,
})

for (const [name, recipe] of Object.entries(recipes))
  test(`${name} is its formula`, async () => {
    const expected = readSafetensors(path.join(merge, 'expected', `${name}.safetensors`))
    const { tensors } = await fused(recipe)
    assert.deepEqual([...tensors.keys()].sort(), [...expected.keys()].sort())
    for (const [key, tensor] of expected) {
      assert.deepEqual(tensors.get(key)!.shape, tensor.shape)
      assert.ok(relativeError(floats(tensors.get(key)!), floats(tensor)) < 1e-6, `${key}: ${relativeError(floats(tensors.get(key)!), floats(tensor))}`)
    }
    // To bf16: the nearest one, or its neighbour where the value lies between two as far as float32 can tell.
    const narrow = await fused({ ...recipe, out_dtype: 'bfloat16' })
    for (const [key, tensor] of expected) {
      const got = widen(narrow.tensors.get(key)!)
      for (const [i, value] of floats(tensor).entries())
        assert.ok(
          bf16(got[i]!) === bf16(value) || bf16(got[i]!) === bf16(value * (1 + 3e-6)) || bf16(got[i]!) === bf16(value * (1 - 3e-6)),
          `${key}[${i}]: ${got[i]} for ${value}`,
        )
    }
  })

test("mergekit's recipes give mergekit's numbers", needs('merge/recipes'), async () => {
  const directory = path.join(dataDirectory, 'merge')
  const base = readAll(path.join(directory, 'models', 'base'))
  for (const file of readdirSync(path.join(directory, 'recipes'))) {
    const name = path.basename(file, '.yml')
    const out = fresh()
    await fuse(path.join(directory, 'recipes', file), { out })
    const got = readAll(out)
    const expected = readSafetensors(path.join(directory, 'expected', `${name}.safetensors`))
    assert.deepEqual([...got.keys()].sort(), [...expected.keys()].sort(), name)
    for (const [key, tensor] of expected) {
      const [ours, theirs] = [floats(got.get(key)!), floats(tensor)]
      if (!/dare|della/.test(name)) {
        assert.ok(relativeError(ours, theirs) < 1e-5, `${name}: ${key}: ${relativeError(ours, theirs)}`)
        continue
      }
      if (theirs.length < 500) continue // another random stream: size and direction of the change
      const start = floats(base.get(key)!)
      let [oo, tt, ot] = [0, 0, 0]
      for (const [i, b] of start.entries()) {
        const [o, t] = [ours[i]! - b, theirs[i]! - b]
        oo += o * o
        tt += t * t
        ot += o * t
      }
      assert.ok(Math.abs(Math.log(oo / tt)) < 2 * Math.log(1.25) && ot / Math.sqrt(oo * tt) > 0.25, `${name}: ${key}`)
    }
  }
})

test('no change is the base, byte for byte', async () => {
  const base = readAll(path.join(merge, 'base'))
  const copies = spoiled('a', (tensors) => {
    for (const [name, tensor] of base) tensors.set(name, tensor)
  })
  for (const method of ['task_arithmetic', 'ties', 'dare_ties', 'della_linear', 'breadcrumbs', 'sce', 'ram', 'arcee_fusion', 'iso_c', 'tsv_m', 'model_stock']) {
    const needsTwo = method === 'model_stock'
    const weight = ['sce', 'ram', 'arcee_fusion', 'iso_c', 'tsv_m', 'model_stock'].includes(method) ? {} : { parameters: { weight: 0.7 } }
    if (needsTwo) cpSync(path.join(copies, 'a'), path.join(copies, 'b'), { recursive: true })
    const models = [{ model: 'a', ...weight }, ...(needsTwo ? [{ model: 'b' }] : [])]
    const density = ['dare_ties', 'della_linear', 'ties', 'breadcrumbs'].includes(method) ? { parameters: { density: 0.5 } } : {}
    same((await fused({ merge_method: method, base_model: 'base', models, ...density }, { directory: copies })).tensors, base, method)
  }
})

test('one specialist at full strength is that specialist', async () => {
  const a = readAll(path.join(merge, 'a'))
  same((await fused(taskArithmetic({ a: 1 }))).tensors, a, 'task arithmetic')
  same((await fused(taskArithmetic({ a: 1, b: 0 }))).tensors, a, 'beside one of weight 0')
  same((await fused({ ...taskArithmetic({ a: 1 }), merge_method: 'ties' })).tensors, a, 'ties')
  same((await fused({ merge_method: 'linear', models: [{ model: 'a', parameters: { weight: 3 } }] })).tensors, a, 'linear')
  const narrow = (await fused(taskArithmetic({ a: 1 }, { dtype: 'bfloat16' }))).tensors
  for (const [name, tensor] of a) assert.deepEqual([...widen(narrow.get(name)!)].map(bf16), [...floats(tensor)].map(bf16), name)
})

test('the order of the parents changes nothing, nor does the number of threads or of files', async () => {
  for (const method of ['task_arithmetic', 'ties', 'dare_linear', 'della']) {
    const models = ['a', 'b', 'c'].map((model, i) => ({ model, parameters: { weight: 0.2 + 0.3 * i, density: 0.4 } }))
    const recipe = { merge_method: method, base_model: 'base', models, conan: { seed: 3 } }
    const { tensors } = await fused(recipe, { threads: 1 })
    same((await fused({ ...recipe, models: [...models].reverse() }, { threads: 2 })).tensors, tensors, `${method}: order`)
    const sharded = await fused(recipe, { threads: 3, outShardSize: 3000 })
    same(sharded.tensors, tensors, `${method}: shards`)
    assert.ok(existsSync(path.join(sharded.directory, 'model.safetensors.index.json')))
    if (method.startsWith('d')) {
      const other = (await fused({ ...recipe, conan: { seed: 4 } })).tensors
      assert.ok(!other.get('layers.0.proj.weight')!.data.equals(tensors.get('layers.0.proj.weight')!.data), 'another seed')
    }
  }
})

test('every instruction set computes the same bits, from bf16 and from f32', async () => {
  const directory = path.join(temporary(), 'narrow')
  for (const model of ['base', 'a', 'b', 'c']) {
    const recipe = { merge_method: 'passthrough', models: [{ model }], out_dtype: 'bfloat16' }
    await fuse(recipe, { directory: merge, out: path.join(directory, model) })
    cpSync(path.join(merge, model), path.join(directory, 'wide', model), { recursive: true })
  }
  for (const method of ['task_arithmetic', 'ties', 'dare_ties', 'breadcrumbs', 'slerp', 'iso_c']) {
    const models = ['a', 'b', 'c'].map((model, i) => ({ model, parameters: { weight: 0.2 + 0.3 * i, density: 0.4 } }))
    const recipe =
      method === 'slerp'
        ? { merge_method: method, base_model: 'base', models: [{ model: 'a' }], parameters: { t: 0.4 } }
        : { merge_method: method, base_model: 'base', models: method === 'iso_c' ? models.map(({ model }) => ({ model })) : models }
    for (const parents of [directory, path.join(directory, 'wide')]) {
      const file = path.join(parents, `${method}.yml`)
      writeFileSync(file, JSON.stringify(recipe))
      const { tensors } = await fused(recipe, { directory: parents })
      for (const isa of ['portable', 'avx2']) {
        const out = fresh()
        const run = spawnSync(process.execPath, [path.join(root, 'dist', 'cli.js'), 'fuse', file, '--out', out], {
          env: { ...process.env, CONAN_CPU_ISA: isa },
        })
        assert.equal(run.status, 0, String(run.stderr))
        same(readAll(out), tensors, `${method} ${isa}`)
      }
    }
  }
})

test('random methods keep what they should', async () => {
  const [base, a] = ['base', 'a'].map((name) => floats(readAll(path.join(merge, name)).get('layers.0.proj.weight')!)) as [Float32Array, Float32Array]
  const change = (tensors: Map<string, Tensor>) => floats(tensors.get('layers.0.proj.weight')!).map((x, i) => x - base[i]!)
  for (const method of ['dare_linear', 'della_linear']) {
    const parameters = { weight: 1, density: 0.4, ...(method === 'della_linear' && { epsilon: 0.3 }) }
    const got = change((await fused({ merge_method: method, base_model: 'base', models: [{ model: 'a', parameters }] })).tensors)
    const delta = a.map((x, i) => x - base[i]!)
    const changed = [...delta.keys()].filter((i) => delta[i] !== 0)
    const kept = changed.filter((i) => got[i] !== 0)
    const l1 = (values: Float32Array) => values.reduce((sum, x) => sum + Math.abs(x), 0)
    assert.ok(Math.abs(l1(got) / l1(delta) - 1) < 1e-4, `${method}: the L1 norm is restored`)
    const mean = (places: number[]) => places.reduce((sum, i) => sum + Math.abs(delta[i]!), 0) / places.length
    if (method === 'dare_linear') assert.ok(Math.abs(kept.length / changed.length - 0.4) < 0.04, String(kept.length / changed.length))
    else assert.ok(mean(kept) > 1.15 * mean(changed), 'large changes are kept more often')
  }
})

test('ties keeps exactly k of many equal magnitudes, the first ones', async () => {
  const directory = spoiled('a', (tensors) => {
    for (const [name, tensor] of readAll(path.join(merge, 'base'))) {
      const values = new Float32Array(floats(tensor).length).fill(name.includes('proj') ? 1.5 : 0)
      tensors.set(name, { ...tensor, data: Buffer.from(values.buffer) })
    }
  })
  cpSync(path.join(directory, 'a'), path.join(directory, 'base'), { recursive: true })
  const zero = readSafetensors(path.join(directory, 'base', 'model.safetensors'))
  writeSafetensors(
    path.join(directory, 'base', 'model.safetensors'),
    new Map([...zero].map(([name, t]) => [name, { ...t, data: Buffer.alloc(t.data.length) }])),
  )
  const recipe = { merge_method: 'ties', base_model: 'base', models: [{ model: 'a', parameters: { weight: 1, density: 0.3 } }] }
  const { tensors } = await fused(recipe, { directory })
  const values = floats(tensors.get('layers.0.proj.weight')!)
  assert.equal(values.filter((x) => x !== 0).length, Math.floor(0.3 * values.length))
  assert.ok(values.subarray(0, Math.floor(0.3 * values.length)).every((x) => x === 1.5))
})

test('settings: gradients and filters', () => {
  assert.equal(evaluateSetting([0, 1], 'x', 0.25), 0.25)
  assert.equal(evaluateSetting([0, 10, 20], 'x', 1), 20)
  const conditions = [{ filter: 'mlp', value: [0, 1] }, { filter: 'attn', value: 7 }, { value: 9 }]
  assert.equal(evaluateSetting(conditions, 'layers.0.mlp.up', 0.5), 0.5)
  assert.equal(evaluateSetting(conditions, 'layers.0.attn.q', 0.5), 7)
  assert.equal(evaluateSetting(conditions, 'norm', 0.5), 9)
})

test('every tensor is accounted for: groups copy, keep and drop', async () => {
  const extended = spoiled('c', (tensors) => {
    tensors.set('audio_tower.conv.weight', { dtype: 'F32', shape: [2, 3], data: Buffer.from(Float32Array.of(1, 2, 3, 4, 5, 6).buffer) })
    tensors.set('audio_projector.weight', { dtype: 'BF16', shape: [2], data: Buffer.from([0, 1, 2, 3]) })
    tensors.set('position_ids', { dtype: 'I64', shape: [1], data: Buffer.alloc(8, 1) })
  })
  editJson(path.join(extended, 'c', 'config.json'), (config) => {
    config.audio_config = { model_type: 'whisper' }
  })
  const recipe = taskArithmetic({ a: 0.3, c: 0.5 })
  const options = { directory: extended }
  await rejects(recipe, 'TENSOR_UNACCOUNTED', /audio_tower\.conv\.weight.*in c but not in base, a/, options)
  const groups = [
    { match: 'audio_*', action: 'copy', from: 'c' },
    { match: ['position_ids'], action: 'drop' },
    { match: 'layers.1.*', action: 'keep' },
    { match: 'embed_tokens.weight', action: 'copy', from: 'c', rows: [2, 5] },
  ]
  const { tensors, manifest, directory } = await fused({ ...recipe, conan: { groups } }, options)
  const [base, c] = ['base', 'c'].map((name) => readAll(path.join(extended, name))) as [Map<string, Tensor>, Map<string, Tensor>]
  assert.ok(!tensors.has('position_ids'))
  for (const name of ['audio_tower.conv.weight', 'audio_projector.weight']) assert.ok(tensors.get(name)!.data.equals(c.get(name)!.data), name)
  assert.equal(tensors.get('audio_projector.weight')!.dtype, 'BF16')
  for (const name of ['layers.1.proj.weight', 'layers.1.norm.weight']) assert.ok(tensors.get(name)!.data.equals(base.get(name)!.data), name)
  const plain = (await fused({ ...recipe, conan: { groups: groups.slice(0, 2) } }, options)).tensors
  const [rows, merged, donor] = [tensors, plain, c].map((all) => floats(all.get('embed_tokens.weight')!)) as [Float32Array, Float32Array, Float32Array]
  for (let row = 0; row < 9; row++)
    assert.deepEqual(rows.subarray(row * 12, row * 12 + 12), ([2, 5].includes(row) ? donor : merged).subarray(row * 12, row * 12 + 12))
  // Config and tokenizer come from the one model whose tensors the base lacks.
  assert.equal(manifest.filesFrom, 'c')
  assert.ok(JSON.parse(readFileSync(path.join(directory, 'config.json'), 'utf8')).audio_config)
  const of = (model: string) => manifest.parents.find((parent) => parent.model === model)!
  assert.deepEqual(of('c').dropped, ['position_ids'])
  assert.deepEqual(of('c').tensors, { merged: 6, copied: 2, kept: 0, replaced: 2, dropped: 1 })
  assert.deepEqual(of('base').tensors, { merged: 6, copied: 0, kept: 2, replaced: 0, dropped: 0 })
  const tensor = manifest.tensors.find(({ name }) => name === 'layers.0.proj.weight')!
  assert.equal(tensor.action, 'merge')
  const norm = Math.hypot(...floats(c.get(tensor.name)!).map((x, i) => x - floats(base.get(tensor.name)!)[i]!))
  assert.ok(Math.abs(tensor.parents.find(({ model }) => model === 'c')!.norm! / norm - 1) < 1e-5)
  assert.ok(tensor.signConflicts! > 0.1 && tensor.signConflicts! < 0.5)
})

test('whole numbers are kept where all agree, else an error', async () => {
  const ids = (value: number) => ({ dtype: 'I64', shape: [2], data: Buffer.alloc(16, value) })
  for (const value of [1, 2]) {
    const directory = spoiled('a', (tensors) => tensors.set('position_ids', ids(value)))
    for (const model of ['base', 'b']) {
      const file = path.join(directory, model, 'model.safetensors')
      writeSafetensors(
        file,
        new Map([...readSafetensors(file)].map(([n, t]): [string, Tensor] => [n, { ...t, data: Buffer.from(t.data) }])).set('position_ids', ids(1)),
      )
    }
    const recipe = taskArithmetic({ a: 0.5, b: 0.5 })
    if (value === 1) assert.equal((await fused(recipe, { directory })).tensors.get('position_ids')!.dtype, 'I64')
    else await rejects(recipe, 'TENSOR_UNACCOUNTED', /position_ids.*same int64/, { directory })
  }
})

test('slices number the layers anew', async () => {
  const slice = (model: string, range: number[]) => ({ sources: [{ model, layer_range: range }] })
  const { tensors, directory } = await fused({ merge_method: 'passthrough', slices: [slice('a', [0, 2]), slice('b', [1, 2]), slice('a', [0, 1])] })
  const [a, b] = ['a', 'b'].map((name) => readAll(path.join(merge, name))) as [Map<string, Tensor>, Map<string, Tensor>]
  for (const [name, [from, layer]] of Object.entries({ 0: [a, 0], 1: [a, 1], 2: [b, 1], 3: [a, 0] } as Record<string, [Map<string, Tensor>, number]>))
    assert.ok(tensors.get(`layers.${name}.proj.weight`)!.data.equals(from.get(`layers.${layer}.proj.weight`)!.data), name)
  assert.equal(JSON.parse(readFileSync(path.join(directory, 'config.json'), 'utf8')).num_hidden_layers, 4)
  await rejects({ merge_method: 'passthrough', slices: [slice('a', [1, 3])] }, 'RECIPE_INVALID', /at most 2 layers/)
})

test('vocabularies that differ are matched by token', async () => {
  const directory = path.join(temporary(), 'models')
  const rows: Record<string, [string[], string[]]> = { base: [['x', 'y', 'z'], []], a: [['y', 'x', 'z'], ['<new>']] }
  const row = (model: string, token: string) => (model === 'base' ? 10 : 20) + 'xyz<'.indexOf(token[0]!)
  for (const [model, [tokens, added]] of Object.entries(rows)) {
    mkdirSync(path.join(directory, model), { recursive: true })
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]))
    const added_tokens = added.map((content, i) => ({ id: tokens.length + i, content, special: true }))
    writeFileSync(path.join(directory, model, 'tokenizer.json'), JSON.stringify({ model: { type: 'BPE', vocab, merges: [] }, added_tokens }))
    writeFileSync(
      path.join(directory, model, 'config.json'),
      JSON.stringify({ model_type: 'llama', vocab_size: tokens.length + added.length, num_hidden_layers: 1 }),
    )
    const values = [...tokens, ...added].flatMap((token) => [row(model, token), row(model, token)])
    writeSafetensors(
      path.join(directory, model, 'model.safetensors'),
      new Map([['model.embed_tokens.weight', { dtype: 'F32', shape: [tokens.length + added.length, 2], data: Buffer.from(Float32Array.from(values).buffer) }]]),
    )
  }
  const recipe = taskArithmetic({ a: 0.5 })
  await rejects(recipe, 'TOKENIZER_INVALID', /different vocabularies: token "y" is 1 in base and 0 in a/, { directory })
  const column = (tensors: Map<string, Tensor>) => [...floats(tensors.get('model.embed_tokens.weight')!)].filter((_, i) => i % 2 === 0)
  assert.deepEqual(column((await fused({ ...recipe, tokenizer_source: 'base' }, { directory })).tensors), [15, 16, 17])
  const union = await fused({ ...recipe, tokenizer_source: 'union' }, { directory })
  assert.deepEqual(column(union.tensors), [15, 16, 17, 23]) // a token that the base lacks starts from those that have it
  assert.deepEqual(JSON.parse(readFileSync(path.join(union.directory, 'tokenizer.json'), 'utf8')).added_tokens, [{ id: 3, content: '<new>', special: true }])
  assert.equal(JSON.parse(readFileSync(path.join(union.directory, 'config.json'), 'utf8')).vocab_size, 4)
  const padded = await fused({ ...recipe, tokenizer: { source: 'a', pad_to_multiple_of: 8 } }, { directory })
  assert.deepEqual(column(padded.tensors), [16, 15, 17, 23, 0, 0, 0, 0])
  await rejects({ ...recipe, tokenizer_source: 'nobody' }, 'RECIPE_INVALID', /tokenizer_source.*"nobody"/, { directory })
})

test('a LoRA specialist is merged into dense weights', async () => {
  const adapter = path.join(fixtures, 'adapter')
  const recipe = (model: string) => ({
    merge_method: 'task_arithmetic',
    base_model: pico('qwen3'),
    models: [{ model, parameters: { weight: 1 } }],
    dtype: 'float32',
  })
  const alone = await fused(recipe(adapter))
  same((await fused(recipe(`${pico('qwen3')}+${adapter}`))).tensors, alone.tensors, 'model+adapter')
  const kept = { groups: [{ match: '*q_proj*', action: 'keep' }] }
  assert.ok((await fused({ ...recipe(adapter), conan: kept })).tensors.size > 0) // a part of an adapter may go unused if a group says so
  await rejects({ ...recipe(`${pico('bert')}+${adapter}`), base_model: pico('bert') }, 'TENSOR_UNUSED', /adapter tensor .* fits no tensor of the model/)
  await using expected = await loadModel(pico('qwen3'), { adapters: [adapter], dtype: 'float32' })
  await using actual = await loadModel(alone.directory, { dtype: 'float32' })
  const texts = ['a text', 'another, longer one']
  const [a, b] = [await expected.embed(texts), await actual.embed(texts)]
  assert.ok(relativeError(a.vectors as Float32Array, b.vectors as Float32Array) < 1e-5)
  assert.deepEqual(inspect(alone.directory).problems, [])
})

test('the directory is complete and embeds; sentence-transformers modules come along', async () => {
  const model = path.join(fixtures, 'st', 'bert-mean-dense')
  const { directory, manifest } = await fused({ merge_method: 'linear', models: [{ model, parameters: { weight: 1 } }] }, { sha256: true })
  await using before = await loadModel(model)
  await using after = await loadModel(directory)
  assert.deepEqual((await after.embed(['same'])).vectors, (await before.embed(['same'])).vectors)
  assert.match(manifest.files[0]!.sha256!, /^[0-9a-f]{64}$/)
  assert.ok(existsSync(path.join(directory, 'fusion-manifest.json')))
  assert.ok(!existsSync(`${directory}.partial`))
})

/** A recipe over models large enough that a run can be caught in the middle. */
function largeModels(): { directory: string; recipe: object } {
  const directory = path.join(temporary(), 'large')
  for (const [seed, model] of ['base', 'a', 'b'].entries()) {
    mkdirSync(path.join(directory, model), { recursive: true })
    writeFileSync(path.join(directory, model, 'config.json'), JSON.stringify({ model_type: 'llama', num_hidden_layers: 24 }))
    const tensors = new Map<string, Tensor>()
    for (let layer = 0; layer < 24; layer++) {
      const values = new Float32Array(300 * 1000).map((_, i) => Math.sin(i * (seed + 1) + layer))
      tensors.set(`layers.${layer}.weight`, { dtype: 'F32', shape: [300, 1000], data: Buffer.from(values.buffer) })
    }
    writeSafetensors(path.join(directory, model, 'model.safetensors'), tensors)
  }
  const models = ['a', 'b'].map((model) => ({ model, parameters: { weight: 0.4, density: 0.5 } }))
  return { directory, recipe: { merge_method: 'della', base_model: 'base', models } }
}

test('a killed run leaves nothing that looks like a model, and goes on where it was', async () => {
  const { directory, recipe } = largeModels()
  const file = path.join(directory, 'recipe.yml')
  writeFileSync(file, JSON.stringify(recipe)) // JSON is YAML
  const out = fresh()
  const child = spawn(process.execPath, [path.join(root, 'dist', 'cli.js'), 'fuse', file, '--out', out, '--threads', '1'], { stdio: 'ignore' })
  const ended = new Promise((resolve) => child.once('exit', resolve))
  const journal = path.join(`${out}.partial`, 'fusion-journal.jsonl')
  while (!(existsSync(journal) && readFileSync(journal, 'utf8').split('\n').length > 5) && child.exitCode === null) await sleep(5)
  await assert.rejects(fuse(file, { out }), { code: 'OUTPUT_EXISTS' }) // while another run is at work
  child.kill('SIGKILL')
  await ended
  assert.ok(!existsSync(out), 'killed in the middle')
  assert.ok(!existsSync(path.join(`${out}.partial`, 'config.json')))
  assert.throws(() => inspect(`${out}.partial`), { code: 'MODEL_NOT_FOUND' })
  // What the journal claims is checked: a tensor that did not reach the file is made again.
  const weights = path.join(`${out}.partial`, 'model.safetensors')
  const bytes = readFileSync(weights)
  bytes.fill(0, bytes.readUInt32LE(0) + 8, bytes.readUInt32LE(0) + 5000)
  writeFileSync(weights, bytes)
  const resumed = await fuse(file, { out })
  assert.ok(resumed.resumedTensors >= 2 && resumed.resumedTensors < 24, String(resumed.resumedTensors))
  same(readAll(out), (await fused(recipe, { directory })).tensors, 'resumed')
  assert.deepEqual(readdirSync(out).sort(), ['config.json', 'fusion-manifest.json', 'model.safetensors'])
})

test('a run whose place is taken when it is done is named, and merges nothing twice', async () => {
  const { directory, recipe } = largeModels()
  const out = fresh()
  const taken = path.join(out, 'of somebody else')
  const taking = { out, directory, onProgress: () => void mkdirSync(taken, { recursive: true }) }
  await assert.rejects(fuse(recipe, taking), { code: 'OUTPUT_EXISTS', message: /found files in it/ })
  assert.deepEqual(readdirSync(out), ['of somebody else'])
  rmSync(out, { recursive: true })
  assert.equal((await fuse(recipe, { out, directory })).resumedTensors, 24)
  same(readAll(out), (await fused(recipe, { directory })).tensors, 'resumed')
  assert.deepEqual(readdirSync(out).sort(), ['config.json', 'fusion-manifest.json', 'model.safetensors'])
})

test('aborting ends a run; another recipe does not resume it', async () => {
  const { directory, recipe } = largeModels()
  const out = fresh()
  const stop = new AbortController()
  const running = fuse(recipe, { directory, out, threads: 1, signal: stop.signal, onProgress: () => stop.abort() })
  await assert.rejects(running, { code: 'ABORTED' })
  assert.ok(!existsSync(out) && existsSync(`${out}.partial`))
  const other = { ...recipe, conan: { seed: 9 } }
  assert.equal((await fuse(other, { directory, out })).resumedTensors, 0)
})

test('what onProgress throws ends the run and is thrown', async () => {
  const { directory, recipe } = largeModels()
  const problem = new Error('enough')
  const onProgress = () => {
    throw problem
  }
  await assert.rejects(fuse(recipe, { directory, out: fresh(), onProgress }), (error) => error === problem)
})

test('a disk that takes no more is an error that loses nothing', { skip: process.platform === 'win32' && 'no ulimit' }, () => {
  const { directory, recipe } = largeModels()
  const file = path.join(directory, 'recipe.yml')
  writeFileSync(file, JSON.stringify(recipe))
  const out = fresh()
  const cli = `'${process.execPath}' '${path.join(root, 'dist', 'cli.js')}' fuse '${file}' --out '${out}'`
  const limited = spawnSync('bash', ['-c', `trap '' XFSZ; ulimit -f 8000; ${cli}`], { encoding: 'utf8' }) // in KB; 28.8 MB are needed
  assert.equal(limited.status, 5, limited.stderr)
  assert.match(limited.stderr, /model\.safetensors: cannot be .*\[FILE_IO\]/)
  assert.ok(!existsSync(out))
  assert.equal(spawnSync('bash', ['-c', cli]).status, 0)
  assert.equal(readAll(out).size, 24)
})

test('bad input is named', async () => {
  const ok = taskArithmetic({ a: 0.5, b: 0.5 })
  await rejects({ ...ok, merge_method: 'average' }, 'RECIPE_INVALID', /merge_method: expected one of task_arithmetic, .*"average"/)
  await rejects({ ...ok, dtypes: 'float32' }, 'RECIPE_INVALID', /keys among .*dtype.*"dtypes"/)
  await rejects({ ...ok, parameters: { wieght: 1 } }, 'RECIPE_INVALID', /parameters: expected keys among weight.*"wieght"/)
  await rejects({ ...ok, base_model: undefined }, 'RECIPE_INVALID', /base_model: expected a model/)
  await rejects({ ...ok, base_model: 'nowhere' }, 'MODEL_NOT_FOUND', /model "nowhere": expected a local directory/)
  await rejects({ ...ok, models: [{ model: 'a' }] }, 'RECIPE_INVALID', /models: a: expected a parameter "weight"/)
  await rejects({ ...ok, models: [...ok.models, ok.models[0]] }, 'RECIPE_INVALID', /every model once/)
  await rejects({ ...ok, dtype: 'float8' }, 'RECIPE_INVALID', /dtype: expected one of float32/)
  await rejects({ ...ok, parameters: { density: 1.5 } }, 'RECIPE_INVALID', /density: expected a number from 0 to 1, got 1.5/)
  await rejects({ ...ok, conan: { groups: [{ match: 'x', action: 'copy' }] } }, 'RECIPE_INVALID', /from: expected the model to copy from/)
  await rejects(
    { ...ok, conan: { groups: [{ match: 'row.weight', action: 'copy', from: '../pico/bert' }] } },
    'TENSOR_UNACCOUNTED',
    /row\.weight.*does not have it/,
  )
  await rejects({ merge_method: 'slerp', base_model: 'a', models: [{ model: 'a' }, { model: 'b' }] }, 'RECIPE_INVALID', /parameters: expected "t"/)
  await rejects({ merge_method: 'nuslerp', models: [{ model: 'a', parameters: { weight: 1 } }] }, 'RECIPE_INVALID', /expected 2 models/)
  await rejects({ ...ok, merge_method: 'della', parameters: { density: 0.9, epsilon: 0.2 } }, 'RECIPE_INVALID', /a: tensor .*expected density - epsilon/)
  await rejects(ok, 'INVALID_OPTION', /outShardSize: expected bytes/, { outShardSize: 'large' })
  await rejects(ok, 'INVALID_OPTION', /threads/, { threads: -1 })
  const file = path.join(temporary(), 'broken.yml')
  writeFileSync(file, 'models: [')
  assert.throws(() => readRecipeFile(file), { code: 'RECIPE_INVALID' })
  assert.throws(() => readRecipeFile(`${file}.none`), { code: 'FILE_IO' })

  const shape = spoiled('a', (tensors) => tensors.set('row.weight', { dtype: 'F32', shape: [17, 1], data: Buffer.alloc(68) }))
  await rejects(ok, 'TENSOR_SHAPE', /a: tensor "row.weight": expected \[1, 17\] as in base, got \[17, 1\]/, { directory: shape })
  const dtype = spoiled('a', (tensors) => tensors.set('row.weight', { dtype: 'I32', shape: [1, 17], data: Buffer.alloc(68) }))
  await rejects(ok, 'UNSUPPORTED_DTYPE', /a: tensor "row.weight": expected float32.*got int32/, { directory: dtype })
  const nan = spoiled('b', (tensors) => tensors.get('layers.1.norm.weight')!.data.writeFloatLE(Number.NaN, 8))
  await rejects(ok, 'WEIGHT_NOT_FINITE', /b: tensor "layers.1.norm.weight": expected finite weights, got nan at element 2/, { directory: nan })
  await rejects({ ...ok, conan: { groups: [{ match: 'layers.1.*', action: 'copy', from: 'b' }] } }, 'WEIGHT_NOT_FINITE', /layers.1.norm/, { directory: nan })

  const taken = temporary()
  writeFileSync(path.join(taken, 'file'), '')
  await rejects(ok, 'OUTPUT_EXISTS', /expected no such directory or an empty one/, { out: taken })
  const dry = fresh()
  const { manifest } = await fuse(ok, { directory: merge, out: dry, dryRun: true })
  assert.equal(manifest.tensors.length, 8)
  assert.ok(!existsSync(dry) && !existsSync(`${dry}.partial`))
  assert.ok(copyOf(path.join(merge, 'a')))
})

// Qwen3-VL on a tiny random model against transformers: every block of the vision tower, its tokens and DeepStack features,
// every hidden state of the language model; and that a picture's vector depends on nothing beside it.
import assert from 'node:assert/strict'
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { binding, type NativeMedia, type NativePictures } from '../../lib/binding'
import { inspect } from '../../lib/inspect'
import { copyOf, editJson, editTensors, fixtures, floats, ints, numbersOf, readSafetensors, temporary, tolerance, worstCosine } from '../support'

const directory = path.join(fixtures, 'vision', 'qwen3_vl')
const golden = readSafetensors(path.join(directory, 'golden.safetensors'))
const [ids, offsets] = [ints(golden.get('ids')!), ints(golden.get('offsets')!)]
const patches = floats(golden.get('patches')!)
const pictures: NativePictures = { patches: [patches], grids: ints(golden.get('grids')!) }
const native = binding()
const load = (dtype: string, threads = 2, pooling = 'lasttoken', from = directory) =>
  native.load({ directory: from, adapters: [], dtype, threads, pooling, dense: [] })

/** Pictures [first, first + count) of the batch. */
function part(first: number, count: number): NativeMedia | undefined {
  if (count === 0) return undefined
  const sizes = Array.from({ length: pictures.grids.length / 2 }, (_, i) => pictures.grids[2 * i]! * pictures.grids[2 * i + 1]!)
  const width = patches.length / sizes.reduce((a, b) => a + b, 0)
  const begin = sizes.slice(0, first).reduce((a, b) => a + b, 0)
  const end = begin + sizes.slice(first, first + count).reduce((a, b) => a + b, 0)
  return { pictures: { patches: [patches.slice(begin * width, end * width)], grids: pictures.grids.slice(2 * first, 2 * (first + count)) } }
}

/** The sequences of the golden batch with the pictures each of them holds. */
const items = [
  [0, 0, 2],
  [1, 2, 0],
  [2, 2, 2],
  [3, 4, 1],
].map(([b, first, count]) => ({ ids: ids.slice(offsets[b!], offsets[b! + 1]), media: part(first!, count!) }))

test('colours in bytes are the numbers they stand for, to the bit', async () => {
  const model = await load('float32')
  const [mean, deviation] = [
    [0.4, 0.5, 0.6],
    [0.3, 0.25, 0.5],
  ]
  // Two pieces, of which the first has more patches than are turned into numbers at a time.
  const bytes = Uint8Array.from({ length: 96 * 100 * 100 }, (_, i) => (i * 2654435761) >>> 13)
  const pieces = [bytes.subarray(0, 96 * 90 * 100), bytes.subarray(96 * 90 * 100)].map((part) => ({ bytes: part, mean, deviation }))
  const grids = Int32Array.of(90, 100, 10, 100)
  const got = await native.visionStates(model, { pictures: { patches: pieces, grids } })
  const want = await native.visionStates(model, { pictures: { patches: [numbersOf(pieces, 32)], grids } })
  assert.deepEqual(got[0], want[0])
  assert.deepEqual(got.at(-1), want.at(-1))
  native.dispose(model)
})

for (const dtype of ['float32', 'bfloat16', 'int8'] as const)
  test(`states of the tower and of the language model, ${dtype}`, async () => {
    const model = await load(dtype)
    const tower = await native.visionStates(model, { pictures })
    assert.equal(tower.length, 4 + 2 + 3)
    for (const [i, state] of tower.entries()) {
      const cosine = worstCosine(state, floats(golden.get(`vision.${i}`)!), 32)
      assert.ok(cosine > tolerance[dtype].cosine, `tower ${i}: ${cosine}`)
    }
    const states = await native.hiddenStates(model, ids, offsets, { pictures })
    assert.equal(states.length, 5 + 2)
    for (const [i, state] of states.entries()) {
      const cosine = worstCosine(state, floats(golden.get(`hidden.${i}`)!), 32)
      assert.ok(cosine > tolerance[dtype].cosine, `hidden ${i}: ${cosine}`)
    }
    assert.deepEqual(native.modelInfo(model).unusedTensors, [])
    native.dispose(model)
  })

for (const dtype of ['float32', 'bfloat16', 'int8'])
  test(`a vector depends neither on what else is in the batch nor on threads, ${dtype}`, async () => {
    const model = await load(dtype)
    const single = await load(dtype, 1)
    const together = await native.embed(model, ids, offsets, true, 32, { pictures })
    for (const [b, item] of items.entries())
      for (const other of [model, single]) {
        const alone = await native.embed(other, item.ids, Int32Array.of(0, item.ids.length), true, 32, item.media)
        assert.deepEqual(alone, together.slice(b * 32, b * 32 + 32), `input ${b}`)
      }
    const final = floats(golden.get('hidden.6')!)
    const last = items.flatMap((_, b) => [...final.subarray((offsets[b + 1]! - 1) * 32, offsets[b + 1]! * 32)])
    assert.ok(worstCosine(together, last, 32) > tolerance[dtype as 'int8'].cosine)
    for (const each of [model, single]) native.dispose(each)
  })

test('tokens and pictures that do not fit are errors', async () => {
  const model = await load('float32')
  const [two, text] = items as [(typeof items)[0], (typeof items)[0]]
  const embed = (item: { ids: Int32Array }, given?: NativeMedia) => native.embed(model, item.ids, Int32Array.of(0, item.ids.length), true, 32, given)
  const fails = async (work: () => Promise<unknown>, message: RegExp) => {
    await assert.rejects(
      async () => work(),
      (error: Error & { code?: string }) => error.code === 'INVALID_INPUT' && message.test(error.message),
    )
  }
  await fails(() => embed(two), /stand for more pictures than the 0 there are/)
  await fails(() => embed(two, part(0, 1)), /stand for more pictures than the 1 there are/)
  await fails(() => embed(two, part(0, 3)), /tokens for 3 pictures, found them for 2/)
  await fails(() => embed(two, part(1, 2)), /expected 6 tokens for a picture of 12 x 2|expected \d+ tokens for a picture/)
  await fails(() => embed(text, part(0, 1)), /found them for 0/)
  await fails(() => embed(two, { pictures: { ...pictures, grids: Int32Array.of(4, 6) } }), /expected 24 patches of 96 values/)
  await fails(() => embed(two, { pictures: { patches: [new Float32Array(5 * 96)], grids: Int32Array.of(5, 1) } }), /multiples of 2, got 5 x 1/)
  await fails(
    () => embed(two, { pictures: { patches: [patches.slice(0, 95), patches.slice(95, 96 * 24)], grids: Int32Array.of(4, 6) } }),
    /expected 24 patches/,
  )
  native.dispose(model)
  const plain = await native.load({ directory: path.join(fixtures, 'pico', 'qwen3'), adapters: [], dtype: 'float32', threads: 1, pooling: 'mean', dense: [] })
  await fails(() => native.embed(plain, text.ids, Int32Array.of(0, text.ids.length), true, 32, part(0, 1)), /expected \d+ patches of 0 values/)
  native.dispose(plain)
})

test('both spellings of the config, and a directory that lacks something', async () => {
  const old = copyOf(directory)
  editJson(path.join(old, 'config.json'), (config) => {
    const text = config.text_config as Record<string, unknown>
    const { rope_theta, mrope_section } = text.rope_parameters as Record<string, unknown>
    delete text.rope_parameters
    delete (config.vision_config as Record<string, unknown>).rope_parameters
    Object.assign(text, { rope_theta, rope_scaling: { rope_type: 'default', mrope_interleaved: true, mrope_section } })
  })
  const [a, b] = [await load('float32'), await load('float32', 2, 'lasttoken', old)]
  assert.deepEqual(await native.embed(b, ids, offsets, true, 32, { pictures }), await native.embed(a, ids, offsets, true, 32, { pictures }))
  for (const model of [a, b]) native.dispose(model)

  assert.deepEqual(inspect(directory).problems, [])
  const broken = copyOf(directory)
  editTensors(broken, (tensors) => tensors.delete('model.visual.blocks.1.attn.qkv.weight'))
  await assert.rejects(load('float32', 1, 'mean', broken), { code: 'TENSOR_MISSING' })
  assert.match(inspect(broken).problems.join(), /blocks\.1\.attn\.qkv\.weight/)
  const deeper = copyOf(directory)
  editJson(path.join(deeper, 'config.json'), (config) => ((config.vision_config as Record<string, unknown>).depth = 3))
  await assert.rejects(load('float32', 1, 'mean', deeper), (error: { code?: string }) => ['TENSOR_UNUSED', 'CONFIG_INVALID'].includes(error.code!))
})

test('the published 2B and 8B by name and shape, without their weights', async () => {
  const published: Record<string, { config: object; parameters: number; tensors: Record<string, number[]> }> = JSON.parse(
    readFileSync(path.join(fixtures, 'vision', 'published.json'), 'utf8'),
  )
  for (const [name, { config, parameters, tensors }] of Object.entries(published)) {
    const place = path.join(temporary(), name)
    mkdirSync(place)
    writeFileSync(path.join(place, 'config.json'), JSON.stringify(config))
    for (const file of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja']) copyFileSync(path.join(directory, file), path.join(place, file))
    const header: Record<string, unknown> = {}
    let at = 0
    for (const [pattern, sizes] of Object.entries(tensors)) {
      const layered = pattern.includes('{}')
      const shape = layered ? sizes.slice(0, -1) : sizes
      const bytes = 2 * shape.reduce((a, b) => a * b, 1)
      for (let i = 0; i < (layered ? sizes.at(-1)! : 1); i++) {
        header[pattern.replace('{}', String(i))] = { dtype: 'BF16', shape, data_offsets: [at, at + bytes] }
        at += bytes
      }
    }
    // A file with a hole where the weights would be: it takes no place on disk.
    const json = Buffer.from(JSON.stringify(header))
    const length = Buffer.alloc(8)
    length.writeBigUInt64LE(BigInt(json.length))
    const file = path.join(place, 'model.safetensors')
    writeFileSync(file, Buffer.concat([length, json]))
    truncateSync(file, 8 + json.length + at)
    const report = inspect(place)
    assert.deepEqual(report.problems, [], name)
    assert.deepEqual(report.unused, [], name)
    assert.equal(report.parameters, parameters, name)
  }
})

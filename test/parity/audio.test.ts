// Sound on tiny random encoders against transformers: every block of Qwen3-Omni's tower and of Whisper, features of clips from 0.05
// to 40 seconds, the projector, omni checkpoints whole; and that a clip's features depend on nothing beside it.
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { attachAudio, type EmbedInput, loadModel } from '../../lib'
import { binding, type NativeSounds } from '../../lib/binding'
import { inspect } from '../../lib/inspect'
import { audioFeatures } from '../../lib/media/audio'
import { readAudioSettings } from '../../lib/media/processor'
import {
  copyOf,
  dataDirectory,
  editJson,
  editTensors,
  fixtures,
  floats,
  largestDifference,
  needs,
  readSafetensors,
  temporary,
  tolerance,
  worstCosine,
} from '../support'

const audio = (...names: string[]) => path.join(fixtures, 'audio', ...names)
const golden = readSafetensors(audio('golden.safetensors'))
const native = binding()
const lengths = [0.05, 0.3, 0.99, 1.0, 1.37, 3.2, 12.345, 40.0]

/** The signal of make_audio.py. */
function clip(seconds: number, seed: number): Float32Array {
  let state = BigInt(seed)
  return Float32Array.from({ length: Math.round(seconds * 16000) }, (_, i) => {
    state = (state * 1103515245n + 12345n) % 2147483648n
    const t = i / 16000
    const noise = Number(state) / 1073741824 - 1
    return 0.3 * Math.sin(2 * Math.PI * (200 + 40 * seed) * t) + 0.1 * Math.sin(2 * Math.PI * 3100 * t) * Math.cos(3 * t) + 0.05 * noise
  })
}
const clips = lengths.map((seconds, i) => clip(seconds, i + 1))
const input = (i: number) => ({ samples: clips[i]!, samplingRate: 16000 })
const settings = (bins: number) => ({ ...readAudioSettings(audio('omni'), {}), bins })

/** All clips as one batch, or some. */
async function sounds(bins: number, which = lengths.map((_, i) => i)): Promise<NativeSounds> {
  const features = await Promise.all(which.map((i) => audioFeatures(input(i), {}, settings(bins))))
  const all = new Float32Array(features.reduce((sum, { length }) => sum + length, 0))
  features.reduce((at, each) => {
    all.set(each, at)
    return at + each.length
  }, 0)
  return { features: all, frames: Int32Array.from(features, ({ length }) => length / bins) }
}

const load = (directory: string, dtype: string, threads = 2) => native.load({ directory, adapters: [], dtype, threads, pooling: 'lasttoken', dense: [] })

/** The Whisper fixture on the tiny Qwen3-VL. */
async function withWhisper(): Promise<string> {
  const out = path.join(temporary(), 'omni')
  await attachAudio(path.join(fixtures, 'vision', 'qwen3_vl'), audio('whisper'), { out, projector: audio('projector-whisper') })
  return out
}

test("log-mel frames are the extractor's", async () => {
  for (const [i] of lengths.entries()) {
    const mel = await audioFeatures(input(i), {}, settings(32))
    const want = floats(golden.get(`mel.${i}`)!)
    assert.equal(mel.length, 32 * Math.floor(clips[i]!.length / 160))
    assert.ok(largestDifference(mel.subarray(0, want.length), want) < 1e-4, `clip ${i}`)
  }
})

test('token counts follow the published formula', async () => {
  const model = await load(audio('omni'), 'float32')
  const frames = Int32Array.from({ length: 1000 }, (_, i) => i + 1)
  const published = frames.map((n) => {
    const f = Math.floor(((n % 100) - 1) / 2) + 1
    return Math.floor((Math.floor((f - 1) / 2) + 1 - 1) / 2) + 1 + Math.floor(n / 100) * 13
  })
  assert.deepEqual(native.audioTokens(model, frames), published)
  native.dispose(model)
})

for (const [name, bins, layers] of [
  ['tower', 32, 3],
  ['whisper', 20, 2],
] as const)
  for (const dtype of ['float32', 'bfloat16', 'int8'] as const)
    test(`${name}: every state and every clip's features, ${dtype}`, async () => {
      const model = await load(name === 'tower' ? audio('omni') : await withWhisper(), dtype)
      const all = await sounds(bins)
      const states = await native.audioStates(model, { sounds: all })
      assert.equal(states.length, layers + 3)
      const tokens = native.audioTokens(model, all.frames)
      const width = { 0: 32, features: name === 'tower' ? 24 : 32, projected: 32 }
      let first = 0
      for (const [i] of lengths.entries()) {
        const rows = (state: Float32Array, columns: number) => state.subarray(first * columns, (first + tokens[i]!) * columns)
        for (let s = 0; lengths[i]! < 3 && s < layers + 2; s++) {
          const columns = s === layers + 1 ? width.features : width[0]
          const cosine = worstCosine(rows(states[s]!, columns), floats(golden.get(`${name}.${i}.${s}`)!), columns)
          assert.ok(cosine > tolerance[dtype].cosine, `clip ${i}, state ${s}: ${cosine}`)
        }
        const want = floats(golden.get(`${name}.${i}.projected`)!)
        assert.equal(rows(states.at(-1)!, 32).length, want.length)
        const cosine = worstCosine(rows(states.at(-1)!, 32), want, 32)
        assert.ok(cosine > tolerance[dtype].cosine, `clip ${i} projected: ${cosine}`)
        const alone = await native.audioStates(model, { sounds: await sounds(bins, [i]) })
        assert.deepEqual(alone.at(-1), rows(states.at(-1)!, 32).slice(), `clip ${i} alone`)
        first += tokens[i]!
      }
      assert.deepEqual(native.modelInfo(model).unusedTensors, [])
      native.dispose(model)
    })

const items: { audio?: (number | string)[]; image?: string[]; text?: string }[] = JSON.parse(readFileSync(audio('items.json'), 'utf8'))
const given = items.map(
  (item): EmbedInput =>
    ({
      ...item,
      ...(item.audio && { audio: item.audio.map((each) => (typeof each === 'number' ? input(each) : audio(each))) }),
      ...(item.image && { image: item.image.map((name) => path.join(fixtures, 'vision', 'images', name)) }),
    }) as EmbedInput,
)

for (const dtype of ['float32', 'bfloat16', 'int8'] as const)
  test(`an omni checkpoint: sound alone, with text and an image, in one batch; ${dtype}`, async () => {
    await using model = await loadModel(audio('omni'), { dtype })
    await using single = await loadModel(audio('omni'), { dtype, threads: 1 })
    assert.ok(model.supports('audio') && model.supports('image'))
    const together = await model.embed(given)
    const cosine = worstCosine(together.vectors, floats(golden.get('vectors')!), 32)
    assert.ok(cosine > tolerance[dtype].cosine, `${cosine}`)
    assert.ok(together.usage.audio > 0 && together.usage.image === 24)
    for (const [i, item] of given.entries())
      for (const other of [model, single]) assert.deepEqual((await other.embed([item])).vectors, together.vectors.slice(i * 32, i * 32 + 32), `item ${i}`)
  })

for (const name of ['bert', 'qwen3'])
  test(`${name} with a Whisper: features take the place of embeddings`, async () => {
    const out = path.join(temporary(), name)
    const report = await attachAudio(path.join(fixtures, 'pico', name), audio('whisper'), { out, projector: audio(`projector-${name}`) })
    assert.equal(report.addedTokens.length, 4)
    mkdirSync(path.join(out, '1_Pooling'))
    writeFileSync(path.join(out, '1_Pooling', 'config.json'), JSON.stringify({ pooling_mode: 'mean' }))
    const modules = ['Transformer', 'Pooling'].map((type) => ({ path: type === 'Pooling' ? '1_Pooling' : '', type: `sentence_transformers.models.${type}` }))
    writeFileSync(path.join(out, 'modules.json'), JSON.stringify(modules))
    await using model = await loadModel(out, { dtype: 'float32' })
    assert.ok(model.supports('audio') && !model.supports('image'))
    const { vectors } = await model.embed(['a text', { audio: input(2), text: 'a sound' }, { audio: input(7) }], { onError: 'skip' })
    const want = floats(golden.get(`${name}.vector`)!)
    assert.ok(worstCosine(vectors.subarray(want.length, 2 * want.length), want, want.length) > 0.99999)
  })

test('the real Whisper-base: as it is, and padded to 30 seconds as its own preprocessing does', needs('weights/whisper-base-encoder'), async () => {
  const out = path.join(temporary(), 'omni')
  const report = await attachAudio(path.join(fixtures, 'vision', 'qwen3_vl'), path.join(dataDirectory, 'weights', 'whisper-base-encoder'), { out })
  assert.deepEqual([report.encoder.parameters, report.projector.fresh], [20590592, true])
  const want = readSafetensors(audio('whisper-base.safetensors'))
  const model = await load(out, 'float32')
  for (const [form, paddedSamples] of [
    ['alone', undefined],
    ['padded', 480000],
  ] as const)
    for (const i of [0, 5]) {
      const features = await audioFeatures(input(i), {}, { ...settings(80), paddedSamples })
      const states = await native.audioStates(model, { sounds: { features, frames: Int32Array.of(features.length / 80) } })
      const rows = floats(want.get(`${form}.${i}`)!)
      const got = states.at(-2)!
      assert.equal(got.length / 512, form === 'padded' ? 1500 : Math.ceil(features.length / 160))
      const cosine = worstCosine(got.subarray(0, rows.length), rows, 512)
      assert.ok(cosine > tolerance.float32.cosine, `${form} ${i}: ${cosine}`)
    }
  native.dispose(model)
})

test('what does not fit is an error with a name', async () => {
  const model = await load(audio('omni'), 'float32')
  const all = await sounds(32, [1])
  const ids = Int32Array.of(20, 272, 275, 275, 275, 275, 273)
  const embed = (sounds: NativeSounds | undefined, from = ids) => native.embed(model, from, Int32Array.of(0, from.length), true, 32, { sounds })
  const fails = (work: () => Promise<unknown>, message: RegExp) => assert.rejects(async () => work(), { code: 'INVALID_INPUT', message })
  assert.equal((await embed(all)).length, 32)
  await fails(() => embed(undefined), /stand for more sounds than the 0 there are/)
  await fails(() => embed(all, ids.slice(0, 4)), /expected 4 tokens for a sound of 30 frames, got 2/)
  await fails(() => embed(all, Int32Array.of(20)), /tokens for 1 sounds, found them for 0/)
  await fails(() => embed({ features: all.features, frames: Int32Array.of(0) }), /expected 0 frames/)
  await fails(() => embed({ features: all.features.slice(1), frames: all.frames }), /expected 30 frames of 32 values/)
  native.dispose(model)
  const broken = (edit: (directory: string) => void) => {
    const copy = copyOf(audio('omni'))
    edit(copy)
    return copy
  }
  const missing = broken((copy) => editTensors(copy, (tensors) => tensors.delete('audio_tower.layers.1.fc1.weight')))
  await assert.rejects(load(missing, 'float32'), { code: 'TENSOR_MISSING' })
  assert.match(inspect(missing).problems.join(), /audio_tower\.layers\.1\.fc1\.weight/)
  assert.deepEqual(inspect(audio('omni')).problems, [])
  const config = (edit: (json: Record<string, object>) => void) => broken((copy) => editJson(path.join(copy, 'config.json'), edit as never))
  const other = config((json) => Object.assign(json.audio_config!, { model_type: 'wav2vec2' }))
  await assert.rejects(load(other, 'float32'), { code: 'UNSUPPORTED_ARCHITECTURE', message: /expected one of whisper, .*got "wav2vec2"/ })
  await assert.rejects(
    load(
      config((json) => Object.assign(json.audio_projector_config!, { output_size: 31 })),
      'float32',
    ),
    /linear_2/,
  )
  await assert.rejects(
    load(
      config((json) => delete json.audio_token_id),
      'float32',
    ),
    /audio_token_id/,
  )
  const bins = config((json) => Object.assign(json.audio_config!, { num_mel_bins: 31 }))
  await assert.rejects(loadModel(bins), { code: /TENSOR_SHAPE|CONFIG_INVALID/ })
})

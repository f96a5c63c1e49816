// Gradients of every tensor of every architecture against PyTorch's, for a contrastive loss over the golden batch; whole and in chunks
// (GradCache), on any number of threads, and of low rank.
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { attachAudio } from '../../lib'
import { binding, type NativeChunk, type NativeModel } from '../../lib/binding'
import { contrastiveStep, cuda, fixtures, floats, ints, pico, readSafetensors, type Tensor, temporary, writeSafetensors } from '../support'

const native = binding()

function batchOf(name: string): { ids: Int32Array; offsets: Int32Array } {
  const golden = readSafetensors(path.join(pico(name), 'golden.safetensors'))
  return { ids: ints(golden.get('ids')!), offsets: ints(golden.get('offsets')!) }
}

/** The batch cut into chunks of so many sequences. */
function chunked({ ids, offsets }: { ids: Int32Array; offsets: Int32Array }, size: number): NativeChunk[] {
  const chunks: NativeChunk[] = []
  for (let b = 0; b + 1 < offsets.length; b += size) {
    const end = Math.min(offsets.length - 1, b + size)
    chunks.push({ ids: ids.slice(offsets[b], offsets[end]), offsets: offsets.slice(b, end + 1).map((offset) => offset - offsets[b]!) })
  }
  return chunks
}

const trained = (name: string, plan: object, threads = 2, pooling = 'mean', device = 'cpu') =>
  native.load({
    device,
    directory: pico(name),
    adapters: [],
    dtype: 'float32',
    threads,
    pooling,
    dense: [],
    training: JSON.stringify({ dense: [], lowRank: [], seed: 0, optimizer: {}, ...plan }),
  })

/** Norms and samples of every tensor's gradient, relative error below 1e-4. */
function checkGradients(gradients: Record<string, Float32Array>, want: Map<string, Tensor>): void {
  const names = [...want.keys()].filter((key) => key.startsWith('norm ')).map((key) => key.slice(5))
  assert.deepEqual(Object.keys(gradients).sort(), [...names].sort())
  const largest = Math.max(...names.map((name) => floats(want.get(`norm ${name}`)!)[0]!))
  for (const tensor of names) {
    const gradient = gradients[tensor]!
    const norm = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0))
    const reference = floats(want.get(`norm ${tensor}`)!)[0]!
    // What is zero in exact arithmetic (a key's bias) is noise on both sides.
    const noise = 1e-6 * largest
    assert.ok(Math.abs(norm - reference) < 1e-4 * reference + noise, `${tensor}: norm ${norm}, PyTorch ${reference}`)
    const samples = floats(want.get(`samples ${tensor}`)!)
    const stride = Math.max(1, Math.floor(gradient.length / 24))
    const scale = Math.max(reference / Math.sqrt(gradient.length), ...samples.map(Math.abs))
    for (const [i, sample] of samples.entries()) {
      const got = gradient[i * stride]!
      assert.ok(Math.abs(got - sample) < 1e-4 * scale + noise, `${tensor}[${i * stride}]: ${got}, PyTorch ${sample}`)
    }
  }
}

const gpu = cuda()
for (const file of readdirSync(path.join(fixtures, 'gradients')))
  for (const { device, skip } of [{ device: 'cpu', skip: false }, gpu]) {
    const name = file.replace('.safetensors', '')
    test(`${name} on ${device}: PyTorch's gradients`, { skip }, async () => {
      const want = readSafetensors(path.join(fixtures, 'gradients', file))
      const names = [...want.keys()].filter((key) => key.startsWith('norm ')).map((key) => key.slice(5))
      const model = await trained(name, { dense: names }, 2, 'mean', device)
      const { loss } = await native.trainStep(model, chunked(batchOf(name), 100), contrastiveStep())
      const expected = floats(want.get('loss')!)[0]!
      assert.ok(Math.abs(loss - expected) < 1e-4 * Math.abs(expected), `loss ${loss}, PyTorch ${expected}`)
      checkGradients(native.gradients(model), want)
      native.dispose(model)
    })
  }

/**
 * Slopes of the loss along the gradient of each tensor, by central differences. What f32 leaves of a difference is noise of about 1e-6 of
 * the loss, so that steps are chosen for a change a thousand times as large, and tensors that cannot make one are compared by that noise.
 * `begin` changes where the model stands.
 */
async function checkSlopes(model: NativeModel, chunks: NativeChunk[], names: string[], begin?: (tensors: Map<string, Tensor>) => void): Promise<void> {
  const lossOf = async () => (await native.trainStep(model, chunks, contrastiveStep())).loss
  const state = path.join(temporary(), 'state.safetensors')
  const metadata = { steps: '0' }
  const goTo = async (tensors: Map<string, Tensor>) => {
    writeSafetensors(state, tensors, metadata)
    await native.loadTraining(model, state)
    return lossOf()
  }
  await lossOf()
  await native.saveTraining(model, state, 'state')
  const tensors = readSafetensors(state)
  begin?.(tensors)
  if (begin) await goTo(tensors)
  const gradients = native.gradients(model)
  for (const tensor of names) {
    const gradient = gradients[tensor]!.slice()
    const norm = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0))
    if (norm < 1e-6) continue
    const value = tensors.get(`value.${tensor}`)!
    const base = floats(value)
    const size = Math.sqrt(base.reduce((sum, x) => sum + x * x, 0)) || 1
    const h = Math.min(0.004 * size, 1e-3 / norm)
    const at = (sign: number) =>
      goTo(new Map(tensors).set(`value.${tensor}`, { ...value, data: Buffer.from(base.map((x, i) => x + (sign * h * gradient[i]!) / norm).buffer) }))
    const slope = ((await at(1)) - (await at(-1))) / (2 * h)
    assert.ok(Math.abs(slope - norm) < 5e-3 * norm + 5e-7 / h, `${tensor}: slope ${slope}, gradient ${norm}`)
  }
  native.dispose(model)
}

for (const file of readdirSync(path.join(fixtures, 'gradients')))
  for (const pooling of ['mean', /bert|mpnet/.test(file) ? 'cls' : 'lasttoken']) {
    const name = file.replace('.safetensors', '')
    test(`${name}, ${pooling}: finite differences`, async () => {
      const want = readSafetensors(path.join(fixtures, 'gradients', file))
      const dense = [...want.keys()].filter((key) => key.startsWith('norm ')).map((key) => key.slice(5))
      await checkSlopes(await trained(name, { dense }, 2, pooling), chunked(batchOf(name), 100), dense)
    })
  }

test('of low rank, through one tensor of queries, keys and values and one whose halves change places: finite differences', async () => {
  const modules = ['encoder.layer.0.attention.qkv_proj', 'encoder.layer.0.mlp.up_gate_proj', 'encoder.layer.1.mlp.up_gate_proj']
  const lowRank = modules.map((module) => ({ tensor: `${module}.weight`, rank: 4, scale: 2 }))
  const names = modules.flatMap((module) => [`${module}.lora_A.weight`, `${module}.lora_B.weight`])
  await checkSlopes(await trained('gte', { lowRank }), chunked(batchOf('gte'), 100), names, (tensors) => {
    for (const [name, tensor] of tensors) {
      const values = floats(tensor)
      if (name.startsWith('value.') && name.includes('lora_B')) values.set(values.map((_, i) => 0.1 * Math.sin(i)))
      if (name.startsWith('gradient.')) values.fill(0) // a step without update adds to what is there
      tensors.set(name, { ...tensor, data: Buffer.from(values.buffer, values.byteOffset, values.byteLength) })
    }
  })
})

test('chunks of any size give the gradient of the whole batch; threads change no bit', async () => {
  const dense = ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.mlp.down_proj.weight', 'model.norm.weight', 'model.embed_tokens.weight']
  const run = async (size: number, threads: number) => {
    const model = await trained('qwen3', { dense }, threads)
    const { loss, gradientNorm } = await native.trainStep(model, chunked(batchOf('qwen3'), size), contrastiveStep())
    const gradients = native.gradients(model)
    native.dispose(model)
    return { loss, gradientNorm, gradients }
  }
  const whole = await run(100, 1)
  assert.deepEqual(await run(100, 4), whole)
  for (const size of [1, 2, 3]) {
    const parts = await run(size, 2)
    assert.equal(parts.loss, whole.loss)
    for (const name of dense) {
      const [a, b] = [parts.gradients[name]!, whole.gradients[name]!]
      const scale = Math.max(...b.map(Math.abs))
      assert.ok(
        a.every((g, i) => Math.abs(g - b[i]!) < 1e-5 * scale),
        `${name} in chunks of ${size}`,
      )
    }
  }
})

for (const name of ['omni', 'whisper'])
  test(`${name}: gradients through the towers, the projector and the language model`, async () => {
    const want = readSafetensors(path.join(fixtures, 'gradients-media', `${name}.safetensors`))
    let directory = path.join(fixtures, 'audio', 'omni')
    if (name === 'whisper') {
      directory = path.join(temporary(), 'bert')
      await attachAudio(pico('bert'), path.join(fixtures, 'audio', 'whisper'), { out: directory, projector: path.join(fixtures, 'audio', 'projector-bert') })
    }
    const names = [...want.keys()].filter((key) => key.startsWith('norm ')).map((key) => key.slice(5))
    const training = JSON.stringify({ dense: names, lowRank: [], seed: 0, optimizer: {} })
    const pooling = name === 'omni' ? 'lasttoken' : 'mean'
    const model = await native.load({ directory, adapters: [], dtype: 'float32', threads: 2, pooling, dense: [], training })
    const whole: NativeChunk = {
      ids: ints(want.get('ids')!),
      offsets: ints(want.get('offsets')!),
      media: {
        sounds: { features: floats(want.get('mels')!), frames: ints(want.get('frames')!) },
        ...(want.has('patches') && { pictures: { patches: [floats(want.get('patches')!)], grids: ints(want.get('grids')!) } }),
      },
    }
    const { loss } = await native.trainStep(model, [whole], contrastiveStep())
    const expected = floats(want.get('loss')!)[0]!
    assert.ok(Math.abs(loss - expected) < 1e-4 * Math.abs(expected), `loss ${loss}, PyTorch ${expected}`)
    checkGradients(native.gradients(model), want)
    native.dispose(model)
  })

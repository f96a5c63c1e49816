// Fifty steps on a tiny omni model against PyTorch's loss curve: the projector alone, LoRA on all linear layers, everything; state
// that is saved and loaded goes on bit for bit.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { binding, type NativeChunk } from '../../lib/binding'
import { openParent } from '../../lib/fuse/parents'
import { chooseTrainable } from '../../lib/train/trainable'
import { contrastiveStep, cuda, fixtures, floats, ints, readSafetensors, temporary } from '../support'

const native = binding()
const omni = path.join(fixtures, 'audio', 'omni')
const want = readSafetensors(path.join(fixtures, 'gradients-media', 'omni.safetensors'))
const curves: Record<string, { learningRate: number; losses: number[] }> = JSON.parse(
  readFileSync(path.join(fixtures, 'gradients-media', 'curves.json'), 'utf8'),
)
const whole: NativeChunk = {
  ids: ints(want.get('ids')!),
  offsets: ints(want.get('offsets')!),
  media: {
    sounds: { features: floats(want.get('mels')!), frames: ints(want.get('frames')!) },
    pictures: { patches: [floats(want.get('patches')!)], grids: ints(want.get('grids')!) },
  },
}

function load(mode: string, threads = 2, device = 'cpu') {
  const { dense, lowRank } = chooseTrainable(openParent(omni, '.'), { mode: mode as 'lora', rank: 4, alpha: 8 })
  const training = JSON.stringify({ dense, lowRank, seed: 0, optimizer: {} })
  return native.load({ device, directory: omni, adapters: [], dtype: 'float32', threads, pooling: 'lasttoken', dense: [], training })
}

const gpu = cuda()
for (const [mode, { learningRate, losses }] of Object.entries(curves))
  for (const { device, skip, emulated } of [{ device: 'cpu', skip: false, emulated: false }, gpu])
    test(`${mode} on ${device}: PyTorch's curve`, { skip }, async () => {
      const model = await load(mode, 2, device)
      for (const [i, expected] of losses.slice(0, emulated ? 2 : undefined).entries()) {
        const { loss } = await native.trainStep(model, [whole], contrastiveStep(learningRate))
        assert.ok(Math.abs(loss - expected) < 1e-4, `step ${i + 1}: ${loss}, PyTorch ${expected}`)
      }
      native.dispose(model)
    })

test('saved and loaded, and on other threads, a run goes on bit for bit', async () => {
  const file = path.join(temporary(), 'state.safetensors')
  const [one, two, other] = [await load('lora', 1), await load('lora', 3), await load('lora', 2)]
  const losses: number[] = []
  for (let i = 0; i < 6; i++) {
    const { loss } = await native.trainStep(one, [whole], contrastiveStep(2e-3))
    assert.equal((await native.trainStep(two, [whole], contrastiveStep(2e-3))).loss, loss)
    if (i === 2) await native.saveTraining(one, file, 'state')
    losses.push(loss)
  }
  await native.loadTraining(other, file)
  for (let i = 3; i < 6; i++) assert.equal((await native.trainStep(other, [whole], contrastiveStep(2e-3))).loss, losses[i])
  const wrong = await load('projector')
  await assert.rejects(native.loadTraining(wrong, file), { code: 'FILE_CORRUPT', message: /is this another run's state/ })
  for (const model of [one, two, other, wrong]) native.dispose(model)
})

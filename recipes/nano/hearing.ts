// The encoder of sound. It learns in a small model of its own, the listener: one layer that takes the mean of what the encoder gives, so
// that words by different voices come near to each other and to their spelling. What becomes of it is the encoder alone.
//   npx tsx recipes/nano/hearing.ts [--reduced]
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { attachAudio } from '../../lib'
import { audio, writeBase, writeEncoder } from './architecture'
import { show } from './measure'
import { type Sound, sounds } from './media'
import { settings, work } from './settings'
import { place } from './sources'
import { learn } from './text'

/** Pairs of the same text by two voices. */
function twice(heard: Sound[]): object[] {
  const byText = new Map<string, string[]>()
  for (const { text, file } of heard) byText.set(text, [...(byText.get(text) ?? []), file])
  return [...byText.values()].flatMap((files) => {
    const order = [...files].sort((a, b) => place(a) - place(b))
    return order.map((file, i) => ({ query: { audio: file }, positive: { audio: order[(i + 1) % order.length] } }))
  })
}

async function main() {
  const out = await learn('listener', async () => {
    const [deaf, encoder, fresh] = ['deaf', 'encoder', 'listener-fresh'].map((name) => path.join(work, name)) as [string, string, string]
    if (!existsSync(fresh)) {
      mkdirSync(work, { recursive: true })
      writeBase(deaf, readFileSync(path.join(work, 'base/tokenizer.json'), 'utf8'), [], { layers: 1, pooling: 'mean' })
      writeEncoder(encoder, 1)
      await attachAudio(deaf, encoder, { out: fresh, hiddenSize: audio.projector, seed: 1 })
    }
    const heard = (await sounds(settings.words)).filter(({ part }) => part === 'train')
    const of = (task: string) => heard.filter((sound) => sound.task === task)
    const named = (list: Sound[]) => list.map(({ file, text }) => ({ query: { audio: file }, positive: text }))
    return {
      model: fresh,
      data: [
        { name: 'words', weight: 5, rows: named(of('speech')) },
        { name: 'voices', weight: 3, rows: twice(of('speech')) },
        { name: 'digits', weight: 1, rows: named(of('digits')) },
        { name: 'noises', weight: 1, rows: named(of('noises')) },
      ],
      oneDatasetPerBatch: true,
      trainable: { mode: 'full', exclude: ['visual\\.'] },
      temperature: 0.05,
      batchSize: 96,
      steps: settings.hearingSteps,
      learningRate: 1e-3,
      weightDecay: 0.02,
      chunkTokens: 8192,
    }
  })
  await show(out, ['audio'])
}

if (require.main === module) main()

// The base's encoder of sound and its projector: spoken words, digits and sounds learn what the teacher says of their texts, while
// everything else stays as it is.
//   npx tsx recipes/nano/hearing.ts [--words 600] [--epochs 12]
import { existsSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { attachAudio, trainSpecialist } from '../../lib'
import { readJson } from '../../lib/files/json'
import { audio, writeEncoder } from './architecture'
import { datasets, jsonLines, type Part, place, work } from './sources'
import { speech } from './speech'
import { type Found, openTeacher, progress, retrievalScores, score } from './text'

export interface Sound {
  task: string
  part: Part
  file: string
  text: string
}

/** Words by unheard voices, digits by unheard speakers, sounds of an unheard part of ESC-10. */
export async function sounds(words: number): Promise<Sound[]> {
  const spoken = (await speech(words)).map(({ text, part, file }) => ({ task: 'speech', part, file, text }))
  const speakers: Record<string, Part> = { nicolas: 'validation', yweweler: 'test' }
  const digits = jsonLines<{ audio: string; text: string; speaker: string }>(path.join(datasets, 'fsdd/items.jsonl')).map(({ audio, text, speaker }) => ({
    task: 'digits',
    part: speakers[speaker] ?? ('train' as const),
    file: path.join(datasets, 'fsdd', audio),
    text,
  }))
  const noises = jsonLines<{ id: string; audio: string; label: string; fold: number }>(path.join(datasets, 'esc10/items.jsonl')).map(
    ({ id, audio, label, fold }) => ({
      task: 'noises',
      part: fold === 3 ? ('test' as const) : place(id.replace(/-[A-Z]$/, '')) < 0.2 ? ('validation' as const) : ('train' as const),
      file: path.join(datasets, 'esc10/audio', path.basename(audio)),
      text: label.toLowerCase(),
    }),
  )
  return [...spoken, ...digits, ...noises]
}

/** Retrieval of texts by sounds of one part. */
export function soundScores(directory: string, all: Sound[], part: Part = 'validation'): Promise<Record<string, Found>> {
  const own = all.filter((sound) => sound.part === part)
  return retrievalScores(
    directory,
    own.map(({ task, file, text }) => ({ task, query: { audio: file }, positive: text })),
  )
}

async function main() {
  const { values } = parseArgs({ options: { words: { type: 'string', default: '600' }, epochs: { type: 'string', default: '12' } } })
  const all = await sounds(Number(values.words))
  const start = path.join(work, 'omni')
  const out = path.join(work, 'base-omni')
  if (!existsSync(start)) {
    writeEncoder(path.join(work, 'encoder'), 1)
    await attachAudio(path.join(work, 'base-vision'), path.join(work, 'encoder'), { out: start, hiddenSize: audio.projector, seed: 1 })
  }
  if (!existsSync(out)) {
    const teacher = await openTeacher()
    const list: object[] = []
    let rows = 0
    for (const task of ['speech', 'digits', 'noises']) {
      const own = all.filter((sound) => sound.task === task && sound.part === 'train')
      const queries = own.map(({ file }) => ({ query: { audio: file } }))
      const weight = task === 'speech' ? own.length : own.length / 2
      rows += weight
      list.push({
        ...(await teacher.write(
          path.join(work, `sounds-${task}`),
          own.map(({ text }) => text),
          queries,
        )),
        name: task,
        weight,
      })
    }
    await teacher.dispose()
    const batchSize = 96
    await trainSpecialist({
      model: start,
      out,
      data: list,
      sampling: 'weighted',
      trainable: { mode: 'full', include: ['audio_tower\\.', 'audio_projector\\.'] },
      dtype: 'bfloat16',
      batchSize,
      steps: Math.round((rows * Number(values.epochs)) / batchSize),
      learningRate: 1e-3,
      saveEvery: 100,
      chunkTokens: 8192,
      onProgress: progress('hearing'),
    })
  }
  console.log(`hearing: ${readJson(path.join(out, 'training-report.json')).seconds} s, STS-B dev ${(await score(out)).toFixed(4)}`)
  console.table(await soundScores(out, all))
}

if (require.main === module) main()

// The base's encoder of sound and its projector: spoken words, digits and sounds learn what the teacher says of their texts, while
// everything else stays as it is.
//   npx tsx recipes/nano/hearing.ts [--reduced]
import { existsSync } from 'node:fs'
import path from 'node:path'
import { attachAudio, trainSpecialist } from '../../lib'
import { readJson } from '../../lib/files/json'
import { audio, writeEncoder } from './architecture'
import { questions } from './data'
import { measure } from './measure'
import { sounds } from './media'
import { settings, work } from './settings'
import { openTeacher, progress, score } from './text'

async function main() {
  const all = await sounds(settings.words)
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
      steps: Math.round((rows * settings.hearingEpochs) / batchSize),
      learningRate: 1e-3,
      saveEvery: 100,
      chunkTokens: 8192,
      onProgress: progress('hearing'),
    })
  }
  console.log(`hearing: ${readJson(path.join(out, 'training-report.json')).seconds} s, STS-B dev ${(await score(out)).toFixed(4)}`)
  console.table(
    await measure(
      out,
      (await questions('validation', settings.words)).filter(({ modality }) => modality === 'audio'),
    ),
  )
}

if (require.main === module) main()

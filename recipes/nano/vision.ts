// The base's vision: the tower that has learnt to see (seeing.ts) comes to the language model, and learns to speak to it as it is, by
// InfoNCE between pictures or pages and what is said of them. The language model stays, bit for bit.
//   npx tsx recipes/nano/vision.ts [--reduced]
import { existsSync } from 'node:fs'
import path from 'node:path'
import { fuse, trainSpecialist } from '../../lib'
import { readJson } from '../../lib/files/json'
import { questions } from './data'
import { measure } from './measure'
import { pictureRows } from './seeing'
import { settings, work } from './settings'
import { progress, score } from './text'

async function main() {
  const start = path.join(work, 'seeing-text')
  if (!existsSync(start)) {
    const groups = [{ match: '*visual.*', action: 'copy', from: path.join(work, 'viewer') }]
    await fuse({ merge_method: 'passthrough', models: [{ model: path.join(work, 'text') }], dtype: 'float32', conan: { groups } }, { out: start })
  }
  const out = path.join(work, 'base-vision')
  if (!existsSync(out)) {
    const { names, pairs, pages } = await pictureRows()
    await trainSpecialist({
      model: start,
      out,
      data: [
        { name: 'names', weight: 16, rows: names },
        { name: 'views', weight: 3, rows: pairs },
        { name: 'pages', weight: 1, rows: pages },
      ],
      sampling: 'weighted',
      oneDatasetPerBatch: true,
      trainable: { mode: 'full', include: ['visual\\.'] },
      dtype: 'bfloat16',
      temperature: 0.05,
      batchSize: 128,
      steps: settings.visionSteps,
      learningRate: 5e-4,
      weightDecay: 0.02,
      saveEvery: 100,
      maxTokens: 512,
      chunkTokens: 4096,
      onProgress: progress('vision'),
    })
  }
  console.log(`vision: ${readJson(path.join(out, 'training-report.json')).seconds} s, STS-B dev ${(await score(out)).toFixed(4)}`)
  console.table(
    await measure(
      out,
      (await questions('validation', settings.words)).filter(({ modality }) => modality !== 'audio'),
    ),
  )
}

if (require.main === module) main()

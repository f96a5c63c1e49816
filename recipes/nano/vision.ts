// The base's vision tower: pictures and pages learn what the teacher says of their names, texts go on as they are.
//   npx tsx recipes/nano/vision.ts [--reduced]
import { existsSync } from 'node:fs'
import path from 'node:path'
import { trainSpecialist } from '../../lib'
import { readJson } from '../../lib/files/json'
import { questions } from './data'
import { measure } from './measure'
import { items, views } from './media'
import { settings, work } from './settings'
import { openTeacher, progress, score } from './text'

async function main() {
  const start = path.join(work, 'text')
  const out = path.join(work, 'base-vision')
  if (!existsSync(out)) {
    const teacher = await openTeacher()
    const list: object[] = []
    for (const modality of ['image', 'document'] as const) {
      const rows: { query: { image: string } }[] = []
      const said: string[] = []
      for (const item of items().filter((item) => item.part === 'train' && item.modality === modality))
        for (const file of await views(item, modality === 'image' ? settings.views : 1)) {
          rows.push({ query: { image: file } })
          said.push(item.texts.join(', '))
        }
      list.push({ ...(await teacher.write(path.join(work, `views-${modality}`), said, rows)), name: modality, weight: rows.length })
    }
    const pictures = (list as { weight: number }[]).reduce((sum, { weight }) => sum + weight, 0)
    for (const kind of ['glosses', 'examples', 'pairs', 'names', 'summaries'])
      list.push({ path: path.join(work, `texts-${kind}.jsonl`), vectors: path.join(work, `texts-${kind}.npy`), name: kind, weight: pictures / 5 })
    await teacher.dispose()
    const batchSize = 128
    await trainSpecialist({
      model: start,
      out,
      data: list,
      sampling: 'weighted',
      trainable: { mode: 'full' },
      dtype: 'bfloat16',
      batchSize,
      steps: Math.round((2 * pictures * settings.visionEpochs) / batchSize),
      learningRate: 7e-4,
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

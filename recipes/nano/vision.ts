// The base's vision: the tower that has learnt to see (seeing.ts) comes to the language model. In three phases: both learn what the teacher
// says of pictures' and pages' names, while texts go on as they are; the tower alone learns to tell pictures apart by what is said of them,
// then both do, with texts that mean the same beside.
//   npx tsx recipes/nano/vision.ts [--reduced]
import { existsSync } from 'node:fs'
import path from 'node:path'
import { fuse, type TrainOptions } from '../../lib'
import { textPairs } from './data'
import { show } from './measure'
import { items, views } from './media'
import { pictureRows } from './seeing'
import { settings, work } from './settings'
import { learn, openTeacher, score } from './text'

/** The teacher's vectors of what is said of pictures and pages, and of texts, in files. */
async function taught(): Promise<object[]> {
  const teacher = await openTeacher()
  const list: object[] = []
  let pictures = 0
  for (const modality of ['image', 'document'] as const) {
    const rows: { query: { image: string } }[] = []
    const said: string[] = []
    for (const item of items().filter((item) => item.part === 'train' && item.modality === modality))
      for (const file of await views(item, modality === 'image' ? settings.views : 1)) {
        rows.push({ query: { image: file } })
        said.push(item.texts.join(', '))
      }
    list.push({ ...(await teacher.write(path.join(work, `views-${modality}`), said, rows)), name: modality, weight: rows.length })
    pictures += rows.length
  }
  for (const kind of ['glosses', 'examples', 'pairs', 'names', 'summaries'])
    list.push({ path: path.join(work, `texts-${kind}.jsonl`), vectors: path.join(work, `texts-${kind}.npy`), name: kind, weight: pictures / 5 })
  await teacher.dispose()
  return list
}

async function phase(model: string, name: string, options: () => Promise<Omit<TrainOptions, 'model' | 'out'>>): Promise<string> {
  const out = await learn(name, async () => ({ model, dtype: 'bfloat16', batchSize: 128, maxTokens: 512, chunkTokens: 4096, ...(await options()) }))
  console.log(`STS-B dev ${(await score(out)).toFixed(4)}`)
  return out
}

async function main() {
  const start = path.join(work, 'seeing-text')
  if (!existsSync(start)) {
    const groups = [{ match: '*visual.*', action: 'copy', from: path.join(work, 'viewer') }]
    await fuse({ merge_method: 'passthrough', models: [{ model: path.join(work, 'text') }], dtype: 'float32', conan: { groups } }, { out: start })
  }
  const { names, pairs, pages } = await pictureRows()
  const contrast = { oneDatasetPerBatch: true, temperature: 0.05, weightDecay: 0.02 }
  const steps = settings.visionSteps
  const taughtVision = await phase(start, 'vision-taught', async () => ({
    data: await taught(),
    trainable: { mode: 'full' },
    steps: steps.taught,
    learningRate: 7e-4,
  }))
  const towerAlone = await phase(taughtVision, 'vision-tower', async () => ({
    ...contrast,
    data: [{ name: 'names', weight: 16, rows: names }, ...pairs(3), { name: 'pages', weight: 1, rows: pages }],
    trainable: { mode: 'full', include: ['visual\\.'] },
    steps: steps.tower,
    learningRate: 3e-4,
  }))
  const base = await phase(towerAlone, 'base-vision', async () => ({
    ...contrast,
    data: [{ name: 'names', weight: 12, rows: names }, ...pairs(2), { ...textPairs(20_000), weight: 3 }],
    trainable: { mode: 'full' },
    steps: steps.both,
    learningRate: 5e-4,
  }))
  await show(base, ['image', 'video', 'document'])
}

if (require.main === module) main()

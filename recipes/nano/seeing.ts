// The vision tower, in a small model of its own as sound has one (hearing.ts): two layers (DeepStack wants that many) and the mean, by
// InfoNCE between pictures and what is said of them, and between two views of one picture. Tokens stay the teacher's vectors, so that a
// picture learns where its name lies among names that no picture has. What becomes of it is the tower alone.
//   npx tsx recipes/nano/seeing.ts [--reduced]
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { writeBase } from './architecture'
import { show } from './measure'
import { items, views } from './media'
import { settings, work } from './settings'
import { learn, openTeacher, tokenVectors } from './text'

/** Training pictures with what is said of them, pages with their titles, and, where there are several views of a picture, two of each. */
export async function pictureRows() {
  const names: object[] = []
  const same: object[] = []
  const pages: object[] = []
  for (const item of items().filter(({ part }) => part === 'train')) {
    if (item.modality === 'document') pages.push(...item.texts.map((positive) => ({ query: { image: item.file }, positive })))
    if (item.modality !== 'image') continue
    const files = await views(item, settings.views)
    const said = [...new Set([item.texts[0] as string, item.texts.join(', ')])]
    for (const [i, file] of files.entries()) {
      names.push({ query: { image: file }, positive: said[i % said.length] })
      if (files.length > 1) same.push({ query: { image: file }, positive: { image: files[(i + 1) % files.length] } })
    }
  }
  return { names, pages, pairs: (weight: number) => (same.length ? [{ name: 'views', weight, rows: same }] : []) }
}

async function main() {
  const out = await learn('viewer', async () => {
    const fresh = path.join(work, 'viewer-fresh')
    if (!existsSync(path.join(fresh, 'modules.json'))) {
      const tokenizer = readFileSync(path.join(work, 'base/tokenizer.json'), 'utf8')
      const teacher = await openTeacher()
      writeBase(fresh, tokenizer, await tokenVectors(teacher, tokenizer), { layers: 2, pooling: 'mean' })
      await teacher.dispose()
    }
    const { names, pairs } = await pictureRows()
    return {
      model: fresh,
      data: [{ name: 'names', weight: 8, rows: names }, ...pairs(2)],
      oneDatasetPerBatch: true,
      trainable: { mode: 'full', exclude: ['embed_tokens'] },
      dtype: 'bfloat16',
      temperature: 0.05,
      batchSize: 128,
      steps: settings.seeingSteps,
      learningRate: 1e-3,
      weightDecay: 0.02,
      maxTokens: 512,
      chunkTokens: 8192,
    }
  })
  await show(out, ['image'])
}

if (require.main === module) main()

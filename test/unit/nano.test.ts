// The model that comes with the package: it loads by its name, knows every modality, and finds what it should.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { documentPages, type EmbedInput, evaluate, inspect, loadModel } from '../../lib'
import { dataDirectory, needs, root } from '../support'

const media = (name: string) => path.join(root, 'demo/media', name)

test('conan-nano is whole, small, and loads without a name', async () => {
  const report = inspect('conan-nano')
  assert.deepEqual([report.problems, report.unused, report.modelType], [[], [], 'qwen3_vl'])
  const bytes = readdirSync(path.join(root, 'models/conan-nano'), { recursive: true })
    .map((name) => statSync(path.join(root, 'models/conan-nano', String(name))))
    .reduce((sum, each) => sum + (each.isFile() ? each.size : 0), 0)
  assert.ok(bytes < 30e6, `${bytes} bytes`)
  await using model = await loadModel()
  for (const modality of ['text', 'image', 'video', 'document', 'audio'] as const) assert.ok(model.supports(modality), modality)
})

test('what the demo shows is found', async () => {
  await using model = await loadModel('conan-nano')
  const nearest = async (query: EmbedInput, documents: EmbedInput[]) => {
    const scores = model.similarity(await model.embedQuery(query), await model.embedDocument(documents))
    return documents[scores.indexOf(Math.max(...scores))]
  }
  const images = ['sun', 'fish', 'umbrella', 'house', 'red-heart', 'car'].map((name) => ({ image: media(`${name}.svg`) }))
  assert.equal(await nearest('umbrella', images), images[2])
  const sounds = ['rainbow', 'newspaper', 'seven', 'house'].map((name) => ({ audio: media(`spoken-${name}.ogg`) }))
  assert.equal(await nearest('newspaper', sounds), sounds[1])
  assert.equal(await nearest(sounds[0]!, ['newspaper', 'rainbow', 'scientist', 'umbrella']), 'rainbow')
  const videos = readdirSync(path.join(root, 'demo/media'))
    .filter((name) => name.endsWith('.webp'))
    .map((name) => ({ video: media(name) }))
  const pages: EmbedInput[] = []
  for await (const { image } of documentPages(media('handbook.pdf'))) pages.push({ image })
  const { vectors } = await model.embed([...videos, ...pages])
  assert.ok(vectors.every(Number.isFinite))
  assert.equal(vectors.length, (videos.length + pages.length) * model.info.dimensions)
})

test('STS-B dev: a Spearman of 0.75 and more', needs('datasets/stsb/sts-dev.csv'), async () => {
  const rows = readFileSync(path.join(dataDirectory, 'datasets/stsb/sts-dev.csv'), 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split('\t'))
    .map((cells) => ({ left: cells[5], right: cells[6], score: Number(cells[4]) }))
  const [result] = await evaluate('conan-nano', [{ name: 'STS-B', type: 'sts', rows }])
  assert.ok(result!.mainScore >= 0.75, `${result!.mainScore}`)
})

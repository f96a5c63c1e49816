// The base's language model: it learns a real text embedder's vectors of real texts, then the grades of STS-B's training part.
//   npx tsx recipes/nano/text.ts [--reduced]
// Every stage is left out where its output exists, and goes on where it was stopped.
import { existsSync, mkdirSync } from 'node:fs'
import path from 'node:path'
import { evaluate, type TrainOptions, trainSpecialist } from '../../lib'
import { readJson } from '../../lib/files/json'
import { text, writeBase } from './architecture'
import { reduced, settings, work } from './settings'
import { data, need, stsb, texts } from './sources'
import { Teacher } from './teacher'
import { learnTokenizer, textOf } from './tokenizer'

/** Rows of each kind of text, and how often it is drawn. */
const share: Record<string, { most: number; weight: number }> = {
  glosses: { most: 120_000, weight: 4 },
  examples: { most: 50_000, weight: 4 },
  words: { most: 40_000, weight: 2 },
  summaries: { most: 45_000, weight: 2 },
  descriptions: { most: 90_000, weight: 3 },
  pairs: { most: 12_000, weight: 3 },
  names: { most: 12_000, weight: 2 },
  pages: { most: 15_000, weight: 1 },
}

function chosenTexts(): Record<string, string[]> {
  return Object.fromEntries(
    Object.entries(texts()).map(([kind, list]) => {
      const every = Math.max(1, list.length / (share[kind]!.most * settings.textScale))
      return [kind, Array.from({ length: Math.floor(list.length / every) }, (_, i) => list[Math.floor(i * every)]!)]
    }),
  )
}

export function openTeacher(chosen = chosenTexts()): Promise<Teacher> {
  const sample = () => Object.values(chosen).flatMap((list) => list.filter((_, i) => i % Math.ceil(list.length / 2500) === 0))
  return Teacher.open(need(path.join(data, 'weights/all-MiniLM-L6-v2')), path.join(work, 'axes.npy'), sample, text.hidden)
}

/** What the embedding of each token of a tokenizer.json begins as: the teacher's vector of its text. */
export async function tokenVectors(teacher: Teacher, tokenizer: string): Promise<Float32Array[]> {
  const { vocab } = JSON.parse(tokenizer).model as { vocab: Record<string, number> }
  const tokens = Object.keys(vocab).sort((a, b) => vocab[a]! - vocab[b]!)
  return (await teacher.vectors(tokens.map(textOf))).map((vector) => vector.map((x) => 3 * x))
}

export async function score(directory: string): Promise<number> {
  const [result] = await evaluate(directory, [{ name: 'STS-B dev', type: 'sts', rows: stsb('dev') }])
  return result!.mainScore
}

export const progress = (what: string) => {
  let last = 0
  return ({ step, steps, loss, tokensPerSecond, secondsLeft }: Parameters<NonNullable<TrainOptions['onProgress']>>[0]) => {
    if (step < steps && performance.now() - last < 30_000) return
    last = performance.now()
    console.log(`${what}: step ${step} of ${steps}, loss ${loss.toFixed(4)}, ${Math.round(tokensPerSecond)} tokens/s, ${Math.round(secondsLeft / 60)} min left`)
  }
}

/** A stage that trains, left out where its output exists; what `options` makes is made only where it does not. Returns where it is. */
export async function learn(name: string, options: () => Promise<Omit<TrainOptions, 'out'>>): Promise<string> {
  const out = path.join(work, name)
  if (!existsSync(out)) await trainSpecialist({ out, sampling: 'weighted', saveEvery: 100, onProgress: progress(name), ...(await options()) })
  console.log(`${name}: ${readJson(path.join(out, 'training-report.json')).seconds} s`)
  return out
}

async function main() {
  mkdirSync(work, { recursive: true })
  const base = path.join(work, 'base')
  const chosen = chosenTexts()
  for (const [kind, list] of Object.entries(chosen)) console.log(`${kind}: ${list.length} texts`)
  const teacher = await openTeacher(chosen)

  if (!existsSync(path.join(base, 'config.json'))) {
    const json = learnTokenizer(Object.values(reduced ? chosen : texts()).flat(), text.vocabulary)
    writeBase(base, json, await tokenVectors(teacher, json))
    console.log(`base: STS-B dev as it begins ${(await score(base)).toFixed(4)}`)
  }
  const list: object[] = []
  for (const [kind, own] of Object.entries(chosen))
    list.push({ ...(await teacher.write(path.join(work, `texts-${kind}`), own)), name: kind, weight: share[kind]!.weight })
  await teacher.dispose()

  const batchSize = 192
  const whole: Partial<TrainOptions> = { trainable: { mode: 'full', include: ['language_model'] }, dtype: 'bfloat16', maxTokens: 64, saveEvery: 200 }
  const distilled = await learn('text-distilled', async () => ({
    ...whole,
    model: base,
    data: list,
    batchSize,
    steps: Math.round(settings.samples / batchSize),
    learningRate: 1.5e-3,
    warmup: 0.02,
    matryoshka: [64],
  }))
  console.log(`STS-B dev ${(await score(distilled)).toFixed(4)}`)
  const graded = await learn('text', async () => ({
    ...whole,
    model: distilled,
    data: stsb('train').map(({ left, right, score }) => ({ query: left, positive: right, score })),
    sampling: 'shuffled',
    loss: 'graded',
    batchSize: 64,
    epochs: settings.gradedEpochs,
    learningRate: 1e-4,
  }))
  console.log(`STS-B dev ${(await score(graded)).toFixed(4)}`)
}

if (require.main === module) main()

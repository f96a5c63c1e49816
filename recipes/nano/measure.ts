// What a model finds: retrieval both ways for every task of the study, from one pass over everything that is asked.
import { type EmbedInput, loadModel } from '../../lib'
import { documentKey } from '../../lib/train/sampler'
import { type Pair, questions } from './data'
import type { Modality } from './media'
import { reduced, settings } from './settings'
import { score } from './text'

/** Of one direction of a task: how often the right one is nearest, or among the nearest five, and how many there are to choose from. */
export interface Found {
  at1: number
  at5: number
  queries: number
  candidates: number
}

export type Measured = Record<string, Found>

const unique = (inputs: EmbedInput[]) => [...new Map(inputs.map((input) => [documentKey(input), input])).values()]

/** Several queries may have one answer (a word in three voices), and an answer may have several queries: then any of them is right. */
function found(queries: EmbedInput[], answers: EmbedInput[], vectors: Map<string, Float32Array>): Found {
  const [left, right] = [unique(queries), unique(answers)]
  const rightOf = new Map<string, Set<string>>()
  for (const [i, query] of queries.entries()) {
    const key = documentKey(query)
    rightOf.set(key, (rightOf.get(key) ?? new Set()).add(documentKey(answers[i])))
  }
  const keys = right.map(documentKey)
  const candidates = keys.map((key) => vectors.get(key)!)
  const out = { at1: 0, at5: 0, queries: left.length, candidates: right.length }
  for (const query of left) {
    const vector = vectors.get(documentKey(query))!
    const own = rightOf.get(documentKey(query))!
    const similar = candidates.map((other) => {
      let sum = 0
      for (let i = 0; i < other.length; i++) sum += other[i]! * vector[i]!
      return sum
    })
    const best = Math.max(...keys.flatMap((key, i) => (own.has(key) ? [similar[i]!] : [])))
    const before = similar.filter((value, i) => value >= best && !own.has(keys[i]!)).length
    out.at1 += Number(before < 1) / left.length
    out.at5 += Number(before < 5) / left.length
  }
  return out
}

/** Scores of all tasks, in both directions where both are asked (`task` and `task, back`). */
export async function measure(directory: string, pairs: Pair[]): Promise<Measured> {
  const vectors = new Map<string, Float32Array>()
  {
    await using model = await loadModel(directory, { dtype: 'bfloat16' })
    const hears = model.supports('audio')
    const sees = (input: EmbedInput) => typeof input === 'string' || input.audio === undefined || hears
    const inputs = unique(pairs.flatMap(({ query, positive }) => [query, positive])).filter(sees)
    const embedded = await model.embed(inputs)
    for (const [i, input] of inputs.entries())
      vectors.set(documentKey(input), (embedded.vectors as Float32Array).slice(i * embedded.dimensions, (i + 1) * embedded.dimensions))
  }
  const out: Measured = {}
  for (const task of new Set(pairs.map((pair) => pair.task))) {
    const own = pairs.filter((pair) => pair.task === task && vectors.has(documentKey(pair.query)))
    if (own.length === 0) continue
    const [queries, positives] = [own.map(({ query }) => query), own.map(({ positive }) => positive)]
    out[task] = found(queries, positives, vectors)
    out[`${task}, back`] = found(positives, queries, vectors)
  }
  return out
}

/** A table of what a model finds of the validation data of some modalities; the reduced run does not take the time. */
export async function show(directory: string, modalities: Modality[]): Promise<void> {
  if (reduced) return
  const asked = (await questions('validation', settings.words)).filter(({ modality }) => modalities.some((own) => own === modality))
  console.table(await measure(directory, asked))
}

/** Measured on test data, with STS-B beside it. */
export async function tested(directory: string, pairs: Pair[]): Promise<{ found: Measured; sts: number }> {
  return { found: await measure(directory, pairs), sts: await score(directory) }
}

export const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / Math.max(1, values.length)

/** What stands for each modality in tables and in the search: of pictures, films and pages how often the right one is among five, of words and digits how often it is first. */
export const standIn: Record<string, { tasks: string[]; at: 'at1' | 'at5' }> = {
  image: { tasks: ['emoji', 'emoji, back', 'tuxpaint', 'tuxpaint, back', 'clipart', 'clipart, back'], at: 'at5' },
  video: { tasks: ['moving emoji', 'moving emoji, back'], at: 'at5' },
  document: { tasks: ['pages'], at: 'at5' },
  audio: { tasks: ['speech', 'digits', 'noises'], at: 'at1' },
}

export function byModality(measured: Measured): Record<string, number> {
  return Object.fromEntries(
    Object.entries(standIn).flatMap(([modality, { tasks, at }]) => {
      const own = tasks.flatMap((task) => (measured[task] ? [measured[task][at]] : []))
      return own.length ? [[modality, mean(own)]] : []
    }),
  )
}

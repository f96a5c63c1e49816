// Probe data, and what a model makes of it: retrieval from queries to their positives.
import path from 'node:path'
import type { EmbedInput } from '../embed/inputs'
import { ConanError, shown } from '../errors'
import { located, rowsOf } from '../files/rows'
import type { Model } from '../model'

export interface ProbePair {
  query: EmbedInput
  positive: EmbedInput
  /** Groups the scores; default "text". */
  modality: string
}

/** Pairs {query | anchor, positive, modality?} from a file of rows, or given as rows. */
export async function readProbe(probe: string | object[]): Promise<ProbePair[]> {
  if (typeof probe !== 'string' && !Array.isArray(probe)) throw new ConanError('INVALID_OPTION', `probe: expected a file or rows, got ${shown(probe)}`)
  const rows = typeof probe === 'string' ? rowsOf(probe) : probe.map((value, i) => ({ value: value as unknown, where: `probe: row ${i}` }))
  const directory = typeof probe === 'string' ? path.dirname(probe) : undefined
  const pairs: ProbePair[] = []
  for await (const { value, where } of rows) {
    const { query, anchor, positive, modality } = (value ?? {}) as Record<string, unknown>
    const first = query ?? anchor
    if (first === undefined || positive === undefined)
      throw new ConanError('INVALID_INPUT', `${where}: expected an object with "query" (or "anchor") and "positive", got ${shown(value)}`)
    if (modality !== undefined && typeof modality !== 'string')
      throw new ConanError('INVALID_INPUT', `${where}: modality: expected a string, got ${shown(modality)}`)
    const at = (input: unknown) => located(input, directory) as EmbedInput
    pairs.push({ query: at(first), positive: at(positive), modality: modality ?? 'text' })
  }
  if (pairs.length < 2) throw new ConanError('INVALID_INPUT', `probe: expected at least two pairs, got ${pairs.length}`)
  return pairs
}

export interface RetrievalScore {
  modality: string
  pairs: number
  /** Share of queries whose positive comes first, or among the first ten, of all positives of the modality. */
  recallAt1: number
  recallAt10: number
  /** Mean of 1 / rank. */
  mrr: number
}

/** Equal texts among the positives are one and the same document. */
export async function retrieval(model: Model, pairs: ProbePair[], signal?: AbortSignal): Promise<RetrievalScore[]> {
  const options = signal ? { signal } : {}
  const scores: RetrievalScore[] = []
  for (const modality of new Set(pairs.map((pair) => pair.modality))) {
    const own = pairs.filter((pair) => pair.modality === modality)
    const documents = [...new Map(own.map(({ positive }) => [JSON.stringify(positive), positive]))]
    const places = new Map(documents.map(([key], i) => [key, i]))
    const queries = await model.embedQuery(
      own.map(({ query }) => query),
      options,
    )
    const answers = await model.embedDocument(
      documents.map(([, positive]) => positive),
      options,
    )
    const score: RetrievalScore = { modality, pairs: own.length, recallAt1: 0, recallAt10: 0, mrr: 0 }
    let place = 0
    for (const similarity of model.similarityTo(answers)(queries)) {
      const right = places.get(JSON.stringify(own[place++]!.positive))!
      const goal = similarity[right]!
      let rank = 1
      for (let document = 0; document < documents.length; document++) if (document !== right && similarity[document]! >= goal) rank++
      score.recallAt1 += Number(rank <= 1) / own.length
      score.recallAt10 += Number(rank <= 10) / own.length
      score.mrr += 1 / rank / own.length
    }
    scores.push(score)
  }
  return scores
}

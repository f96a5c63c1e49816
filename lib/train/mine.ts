// Hard negatives: documents that a model finds similar to a query although they are not its positives.
import path from 'node:path'
import type { EmbedInput } from '../embed/inputs'
import { best } from '../embed/similarity'
import { ConanError, shown } from '../errors'
import { replaceFile, requirePlace } from '../files/output'
import { type ComputeOptions, computeOptions, loadModel } from '../model'
import { pathOf, positive, requireOptions } from '../options'
import { readData, type TrainingRow } from './data'
import { distinctDocuments, documentKey } from './sampler'

export interface MineOptions extends ComputeOptions {
  /** File to write: rows {query, positive, negatives} as JSON lines. */
  out: string
  /** Negatives a row; default 4. */
  count?: number
  /** Ranks that negatives come from, counted from 1 among documents that are not positives; default 1 to 100. */
  from?: number
  to?: number
  /** Left out is what is more similar than this share of the row's own positive, since it may be one too; default 0.95. */
  relativeMargin?: number
  signal?: AbortSignal
  onProgress?: (progress: { done: number; total: number }) => void
}

export interface MineReport {
  file: string
  rows: number
  documents: number
  negatives: number
  /** Rows that got fewer than asked for. */
  short: number
}

/** Rows go into a file of text: bytes of a file as a data: URL, pixels and samples not at all. */
function lineOf(row: object): string {
  return JSON.stringify(row, function (this: Record<string, unknown>, key, value) {
    const given = this[key] // what Buffer's own toJSON has not spelled out yet
    if (!ArrayBuffer.isView(given)) return value
    if (key === 'data' || !(given instanceof Uint8Array))
      throw new ConanError('INVALID_INPUT', `${key}: expected a path, a URL or the bytes of a file, got raw numbers: rows are written as JSON lines`)
    return `data:;base64,${Buffer.from(given.buffer, given.byteOffset, given.byteLength).toString('base64')}`
  })
}

/**
 * Adds hard negatives to rows, found by `model` among the positives of all rows.
 *
 * @throws ConanError INVALID_OPTION, INVALID_INPUT, FILE_IO, and what embed throws
 */
export async function mineNegatives(model: string, data: string | object[], options: MineOptions): Promise<MineReport> {
  requireOptions(options)
  const file = path.resolve(pathOf(options.out, 'out'))
  requirePlace(file)
  const count = positive(options.count, 'count', 4)
  const from = positive(options.from, 'from', 1)
  const to = positive(options.to, 'to', 100)
  const margin = options.relativeMargin ?? 0.95
  if (to < from) throw new ConanError('INVALID_OPTION', `to: expected at least ${from}, got ${to}`)
  if (typeof margin !== 'number' || !(margin > 0))
    throw new ConanError('INVALID_OPTION', `relativeMargin: expected a positive number, got ${shown(options.relativeMargin)}`)
  const rows = (await readData(data)).flatMap(({ rows }) => rows)
  for (const { query, positives, negatives } of rows) lineOf({ query, positives, negatives }) // now, not when they have all been embedded
  const { documents, placeOf } = distinctDocuments(rows.flatMap(({ positives }) => positives))
  await using loaded = await loadModel(model, computeOptions(options))
  const common = options.signal ? { signal: options.signal } : {}
  const answers = await loaded.embedDocument(documents, common)
  const answersTo = new Map<string, Set<number>>() // a query may stand in several rows
  for (const { query, positives, negatives } of rows) {
    const key = documentKey(query)
    const known = answersTo.get(key) ?? new Set()
    for (const document of [...positives, ...negatives]) {
      const at = placeOf(document)
      if (at !== undefined) known.add(at)
    }
    answersTo.set(key, known)
  }
  const nearness = loaded.similarityTo(answers)
  const lines: string[] = []
  let negatives = 0
  let short = 0
  const block = 256
  for (let first = 0; first < rows.length; first += block) {
    const part = rows.slice(first, first + block)
    const queries = await loaded.embedQuery(
      part.map(({ query }) => query),
      common,
    )
    let place = 0
    for (const scores of nearness(queries)) {
      const row = part[place++] as TrainingRow
      const known = answersTo.get(documentKey(row.query)) as Set<number>
      const own = row.positives.map((document) => scores[placeOf(document) as number] as number)
      const limit = margin * Math.max(...own)
      const chosen = best(scores, to, limit, known).slice(from - 1, from - 1 + count)
      negatives += chosen.length
      short += chosen.length < count ? 1 : 0
      const found = chosen.map((document) => documents[document] as EmbedInput)
      const mined = {
        query: row.query,
        positive: row.positives,
        negatives: [...row.negatives, ...found],
        ...(row.score !== undefined && { score: row.score }),
      }
      lines.push(`${lineOf(mined)}\n`)
    }
    options.onProgress?.({ done: Math.min(rows.length, first + block), total: rows.length })
  }
  try {
    replaceFile(file, lines)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
  return { file, rows: rows.length, documents: documents.length, negatives, short }
}

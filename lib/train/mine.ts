// Hard negatives: documents that a model finds similar to a query although they are not its positives.

import path from 'node:path'
import type { EmbedInput } from '../embed/inputs'
import { ConanError, shown } from '../errors'
import { type LoadOptions, loadModel } from '../model'
import { positive } from '../options'
import { readData } from './data'
import { documentKey } from './sampler'
import { replaceFile } from './write'

export interface MineOptions {
  /** File to write: rows {query, positive, negatives} as JSON lines. */
  out: string
  /** Negatives a row; default 4. */
  count?: number
  /** Ranks that negatives come from, counted from 1 among documents that are not positives; default 1 to 100. */
  from?: number
  to?: number
  /** Left out is what is more similar than this share of the row's own positive, since it may be one too; default 0.95. */
  relativeMargin?: number
  dtype?: LoadOptions['dtype']
  threads?: number
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

/**
 * Adds hard negatives to rows, found by `model` among the positives of all rows.
 *
 * @throws ConanError INVALID_OPTION, INVALID_INPUT, FILE_IO, and what embed throws
 */
export async function mineNegatives(model: string, data: string | object[], options: MineOptions): Promise<MineReport> {
  const count = positive(options.count, 'count', 4)
  const from = positive(options.from, 'from', 1)
  const to = positive(options.to, 'to', 100)
  const margin = options.relativeMargin ?? 0.95
  if (to < from) throw new ConanError('INVALID_OPTION', `to: expected at least ${from}, got ${to}`)
  if (!(margin > 0)) throw new ConanError('INVALID_OPTION', `relativeMargin: expected a positive number, got ${shown(options.relativeMargin)}`)
  const rows = (await readData(data)).flatMap(({ rows }) => rows)
  const documents = new Map<string, EmbedInput>()
  for (const { positives } of rows) for (const document of positives) documents.set(documentKey(document), document)
  const keys = [...documents.keys()]
  const place = new Map(keys.map((key, i) => [key, i]))
  await using loaded = await loadModel(model, {
    ...(options.dtype && { dtype: options.dtype }),
    ...(options.threads !== undefined && { threads: options.threads }),
  })
  const common = options.signal ? { signal: options.signal } : {}
  const answers = await loaded.embedDocument([...documents.values()], common)
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
    const similarity = loaded.similarity(queries, answers)
    for (const [i, row] of part.entries()) {
      const scores = similarity.subarray(i * keys.length, (i + 1) * keys.length)
      const own = new Set(row.positives.map((document) => place.get(documentKey(document)) as number))
      const limit = margin * Math.max(...[...own].map((document) => scores[document] as number))
      const order = Array.from({ length: keys.length }, (_, document) => document)
        .filter((document) => !own.has(document) && (scores[document] as number) < limit)
        .sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b)
      const chosen = order.slice(from - 1, to).slice(0, count)
      negatives += chosen.length
      short += chosen.length < count ? 1 : 0
      const found = chosen.map((document) => documents.get(keys[document] as string) as EmbedInput)
      lines.push(
        JSON.stringify({
          query: row.query,
          positive: row.positives,
          negatives: [...row.negatives, ...found],
          ...(row.score !== undefined && { score: row.score }),
        }),
      )
    }
    options.onProgress?.({ done: Math.min(rows.length, first + block), total: rows.length })
  }
  const file = path.resolve(options.out)
  try {
    replaceFile(file, `${lines.join('\n')}\n`)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
  return { file, rows: rows.length, documents: keys.length, negatives, short }
}

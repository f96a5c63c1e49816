// The nearest of a file's vectors: by comparison with all of them, a block at a time, so that the file may be larger than memory.
import { existsSync } from 'node:fs'
import { ConanError, shown } from '../errors'
import { readJson } from '../files/json'
import { NpyReader } from '../files/npy'
import { rowsOf } from '../files/rows'
import type { EmbedOptions, EmbedResult, Model } from '../model'
import { pathOf, positive, requireOptions } from '../options'
import type { EmbedInput } from './inputs'
import { best } from './similarity'

export interface SearchVectorsOptions extends Omit<EmbedOptions, 'precision' | 'onError' | 'normalize' | 'dimensions' | 'truncateDim'> {
  /** How many are found for a query; default 10. */
  top?: number
}

export interface Hit {
  /** What the file calls the vector; without ids, the number of its row. */
  id: string
  /** By the model's own measure, larger is nearer. */
  score: number
}

export interface VectorSource {
  /** What errors call it. */
  file: string
  columns: number
  rows: number
  block(first: number, count: number): Float32Array
  /** Of some rows. */
  ids(rows: number[]): string[]
}

export function npySource(file: string): VectorSource {
  const reader = new NpyReader(file)
  const named = file.replace(/\.npy$/, '.ids.json')
  let ids: unknown
  return {
    file,
    columns: reader.columns,
    rows: reader.rows,
    block: (first, count) => reader.block(first, count),
    ids(rows) {
      if (!existsSync(named)) return rows.map(String)
      ids ??= readJson(named)
      if (!Array.isArray(ids) || ids.length !== reader.rows)
        throw new ConanError('FILE_CORRUPT', `${named}: expected ${reader.rows} ids, one for every row of ${file}, found ${shown(ids)}`)
      return rows.map((row) => String((ids as unknown[])[row]))
    },
  }
}

/** In memory. */
async function rowSource(file: string): Promise<VectorSource> {
  const ids: string[] = []
  const vectors: Float32Array[] = []
  for await (const { value, where } of rowsOf(file)) {
    const { id, embedding } = (value ?? {}) as { id?: unknown; embedding?: unknown }
    const columns = vectors[0]?.length
    if (!Array.isArray(embedding) || embedding.length === 0 || embedding.length !== (columns ?? embedding.length) || !embedding.every(Number.isFinite))
      throw new ConanError('INVALID_INPUT', `${where}: expected an object with "embedding" of ${columns ?? 'some'} numbers, got ${shown(value)}`)
    ids.push(String(id ?? vectors.length))
    vectors.push(Float32Array.from(embedding as number[]))
  }
  const columns = vectors[0]?.length ?? 0
  return {
    file,
    columns,
    rows: vectors.length,
    block(first, count) {
      const out = new Float32Array(count * columns)
      for (let i = 0; i < count; i++) out.set(vectors[first + i]!, i * columns)
      return out
    },
    ids: (rows) => rows.map((row) => ids[row]!),
  }
}

/** Numbers of a file's vectors that are in memory at one time. */
const blockNumbers = 1 << 26

/** For every query, the rows that are nearest, best first, equal ones in order. */
export function nearest(
  model: Model,
  source: VectorSource,
  queries: Pick<EmbedResult, 'vectors' | 'dimensions'>,
  top: number,
  most = Math.max(1, Math.floor(blockNumbers / source.columns)),
): { row: number; score: number }[][] {
  const found: { row: number; score: number }[][] = Array.from({ length: queries.vectors.length / queries.dimensions }, () => [])
  for (let first = 0; first < source.rows; first += most) {
    const block = { vectors: source.block(first, Math.min(most, source.rows - first)), dimensions: source.columns }
    let query = 0
    for (const scores of model.similarityTo(block)(queries)) {
      const own = best(scores, top).map((place) => ({ row: first + place, score: scores[place]! }))
      found[query] = [...found[query]!, ...own].sort((a, b) => b.score - a.score || a.row - b.row).slice(0, top)
      query++
    }
  }
  return found
}

/** @internal A file of vectors, for any number of searches. */
export async function openVectors(file: string): Promise<VectorSource> {
  return /\.(jsonl|parquet)$/.test(pathOf(file, 'file')) ? rowSource(file) : npySource(file)
}

/** @internal searchVectors in a file whose form is known. */
export async function searchSource(model: Model, source: VectorSource, queries: EmbedInput | EmbedInput[], options: SearchVectorsOptions): Promise<Hit[][]> {
  requireOptions(options)
  const { top: asked, ...rest } = options
  const top = positive(asked, 'top', 10)
  const { file, rows, columns } = source
  if (rows === 0) throw new ConanError('INVALID_INPUT', `${file}: expected vectors, found none`)
  const { dimensions } = model.info
  if (columns > dimensions) throw new ConanError('INVALID_INPUT', `${file}: expected vectors of at most the model's ${dimensions} dimensions, found ${columns}`)
  const vectors = await model.embedQuery(queries, { ...rest, dimensions: columns })
  return nearest(model, source, vectors, top).map((hits) => {
    const ids = source.ids(hits.map(({ row }) => row))
    return hits.map(({ score }, i) => ({ id: ids[i]!, score }))
  })
}

/**
 * For every query the nearest vectors of a file that `conan-embed embed --out` made: .npy of float32 (with `<name>.ids.json` beside it), or
 * .jsonl or .parquet of {id, embedding}. Queries get the model's prompt "query", where it has one, and as many dimensions as the file has.
 *
 * @throws ConanError INVALID_OPTION, INVALID_INPUT, FILE_IO, FILE_CORRUPT, and what embed throws
 */
export async function searchVectors(model: Model, file: string, queries: EmbedInput | EmbedInput[], options: SearchVectorsOptions = {}): Promise<Hit[][]> {
  return searchSource(model, await openVectors(file), queries, options)
}

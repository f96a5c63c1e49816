// Which rows make a batch. The same seed gives the same batches, and a run that goes on skips as many as it has used.
import { createHash } from 'node:crypto'
import type { EmbedInput } from '../embed/inputs'
import type { Dataset, TrainingRow } from './data'

export type Sampling = 'shuffled' | 'proportional' | 'weighted' | 'equal'

export interface SamplerOptions {
  batchSize: number
  /**
   * How often a dataset is drawn from: all rows of all once an epoch ('shuffled'), by its number of rows, by its weight, or equally by
   * modality.
   */
  sampling: Sampling
  /** All rows of a batch from one dataset, so that negatives are of one kind. */
  oneDatasetPerBatch: boolean
  seed: number
}

export interface SampledBatch {
  rows: TrainingRow[]
  /** Undefined: from several datasets. */
  dataset: Dataset | undefined
}

/** Numbers in [0, 1) (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** What tells one document from another; of bytes and samples their digest. */
export const documentKey = (input: unknown): string =>
  typeof input === 'string'
    ? input
    : JSON.stringify(input, function (this: Record<string, unknown>, key, value) {
        const given = this[key] // what Buffer's own toJSON has not spelled out yet
        if (typeof given === 'bigint') return `${given}n`
        return ArrayBuffer.isView(given)
          ? createHash('sha1')
              .update(new Uint8Array(given.buffer, given.byteOffset, given.byteLength))
              .digest('base64')
          : value
      })

/** Every document once, in the order in which they first come, and where an input stands among them. */
export function distinctDocuments(inputs: EmbedInput[]): { documents: EmbedInput[]; placeOf: (input: EmbedInput) => number | undefined } {
  const documents: EmbedInput[] = []
  const places = new Map<string, number>()
  for (const input of inputs) {
    const key = documentKey(input)
    if (!places.has(key)) places.set(key, documents.push(input) - 1)
  }
  return { documents, placeOf: (input) => places.get(documentKey(input)) }
}

/** Rows of one dataset in ever new order. */
class Deck {
  private order: number[] = []
  private readonly held: TrainingRow[] = []

  constructor(
    private readonly rows: TrainingRow[],
    private readonly random: () => number,
  ) {}

  /** The next row that none of `keys` belongs to; rows that had to wait come first. Null where all rows clash. */
  next(clashes: (row: TrainingRow) => boolean): TrainingRow | undefined {
    const waiting = this.held.findIndex((row) => !clashes(row))
    if (waiting >= 0) return this.held.splice(waiting, 1)[0]
    for (let tries = 0; tries < 2 * this.rows.length; tries++) {
      if (this.order.length === 0) this.order = this.shuffled()
      const row = this.rows[this.order.pop() as number] as TrainingRow
      if (!clashes(row)) return row
      if (this.held.length < this.rows.length) this.held.push(row)
    }
    return undefined
  }

  private shuffled(): number[] {
    const order = this.rows.map((_, i) => i)
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(this.random() * (i + 1))
      ;[order[i], order[j]] = [order[j] as number, order[i] as number]
    }
    return order
  }
}

export class Sampler {
  private readonly random: () => number
  private readonly decks: Deck[]
  private readonly shares: number[]

  constructor(
    private readonly datasets: Dataset[],
    private readonly options: SamplerOptions,
  ) {
    this.random = randomNumbers(options.seed)
    const merge = options.sampling === 'shuffled' && !options.oneDatasetPerBatch
    const groups = merge ? [datasets.flatMap(({ rows }) => rows)] : datasets.map(({ rows }) => rows)
    this.decks = groups.map((rows) => new Deck(rows, this.random))
    const modalities = new Set(datasets.map(({ modality }) => modality)).size
    const share = (dataset: Dataset) => {
      if (options.sampling === 'weighted') return dataset.weight
      if (options.sampling !== 'equal') return dataset.rows.length
      return 1 / modalities / datasets.filter(({ modality }) => modality === dataset.modality).length
    }
    this.shares = merge ? [1] : datasets.map(share)
  }

  /** No document comes twice in a batch as somebody's positive. Smaller than asked for where there are too few rows. */
  next(): SampledBatch {
    const { batchSize, oneDatasetPerBatch } = this.options
    const rows: TrainingRow[] = []
    const taken = new Set<string>()
    const clashes = (row: TrainingRow) => row.positives.some((positive) => taken.has(documentKey(positive)))
    const one = oneDatasetPerBatch || this.datasets.length === 1 ? this.draw() : undefined
    for (let misses = 0; rows.length < batchSize && misses < 8 * this.decks.length; ) {
      const row = (this.decks[one ?? this.draw()] as Deck).next(clashes)
      if (!row) {
        misses++
        if (one !== undefined) break
        continue
      }
      rows.push(row)
      for (const positive of row.positives) taken.add(documentKey(positive))
    }
    return { rows, dataset: one === undefined ? undefined : this.datasets[one] }
  }

  private draw(): number {
    const total = this.shares.reduce((a, b) => a + b, 0)
    let at = this.random() * total
    for (const [i, share] of this.shares.entries()) {
      at -= share
      if (at < 0) return i
    }
    return this.shares.length - 1
  }
}

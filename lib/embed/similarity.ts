// How near vectors are to each other, all of one list to all of another.
import { binding } from '../binding'
import { ConanError, shown } from '../errors'
import type { Similarity } from '../files/model-directory'

export interface VectorList {
  vectors: Float32Array
  dimensions: number
}

function filled(measure: Similarity, a: Float32Array, b: Float32Array, dimensions: number, threads: number, out: Float32Array): Float32Array {
  binding().similarities(measure, a, b, out, dimensions, threads)
  return out
}

function room(rows: number, cols: number): Float32Array {
  try {
    return new Float32Array(rows * cols)
  } catch (error) {
    throw new ConanError('OUT_OF_MEMORY', `similarity: no memory for ${rows} x ${cols} numbers`, { cause: error })
  }
}

/** @throws ConanError INVALID_INPUT where they are no vectors of equal dimensions */
export function checkedVectors(a: unknown, b: unknown): [VectorList, VectorList] {
  const lists = [a, b].map((list) => {
    const { vectors, dimensions } = (list ?? {}) as Partial<VectorList>
    if (!(vectors instanceof Float32Array)) throw new ConanError('INVALID_INPUT', `similarity: expected float32 vectors, got ${shown(vectors)}`)
    if (!Number.isInteger(dimensions) || (dimensions as number) < 1 || vectors.length % (dimensions as number))
      throw new ConanError('INVALID_INPUT', `similarity: expected dimensions that divide the ${vectors.length} numbers, got ${shown(dimensions)}`)
    return { vectors, dimensions } as VectorList
  }) as [VectorList, VectorList]
  if (lists[0].dimensions !== lists[1].dimensions)
    throw new ConanError('INVALID_INPUT', `similarity: expected vectors of equal dimensions, got ${lists[0].dimensions} and ${lists[1].dimensions}`)
  return lists
}

/** [a's rows, b's rows], see native/models/similarity.h. */
export function similarities(measure: Similarity, a: VectorList, b: VectorList, threads: number): Float32Array {
  const d = a.dimensions
  return filled(measure, a.vectors, b.vectors, d, threads, room(a.vectors.length / d, b.vectors.length / d))
}

/**
 * The same of any number of lists with one and the same b, row by row, of which some are there at a time: a row is good until the next is
 * asked for.
 */
export function similarityTo(measure: Similarity, b: VectorList, threads: number): (a: VectorList) => Generator<Float32Array> {
  const d = b.dimensions
  const cols = b.vectors.length / d
  let block: Float32Array = new Float32Array(0) // fresh memory costs as much time as what goes into it
  return function* (a) {
    const rows = a.vectors.length / d
    const most = Math.min(rows, 512, Math.max(1, Math.floor(2 ** 24 / cols)))
    if (block.length < most * cols) block = room(most, cols)
    for (let first = 0; first < rows; first += most) {
      const count = Math.min(most, rows - first)
      const out = filled(measure, a.vectors.subarray(first * d, (first + count) * d), b.vectors, d, threads, block.subarray(0, count * cols))
      for (let i = 0; i < count; i++) yield out.subarray(i * cols, (i + 1) * cols)
    }
  }
}

/** Places of the highest scores, best first, equal ones in order: of those below `below` and not in `except`. */
export function best(scores: Float32Array, count: number, below = Number.POSITIVE_INFINITY, except?: ReadonlySet<number>): number[] {
  const found: number[] = []
  let least = Number.NEGATIVE_INFINITY // of the found, once they are as many as asked for
  for (let place = 0; place < scores.length; place++) {
    const score = scores[place] as number
    if (score <= least || score >= below || except?.has(place)) continue
    let at = found.length < count ? found.length : count - 1
    for (; at > 0 && (scores[found[at - 1] as number] as number) < score; at--) found[at] = found[at - 1] as number
    found[at] = place
    if (found.length === count) least = scores[found[count - 1] as number] as number
  }
  return found
}

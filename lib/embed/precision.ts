// Smaller forms of finished vectors.
import { ConanError } from '../errors'

export type Precision = 'float32' | 'int8' | 'uint8' | 'binary' | 'ubinary'
export type Vectors = Float32Array | Int8Array | Uint8Array

export const precisions: readonly Precision[] = ['float32', 'int8', 'uint8', 'binary', 'ubinary']

/** Elements of one stored vector of `dimensions`. */
export function storedLength(precision: Precision, dimensions: number): number {
  return precision.endsWith('binary') ? dimensions / 8 : dimensions
}

export function allocate(precision: Precision, vectors: number, dimensions: number): Vectors {
  if (precision.endsWith('binary') && dimensions % 8 !== 0)
    throw new ConanError('INVALID_OPTION', `precision ${precision}: expected a number of dimensions that 8 divides, got ${dimensions}`)
  const length = vectors * storedLength(precision, dimensions)
  if (precision === 'float32') return new Float32Array(length)
  return precision === 'int8' || precision === 'binary' ? new Int8Array(length) : new Uint8Array(length)
}

/**
 * Writes rows of `values` [n, dimensions] into `out` from row `first` on.
 *
 * - int8, uint8: each vector is scaled so that its largest component is 127 (uint8: shifted by 128). Cosine similarity
 *   survives, lengths do not, and no vector depends on others, as ranges over a batch would make it.
 * - binary, ubinary: one bit per component, 1 where it is > 0, first component in the highest bit, as numpy's packbits;
 *   binary is ubinary - 128, as in sentence-transformers.
 */
export function store(values: Float32Array, dimensions: number, precision: Precision, out: Vectors, first: number): void {
  if (precision === 'float32') {
    out.set(values, first * dimensions)
    return
  }
  const rows = values.length / dimensions
  const length = storedLength(precision, dimensions)
  for (let row = 0; row < rows; row++) {
    const vector = values.subarray(row * dimensions, (row + 1) * dimensions)
    const at = (first + row) * length
    if (precision.endsWith('binary')) {
      for (let i = 0; i < length; i++) {
        let bits = 0
        for (let k = 0; k < 8; k++) bits = (bits << 1) | ((vector[i * 8 + k] as number) > 0 ? 1 : 0)
        out[at + i] = precision === 'binary' ? bits - 128 : bits
      }
    } else {
      let most = 0
      for (const x of vector) most = Math.max(most, Math.abs(x))
      const scale = most > 0 ? 127 / most : 0
      const shift = precision === 'uint8' ? 128 : 0
      for (let i = 0; i < dimensions; i++) out[at + i] = Math.round((vector[i] as number) * scale) + shift
    }
  }
}

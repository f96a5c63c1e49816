// A teacher's vectors of many texts, turned so that the first components say most and cut to the size of the student: the axes of largest
// second moment, about the origin, so that cosines stay what they were.
import { existsSync, renameSync, writeFileSync } from 'node:fs'
import { loadModel, type Model } from '../../lib'
import { NpyReader, NpyWriter } from '../../lib/files/npy'

/** Eigenvectors of a symmetric matrix by falling eigenvalue (cyclic Jacobi rotations), one a row. */
export function eigenvectors(matrix: Float64Array, n: number): { values: number[]; vectors: Float64Array } {
  const a = matrix.slice()
  const v = Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)) // rows
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) off += a[i * n + j]! ** 2
    let diagonal = 0
    for (let i = 0; i < n; i++) diagonal += a[i * n + i]! ** 2
    if (off < 1e-20 * diagonal) break
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        const apq = a[p * n + q]!
        if (Math.abs(apq) < 1e-300) continue
        const theta = (a[q * n + q]! - a[p * n + p]!) / (2 * apq)
        const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1))
        const c = 1 / Math.sqrt(t * t + 1)
        const s = t * c
        for (let k = 0; k < n; k++) {
          const [x, y] = [a[p * n + k]!, a[q * n + k]!]
          a[p * n + k] = c * x - s * y
          a[q * n + k] = s * x + c * y
        }
        for (let k = 0; k < n; k++) {
          const [x, y] = [a[k * n + p]!, a[k * n + q]!]
          a[k * n + p] = c * x - s * y
          a[k * n + q] = s * x + c * y
        }
        for (let k = 0; k < n; k++) {
          const [x, y] = [v[p * n + k]!, v[q * n + k]!]
          v[p * n + k] = c * x - s * y
          v[q * n + k] = s * x + c * y
        }
      }
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((x, y) => a[y * n + y]! - a[x * n + x]!)
  const vectors = new Float64Array(n * n)
  for (const [row, i] of order.entries()) vectors.set(v.subarray(i * n, (i + 1) * n), row * n)
  return { values: order.map((i) => a[i * n + i]!), vectors }
}

export class Teacher {
  private constructor(
    private readonly model: Model,
    private readonly axes: Float64Array,
    readonly dimensions: number,
  ) {}

  /** The axes are those of the texts of `sample`, and are kept in a file: all stages need the same. */
  static async open(directory: string, file: string, sample: () => string[], dimensions: number): Promise<Teacher> {
    const model = await loadModel(directory, { dtype: 'bfloat16' })
    const n = model.info.dimensions
    if (!existsSync(file)) {
      const list = sample()
      const { vectors } = await model.embed(list)
      const moments = new Float64Array(n * n)
      for (let i = 0; i < list.length; i++)
        for (let x = 0; x < n; x++) {
          const value = vectors[i * n + x]!
          for (let y = 0; y < n; y++) moments[x * n + y]! += value * vectors[i * n + y]!
        }
      const { values, vectors: axes } = eigenvectors(moments, n)
      const total = values.reduce((a, b) => a + b, 0)
      console.log(
        `teacher: ${dimensions} of ${n} axes keep ${((100 * values.slice(0, dimensions).reduce((a, b) => a + b, 0)) / total).toFixed(1)} % of the squared lengths`,
      )
      const writer = new NpyWriter(file)
      for (let d = 0; d < dimensions; d++) writer.write(Float32Array.from(axes.subarray(d * n, (d + 1) * n)))
      writer.finish()
    }
    const reader = new NpyReader(file)
    const axes = new Float64Array(dimensions * n)
    for (let d = 0; d < dimensions; d++) axes.set(reader.row(d), d * n)
    return new Teacher(model, axes, dimensions)
  }

  async vectors(texts: string[]): Promise<Float32Array[]> {
    const { vectors, dimensions: n } = await this.model.embed(texts)
    return texts.map((_, i) => {
      const out = new Float32Array(this.dimensions)
      for (let d = 0; d < out.length; d++) {
        let sum = 0
        for (let c = 0; c < n; c++) sum += this.axes[d * n + c]! * vectors[i * n + c]!
        out[d] = sum
      }
      return out
    })
  }

  /** Writes `<stem>.jsonl` with {query} and `<stem>.npy` with the vectors, unless both are there. */
  async write(stem: string, texts: string[], rows: object[] = texts.map((query) => ({ query }))): Promise<{ path: string; vectors: string }> {
    const files = { path: `${stem}.jsonl`, vectors: `${stem}.npy` }
    if (existsSync(files.path) && existsSync(files.vectors)) {
      if (new NpyReader(files.vectors).rows === texts.length) return files
    }
    const writer = new NpyWriter(files.vectors)
    for (let i = 0; i < texts.length; i += 4096) for (const vector of await this.vectors(texts.slice(i, i + 4096))) writer.write(vector)
    writer.finish()
    writeFileSync(`${files.path}.tmp`, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
    renameSync(`${files.path}.tmp`, files.path)
    return files
  }

  dispose(): Promise<void> {
    return this.model.dispose()
  }
}

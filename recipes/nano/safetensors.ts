// Writes a checkpoint of f32 tensors.
import { renameSync, writeFileSync } from 'node:fs'

export interface Tensor {
  shape: number[]
  values: Float32Array
}

export function writeCheckpoint(file: string, tensors: Record<string, Tensor>): void {
  let at = 0
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  for (const [name, { shape, values }] of Object.entries(tensors)) {
    header[name] = { dtype: 'F32', shape, data_offsets: [at, at + values.byteLength] }
    at += values.byteLength
  }
  const json = Buffer.from(JSON.stringify(header))
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, ' ')])
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(padded.length))
  writeFileSync(
    `${file}.tmp`,
    Buffer.concat([size, padded, ...Object.values(tensors).map(({ values }) => Buffer.from(values.buffer, values.byteOffset, values.byteLength))]),
  )
  renameSync(`${file}.tmp`, file)
}

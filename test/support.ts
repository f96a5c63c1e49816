// What tests share: fixtures, a plain safetensors reader and writer, comparison of vectors, where the real weights are.
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after } from 'node:test'
import { devices } from '../lib'
import type { NativePatches, NativeStep } from '../lib/binding'

export const root = path.resolve(__dirname, '..')
export const fixtures = path.join(__dirname, 'fixtures')
export const pico = (name: string) => path.join(fixtures, 'pico', name)

/**
 * For tests of the CUDA backend: 'cuda' is the first GPU where there is one, else the emulation that npm test builds, which runs the same
 * kernels on the CPU. `skip` says why there is neither.
 */
export function cuda(): { device: string; skip: string | false; emulated: boolean } {
  const emulated = path.join(root, 'build/native-tests/libconan-cuda-emulated.so')
  const real = devices().some((report) => 'gpu' in report)
  if (!real && existsSync(emulated)) process.env.CONAN_CUDA_LIBRARY = emulated
  return { device: 'cuda', skip: real || existsSync(emulated) ? false : `no GPU, and no emulation in ${emulated}`, emulated: !real }
}

export interface Tensor {
  dtype: string
  shape: number[]
  data: Buffer
}

export function readSafetensors(file: string): Map<string, Tensor> {
  const bytes = readFileSync(file)
  const header = Number(bytes.readBigUInt64LE(0))
  const entries = JSON.parse(bytes.toString('utf8', 8, 8 + header)) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>
  const tensors = new Map<string, Tensor>()
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(entries))
    if (name !== '__metadata__') tensors.set(name, { dtype, shape, data: bytes.subarray(8 + header + data_offsets[0], 8 + header + data_offsets[1]) })
  return tensors
}

export function writeSafetensors(file: string, tensors: Map<string, Tensor>, metadata?: Record<string, string>): void {
  const header: Record<string, unknown> = { ...(metadata && { __metadata__: metadata }) }
  let at = 0
  for (const [name, { dtype, shape, data }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + data.length] }
    at += data.length
  }
  const json = Buffer.from(JSON.stringify(header).padEnd(Math.ceil(JSON.stringify(header).length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  writeFileSync(file, Buffer.concat([length, json, ...[...tensors.values()].map((t) => t.data)]))
}

export function floats({ data }: Tensor): Float32Array {
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length))
}

export function ints({ data }: Tensor): Int32Array {
  return new Int32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length))
}

/** A directory that goes away after the test file. */
export function temporary(): string {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'conan-test-'))
  after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** A copy of a model directory that a test may spoil. */
export function copyOf(model: string): string {
  const directory = path.join(temporary(), 'model')
  cpSync(model, directory, { recursive: true })
  return directory
}

export function editJson(file: string, edit: (json: Record<string, unknown>) => void): void {
  const json = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
  edit(json)
  writeFileSync(file, JSON.stringify(json))
}

export function editTensors(directory: string, edit: (tensors: Map<string, Tensor>) => void): void {
  const file = path.join(directory, 'model.safetensors')
  const tensors = new Map([...readSafetensors(file)].map(([name, tensor]) => [name, { ...tensor, data: Buffer.from(tensor.data) }]))
  edit(tensors)
  writeSafetensors(file, tensors)
}

/** Smallest cosine between equal rows. */
export function worstCosine(a: ArrayLike<number>, b: ArrayLike<number>, columns: number): number {
  let worst = 1
  for (let row = 0; row * columns < b.length; row++) {
    let ab = 0
    let aa = 0
    let bb = 0
    for (let k = row * columns; k < (row + 1) * columns; k++) {
      const x = a[k] as number
      const y = b[k] as number
      ab += x * y
      aa += x * x
      bb += y * y
    }
    const cosine = ab / Math.sqrt(aa * bb)
    if (!(cosine >= worst)) worst = cosine
  }
  return worst
}

/** Patches as the numbers that a tower is to see; `plane`: those of a channel. */
export function numbersOf(pieces: NativePatches[], plane: number): Float32Array {
  const { fround } = Math
  return Float32Array.from(
    pieces.flatMap((piece) => {
      if (piece instanceof Float32Array) return [...piece]
      const { bytes, mean, deviation } = piece
      return Array.from(bytes, (byte, i) => {
        const channel = Math.floor(i / plane) % 3
        return fround(fround(fround(byte / 255) - fround(mean[channel]!)) / fround(deviation[channel]!))
      })
    }),
  )
}

export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let most = a.length === b.length ? 0 : Number.POSITIVE_INFINITY
  for (let i = 0; i < b.length; i++) {
    const d = Math.abs((a[i] as number) - (b[i] as number))
    if (!(d <= most)) most = d
  }
  return most
}

/** A step on the batch of the golden gradients: sequence 0 looks for 2, and 3 for 1, in both directions. Without a learning rate nothing is updated. */
export function contrastiveStep(learningRate = 0): string {
  return JSON.stringify({
    learningRate,
    weight: 1,
    update: learningRate > 0,
    matryoshka: { dimensions: [], weights: [] },
    contrastive: { queries: [0, 3], documents: [2, 1], positives: [[0], [1]], temperature: 0.1, bothDirections: true, margin: -1 },
  } satisfies NativeStep)
}

/** Where real weights and data sets are; a test that needs them skips with this reason where they are absent. */
export const dataDirectory = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(root, '..', 'shared', 'data'))
export function needs(relative: string): { skip: string | false } {
  return { skip: existsSync(path.join(dataDirectory, relative)) ? false : `no ${relative} in ${dataDirectory} (set CONAN_TEST_DATA)` }
}

/** Tolerances of parity with PyTorch in one place. */
export const tolerance = {
  float32: { cosine: 0.99999, vector: 2e-5 },
  bfloat16: { cosine: 0.999 },
  int8: { cosine: 0.98 },
}

// Finds and loads the native addon; the only file that touches it. NativeBinding lists every function it exports.
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { ConanError } from './errors'
import type { Similarity } from './files/model-directory'

declare const handleBrand: unique symbol
/** A model inside the addon. */
export interface NativeModel {
  readonly [handleBrand]: true
}

declare const tokenBrand: unique symbol
export interface NativeCancelToken {
  readonly [tokenBrand]: true
}

export interface NativeDense {
  directory: string
  inputs: number
  outputs: number
  bias: boolean
  activation: string
}

export interface NativeLoadOptions {
  directory: string
  adapters: string[]
  dtype: string
  /** 0: as many as the process may use. */
  threads: number
  /** "cpu" (the default), "cuda" or "cuda:N". */
  device?: string
  pooling: string
  dense: NativeDense[]
  /** A NativeTrainingPlan as JSON: the model is loaded to be trained. */
  training?: string
}

export interface NativeTrainingPlan {
  /** Tensors that train whole, and those that train by a product of low rank. */
  dense: string[]
  lowRank: { tensor: string; rank: number; scale: number }[]
  dropout?: number
  seed: number
  optimizer: { beta1?: number; beta2?: number; epsilon?: number; weightDecay?: number; clip?: number; anchor?: number; activationBytes?: number }
}

/** Sequences that go through the model together; must not change while the call runs. */
export interface NativeChunk {
  ids: Int32Array
  offsets: Int32Array
  media?: NativeMedia | undefined
}

/** Rows count the sequences of all chunks. */
export interface NativeStep {
  learningRate: number
  /** Factor of this batch's gradient, and whether the weights change now. */
  weight: number
  update: boolean
  /** Chunks of no more tokens than this together go through the model once; default: one chunk at a time. */
  chunkTokens?: number
  matryoshka: { dimensions: number[]; weights: number[] }
  contrastive?: { queries: number[]; documents: number[]; positives: number[][]; temperature: number; bothDirections: boolean; margin: number }
  graded?: { left: number[]; right: number[]; grades: number[]; scale: number }
  distillation?: { rows: number[]; relations: number }
}

/** Numbers, or colours: of channel c, (byte / 255 - mean[c]) / deviation[c] are the numbers. */
export type NativePatches = Float32Array | { bytes: Uint8Array; mean: number[]; deviation: number[] }

/** Pictures of a batch in the order of their placeholder tokens; must not change while the call runs. */
export interface NativePictures {
  /** [patches, channels * temporal * patch * patch] of some of them, one behind the other, blocks of merge x merge patches together. */
  patches: NativePatches[]
  /** Rows and columns of patches of each. */
  grids: Int32Array
}

/** Clips of a batch in the order of their placeholder tokens; must not change while the call runs. */
export interface NativeSounds {
  /** Log-mel frames [frames, bins], clip after clip. */
  features: Float32Array
  /** Frames of each clip. */
  frames: Int32Array
  /** The features are what encodeSounds made of the frames, [tokens, audioFeatures], and `frames` count those. */
  encoded?: boolean
}

/** What a batch holds beside text. */
export interface NativeMedia {
  pictures?: NativePictures | undefined
  sounds?: NativeSounds | undefined
}

export interface NativeMelLayout {
  rate: number
  window: number
  hop: number
  bins: number
}

export interface NativePatchLayout {
  toWidth: number
  toHeight: number
  patch: number
  temporalPatch: number
  merge: number
}

export interface NativeModelInfo {
  modelType: string
  hiddenSize: number
  layers: number
  vocabularySize: number
  maxPositions: number
  /** Token ids that stand for pictures; null where the model is of text alone. */
  imageToken: number | null
  videoToken: number | null
  /** Token id that stands for a feature of a sound, and mel bins of its frames; null where the model takes no sound. */
  audioToken: number | null
  melBins: number | null
  /** Channels of the encoder's features. */
  audioFeatures: number | null
  dimensions: number
  dtype: string
  checkpointDtype: string
  backend: string
  threads: number
  memoryBytes: number
  unusedTensors: string[]
}

export interface CpuReport {
  isa: string
  bf16Kernel: string
  int8Kernel: string
  f32Gflops: number
  bf16DotGflops: number
  threads: number
}

export interface GpuReport {
  /** "cuda:0"; empty: there is none, and `name` says why. */
  device: string
  name: string
  /** Bytes. */
  memory: number
  /** Compute capability, such as 9. */
  capability: number
}

export interface NativeBinding {
  load(options: NativeLoadOptions): Promise<NativeModel>
  /** Sequence b is ids[offsets[b] .. offsets[b + 1]). Resolves to [B * dimensions], row-major. */
  embed(model: NativeModel, ids: Int32Array, offsets: Int32Array, normalize: boolean, dimensions: number, media?: NativeMedia): Promise<Float32Array>
  /** Hidden states [T * hidden] before the first layer, after each, and after the final norm. For tests. */
  hiddenStates(model: NativeModel, ids: Int32Array, offsets: Int32Array, media?: NativeMedia): Promise<Float32Array[]>
  /** Of the vision tower: patches before the first block, after each, then tokens, then deepstack features. For tests. */
  visionStates(model: NativeModel, media: NativeMedia): Promise<Float32Array[]>
  /** Of the encoder of sound: before the first block, after each, then its features, then projected. For tests. */
  audioStates(model: NativeModel, media: NativeMedia): Promise<Float32Array[]>
  /** What the encoder makes of clips, [tokens, audioFeatures]. */
  encodeSounds(model: NativeModel, media: NativeMedia): Promise<Float32Array>
  /** Tokens that stand for clips of so many frames. */
  audioTokens(model: NativeModel, frames: Int32Array): Int32Array
  /** One step of training, `step` is a NativeStep as JSON, `teacher` the vectors of distillation.rows, one behind the other. */
  trainStep(model: NativeModel, chunks: NativeChunk[], step: string, teacher?: Float32Array): Promise<{ loss: number; gradientNorm: number }>
  /** 'state': all that is needed to go on; 'tensors': the trained tensors alone. Safetensors. */
  saveTraining(model: NativeModel, file: string, what: 'state' | 'tensors'): Promise<void>
  loadTraining(model: NativeModel, file: string): Promise<void>
  /** Gradients by parameter, of steps without update. For tests. */
  gradients(model: NativeModel): Record<string, Float32Array>
  cancel(model: NativeModel): void
  dispose(model: NativeModel): void
  modelInfo(model: NativeModel): NativeModelInfo
  /** `out` [a's rows, b's rows] becomes the similarities, see native/models/similarity.h; on the CPU, by `threads` or, of 0, by as many as there are. */
  similarities(measure: Similarity, a: Float32Array, b: Float32Array, out: Float32Array, dimensions: number, threads: number): void
  /** JSON, see native/models/inspect.h. */
  inspect(directory: string): string
  cpu(): CpuReport
  gpus(): GpuReport[]
  /** RGB frames [height, width, 3], resampled and cut into patches; fewer frames than temporalPatch: the last is repeated. */
  patches(frames: Uint8Array[], width: number, height: number, layout: NativePatchLayout): Promise<Uint8Array>
  /** [ceil(n * to / from)], see native/media/audio.h. */
  resample(samples: Float32Array, from: number, to: number): Promise<Float32Array>
  /** [frames, bins], see native/media/audio.h. */
  logMel(samples: Float32Array, layout: NativeMelLayout): Promise<Float32Array>
  cancelToken(): NativeCancelToken
  /** Long work that was given this token ends with ABORTED. */
  stop(token: NativeCancelToken): void
  /** JSON [{name, dtype, shape, file}] of model.safetensors or its shards, in the order of the files. */
  checkpoint(directory: string): string
  // Plans and what they resolve to are JSON, see native/merge/fuse.h and geometry.h.
  geometry(plan: string, token: NativeCancelToken, onProgress: (done: number, total: number) => void): Promise<string>
  extractLora(plan: string, token: NativeCancelToken, onProgress: (done: number, total: number) => void): Promise<string>
  fuse(plan: string, token: NativeCancelToken, onProgress: (doneBytes: number, totalBytes: number) => void): Promise<string>
}

/** The directory of this package: where package.json, build/ and prebuilds/ are. */
export function packageRoot(): string {
  let directory = __dirname
  while (true) {
    const file = path.join(directory, 'package.json')
    if (existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).name === 'conan-embedding') return directory
    const parent = path.dirname(directory)
    if (parent === directory)
      throw new ConanError(
        'ADDON_MISSING',
        `package.json of conan-embedding: expected above ${__dirname}, found none (bundlers have to leave this package external)`,
      )
    directory = parent
  }
}

export const packageVersion = (): string => JSON.parse(readFileSync(path.join(packageRoot(), 'package.json'), 'utf8')).version

let loaded: NativeBinding | undefined

export function binding(): NativeBinding {
  if (loaded) return loaded
  const root = packageRoot()
  const require = createRequire(path.join(root, 'package.json'))
  try {
    loaded = (require('node-gyp-build') as (root: string) => NativeBinding)(root)
  } catch (error) {
    throw new ConanError(
      'ADDON_MISSING',
      `the native addon for ${process.platform}-${process.arch} cannot be loaded: ${(error as Error).message.split('\n')[0]}\n` +
        `Expected a prebuilt one in ${path.join(root, 'prebuilds')} or one built in ${path.join(root, 'build')}. ` +
        'To build it: a C++20 compiler, CMake, and `npm run build:native` in that directory, or `npx node-gyp rebuild`.',
      { cause: error },
    )
  }
  return loaded
}

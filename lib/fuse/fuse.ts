// fuse(): a recipe becomes a model directory. The work is planned in TypeScript (plan.ts) and carried out natively; here is
// what stands around it: the place it is built in, the other files of the directory, the manifest.

import { createHash } from 'node:crypto'
import { copyFileSync, createReadStream, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { packageVersion } from '../binding'
import { ConanError, shown } from '../errors'
import { asFileError, publish, requireFree, stampOf } from '../files/output'
import { pathOf, requireOptions, threadsOf } from '../options'
import { runPlan } from './native'
import { sizeOf, weightsFolder } from './parents'
import { type Fate, type FusePlan, type PlannedTensor, planFusion } from './plan'
import { type Recipe, readRecipe, readRecipeFile } from './recipe'

export interface FuseOptions {
  /** Directory to make; it must not exist, or be empty. */
  out: string
  /** What relative paths of a recipe given as an object are relative to; default: the working directory. */
  directory?: string
  /** Largest weight file, in bytes or as "5GB"; default "5GB". A larger tensor has a file of its own. */
  outShardSize?: number | string
  /** Default: as many as the process may use. */
  threads?: number
  /**
   * 'cpu', the default, 'cuda' or 'cuda:N': where the last pass of bfloat16 runs, with the same bytes. Every weight then crosses the bus twice,
   * which pays where the CPU has few cores.
   */
  device?: string
  /** Add the SHA-256 of every weight file to the manifest (reads the output once more); default false. */
  sha256?: boolean
  /** Plan and check everything, write nothing. */
  dryRun?: boolean
  signal?: AbortSignal
  onProgress?: (progress: { doneBytes: number; totalBytes: number }) => void
}

export interface ManifestTensor {
  name: string
  shape: number[]
  dtype: string
  action: 'merge' | 'copy' | 'keep'
  /** Who it was made from, with which coefficients; norm of the task vector (of the tensor itself where there is no base). */
  parents: { model: string; tensor: string; parameters: Record<string, number | boolean>; norm?: number }[]
  /** Rows that were copied from elsewhere. */
  rows?: { row: number; from: string; sourceRow: number }[]
  /** Share of the entries where the task vectors point both ways. */
  signConflicts?: number
  /** Of the tensor's bytes; native/merge/kernels.inl says how. */
  checksum?: string
}

export interface FusionManifest {
  format: 1
  generator: string
  recipe: unknown
  method: string
  formula: string
  source: string
  seed: number
  filesFrom: string
  parents: {
    model: string
    directory: string
    adapters: string[]
    isBase: boolean
    files: { name: string; bytes: number }[]
    /** How many of its tensors went where; `dropped` and `replaced` by name below. */
    tensors: Record<Fate, number>
    dropped: string[]
    /** Tensors whose place in the output was filled from elsewhere. */
    replaced: string[]
    /** Of its whole task vector, over merged tensors. */
    norm?: number
  }[]
  /** Over all merged entries. */
  signConflicts?: number
  parameters: number
  bytes: number
  files: { name: string; bytes: number; sha256?: string }[]
  tensors: ManifestTensor[]
}

export interface FuseReport {
  directory: string
  manifest: FusionManifest
  /** Tensors that an earlier, interrupted run had finished. */
  resumedTensors: number
}

const units: Record<string, number> = { '': 1, B: 1, K: 1e3, KB: 1e3, M: 1e6, MB: 1e6, G: 1e9, GB: 1e9, T: 1e12, TB: 1e12 }

export function bytesOf(size: number | string): number {
  const found = /^(\d+(?:\.\d+)?)\s*([KMGT]?B?)$/i.exec(String(size))
  const bytes = found ? Number(found[1]) * units[found[2]!.toUpperCase()]! : Number.NaN
  if (!(bytes >= 1)) throw new ConanError('INVALID_OPTION', `outShardSize: expected bytes, such as 5000000000 or "5GB", got ${shown(size)}`)
  return bytes
}

/** Files of a model directory that are not weights in one of the formats there are, nor of somebody's repository or run. */
function isModelFile(name: string): boolean {
  if (/\.(safetensors|bin|pt|pth|h5|msgpack|onnx|gguf|ckpt|index\.json)$/.test(name)) return false
  return !/^(\.|README\.md$|fusion-manifest\.json$|training_args|training-report\.json$|training\.html$|adapter_)/.test(name)
}

/** Everything of a model directory but the weights of its transformer. Links become what they point at. */
export function copyFiles(from: string, to: string, subject: string, weights: string): void {
  const copy = (folder: string) => {
    mkdirSync(path.join(to, folder), { recursive: true })
    for (const name of readdirSync(path.join(from, folder))) {
      const file = path.join(folder, name)
      const source = path.join(from, file)
      if (statSync(source).isDirectory()) {
        // An adapter is what an earlier training has changed, beside the model that it is part of.
        if (!/^(onnx$|openvino$|\.)/.test(name) && !existsSync(path.join(source, 'adapter_config.json'))) copy(file)
        continue
      }
      // Modules of their own, such as a Dense layer, keep their weights.
      const inModule = folder !== '' && path.resolve(from, folder) !== path.resolve(from, weights)
      if ((inModule && name.endsWith('.safetensors')) || isModelFile(name)) copyFileSync(source, path.join(to, file))
    }
  }
  copy('')
  if (!existsSync(path.join(to, weights, 'config.json'))) throw new ConanError('CONFIG_INVALID', `${subject}: expected config.json, found none`)
}

/** Modules beside the transformer that hold weights cannot be merged: all models must agree, or the recipe says whose they are. */
function requireSameModules(plan: FusePlan, recipe: Recipe): void {
  if (recipe.filesFrom !== undefined) return
  const modules = (root: string) => {
    const found = new Map<string, string>()
    for (const folder of readdirSync(root, { withFileTypes: true })) {
      const file = path.join(root, folder.name, 'model.safetensors')
      if (folder.isDirectory() && path.join(root, folder.name) !== path.join(root, weightsFolder(root)) && existsSync(file))
        found.set(folder.name, createHash('sha256').update(readFileSync(file)).digest('hex'))
    }
    return found
  }
  const wanted = modules(plan.filesFrom.root)
  for (const parent of plan.parents) {
    const there = modules(parent.root)
    for (const name of new Set([...wanted.keys(), ...there.keys()]))
      if (wanted.get(name) !== there.get(name))
        throw new ConanError(
          'TENSOR_UNACCOUNTED',
          `${parent.name}: weights of module ${name}: expected the same as in ${plan.filesFrom.name}, got others; say conan.files_from`,
        )
  }
}

/** model.safetensors.index.json, where there are several files. */
export function writeIndex(
  { files, tensors, totalBytes }: { files: FusePlan['files']; tensors: { name: string }[]; totalBytes: number },
  directory: string,
): void {
  if (files.length < 2) return
  const weightMap = Object.fromEntries(files.flatMap((file) => file.tensors.map((i) => [tensors[i]!.name, file.name])))
  writeFileSync(
    path.join(directory, 'model.safetensors.index.json'),
    `${JSON.stringify({ metadata: { total_size: totalBytes }, weight_map: weightMap }, null, 2)}\n`,
  )
}

function writeConfig(plan: FusePlan, file: string): void {
  const config = JSON.parse(readFileSync(file, 'utf8'))
  const text = config.text_config ?? config
  const dtypes = [...new Set(plan.tensors.map(({ dtype }) => dtype).filter((dtype) => /float/.test(dtype)))]
  if (dtypes.length === 1)
    for (const part of [config, config.text_config, config.vision_config, config.audio_config])
      for (const key of ['dtype', 'torch_dtype']) if (part && key in part) part[key] = dtypes[0]
  if (plan.layers) {
    for (const key of ['num_hidden_layers', 'n_layer', 'n_layers']) if (key in text) text[key] = plan.layers.length
    if (Array.isArray(text.layer_types)) text.layer_types = plan.layers.map((layer) => text.layer_types[layer])
  }
  if (plan.vocabulary) for (const part of [config, config.text_config]) if (part && 'vocab_size' in part) part.vocab_size = plan.vocabulary.rows
  writeFileSync(file, `${JSON.stringify(config, null, 2)}\n`)
}

function sha256(file: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const hash = createHash('sha256')
    createReadStream(file, { highWaterMark: 1 << 20 })
      .on('data', (data) => hash.update(data))
      .on('error', reject)
      .on('end', () => resolve(hash.digest('hex')))
  })
}

interface NativeTensor {
  tensor: number
  checksum: string
  norms: number[]
  conflicts: number
}

function manifestOf(recipe: Recipe, plan: FusePlan, results: NativeTensor[] | undefined): FusionManifest {
  const squares = new Map<string, number>()
  let conflicts = 0
  let entries = 0
  const tensors = plan.tensors.map((tensor: PlannedTensor, i): ManifestTensor => {
    const result = results?.[i]
    const merged = tensor.action === 'merge'
    const size = sizeOf(tensor.shape)
    // The base stands first among the native parents of slerp.
    const offset = result && merged ? result.norms.length - tensor.parents.length : 0
    const several = merged && tensor.parents.length > 1 && 'base' in tensor.native
    if (result && several) {
      conflicts += result.conflicts * size
      entries += size
    }
    return {
      name: tensor.name,
      shape: tensor.shape,
      dtype: tensor.dtype,
      action: tensor.action,
      parents: tensor.parents.map((parent, p) => {
        const norm = merged ? result?.norms[p + offset] : undefined
        if (norm !== undefined) squares.set(parent.model, (squares.get(parent.model) ?? 0) + norm * norm)
        return { ...parent, ...(norm !== undefined && { norm }) }
      }),
      ...(tensor.rows.length > 0 && { rows: tensor.rows }),
      ...(result && several && { signConflicts: result.conflicts }),
      ...(result && { checksum: result.checksum }),
    }
  })
  return {
    format: 1,
    generator: `conan-embedding ${packageVersion()}`,
    recipe: recipe.given,
    method: recipe.mergeMethod,
    formula: recipe.method.formula,
    source: recipe.method.source,
    seed: recipe.seed,
    filesFrom: plan.filesFrom.name,
    parents: plan.parents.map((parent) => {
      const fates = plan.fates.get(parent)!
      const of = (fate: Fate) => [...fates].filter(([, f]) => f === fate).map(([name]) => name)
      const square = squares.get(parent.name)
      return {
        model: parent.name,
        directory: parent.root,
        adapters: parent.adapters,
        isBase: recipe.baseModel === parent.name,
        files: [...new Set([...parent.tensors.values()].map(({ file }) => file))].map((file) => ({ name: path.basename(file), bytes: statSync(file).size })),
        tensors: Object.fromEntries(['merged', 'copied', 'kept', 'replaced', 'dropped'].map((fate) => [fate, of(fate as Fate).length])) as Record<Fate, number>,
        dropped: of('dropped'),
        replaced: of('replaced'),
        ...(square !== undefined && { norm: Math.sqrt(square) }),
      }
    }),
    ...(entries > 0 && { signConflicts: conflicts / entries }),
    parameters: plan.tensors.reduce((sum, { shape }) => sum + sizeOf(shape), 0),
    bytes: plan.totalBytes,
    files: plan.files.map(({ name, bytes }) => ({ name, bytes })),
    tensors,
  }
}

/** Text that says what the result is made of: another recipe, another input file, another outcome. */
function identityOf(plan: FusePlan, recipe: Recipe): string {
  const files = plan.parents.flatMap((parent) => [
    ...[...parent.tensors.values()].map(({ file }) => file),
    ...parent.adapters.flatMap((directory) => readdirSync(directory).map((name) => path.join(directory, name))),
  ])
  const inputs = [...new Set(files)].map(stampOf)
  const made = [plan.tensors.map(({ native }) => native), plan.files, recipe.seed, inputs]
  return createHash('sha256').update(JSON.stringify(made)).digest('hex')
}

/**
 * Merges models as a recipe says (mergekit's YAML, with more under `conan`; see README) into a new model directory, tensor
 * by tensor: memory does not grow with the model. An interrupted run leaves `<out>.partial`; the same call goes on from
 * there. The directory appears under its name only when it is whole, with fusion-manifest.json.
 * @param recipe a YAML file, or the recipe as an object
 * @throws ConanError RECIPE_INVALID, MODEL_NOT_FOUND, TENSOR_UNACCOUNTED, TENSOR_SHAPE, TENSOR_MISSING, TOKENIZER_INVALID,
 *   UNSUPPORTED_DTYPE, WEIGHT_NOT_FINITE, OUTPUT_EXISTS, FILE_IO, FILE_CORRUPT, ABORTED
 */
export async function fuse(recipe: string | object, options: FuseOptions): Promise<FuseReport> {
  requireOptions(options)
  const read = typeof recipe === 'string' ? readRecipeFile(recipe) : readRecipe(recipe)
  const recipeDirectory = typeof recipe === 'string' ? path.dirname(path.resolve(recipe)) : path.resolve(pathOf(options.directory ?? '.', 'directory'))
  const { signal, device = 'cpu' } = options
  const threads = threadsOf(options.threads)
  if (!/^(cpu|cuda(:\d+)?)$/.test(device)) throw new ConanError('INVALID_OPTION', `device: expected cpu, cuda or cuda:N, got ${shown(device)}`)
  const out = path.resolve(pathOf(options.out, 'out'))
  const plan = planFusion(read, recipeDirectory, bytesOf(options.outShardSize ?? '5GB'))
  requireFree(out)
  requireSameModules(plan, read)
  if (options.dryRun) return { directory: out, manifest: manifestOf(read, plan, undefined), resumedTensors: 0 }

  const partial = `${out}.partial`
  const weights = weightsFolder(plan.filesFrom.root)
  const weightsDirectory = path.join(partial, weights)
  try {
    mkdirSync(weightsDirectory, { recursive: true })
    const work = {
      output: weightsDirectory,
      identity: identityOf(plan, read),
      threads,
      device,
      seed: read.seed,
      checkpoints: plan.parents.map(({ directory, adapters }) => ({ directory, adapters })),
      files: plan.files.map(({ name, tensors }) => ({ name, tensors })),
      tensors: plan.tensors.map((tensor) => tensor.native),
    }
    const progress = (doneBytes: number, totalBytes: number) => options.onProgress?.({ doneBytes, totalBytes })
    const results = await runPlan<{ resumed: number; tensors: NativeTensor[] }>('fuse', work, { signal, onProgress: progress })

    requireFree(out) // while the journal is still there: else the next call would merge all over again
    // Nothing but the weights stays: not the journal, not what an earlier attempt at another recipe left.
    const keep = new Set(plan.files.map(({ name }) => path.join(weightsDirectory, name)))
    for (const directory of new Set([partial, weightsDirectory]))
      for (const name of readdirSync(directory)) {
        const file = path.join(directory, name)
        if (!keep.has(file) && file !== weightsDirectory) rmSync(file, { recursive: true })
      }
    writeIndex(plan, weightsDirectory)
    copyFiles(plan.filesFrom.root, partial, plan.filesFrom.name, weights)
    if (plan.vocabulary) {
      for (const name of readdirSync(plan.vocabulary.owner.directory))
        if (/^(tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|sentencepiece|chat_template)/.test(name))
          copyFileSync(path.join(plan.vocabulary.owner.directory, name), path.join(weightsDirectory, name))
      if (plan.vocabulary.tokenizer !== undefined) writeFileSync(path.join(weightsDirectory, 'tokenizer.json'), plan.vocabulary.tokenizer)
    }
    writeConfig(plan, path.join(weightsDirectory, 'config.json'))
    const manifest = manifestOf(read, plan, results.tensors)
    if (options.sha256) for (const file of manifest.files) file.sha256 = await sha256(path.join(weightsDirectory, file.name))
    writeFileSync(path.join(partial, 'fusion-manifest.json'), `${JSON.stringify(manifest, null, 1)}\n`)
    publish(partial, out)
    return { directory: out, manifest, resumedTensors: results.resumed }
  } catch (error) {
    throw asFileError(error)
  }
}

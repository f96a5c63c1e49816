// extractLora(): a LoRA adapter from the difference of two checkpoints.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { asFileError, publish, requireFree } from '../files/output'
import { pathOf, positive, requireOptions, threadsOf, wholeNumber } from '../options'
import { runPlan } from './native'
import { openParent } from './parents'

export interface ExtractLoraOptions {
  /** Directory to make; it must not exist, or be empty. */
  out: string
  /** Rank of every module. Default 32, unless `energy` is given. */
  rank?: number
  /** Instead of a rank: per module the smallest rank that keeps this share of the squared norm of the change, 0 to 1. */
  energy?: number
  /** Largest rank with `energy`. Default 256. */
  maxRank?: number
  /** Only modules whose name matches; default all matrices but embeddings and heads. */
  modules?: RegExp
  /** Of the randomised range finder; default 0. */
  seed?: number
  threads?: number
  signal?: AbortSignal
  onProgress?: (progress: { done: number; total: number }) => void
}

export interface ExtractLoraReport {
  directory: string
  modules: { name: string; rank: number; norm: number; left: number }[]
  /** Share of the squared norm of the modules' change that the adapter keeps. */
  energy: number
  /** Tensors that changed but that no adapter can hold (norms, biases, embeddings), by name. */
  leftOut: string[]
}

/**
 * Factors what fine-tuning changed into low-rank matrices (randomised SVD), written as PEFT does.
 * @param tuned the fine-tuned model
 * @param base what it was tuned from
 * @throws ConanError MODEL_NOT_FOUND, TENSOR_SHAPE, TENSOR_MISSING, INVALID_OPTION, OUTPUT_EXISTS, ABORTED, FILE_IO
 */
export async function extractLora(tuned: string, base: string, options: ExtractLoraOptions): Promise<ExtractLoraReport> {
  requireOptions(options)
  const { energy, signal } = options
  const threads = threadsOf(options.threads)
  const seed = wholeNumber(options.seed, 'seed', 0)
  if (energy !== undefined && options.rank !== undefined) throw new ConanError('INVALID_OPTION', 'rank and energy: expected one of them, got both')
  if (energy !== undefined && !(energy > 0 && energy <= 1))
    throw new ConanError('INVALID_OPTION', `energy: expected a share above 0 and up to 1, got ${shown(energy)}`)
  const rank = positive(options.rank, 'rank', 32)
  const maxRank = positive(options.maxRank, 'maxRank', 256)
  if (options.modules !== undefined && !(options.modules instanceof RegExp))
    throw new ConanError('INVALID_OPTION', `modules: expected a regular expression, got ${shown(options.modules)}`)
  const out = path.resolve(pathOf(options.out, 'out'))
  requireFree(out)
  const [start, end] = [openParent(base, process.cwd()), openParent(tuned, process.cwd())]
  const candidates = [...start.tensors.values()].filter(({ name }) => end.tensors.has(name))
  const isModule = ({ name, shape }: { name: string; shape: number[] }) =>
    shape.length === 2 && name.endsWith('.weight') && (options.modules ? options.modules.test(name) : !/embed|wte|lm_head|norm/i.test(name))
  for (const { name, shape } of candidates) {
    const there = end.tensors.get(name)!.shape
    if (isModule({ name, shape }) && there.join() !== shape.join())
      throw new ConanError('TENSOR_SHAPE', `${tuned}: tensor "${name}": expected [${shape.join(', ')}] as in ${base}, got [${there.join(', ')}]`)
  }
  const modules = candidates.filter(isModule)
  if (modules.length === 0) throw new ConanError('TENSOR_MISSING', `${tuned} and ${base}: expected matrices of the same name, found none`)

  const partial = `${out}.partial`
  const checkpoints = [start, end].map(({ directory, adapters }) => ({ directory, adapters }))
  // What cannot be low-rank must at least be said: the norms of everything else.
  const rest = candidates.filter(
    (tensor) => !isModule(tensor) && /float/.test(tensor.dtype) && end.tensors.get(tensor.name)!.shape.join() === tensor.shape.join(),
  )
  const tensors = (list: typeof rest) => list.map(({ name, shape }) => ({ name, shape }))
  const changed = await runPlan<{ tensor: string; gram: number[][] }[]>('geometry', { threads, checkpoints, base: 0, tensors: tensors(rest) }, { signal })
  try {
    rmSync(partial, { recursive: true, force: true })
    mkdirSync(partial, { recursive: true })
    const output = path.join(partial, 'adapter_model.safetensors')
    const size = energy === undefined ? { rank } : { energy, maxRank }
    const plan = { threads, checkpoints, base: 0, tensors: tensors(modules), output, seed, ...size }
    const progress = (done: number, total: number) => options.onProgress?.({ done, total })
    const found = await runPlan<{ tensor: string; rank: number; norm: number; left: number }[]>('extractLora', plan, { signal, onProgress: progress })
    const kept = found.filter((module) => module.rank > 0).map(({ tensor, ...module }) => ({ name: tensor.replace(/\.weight$/, ''), ...module }))
    if (kept.length === 0) throw new ConanError('INVALID_INPUT', `${tuned}: expected weights that differ from ${base}, they are equal`)
    const most = Math.max(...kept.map((module) => module.rank))
    const pattern = Object.fromEntries(kept.filter((module) => module.rank !== most).map((module) => [module.name, module.rank]))
    const config = {
      peft_type: 'LORA',
      base_model_name_or_path: start.root,
      r: most,
      lora_alpha: most, // the factors hold the whole change: scale 1
      rank_pattern: pattern,
      alpha_pattern: pattern,
      target_modules: kept.map((module) => module.name),
      lora_dropout: 0,
      bias: 'none',
      fan_in_fan_out: false,
      inference_mode: true,
      use_rslora: false,
      use_dora: false,
      task_type: null,
    }
    writeFileSync(path.join(partial, 'adapter_config.json'), `${JSON.stringify(config, null, 2)}\n`)
    publish(partial, out)
    const squares = (read: (module: { norm: number; left: number }) => number) => found.reduce((sum, module) => sum + read(module) ** 2, 0)
    return {
      directory: out,
      modules: kept,
      energy: 1 - squares(({ left }) => left) / squares(({ norm }) => norm),
      leftOut: changed.filter(({ gram }) => gram[0]![0]! > 0).map(({ tensor }) => tensor),
    }
  } catch (error) {
    rmSync(partial, { recursive: true, force: true })
    throw asFileError(error)
  }
}

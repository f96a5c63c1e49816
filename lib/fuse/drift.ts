// drift(): how far models have moved from a base, and apart. Three views (Conan-embedding-v3, "Projector Drift"): the
// geometry of task vectors, the direction of hidden states layer by layer, and retrieval before and after.
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { type ComputeOptions, computeOptions, loadModel, type Model } from '../model'
import { requireOptions, threadsOf } from '../options'
import { runPlan } from './native'
import { floats, layerOf, openParent, type Parent, sizeOf } from './parents'
import { type ProbePair, type RetrievalScore, readProbe, retrieval } from './probe'

/** How the probe's models compute, and threads for everything. */
export interface DriftOptions extends ComputeOptions {
  /** What task vectors are taken from. Without it, from the first model. */
  base?: string
  /** Further models for the geometry. */
  others?: string[]
  /** Pairs for the views of hidden states and retrieval: a .jsonl or .parquet file of {query, positive, modality?}, or such rows. */
  probe?: string | object[]
  signal?: AbortSignal
  onProgress?: (progress: { done: number; total: number; what: 'tensors' | 'probe' }) => void
}

/** Of some tensors together; lists and matrices are in the order of the report's models. */
export interface TaskVectorGeometry {
  name: string
  tensors: number
  parameters: number
  baseNorm: number
  /** |d| of each model's task vector d. */
  norms: number[]
  /** Cosines between task vectors; undefined where one of them is zero. */
  cosines: (number | undefined)[][]
  /** Of the entries that both change, the share in which they point in opposite directions. */
  signConflicts: (number | undefined)[][]
}

export interface LayerDirection {
  /** 0: before the first layer; the last: after the final norm. */
  layer: number
  /** Cosine between the hidden states of the two models at the same token: mean, and the smallest tenth of them ends here. */
  mean: number
  low: number
}

export interface DriftReport {
  base: string
  models: string[]
  total: TaskVectorGeometry
  modules: TaskVectorGeometry[]
  /** By stack of layers, then layer. */
  layers: (TaskVectorGeometry & { stack: string; layer: number })[]
  /** Tensors that not all models have (or not in one shape), which the geometry leaves out. */
  unshared: string[]
  probe?: {
    modality: string
    pairs: number
    tokens: number
    directions: LayerDirection[]
  }[]
  retrieval?: { model: string; scores: RetrievalScore[] }[]
}

interface NativeGeometry {
  tensor: string
  base: number
  gram: number[][]
  conflicts: number[][]
  both: number[][]
}

/** The part of a model that a tensor belongs to. */
export function moduleOf(tensor: string): string {
  const kinds: [RegExp, string][] = [
    [/audio_projector/, 'audio projector'],
    [/audio_tower|(^|\.)audio/, 'audio encoder'],
    [/visual|vision/, 'vision encoder'],
    [/lm_head/, 'head'],
    [/norm|ln_f/i, 'norms'],
    [/embed|wte/, 'embeddings'],
    [/attn|attention/, 'attention'],
    [/mlp|ffn|feed_forward|intermediate|output\.dense/, 'mlp'],
  ]
  return kinds.find(([pattern]) => pattern.test(tensor))?.[1] ?? 'other'
}

function combine(name: string, tensors: NativeGeometry[], parameters: (tensor: string) => number): TaskVectorGeometry {
  const n = tensors[0]?.gram.length ?? 0
  const sum = (read: (tensor: NativeGeometry) => number) => tensors.reduce((total, tensor) => total + read(tensor), 0)
  const square = <T>(cell: (i: number, j: number) => T) => Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => cell(i, j)))
  const gram = square((i, j) => sum((tensor) => tensor.gram[i]![j]!))
  return {
    name,
    tensors: tensors.length,
    parameters: sum(({ tensor }) => parameters(tensor)),
    baseNorm: Math.sqrt(sum(({ base }) => base * base)),
    norms: gram.map((row, i) => Math.sqrt(row[i]!)),
    cosines: square((i, j) => (gram[i]![i]! > 0 && gram[j]![j]! > 0 ? gram[i]![j]! / Math.sqrt(gram[i]![i]! * gram[j]![j]!) : undefined)),
    signConflicts: square((i, j) => {
      const both = sum((tensor) => tensor.both[i]![j]!)
      return both > 0 ? sum((tensor) => tensor.conflicts[i]![j]!) / both : undefined
    }),
  }
}

/** Cosines of hidden states at the tokens of the probe, per layer. */
async function directions(first: Model, second: Model, pairs: ProbePair[], options: DriftOptions): Promise<{ tokens: number; directions: LayerDirection[] }> {
  const [a, b] = [first.info.directory, second.info.directory]
  const texts = pairs.flatMap(({ query, positive }) => [query, positive])
  const embed = options.signal ? { signal: options.signal } : {}
  const other = second.hiddenStates(texts, embed)
  const cosines: number[][] = []
  for await (const mine of first.hiddenStates(texts, embed)) {
    const { value: theirs } = await other.next()
    if (!theirs || theirs.offsets.join() !== mine.offsets.join() || theirs.layers.length !== mine.layers.length)
      throw new ConanError('INVALID_INPUT', `probe: expected ${a} and ${b} to have the same tokens and layers, they differ`)
    const width = first.info.hiddenSize
    for (const [layer, x] of mine.layers.entries()) {
      const y = theirs.layers[layer]!
      if (y.length !== x.length) throw new ConanError('INVALID_INPUT', `probe: expected hidden states of one size in ${a} and ${b}`)
      cosines[layer] ??= []
      for (let at = 0; at < x.length; at += width) {
        let [xx, yy, xy] = [0, 0, 0]
        for (let i = at; i < at + width; i++) {
          xx += x[i]! * x[i]!
          yy += y[i]! * y[i]!
          xy += x[i]! * y[i]!
        }
        cosines[layer].push(xy / Math.sqrt(xx * yy))
      }
    }
    options.onProgress?.({ done: mine.first + mine.offsets.length - 1, total: texts.length, what: 'probe' })
  }
  return {
    tokens: cosines[0]?.length ?? 0,
    directions: cosines.map((values, layer) => ({
      layer,
      mean: values.reduce((sum, value) => sum + value, 0) / values.length,
      low: values.sort((p, q) => p - q)[Math.floor(values.length / 10)]!,
    })),
  }
}

/**
 * Compares models by their task vectors and, with probe data, by what they do.
 * @param a for example a specialist
 * @param b for example the fused model
 * @throws ConanError MODEL_NOT_FOUND, TENSOR_MISSING where nothing is shared, INVALID_INPUT, ABORTED, ...
 */
export async function drift(a: string, b: string, options: DriftOptions = {}): Promise<DriftReport> {
  requireOptions(options)
  const { base = a, others = [], signal } = options
  if (!Array.isArray(others)) throw new ConanError('INVALID_OPTION', `others: expected a list of models, got ${shown(others)}`)
  const names = [...(options.base === undefined ? [] : [a]), b, ...others]
  const open = (name: string, dense?: Parent) => openParent(name, process.cwd(), dense?.root)
  const start = open(base)
  const parents = [start, ...names.map((name) => open(name, start))]
  const all = new Set(parents.flatMap((parent) => [...parent.tensors.keys()]))
  const shared = [...start.tensors.values()].filter(
    ({ name, shape, dtype }) =>
      floats.includes(dtype) &&
      parents.every((parent) => parent.tensors.get(name)?.shape.join() === shape.join() && floats.includes(parent.tensors.get(name)!.dtype)),
  )
  if (shared.length === 0) throw new ConanError('TENSOR_MISSING', `${base} and ${names.join(', ')}: expected tensors of the same name and shape, found none`)
  const pairs = options.probe === undefined ? undefined : await readProbe(options.probe)

  const plan = {
    threads: threadsOf(options.threads),
    checkpoints: parents.map(({ directory, adapters }) => ({ directory, adapters })),
    base: 0,
    tensors: shared.map(({ name, shape }) => ({ name, shape })),
  }
  const progress = (done: number, total: number) => options.onProgress?.({ done, total, what: 'tensors' })
  const geometry = await runPlan<NativeGeometry[]>('geometry', plan, { signal, onProgress: progress })

  const sizes = new Map(shared.map(({ name, shape }) => [name, sizeOf(shape)]))
  const parameters = (tensor: string) => sizes.get(tensor) as number
  const grouped = (key: (tensor: string) => string | undefined) => {
    const groups = new Map<string, NativeGeometry[]>()
    for (const tensor of geometry) {
      const name = key(tensor.tensor)
      if (name !== undefined) groups.set(name, [...(groups.get(name) ?? []), tensor])
    }
    return groups
  }
  const report: DriftReport = {
    base,
    models: names,
    total: combine('all', geometry, parameters),
    modules: [...grouped(moduleOf)].map(([name, tensors]) => combine(name, tensors, parameters)),
    layers: [
      ...grouped((tensor) => {
        const place = layerOf(tensor)
        return place && `${place.stack}.${place.layer}`
      }),
    ]
      .map(([name, tensors]) => {
        const { stack, layer } = layerOf(tensors[0]!.tensor)!
        return { ...combine(name, tensors, parameters), stack, layer }
      })
      .sort((p, q) => (p.stack < q.stack ? -1 : p.stack > q.stack ? 1 : p.layer - q.layer)),
    unshared: [...all].filter((name) => !sizes.has(name)),
  }
  if (pairs) {
    const load = computeOptions(options)
    await using first = await loadModel(path.resolve(a), load)
    await using second = await loadModel(path.resolve(b), load)
    report.probe = []
    for (const modality of new Set(pairs.map((pair) => pair.modality))) {
      const own = pairs.filter((pair) => pair.modality === modality)
      report.probe.push({ modality, pairs: own.length, ...(await directions(first, second, own, options)) })
    }
    report.retrieval = [{ model: a, scores: await retrieval(first, pairs, signal) }]
    if (b !== a) report.retrieval.push({ model: b, scores: await retrieval(second, pairs, signal) })
  }
  return report
}

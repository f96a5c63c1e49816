// searchCoefficients(): which weights to fuse with, found on a probe set. Every candidate is fused into a directory of its
// own, scored, and removed.

import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { loadModel } from '../model'
import { oneOf, pathOf, positive, requireOptions } from '../options'
import { fuse } from './fuse'
import { readProbe, retrieval } from './probe'
import { readRecipe, readRecipeValue } from './recipe'

export interface SearchOptions {
  /** Weights to try, for every model or by model as the recipe names it; models not named keep the recipe's weight. */
  grid: number[] | Record<string, number[]>
  /** 'grid': every combination. 'coordinate': one model after the other, from the recipe's weights, until a round changes nothing. */
  strategy?: 'grid' | 'coordinate'
  /** At most so many rounds over all models in a coordinate search; default 3. */
  rounds?: number
  /** Pairs whose recall at 1 is the score of their modality: a .jsonl or .parquet file of {query, positive, modality?}, or such rows. */
  probe?: string | object[]
  /** Instead of a probe: a score for each modality of the model in a directory, larger is better. */
  score?: (directory: string) => Promise<Record<string, number>>
  /** How the scores of the modalities become one number: their mean, the smallest, or a weighted mean. Default 'mean'. */
  tradeOff?: 'mean' | 'min' | Record<string, number>
  /** What relative paths of a recipe given as an object are relative to. */
  directory?: string
  /** Where candidates are built; default the system's temporary directory. */
  workDirectory?: string
  threads?: number
  signal?: AbortSignal
  onProgress?: (candidate: SearchCandidate) => void
}

export interface SearchCandidate {
  weights: Record<string, number>
  scores: Record<string, number>
  value: number
}

export interface SearchReport {
  strategy: 'grid' | 'coordinate'
  tradeOff: 'mean' | 'min' | Record<string, number>
  best: SearchCandidate
  /** In the order they were tried. */
  candidates: SearchCandidate[]
  /** The recipe with the best weights. */
  recipe: object
}

function traded(scores: Record<string, number>, tradeOff: 'mean' | 'min' | Record<string, number>): number {
  const values = Object.values(scores)
  if (values.length === 0 || values.some((value) => typeof value !== 'number' || Number.isNaN(value)))
    throw new ConanError('INVALID_INPUT', `score: expected a number for at least one modality, got ${JSON.stringify(scores)}`)
  if (tradeOff === 'min') return Math.min(...values)
  if (tradeOff === 'mean') return values.reduce((sum, value) => sum + value, 0) / values.length
  let [sum, weights] = [0, 0]
  for (const [modality, weight] of Object.entries(tradeOff)) {
    if (scores[modality] === undefined)
      throw new ConanError('INVALID_OPTION', `tradeOff: expected modalities among ${Object.keys(scores).join(', ')}, got ${shown(modality)}`)
    sum += weight * scores[modality]
    weights += weight
  }
  return sum / weights
}

type RecipeJson = { models: { model: string; parameters?: Record<string, unknown> }[]; base_model?: string }

/**
 * @param recipe a YAML file or an object, with `models`, of a method with a `weight` for each
 * @throws ConanError INVALID_OPTION, RECIPE_INVALID, and what fuse, loadModel and the score throw
 */
export async function searchCoefficients(recipe: string | object, options: SearchOptions): Promise<SearchReport> {
  requireOptions(options)
  const { tradeOff = 'mean', signal } = options
  const strategy = oneOf(options.strategy, 'strategy', ['grid', 'coordinate'] as const, 'grid')
  const rounds = positive(options.rounds, 'rounds', 3)
  if (typeof options.grid !== 'object' || options.grid === null)
    throw new ConanError('INVALID_OPTION', `grid: expected numbers, or numbers by model, got ${shown(options.grid)}`)
  const weights = typeof tradeOff === 'object' && tradeOff !== null ? Object.values(tradeOff) : []
  if (tradeOff !== 'mean' && tradeOff !== 'min' && !(weights.some((weight) => weight > 0) && weights.every((weight) => weight >= 0 && Number.isFinite(weight))))
    throw new ConanError('INVALID_OPTION', `tradeOff: expected mean, min or weights from 0 by modality, got ${shown(tradeOff)}`)
  if (typeof recipe !== 'string' && (typeof recipe !== 'object' || recipe === null))
    throw new ConanError('RECIPE_INVALID', `search: expected a recipe or its file, got ${shown(recipe)}`)
  const value = structuredClone(typeof recipe === 'string' ? readRecipeValue(recipe) : recipe) as RecipeJson
  const directory = typeof recipe === 'string' ? path.dirname(path.resolve(recipe)) : pathOf(options.directory ?? '.', 'directory')
  const read = readRecipe(value)
  if (!('weight' in read.method.perModel) || read.sliced)
    throw new ConanError('RECIPE_INVALID', `search: expected a recipe with models and a method with weights, got ${read.mergeMethod}`)
  const varied = value.models.filter(({ model }) => model !== value.base_model && (Array.isArray(options.grid) || model in options.grid))
  const gridOf = (model: string) => (Array.isArray(options.grid) ? options.grid : (options.grid[model] as number[]))
  for (const { model } of varied)
    if (!gridOf(model)?.length || !gridOf(model).every(Number.isFinite))
      throw new ConanError('INVALID_OPTION', `grid: expected numbers for ${model}, got ${shown(gridOf(model))}`)
  if (varied.length === 0) throw new ConanError('INVALID_OPTION', `grid: expected models of the recipe, got ${Object.keys(options.grid).join(', ')}`)
  if ((options.probe === undefined) === (options.score === undefined)) throw new ConanError('INVALID_OPTION', 'expected either a probe or a score')
  const pairs = options.probe === undefined ? undefined : await readProbe(options.probe)
  const score =
    options.score ??
    (async (fused: string) => {
      await using model = await loadModel(fused, options.threads ? { threads: options.threads } : {})
      return Object.fromEntries((await retrieval(model, pairs!, signal)).map(({ modality, recallAt1 }) => [modality, recallAt1]))
    })

  const withWeights = (weights: Record<string, number>) => ({
    ...value,
    models: value.models.map((entry) => (entry.model in weights ? { ...entry, parameters: { ...entry.parameters, weight: weights[entry.model] } } : entry)),
  })
  const candidates: SearchCandidate[] = []
  const work = mkdtempSync(path.join(pathOf(options.workDirectory ?? os.tmpdir(), 'workDirectory'), 'conan-search-'))
  const attempt = async (weights: Record<string, number>): Promise<SearchCandidate> => {
    const known = candidates.find((candidate) => varied.every(({ model }) => candidate.weights[model] === weights[model]))
    if (known) return known
    const out = path.join(work, String(candidates.length))
    try {
      await fuse(withWeights(weights), { out, directory, ...(options.threads && { threads: options.threads }), ...(signal && { signal }) })
      const scores = await score(out)
      const candidate = { weights, scores, value: traded(scores, tradeOff) }
      candidates.push(candidate)
      options.onProgress?.(candidate)
      return candidate
    } finally {
      for (const made of [out, `${out}.partial`]) rmSync(made, { recursive: true, force: true })
    }
  }

  try {
    let best: SearchCandidate | undefined
    // Among equals the better mean: a minimum alone would stop where the worst modality cannot improve yet.
    const mean = ({ scores }: SearchCandidate) => traded(scores, 'mean')
    const consider = (candidate: SearchCandidate) => {
      if (!best || candidate.value > best.value || (candidate.value === best.value && mean(candidate) > mean(best))) best = candidate
    }
    if (strategy === 'grid') {
      let combinations: Record<string, number>[] = [{}]
      for (const { model } of varied) combinations = combinations.flatMap((weights) => gridOf(model).map((weight) => ({ ...weights, [model]: weight })))
      for (const weights of combinations) consider(await attempt(weights))
    } else {
      const given = ({ model, parameters }: { model: string; parameters?: Record<string, unknown> }): [string, number] => {
        const weight = parameters?.weight
        return [model, typeof weight === 'number' ? weight : gridOf(model)[Math.floor(gridOf(model).length / 2)]!]
      }
      consider(await attempt(Object.fromEntries(varied.map(given))))
      for (let round = 0; round < rounds; round++) {
        const before: SearchCandidate = best!
        for (const { model } of varied) for (const weight of gridOf(model)) consider(await attempt({ ...best!.weights, [model]: weight }))
        if (best === before) break
      }
    }
    return { strategy, tradeOff, best: best!, candidates, recipe: withWeights(best!.weights) }
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

// Opens the models a recipe names: directory, adapters, the tensors they hold, and how these lie in layers.
import { existsSync, statSync } from 'node:fs'
import path from 'node:path'
import { binding } from '../binding'
import { asConanError, ConanError } from '../errors'
import { readJson } from '../files/json'
import { modelPath } from '../files/model-directory'
import { pathOf } from '../options'

export interface CheckpointTensor {
  name: string
  dtype: string
  shape: number[]
  file: string
}

export interface Parent {
  /** As the recipe names it. */
  name: string
  root: string
  /** Where the weights are: the root, or the transformer module of a sentence-transformers directory. */
  directory: string
  adapters: string[]
  /** In the order of the files. */
  tensors: Map<string, CheckpointTensor>
  config: Record<string, unknown>
}

/** The types that can be merged. */
export const floats = ['float32', 'bfloat16', 'float16']
export const sizeOf = (shape: number[]): number => shape.reduce((a, b) => a * b, 1)

/** Where the weights of a model directory are, relative to it. */
export function weightsFolder(root: string): string {
  const file = path.join(root, 'modules.json')
  if (!existsSync(file)) return ''
  const modules = readJson(file) as unknown as { type?: string; path?: string }[]
  return modules.find((module) => String(module.type).split('.').pop() === 'Transformer')?.path ?? ''
}

export function checkpointTensors(directory: string): Map<string, CheckpointTensor> {
  try {
    const tensors: CheckpointTensor[] = JSON.parse(binding().checkpoint(directory))
    return new Map(tensors.map((tensor) => [tensor.name, tensor]))
  } catch (error) {
    throw asConanError(error)
  }
}

/** A path of a recipe: beside the recipe, else from the working directory. */
export function resolveModel(name: string, recipeDirectory: string): string {
  const beside = path.resolve(recipeDirectory, pathOf(name, 'model'))
  return existsSync(beside) ? beside : modelPath(name)
}

/**
 * Opens "directory" or "directory+adapter".
 * @param base where the dense weights are for a directory that is only an adapter
 */
export function openParent(name: string, recipeDirectory: string, base?: string): Parent {
  const whole = resolveModel(name, recipeDirectory)
  const parts = existsSync(whole) ? [name] : name.split('+')
  const directories = parts.map((part) => resolveModel(part, recipeDirectory))
  for (const directory of directories)
    if (!existsSync(directory) || !statSync(directory).isDirectory())
      throw new ConanError('MODEL_NOT_FOUND', `model "${name}": expected a local directory ${directory}, found ${existsSync(directory) ? 'a file' : 'nothing'}`)
  const isAdapter = (directory: string) => existsSync(path.join(directory, 'adapter_config.json')) && !existsSync(path.join(directory, 'config.json'))
  if (isAdapter(directories[0] as string)) {
    if (base === undefined)
      throw new ConanError(
        'MODEL_NOT_FOUND',
        `model "${name}": a LoRA adapter alone: expected "model+adapter", or a recipe with base_model, whose weights it changes`,
      )
    directories.unshift(base)
  }
  const [root, ...adapters] = directories as [string, ...string[]]
  const directory = path.join(root, weightsFolder(root))
  const config = path.join(directory, 'config.json')
  if (!existsSync(config)) throw new ConanError('MODEL_NOT_FOUND', `model "${name}": expected ${config}, found none`)
  return { name, root, directory, adapters, tensors: checkpointTensors(directory), config: readJson(config) }
}

/** The place of a tensor in a stack of layers: "model.layers" 3 "mlp.up_proj.weight". */
export function layerOf(tensor: string): { stack: string; layer: number; rest: string } | undefined {
  const found = /^((?:.*?\.)?(?:layers|layer|h|blocks|block))\.(\d+)\.(.+)$/.exec(tensor)
  return found ? { stack: found[1] as string, layer: Number(found[2]), rest: found[3] as string } : undefined
}

/** Layers in every stack. */
export function layerCounts(tensors: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>()
  for (const name of tensors) {
    const place = layerOf(name)
    if (place) counts.set(place.stack, Math.max(counts.get(place.stack) ?? 0, place.layer + 1))
  }
  return counts
}

/** config.json of the language model inside a model of several modalities, else the whole. */
export const textConfig = (config: Record<string, unknown>): Record<string, unknown> => (config.text_config as Record<string, unknown> | undefined) ?? config

/** The stack of layers that `layer_range` counts: the language model's. */
export function mainStack(parent: Parent): string {
  const config = textConfig(parent.config)
  const layers = config.num_hidden_layers ?? config.n_layer ?? config.n_layers
  const stacks = [...layerCounts(parent.tensors.keys())].filter(([stack, count]) => count === layers && !/visual|vision|audio/.test(stack))
  if (stacks.length !== 1)
    throw new ConanError(
      'RECIPE_INVALID',
      `slices: ${parent.directory}: expected one stack of ${layers} layers (config.json), found ${stacks.map(([stack]) => stack).join(' and ') || 'none'}`,
    )
  return stacks[0]![0]
}

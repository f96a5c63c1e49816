// Reads a fusion recipe: mergekit's YAML, plus our keys under `conan`. Everything is checked here and unknown keys are
// errors, so that the planner works on known shapes.
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { readYaml } from '../files/json'
import { ignoredParameters, type Method, methods, type Parameter } from './methods'

type Scalar = number | boolean
/** A value, a gradient over the layers, or the first of several whose filter is part of the tensor's name. */
export type Setting = Scalar | Scalar[] | { filter?: string; value: Scalar | Scalar[] }[]
export type Settings = Record<string, Setting>

export interface RecipeSource {
  model: string
  layerRange?: [first: number, end: number]
  parameters: Settings
}

export interface RecipeSlice {
  sources: RecipeSource[]
  parameters: Settings
}

/** What happens to the tensors whose names match: `*` stands for any characters. The first group that matches counts. */
export interface RecipeGroup {
  match: string[]
  action: 'merge' | 'copy' | 'keep' | 'drop'
  /** For copy: the model, as the recipe names it, or another directory. */
  from?: string
  /** For copy: only these rows, by token or by number; the rest goes on to the next group. */
  rows?: (string | number)[]
}

export interface Recipe {
  mergeMethod: string
  method: Method
  baseModel?: string
  slices: RecipeSlice[]
  /** Whether the recipe says `slices`, which number the layers anew. */
  sliced: boolean
  parameters: Settings
  dtype?: string
  outDtype?: string
  /** 'base', 'union' or a model. */
  tokenizerSource?: string
  padToMultipleOf: number
  groups: RecipeGroup[]
  seed: number
  /** Where config, tokenizer and processor files come from. */
  filesFrom?: string
  /** As it was given, for the manifest. */
  given: unknown
}

type Json = Record<string, unknown>

const dtypes = ['float32', 'bfloat16', 'float16']

class Reader {
  constructor(readonly subject: string) {}

  fail(where: string, expected: string, got: unknown): never {
    throw new ConanError('RECIPE_INVALID', `${this.subject}: ${where}: expected ${expected}, got ${shown(got)}`)
  }

  object(value: unknown, where: string, keys: string[]): Json {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) this.fail(where, `a mapping with ${keys.join(', ')}`, value)
    for (const key of Object.keys(value)) if (!keys.includes(key)) this.fail(where, `keys among ${keys.join(', ')}`, key)
    return value as Json
  }

  list(value: unknown, where: string): unknown[] {
    if (!Array.isArray(value) || value.length === 0) this.fail(where, 'a list that is not empty', value)
    return value
  }

  string(value: unknown, where: string): string {
    if (typeof value !== 'string' || value === '') this.fail(where, 'a string', value)
    return value
  }

  optionalString(value: unknown, where: string): string | undefined {
    return value === undefined || value === null ? undefined : this.string(value, where)
  }

  /** mergekit also writes a model as {model: {path}, lora: {path}}. */
  model(value: unknown, where: string): string {
    if (typeof value !== 'object' || value === null) return this.string(value, where)
    const { model, lora } = this.object(value, where, ['model', 'lora'])
    const place = (part: unknown, name: string) => this.string(typeof part === 'object' && part ? (part as Json).path : part, `${where}.${name}`)
    return lora ? `${place(model, 'model')}+${place(lora, 'lora')}` : place(model, 'model')
  }

  dtype(value: unknown, where: string): string | undefined {
    if (value === undefined || value === null || value === 'auto') return undefined
    if (!dtypes.includes(value as string)) this.fail(where, `one of ${dtypes.join(', ')}`, value)
    return value as string
  }

  settings(value: unknown, where: string, known: Record<string, Parameter>): Settings {
    if (value === undefined || value === null) return {}
    const settings = this.object(value, where, [...Object.keys(known), ...ignoredParameters])
    const out: Settings = {}
    for (const [key, setting] of Object.entries(settings)) {
      if (ignoredParameters.includes(key)) continue
      out[key] = this.setting(setting, `${where}.${key}`, known[key] as Parameter)
    }
    return out
  }

  private scalar(value: unknown, where: string, parameter: Parameter): Scalar {
    if (parameter.type === 'boolean') {
      if (typeof value !== 'boolean') this.fail(where, 'true or false', value)
      return value
    }
    const { min = Number.NEGATIVE_INFINITY, max = Number.POSITIVE_INFINITY } = parameter
    // YAML 1.1 readers take 1e-5 for a string, and so do recipes written for them.
    const number = typeof value === 'string' && value.trim() !== '' ? Number(value) : value
    if (typeof number !== 'number' || !Number.isFinite(number) || number < min || number > max)
      this.fail(where, `a number${min > Number.NEGATIVE_INFINITY ? ` from ${min}` : ''}${max < Number.POSITIVE_INFINITY ? ` to ${max}` : ''}`, value)
    return number
  }

  private setting(value: unknown, where: string, parameter: Parameter): Setting {
    if (Array.isArray(value) && value.some((entry) => typeof entry === 'object' && entry !== null))
      return value.map((entry, i) => this.condition(entry, `${where}[${i}]`, parameter))
    if (Array.isArray(value)) return this.list(value, where).map((entry, i) => this.scalar(entry, `${where}[${i}]`, parameter))
    if (typeof value === 'object' && value !== null) return [this.condition(value, where, parameter)]
    return this.scalar(value, where, parameter)
  }

  private condition(value: unknown, where: string, parameter: Parameter): { filter?: string; value: Scalar | Scalar[] } {
    const entry = this.object(value, where, ['filter', 'value'])
    const filter = this.optionalString(entry.filter, `${where}.filter`)
    const inner = this.setting(entry.value, `${where}.value`, parameter) as Scalar | Scalar[]
    return filter === undefined ? { value: inner } : { filter, value: inner }
  }

  groups(value: unknown): RecipeGroup[] {
    if (value === undefined || value === null) return []
    return this.list(value, 'conan.groups').map((entry, i) => {
      const where = `conan.groups[${i}]`
      const group = this.object(entry, where, ['match', 'action', 'from', 'rows'])
      const match = Array.isArray(group.match) ? this.list(group.match, `${where}.match`) : [group.match]
      const action = group.action as RecipeGroup['action']
      if (!['merge', 'copy', 'keep', 'drop'].includes(action)) this.fail(`${where}.action`, 'one of merge, copy, keep, drop', action)
      if ((action === 'copy') !== (group.from !== undefined))
        this.fail(`${where}.from`, action === 'copy' ? 'the model to copy from' : `none for ${action}`, group.from)
      if (group.rows !== undefined && action !== 'copy') this.fail(`${where}.rows`, `none for ${action}`, group.rows)
      const rows = group.rows === undefined ? undefined : this.list(group.rows, `${where}.rows`)
      for (const row of rows ?? [])
        if (typeof row !== 'string' && !(Number.isInteger(row) && (row as number) >= 0)) this.fail(`${where}.rows`, 'tokens or row numbers', row)
      return {
        match: match.map((pattern) => this.string(pattern, `${where}.match`)),
        action,
        ...(group.from !== undefined && { from: this.model(group.from, `${where}.from`) }),
        ...(rows !== undefined && { rows: rows as (string | number)[] }),
      }
    })
  }
}

const topKeys = ['merge_method', 'base_model', 'models', 'slices', 'parameters', 'dtype', 'out_dtype', 'tokenizer_source', 'tokenizer', 'conan']

/**
 * Checks a recipe.
 * @param value mergekit's recipe as an object
 * @param subject names it in errors
 * @throws ConanError RECIPE_INVALID
 */
export function readRecipe(value: unknown, subject = 'recipe'): Recipe {
  const read: Reader = new Reader(subject) // typed, so that fail() ends control flow
  const top = read.object(value, 'recipe', topKeys)
  const mergeMethod = read.string(top.merge_method, 'merge_method')
  const method = Object.hasOwn(methods, mergeMethod) ? methods[mergeMethod] : undefined
  if (!method) read.fail('merge_method', `one of ${Object.keys(methods).join(', ')}`, mergeMethod)
  const all = { ...method.perModel, ...method.shared }
  const parameters = read.settings(top.parameters, 'parameters', all)
  if ((top.models === undefined) === (top.slices === undefined)) read.fail('recipe', 'either models or slices', Object.keys(top))

  let slices: RecipeSlice[]
  if (top.models !== undefined) {
    const sources = read.list(top.models, 'models').map((entry, i) => {
      const where = `models[${i}]`
      const source = read.object(entry, where, ['model', 'parameters'])
      return { model: read.model(source.model, `${where}.model`), parameters: read.settings(source.parameters, `${where}.parameters`, method.perModel) }
    })
    slices = [{ sources, parameters: {} }]
  } else {
    slices = read.list(top.slices, 'slices').map((entry, i) => {
      const slice = read.object(entry, `slices[${i}]`, ['sources', 'parameters'])
      const sources = read.list(slice.sources, `slices[${i}].sources`).map((part, j) => {
        const where = `slices[${i}].sources[${j}]`
        const source = read.object(part, where, ['model', 'layer_range', 'parameters'])
        const range = read.list(source.layer_range, `${where}.layer_range`) as number[]
        const [first, end] = range
        if (range.length !== 2 || !range.every(Number.isInteger) || first! < 0 || end! <= first!)
          read.fail(`${where}.layer_range`, 'two rising layer numbers [first, end)', JSON.stringify(range))
        return {
          model: read.model(source.model, `${where}.model`),
          layerRange: [first, end] as [number, number],
          parameters: read.settings(source.parameters, `${where}.parameters`, method.perModel),
        }
      })
      const lengths = new Set(sources.map(({ layerRange: [a, b] }) => b - a))
      if (lengths.size > 1) read.fail(`slices[${i}].sources`, 'layer ranges of one length', [...lengths].join(' and '))
      return { sources, parameters: read.settings(slice.parameters, `slices[${i}].parameters`, all) }
    })
  }

  const baseModel = top.base_model === undefined ? undefined : read.model(top.base_model, 'base_model')
  if (baseModel === undefined && (method.base === 'required' || method.base === 'first'))
    read.fail('base_model', `a model (${mergeMethod} needs one)`, baseModel)
  for (const [i, slice] of slices.entries()) {
    const where = top.models !== undefined ? 'models' : `slices[${i}].sources`
    const names = slice.sources.map(({ model }) => model)
    const twice = names.find((name, at) => names.indexOf(name) !== at)
    if (twice !== undefined) read.fail(where, 'every model once', twice)
    const count = method.base === 'parent' ? names.length : names.filter((name) => name !== baseModel).length
    const [min, max] = method.models
    if (count < min || count > max)
      read.fail(
        where,
        `${min === max ? min : max === Number.POSITIVE_INFINITY ? `${min} or more` : `${min} to ${max}`} models${method.base === 'parent' ? '' : ' beside the base'} for ${mergeMethod}`,
        count,
      )
    for (const source of slice.sources)
      for (const [name, parameter] of Object.entries(method.perModel))
        if (
          parameter.default === undefined &&
          !(source.model === baseModel && method.base !== 'parent') &&
          ![source.parameters, slice.parameters, parameters].some((p) => name in p)
        )
          read.fail(`${where}: ${source.model}`, `a parameter "${name}" (${mergeMethod})`, undefined)
    for (const [name, parameter] of Object.entries(method.shared))
      if (parameter.default === undefined && ![slice.parameters, parameters].some((p) => name in p))
        read.fail('parameters', `"${name}" (${mergeMethod})`, undefined)
  }

  if (top.tokenizer !== undefined && top.tokenizer_source !== undefined) read.fail('tokenizer', 'either tokenizer or tokenizer_source', 'both')
  const tokenizer = top.tokenizer === undefined ? {} : read.object(top.tokenizer, 'tokenizer', ['source', 'pad_to_multiple_of'])
  const padToMultipleOf = tokenizer.pad_to_multiple_of ?? 1
  if (!Number.isInteger(padToMultipleOf) || (padToMultipleOf as number) < 1)
    read.fail('tokenizer.pad_to_multiple_of', 'a positive whole number', padToMultipleOf)

  const conan = top.conan === undefined ? {} : read.object(top.conan, 'conan', ['groups', 'seed', 'files_from'])
  const seed = conan.seed ?? 0
  if (!Number.isSafeInteger(seed) || (seed as number) < 0) read.fail('conan.seed', 'a whole number from 0', seed)
  const dtype = read.dtype(top.dtype, 'dtype')
  const outDtype = read.dtype(top.out_dtype, 'out_dtype')
  const tokenizerSource = read.optionalString(top.tokenizer_source ?? tokenizer.source, 'tokenizer_source')
  const filesFrom = conan.files_from === undefined ? undefined : read.model(conan.files_from, 'conan.files_from')
  return {
    mergeMethod,
    method,
    ...(baseModel !== undefined && { baseModel }),
    slices,
    sliced: top.slices !== undefined,
    parameters,
    ...(dtype !== undefined && { dtype }),
    ...(outDtype !== undefined && { outDtype }),
    ...(tokenizerSource !== undefined && { tokenizerSource }),
    padToMultipleOf: padToMultipleOf as number,
    groups: read.groups(conan.groups),
    seed: seed as number,
    ...(filesFrom !== undefined && { filesFrom }),
    given: value,
  }
}

/** Reads a recipe from a YAML file. */
export const readRecipeFile = (file: string): Recipe => readRecipe(readRecipeValue(file), path.basename(file))

/** What stands in a YAML file, unchecked. */
export const readRecipeValue = (file: string): unknown => readYaml(file, 'RECIPE_INVALID')

/**
 * The value of a parameter for one tensor.
 * @param t where the tensor's layer lies among its layers, 0 to 1
 */
export function evaluateSetting(setting: Setting | undefined, tensor: string, t: number): Scalar | undefined {
  if (!Array.isArray(setting)) return setting
  if (typeof setting[0] === 'object') {
    const conditions = setting as { filter?: string; value: Scalar | Scalar[] }[]
    const matching = conditions.find(({ filter }) => filter === undefined || filter === '*' || tensor.includes(filter))
    return evaluateSetting(matching?.value, tensor, t)
  }
  const values = setting as Scalar[]
  const at = t * (values.length - 1)
  const low = Math.floor(at)
  const a = values[low]
  const b = values[Math.min(low + 1, values.length - 1)]
  return typeof a === 'number' && typeof b === 'number' ? (1 - (at - low)) * a + (at - low) * b : a
}

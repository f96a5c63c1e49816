// Decides what becomes of every tensor of every parent, before anything is computed: which tensors the output has, how each
// is made, and where every parent's tensor went. What has no place is an error that names it.
import path from 'node:path'
import { ConanError } from '../errors'
import { floats, layerCounts, layerOf, mainStack, openParent, type Parent, resolveModel, sizeOf } from './parents'
import { evaluateSetting, type Recipe, type RecipeGroup, type RecipeSlice, type RecipeSource } from './recipe'
import { conflict, isVocabularyTensor, type OutputVocabulary, outputVocabulary, readVocabulary, rowsFor, type Vocabulary } from './vocabulary'

/** What happened to one tensor of one parent. */
export type Fate = 'merged' | 'copied' | 'kept' | 'replaced' | 'dropped'

interface Ref {
  checkpoint: number
  tensor: string
}
interface RunsRef {
  shape: number[]
  runs: [number, [Ref, number][]][]
}

export interface PlannedParent {
  model: string
  tensor: string
  parameters: Record<string, number | boolean>
}

export interface PlannedTensor {
  name: string
  shape: number[]
  dtype: string
  action: 'merge' | 'copy' | 'keep'
  parents: PlannedParent[]
  /** Rows that a group copies from elsewhere. */
  rows: { row: number; from: string; sourceRow: number }[]
  /** For native/merge/fuse.h. */
  native: Record<string, unknown>
}

export interface FusePlan {
  parents: Parent[]
  tensors: PlannedTensor[]
  fates: Map<Parent, Map<string, Fate>>
  /** Whose config, tokenizer and processor files the output gets. */
  filesFrom: Parent
  vocabulary?: OutputVocabulary
  /** For sliced recipes: which layers of the first source make up the output. */
  layers?: number[]
  files: { name: string; tensors: number[]; bytes: number }[]
  totalBytes: number
}

const bytesPer: Record<string, number> = {
  float64: 8,
  int64: 8,
  uint64: 8,
  float32: 4,
  int32: 4,
  uint32: 4,
  bfloat16: 2,
  float16: 2,
  int16: 2,
  uint16: 2,
}
export const elementBytes = ({ dtype }: { dtype: string }) => bytesPer[dtype] ?? 1

function matches(pattern: string, name: string): boolean {
  const parts = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${parts.join('.*')}$`).test(name)
}

/** One tensor of the output before it is decided how it is made. */
interface Slot {
  name: string
  slice: RecipeSlice
  /** The name that the tensor has in each source. */
  inputs: { source: RecipeSource; tensor: string }[]
  t: number
}

class Planner {
  readonly parents: Parent[] = []
  private readonly byName = new Map<string, Parent>()
  private readonly problems: string[] = []
  private readonly base: Parent | undefined
  private readonly merging: Parent[]
  private readonly donors = new Set<Parent>()
  private vocabularies: Vocabulary[] = []
  private vocabulary: OutputVocabulary | undefined

  constructor(
    private readonly recipe: Recipe,
    private readonly directory: string,
  ) {
    if (recipe.baseModel !== undefined) this.base = this.open(recipe.baseModel)
    const names = new Set(recipe.slices.flatMap(({ sources }) => sources.map(({ model }) => model)))
    this.merging = [...names].map((name) => this.open(name))
    if (this.base && recipe.method.base !== 'parent' && !this.merging.includes(this.base)) this.merging.unshift(this.base)
    for (const { from } of recipe.groups)
      if (from !== undefined) {
        const donor = this.open(from)
        if (!this.merging.includes(donor)) this.donors.add(donor)
      }
    if (recipe.groups.some(({ action }) => action === 'keep')) {
      if (!this.base) throw new ConanError('RECIPE_INVALID', 'conan.groups: action keep: expected a base_model to keep from, found none')
      if (!this.merging.includes(this.base)) this.donors.add(this.base)
    }
  }

  /** The same directory with the same adapters is one parent, however it is written. */
  private open(name: string): Parent {
    const known = this.byName.get(name)
    if (known) return known
    const opened = openParent(name, this.directory, this.base?.root)
    const same = this.parents.find((other) => other.root === opened.root && other.adapters.join() === opened.adapters.join())
    if (!same) this.parents.push(opened)
    this.byName.set(name, same ?? opened)
    return same ?? opened
  }

  plan(shardBytes: number): FusePlan {
    this.readVocabularies()
    const { slots, layers } = this.slots()
    const tensors: PlannedTensor[] = []
    for (const slot of slots) {
      const planned = this.planTensor(slot)
      if (planned) tensors.push(planned)
    }
    const fates = this.account(slots, tensors)
    if (this.problems.length) {
      const more = this.problems.length - 8
      throw new ConanError('TENSOR_UNACCOUNTED', `${this.problems.slice(0, 8).join('\n')}${more > 0 ? `\nand ${more} more` : ''}`)
    }
    if (tensors.length === 0) throw new ConanError('RECIPE_INVALID', 'expected a recipe that makes at least one tensor, every one is dropped')
    // Larger elements first: then every tensor lies aligned. Among them, the order in which the parents' files are read.
    const sorted = tensors.sort((a, b) => elementBytes(b) - elementBytes(a))
    return {
      parents: this.parents,
      tensors: sorted,
      fates,
      filesFrom: this.filesFrom(sorted),
      ...(this.vocabulary && { vocabulary: this.vocabulary }),
      ...(layers && { layers }),
      ...shards(sorted, shardBytes),
    }
  }

  // ---- vocabularies

  private get first(): Parent {
    return this.base ?? (this.merging[0] as Parent)
  }

  private readVocabularies(): void {
    for (const parent of this.merging) {
      const vocabulary = readVocabulary(parent, this.vocabularies)
      if (vocabulary) this.vocabularies.push(vocabulary)
    }
    const wanted = this.recipe.tokenizerSource
    const first = this.vocabularies.find(({ parent }) => parent === this.first)
    if (wanted === undefined) {
      for (const other of this.vocabularies) {
        const problem = first && other !== first ? conflict(first, other) : undefined
        if (problem)
          throw new ConanError(
            'TOKENIZER_INVALID',
            `different vocabularies: ${problem}; expected tokenizer_source (base, union or a model) in the recipe, so that rows are matched by token`,
          )
      }
      return
    }
    if (this.vocabularies.length !== this.merging.length || !first) {
      const lacking = this.merging.find((parent) => !this.vocabularies.some((vocabulary) => vocabulary.parent === parent)) ?? this.first
      throw new ConanError('TOKENIZER_INVALID', `tokenizer_source: expected tokenizer.json in ${lacking.root}, found none`)
    }
    let source: 'union' | Vocabulary = 'union'
    if (wanted === 'base') source = first
    else if (wanted !== 'union') {
      const root = resolveModel(wanted, this.directory)
      const found = this.vocabularies.find(({ parent }) => parent.name === wanted || parent.root === root)
      if (!found) throw new ConanError('RECIPE_INVALID', `tokenizer_source: expected base, union or a model of the recipe, got "${wanted}"`)
      source = found
    }
    this.vocabulary = outputVocabulary(source, first, this.vocabularies, this.recipe.padToMultipleOf)
  }

  // ---- which tensors there are

  private slots(): { slots: Slot[]; layers?: number[] } {
    const [firstSlice] = this.recipe.slices as [RecipeSlice]
    const order = [this.first, ...this.merging, ...this.donors]
    const names = new Set(order.flatMap((parent) => (this.merging.includes(parent) || this.donors.has(parent) ? [...parent.tensors.keys()] : [])))
    if (!this.recipe.sliced) {
      const counts = layerCounts(names)
      const slots = [...names].map((name): Slot => {
        const place = layerOf(name)
        const layers = place ? (counts.get(place.stack) as number) : 0
        return {
          name,
          slice: firstSlice,
          inputs: firstSlice.sources.map((source) => ({ source, tensor: name })),
          t: place ? (layers > 1 ? place.layer / (layers - 1) : 1) : 0,
        }
      })
      return { slots }
    }

    const stack = mainStack(this.byName.get(firstSlice.sources[0]!.model) as Parent)
    const slots: Slot[] = []
    const layers: number[] = []
    const lastSlice = this.recipe.slices.at(-1) as RecipeSlice
    const isLast = (name: string) => /(^|\.)(norm|final_layer_norm|layer_norm|ln_f|lm_head|score|classifier)\./.test(name)
    for (const name of names) {
      const place = layerOf(name)
      if (place?.stack === stack) continue
      const slice = isLast(name) && !place ? lastSlice : firstSlice
      slots.push({ name, slice, inputs: slice.sources.map((source) => ({ source, tensor: name })), t: 0 })
    }
    for (const slice of this.recipe.slices) {
      const ranges = slice.sources.map(({ layerRange }) => layerRange as [number, number])
      const length = ranges[0]![1] - ranges[0]![0]
      for (const [i, source] of slice.sources.entries()) {
        const there = layerCounts((this.byName.get(source.model) as Parent).tensors.keys()).get(stack) ?? 0
        if (ranges[i]![1] > there)
          throw new ConanError(
            'RECIPE_INVALID',
            `layer_range of ${source.model}: expected at most ${there} layers of ${stack}, got ${JSON.stringify(ranges[i])}`,
          )
      }
      for (let offset = 0; offset < length; offset++) {
        const rests = new Set<string>()
        for (const [i, source] of slice.sources.entries())
          for (const name of (this.byName.get(source.model) as Parent).tensors.keys()) {
            const place = layerOf(name)
            if (place?.stack === stack && place.layer === ranges[i]![0] + offset) rests.add(place.rest)
          }
        for (const rest of rests)
          slots.push({
            name: `${stack}.${layers.length}.${rest}`,
            slice,
            inputs: slice.sources.map((source, i) => ({ source, tensor: `${stack}.${ranges[i]![0] + offset}.${rest}` })),
            t: length > 1 ? offset / (length - 1) : 1,
          })
        layers.push(ranges[0]![0] + offset)
      }
    }
    return { slots, layers }
  }

  // ---- how each is made

  private groupOf(name: string): RecipeGroup | undefined {
    return this.recipe.groups.find((group) => !group.rows && group.match.some((pattern) => matches(pattern, name)))
  }

  private ref(parent: Parent, tensor: string): Ref {
    return { checkpoint: this.parents.indexOf(parent), tensor }
  }

  private dtypeOf(parent: Parent, tensor: string): string {
    const stored = parent.tensors.get(tensor)!.dtype
    return floats.includes(stored) ? (this.recipe.outDtype ?? this.recipe.dtype ?? stored) : stored
  }

  private planTensor(slot: Slot): PlannedTensor | undefined {
    const group = this.groupOf(slot.name)
    if (group?.action === 'drop') return undefined
    if (group?.action === 'copy' || group?.action === 'keep') {
      const from = group.action === 'keep' ? (this.base as Parent) : (this.byName.get(group.from as string) as Parent)
      const tensor = from.tensors.get(slot.name)
      if (!tensor) {
        this.problems.push(
          `tensor "${slot.name}": conan.groups ${group.action === 'keep' ? 'keeps it' : 'copies it'} from ${from.name}, which does not have it`,
        )
        return undefined
      }
      return this.finish(slot, from, {
        action: group.action,
        parents: [{ model: from.name, tensor: slot.name, parameters: {} }],
        native: { algorithm: 'copy', options: {}, parents: [this.ref(from, slot.name)] },
      })
    }
    return this.planMerge(slot)
  }

  private planMerge(slot: Slot): PlannedTensor | undefined {
    const { method, baseModel } = this.recipe
    const usesBase = method.base !== 'parent' && this.base !== undefined
    const inputs = slot.inputs.map(({ source, tensor }) => ({ source, tensor, parent: this.byName.get(source.model) as Parent }))
    let baseTensor = slot.name
    if (usesBase && this.recipe.sliced) {
      const listed = inputs.find(({ parent }) => parent === this.base)
      if (!listed) throw new ConanError('RECIPE_INVALID', `slices: expected base_model ${baseModel} among the sources of every slice, for its layer_range`)
      baseTensor = listed.tensor
    }
    const others = usesBase ? inputs.filter(({ parent }) => parent !== this.base) : inputs
    const needed = [...(usesBase ? [{ parent: this.base as Parent, tensor: baseTensor }] : []), ...others]
    const lacking = needed.filter(({ parent, tensor }) => !parent.tensors.has(tensor))
    if (lacking.length) {
      const holders = [...this.merging, ...this.donors].filter((parent) => parent.tensors.has(slot.name)).map(({ name }) => name)
      this.problems.push(
        `tensor "${slot.name}": in ${holders.join(', ') || 'no model'} but not in ${lacking.map(({ parent }) => parent.name).join(', ')}: expected a conan.groups entry that copies or drops it`,
      )
      return undefined
    }
    const [reference] = needed as [{ parent: Parent; tensor: string }]
    const stored = reference.parent.tensors.get(reference.tensor)!
    const kinds = new Set(needed.map(({ parent, tensor }) => floats.includes(parent.tensors.get(tensor)!.dtype)))
    if (!kinds.has(true)) {
      // Buffers such as position ids: all parents must hold the same.
      return this.finish(
        slot,
        reference.parent,
        {
          action: 'keep',
          parents: needed.map(({ parent, tensor }) => ({ model: parent.name, tensor, parameters: {} })),
          native: { algorithm: 'identical', options: {}, parents: needed.map(({ parent, tensor }) => this.ref(parent, tensor)) },
        },
        reference.tensor,
      )
    }
    if (kinds.has(false)) {
      const odd = needed.find(({ parent, tensor }) => !floats.includes(parent.tensors.get(tensor)!.dtype)) as { parent: Parent; tensor: string }
      throw new ConanError(
        'UNSUPPORTED_DTYPE',
        `${odd.parent.name}: tensor "${odd.tensor}": expected ${floats.join(', ')} to merge, got ${odd.parent.tensors.get(odd.tensor)!.dtype}`,
      )
    }

    // Rows by token where the models number theirs differently.
    const byToken = this.vocabulary !== undefined && needed.every(({ parent, tensor }) => isVocabularyTensor(parent, tensor))
    let shape = stored.shape
    const refs = new Map<Parent, Ref | RunsRef>()
    if (byToken) {
      const output = this.vocabulary as OutputVocabulary
      shape = [output.rows, ...stored.shape.slice(1)]
      for (const { parent, tensor } of needed) {
        const own = this.vocabularies.findIndex((vocabulary) => vocabulary.parent === parent)
        const base = this.vocabularies.findIndex((vocabulary) => vocabulary.parent === this.first)
        const runs = rowsFor(own, this.vocabularies, base, output)
        const single = runs.length === 1 && runs[0]![1][0]?.[0] === own && runs[0]![1][0]?.[1] === 0 && parent.tensors.get(tensor)!.shape[0] === output.rows
        if (single) continue
        refs.set(parent, {
          shape,
          runs: runs.map(([count, from]) => [count, from.map(([index, row]): [Ref, number] => [this.ref(this.vocabularies[index]!.parent, tensor), row])]),
        })
      }
    }
    for (const { parent, tensor } of needed) {
      const own = parent.tensors.get(tensor)!.shape
      const [a, b] = byToken ? [own.slice(1), shape.slice(1)] : [own, shape]
      if (a.join() !== b.join())
        throw new ConanError(
          'TENSOR_SHAPE',
          `${parent.name}: tensor "${tensor}": expected [${shape.join(', ')}] as in ${reference.parent.name}, got [${own.join(', ')}]${isVocabularyTensor(parent, tensor) ? ' (different vocabularies? then say tokenizer_source)' : ''}`,
        )
    }

    const value = (name: string, source?: RecipeSource) => {
      const parameter = method.perModel[name] ?? method.shared[name]!
      for (const settings of [source?.parameters, slot.slice.parameters, this.recipe.parameters]) {
        const found = settings && name in settings ? evaluateSetting(settings[name], slot.name, slot.t) : undefined
        if (found !== undefined) return found
      }
      if (parameter.default === undefined)
        throw new ConanError(
          'RECIPE_INVALID',
          `parameter "${name}"${source ? ` of ${source.model}` : ''}: expected a value for tensor "${slot.name}", found none`,
        )
      return parameter.default
    }
    const parameters = (names: string[], source?: RecipeSource) => Object.fromEntries(names.map((name) => [name, value(name, source)]))
    const planned = others.map(({ source, tensor, parent }) => ({ parent, tensor, parameters: parameters(Object.keys(method.perModel), source) }))
    for (const { parent, parameters: own } of planned) {
      const expected = method.check?.(own)
      if (expected) throw new ConanError('RECIPE_INVALID', `${parent.name}: tensor "${slot.name}": expected ${expected}`)
    }
    // Sums are taken in an order of their own, so that the order of the models in the recipe changes nothing.
    const place = (entry: { parent: Parent; tensor: string }) => `${entry.parent.root}\n${entry.parent.adapters.join('\n')}\n${entry.tensor}`
    if (method.symmetric) planned.sort((a, b) => (place(a) < place(b) ? -1 : 1))
    const shared = parameters(Object.keys(method.shared))
    const refOf = (parent: Parent, tensor: string) => refs.get(parent) ?? this.ref(parent, tensor)
    const withParameters = planned.map(({ parent, tensor, parameters: own }) => ({ ...refOf(parent, tensor), ...own }))
    const baseRef = usesBase ? refOf(this.base as Parent, baseTensor) : undefined
    return this.finish(
      slot,
      reference.parent,
      {
        action: 'merge',
        parents: planned.map(({ parent, tensor, parameters: own }) => ({ model: parent.name, tensor, parameters: own })),
        native: {
          algorithm: method.algorithm,
          options: {
            ...method.options,
            ...shared,
            ...(method.algorithm === 'combination' && planned.length === 1 && planned[0]!.parameters),
            ...(method.algorithm === 'spectral' && { matrix: !isVocabularyTensor(reference.parent, reference.tensor) }),
          },
          ...(baseRef && method.base !== 'first' && { base: baseRef }),
          parents: method.base === 'first' ? [baseRef, ...withParameters] : withParameters,
        },
      },
      reference.tensor,
      shape,
    )
  }

  private finish(
    slot: Slot,
    like: Parent,
    planned: Pick<PlannedTensor, 'action' | 'parents' | 'native'>,
    tensor = slot.name,
    shape = like.tensors.get(tensor)!.shape,
  ): PlannedTensor {
    const dtype = this.dtypeOf(like, tensor)
    const rows = this.rowPatches(slot, shape)
    const native: Record<string, unknown> = { name: slot.name, shape, dtype, ...planned.native }
    if (rows.length) native.patches = rows.map(({ row, parent, sourceRow }) => ({ row, source: this.ref(parent, slot.name), sourceRow }))
    return { name: slot.name, shape, dtype, ...planned, rows: rows.map(({ row, parent, sourceRow }) => ({ row, from: parent.name, sourceRow })), native }
  }

  private rowPatches(slot: Slot, shape: number[]): { row: number; parent: Parent; sourceRow: number }[] {
    const patches = new Map<number, { row: number; parent: Parent; sourceRow: number }>()
    for (const group of this.recipe.groups) {
      if (!group.rows || !group.match.some((pattern) => matches(pattern, slot.name))) continue
      const parent = this.byName.get(group.from as string) as Parent
      const tensor = parent.tensors.get(slot.name)
      const where = `conan.groups: rows of "${slot.name}" from ${parent.name}`
      if (!tensor) throw new ConanError('TENSOR_MISSING', `${where}: expected the tensor there, found none`)
      if (shape.length < 2 || tensor.shape.slice(1).join() !== shape.slice(1).join())
        throw new ConanError('TENSOR_SHAPE', `${where}: expected rows of [${shape.slice(1).join(', ')}], got [${tensor.shape.slice(1).join(', ')}]`)
      const vocabulary = group.rows.some((row) => typeof row === 'string') ? readVocabulary(parent, this.vocabularies) : undefined
      for (const wanted of group.rows) {
        const sourceRow = typeof wanted === 'number' ? wanted : vocabulary?.ids.get(wanted)
        if (sourceRow === undefined)
          throw new ConanError('TOKENIZER_INVALID', `${where}: expected a token ${JSON.stringify(wanted)} in its tokenizer.json, found none`)
        const row = this.vocabulary && typeof wanted === 'string' ? this.vocabulary.ids.get(wanted) : sourceRow
        if (row === undefined || row >= shape[0]! || sourceRow >= tensor.shape[0]!)
          throw new ConanError('TENSOR_SHAPE', `${where}: expected rows below ${Math.min(shape[0]!, tensor.shape[0]!)}, got ${row ?? JSON.stringify(wanted)}`)
        if (!patches.has(row)) patches.set(row, { row, parent, sourceRow })
      }
    }
    return [...patches.values()].sort((a, b) => a.row - b.row)
  }

  // ---- where everything went

  private account(slots: Slot[], tensors: PlannedTensor[]): Map<Parent, Map<string, Fate>> {
    const fates = new Map(this.parents.map((parent) => [parent, new Map<string, Fate>()]))
    const outputs = new Map(tensors.map((tensor) => [tensor.name, tensor]))
    for (const tensor of tensors) {
      for (const { model, tensor: name } of tensor.parents)
        fates.get(this.byName.get(model) as Parent)!.set(name, tensor.action === 'merge' ? 'merged' : tensor.action === 'keep' ? 'kept' : 'copied')
      const { base } = tensor.native as { base?: Ref | RunsRef }
      if (tensor.action === 'merge' && this.base && (base || this.recipe.method.base === 'first'))
        fates.get(this.base)!.set(base && 'tensor' in base ? base.tensor : tensor.name, 'merged')
      for (const { from } of tensor.rows) {
        const fate = fates.get(this.byName.get(from) as Parent)!
        if (!fate.has(tensor.name)) fate.set(tensor.name, 'copied')
      }
    }
    const slotNames = new Set(slots.map(({ name }) => name))
    for (const parent of this.parents) {
      const fate = fates.get(parent)!
      const takesPart = this.merging.includes(parent) || this.donors.has(parent)
      for (const name of parent.tensors.keys()) {
        if (fate.has(name)) continue
        // Not used itself: its place in the output is filled from elsewhere, a group drops it, or the slices leave it out.
        if (outputs.has(name)) fate.set(name, 'replaced')
        else if (this.groupOf(name)?.action === 'drop' || (this.recipe.sliced && !slotNames.has(name)) || !takesPart) fate.set(name, 'dropped')
        else if (!this.problems.some((problem) => problem.includes(`"${name}"`)))
          this.problems.push(`tensor "${name}" of ${parent.name}: expected a place in the output, found none`)
      }
    }
    return fates
  }

  /** Files come from where the recipe says; else from the one parent whose tensors the base lacks; else from the base. */
  private filesFrom(tensors: PlannedTensor[]): Parent {
    if (this.recipe.filesFrom !== undefined) return this.open(this.recipe.filesFrom)
    const extending = new Set(
      tensors.filter((tensor) => tensor.action === 'copy' && !this.first.tensors.has(tensor.name)).map((tensor) => tensor.parents[0]!.model),
    )
    if (extending.size > 1)
      throw new ConanError(
        'RECIPE_INVALID',
        `conan.files_from: expected the model whose config and tokenizer describe the result: tensors that ${this.first.name} lacks come from ${[...extending].join(' and ')}`,
      )
    const [only] = extending
    return only === undefined ? this.first : (this.byName.get(only) as Parent)
  }
}

/** The files that tensors are written to, in order: as many as fit into each. */
export function shards(tensors: Pick<PlannedTensor, 'shape' | 'dtype'>[], shardBytes: number): Pick<FusePlan, 'files' | 'totalBytes'> {
  const files: { name: string; tensors: number[]; bytes: number }[] = []
  let totalBytes = 0
  for (const [index, tensor] of tensors.entries()) {
    const bytes = sizeOf(tensor.shape) * elementBytes(tensor)
    const last = files.at(-1)
    if (!last || last.bytes + bytes > shardBytes) files.push({ name: '', tensors: [index], bytes })
    else {
      last.tensors.push(index)
      last.bytes += bytes
    }
    totalBytes += bytes
  }
  const number = (n: number) => String(n).padStart(5, '0')
  for (const [i, file] of files.entries())
    file.name = files.length === 1 ? 'model.safetensors' : `model-${number(i + 1)}-of-${number(files.length)}.safetensors`
  return { files, totalBytes }
}

/**
 * @param recipeDirectory what relative paths of the recipe are relative to (else the working directory)
 * @throws ConanError RECIPE_INVALID, MODEL_NOT_FOUND, TENSOR_UNACCOUNTED, TENSOR_SHAPE, TOKENIZER_INVALID, UNSUPPORTED_DTYPE, FILE_CORRUPT
 */
export function planFusion(recipe: Recipe, recipeDirectory: string, shardBytes: number): FusePlan {
  return new Planner(recipe, path.resolve(recipeDirectory)).plan(shardBytes)
}

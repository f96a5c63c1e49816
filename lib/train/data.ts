// Training rows: one file or a weighted list of them.
import { existsSync, statSync } from 'node:fs'
import path from 'node:path'
import type { EmbedInput } from '../embed/inputs'
import { ConanError, shown } from '../errors'
import { readYaml } from '../files/json'
import { NpyReader } from '../files/npy'
import { located, rowsOf } from '../files/rows'

export interface TrainingRow {
  query: EmbedInput
  positives: EmbedInput[]
  negatives: EmbedInput[]
  /** For graded pairs: how similar query and positive are. */
  score?: number
  /** For distillation: what a teacher makes of the query. */
  vector?: () => Float32Array
}

export interface Dataset {
  name: string
  rows: TrainingRow[]
  /** For `sampling: 'weighted'`; default 1. */
  weight: number
  /** For `sampling: 'equal'`: datasets of one modality share its part. */
  modality: string
  /** Whether documents look for their queries as well; undefined: as the run says. */
  bidirectional?: boolean
  /** What the rows, and a teacher's vectors, were read from. */
  files: string[]
}

/** One entry of a dataset list. */
export interface DatasetSource {
  path?: string
  rows?: object[]
  /** For distillation: an .npy matrix with a teacher's vector for every row. */
  vectors?: string
  name?: string
  weight?: number
  modality?: string
  bidirectional?: boolean
}

/** A teacher's vector, from the row itself or from a file with one for every row. */
function teacherOf(row: Record<string, unknown>, i: number, teacher: NpyReader | undefined, where: string): { vector?: () => Float32Array } {
  if (teacher) return { vector: () => teacher.row(i) }
  if (row.vector === undefined) return {}
  const values = row.vector
  if (!(values instanceof Float32Array) && !(Array.isArray(values) && values.length > 0 && values.every((x) => typeof x === 'number')))
    throw new ConanError('INVALID_INPUT', `${where}: expected numbers as "vector", got ${shown(values)}`)
  return { vector: () => Float32Array.from(values) }
}

function rowOf(given: unknown, i: number, name: string, directory: string | undefined, file: NpyReader | undefined): TrainingRow {
  const where = `${name}: row ${i + 1}`
  const row = (typeof given === 'object' && given !== null ? given : {}) as Record<string, unknown>
  const query = row.query ?? row.anchor
  const wrong = (expected: string, got: unknown) => new ConanError('INVALID_INPUT', `${where}: expected ${expected}, got ${shown(got)}`)
  if (query === undefined) throw wrong('an object with "query" (or "anchor") and "positive"', given)
  const positives = row.positive === undefined ? (row.positives ?? []) : row.positive
  const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : [value])
  // negative, negatives, negative_1, negative_2, ... as sentence-transformers and mteb write them
  const negatives = Object.entries(row)
    .filter(([key, value]) => /^negatives?(_\d+)?$/.test(key) && value !== undefined && value !== null)
    .flatMap(([, value]) => list(value))
  const values = [query, ...list(positives), ...negatives]
  for (const value of values)
    if (typeof value !== 'string' && (typeof value !== 'object' || value === null)) throw wrong('texts or objects with text, image, ...', value)
  const teacher = teacherOf(row, i, file, where)
  if (list(positives).length === 0 && !teacher.vector) throw new ConanError('INVALID_INPUT', `${where}: expected a positive, found none`)
  const score = row.score ?? row.label
  if (score !== undefined && typeof score !== 'number') throw wrong('a number as "score"', score)
  const at = (value: unknown) => located(value, directory) as EmbedInput
  return { query: at(query), positives: list(positives).map(at), negatives: negatives.map(at), ...(score !== undefined && { score }), ...teacher }
}

const sourceKeys = new Map([
  ['path', 'string'],
  ['rows', 'object'],
  ['vectors', 'string'],
  ['name', 'string'],
  ['weight', 'number'],
  ['modality', 'string'],
  ['bidirectional', 'boolean'],
])

async function datasetOf(source: DatasetSource, base: string): Promise<Dataset> {
  if (typeof source !== 'object' || source === null)
    throw new ConanError('INVALID_OPTION', `data: expected an object with "path" or "rows", got ${shown(source)}`)
  for (const [key, value] of Object.entries(source)) {
    const expected = sourceKeys.get(key)
    if (expected === undefined) throw new ConanError('INVALID_OPTION', `data: expected ${[...sourceKeys.keys()].join(', ')}, got ${shown(key)}`)
    const type: string = typeof value
    if (value !== undefined && type !== expected) throw new ConanError('INVALID_OPTION', `data: ${key}: expected ${expected}, got ${shown(value)}`)
  }
  let rows: unknown[]
  const files: string[] = []
  let name = source.name ?? 'rows'
  let directory: string | undefined
  if (source.path !== undefined) {
    const file = path.resolve(base, source.path)
    if (!existsSync(file) || !statSync(file).isFile())
      throw new ConanError('FILE_IO', `data: ${file}: expected a file, found ${existsSync(file) ? 'something else' : 'none'}`)
    rows = []
    for await (const { value } of rowsOf(file)) rows.push(value)
    files.push(file)
    name = source.name ?? source.path
    directory = path.dirname(file)
  } else if (Array.isArray(source.rows)) rows = source.rows
  else throw new ConanError('INVALID_OPTION', `data: expected "path" or "rows", got ${shown(source)}`)
  if (rows.length === 0) throw new ConanError('INVALID_INPUT', `data: ${name}: expected rows, found none`)
  if (source.weight !== undefined && !(source.weight > 0 && Number.isFinite(source.weight)))
    throw new ConanError('INVALID_OPTION', `data: ${name}: weight: expected a positive number, got ${shown(source.weight)}`)
  const vectors = source.vectors === undefined ? undefined : path.resolve(base, source.vectors)
  if (vectors !== undefined) files.push(vectors)
  const teacher = vectors === undefined ? undefined : new NpyReader(vectors)
  if (teacher && teacher.rows !== rows.length)
    throw new ConanError('INVALID_INPUT', `data: ${name}: expected ${rows.length} vectors, one for every row, found ${teacher.rows} in ${source.vectors}`)
  return {
    name,
    rows: rows.map((row, i) => rowOf(row, i, name, directory, teacher)),
    weight: source.weight ?? 1,
    modality: source.modality ?? name,
    files,
    ...(source.bidirectional !== undefined && { bidirectional: source.bidirectional }),
  }
}

/**
 * Training data: a .jsonl or .parquet file, a YAML file with `datasets: [{path, weight, modality, bidirectional}]`, such a list, or rows.
 *
 * @throws ConanError INVALID_INPUT, INVALID_OPTION, FILE_IO, FILE_CORRUPT
 */
export async function readData(data: string | object[]): Promise<Dataset[]> {
  if (typeof data === 'string' && /\.ya?ml$/.test(data)) {
    const list = (readYaml(data) as { datasets?: unknown } | null)?.datasets
    if (!Array.isArray(list) || list.length === 0) throw new ConanError('INVALID_INPUT', `${data}: expected a list "datasets", got ${shown(list)}`)
    return Promise.all(list.map((source) => datasetOf(source, path.dirname(path.resolve(data)))))
  }
  if (typeof data === 'string') return [await datasetOf({ path: data }, '.')]
  if (!Array.isArray(data) || data.length === 0) throw new ConanError('INVALID_OPTION', `data: expected a file, a list of datasets or rows, got ${shown(data)}`)
  const isList = data.every((each) => typeof each === 'object' && each !== null && ('path' in each || 'rows' in each))
  return Promise.all((isList ? (data as DatasetSource[]) : [{ rows: data }]).map((source) => datasetOf(source, '.')))
}

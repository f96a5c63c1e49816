// evaluate(): a model on tasks described by rows, with results in mteb's JSON.
import { existsSync, mkdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { type EmbedInput, modalities } from '../embed/inputs'
import { best } from '../embed/similarity'
import { ConanError, shown } from '../errors'
import { readYaml } from '../files/json'
import { asFileError, replaceFile, requirePlace } from '../files/output'
import { located, rowsOf } from '../files/rows'
import { type EmbedOptions, type EmbedResult, loadModel, type Model } from '../model'
import { pathOf, requireOptions, wholeNumber } from '../options'
import { distinctDocuments } from '../train/sampler'
import {
  averagePrecision,
  classificationScores,
  kMeans,
  linearProbe,
  multilabelScores,
  nearestNeighbours,
  pearson,
  ranking,
  rankingScores,
  spearman,
  vMeasure,
} from './metrics'

export const taskTypes = ['retrieval', 'classification', 'multilabel', 'zero-shot', 'clustering', 'sts', 'pair', 'reranking'] as const
export type TaskType = (typeof taskTypes)[number]

/**
 * Rows are a .jsonl or .parquet file, or objects. An input is a text, or {text, image, ...}. The names that MTEB's and BEIR's files have are
 * understood too: _id, query-id and corpus-id, sentence1 and sentence2, and text and image in the row itself for `input`.
 * - retrieval: `rows` {query, positive | positives}, all positives being the corpus, or `queries` and `corpus` {id, ...input} with `qrels`
 *   {query, document, score}
 * - classification: `train` and `rows` {input, label}: a linear probe on the vectors
 * - multilabel: `train` and `rows` {input, labels: [...]}: a vote of the five nearest neighbours
 * - zero-shot: `rows` {input, label}, `labels` {label: input}: the nearest label
 * - clustering: `rows` {input, label}
 * - sts: `rows` {left, right, score}          - pair: `rows` {left, right, label: 0 | 1}
 * - reranking: `rows` {query, positives, negatives}
 */
export interface Task {
  name: string
  type: TaskType
  rows?: string | object[]
  queries?: string | object[]
  corpus?: string | object[]
  qrels?: string | object[]
  train?: string | object[]
  labels?: Record<string, EmbedInput>
  /** Of queries. */
  instruction?: string
  /** Which of the scores counts; default as mteb has it for this type. */
  mainScore?: string
}

export interface EvaluateOptions {
  /** Where a result file of mteb's form is written for every task. */
  out?: string
  seed?: number
  signal?: AbortSignal
  onProgress?: (progress: { task: string; done: number; total: number }) => void
}

export interface TaskResult {
  task: string
  type: TaskType
  mainScore: number
  scores: Record<string, number>
  seconds: number
}

const mainScores: Record<TaskType, string> = {
  retrieval: 'ndcg_at_10',
  classification: 'accuracy',
  multilabel: 'lrap',
  'zero-shot': 'accuracy',
  clustering: 'v_measure',
  sts: 'cosine_spearman',
  pair: 'max_ap',
  reranking: 'map_at_1000',
}

type Row = Record<string, unknown>

/** A row whose own members are the input: {text, image, ..., label}. */
function withInput(row: Row): Row {
  const parts = Object.entries(row).filter(([name]) => (modalities as readonly string[]).includes(name))
  return row.input !== undefined || parts.length === 0 ? row : { ...row, input: Object.fromEntries(parts) }
}

class Evaluation {
  constructor(
    private readonly model: Model,
    private readonly task: Task,
    private readonly directory: string,
    private readonly seed: number,
    private readonly signal: AbortSignal | undefined,
  ) {}

  run(): Promise<Record<string, number>> {
    const { type } = this.task
    if (type === 'retrieval') return this.retrieval()
    if (type === 'classification') return this.classification()
    if (type === 'multilabel') return this.multilabel()
    if (type === 'zero-shot') return this.zeroShot()
    if (type === 'clustering') return this.clustering()
    if (type === 'sts') return this.sts()
    return type === 'pair' ? this.pair() : this.reranking()
  }

  private async rows(key: 'rows' | 'queries' | 'corpus' | 'qrels' | 'train'): Promise<Row[]> {
    const given = this.task[key]
    const own = (row: unknown, i: number): Row => {
      if (typeof row !== 'object' || row === null)
        throw new ConanError('INVALID_INPUT', `task ${this.task.name}: ${key}: row ${i + 1}: expected an object, got ${shown(row)}`)
      return row as Row
    }
    if (Array.isArray(given)) return given.map(own)
    if (typeof given !== 'string')
      throw new ConanError('INVALID_INPUT', `task ${this.task.name}: expected "${key}" as a .jsonl or .parquet file or rows, got ${shown(given)}`)
    const file = path.resolve(this.directory, given)
    if (!existsSync(file) || !statSync(file).isFile()) throw new ConanError('FILE_IO', `task ${this.task.name}: ${key}: expected a file ${file}, found none`)
    const folder = key === 'qrels' ? undefined : path.dirname(file) // there a document is an id
    const rows: Row[] = []
    for await (const { value } of rowsOf(file)) {
      const whole = located(own(value, rows.length), folder) as Row
      rows.push(
        Object.fromEntries(
          Object.entries(whole).map(([name, value]) => [name, Array.isArray(value) ? value.map((each) => located(each, folder)) : located(value, folder)]),
        ),
      )
    }
    return rows
  }

  private value<T>(row: Row, key: string, i: number, test: (value: unknown) => boolean, expected: string): T {
    if (!test(row[key])) throw new ConanError('INVALID_INPUT', `task ${this.task.name}: row ${i + 1}: "${key}": expected ${expected}, got ${shown(row[key])}`)
    return row[key] as T
  }

  private input(row: Row, key: string, i: number): EmbedInput {
    return this.value(row, key, i, (value) => typeof value === 'string' || (typeof value === 'object' && value !== null), 'a text or an object')
  }

  private list(row: Row, one: string, many: string): EmbedInput[] {
    const value = row[many] ?? row[one]
    return value === undefined ? [] : ((Array.isArray(value) ? value : [value]) as EmbedInput[])
  }

  private queries(inputs: EmbedInput[]): Promise<EmbedResult> {
    const { instruction } = this.task
    return this.model.embedQuery(inputs, this.options(instruction === undefined ? {} : { instruction }))
  }

  private documents(inputs: EmbedInput[]): Promise<EmbedResult> {
    return this.model.embedDocument(inputs, this.options({}))
  }

  private plain(inputs: EmbedInput[]): Promise<EmbedResult> {
    return this.model.embed(inputs, this.options({}))
  }

  private options(more: EmbedOptions): EmbedOptions {
    return { ...more, ...(this.signal && { signal: this.signal }) }
  }

  private mean(list: Record<string, number>[]): Record<string, number> {
    const keys = Object.keys(list[0] ?? {})
    return Object.fromEntries(keys.map((key) => [key, list.reduce((sum, each) => sum + each[key]!, 0) / list.length]))
  }

  private async retrieval(): Promise<Record<string, number>> {
    let queries: EmbedInput[]
    let corpus: EmbedInput[]
    let relevance: Map<number, number>[]
    if (this.task.rows !== undefined) {
      const rows = await this.rows('rows')
      queries = rows.map((row, i) => this.input(row, 'query', i))
      const positives = rows.map((row) => this.list(row, 'positive', 'positives'))
      const { documents, placeOf } = distinctDocuments(positives.flat())
      corpus = documents
      relevance = positives.map((own) => new Map(own.map((document) => [placeOf(document) as number, 1])))
    } else {
      const [asked, stored, grades] = [await this.rows('queries'), await this.rows('corpus'), await this.rows('qrels')]
      const inputOf = ({ id: _, _id: __, metadata: ___, title, ...rest }: Row): EmbedInput =>
        typeof title === 'string' && typeof rest.text === 'string' ? ({ ...rest, text: `${title} ${rest.text}`.trim() } as EmbedInput) : (rest as EmbedInput)
      const places = (rows: Row[]) => new Map(rows.map((row, i) => [String(row.id ?? row._id), i]))
      const [q, d] = [places(asked), places(stored)]
      queries = asked.map(inputOf)
      corpus = stored.map(inputOf)
      relevance = queries.map(() => new Map())
      for (const [i, row] of grades.entries()) {
        const [asks, answers] = [row.query ?? row['query-id'], row.document ?? row['corpus-id']]
        const [query, document] = [q.get(String(asks)), d.get(String(answers))]
        if (query === undefined || document === undefined)
          throw new ConanError(
            'INVALID_INPUT',
            `task ${this.task.name}: qrels: row ${i + 1}: expected ids of a query and a document, got ${shown(asks)} and ${shown(answers)}`,
          )
        relevance[query]!.set(document, Number(row.score ?? 1))
      }
    }
    const [a, b] = [await this.queries(queries), await this.documents(corpus)]
    const scores: Record<string, number>[] = []
    const cutoffs = [1, 3, 5, 10, 20, 100, 1000]
    const grades = new Float64Array(corpus.length)
    let query = 0
    for (const similarity of this.model.similarityTo(b)(a)) {
      const own = relevance[query++] as Map<number, number>
      if (own.size === 0) continue
      for (const [document, grade] of own) grades[document] = grade
      scores.push(rankingScores(best(similarity, 1000), grades, cutoffs))
      for (const document of own.keys()) grades[document] = 0
    }
    if (scores.length === 0) throw new ConanError('INVALID_INPUT', `task ${this.task.name}: expected queries with relevant documents, found none`)
    return this.mean(scores)
  }

  private async labelled(key: 'rows' | 'train'): Promise<{ inputs: EmbedInput[]; labels: string[] }> {
    const rows = await this.rows(key)
    const isLabel = (value: unknown) => typeof value === 'string' || typeof value === 'number'
    return {
      inputs: rows.map((row, i) => this.input(withInput(row), 'input', i)),
      labels: rows.map((row, i) => String(this.value(row, 'label', i, isLabel, 'a label'))),
    }
  }

  private async classification(): Promise<Record<string, number>> {
    const [train, test] = [await this.labelled('train'), await this.labelled('rows')]
    const [a, b] = [await this.plain(train.inputs), await this.plain(test.inputs)]
    return { ...classificationScores(test.labels, linearProbe(a.vectors as Float32Array, train.labels, b.vectors as Float32Array, a.dimensions)) }
  }

  private async multilabel(): Promise<Record<string, number>> {
    const read = async (key: 'rows' | 'train') =>
      (await this.rows(key)).map((row, i) => ({
        input: this.input(withInput(row), 'input', i),
        labels: this.value<unknown[]>(row, 'labels', i, Array.isArray, 'a list of labels').map(String),
      }))
    const [train, test] = [await read('train'), await read('rows')]
    const all = [...new Set(test.flatMap(({ labels }) => labels))].sort()
    const marks = (rows: { labels: string[] }[]) => rows.map(({ labels }) => all.map((label) => (labels.includes(label) ? 1 : 0)))
    const vectors = async (rows: { input: EmbedInput }[]) => (await this.plain(rows.map(({ input }) => input))) as EmbedResult & { vectors: Float32Array }
    const [a, b] = [await vectors(train), await vectors(test)]
    return { ...multilabelScores(marks(test), nearestNeighbours(a.vectors, marks(train), b.vectors, a.dimensions)) }
  }

  private async zeroShot(): Promise<Record<string, number>> {
    const { inputs, labels } = await this.labelled('rows')
    const names = Object.entries(this.task.labels ?? {})
    if (names.length < 2) throw new ConanError('INVALID_INPUT', `task ${this.task.name}: expected "labels" {label: input}, got ${shown(this.task.labels)}`)
    const [a, b] = [await this.plain(inputs), await this.documents(names.map(([, input]) => input))]
    const found = Array.from(this.model.similarityTo(b)(a), (scores) => names[best(scores, 1)[0]!]![0])
    return { ...classificationScores(labels, found) }
  }

  private async clustering(): Promise<Record<string, number>> {
    const { inputs, labels } = await this.labelled('rows')
    const { vectors, dimensions } = await this.plain(inputs)
    return { v_measure: vMeasure(labels, kMeans(vectors as Float32Array, dimensions, new Set(labels).size, this.seed)) }
  }

  /** Cosines of the rows' two sides. */
  private async sides(): Promise<{ rows: Row[]; cosines: number[] }> {
    const rows = (await this.rows('rows')).map(({ sentence1, sentence2, ...row }): Row => ({ left: sentence1, right: sentence2, ...row }))
    const [a, b] = [await this.plain(rows.map((row, i) => this.input(row, 'left', i))), await this.plain(rows.map((row, i) => this.input(row, 'right', i)))]
    const n = a.dimensions
    const cosines = rows.map((_, i) => {
      let dot = 0
      for (let c = 0; c < n; c++) dot += a.vectors[i * n + c]! * b.vectors[i * n + c]!
      return dot
    })
    return { rows, cosines }
  }

  private async sts(): Promise<Record<string, number>> {
    const { rows, cosines } = await this.sides()
    const scores = rows.map((row, i) => this.value<number>(row, 'score', i, Number.isFinite, 'a number'))
    return { cosine_spearman: spearman(cosines, scores), cosine_pearson: pearson(cosines, scores) }
  }

  private async pair(): Promise<Record<string, number>> {
    const { rows, cosines } = await this.sides()
    const labels = rows.map((row, i) => this.value<number>(row, 'label', i, (value) => value === 0 || value === 1, '0 or 1'))
    const ap = averagePrecision(cosines, labels)
    return { cosine_ap: ap, max_ap: ap }
  }

  private async reranking(): Promise<Record<string, number>> {
    const rows = await this.rows('rows')
    const queries = await this.queries(rows.map((row, i) => this.input(row, 'query', i)))
    const sides = rows.map((row) => [this.list(row, 'positive', 'positives'), this.list(row, 'negative', 'negatives')] as const)
    const documents = await this.documents(sides.flatMap(([positives, negatives]) => [...positives, ...negatives]))
    const n = queries.dimensions
    let at = 0
    const scores = sides.map(([positives, negatives], i) => {
      const count = positives.length + negatives.length
      const own = { vectors: documents.vectors.slice(at * n, (at + count) * n), dimensions: n }
      at += count
      const similarity = this.model.similarity({ vectors: queries.vectors.slice(i * n, (i + 1) * n), dimensions: n }, own)
      return rankingScores(
        ranking(similarity),
        Array.from({ length: count }, (_, d) => (d < positives.length ? 1 : 0)),
        [10, 1000],
      )
    })
    return this.mean(scores)
  }
}

function checked(task: Task): void {
  if (typeof task?.name !== 'string' || task.name === '') throw new ConanError('INVALID_INPUT', `task: expected a name, got ${shown(task?.name)}`)
  if (!taskTypes.includes(task.type))
    throw new ConanError('INVALID_INPUT', `task ${task.name}: type: expected one of ${taskTypes.join(', ')}, got ${shown(task.type)}`)
}

/** Tasks of a YAML or JSON file (`tasks: [...]`, or one alone), and the directory that their paths are relative to. */
function tasksOf(tasks: string | Task[]): { list: Task[]; directory: string } {
  if (Array.isArray(tasks)) return { list: tasks, directory: '.' }
  const read = readYaml(pathOf(tasks, 'tasks'))
  const inside = (read as { tasks?: unknown } | null)?.tasks
  const list = (Array.isArray(read) ? read : Array.isArray(inside) ? inside : [read]) as Task[]
  return { list, directory: path.dirname(path.resolve(tasks)) }
}

/**
 * Scores of a model on tasks. With `out`, a file of mteb's form for each.
 *
 * @param model a loaded model, or a directory
 * @param tasks tasks, or a .yaml or .json file with `tasks`
 * @throws ConanError INVALID_INPUT (a task or row that is not what it should be), FILE_IO, and what embed throws
 */
export async function evaluate(model: Model | string, tasks: string | Task[], options: EvaluateOptions = {}): Promise<TaskResult[]> {
  requireOptions(options)
  const { list, directory } = tasksOf(tasks)
  for (const task of list) checked(task)
  const { out } = options
  const seed = wholeNumber(options.seed, 'seed', 42)
  if (out !== undefined) requireResults(pathOf(out, 'out'), list)
  const loaded = typeof model === 'string' ? await loadModel(model) : model
  const results: TaskResult[] = []
  try {
    for (const [i, task] of list.entries()) {
      const start = performance.now()
      const scores = await new Evaluation(loaded, task, directory, seed, options.signal).run()
      const main = task.mainScore ?? mainScores[task.type]
      if (scores[main] === undefined)
        throw new ConanError('INVALID_OPTION', `task ${task.name}: mainScore: expected one of ${Object.keys(scores).join(', ')}, got ${shown(main)}`)
      const seconds = (performance.now() - start) / 1000
      results.push({ task: task.name, type: task.type, mainScore: scores[main], scores, seconds })
      if (out !== undefined) writeResult(out, task, results.at(-1) as TaskResult)
      options.onProgress?.({ task: task.name, done: i + 1, total: list.length })
    }
    return results
  } finally {
    if (typeof model === 'string') await loaded.dispose()
  }
}

const resultFile = (directory: string, { name }: Task) => path.join(directory, `${name.replace(/[^\w.-]+/g, '_')}.json`)

function requireResults(directory: string, tasks: Task[]): void {
  try {
    mkdirSync(directory, { recursive: true })
  } catch (error) {
    throw asFileError(error)
  }
  for (const task of tasks) requirePlace(resultFile(directory, task))
}

function writeResult(directory: string, task: Task, { mainScore, scores, seconds }: TaskResult): void {
  const result = {
    dataset_revision: 'local',
    task_name: task.name,
    mteb_version: '2.0.0',
    scores: { test: [{ ...scores, main_score: mainScore, hf_subset: 'default', languages: ['eng-Latn'] }] },
    evaluation_time: seconds,
  }
  try {
    replaceFile(resultFile(directory, task), `${JSON.stringify(result, null, 2)}\n`)
  } catch (error) {
    throw asFileError(error)
  }
}

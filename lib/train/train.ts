// Training runs: batches from data, steps on the native side, a log, checkpoints to go on from, and a model directory in the end. The
// three stages of the method (specialist, projector recovery, rehearsal) are this with different settings.
import { createHash } from 'node:crypto'
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { binding, type NativeChunk, type NativeStep } from '../binding'
import type { SoundCache } from '../embed/media'
import { asConanError, ConanError, shown } from '../errors'
import { jsonLines, readJson } from '../files/json'
import { publish, replaceFile, requireFree, stampOf } from '../files/output'
import { openParent } from '../fuse/parents'
import { type ProbePair, type RetrievalScore, readProbe, retrieval } from '../fuse/probe'
import { type Batch, computeOptions, type EmbedOptions, type LoadOptions, load, type Model } from '../model'
import { oneOf, pathOf, positive, wholeNumber } from '../options'
import { escapeHtml, lineChart, page, table } from '../report/html'
import { type Dataset, readData, type TrainingRow } from './data'
import { distinctDocuments, documentKey, type SampledBatch, Sampler, type Sampling } from './sampler'
import { chooseTrainable, type TrainableChoice, type TrainableOptions } from './trainable'
import { changedTensors, writeAdapterConfig, writeModel } from './write'

const losses = ['contrastive', 'graded', 'distillation'] as const

export interface TrainOptions {
  /** The model to start from. */
  model: string
  /** Directory to make; it must not exist, or be empty. */
  out: string
  /** A .jsonl or .parquet file, a .yaml file with a list of datasets, such a list, or rows {query | anchor, positive, negative...}. */
  data: string | object[]
  trainable?: TrainableOptions
  /**
   * 'contrastive' (InfoNCE), 'graded' (CoSENT) for rows with a score, or 'distillation' for rows with a teacher's vector. Default: what all
   * rows have.
   */
  loss?: (typeof losses)[number]
  /** Of distillation: weight of the differences between cosines beside those between vectors; default 20. */
  relations?: number
  /** Default 0.02. */
  temperature?: number
  /** Documents look for their queries as well; default true. */
  bidirectional?: boolean
  /** In-batch negatives that are more similar than the positive by more than this are left out; default: none are. */
  falseNegativeMargin?: number
  /** Sizes the vectors shall be good at (Matryoshka), beside the whole; default: the whole alone. */
  matryoshka?: number[]
  /** Rows per step; default 32. */
  batchSize?: number
  /** Batches whose gradients make one step; default 1. */
  accumulate?: number
  /**
   * Tokens that go through the model at one time; where a batch has more, it goes through twice (GradCache), so that a smaller number takes
   * less memory and more time. Default 8192.
   */
  chunkTokens?: number
  /** Steps, or passes over the data; default 1 epoch. */
  steps?: number
  epochs?: number
  sampling?: Sampling
  oneDatasetPerBatch?: boolean
  /** Largest learning rate; default 1e-4 for LoRA and projector, 1e-5 else. */
  learningRate?: number
  schedule?: 'cosine' | 'linear' | 'constant'
  /** Share of the steps in which the learning rate rises; default 0.05. */
  warmup?: number
  /** Decoupled; default 0.01. */
  weightDecay?: number
  /** Pull towards the weights that the run began with: that of anchor / 2 times the squared distance (L2-SP); default 0. */
  anchor?: number
  /** Largest norm of all gradients together; 0: no limit. Default 1. */
  clip?: number
  beta1?: number
  beta2?: number
  epsilon?: number
  seed?: number
  /** Steps between checkpoints; default 100. */
  saveEvery?: number
  /** Pairs to watch retrieval on, and steps between looks; default 100. */
  probe?: string | object[]
  probeEvery?: number
  /** What a row does that cannot be read: end the run ('throw', the default), or be left out and counted ('skip'). */
  onError?: 'throw' | 'skip'
  device?: LoadOptions['device']
  /** How weights that do not train are held; default: as the checkpoint stores them. */
  dtype?: LoadOptions['dtype']
  threads?: number
  maxTokens?: number
  processor?: LoadOptions['processor']
  /** Of queries; documents get the model's own document prompt. */
  instruction?: string
  signal?: AbortSignal
  onProgress?: (progress: { step: number; steps: number; loss: number; tokens: number; tokensPerSecond: number; secondsLeft: number }) => void
}

export interface LogEntry {
  step: number
  loss: number
  learningRate: number
  gradientNorm: number
  tokens: number
  seconds: number
  probe?: RetrievalScore[]
}

export interface TrainReport {
  directory: string
  stage: string
  steps: number
  rows: number
  /** Rows left out because they could not be read, and the first reasons. */
  skipped: number
  skippedReasons: string[]
  /** Inputs that were shortened. */
  truncated: number
  trainedParameters: number
  trainedTensors: number
  tokens: number
  seconds: number
  firstLoss: number
  lastLoss: number
  resumedAt: number
  /** Checked after writing: tensors that did not train are the base's, byte for byte. */
  untouchedTensors: number
  log: LogEntry[]
}

/** Learning rate of a step, counted from 1. */
export function learningRateAt(step: number, steps: number, { peak, warmup, schedule }: { peak: number; warmup: number; schedule: string }): number {
  const rising = Math.round(warmup * steps)
  if (step <= rising) return (peak * step) / rising
  const done = (step - rising) / Math.max(1, steps - rising)
  if (schedule === 'cosine') return peak * 0.5 * (1 + Math.cos(Math.PI * Math.min(1, done)))
  return schedule === 'linear' ? peak * Math.max(0, 1 - done) : peak
}

interface Settings {
  loss: (typeof losses)[number]
  relations: number
  temperature: number
  bidirectional: boolean
  margin: number
  matryoshka: number[]
  accumulate: number
  steps: number
  peak: number
  warmup: number
  schedule: 'cosine' | 'linear' | 'constant'
  saveEvery: number
  probeEvery: number
}

const real = (value: number | undefined, name: string, fallback: number, low = 0): number => {
  if (value === undefined) return fallback
  if (!(Number.isFinite(value) && value >= low)) throw new ConanError('INVALID_OPTION', `${name}: expected a number from ${low}, got ${shown(value)}`)
  return value
}

function settingsOf(options: TrainOptions, datasets: Dataset[], batchSize: number): Settings {
  const rows = datasets.reduce((sum, dataset) => sum + dataset.rows.length, 0)
  const accumulate = positive(options.accumulate, 'accumulate', 1)
  if (options.steps !== undefined && options.epochs !== undefined) throw new ConanError('INVALID_OPTION', 'expected steps or epochs, got both')
  const steps = positive(options.steps, 'steps', Math.max(1, Math.ceil((real(options.epochs, 'epochs', 1) * rows) / batchSize / accumulate)))
  const graded = datasets.every((dataset) => dataset.rows.every(({ score }) => score !== undefined))
  const taught = datasets.every((dataset) => dataset.rows.every(({ vector }) => vector))
  const loss = oneOf(options.loss, 'loss', losses, taught ? 'distillation' : graded ? 'graded' : 'contrastive')
  if (loss === 'distillation' && !taught)
    throw new ConanError('INVALID_INPUT', "loss distillation: expected a teacher's vector for every row, found rows without")
  if (loss !== 'distillation' && datasets.some((dataset) => dataset.rows.some(({ positives }) => positives.length === 0)))
    throw new ConanError('INVALID_INPUT', `loss ${loss}: expected a positive in every row, found rows without`)
  if (loss === 'graded' && !graded) throw new ConanError('INVALID_INPUT', 'loss graded: expected a score in every row, found rows without')
  const mode = options.trainable?.mode ?? 'lora'
  const temperature = real(options.temperature, 'temperature', 0.02)
  if (temperature === 0) throw new ConanError('INVALID_OPTION', 'temperature: expected a positive number, got 0')
  const matryoshka = options.matryoshka ?? []
  if (!Array.isArray(matryoshka)) throw new ConanError('INVALID_OPTION', `matryoshka: expected a list of sizes, got ${shown(matryoshka)}`)
  for (const size of matryoshka) positive(size ?? null, 'matryoshka', 0)
  const alone = datasets.some((dataset) => dataset.rows.some(({ negatives }) => negatives.length === 0))
  if (loss === 'contrastive' && batchSize < 2 && alone)
    throw new ConanError('INVALID_OPTION', 'batchSize: expected at least 2, since a batch of one row without negatives has nothing to tell apart, got 1')
  return {
    loss,
    relations: real(options.relations, 'relations', 20),
    temperature,
    bidirectional: options.bidirectional ?? true,
    margin: options.falseNegativeMargin === undefined ? -1 : real(options.falseNegativeMargin, 'falseNegativeMargin', 0),
    matryoshka,
    accumulate,
    steps,
    peak: real(options.learningRate, 'learningRate', mode === 'full' ? 1e-5 : 1e-4),
    warmup: real(options.warmup, 'warmup', 0.05),
    schedule: oneOf(options.schedule, 'schedule', ['cosine', 'linear', 'constant'] as const, 'cosine'),
    saveEvery: positive(options.saveEvery, 'saveEvery', 100),
    probeEvery: positive(options.probeEvery, 'probeEvery', 100),
  }
}

/** What a resumed run must have in common with the one it goes on with. */
function identityOf(options: TrainOptions, stage: string, datasets: Dataset[]): string {
  const { signal: _, onProgress: __, threads: ___, out: ____, ...rest } = options
  const data = datasets.map(({ rows: _, files, ...settings }) => ({ ...settings, stamps: files.map(stampOf) }))
  return createHash('sha256')
    .update(documentKey([stage, rest, data]))
    .digest('hex')
}

interface Prepared {
  chunks: NativeChunk[]
  step: Pick<NativeStep, 'contrastive' | 'graded' | 'distillation'>
  teacher?: Float32Array
  tokens: number
}

class Run {
  readonly log: LogEntry[] = []
  skipped = 0
  readonly reasons: string[] = []
  truncated = 0
  rows = 0

  constructor(
    private readonly model: Model,
    private readonly options: TrainOptions,
    private readonly settings: Settings,
    private readonly sampler: Sampler,
    private readonly chunkTokens: number,
  ) {}

  skip(batches: number): void {
    for (let i = 0; i < batches; i++) this.sampler.next()
  }

  /** The next batch, decoded and tokenised. */
  async prepare(): Promise<Prepared> {
    for (let tries = 0; tries < 100; tries++) {
      const prepared = await this.prepared(this.sampler.next())
      if (prepared) return prepared
    }
    throw new ConanError('INVALID_INPUT', `data: a hundred batches in a row could not be read: ${this.reasons.join('; ')}`)
  }

  private async prepared({ rows, dataset }: SampledBatch): Promise<Prepared | undefined> {
    const { options, settings } = this
    const queries = rows.map(({ query }) => query)
    const { documents, placeOf } = distinctDocuments(rows.flatMap(({ positives, negatives }) => [...positives, ...negatives]))
    const common: EmbedOptions = { maxBatchTokens: this.chunkTokens, onError: options.onError ?? 'throw', ...(options.signal && { signal: options.signal }) }
    const asked = { ...common, ...(options.instruction !== undefined && { instruction: options.instruction }) }
    const batches = [await this.model.prepare(queries, asked, 'query'), await this.model.prepare(documents, common, 'document')]
    const chunks: NativeChunk[] = []
    let next = 0
    /** Row of the vectors by place in the list; undefined: it could not be read. */
    const places = batches.map((list) => {
      const place = new Map<number, number>()
      for (const { indices, failed, ids, offsets, media, truncated } of list as Batch[]) {
        for (const index of indices) place.set(index, next++)
        for (const { error } of failed) this.note(error.message)
        this.truncated += truncated.filter(Boolean).length
        if (indices.length) chunks.push({ ids, offsets, media })
      }
      return place
    }) as [Map<number, number>, Map<number, number>]
    const whole = rows.flatMap((row, i) => {
      const query = places[0].get(i)
      const positives = row.positives.flatMap((positive) => places[1].get(placeOf(positive) as number) ?? [])
      return query === undefined || (positives.length === 0 && settings.loss !== 'distillation') ? [] : [{ row, query, positives }]
    })
    this.skipped += rows.length - whole.length
    this.rows += whole.length
    if (whole.length === 0) return undefined
    const tokens = chunks.reduce((sum, { ids }) => sum + ids.length, 0)
    if (settings.loss === 'graded') {
      if (whole.length < 2) return undefined
      const pairs = {
        left: whole.map(({ query }) => query),
        right: whole.map(({ positives }) => positives[0] as number),
        grades: whole.map(({ row }) => row.score as number),
      }
      return { chunks, tokens, step: { graded: { ...pairs, scale: 20 } } }
    }
    if (settings.loss === 'distillation') {
      const vectors = whole.map(({ row }) => row.vector!())
      const size = vectors[0]!.length
      for (const vector of vectors)
        if (vector.length !== size) throw new ConanError('INVALID_INPUT', `data: expected vectors of ${size} numbers as in the first row, got ${vector.length}`)
      const teacher = new Float32Array(size * vectors.length)
      for (const [i, vector] of vectors.entries()) teacher.set(vector, i * size)
      return { chunks, tokens, teacher, step: { distillation: { rows: whole.map(({ query }) => query), relations: settings.relations } } }
    }
    const used = documents.flatMap((_, i) => places[1].get(i) ?? [])
    if (used.length < 2) return undefined
    const index = new Map(used.map((row, i) => [row, i]))
    return {
      chunks,
      tokens,
      step: {
        contrastive: {
          queries: whole.map(({ query }) => query),
          documents: used,
          positives: whole.map(({ positives }) => [...new Set(positives)].map((row) => index.get(row) as number)),
          temperature: settings.temperature,
          bothDirections: dataset?.bidirectional ?? settings.bidirectional,
          margin: settings.margin,
        },
      },
    }
  }

  private note(message: string): void {
    if (this.reasons.length < 5) this.reasons.push(message)
  }

  async step(prepared: Prepared, learningRate: number, update: boolean): Promise<{ loss: number; gradientNorm: number }> {
    const { dimensions } = this.model.info
    const sizes = this.settings.matryoshka.length ? [...new Set([...this.settings.matryoshka, dimensions])] : []
    const step: NativeStep = {
      learningRate,
      weight: 1 / this.settings.accumulate,
      update,
      chunkTokens: this.chunkTokens,
      matryoshka: { dimensions: sizes, weights: [] },
      ...prepared.step,
    }
    return this.model.run((handle) => binding().trainStep(handle, prepared.chunks, JSON.stringify(step), prepared.teacher))
  }
}

/** Encoded sounds on disk, by what they were made from. */
function soundCache(directory: string): SoundCache {
  mkdirSync(directory, { recursive: true })
  const file = (key: string) => path.join(directory, `${key}.f32`)
  return {
    keyOf(input, part) {
      if (input instanceof URL) return undefined
      let source: unknown = input
      if (typeof input === 'string' && !input.startsWith('data:')) {
        if (!existsSync(input)) return undefined
        const { size, mtimeMs } = statSync(input)
        source = [path.resolve(input), size, mtimeMs]
      }
      return createHash('sha256')
        .update(documentKey([source, part]))
        .digest('hex')
    },
    get(key) {
      if (!existsSync(file(key))) return undefined
      const bytes = readFileSync(file(key))
      return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
    },
    set(key, features) {
      replaceFile(file(key), features)
    },
  }
}

interface Saved {
  identity: string
  step: number
  batches: number
  state: string
  skipped: number
  rows: number
  truncated: number
}

/**
 * Trains a model. A run that was ended leaves `<out>.partial` with its last checkpoint; the same call goes on from there, on the same
 * curve to the bit. The directory appears under its name when it is whole, with training-report.json and training.html.
 *
 * @throws ConanError INVALID_OPTION, INVALID_INPUT, LOSS_NOT_FINITE, OUTPUT_EXISTS, FILE_IO, ABORTED, and what loadModel throws
 */
export async function train(options: TrainOptions, stage = 'train'): Promise<TrainReport> {
  const out = path.resolve(pathOf(options.out, 'out'))
  requireFree(out)
  const base = openParent(options.model, '.')
  if (base.adapters.length) throw new ConanError('INVALID_OPTION', `model ${options.model}: expected a dense model (merge adapters first)`)
  const choice = chooseTrainable(base, options.trainable ?? { mode: 'lora' })
  const datasets = await readData(options.data)
  const batchSize = positive(options.batchSize, 'batchSize', 32)
  const settings = settingsOf(options, datasets, batchSize)
  const seed = wholeNumber(options.seed, 'seed', 0)
  const probe: ProbePair[] | undefined = options.probe === undefined ? undefined : await readProbe(options.probe)
  const sampling = oneOf(options.sampling, 'sampling', ['shuffled', 'proportional', 'weighted', 'equal'] as const, 'shuffled')
  const sampler = new Sampler(datasets, { batchSize, sampling, oneDatasetPerBatch: options.oneDatasetPerBatch ?? false, seed })

  const partial = `${out}.partial`
  const work = path.join(partial, '.training') // what begins with a dot is no part of a model
  mkdirSync(work, { recursive: true })
  const statusFile = path.join(work, 'status.json')
  const logFile = path.join(work, 'log.jsonl')
  const identity = identityOf(options, stage, datasets)
  const saved = existsSync(statusFile) ? (readJson(statusFile) as unknown as Saved) : undefined
  if (saved && saved.identity !== identity)
    throw new ConanError('OUTPUT_EXISTS', `${partial}: holds a run with other settings or data; remove it to begin anew`)

  const { maxTokens, processor } = options
  const optimizer = {
    weightDecay: real(options.weightDecay, 'weightDecay', 0.01),
    clip: real(options.clip, 'clip', 1),
    anchor: real(options.anchor, 'anchor', 0),
    beta1: real(options.beta1, 'beta1', 0.9),
    beta2: real(options.beta2, 'beta2', 0.999),
    epsilon: real(options.epsilon, 'epsilon', 1e-8),
  }
  const loadOptions = {
    ...computeOptions(options),
    ...(maxTokens !== undefined && { maxTokens }),
    ...(processor && { processor }),
  }
  const model = await load(base.root, loadOptions, { dense: choice.dense, lowRank: choice.lowRank, dropout: choice.dropout, seed, optimizer })
  const trains = [...choice.dense, ...choice.lowRank.map(({ tensor }) => tensor)]
  // An encoder that is frozen says the same of a sound every time.
  if (model.supports('audio') && !trains.some((name) => /(^|\.)audio_tower\./.test(name))) model.cacheSounds(soundCache(path.join(work, 'sounds')))
  const run = new Run(model, options, settings, sampler, positive(options.chunkTokens, 'chunkTokens', 8192))
  try {
    let step = 0
    let batches = 0
    if (saved) {
      await model.run((handle) => binding().loadTraining(handle, path.join(work, saved.state)))
      ;({ step, batches } = saved)
      Object.assign(run, { skipped: saved.skipped, rows: saved.rows, truncated: saved.truncated })
      run.skip(batches)
      // Of steps behind the checkpoint there may be lines, and half of one.
      for (const { value } of jsonLines(logFile)) if (run.log.push(value as LogEntry) === step) break
      replaceFile(
        logFile,
        run.log.map((entry) => `${JSON.stringify(entry)}\n`),
      )
    } else writeFileSync(logFile, '')
    const resumedAt = step
    const save = async () => {
      const state = `state-${step}.safetensors`
      await model.run((handle) => binding().saveTraining(handle, path.join(work, `${state}.tmp`), 'state'))
      renameSync(path.join(work, `${state}.tmp`), path.join(work, state))
      const { skipped, rows, truncated } = run
      replaceFile(statusFile, JSON.stringify({ identity, step, batches, state, skipped, rows, truncated } satisfies Saved))
      for (const name of readdirSync(work)) if (/^state-.*\.safetensors$/.test(name) && name !== state) rmSync(path.join(work, name))
    }
    const start = performance.now()
    let tokens = 0
    let next = step < settings.steps ? run.prepare() : undefined
    while (step < settings.steps) {
      const began = performance.now()
      const learningRate = learningRateAt(step + 1, settings.steps, settings)
      let loss = 0
      let gradientNorm = 0
      let own = 0
      for (let part = 0; part < settings.accumulate; part++) {
        if (options.signal?.aborted) {
          next?.catch(() => {})
          if (part === 0) await save()
          throw new ConanError('ABORTED', `${stage} was stopped at step ${step} of ${settings.steps}; the same call goes on from there`, {
            cause: options.signal.reason,
          })
        }
        const prepared = await (next as Promise<Prepared>)
        batches++
        const last = step + 1 === settings.steps && part + 1 === settings.accumulate
        next = last ? undefined : run.prepare() // decoded while this one is computed
        next?.catch(() => {})
        const result = await run.step(prepared, learningRate, part + 1 === settings.accumulate)
        loss += result.loss / settings.accumulate
        gradientNorm = result.gradientNorm
        own += prepared.tokens
      }
      step++
      tokens += own
      const entry: LogEntry = { step, loss, learningRate, gradientNorm, tokens: own, seconds: (performance.now() - began) / 1000 }
      if (probe && (step % settings.probeEvery === 0 || step === settings.steps)) entry.probe = await retrieval(model, probe, options.signal)
      run.log.push(entry)
      appendFileSync(logFile, `${JSON.stringify(entry)}\n`)
      if (step % settings.saveEvery === 0 && step < settings.steps) await save()
      const elapsed = (performance.now() - start) / 1000
      options.onProgress?.({
        step,
        steps: settings.steps,
        loss,
        tokens,
        tokensPerSecond: tokens / elapsed,
        secondsLeft: (elapsed / (step - resumedAt)) * (settings.steps - step),
      })
    }
    await save()
    const trained = path.join(work, 'trained')
    mkdirSync(trained, { recursive: true })
    const lora = choice.lowRank.length > 0
    await model.run((handle) => binding().saveTraining(handle, path.join(trained, lora ? 'adapter_model.safetensors' : 'model.safetensors'), 'tensors'))
    if (lora) writeAdapterConfig(trained, options.model, choice)
    await model.dispose()
    await writeModel(base, trained, choice, partial, options.signal)
    const expected = new Set([...choice.dense, ...choice.lowRank.map(({ tensor }) => tensor)])
    const weights = path.join(partial, path.relative(base.root, base.directory))
    const changed = changedTensors(base.directory, weights)
    const strange = changed.filter((name) => !expected.has(name))
    if (strange.length) throw new ConanError('INTERNAL', `${partial}: tensors changed that did not train: ${strange.slice(0, 3).join(', ')}`)
    const report: TrainReport = {
      directory: out,
      stage,
      steps: settings.steps,
      rows: run.rows,
      skipped: run.skipped,
      skippedReasons: run.reasons,
      truncated: run.truncated,
      trainedParameters: parametersOf(base.tensors, choice),
      trainedTensors: expected.size,
      tokens: run.log.reduce((sum, entry) => sum + entry.tokens, 0),
      seconds: run.log.reduce((sum, entry) => sum + entry.seconds, 0),
      firstLoss: run.log[0]?.loss ?? Number.NaN,
      lastLoss: run.log.at(-1)?.loss ?? Number.NaN,
      resumedAt,
      untouchedTensors: base.tensors.size - expected.size,
      log: run.log,
    }
    const adapter = path.join(partial, 'adapter')
    rmSync(adapter, { recursive: true, force: true }) // of a call that came as far as here
    if (lora) renameSync(trained, adapter)
    writeFileSync(
      path.join(partial, 'training-report.json'),
      `${JSON.stringify({ ...report, settings: { ...settings, batchSize, seed, ...optimizer } }, null, 1)}\n`,
    )
    writeFileSync(path.join(partial, 'training.html'), trainingHtml(report))
    publish(partial, out)
    rmSync(path.join(out, path.basename(work)), { recursive: true })
    return report
  } catch (error) {
    await model.dispose()
    throw asConanError(error)
  }
}

function parametersOf(tensors: Map<string, { shape: number[] }>, { dense, lowRank }: TrainableChoice): number {
  const shape = (name: string) => tensors.get(name)?.shape ?? []
  return (
    dense.reduce((sum, name) => sum + shape(name).reduce((a, b) => a * b, 1), 0) +
    lowRank.reduce((sum, { tensor, rank }) => sum + rank * ((shape(tensor)[0] ?? 0) + (shape(tensor)[1] ?? 0)), 0)
  )
}

/** Loss, learning rate, gradient norm and probe scores over the steps, as a page of its own. */
export function trainingHtml({ stage, log, steps, rows, skipped, truncated, trainedParameters, tokens, seconds }: TrainReport): string {
  const labels = log.map(({ step }) => String(step))
  const charts = [
    lineChart('Loss', labels, [{ name: 'loss', values: log.map(({ loss }) => loss) }], 'per step'),
    lineChart('Gradient norm', labels, [{ name: 'norm', values: log.map(({ gradientNorm }) => gradientNorm) }], 'before clipping'),
    lineChart('Learning rate', labels, [{ name: 'rate', values: log.map(({ learningRate }) => learningRate) }], ''),
  ]
  const probed = log.filter(({ probe }) => probe)
  const modalities = [...new Set(probed.flatMap(({ probe }) => probe!.map(({ modality }) => modality)))]
  if (probed.length)
    charts.push(
      lineChart(
        'Retrieval on the probe',
        probed.map(({ step }) => String(step)),
        modalities.map((name) => ({ name, values: probed.map(({ probe }) => probe!.find(({ modality }) => modality === name)?.recallAt1) })),
        'recall at 1',
      ),
    )
  const facts = table(
    ['', ''],
    [
      ['steps', steps],
      ['rows', rows],
      ['rows left out', skipped],
      ['inputs shortened', truncated],
      ['trained parameters', String(trainedParameters)],
      ['tokens', String(tokens)],
      ['seconds', seconds],
    ],
  )
  return page(`${escapeHtml(stage)}`, [facts, ...charts])
}

export type { TrainingRow }

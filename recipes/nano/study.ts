// One seed of the study: specialists, fusion, drift, recovery, rehearsal, joint training, and the controls; everything that is measured
// goes into work/study/seed-N/results.json, where each number stands once it is known, so that a run that was ended goes on there.
//   npx tsx recipes/nano/study.ts [--seed 0] [--reduced]
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { attachAudio, type DatasetSource, drift, fuse, recoverProjector, rehearse, searchCoefficients, type TrainOptions, trainSpecialist } from '../../lib'
import { audio } from './architecture'
import { type Pair, questions, textPairs, trainingData } from './data'
import { byModality, type Measured, mean, measure, tested } from './measure'
import { type Modality, sounds } from './media'
import { settings, work } from './settings'
import { progress } from './text'

export const modalities = ['image', 'video', 'document', 'audio'] as const

export const paperWeights: Record<Modality, number> = { image: 0.3, video: 0.3, document: 0.3, audio: 0.5 }

/** Of two models, at the tokens of sounds alone: cosine of their hidden states, by layer. */
export type Directions = { layer: number; mean: number; low: number }[]

export interface Results {
  tests: Record<string, { found: Measured; sts: number }>
  directions: Record<string, Directions>
  weights: Record<string, Record<string, number>>
  /** What the search tried: retained shares on validation data. */
  tried: Record<string, { weights: Record<string, number>; value: number }[]>
  geometry?: { norms: Record<string, number>; cosines: Record<string, number>; signConflicts: Record<string, number>; layers: Record<string, number[]> }
  /** Share of what is asked that is found, by the audio specialist's coefficient. */
  curve: { weight: number; scores: Record<string, number> }[]
  seconds: Record<string, number>
}

export const studyFolder = (seed: number) => path.join(work, 'study', `seed-${seed}`)

export function readResults(seed: number): Results {
  const file = path.join(studyFolder(seed), 'results.json')
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : { tests: {}, directions: {}, weights: {}, tried: {}, curve: [], seconds: {} }
}

class Study {
  readonly results: Results
  private readonly folder: string
  private asked: Promise<Pair[]> | undefined
  readonly base = path.join(work, 'base-vision')

  constructor(readonly seed: number) {
    this.folder = studyFolder(seed)
    mkdirSync(this.folder, { recursive: true })
    this.results = readResults(seed)
  }

  at(name: string): string {
    return path.join(this.folder, name)
  }

  keep(): void {
    const file = this.at('results.json')
    writeFileSync(`${file}.tmp`, JSON.stringify(this.results, null, 1))
    renameSync(`${file}.tmp`, file)
  }

  /** Makes a directory unless it is there, and notes how long that took. */
  async make(name: string, how: (out: string) => Promise<unknown>): Promise<string> {
    const out = this.at(name)
    if (existsSync(out)) return out
    const start = performance.now()
    await how(out)
    this.results.seconds[name] = (this.results.seconds[name] ?? 0) + (performance.now() - start) / 1000
    this.keep()
    console.log(`seed ${this.seed}: ${name}: ${this.results.seconds[name].toFixed(0)} s`)
    return out
  }

  /** What is found of a fused model that is not kept. */
  async candidate<T>(recipe: object, how: (directory: string) => Promise<T>): Promise<T> {
    const out = this.at('candidate')
    rmSync(out, { recursive: true, force: true })
    await fuse(recipe, { out })
    const found = await how(out)
    rmSync(out, { recursive: true })
    return found
  }

  async test(name: string, directory: string): Promise<void> {
    if (this.results.tests[name]) return
    this.asked ??= questions('test', settings.words, settings.test, settings.slowTest)
    this.results.tests[name] = await tested(directory, await this.asked)
    this.keep()
    console.log(`seed ${this.seed}: ${name}:`, shares(byModality(this.results.tests[name].found)), `STS-B ${this.results.tests[name].sts.toFixed(3)}`)
  }

  train(stage: (options: TrainOptions) => Promise<unknown>, options: Omit<TrainOptions, 'out' | 'seed'> & { out: string }): Promise<unknown> {
    return stage({
      dtype: 'bfloat16',
      seed: this.seed,
      maxTokens: 512,
      chunkTokens: 4096,
      saveEvery: 100,
      oneDatasetPerBatch: true,
      onProgress: progress(path.relative(work, options.out)),
      ...options,
    })
  }
}

export const shares = (scores: Record<string, number>) =>
  Object.entries(scores)
    .map(([name, value]) => `${name} ${value.toFixed(3)}`)
    .join(', ')

const lora = (exclude: string[] = []): TrainOptions['trainable'] => ({ mode: 'lora', rank: 32, alpha: 32, exclude: ['audio_tower\\.', ...exclude] })
const learningRate = 1e-3

type Method = 'task_arithmetic' | 'ties' | 'dare_linear'

const methodParameters: Record<Method, object> = {
  task_arithmetic: {},
  ties: { density: 0.3 },
  dare_linear: { density: 0.5 },
}

function recipe(base: string, specialists: Record<Modality, string>, method: Method, weights: Record<string, number>, seed: number): object {
  return {
    merge_method: method,
    base_model: base,
    ...(method === 'task_arithmetic' ? {} : { parameters: { normalize: false } }),
    models: modalities.map((modality) => ({ model: specialists[modality], parameters: { weight: weights[modality], ...methodParameters[method] } })),
    // What the base lacks comes from the audio specialist, files and all.
    conan: { groups: [{ match: 'audio_*', action: 'copy', from: specialists.audio }], seed, files_from: specialists.audio },
  }
}

async function main() {
  const { values } = parseArgs({ options: { seed: { type: 'string', default: '0' }, reduced: { type: 'boolean' } } })
  const study = new Study(Number(values.seed))
  const { seed, results, base } = study
  const { steps, batch, words } = settings

  // Specialists, each from the base by its own data.
  const data = Object.fromEntries(await Promise.all(modalities.map(async (modality) => [modality, await trainingData(modality, words)]))) as Record<
    Modality,
    DatasetSource[]
  >
  await study.test('base', base)
  const specialists = {} as Record<Modality, string>
  for (const modality of ['image', 'video', 'document'] as const)
    specialists[modality] = await study.make(modality, (out) =>
      study.train(trainSpecialist, {
        model: base,
        out,
        data: data[modality],
        trainable: lora(),
        batchSize: batch[modality],
        steps: steps[modality],
        learningRate,
      }),
    )
  const sound = { data: data.audio, sampling: 'weighted' as const, batchSize: batch.audio, chunkTokens: 8192 }
  const attached = await study.make('attached', (out) => attachAudio(base, path.join(work, 'listener'), { out, hiddenSize: audio.projector, seed }))
  const aligned = await study.make('aligned', (out) => study.train(recoverProjector, { model: attached, out, ...sound, steps: steps.projector, learningRate }))
  specialists.audio = await study.make('audio', (out) =>
    study.train(trainSpecialist, { model: aligned, out, ...sound, trainable: lora(['visual\\.']), steps: steps.audio, learningRate }),
  )
  for (const modality of modalities) await study.test(`${modality} specialist`, specialists[modality])

  // Fusion: coefficients by what validation data keep of the specialists' scores.
  const validation = await questions('validation', words, settings.validation)
  const own = {} as Record<string, number>
  // Found once, by the first seed, for all of them.
  if (seed > 0) results.weights = { ...readResults(0).weights }
  const methods: Method[] = settings.core ? ['task_arithmetic'] : ['task_arithmetic', 'ties', 'dare_linear']
  const wantSearch = methods.some((method) => !results.weights[method])
  if (wantSearch && seed > 0) throw new Error(`seed ${seed}: expected the coefficients that seed 0 finds: it goes first`)
  if (wantSearch)
    for (const modality of modalities)
      own[modality] = byModality(
        await measure(
          specialists[modality],
          validation.filter((pair) => pair.modality === modality),
        ),
      )[modality]!
  const kept = async (directory: string) =>
    Object.fromEntries(Object.entries(byModality(await measure(directory, validation))).map(([modality, value]) => [modality, value / own[modality]!]))
  for (const method of methods) {
    if (results.weights[method]) continue
    const start = performance.now()
    results.tried[method] = []
    let best = { weights: paperWeights as Record<string, number>, value: Number.NEGATIVE_INFINITY }
    const consider = (weights: Record<string, number>, value: number) => {
      results.tried[method]!.push({ weights, value })
      if (value > best.value) best = { weights, value }
    }
    // The paper's proportions at several scales first, then one coefficient after the other.
    for (const scale of settings.scales) {
      const weights = Object.fromEntries(modalities.map((modality) => [modality, Number((scale * paperWeights[modality]).toFixed(3))]))
      consider(weights, await study.candidate(recipe(base, specialists, method, weights, seed), async (out) => mean(Object.values(await kept(out)))))
    }
    if (method === 'task_arithmetic') {
      const report = await searchCoefficients(recipe(base, specialists, method, best.weights, seed), {
        grid: Object.fromEntries(modalities.map((modality) => [specialists[modality], settings.grid])),
        strategy: 'coordinate',
        rounds: 1,
        score: kept,
        workDirectory: study.at('.'),
      })
      const named = (weights: Record<string, number>) => Object.fromEntries(modalities.map((modality) => [modality, weights[specialists[modality]]!]))
      for (const candidate of report.candidates.slice(1)) consider(named(candidate.weights), candidate.value)
    }
    results.weights[method] = best.weights
    results.seconds[`search ${method}`] = (performance.now() - start) / 1000
    study.keep()
    console.log(`seed ${seed}: ${method}: ${shares(best.weights)}: keeps ${best.value.toFixed(3)} of the specialists' scores on validation data`)
  }
  const fused = {} as Record<string, string>
  for (const [name, method, weights] of [
    ['fused', 'task_arithmetic', results.weights.task_arithmetic!],
    ['fused, paper', 'task_arithmetic', paperWeights],
    ['ties', 'ties', results.weights.ties!],
    ['dare', 'dare_linear', results.weights.dare_linear!],
  ] as [string, Method, Record<string, number>][]) {
    if (!methods.includes(method)) continue
    fused[name] = await study.make(name.replace(', ', '-'), (out) => fuse(recipe(base, specialists, method, weights, seed), { out }))
    await study.test(name, fused[name])
  }

  // Recovery, and what it must be compared with.
  const recover = (name: string, model: string, more: Partial<TrainOptions> = {}) =>
    study.make(name, (out) => study.train(recoverProjector, { model, out, ...sound, steps: steps.recover, learningRate, ...more }))
  const recovered = {} as Record<string, string>
  const recoverFused = async (name: string) => {
    recovered[name] = await recover(`${name.replace(', ', '-')}-recovered`, fused[name]!)
    await study.test(`${name}, recovered`, recovered[name])
  }
  for (const name of ['fused', 'fused, paper']) await recoverFused(name)
  const longer = await recover('audio-longer', specialists.audio)
  await study.test('audio specialist, projector longer', longer)
  const stripped = await study.make('fused-fresh', (out) =>
    fuse(
      {
        merge_method: 'passthrough',
        models: [{ model: fused.fused }],
        conan: { groups: [{ match: 'audio_projector*', action: 'copy', from: attached }] },
      },
      { out },
    ),
  )
  const fresh = await recover('fused-fresh-recovered', stripped)
  await study.test('fused, fresh projector', fresh)

  // Direction of hidden states at sounds: the same word in two voices, so that every token of the probe is a sound's.
  const heard = (await sounds(words)).filter(({ part, task }) => part === 'validation' && task === 'speech')
  const byWord = new Map<string, string[]>()
  for (const { text, file } of heard) byWord.set(text, [...(byWord.get(text) ?? []), file])
  const probe = [...byWord.values()].slice(0, 100).map(([query, positive]) => ({ query: { audio: query }, positive: { audio: positive }, modality: 'audio' }))
  const compare = async (name: string, directory: string) => {
    if (results.directions[name]) return
    const report = await drift(specialists.audio, directory, { base, probe, dtype: 'float32' })
    results.directions[name] = report.probe![0]!.directions
    study.keep()
  }
  for (const name of ['fused', 'fused, paper']) {
    await compare(name, fused[name]!)
    await compare(`${name}, recovered`, recovered[name]!)
  }
  await compare('fused, fresh projector', fresh)
  await compare('audio specialist, projector longer', longer)
  if (!results.geometry) {
    const { total, layers } = await drift(specialists.image, specialists.audio, { base, others: [specialists.video, specialists.document] })
    const order = ['image', 'audio', 'video', 'document'] as const
    const pairs = order.flatMap((a, i) => order.slice(i + 1).map((b, k) => [`${a} and ${b}`, i, i + 1 + k] as const))
    const language = layers.filter(({ stack }) => /language_model/.test(stack))
    results.geometry = {
      norms: Object.fromEntries(order.map((name, i) => [name, total.norms[i]!])),
      cosines: Object.fromEntries(pairs.map(([name, i, j]) => [name, total.cosines[i]![j] ?? Number.NaN])),
      signConflicts: Object.fromEntries(pairs.map(([name, i, j]) => [name, total.signConflicts[i]![j] ?? Number.NaN])),
      layers: Object.fromEntries(order.map((name, i) => [name, language.map(({ norms }) => norms[i]!)])),
    }
    study.keep()
  }

  // Rehearsal, and training on everything at once instead.
  const mixed = [...modalities.flatMap((modality) => data[modality].map((source) => ({ ...source, bidirectional: true }))), textPairs(20_000)]
  const rehearsed = await study.make('rehearsed', (out) =>
    study.train(rehearse, {
      model: recovered.fused!,
      out,
      data: mixed,
      batchSize: batch.image,
      steps: steps.rehearse,
      learningRate: learningRate / 5,
      chunkTokens: 4096,
    }),
  )
  await study.test('rehearsed', rehearsed)
  // Rows of each modality in the proportions in which the specialists have seen them.
  const rows = (modality: Modality) => steps[modality] * batch[modality]
  const weighted = (list: Modality[]) =>
    list.flatMap((modality) => data[modality].map((source) => ({ ...source, weight: ((source.weight ?? 10) * rows(modality)) / 10 })))
  for (const [name, model, list] of [
    ['joint', aligned, ['image', 'video', 'document', 'audio']],
    ['joint without audio', base, ['image', 'video', 'document']],
  ] as [string, string, Modality[]][]) {
    const count = Math.round((settings.joint * list.reduce((sum, modality) => sum + rows(modality), 0)) / batch.image)
    const out = await study.make(name.replace(/ /g, '-'), (out) =>
      study.train(trainSpecialist, {
        model,
        out,
        data: weighted(list),
        sampling: 'weighted',
        trainable: lora(),
        batchSize: batch.image,
        steps: count,
        learningRate,
      }),
    )
    await study.test(name, out)
    if (settings.core) return
  }

  // How audio and the others fare as the audio specialist's coefficient grows.
  if (seed === 0 && results.curve.length === 0) {
    const pairs = await questions('test', words, Math.min(settings.test, 300))
    const curve: Results['curve'] = []
    for (const weight of [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1]) {
      const candidate = recipe(base, specialists, 'task_arithmetic', { ...paperWeights, audio: weight }, seed)
      curve.push({ weight, scores: await study.candidate(candidate, async (out) => byModality(await measure(out, pairs))) })
    }
    results.curve = curve
    study.keep()
  }

  const gentle = await recover('fused-recovered-gently', fused.fused!, { learningRate: learningRate / 10 })
  await study.test('fused, recovered gently', gentle)
  await compare('fused, recovered gently', gentle)
  for (const name of ['ties', 'dare']) {
    await recoverFused(name)
    await compare(name, fused[name]!)
    await compare(`${name}, recovered`, recovered[name]!)
  }
}

if (require.main === module) main()

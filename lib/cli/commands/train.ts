// conan-embed train, recover, rehearse: the stages of training. Every setting is a flag, or a key of the YAML file that --config names.
import path from 'node:path'
import { ConanError, shown } from '../../errors'
import { readYaml } from '../../files/json'
import { recoverProjector, rehearse as rehearseModel, trainSpecialist } from '../../train/stages'
import type { TrainOptions, TrainReport } from '../../train/train'
import { type Arguments, type Command, CommandError, integer, interruptible, number, string } from '../command'
import { progress } from '../progress'

type Kind = 'text' | 'integer' | 'number' | 'flag' | 'list'
/** Settings of TrainOptions by flag. */
const settings: Record<string, { key: string; kind: Kind; help: string }> = {
  out: { key: 'out', kind: 'text', help: 'DIR the directory to make; it must not exist, or be empty' },
  data: { key: 'data', kind: 'text', help: 'FILE .jsonl or .parquet rows {query, positive, negative...}, or .yaml with a list of datasets' },
  mode: { key: 'trainable.mode', kind: 'text', help: 'M lora, full or projector' },
  include: { key: 'trainable.include', kind: 'list', help: 'REGEX only tensors whose name matches; may be repeated' },
  exclude: { key: 'trainable.exclude', kind: 'list', help: 'REGEX no tensors whose name matches; may be repeated' },
  rank: { key: 'trainable.rank', kind: 'integer', help: 'N of LoRA (32)' },
  alpha: { key: 'trainable.alpha', kind: 'number', help: 'N of LoRA (the rank)' },
  dropout: { key: 'trainable.dropout', kind: 'number', help: 'SHARE of LoRA (0)' },
  loss: { key: 'loss', kind: 'text', help: 'L contrastive, graded or distillation' },
  relations: { key: 'relations', kind: 'number', help: 'W of distillation (20)' },
  temperature: { key: 'temperature', kind: 'number', help: 'T (0.02)' },
  'one-direction': { key: 'bidirectional', kind: 'flag', help: 'only queries look for their documents' },
  'false-negative-margin': { key: 'falseNegativeMargin', kind: 'number', help: 'M leave out negatives more similar than the positive by this' },
  matryoshka: { key: 'matryoshka', kind: 'list', help: 'N a size the vectors shall be good at too; may be repeated' },
  'batch-size': { key: 'batchSize', kind: 'integer', help: 'N rows of a batch (32)' },
  accumulate: { key: 'accumulate', kind: 'integer', help: 'N batches a step (1)' },
  'chunk-tokens': { key: 'chunkTokens', kind: 'integer', help: 'N tokens that go through the model at one time (8192)' },
  steps: { key: 'steps', kind: 'integer', help: 'N of the run (one epoch)' },
  epochs: { key: 'epochs', kind: 'number', help: 'N instead of steps (1)' },
  sampling: { key: 'sampling', kind: 'text', help: 'S shuffled, proportional, weighted or equal' },
  'one-dataset-per-batch': { key: 'oneDatasetPerBatch', kind: 'flag', help: '' },
  'learning-rate': { key: 'learningRate', kind: 'number', help: 'R largest' },
  schedule: { key: 'schedule', kind: 'text', help: 'S cosine, linear or constant (cosine)' },
  warmup: { key: 'warmup', kind: 'number', help: 'SHARE of the steps (0.05)' },
  'weight-decay': { key: 'weightDecay', kind: 'number', help: 'D (0.01)' },
  anchor: { key: 'anchor', kind: 'number', help: 'A pull towards the weights it began with (0)' },
  clip: { key: 'clip', kind: 'number', help: 'N largest gradient norm (1)' },
  seed: { key: 'seed', kind: 'integer', help: 'N of everything random (0)' },
  'save-every': { key: 'saveEvery', kind: 'integer', help: 'N steps between checkpoints (100)' },
  probe: { key: 'probe', kind: 'text', help: 'FILE pairs to watch retrieval on' },
  'probe-every': { key: 'probeEvery', kind: 'integer', help: 'N (100)' },
  'skip-errors': { key: 'onError', kind: 'flag', help: 'leave out rows that cannot be read, and count them' },
  device: { key: 'device', kind: 'text', help: 'D auto, cpu, cuda or cuda:N' },
  dtype: { key: 'dtype', kind: 'text', help: 'T of weights that do not train' },
  threads: { key: 'threads', kind: 'integer', help: 'N threads on the CPU (its cores)' },
  'max-tokens': { key: 'maxTokens', kind: 'integer', help: 'N longest input' },
  instruction: { key: 'instruction', kind: 'text', help: 'TEXT of queries' },
}

function optionsOf(args: Arguments, model: string): TrainOptions {
  const config = string(args, 'config')
  let options: Record<string, unknown> = {}
  if (config !== undefined) {
    options = (readYaml(config) ?? {}) as Record<string, unknown>
    const known = new Set([...Object.values(settings).map(({ key }) => key.split('.')[0] as string), 'model', 'processor', 'beta1', 'beta2', 'epsilon'])
    for (const key of Object.keys(options))
      if (!known.has(key)) throw new ConanError('INVALID_OPTION', `${config}: expected one of ${[...known].join(', ')}, got ${shown(key)}`)
    // Paths are relative to the file that names them.
    for (const key of ['model', 'out', 'data', 'probe']) if (typeof options[key] === 'string') options[key] = path.resolve(path.dirname(config), options[key])
  }
  for (const [flag, { key, kind }] of Object.entries(settings)) {
    if (args.values[flag] === undefined) continue
    let value: unknown = kind === 'integer' ? integer(args, flag) : kind === 'number' ? number(args, flag) : args.values[flag]
    if (flag === 'one-direction') value = false
    if (flag === 'skip-errors') value = 'skip'
    if (flag === 'matryoshka') value = (value as string[]).map(Number)
    const [first, second] = key.split('.') as [string, string | undefined]
    if (second === undefined) options[first] = value
    else options[first] = { ...(options[first] as object | undefined), [second]: value }
  }
  const whole = { ...options, model: model ?? options.model } as unknown as TrainOptions
  for (const key of ['model', 'out', 'data'] as const)
    if (whole[key] === undefined) throw new CommandError(`expected ${key === 'model' ? 'a model directory' : `--${key}`}`)
  return whole
}

function command(summary: string, stage: (options: TrainOptions) => Promise<TrainReport>): Command {
  return {
    summary,
    positionals: 'MODEL --data FILE --out DIR',
    options: {
      config: { type: 'string', short: 'c', help: 'FILE YAML with these settings by their names in the API' },
      ...Object.fromEntries(
        Object.entries(settings).map(
          ([flag, { kind, help }]) => [flag, { type: kind === 'flag' ? 'boolean' : 'string', ...(kind === 'list' && { multiple: true }), help }] as const,
        ),
      ),
      json: { type: 'boolean', help: 'progress and the report as JSON' },
    },
    async run(args) {
      const [model, ...rest] = args.positionals
      if (rest.length) throw new CommandError('expected one model directory')
      const options = optionsOf(args, model as string)
      const bar = progress(args.values.json === true)
      try {
        const report = await interruptible((signal) => stage({ ...options, signal, onProgress: ({ step, steps, tokens }) => bar.update(step, steps, tokens) }))
        bar.stop()
        if (args.values.json) console.log(JSON.stringify(report))
        else
          console.log(
            `wrote ${report.directory}: ${report.steps} steps, ${report.rows} rows${report.skipped ? ` (${report.skipped} left out)` : ''}, ` +
              `loss ${report.firstLoss.toFixed(4)} -> ${report.lastLoss.toFixed(4)}, ${report.trainedParameters} parameters in ${report.trainedTensors} tensors; ` +
              `${report.untouchedTensors} tensors as they were`,
          )
        return undefined
      } finally {
        bar.stop()
      }
    },
  }
}

export const train = command('trains a specialist: LoRA or full, contrastive or graded', trainSpecialist)
export const recover = command('Projector Recovery: trains the audio projector and nothing else', recoverProjector)
export const rehearse = command('balanced rehearsal: LoRA over mixed data', rehearseModel)

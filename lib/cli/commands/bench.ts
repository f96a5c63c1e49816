// conan-embed bench: what a model does on this machine, from text to vectors.
import { loadModel, type Model } from '../../model'
import { type Command, CommandError, computeArguments, computeFlags, integer, string } from '../command'

interface Measured {
  /** Tokens of a text, and texts of a call. */
  tokens: number
  texts: number
  milliseconds: number
  tokensPerSecond: number
}

const middle = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!

/** What makes texts of about so many tokens for a model, no two alike. */
async function textsFor(model: Model): Promise<(tokens: number, count: number) => string[]> {
  const words = ['river', 'stone', 'bread', 'winter', 'ferry', 'patience', 'light', 'mountain', 'garden', 'paper', 'music', 'window']
  const text = (length: number, seed: number) => Array.from({ length }, (_, i) => words[(seed * 7 + i * (1 + (seed % 11))) % words.length]).join(' ')
  const usageOf = async (length: number) => (await model.embed(text(length, 1))).usage
  const { text: one } = await usageOf(1)
  let perWord = 1
  for (const words of [60, 5]) {
    const { text: many, truncated } = await usageOf(1 + words)
    perWord = Math.max(0.1, (many - one) / words)
    if (truncated.length === 0) break
  }
  return (tokens, count) => Array.from({ length: count }, (_, i) => text(Math.max(1, Math.round((tokens - one) / perWord) + 1), i))
}

/** The median of calls that go on for so many milliseconds, at least three. */
async function measure(model: Model, inputs: string[], ms: number): Promise<Measured> {
  const { usage } = await model.embed(inputs)
  const times: number[] = []
  for (const end = performance.now() + ms; times.length < 3 || performance.now() < end; ) {
    const begun = performance.now()
    await model.embed(inputs)
    times.push(performance.now() - begun)
  }
  const milliseconds = middle(times)
  const texts = inputs.length
  return { tokens: Math.round(usage.text / texts), texts, milliseconds, tokensPerSecond: (1000 * usage.text) / milliseconds }
}

export const bench: Command = {
  summary: 'measures a model on this machine: texts of several lengths, alone and in batches, tokenising included',
  positionals: 'MODEL',
  options: {
    lengths: { type: 'string', help: 'LIST tokens of a text, with commas (32,128,512)' },
    texts: { type: 'string', help: 'LIST texts of a call, with commas (1,32)' },
    ms: { type: 'string', help: 'N of each measurement at least (1000)' },
    ...computeFlags,
    json: { type: 'boolean', help: 'as JSON' },
  },
  async run(args) {
    const [directory, ...rest] = args.positionals
    if (directory === undefined || rest.length) throw new CommandError('expected a model directory')
    const listOf = (name: string, fallback: number[]) => {
      const given = string(args, name)?.split(',')
      if (given && !given.every((value) => /^[1-9]\d*$/.test(value))) throw new CommandError(`--${name}: expected whole numbers with commas, got "${given}"`)
      return given?.map(Number) ?? fallback
    }
    const [lengths, counts, ms] = [listOf('lengths', [32, 128, 512]), listOf('texts', [1, 32]), integer(args, 'ms') ?? 1000]
    const begun = performance.now()
    await using model = await loadModel(directory, computeArguments(args))
    await model.embed('a')
    const firstVectorMs = performance.now() - begun
    const { info } = model
    const machine = { device: info.device, backend: info.backend, dtype: info.dtype, threads: info.threads }
    const asked = lengths.filter((length) => string(args, 'lengths') !== undefined || length <= info.maxTokens)
    if (asked.some((length) => length > info.maxTokens)) throw new CommandError(`--lengths: expected at most the model's ${info.maxTokens}, got "${lengths}"`)
    const show = !args.values.json
    if (show) {
      console.log(`${directory}: ${Object.values(machine).join(', ')} threads; ${firstVectorMs.toFixed(0)} ms from loading to the first vector`)
      console.log(`${'tokens'.padStart(8)}${'texts'.padStart(8)}${'ms'.padStart(12)}${'texts/s'.padStart(12)}${'tokens/s'.padStart(12)}`)
    }
    const textsOf = await textsFor(model)
    const results: Measured[] = []
    for (const length of asked)
      for (const count of counts) {
        const measured = await measure(model, textsOf(length, count), ms)
        results.push(measured)
        const { tokens, texts, milliseconds, tokensPerSecond } = measured
        const numbers = [tokens, texts].map((value) => String(value).padStart(8))
        const rates = [milliseconds.toFixed(2), ((1000 * texts) / milliseconds).toFixed(1), tokensPerSecond.toFixed(0)]
        if (show) console.log([...numbers, ...rates.map((value) => value.padStart(12))].join(''))
      }
    if (!show) console.log(JSON.stringify({ model: info.directory, ...machine, firstVectorMs, results }))
    return undefined
  },
}

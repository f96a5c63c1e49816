// conan-embed embed: vectors as JSON lines, .npy or Parquet.

import { once } from 'node:events'
import type { Precision } from '../../embed/precision'
import { requirePlace } from '../../files/output'
import { VectorFile } from '../../files/vector-file'
import { loadModel } from '../../model'
import { type Command, CommandError, computeArguments, computeFlags, integer, interruptible, number, string } from '../command'
import { fetchOf, type Item, inputOptions, items } from '../items'
import { progress } from '../progress'

async function print(id: string, vector: ArrayLike<number>): Promise<void> {
  if (!process.stdout.write(`${JSON.stringify({ id, embedding: Array.from(vector) })}\n`))
    await Promise.race([once(process.stdout, 'drain'), once(process.stdout, 'close')])
}

/** What changes no vector, and may be another when a run goes on. */
const changeable = ['out', 'device', 'threads', 'batch-size', 'max-batch-tokens', 'skip-errors', 'remote-host', 'remote-private', 'json']

export const embed: Command = {
  summary: 'embeds texts, images, videos, pages and sounds with a model',
  positionals: 'MODEL [TEXT ...]',
  options: {
    ...inputOptions,
    'min-pixels': { type: 'string', help: 'N pixels of an image after resizing at least' },
    'max-pixels': { type: 'string', help: 'N ... at most' },
    'total-pixels': { type: 'string', help: 'N pixels of all frames of a video at most' },
    fps: { type: 'string', help: 'N frames taken per second of a video' },
    'max-frames': { type: 'string', help: 'N frames taken of a video at most' },
    'pad-seconds': { type: 'string', help: 'N silence after shorter sounds up to this length' },
    'skip-errors': { type: 'boolean', help: 'leave out inputs that cannot be read, and say which' },
    out: {
      type: 'string',
      short: 'o',
      help: 'FILE .npy (with ids beside it), .parquet or .jsonl; a run that was ended goes on; default: JSON lines on stdout',
    },
    'prompt-name': { type: 'string', help: "NAME one of the model's prompts" },
    prompt: { type: 'string', help: 'TEXT put before every text' },
    instruction: { type: 'string', help: 'TEXT a task in words, for models that take instructions' },
    dimensions: { type: 'string', help: 'N first components to keep' },
    force: { type: 'boolean', help: 'keep fewer dimensions although the model does not declare it' },
    'no-normalize': { type: 'boolean', help: 'leave lengths as they are' },
    precision: { type: 'string', help: 'P float32, int8, uint8, binary or ubinary' },
    truncate: { type: 'string', help: 'SIDE end, start or error' },
    'batch-size': { type: 'string', help: 'N inputs per forward pass at most' },
    'max-batch-tokens': { type: 'string', help: 'N tokens per forward pass at most' },
    ...computeFlags,
    adapter: { type: 'string', multiple: true, help: 'DIR a PEFT directory to merge into the model; may be repeated' },
    json: { type: 'boolean', help: 'progress and errors as JSON lines on stderr' },
  },
  async run(args) {
    const [directory, ...texts] = args.positionals
    if (directory === undefined) throw new CommandError('expected a model directory')
    const out = string(args, 'out')
    if (out !== undefined && !/\.(npy|parquet|jsonl)$/.test(out))
      throw new CommandError(`--out: expected a name that ends in .npy, .parquet or .jsonl, got "${out}"`)
    if (out !== undefined) requirePlace(out)
    const model = await loadModel(directory, {
      ...computeArguments(args),
      adapters: (args.values.adapter as string[] | undefined) ?? [],
      processor: {
        minPixels: integer(args, 'min-pixels'),
        maxPixels: integer(args, 'max-pixels'),
        totalPixels: integer(args, 'total-pixels'),
        fps: number(args, 'fps'),
        maxFrames: integer(args, 'max-frames'),
        padSeconds: number(args, 'pad-seconds'),
      },
    })
    const json = args.values.json === true
    const fetch = fetchOf(args)
    const settings = Object.entries(args.values).filter(([name]) => !changeable.includes(name))
    const identity = JSON.stringify({ model: model.info.directory, dtype: model.info.dtype, ...Object.fromEntries(settings), texts }, null, 2)
    const bar = progress(json)
    let file: VectorFile | undefined
    try {
      await interruptible(async (signal) => {
        file = out === undefined ? undefined : new VectorFile(out, identity)
        const before = file?.before ?? 0
        if (before) console.error(json ? JSON.stringify({ resumed: before }) : `going on after ${before} inputs, and counting from there`)
        const asked: Item[] = []
        async function* inputs() {
          const all = items(args, texts, fetch)
          for await (const item of file?.remaining(all) ?? all) {
            asked.push(item)
            yield item.input
          }
        }
        const vectors = model.embedStream(inputs(), {
          promptName: string(args, 'prompt-name'),
          prompt: string(args, 'prompt'),
          instruction: string(args, 'instruction'),
          dimensions: integer(args, 'dimensions'),
          force: args.values.force === true,
          normalize: args.values['no-normalize'] !== true,
          precision: args.values.precision as Precision | undefined,
          truncate: args.values.truncate as 'error' | undefined,
          batchSize: integer(args, 'batch-size'),
          maxBatchTokens: integer(args, 'max-batch-tokens'),
          fetch,
          onError: args.values['skip-errors'] === true ? 'skip' : 'throw',
          signal,
          onProgress: ({ done, tokens }) => bar.update(done, texts.length && !args.values.input ? texts.length : undefined, tokens),
        })
        for await (const { vector, error } of vectors) {
          const item = asked.shift() as Item
          if (error) {
            const { code, message } = error
            console.error(json ? JSON.stringify({ skipped: item.id, error: { code, message } }) : `skipped ${item.id}: ${message}`)
          }
          if (file) file.write(item, error ? undefined : vector)
          else if (!error) await print(item.id, vector)
        }
        file?.finish()
      })
      return undefined
    } catch (error) {
      const done = file?.leave()
      if (done && !json) console.error(`${out}.partial keeps ${done} inputs; the same command goes on from there`)
      throw error
    } finally {
      bar.stop()
      await model.dispose()
    }
  },
}

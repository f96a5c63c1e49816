// conan-embed search: the nearest of a file's vectors.
import { openVectors, searchSource } from '../../embed/search'
import { loadModel } from '../../model'
import { type Command, CommandError, computeArguments, computeFlags, integer, interruptible, string } from '../command'
import { fetchOf, inputOptions, items } from '../items'

/** Queries that are looked up together. */
const together = 256

export const search: Command = {
  summary: 'finds what is nearest among vectors that embed --out has written',
  positionals: 'MODEL VECTORS [QUERY ...]',
  options: {
    ...inputOptions,
    top: { type: 'string', help: 'N found for each query (10)' },
    'prompt-name': { type: 'string', help: 'NAME one of the model\'s prompts ("query", where it has one)' },
    prompt: { type: 'string', help: 'TEXT put before every text' },
    instruction: { type: 'string', help: 'TEXT a task in words, for models that take instructions' },
    force: { type: 'boolean', help: 'search fewer dimensions than the model has although it does not declare it' },
    ...computeFlags,
    json: { type: 'boolean', help: 'a line {query, hits: [{id, score}]} for each query' },
  },
  async run(args) {
    const [directory, vectors, ...texts] = args.positionals
    if (directory === undefined || vectors === undefined) throw new CommandError('expected a model directory and a file of vectors')
    const [promptName, prompt, instruction] = ['prompt-name', 'prompt', 'instruction'].map((name) => string(args, name))
    const [top, fetch] = [integer(args, 'top'), fetchOf(args)]
    await using model = await loadModel(directory, computeArguments(args))
    const options = {
      ...(promptName !== undefined && { promptName }),
      ...(prompt !== undefined && { prompt }),
      ...(instruction !== undefined && { instruction }),
      ...(top !== undefined && { top }),
      fetch,
      force: args.values.force === true,
    }
    const source = await openVectors(vectors)
    await interruptible(async (signal) => {
      for await (const queries of groups(items(args, texts, fetch))) {
        const inputs = queries.map(({ input }) => input)
        const found = await searchSource(model, source, inputs, { ...options, signal })
        for (const [i, hits] of found.entries()) {
          const { id, of } = queries[i]!
          if (args.values.json) console.log(JSON.stringify({ query: id, hits }))
          else console.log([...(texts.length === 1 && queries.length === 1 ? [] : [of]), ...hits.map((hit) => `${hit.score.toFixed(4)}  ${hit.id}`)].join('\n'))
        }
      }
    })
    return undefined
  },
}

async function* groups<T>(all: AsyncIterable<T>): AsyncGenerator<T[]> {
  let group: T[] = []
  for await (const item of all) {
    group.push(item)
    if (group.length === together) {
      yield group
      group = []
    }
  }
  if (group.length) yield group
}

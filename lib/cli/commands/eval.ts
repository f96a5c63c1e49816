// conan-embed eval: a model's scores on tasks.
import { evaluate } from '../../eval/evaluate'
import { loadModel } from '../../model'
import { type Command, CommandError, computeArguments, computeFlags, integer, interruptible, string } from '../command'

export const evaluation: Command = {
  summary: "scores on retrieval, classification, clustering, similarity and other tasks, in mteb's JSON",
  positionals: 'MODEL TASKS',
  options: {
    out: { type: 'string', short: 'o', help: 'DIR where a result file is written for each task' },
    seed: { type: 'string', help: 'N of clustering (42)' },
    ...computeFlags,
    json: { type: 'boolean', help: 'results as JSON' },
  },
  async run(args) {
    const [directory, tasks, ...rest] = args.positionals
    if (directory === undefined || tasks === undefined || rest.length) throw new CommandError('expected a model and a file of tasks (.yaml or .json)')
    await using model = await loadModel(directory, computeArguments(args))
    const [out, seed] = [string(args, 'out'), integer(args, 'seed')]
    const results = await interruptible((signal) => evaluate(model, tasks, { signal, ...(out !== undefined && { out }), ...(seed !== undefined && { seed }) }))
    if (args.values.json) console.log(JSON.stringify(results))
    else
      for (const { task, type, mainScore, seconds } of results)
        console.log(`${task.padEnd(32)} ${type.padEnd(16)} ${mainScore.toFixed(4)}  ${seconds.toFixed(1)} s`)
    return undefined
  },
}

// conan-embed extract-lora: a LoRA adapter from the difference of two checkpoints.
import { extractLora as extract } from '../../fuse/extract-lora'
import { type Command, CommandError, integer, interruptible, number, string } from '../command'
import { progress } from '../progress'

export const extractLora: Command = {
  summary: 'a LoRA adapter from what fine-tuning changed',
  positionals: 'TUNED BASE --out DIR',
  options: {
    out: { type: 'string', short: 'o', help: 'DIR the directory to make; it must not exist, or be empty' },
    rank: { type: 'string', help: 'N rank of every module (32)' },
    energy: { type: 'string', help: 'SHARE instead: per module the smallest rank that keeps this share of the squared norm' },
    'max-rank': { type: 'string', help: 'N largest rank with --energy (256)' },
    modules: { type: 'string', help: 'REGEX only tensors whose name matches (all matrices but embeddings and heads)' },
    threads: { type: 'string', help: 'N threads (all cores)' },
    json: { type: 'boolean', help: 'the report as JSON' },
  },
  async run(args) {
    const [tuned, base, ...rest] = args.positionals
    const out = string(args, 'out')
    if (tuned === undefined || base === undefined || rest.length) throw new CommandError('expected a tuned model and its base')
    if (out === undefined) throw new CommandError('--out: expected a directory')
    const [rank, energy, maxRank, pattern] = [integer(args, 'rank'), number(args, 'energy'), integer(args, 'max-rank'), string(args, 'modules')]
    let modules: RegExp | undefined
    try {
      modules = pattern === undefined ? undefined : new RegExp(pattern)
    } catch (error) {
      throw new CommandError(`--modules: expected a regular expression: ${(error as Error).message}`)
    }
    const bar = progress(args.values.json === true, 'items')
    try {
      const report = await interruptible((signal) =>
        extract(tuned, base, {
          out,
          ...(rank !== undefined && { rank }),
          ...(energy !== undefined && { energy }),
          ...(maxRank !== undefined && { maxRank }),
          ...(modules && { modules }),
          threads: integer(args, 'threads') ?? 0,
          signal,
          onProgress: ({ done, total }) => bar.update(done, total, done),
        }),
      )
      bar.stop()
      if (args.values.json) {
        console.log(JSON.stringify(report))
        return undefined
      }
      const ranks = report.modules.map((module) => module.rank)
      console.log(
        `wrote ${report.directory}: ${ranks.length} modules, rank ${Math.min(...ranks)} to ${Math.max(...ranks)}, ${(100 * report.energy).toFixed(2)} % of the squared norm`,
      )
      if (report.leftOut.length)
        console.log(
          `left out, although changed: ${report.leftOut.length} tensors (${report.leftOut.slice(0, 5).join(', ')}${report.leftOut.length > 5 ? ', ...' : ''})`,
        )
      return undefined
    } finally {
      bar.stop()
    }
  },
}

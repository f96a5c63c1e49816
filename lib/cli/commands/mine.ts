// conan-embed mine: hard negatives for training rows.
import { type MineOptions, mineNegatives } from '../../train/mine'
import { type Command, CommandError, computeArguments, computeFlags, integer, interruptible, number, string } from '../command'
import { progress } from '../progress'

export const mine: Command = {
  summary: 'adds hard negatives to training rows',
  positionals: 'MODEL DATA --out FILE',
  options: {
    out: { type: 'string', short: 'o', help: 'FILE rows {query, positive, negatives} as JSON lines' },
    count: { type: 'string', help: 'N negatives a row (4)' },
    from: { type: 'string', help: 'N ranks they come from, from here (1)' },
    to: { type: 'string', help: 'N to here (100)' },
    'relative-margin': { type: 'string', help: 'M leave out what is more similar than this share of the positive (0.95)' },
    ...computeFlags,
    json: { type: 'boolean', help: 'the report as JSON' },
  },
  async run(args) {
    const [model, data, ...rest] = args.positionals
    const out = string(args, 'out')
    if (model === undefined || data === undefined || rest.length) throw new CommandError('expected a model and data')
    if (out === undefined) throw new CommandError('--out: expected a file')
    const bar = progress(args.values.json === true, 'items')
    try {
      const given: Partial<MineOptions> = {
        count: integer(args, 'count'),
        from: integer(args, 'from'),
        to: integer(args, 'to'),
        relativeMargin: number(args, 'relative-margin'),
        ...computeArguments(args),
      }
      const report = await interruptible((signal) =>
        mineNegatives(model, data, { ...given, out, signal, onProgress: ({ done, total }) => bar.update(done, total, done) }),
      )
      bar.stop()
      if (args.values.json) console.log(JSON.stringify(report))
      else
        console.log(
          `wrote ${report.file}: ${report.rows} rows, ${report.negatives} negatives among ${report.documents} documents${report.short ? `, ${report.short} rows got fewer` : ''}`,
        )
      return undefined
    } finally {
      bar.stop()
    }
  },
}

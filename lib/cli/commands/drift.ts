// conan-embed drift: how far models have moved from a base, and apart.
import { replaceFile, requirePlace } from '../../files/output'
import { type DriftReport, drift as measure } from '../../fuse/drift'
import { driftHtml } from '../../fuse/drift-report'
import { type Command, CommandError, integer, interruptible, string } from '../command'
import { progress } from '../progress'

function print(report: DriftReport): void {
  const column = (value: number | undefined) => (value === undefined ? '–' : value.toPrecision(4)).padStart(12)
  const head = report.models.map((name) => name.slice(-11).padStart(12)).join('')
  console.log(`task vectors from ${report.base}: norm, by part\n${''.padEnd(28)}${head}`)
  for (const part of [report.total, ...report.modules]) console.log(`${part.name.padEnd(28)}${part.norms.map(column).join('')}`)
  console.log('by layer')
  for (const layer of report.layers) console.log(`${layer.name.slice(-27).padEnd(28)}${layer.norms.map(column).join('')}`)
  for (const [what, matrix] of [
    ['cosine', report.total.cosines],
    ['sign conflicts', report.total.signConflicts],
  ] as const)
    if (report.models.length > 1) {
      console.log(what)
      for (const [i, name] of report.models.entries()) console.log(`${name.slice(-27).padEnd(28)}${matrix[i]!.map(column).join('')}`)
    }
  for (const probe of report.probe ?? []) {
    console.log(`direction of hidden states at ${probe.tokens} ${probe.modality} tokens: cosine by layer (mean, lowest tenth)`)
    for (const { layer, mean, low } of probe.directions) console.log(`${String(layer).padEnd(28)}${column(mean)}${column(low)}`)
  }
  for (const { model, scores } of report.retrieval ?? [])
    for (const score of scores)
      console.log(
        `retrieval ${model} ${score.modality}: R@1 ${score.recallAt1.toFixed(4)}, R@10 ${score.recallAt10.toFixed(4)}, MRR ${score.mrr.toFixed(4)} (${score.pairs} pairs)`,
      )
  if (report.unshared.length) console.log(`left out: ${report.unshared.length} tensors that not all models share`)
}

export const drift: Command = {
  summary: 'compares task vectors, hidden states and retrieval of models',
  positionals: 'A B [MODEL ...] [--base BASE]',
  options: {
    base: { type: 'string', help: 'DIR what task vectors are taken from (A)' },
    probe: { type: 'string', help: 'FILE pairs {query, positive, modality?}, .jsonl or .parquet: also compare hidden states and retrieval of A and B' },
    device: { type: 'string', help: 'D what the probe computes on: auto, cpu, cuda or cuda:N (auto)' },
    dtype: { type: 'string', help: 'TYPE how the probe computes: auto, float32, bfloat16, float16 or int8 (auto)' },
    out: { type: 'string', short: 'o', help: 'FILE write the report as an HTML page' },
    threads: { type: 'string', help: 'N threads (all cores)' },
    json: { type: 'boolean', help: 'the report as JSON' },
  },
  async run(args) {
    const [a, b, ...others] = args.positionals
    if (a === undefined || b === undefined) throw new CommandError('expected two models')
    const dtype = string(args, 'dtype') ?? 'auto'
    if (!['auto', 'float32', 'bfloat16', 'float16', 'int8'].includes(dtype))
      throw new CommandError(`--dtype: expected auto, float32, bfloat16, float16 or int8, got "${dtype}"`)
    const [base, probe, out, device] = ['base', 'probe', 'out', 'device'].map((name) => string(args, name))
    const threads = integer(args, 'threads')
    if (out !== undefined) requirePlace(out)
    const bar = progress(args.values.json === true, 'items')
    try {
      const report = await interruptible((signal) =>
        measure(a, b, {
          ...(base !== undefined && { base }),
          ...(probe !== undefined && { probe }),
          ...(device !== undefined && { device }),
          dtype: dtype as 'auto',
          others,
          ...(threads !== undefined && { threads }),
          signal,
          onProgress: ({ done, total }) => bar.update(done, total, done),
        }),
      )
      bar.stop()
      if (out !== undefined) replaceFile(out, driftHtml(report))
      if (args.values.json) console.log(JSON.stringify(report))
      else print(report)
      return undefined
    } finally {
      bar.stop()
    }
  },
}

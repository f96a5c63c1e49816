// conan-embed fuse: a recipe becomes a model directory.
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fuse as fuseModels } from '../../fuse/fuse'
import { type SearchReport, searchCoefficients } from '../../fuse/search'
import { type Arguments, type Command, CommandError, integer, interruptible, string } from '../command'
import { progress } from '../progress'

function tradeOffOf(value: string | undefined): 'mean' | 'min' | Record<string, number> {
  if (value === undefined || value === 'mean' || value === 'min') return value ?? 'mean'
  const parts = value.split(',').map((part) => part.split('='))
  if (parts.some(([name, weight]) => !name || !weight || !Number.isFinite(Number(weight))))
    throw new CommandError(`--trade-off: expected mean, min or NAME=WEIGHT,..., got "${value}"`)
  return Object.fromEntries(parts.map(([name, weight]) => [name, Number(weight)]))
}

/** The search that --search asks for, with its table on the way. */
async function search(args: Arguments, recipe: string, signal: AbortSignal): Promise<SearchReport | undefined> {
  const probe = string(args, 'search')
  if (probe === undefined) return undefined
  const grid = (string(args, 'grid') ?? '0,0.25,0.5,0.75,1').split(',').map(Number)
  if (grid.some(Number.isNaN)) throw new CommandError(`--grid: expected numbers separated by commas, got "${args.values.grid}"`)
  const strategy = (string(args, 'strategy') ?? 'coordinate') as 'grid' | 'coordinate'
  const json = args.values.json === true
  return searchCoefficients(recipe, {
    probe,
    grid,
    strategy,
    tradeOff: tradeOffOf(string(args, 'trade-off')),
    threads: integer(args, 'threads') ?? 0,
    signal,
    onProgress: (candidate) => {
      const part = (values: Record<string, number>) => Object.entries(values).map(([name, value]) => `${path.basename(name)} ${Number(value.toFixed(4))}`)
      console.error(
        json
          ? JSON.stringify(candidate)
          : `${candidate.value.toFixed(4)}  weights ${part(candidate.weights).join(', ')}  scores ${part(candidate.scores).join(', ')}`,
      )
    },
  })
}

export const fuse: Command = {
  summary: 'merges models as a recipe says (mergekit YAML) into a new model directory',
  positionals: 'RECIPE --out DIR',
  options: {
    out: { type: 'string', short: 'o', help: 'DIR the directory to make; it must not exist, or be empty' },
    'out-shard-size': { type: 'string', help: 'SIZE largest weight file (5GB)' },
    threads: { type: 'string', help: 'N threads (all cores)' },
    device: { type: 'string', help: 'NAME cpu, cuda or cuda:N: where bfloat16 is added up (cpu)' },
    sha256: { type: 'boolean', help: 'add the SHA-256 of every weight file to the manifest' },
    'dry-run': { type: 'boolean', help: 'check everything and say what would be done; write nothing' },
    search: { type: 'string', help: 'PROBE first find the best weights on these pairs ({query, positive, modality?}, .jsonl or .parquet)' },
    grid: { type: 'string', help: 'A,B,... weights to try for every model (0,0.25,0.5,0.75,1)' },
    strategy: { type: 'string', help: 'HOW coordinate (one model after the other) or grid (every combination)' },
    'trade-off': { type: 'string', help: 'HOW how scores of modalities become one: mean, min or NAME=WEIGHT,... (mean)' },
    json: { type: 'boolean', help: 'the manifest as JSON on stdout, progress as JSON lines on stderr' },
  },
  async run(args) {
    const [recipe, ...rest] = args.positionals
    const out = string(args, 'out')
    if (recipe === undefined || rest.length) throw new CommandError('expected one recipe')
    if (out === undefined) throw new CommandError('--out: expected a directory')
    const json = args.values.json === true
    const bar = progress(json, 'MB')
    const start = performance.now()
    try {
      const outShardSize = string(args, 'out-shard-size')
      const { manifest, resumedTensors, directory } = await interruptible(async (signal) => {
        const found = await search(args, recipe, signal)
        const report = await fuseModels(found?.recipe ?? recipe, {
          out,
          directory: path.dirname(path.resolve(recipe)),
          ...(outShardSize !== undefined && { outShardSize }),
          threads: integer(args, 'threads') ?? 0,
          device: string(args, 'device') ?? 'cpu',
          sha256: args.values.sha256 === true,
          dryRun: args.values['dry-run'] === true,
          signal,
          onProgress: ({ doneBytes, totalBytes }) => bar.update(Math.round(doneBytes / 1e6), Math.round(totalBytes / 1e6), Math.round(doneBytes / 1e6)),
        })
        if (found && args.values['dry-run'] !== true)
          writeFileSync(path.join(report.directory, 'coefficient-search.json'), `${JSON.stringify(found, null, 1)}\n`)
        return report
      })
      bar.stop()
      if (json) {
        console.log(JSON.stringify(manifest))
        return undefined
      }
      const count = (action: string) => manifest.tensors.filter((tensor) => tensor.action === action).length
      const seconds = ((performance.now() - start) / 1000).toFixed(1)
      console.log(
        `${args.values['dry-run'] ? 'would write' : 'wrote'} ${directory}: ${manifest.method}, ${(manifest.parameters / 1e6).toFixed(1)}M parameters, ${(manifest.bytes / 1e6).toFixed(1)} MB in ${manifest.files.length} file${manifest.files.length === 1 ? '' : 's'}, ${seconds} s${resumedTensors ? `, ${resumedTensors} tensors from an earlier run` : ''}`,
      )
      console.log(
        `  tensors: ${count('merge')} merged, ${count('copy')} copied, ${count('keep')} kept; ${manifest.parents.reduce((sum, parent) => sum + parent.dropped.length, 0)} dropped`,
      )
      for (const parent of manifest.parents) {
        const norm = parent.norm === undefined ? '' : `, norm ${parent.norm.toPrecision(4)}`
        console.log(
          `  ${parent.isBase ? 'base' : 'from'} ${parent.model}: ${Object.entries(parent.tensors)
            .map(([fate, n]) => `${n} ${fate}`)
            .join(', ')}${norm}`,
        )
      }
      if (manifest.signConflicts !== undefined) console.log(`  sign conflicts: ${(100 * manifest.signConflicts).toFixed(1)} % of the merged entries`)
      return undefined
    } finally {
      bar.stop()
    }
  },
}

// conan-embed fuse: a recipe becomes a model directory.
import { fuse as fuseModels } from '../../fuse/fuse'
import { type Command, CommandError, integer, string } from '../command'
import { progress } from '../progress'

export const fuse: Command = {
  summary: 'merges models as a recipe says (mergekit YAML) into a new model directory',
  positionals: 'RECIPE --out DIR',
  options: {
    out: { type: 'string', short: 'o', help: 'DIR        the directory to make; it must not exist, or be empty' },
    'out-shard-size': { type: 'string', help: 'SIZE       largest weight file (5GB)' },
    threads: { type: 'string', help: 'N          threads (all cores)' },
    sha256: { type: 'boolean', help: '           add the SHA-256 of every weight file to the manifest' },
    'dry-run': { type: 'boolean', help: '           check everything and say what would be done; write nothing' },
    json: { type: 'boolean', help: '           the manifest as JSON on stdout, progress as JSON lines on stderr' },
  },
  async run(args) {
    const [recipe, ...rest] = args.positionals
    const out = string(args, 'out')
    if (recipe === undefined || rest.length) throw new CommandError('expected one recipe')
    if (out === undefined) throw new CommandError('--out: expected a directory')
    const json = args.values.json === true
    const stop = new AbortController()
    const interrupt = () => stop.abort()
    process.once('SIGINT', interrupt)
    const bar = progress(json, 'MB')
    const start = performance.now()
    try {
      const outShardSize = string(args, 'out-shard-size')
      const { manifest, resumedTensors, directory } = await fuseModels(recipe, {
        out,
        ...(outShardSize !== undefined && { outShardSize }),
        threads: integer(args, 'threads') ?? 0,
        sha256: args.values.sha256 === true,
        dryRun: args.values['dry-run'] === true,
        signal: stop.signal,
        onProgress: ({ doneBytes, totalBytes }) => bar.update(Math.round(doneBytes / 1e6), Math.round(totalBytes / 1e6), Math.round(doneBytes / 1e6)),
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
      process.off('SIGINT', interrupt)
    }
  },
}

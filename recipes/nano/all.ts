// The whole recipe, stage after stage, each a process of its own; what exists is left out, and a run that was ended goes on where it was.
//   npx tsx recipes/nano/all.ts             an evening on 2 cores
//   npx tsx recipes/nano/all.ts --reduced   10 minutes (of a Zen 5): everything small, one seed, the method and its controls alone
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { reduced, settings } from './settings'

const seeds = Array.from({ length: settings.seeds }, (_, seed) => ['study', '--seed', String(seed)])
const began = performance.now()
for (const [stage, ...options] of [['text'], ['seeing'], ['vision'], ['hearing'], ...seeds, ['results']]) {
  const start = performance.now()
  const file = path.join(__dirname, `${stage}.ts`)
  const { status } = spawnSync(process.execPath, ['--import', 'tsx', file, ...options, ...(reduced ? ['--reduced'] : [])], { stdio: 'inherit' })
  if (status !== 0) {
    console.error(`${stage}: ended with ${status}; the same command goes on from there`)
    process.exit(status ?? 1)
  }
  console.log(`--- ${[stage, ...options].join(' ')}: ${((performance.now() - start) / 60_000).toFixed(1)} min`)
}
console.log(`--- all: ${((performance.now() - began) / 60_000).toFixed(1)} min`)

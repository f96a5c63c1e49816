// The merge benchmark: base and three specialists of 1.08 GB in bf16, in the page cache; ours, PyTorch and the floor (the
// same bytes read and written, nothing computed) in turn.
//   node bench/merge.mjs DIR [--rounds 5] [--threads 2] [--peer-rounds 1] [--out result.json]
// DIR is made by bench/make_merge.py; CONAN_BENCH_PYTHON has torch and safetensors.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'

const here = path.dirname(new URL(import.meta.url).pathname)
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    'peer-rounds': { type: 'string', default: '1' },
    threads: { type: 'string', default: '2' },
    out: { type: 'string' },
  },
})
const directory = path.resolve(positionals[0] ?? '')
const python = process.env.CONAN_BENCH_PYTHON ?? 'python3'
const files = ['base', 's1', 's2', 's3'].map((name) => path.join(directory, name, 'model.safetensors'))
const work = mkdtempSync(path.join(directory, 'bench-'))
const methods = {
  task_arithmetic: {},
  ties: { density: 0.2 },
}

function child(command, args) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 26 })
  if (status !== 0) throw new Error(`${command}: ${stderr}`)
  return JSON.parse(stdout.trim().split('\n').at(-1))
}

/** In a process of its own, that the memory is its own; private memory is what is not a mapped file. */
const ours = (recipe) =>
  child(process.execPath, [
    '--input-type=module',
    '-e',
    `import { readFileSync } from 'node:fs'
const { fuse } = await import(${JSON.stringify(path.join(here, '../dist/index.mjs'))})
const anonymous = () => Number(/RssAnon:\\s+(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024
let peak = 0
const timer = setInterval(() => { peak = Math.max(peak, anonymous()) }, 5)
const start = performance.now()
await fuse(${JSON.stringify(recipe)}, { directory: ${JSON.stringify(directory)}, out: ${JSON.stringify(path.join(work, 'out'))}, threads: ${values.threads} })
const seconds = (performance.now() - start) / 1000
clearInterval(timer)
console.log(JSON.stringify({ seconds, rssMB: Math.max(peak, anonymous()) }))`,
  ])

const results = {}
const note = (name, result) => {
  results[name] ??= []
  results[name].push(result)
}
const clean = () => {
  for (const name of ['out', 'out.partial', 'peer.safetensors', 'floor']) rmSync(path.join(work, name), { recursive: true, force: true })
  spawnSync('sync')
}
try {
  for (const file of files) readFileSync(file) // into the page cache
  for (let round = 0; round < Number(values.rounds); round++) {
    clean()
    note(
      'floor',
      child(path.join(here, '../build/native-tests/bandwidth'), [values.threads, path.join(work, 'floor'), String(statSync(files[0]).size), ...files]),
    )
    for (const [method, parameters] of Object.entries(methods)) {
      const models = [0.5, 0.3, 0.2].map((weight, i) => ({ model: `s${i + 1}`, parameters: { weight, ...parameters } }))
      clean()
      note(method, ours({ merge_method: method, base_model: 'base', models, dtype: 'bfloat16' }))
      if (round >= Number(values['peer-rounds'])) continue
      clean()
      note(`${method} PyTorch`, child(python, [path.join(here, 'merge_peer.py'), method, directory, path.join(work, 'peer.safetensors'), values.threads]))
    }
  }
} finally {
  rmSync(work, { recursive: true, force: true })
}
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)]
const seconds = Object.fromEntries(Object.entries(results).map(([name, runs]) => [name, median(runs.map((run) => run.seconds))]))
seconds.floor = Math.min(...results.floor.map((run) => run.seconds)) // what the machine can do, not what it usually does
console.log(
  `${os.cpus()[0].model}, ${values.threads} threads; ${(files.reduce((sum, file) => sum + statSync(file).size, 0) / 1e9).toFixed(2)} GB read, ${(statSync(files[0]).size / 1e9).toFixed(2)} GB written; medians of ${values.rounds}, of the floor the best`,
)
for (const [name, runs] of Object.entries(results)) {
  const spread = runs.map((run) => run.seconds)
  const peer = seconds[`${name} PyTorch`]
  console.log(
    `${name.padEnd(26)}${seconds[name].toFixed(3).padStart(9)} s  (${Math.min(...spread).toFixed(3)} to ${Math.max(...spread).toFixed(3)})` +
      `${runs[0].rssMB ? `  ${Math.max(...runs.map((run) => run.rssMB)).toFixed(0)} MB` : ''}${peer ? `  ${(peer / seconds[name]).toFixed(1)}x PyTorch, ${(seconds[name] / seconds.floor).toFixed(2)}x the floor` : ''}`,
  )
}
if (values.out) writeFileSync(values.out, JSON.stringify(results, null, 1))

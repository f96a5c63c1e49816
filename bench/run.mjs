// The text benchmarks, every contender in the same run, in turn: bench/README.md says what it needs.
//   node bench/run.mjs [--suite minilm,decoder,texts,start] [--rounds 3] [--threads 2] [--out result.json]
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'

const here = path.dirname(new URL(import.meta.url).pathname)
const { values: options } = parseArgs({
  options: {
    suite: { type: 'string', default: 'minilm,decoder,texts,start' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
    ms: { type: 'string', default: '1000' },
    only: { type: 'string' },
    out: { type: 'string' },
  },
})
const data = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(here, '../../shared/data'))
const minilm = path.join(data, 'weights/all-MiniLM-L6-v2')
const models = process.env.CONAN_BENCH_MODELS ?? '/tmp/conan-bench-models'
const python = process.env.CONAN_BENCH_PYTHON ?? 'python3'
for (const [what, where] of [
  ['a MiniLM directory (CONAN_TEST_DATA)', minilm],
  ['the models of bench/make_models.py (CONAN_BENCH_MODELS)', models],
])
  if (!existsSync(where)) {
    console.error(`bench: expected ${what} at ${where}, found none`)
    process.exit(2)
  }

const js = (kind, model, dtype) => [process.execPath, [path.join(here, 'worker.mjs'), kind, model, dtype, options.threads]]
const py = (kind, model, dtype) => [python, [path.join(here, 'worker.py'), kind, model, dtype, options.threads]]
const m = (...parts) => path.join(models, ...parts)

const suites = {
  minilm: {
    title: 'MiniLM shape, tokens/s (random tokens; transformers.js tokenises text of that length)',
    shapes: [
      [32, 1],
      [32, 32],
      [128, 8],
      [512, 8],
    ],
    vocabulary: 30000,
    flop: (length) => 6 * (2 * (4 * 384 * 384 + 2 * 384 * 1536) + 4 * length * 384),
    contenders: {
      'conan float32': js('conan', minilm, 'float32'),
      'conan bfloat16': js('conan', minilm, 'bfloat16'),
      'conan int8': js('conan', minilm, 'int8'),
      'onnxruntime-node float32': js('onnxruntime', m('minilm/plain.onnx'), 'float32'),
      'onnxruntime-node float32 fused': js('onnxruntime', m('minilm/fused.onnx'), 'float32'),
      'onnxruntime-node int8': js('onnxruntime', m('minilm/int8.onnx'), 'int8'),
      'transformers.js float32': js('transformersjs', m('minilm'), 'float32'),
      'transformers.js q8': js('transformersjs', m('minilm'), 'int8'),
      'PyTorch float32': py('torch', minilm, 'float32'),
      'PyTorch bfloat16': py('torch', minilm, 'bfloat16'),
      'PyTorch compiled float32': py('compiled', minilm, 'float32'),
      'PyTorch compiled bfloat16': py('compiled', minilm, 'bfloat16'),
      'node-llama-cpp float32': js('llamacpp', m('minilm/float32.gguf'), 'float32'),
      'node-llama-cpp bfloat16': js('llamacpp', m('minilm/bfloat16.gguf'), 'bfloat16'),
      'node-llama-cpp q8_0': js('llamacpp', m('minilm/int8.gguf'), 'int8'),
    },
  },
  decoder: {
    title: 'Qwen3-like decoder (12 layers, 1024, 16/8 x 64, MLP 3072), tokens/s',
    shapes: [
      [32, 1],
      [128, 8],
      [512, 1],
    ],
    vocabulary: 2000,
    flop: (length) => 12 * (2 * (1024 * 2048 + 1024 * 1024 + 3 * 1024 * 3072) + 2 * length * 1024), // causal: half the scores,
    contenders: {
      'conan float32': js('conan', m('decoder'), 'float32'),
      'conan bfloat16': js('conan', m('decoder-bfloat16'), 'bfloat16'),
      'conan int8': js('conan', m('decoder'), 'int8'),
      'onnxruntime-node float32': js('onnxruntime', m('decoder/plain.onnx'), 'float32'),
      'onnxruntime-node int8': js('onnxruntime', m('decoder/int8.onnx'), 'int8'),
      'PyTorch float32': py('torch', m('decoder'), 'float32'),
      'PyTorch bfloat16': py('torch', m('decoder-bfloat16'), 'bfloat16'),
      'node-llama-cpp float32': js('llamacpp', m('decoder/float32.gguf'), 'float32'),
      'node-llama-cpp bfloat16': js('llamacpp', m('decoder/bfloat16.gguf'), 'bfloat16'),
      'node-llama-cpp q8_0': js('llamacpp', m('decoder/int8.gguf'), 'int8'),
    },
  },
  texts: {
    title: 'Real texts (first 6000 sentences of STS-B train), tokenising included, texts/s',
    contenders: {
      'conan float32': js('conan', minilm, 'float32'),
      'conan bfloat16': js('conan', minilm, 'bfloat16'),
      'conan int8': js('conan', minilm, 'int8'),
      'transformers.js float32': js('transformersjs', m('minilm'), 'float32'),
      'sentence-transformers float32': py('sentence-transformers', minilm, 'float32'),
      'sentence-transformers bfloat16': py('sentence-transformers', minilm, 'bfloat16'),
    },
  },
}

class Contender {
  constructor(name, [command, args]) {
    this.name = name
    this.child = spawn(command, args, { stdio: ['pipe', 'pipe', process.env.CONAN_BENCH_VERBOSE ? 'inherit' : 'ignore'] })
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
  }
  async read() {
    for (;;) {
      const { value, done } = await this.lines.next()
      if (done) throw new Error(`${this.name}: ended`)
      if (value.startsWith('{')) return JSON.parse(value)
    }
  }
  async ask(request) {
    this.child.stdin.write(`${JSON.stringify(request)}\n`)
    return this.read()
  }
  stop() {
    this.child.kill()
  }
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
const require = createRequire(import.meta.url)
const { f32Gflops, isa } = require('node-gyp-build')(path.resolve(here, '..')).cpu()

/** GFLOP/s of the multiply instructions on all threads now, from the native bench (its first lines). */
function ceiling() {
  const { stdout } = spawnSync(path.join(here, '../build/native-tests/gemm_bench'), [options.threads, 'ceiling'], { encoding: 'utf8' })
  return JSON.parse(stdout)
}

const result = {
  cpu: os.cpus()[0].model,
  isa,
  f32GflopsOneThread: f32Gflops,
  threads: Number(options.threads),
  node: process.version,
  date: new Date().toISOString(),
  suites: {},
}
console.log(`${result.cpu}, ${isa}, ${options.threads} threads, node ${process.version}`)

for (const name of options.suite.split(',')) {
  if (name === 'start') {
    result.suites.start = start()
    continue
  }
  const suite = suites[name]
  console.log(`\n${suite.title}`)
  const contenders = []
  for (const [label, command] of Object.entries(suite.contenders)) {
    if (options.only && !label.includes(options.only)) continue
    const contender = new Contender(label, command)
    try {
      await contender.read()
      contenders.push(contender)
    } catch (error) {
      console.log(`${label}: not measured (${error.message})`)
    }
  }
  const rows = {}
  const requests =
    name === 'texts'
      ? { texts: { op: 'texts', texts: sentences() } }
      : Object.fromEntries(
          suite.shapes.map(([length, batch]) => [`${length}x${batch}`, { op: 'tokens', length, batch, vocabulary: suite.vocabulary, ms: Number(options.ms) }]),
        )
  const ceilings = []
  for (let round = 0; round < Number(options.rounds); round++) {
    ceilings.push(ceiling())
    for (const [shape, request] of Object.entries(requests))
      for (const contender of contenders) {
        let answer
        try {
          answer = await contender.ask(request)
        } catch (error) {
          console.log(`${contender.name} ${shape}: ${error.message}`)
          continue
        }
        const work = request.texts?.length ?? request.length * request.batch
        const row = (rows[contender.name] ??= { memoryMB: 0 })
        ;(row[shape] ??= []).push(work / median(answer.times))
        row.memoryMB = Math.round(answer.memory)
      }
  }
  for (const contender of contenders) contender.stop()
  const peak = Object.fromEntries(Object.keys(ceilings[0]).map((key) => [key, median(ceilings.map((c) => c[key]))]))
  console.log(
    `ceilings in this run (GFLOP/s): ${Object.entries(peak)
      .map(([k, v]) => `${k} ${v.toFixed(0)}`)
      .join(', ')}`,
  )
  const table = {}
  for (const [label, row] of Object.entries(rows)) {
    table[label] = {}
    for (const shape of Object.keys(requests)) {
      if (!row[shape]) continue
      const rate = median(row[shape])
      table[label][shape] = Math.round(rate)
      if (label.startsWith('conan') && suite.flop) {
        const kind = label.split(' ')[1]
        const share = (rate * suite.flop(Number(shape.split('x')[0]))) / 1e9 / peak[kind]
        table[label][`${shape} share`] = `${(100 * share).toFixed(0)} %`
      }
    }
    table[label]['RSS MB'] = row.memoryMB
  }
  console.table(table)
  result.suites[name] = { ceilings: peak, rows, table }
}

function sentences() {
  const lines = readFileSync(path.join(data, 'datasets/stsb/sts-train.csv'), 'utf8').split('\n').filter(Boolean)
  const all = lines.flatMap((line) => line.split('\t').slice(5, 7))
  return all.slice(0, 6000)
}

/** Time from starting a process to its first vector, and its peak memory; ours in each dtype. */
function start() {
  console.log('\nFrom nothing to the first vector (a fresh process each time)')
  const table = {}
  for (const dtype of ['float32', 'bfloat16', 'int8']) {
    const code = `const t = performance.now(); const { loadModel } = require('${path.resolve(here, '../dist/index.js')}');
      loadModel('${minilm}', { dtype: '${dtype}', threads: ${options.threads} }).then(async (model) => { await model.embed('first');
        const rss = /VmHWM:\\s+(\\d+)/.exec(require('fs').readFileSync('/proc/self/status', 'utf8'))[1] / 1024;
        console.log(JSON.stringify({ load: performance.now() - t, process: performance.now(), rss })) })`
    const runs = Array.from({ length: 7 }, () => JSON.parse(spawnSync(process.execPath, ['-e', code], { encoding: 'utf8' }).stdout))
    table[`conan ${dtype}`] = {
      'load + first vector ms': Math.round(median(runs.map((r) => r.load))),
      'with node start ms': Math.round(median(runs.map((r) => r.process))),
      'RSS MB': Math.round(median(runs.map((r) => r.rss))),
    }
  }
  console.table(table)
  return table
}

if (options.out) writeFileSync(options.out, JSON.stringify(result, null, 1))

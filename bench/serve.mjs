// `conan-embed serve` beside Infinity, an embedding server in Python with the same HTTP interface, on the same model and texts: texts a second
// under several clients, and how long one client waits for one text. Both are loaded all the time and asked in turn.
//   CONAN_BENCH_INFINITY=venv/bin/infinity_emb node bench/serve.mjs [--rounds 5] [--seconds 4] [--dtype float32]
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import { parseArgs } from 'node:util'

const here = path.dirname(new URL(import.meta.url).pathname)
const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '4' },
    dtype: { type: 'string', default: 'float32' },
    engine: { type: 'string', default: 'torch' }, // or optimum: ONNX Runtime
    model: { type: 'string' }, // of the peer, where it needs another form of it
  },
})
const data = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(here, '../../shared/data'))
const model = path.join(data, 'weights/all-MiniLM-L6-v2')
const texts = readFileSync(path.join(data, 'datasets/stsb/sts-train.csv'), 'utf8')
  .split('\n')
  .flatMap((line) => line.split('\t').slice(5, 7))
  .filter(Boolean)
// Their lengths change along the file.
for (let i = texts.length - 1, state = 1; i > 0; i--) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  const j = state % (i + 1)
  ;[texts[i], texts[j]] = [texts[j], texts[i]]
}

const [ourPort, peerPort] = [18080, 18081]
const servers = {
  conan: {
    port: ourPort,
    where: '/v1/embeddings',
    command: [process.execPath, path.join(here, '../dist/cli.js'), 'serve', model, '--port', String(ourPort), '--name', 'm', '--dtype', options.dtype],
  },
  infinity: {
    port: peerPort,
    where: '/embeddings',
    command: [
      process.env.CONAN_BENCH_INFINITY ?? 'infinity_emb',
      ...`v2 --served-model-name m --port ${peerPort} --engine ${options.engine} --dtype ${options.dtype}`.split(' '),
      ...'--device cpu --no-bettertransformer --pooling-method mean --model-id'.split(' '),
      options.model ?? model,
    ],
  },
}

/** Answers of one server, each client on a connection of its own that stays open. */
function ask({ port, where }, agent, input) {
  return new Promise((resolve, reject) => {
    const body = JSON.stringify({ model: 'm', input })
    const headers = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }
    const request = http.request({ host: '127.0.0.1', port, path: where, method: 'POST', headers, agent }, (response) => {
      const pieces = []
      response.on('data', (piece) => pieces.push(piece))
      response.on('end', () =>
        response.statusCode === 200 ? resolve(Buffer.concat(pieces)) : reject(new Error(`${response.statusCode} ${Buffer.concat(pieces)}`)),
      )
      response.on('error', reject)
    })
    request.on('error', reject)
    request.end(body)
  })
}

let next = 0
const some = (count) => Array.from({ length: count }, () => texts[next++ % texts.length])

/** `clients` that each ask for `count` texts again and again. */
async function load(server, clients, count) {
  next = 0
  const agent = new http.Agent({ keepAlive: true, maxSockets: clients })
  const end = performance.now() + 1000 * Number(options.seconds)
  const begun = performance.now()
  const waits = []
  const client = async () => {
    while (performance.now() < end) {
      const asked = performance.now()
      await ask(server, agent, some(count))
      waits.push(performance.now() - asked)
    }
  }
  await Promise.all(Array.from({ length: clients }, client))
  const seconds = (performance.now() - begun) / 1000
  agent.destroy()
  return { rate: (waits.length * count) / seconds, wait: median(waits) }
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

const running = Object.values(servers).map(({ command: [program, ...args] }) =>
  spawn(program, args, { stdio: 'ignore', env: { ...process.env, HF_HUB_OFFLINE: '1', DO_NOT_TRACK: '1' } }),
)
try {
  for (const [name, server] of Object.entries(servers))
    for (let tries = 0; ; tries++)
      try {
        server.first = JSON.parse(await ask(server, undefined, ['A text that both are asked for.'])).data[0].embedding
        break
      } catch (error) {
        if (tries === 120) throw new Error(`${name} does not answer: ${error.message}`)
        await new Promise((resolve) => setTimeout(resolve, 500))
      }
  const cosine = servers.conan.first.reduce((sum, value, i) => sum + value * servers.infinity.first[i], 0)
  assert.ok(cosine > 0.999, `expected the same vectors of both, got a cosine of ${cosine}`)
  const loads = [
    [1, 1],
    [32, 1],
    [128, 1],
    [8, 32],
    [1, 256],
  ]
  const found = loads.map(() => Object.fromEntries(Object.keys(servers).map((name) => [name, []])))
  for (let round = 0; round < Number(options.rounds); round++)
    for (const [i, [clients, count]] of loads.entries())
      for (const [name, server] of Object.entries(servers)) found[i][name].push(await load(server, clients, count))
  const table = loads.map(([clients, count], i) => ({
    clients,
    texts: count,
    ...Object.fromEntries(
      Object.entries(found[i]).flatMap(([name, list]) => [
        [`${name} texts/s`, Math.round(median(list.map(({ rate }) => rate)))],
        [`${name} ms`, Number(median(list.map(({ wait }) => wait)).toFixed(1))],
      ]),
    ),
    'times as fast': Number((median(found[i].conan.map(({ rate }) => rate)) / median(found[i].infinity.map(({ rate }) => rate))).toFixed(2)),
  }))
  console.table(table)
} finally {
  for (const child of running) child.kill()
}

// Similarities of lists of vectors: ours, sentence-transformers' cos_sim and NumPy's product (which norms nothing) in turn, medians.
//   node bench/similarity.mjs [--rounds 5] [--threads 2]
// CONAN_BENCH_PYTHON has sentence-transformers.
import { spawn } from 'node:child_process'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { loadModel } from '../dist/index.mjs'

const here = path.dirname(new URL(import.meta.url).pathname)
const { values } = parseArgs({ options: { rounds: { type: 'string', default: '5' }, threads: { type: 'string', default: '2' } } })
const shapes = [
  [1, 100000, 384],
  [256, 100000, 384],
  [256, 20000, 1024],
  [4000, 4000, 1024],
  [20000, 256, 1024],
]

const peer = spawn(process.env.CONAN_BENCH_PYTHON ?? 'python3', [path.join(here, 'similarity_peer.py'), values.threads], { stdio: ['pipe', 'pipe', 'inherit'] })
const answers = createInterface({ input: peer.stdout })[Symbol.asyncIterator]()
await answers.next()
const model = await loadModel('conan-nano', { device: 'cpu', threads: Number(values.threads) })

function ours([rows, cols, dimensions]) {
  const random = (count) => ({ vectors: Float32Array.from({ length: count * dimensions }, () => Math.random() - 0.5), dimensions })
  const [a, b] = [random(rows), random(cols)]
  model.similarity(a, b)
  const start = performance.now()
  let count = 0
  while (performance.now() - start < 500) {
    model.similarity(a, b)
    count++
  }
  return (performance.now() - start) / count / 1000
}

const seen = shapes.map(() => [])
for (let round = 0; round < Number(values.rounds); round++)
  for (const [i, shape] of shapes.entries()) {
    const own = ours(shape)
    peer.stdin.write(`${shape.join(' ')}\n`)
    const { value } = await answers.next()
    if (value === undefined) throw new Error('the peer has ended')
    seen[i].push([own, ...value.split(' ').map(Number)])
  }
peer.stdin.end()
await model.dispose()
for (const [i, [rows, cols, dimensions]] of shapes.entries()) {
  const [own, cosine, product] = [0, 1, 2].map((which) => seen[i].map((times) => times[which]).sort((x, y) => x - y)[seen[i].length >> 1])
  console.log(
    `${rows} x ${cols} x ${dimensions}: ${(own * 1000).toFixed(1)} ms (${((2 * rows * cols * dimensions) / own / 1e9).toFixed(0)} GFLOP/s), ` +
      `cos_sim ${(cosine * 1000).toFixed(1)} ms (${(cosine / own).toFixed(2)}x), NumPy's product ${(product * 1000).toFixed(1)} ms (${(product / own).toFixed(2)}x)`,
  )
}

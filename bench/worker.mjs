// One contender in a process of its own. Reads JSON lines {op, ...} on stdin, answers with one line each. It loads when it
// starts, computes only when asked, and times itself, so that contenders can take turns.
// Usage: node worker.mjs KIND MODEL DTYPE THREADS
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const [, , kind, model, dtype, threadsText] = process.argv
const threads = Number(threadsText)
const here = path.dirname(new URL(import.meta.url).pathname)
const peers = createRequire(path.join(here, 'peers/package.json'))

function random(seed) {
  let state = seed
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}
const tokenIds = (count, vocabulary) => {
  const next = random(1)
  return Array.from({ length: count }, () => 5 + Math.floor(next() * (vocabulary - 10)))
}

const contenders = {
  /** This project. Token batches go through the addon as embed() would send them. */
  async conan() {
    const { loadModel } = await import('../dist/index.mjs')
    const native = createRequire(import.meta.url)('node-gyp-build')(path.resolve(here, '..'))
    let loaded
    let handle
    return {
      async texts(texts) {
        loaded ??= await loadModel(model, { dtype, threads })
        return (await loaded.embed(texts)).vectors
      },
      async tokens(ids, length, batch) {
        handle ??= await native.load({ directory: model, adapters: [], dtype, threads, pooling: model.includes('decoder') ? 'lasttoken' : 'mean', dense: [] })
        const offsets = Int32Array.from({ length: batch + 1 }, (_, i) => i * length)
        const flat = Int32Array.from(ids)
        return () => native.embed(handle, flat, offsets, true, native.modelInfo(handle).dimensions)
      },
    }
  },
  async onnxruntime() {
    const ort = peers('onnxruntime-node')
    const session = await ort.InferenceSession.create(model, { intraOpNumThreads: threads, interOpNumThreads: 1, graphOptimizationLevel: 'all' })
    return {
      async tokens(ids, length, batch) {
        const tensor = (values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [batch, length])
        const inputs = { input_ids: tensor(ids), attention_mask: tensor(new Array(batch * length).fill(1)) }
        for (const name of session.inputNames) inputs[name] ??= tensor(new Array(batch * length).fill(0))
        return async () => {
          const { data, dims } = Object.values(await session.run(inputs))[0]
          return poolMean(data, dims)
        }
      },
    }
  },
  async transformersjs() {
    const { pipeline, env } = await import(pathToFileURL(peers.resolve('@huggingface/transformers')).href)
    env.allowRemoteModels = false
    env.localModelPath = path.dirname(path.resolve(model))
    const extract = await pipeline('feature-extraction', path.basename(model), {
      dtype: dtype === 'int8' ? 'q8' : 'fp32',
      session_options: { intraOpNumThreads: threads, interOpNumThreads: 1 },
    })
    const options = { pooling: 'mean', normalize: true }
    return {
      async texts(texts) {
        const vectors = []
        for (let i = 0; i < texts.length; i += 32) vectors.push((await extract(texts.slice(i, i + 32), options)).data)
        return vectors
      },
      async tokens(_, length, batch) {
        const texts = new Array(batch).fill(new Array(length - 2).fill('plane').join(' '))
        return () => extract(texts, options)
      },
    }
  },
  /** node-llama-cpp, which takes one text at a time. */
  async llamacpp() {
    const { getLlama } = await import(pathToFileURL(peers.resolve('node-llama-cpp')).href)
    const llama = await getLlama({ gpu: false, build: 'never', maxThreads: threads, logLevel: 'error' })
    const loaded = await llama.loadModel({ modelPath: model })
    const context = await loaded.createEmbeddingContext({ contextSize: 1024, batchSize: 1024, threads })
    return {
      async tokens(ids, length, batch) {
        const texts = Array.from({ length: batch }, (_, i) => ids.slice(i * length, (i + 1) * length))
        // What its tokenizer begins and ends a text with counts among the text's tokens.
        for (const text of texts) {
          if (loaded.tokens.shouldPrependBosToken) text[0] = loaded.tokens.bos
          if (loaded.tokens.sep !== null) text.pop()
        }
        return async () => {
          for (const text of texts) await context.getEmbeddingFor(text)
        }
      },
    }
  },
}

function poolMean(data, [batch, length, width]) {
  const out = new Float32Array(batch * width)
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < length; t++) for (let c = 0; c < width; c++) out[b * width + c] += data[(b * length + t) * width + c] / length
  return out
}

const memory = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024
const contender = await contenders[kind]()
console.log(JSON.stringify({ ready: true, memory: memory() }))
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line)
  const times = []
  if (request.op === 'tokens') {
    const run = await contender.tokens(tokenIds(request.length * request.batch, request.vocabulary), request.length, request.batch)
    await run()
    const until = performance.now() + request.ms
    do {
      const start = performance.now()
      await run()
      times.push((performance.now() - start) / 1000)
    } while (performance.now() < until)
  } else {
    const start = performance.now()
    await contender.texts(request.texts)
    times.push((performance.now() - start) / 1000)
  }
  console.log(JSON.stringify({ times, memory: memory() }))
}

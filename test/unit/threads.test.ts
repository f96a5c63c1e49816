// Threads as Node sees them: CONAN_THREADS, no work while nothing is asked for, workers that are terminated.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { loadModel } from '../../lib/index'
import { fixtures, root } from '../support'

const bert = path.join(fixtures, 'st', 'bert-mean-dense')

test('CONAN_THREADS sets the default, and a wrong value is an error', () => {
  const run = (threads: string) =>
    spawnSync(
      process.execPath,
      ['-e', `require(${JSON.stringify(path.join(root, 'dist/index.js'))}).loadModel(${JSON.stringify(bert)}).then((m) => console.log(m.info.threads))`],
      {
        encoding: 'utf8',
        env: { ...process.env, CONAN_THREADS: threads },
      },
    )
  assert.equal(run('3').stdout.trim(), '3')
  for (const wrong of ['0', 'many', '-1', '99999']) assert.match(run(wrong).stderr, /CONAN_THREADS: expected a number from 1 to 1024/)
})

test('more threads than cores still give the same vectors', async () => {
  await using many = await loadModel(bert, { threads: 32 })
  await using one = await loadModel(bert, { threads: 1 })
  const texts = Array.from({ length: 200 }, (_, i) => `number ${i}`)
  assert.deepEqual((await many.embed(texts)).vectors, (await one.embed(texts)).vectors)
})

test('idle threads sleep', async () => {
  await using model = await loadModel(bert, { threads: 4 })
  await model.embed('something')
  await setTimeout(50)
  const before = process.cpuUsage()
  await setTimeout(500)
  const { user, system } = process.cpuUsage(before)
  assert.ok(user + system < 150_000, `${user + system} microseconds of CPU in half a second of rest`)
})

test('a model that was loaded for a worker that is no more is freed', async () => {
  const { size } = await stat(path.join(root, 'models/conan-nano/model.safetensors'))
  const source = `require(${JSON.stringify(path.join(root, 'dist/index.js'))}).loadModel(); for (;;);`
  const endWorker = async () => {
    const worker = new Worker(source, { eval: true })
    await setTimeout(400)
    await worker.terminate()
  }
  await endWorker()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 6; i++) await endWorker()
  const grown = process.memoryUsage().rss - before
  assert.ok(grown < 3 * size, `${grown} bytes more after six models of ${size}`)
})

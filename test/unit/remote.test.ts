// Media from the network: only where the caller allows it, the same vectors as of the files themselves, and every way in which it can go wrong.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { documentPages, type EmbedInput, loadModel, remoteFetch } from '../../lib'
import { fixtures, pico, root, temporary } from '../support'

const omni = path.join(fixtures, 'audio', 'omni')
const files: Record<string, string> = {
  '/picture.png': path.join(fixtures, 'vision/images/rgb.png'),
  '/film.webp': path.join(fixtures, 'vision/video/five.webp'),
  '/paper.pdf': path.join(fixtures, 'document/colours.pdf'),
  '/bell.wav': path.join(fixtures, 'audio/pcm16.wav'),
}
let asked = 0
const site = http.createServer(({ url = '' }, response) => {
  asked++
  if (files[url]) response.end(readFileSync(files[url]))
  else if (url === '/list') response.end('#EXTM3U\n/etc/passwd\n')
  else if (url === '/large') response.end(Buffer.alloc(1 << 20))
  else if (url !== '/slow') response.writeHead(404).end()
})
let host = ''
const at = (name: string) => `http://${host}${name}`
const local = () => remoteFetch({ hosts: [host], allowPrivate: true })

before(async () => {
  await new Promise<void>((resolve) => site.listen(0, '127.0.0.1', resolve))
  host = `127.0.0.1:${(site.address() as AddressInfo).port}`
})
after(() => {
  site.closeAllConnections()
  site.close()
})

test('what stands at an address gives the vector of the file', async () => {
  await using model = await loadModel(omni)
  const inputs = (where: (name: string) => string): EmbedInput[] => [
    { image: where('/picture.png') },
    { image: [where('/picture.png'), where('/picture.png')], text: 'two' },
    { document: where('/paper.pdf'), page: 2 },
    { document: where('/picture.png') },
    { audio: where('/bell.wav'), duration: 0.2 },
    'a text',
    { text: 'http://127.0.0.1/' },
    { video: where('/film.webp') },
    { video: { frames: [where('/picture.png'), where('/picture.png')], fps: 2 } },
  ]
  const { vectors } = await model.embed(inputs((name) => files[name]!))
  const ways = {
    'the fetch of Node': fetch,
    'one with bounds': local(),
    'bytes of anyone': async (address: string) => readFileSync(files[new URL(address).pathname]!),
    'another Response': async (address: string) => ({ ok: true, arrayBuffer: async () => (await fetch(address)).arrayBuffer() }) as Response,
  }
  for (const [name, way] of Object.entries(ways)) assert.deepEqual((await model.embed(inputs(at), { fetch: way })).vectors, vectors, name)
  assert.deepEqual((await model.embed({ image: new URL(at('/picture.png')) }, { fetch })).vectors, vectors.slice(0, model.info.dimensions))
  const pages = []
  for await (const { page } of documentPages(at('/paper.pdf'), { fetch })) pages.push(page)
  assert.deepEqual(pages, [1, 2, 3])
})

test('nothing is fetched unless the caller says how', async () => {
  await using model = await loadModel(omni)
  const before = asked
  for (const input of [
    { image: at('/picture.png') },
    { document: at('/paper.pdf') },
    { audio: at('/bell.wav') },
    { video: at('/film.webp') },
    { video: { frames: [at('/picture.png')] } },
  ])
    await assert.rejects(model.embed(input), {
      code: 'INVALID_INPUT',
      message: /expected a local file, got the remote address "http:.*the option fetch of embed allows such/,
    })
  await assert.rejects(documentPages(at('/paper.pdf')).next(), { code: 'INVALID_INPUT' })
  assert.equal(asked, before)
  await assert.rejects(model.embed({ image: 'ftp://example.com/x.png' }, { fetch }), { code: 'INVALID_INPUT', message: /expected a local file/ })
  await assert.rejects(model.embed('x', { fetch: true as never }), { code: 'INVALID_OPTION', message: /fetch: expected a function, got true/ })
})

test('what cannot be fetched is named, and may be left out', async () => {
  await using model = await loadModel(omni)
  const fails = (address: string, fetch: unknown, code: string, message: RegExp) =>
    assert.rejects(model.embed(['one', { image: address }], { fetch: fetch as typeof globalThis.fetch }), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails(at('/none'), fetch, 'FILE_IO', /input 1: image "http:.*none": cannot be fetched: it answers 404/)
  await fails(at('/none'), local(), 'FILE_IO', /input 1: 127\.0\.0\.1:\d+: cannot be fetched: it answers 404/)
  await fails('http://127.0.0.1:9/', fetch, 'FILE_IO', /cannot be fetched: fetch failed: ./)
  await fails(at('/list'), fetch, 'INVALID_INPUT', /expected an image, a video, a sound or a document, got "#EXTM3U/)
  await fails(at('/large'), fetch, 'INVALID_INPUT', /cannot be decoded/)
  await fails(at('/large'), remoteFetch({ hosts: ['*'], allowPrivate: true }), 'INVALID_INPUT', /expected one of the hosts/) // another port
  await fails(at('/large'), remoteFetch({ hosts: [host], allowPrivate: true, maxBytes: 1000 }), 'INPUT_TOO_LONG', /at most 1000 bytes/)
  await fails(at('/slow'), remoteFetch({ hosts: [host], allowPrivate: true, timeoutMs: 50 }), 'FILE_IO', /cannot be fetched: it takes more than 50 ms/)
  await fails(at('/large'), remoteFetch({ hosts: [host] }), 'INVALID_INPUT', /expected a public address/)
  await fails(at('/picture.png'), async () => 'text', 'INVALID_OPTION', /expected it to give bytes or a Response, got "text"/)
  await fails(
    at('/picture.png'),
    () => {
      throw undefined
    },
    'FILE_IO',
    /cannot be fetched/,
  )
  for (const options of [{}, { hosts: 'x' }, { hosts: [''] }, { hosts: [host], maxBytes: 0 }, null])
    assert.throws(() => remoteFetch(options as never), { code: 'INVALID_OPTION' })

  const inputs = [{ image: at('/none') }, { image: at('/picture.png') }, 'two']
  const { errors, vectors } = await model.embed(inputs, { fetch, onError: 'skip' })
  assert.deepEqual(
    errors.map(({ index, error }) => [index, error.code]),
    [[0, 'FILE_IO']],
  )
  assert.deepEqual(vectors.slice(model.info.dimensions), (await model.embed([{ image: files['/picture.png']! }, 'two'])).vectors)

  for (const onError of ['throw', 'skip'] as const)
    for (const way of [fetch, local()]) {
      const signal = AbortSignal.timeout(50)
      await assert.rejects(model.embed({ image: at('/slow') }, { fetch: way, onError, signal }), { name: 'AbortError', code: 'ABORTED' })
    }
})

test('the command fetches from hosts that it was given', async () => {
  const place = temporary()
  const [input, out] = [path.join(place, 'rows.jsonl'), path.join(place, 'vectors.npy')]
  writeFileSync(input, `${JSON.stringify({ image: at('/picture.png') })}\n${JSON.stringify({ image: files['/picture.png'] })}\n`)
  const run = (...args: string[]) => promisify(execFile)(process.execPath, [path.join(root, 'dist', 'cli.js'), 'embed', omni, ...args])
  const allowed = ['--remote-host', host, '--remote-private']
  const lines = (await run('--input', input, '--document', at('/paper.pdf'), ...allowed)).stdout.trim().split('\n')
  const [page1, , , first, second] = lines.map((line) => JSON.parse(line))
  assert.equal(lines.length, 5)
  assert.equal(page1.id, `${at('/paper.pdf')}#page=1`)
  assert.deepEqual(first.embedding, second.embedding)
  await assert.rejects(run('--input', input, '--out', out), /expected a local file, got the remote address/)
  assert.ok(!existsSync(out))
  await assert.rejects(run('--input', input, '--out', out, '--remote-host', host), /expected a public address/)
})

test("onError: 'skip' leaves out what the model does not take, and what is no input", async () => {
  await using model = await loadModel(pico('bert'))
  const inputs = ['one', { image: 'x.png' }, { text: 'two' }, 5, { sound: 'x' }] as EmbedInput[]
  const { vectors, errors } = await model.embed(inputs, { onError: 'skip' })
  assert.deepEqual(
    errors.map(({ index, error }) => [index, error.code]),
    [1, 3, 4].map((index) => [index, 'INVALID_INPUT']),
  )
  assert.match(errors[0]!.error.message, /input 1: this model embeds text, got image/)
  const { dimensions } = model.info
  const good = await model.embed(['one', 'two'])
  assert.deepEqual([...vectors.slice(0, dimensions), ...vectors.slice(2 * dimensions, 3 * dimensions)], [...good.vectors])
  const seen = []
  for await (const { index, error } of model.embedStream(inputs, { onError: 'skip' })) seen.push([index, error?.code])
  assert.deepEqual(seen, [
    [0, undefined],
    [1, 'INVALID_INPUT'],
    [2, undefined],
    [3, 'INVALID_INPUT'],
    [4, 'INVALID_INPUT'],
  ])
})

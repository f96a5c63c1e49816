// serve(): answers as OpenAI's clients expect them, the same vectors as embed, and everything that a request may do wrong.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { documentPages, loadModel, type Model, type ServeOptions, serve } from '../../lib'
import { isAllowed, isPublic } from '../../lib/media/remote'
import { fixtures, pico, root } from '../support'

const vision = (...names: string[]) => path.join(fixtures, 'vision', ...names)
const audio = (name: string) => path.join(fixtures, 'audio', name)
const dataUrl = (file: string, type: string) => `data:${type};base64,${readFileSync(file).toString('base64')}`

/** A server, and how it is asked; both end with the test. */
async function served(model: Model, options: ServeOptions = {}) {
  const server = await serve(model, { port: 0, ...options })
  const get = (where: string, init: RequestInit = {}) => fetch(server.url + where, init)
  const post = (body: unknown, init: RequestInit = {}, where = '/v1/embeddings') =>
    get(where, { method: 'POST', body: typeof body === 'string' ? body : JSON.stringify(body), ...init })
  const embed = async (body: unknown) => {
    const response = await post(body)
    const text = await response.text()
    assert.equal(response.status, 200, text)
    return JSON.parse(text) as {
      object: string
      model: string
      data: { index: number; object: string; embedding: number[] }[]
      usage: { prompt_tokens: number }
    }
  }
  return { server, get, post, embed, [Symbol.asyncDispose]: () => server.close() }
}

/** What a response holds. */
const read = async (response: Response | Promise<Response>): Promise<ReturnType<typeof JSON.parse>> => (await response).json()

const rows = ({ vectors, dimensions }: { vectors: ArrayLike<number>; dimensions: number }) =>
  Array.from({ length: vectors.length / dimensions }, (_, i) => Array.from(vectors).slice(i * dimensions, (i + 1) * dimensions))

test("input: OpenAI's answer, the same vectors as embed", async () => {
  await using model = await loadModel(pico('bert'))
  await using at = await served(model)
  const texts = ['a text', 'another, longer one', '']
  const expected = await model.embed(texts)
  const found = await at.embed({ model: 'whatever', input: texts, user: 'somebody' })
  assert.deepEqual([found.object, found.model, found.data.map(({ index, object }) => [index, object])], ['list', 'bert', texts.map((_, i) => [i, 'embedding'])])
  assert.deepEqual(
    found.data.map(({ embedding }) => embedding),
    rows(expected),
  )
  assert.equal(found.usage.prompt_tokens, expected.usage.text)
  assert.deepEqual((await at.embed({ input: 'a text' })).data[0]!.embedding, found.data[0]!.embedding)
  const encoded = (await at.embed({ input: 'a text', encoding_format: 'base64' })).data[0]!.embedding as unknown as string
  assert.deepEqual(Array.from(new Float32Array(new Uint8Array(Buffer.from(encoded, 'base64')).buffer)), found.data[0]!.embedding)
  const plain = await at.embed({ input: 'a text', normalize: false })
  assert.deepEqual(plain.data[0]!.embedding, rows(await model.embed('a text', { normalize: false }))[0])
})

test("messages: parts become one input, a system's message its prompt", async () => {
  await using model = await loadModel(vision('qwen3_vl'))
  await using at = await served(model)
  const png = vision('images', 'rgb.png')
  const gif = vision('images', 'palette.gif')
  const pdf = path.join(fixtures, 'document', 'colours.pdf')
  const picture = { type: 'image_url', image_url: { url: dataUrl(png, 'image/png') } }
  const words = { type: 'text', text: 'what is this?' }
  const user = (...content: unknown[]) => ({ role: 'user', content })
  const one = async (messages: unknown) => (await at.embed({ messages })).data.map(({ embedding }) => embedding)
  const expected = async (...inputs: Parameters<Model['embed']>) => rows(await model.embed(...inputs))
  const image = readFileSync(png)
  assert.deepEqual(await one([user(picture, words)]), await expected({ image, text: 'what is this?' }))
  assert.deepEqual(await one([user(words, picture)]), await expected({ image, text: 'what is this?' }))
  assert.deepEqual(await one([{ role: 'user', content: 'just words' }]), await expected('just words'))
  const asked = [{ role: 'system', content: [{ type: 'text', text: 'Find it.' }] }, user(picture), { role: 'assistant', content: [{ type: 'text', text: '' }] }]
  assert.deepEqual(await one(asked), await expected({ image }, { prompt: 'Find it.' }))
  const batch = [asked, [user(picture, words)], [{ role: 'user', content: 'just words' }]]
  assert.deepEqual(await one(batch), [...(await one(asked)), ...(await one(batch[1])), ...(await one(batch[2]))])
  assert.deepEqual(await one([user({ type: 'video_url', video_url: { url: dataUrl(gif, 'image/gif') } })]), await expected({ video: readFileSync(gif) }))
  const pages = []
  for await (const { image } of documentPages(pdf)) pages.push(image)
  const file = { type: 'file', file: { filename: 'x.pdf', file_data: dataUrl(pdf, 'application/pdf') } }
  assert.deepEqual(await one([user(file, words)]), await expected({ image: pages, text: 'what is this?' }))
  assert.deepEqual(await one([user({ type: 'file', file: { file_data: dataUrl(png, 'image/png') } })]), await expected({ document: image }))
})

test('sounds', async () => {
  await using model = await loadModel(audio('omni'))
  await using at = await served(model)
  const wav = audio('pcm16.wav')
  const [expected] = rows(await model.embed({ audio: readFileSync(wav) }))
  const inline = { type: 'input_audio', input_audio: { data: readFileSync(wav).toString('base64'), format: 'wav' } }
  for (const part of [inline, { type: 'audio_url', audio_url: { url: dataUrl(wav, 'audio/wav') } }])
    assert.deepEqual((await at.embed({ messages: [{ role: 'user', content: [part] }] })).data[0]!.embedding, expected)
})

test('what is wrong with a request is named, with its status', async () => {
  await using model = await loadModel(vision('qwen3_vl'))
  await using at = await served(model, { maxInputs: 3, maxFileBytes: 2000, maxPages: 2, maxInputPixels: 10_000, maxSeconds: 1, maxBodyBytes: 100_000 })
  const fails = async (body: unknown, status: number, message: RegExp, param?: string | null, init?: RequestInit) => {
    const response = await at.post(body, init)
    const text = await response.text()
    assert.equal(response.status, status, text)
    const { error } = JSON.parse(text)
    assert.match(error.message, message)
    assert.deepEqual(Object.keys(error), ['message', 'type', 'param', 'code'])
    if (param !== undefined) assert.equal(error.param, param)
    assert.equal(error.type, 'invalid_request_error')
  }
  await fails('{', 400, /expected a body of JSON/)
  await fails([], 400, /expected a JSON object/)
  await fails({ input: 'a', inputs: 'b' }, 400, /expected model, input, .* got "inputs"/, 'inputs')
  await fails({}, 400, /either "input" or "messages"/)
  await fails({ input: 'a', messages: [] }, 400, /either/)
  await fails({ input: [] }, 422, /1 to 3 inputs, got 0/)
  await fails({ input: ['a', 'b', 'c', 'd'] }, 413, /1 to 3 inputs, got 4/)
  await fails({ input: ['a', 5] }, 422, /input\[1\]: expected a text/, 'input[1]')
  await fails({ input: [[1, 2]] }, 422, /token ids/, 'input[0]')
  await fails({ input: 'a', encoding_format: 'hex' }, 400, /float or base64/, 'encoding_format')
  await fails({ input: 'a', dimensions: 'x' }, 400, /expected a number/, 'dimensions')
  await fails({ input: 'a', dimensions: 100_000 }, 400, /dimensions: expected at most/, 'dimensions')
  await fails({ input: 'a', prompt_name: 'nothing' }, 400, /promptName: expected one of/, 'promptName')
  await fails({ input: 'a', input_type: 'poem' }, 400, /query or document/, 'input_type')
  await fails({ input: 'a', truncate: 'middle' }, 400, /error, start, end/, 'truncate')
  await fails({ input: 'a', truncate_prompt_tokens: 3 }, 400, /at least the model's/, 'truncate_prompt_tokens')
  await fails({ input: ['a', 'long '.repeat(15_000)], truncate: false }, 413, /input\[1\]: expected at most .* tokens/, 'input[1]')
  await fails({ input: 'x'.repeat(100_001) }, 413, /at most 100000 bytes/)
  await fails({ input: 'a' }, 415, /content-encoding/, null, { headers: { 'content-encoding': 'br' } })
  const parts = (...content: unknown[]) => ({ messages: [{ role: 'user', content }] })
  const url = (url: unknown) => parts({ type: 'image_url', image_url: { url } })
  await fails(
    {
      messages: [
        { role: 'user', content: 'a' },
        { role: 'user', content: 'b' },
      ],
    },
    422,
    /one message of the user/,
  )
  await fails(
    {
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    },
    422,
    /one message of the user/,
  )
  await fails({ messages: ['a'] }, 422, /messages: expected a list of messages/)
  await fails(parts(), 422, /a text or a list of parts/)
  await fails(parts({ type: 'smell' }), 422, /messages\[0\]\.content\[0\]: expected a part of type/, 'messages[0].content[0]')
  // Nothing on this machine can be named, and nothing is fetched unless it was allowed.
  for (const place of ['/etc/passwd', 'file:///etc/passwd', '../x.png', 'data:text/plain,hello']) await fails(url(place), 400, /expected a data: URL in base64/)
  await fails(url('http://example.com/x.png'), 400, /fetches nothing from the network/, 'messages[0].content[0].image_url.url')
  await fails(url(5), 400, /expected a data: URL, got 5/)
  await fails(url('data:image/png;base64,'), 422, /expected data in base64/)
  await fails(url(`data:image/png;base64,${Buffer.from('no picture').toString('base64')}`), 422, /^messages: image .*cannot be decoded/, 'messages')
  await fails(url(`data:image/png;base64,${Buffer.alloc(2001).toString('base64')}`), 413, /at most 2000 bytes, got 2001/)
  for (const text of ['#EXTM3U\n/etc/passwd', 'ffconcat version 1.0', '\ufeff <?xml version="1.0"?><MPD/>', '<svg/>'])
    await fails(parts({ type: 'video_url', video_url: { url: `data:;base64,${Buffer.from(text).toString('base64')}` } }), 422, /an image, a video/)
  await fails(parts({ type: 'audio_url', audio_url: { url: 'data:;base64,AAAA' } }), 422, /this model embeds text and image/)
  const pdf = dataUrl(path.join(fixtures, 'document', 'colours.pdf'), 'application/pdf')
  await fails(parts({ type: 'file', file: { file_data: pdf } }), 413, /at most (2 pages, got 3|2000 bytes)/)
})

test('sizes of media as they are stored', async () => {
  await using model = await loadModel(vision('qwen3_vl'))
  const gif = readFileSync(vision('images', 'palette.gif'))
  const png = readFileSync(vision('images', 'rgb.png'))
  const pdf = readFileSync(path.join(fixtures, 'document', 'colours.pdf'))
  const fails = (input: object, processor: object, code: string, message: RegExp) =>
    assert.rejects(model.embed(input as never, { processor }), { code, message })
  await fails({ image: png }, { maxInputPixels: 100 }, 'INVALID_INPUT', /pixel/)
  await fails(
    { image: { data: new Uint8Array(300), width: 10, height: 10, channels: 3 } },
    { maxInputPixels: 99 },
    'INVALID_INPUT',
    /at most 99 pixels, got 10 x 10/,
  )
  await fails({ video: { frames: [png, png, png], fps: 1 } }, { maxSeconds: 1 }, 'INPUT_TOO_LONG', /at most 1 seconds, got 2/)
  await fails({ video: { frames: [png, png] } }, { maxInputPixels: 100 }, 'INVALID_INPUT', /pixel/)
  assert.ok((await model.embed({ video: gif }, { processor: { maxSeconds: 100, maxInputPixels: 1e6 } })).vectors.every(Number.isFinite))
  // A page is rendered as small as that.
  assert.ok((await model.embed({ document: pdf, page: 1 }, { processor: { maxInputPixels: 5000 } })).vectors.every(Number.isFinite))
  await using omni = await loadModel(audio('omni'))
  const long = (part: object) => omni.embed({ audio: audio('pcm16.wav'), ...part }, { processor: { maxSeconds: 0.1 } })
  await assert.rejects(long({}), { code: 'INPUT_TOO_LONG', message: /at most 0 seconds of sound/ })
  await assert.rejects(long({ duration: 0.2 }), { code: 'INPUT_TOO_LONG', message: /at most 0.1 seconds of sound, got 1/ })
  assert.ok((await long({ duration: 0.05 })).vectors.every(Number.isFinite))
})

test('requests that come together share passes and change nothing for one another', async () => {
  await using model = await loadModel(pico('qwen3'))
  await using at = await served(model)
  const texts = Array.from({ length: 40 }, (_, i) => `text number ${i} ${'and more '.repeat(i)}`)
  const alone = rows(await model.embed(texts))
  const gone = new AbortController()
  const [many, bad, deaf, left, ...all] = await Promise.all([
    at.embed({ input: [...texts, ...texts, ...texts, ...texts] }),
    at.post({ input: ['fine', 'long '.repeat(50_000)], truncate: 'error' }),
    at.post({ messages: [{ role: 'user', content: [{ type: 'audio_url', audio_url: { url: 'data:;base64,AAAA' } }] }] }),
    at.post({ input: texts }, { signal: gone.signal }).catch((error) => (error as Error).name),
    ...texts.map((text) => at.embed({ input: text })),
    new Promise<void>((resolve) => setTimeout(() => resolve(gone.abort()), 2)),
  ])
  assert.deepEqual([bad.status, deaf.status], [413, 422])
  assert.ok(left === 'AbortError' || (left as Response).status === 200)
  assert.deepEqual(
    (all.slice(0, 40) as Awaited<ReturnType<typeof at.embed>>[]).map(({ data }) => data[0]!.embedding),
    alone,
  )
  assert.deepEqual(
    many.data.map(({ embedding }) => embedding),
    [...alone, ...alone, ...alone, ...alone],
  )
})

test('keys, unknown paths, and what an operator asks', async () => {
  await using model = await loadModel(pico('bert'))
  await using at = await served(model, { apiKeys: ['one', 'two'], name: 'small' })
  const keyed = { headers: { authorization: 'Bearer two' } }
  for (const headers of [{}, { authorization: 'Bearer three' }, { authorization: 'two' }]) {
    const response = await at.get('/v1/models', { headers: headers as Record<string, string> })
    assert.deepEqual([response.status, (await read(response)).error.code], [401, 'invalid_api_key'])
  }
  assert.deepEqual(await read(at.get('/health')), { status: 'ok' })
  const [card] = (await read(at.get('/v1/models', keyed))).data
  assert.deepEqual([card.id, card.object, card.max_model_len], ['small', 'model', model.info.maxTokens])
  const info = await read(at.get('/info', keyed))
  assert.deepEqual([info.name, info.dimensions, info.modalities, info.limits.remoteHosts], ['small', model.info.dimensions, ['text'], []])
  const tokens = await read(at.post({ prompt: 'a text' }, keyed, '/tokenize'))
  assert.equal(tokens.count, tokens.tokens.length)
  assert.equal(tokens.count, (await model.embed('a text')).usage.text)
  assert.equal((await at.post({ prompt: 5 }, keyed, '/tokenize')).status, 422)
  assert.equal((await at.post({ input: ['a text', 'b'] }, keyed)).status, 200)
  assert.equal((await at.get('/v2', keyed)).status, 404)
  const wrong = await at.get('/v1/embeddings', keyed)
  assert.deepEqual([wrong.status, wrong.headers.get('allow')], [405, 'POST'])
  const metrics = await (await at.get('/metrics', keyed)).text()
  for (const line of [
    'conan_requests_total{path="/v1/embeddings",status="200"} 1',
    'conan_inputs_total 2',
    'conan_inputs_waiting 0',
    'conan_request_seconds_count 2',
  ])
    assert.ok(metrics.includes(`${line}\n`), `${line}\n${metrics}`)
})

test('more than it can hold is turned away, and closing answers what is under way', async () => {
  await using model = await loadModel(pico('qwen3'))
  const at = await served(model, { maxWaiting: 8 })
  const input = Array.from({ length: 500 }, (_, i) => `a text, number ${i} `.repeat(20))
  const first = at.post({ input })
  const answers = await Promise.all(
    Array.from({ length: 12 }, async (_, i) => {
      await new Promise((resolve) => setTimeout(resolve, 20 + 5 * i))
      return at.post({ input: 'a' })
    }),
  )
  const busy = answers.find(({ status }) => status === 429)
  assert.ok(busy, answers.map(({ status }) => status).join())
  assert.ok(Number(busy.headers.get('retry-after')) >= 1)
  assert.equal((await read(busy)).error.type, 'rate_limit_error')
  // What a small body leads to counts as well: pages are rendered.
  await using vl = await loadModel(vision('qwen3_vl'))
  await using small = await served(vl, { maxBodyBytes: 10_000 })
  const pdf = dataUrl(path.join(fixtures, 'document', 'colours.pdf'), 'application/pdf')
  const pages = { messages: [{ role: 'user', content: [{ type: 'file', file: { file_data: pdf } }] }] }
  assert.equal((await small.post(pages)).status, 429)
  assert.equal((await small.post({ input: 'a' })).status, 200)
  const closed = at.server.close()
  assert.equal((await read(first)).data.length, 500)
  await closed
  await assert.rejects(at.get('/health'))
  await at.server.close()
})

test('the network: only hosts that are allowed, no private addresses, no more bytes than that', async () => {
  await using model = await loadModel(vision('qwen3_vl'))
  const png = readFileSync(vision('images', 'rgb.png'))
  const site = http.createServer(({ url }, response) => {
    if (url === '/picture.png') response.end(png)
    else if (url === '/large') response.end(Buffer.alloc(1 << 20))
    else if (url === '/moved') response.writeHead(302, { location: '/picture.png' }).end()
    else if (url === '/away') response.writeHead(302, { location: 'http://example.com/' }).end()
    else if (url === '/file') response.writeHead(302, { location: 'file:///etc/passwd' }).end()
    else if (url === '/nowhere') response.writeHead(302, { location: 'http://' }).end()
    else if (url === '/round') response.writeHead(302, { location: '/round' }).end()
    else if (url === '/slow') response.write('x')
    else response.writeHead(404).end()
  })
  await new Promise<void>((resolve) => site.listen(0, '127.0.0.1', resolve))
  const { port } = site.address() as AddressInfo
  const hosts = [`127.0.0.1:${port}`, `localhost:${port}`]
  const picture = (url: string) => ({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url } }] }] })
  try {
    await using open = await served(model, { remoteHosts: hosts, remotePrivate: true, maxFileBytes: 100_000, remoteTimeoutMs: 300 })
    const [expected] = rows(await model.embed({ image: png }))
    for (const where of ['/picture.png', '/moved'])
      assert.deepEqual((await open.embed(picture(`http://127.0.0.1:${port}${where}`))).data[0]!.embedding, expected)
    const fails = async (at: typeof open, url: string, status: number, message: RegExp) => {
      const response = await at.post(picture(url))
      assert.equal(response.status, status, url)
      assert.match((await read(response)).error.message, message)
    }
    await fails(open, `http://127.0.0.1:${port}/large`, 413, /at most 100000 bytes/)
    await fails(open, `http://127.0.0.1:${port}/none`, 422, /answers 404/)
    await fails(open, `http://127.0.0.1:${port}/away`, 400, /example\.com: expected one of the hosts/)
    await fails(open, `http://127.0.0.1:${port}/file`, 400, /expected an address of http or https/)
    await fails(open, `http://127.0.0.1:${port}/nowhere`, 422, /expected an address to go on to/)
    await fails(open, `http://127.0.0.1:${port}/round`, 422, /at most 3 redirects/)
    await fails(open, `http://127.0.0.1:${port}/slow`, 422, /cannot be fetched/)
    await fails(open, 'http://example.com/', 400, /expected one of the hosts/)
    await using closed = await served(model, { remoteHosts: hosts })
    for (const host of ['127.0.0.1', 'localhost']) await fails(closed, `http://${host}:${port}/picture.png`, 400, /public address/)
  } finally {
    site.closeAllConnections()
    site.close()
  }
  const inside = [
    '127.0.0.1',
    '10.1.2.3',
    '172.31.0.1',
    '192.168.1.1',
    '169.254.169.254',
    '100.64.0.1',
    '0.0.0.0',
    '255.255.255.255',
    '::1',
    '::',
    'fe80::1',
    'fc00::1',
  ]
  for (const address of [...inside, '::ffff:127.0.0.1', '::ffff:8.8.8.8', '64:ff9b::7f00:1', '2002:7f00:1::', 'ff02::1', '2001:db8::1', 'x'])
    assert.ok(!isPublic(address), address)
  for (const address of ['8.8.8.8', '172.32.0.1', '2606:4700::1111']) assert.ok(isPublic(address), address)
  const allowed = (url: string, ...list: string[]) => isAllowed(new URL(url), list)
  assert.ok(allowed('https://a.example.com/x', '*.example.com') && allowed('https://EXAMPLE.com', 'example.com') && allowed('http://any.where', '*'))
  assert.ok(allowed('https://example.com:8443/', 'example.com:8443') && allowed('https://example.com:443/', 'example.com'))
  for (const [url, entry] of [
    ['https://example.com', '*.example.com'],
    ['https://badexample.com', '*.example.com'],
    ['https://example.com.evil.org', 'example.com'],
    ['https://example.com@evil.org', 'example.com'],
    ['https://example.com:22', 'example.com'],
    ['https://example.com', 'example.com:8443'],
  ] as const)
    assert.ok(!allowed(url, entry), `${url} ${entry}`)
})

test('settings that make no sense, and an address that is taken', async () => {
  await using model = await loadModel(pico('bert'))
  for (const options of [{ port: -1 }, { port: 1.5 }, { maxInputs: 0 }, { apiKeys: [''] }, { apiKeys: 'x' }, { remoteHosts: [5] }, { maxSeconds: 'x' }])
    await assert.rejects(serve(model, options as never), { code: 'INVALID_OPTION' })
  await assert.rejects(serve(model, null as never), { code: 'INVALID_OPTION' })
  await using at = await served(model)
  await assert.rejects(serve(model, { port: at.server.port }), { code: 'FILE_IO', message: /cannot be listened at/ })
  await assert.rejects(serve(model, { host: 'no such host' }), { code: 'FILE_IO' })
})

test('the command: says where it is, and ends when it is told to', async () => {
  const child = spawn(process.execPath, [path.join(root, 'dist', 'cli.js'), 'serve', pico('bert'), '--port', '0', '--json', '--max-inputs', '1'])
  const [line] = await Promise.race([
    new Promise<string[]>((resolve) => child.stdout.once('data', (text) => resolve(String(text).split('\n')))),
    new Promise<never>((_, reject) => child.once('exit', (code) => reject(new Error(`it ended with ${code}`)))),
  ])
  const { url } = JSON.parse(line!)
  const post = (input: string[]) => fetch(`${url}/v1/embeddings`, { method: 'POST', body: JSON.stringify({ input }) })
  assert.deepEqual([(await post(['a'])).status, (await post(['a', 'b'])).status], [200, 413])
  child.kill('SIGTERM')
  assert.equal(await new Promise((resolve) => child.once('exit', resolve)), 0)
})

// serve(): a loaded model over HTTP, as OpenAI's clients ask for embeddings, with what an operator needs around it.
import { createHash, timingSafeEqual } from 'node:crypto'
import { once } from 'node:events'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { packageVersion } from '../binding'
import { modalities } from '../embed/inputs'
import { asConanError, ConanError, shown } from '../errors'
import { remoteFetch } from '../media/remote'
import type { Model } from '../model'
import { positive, requireOptions, textsOf } from '../options'
import { bodyOf, RequestError, requestError } from './error'
import { Metrics } from './metrics'
import { Queue } from './queue'
import { type Reading, type RequestLimits, readEmbeddings } from './requests'

export interface ServeOptions {
  /** Default 127.0.0.1: this machine alone. */
  host?: string
  /** Default 8080; 0: any that is free. */
  port?: number
  /** One of these must come with every request but /health, as "Authorization: Bearer ..."; default: none is needed. */
  apiKeys?: string[]
  /** What the model is called in answers; default: its directory's name. */
  name?: string
  /** Of a request; default 64 MiB. Eight times this is held at one time, files that are fetched and pages that are rendered among it. */
  maxBodyBytes?: number
  /** Of a request; default 2048. */
  maxInputs?: number
  /** Inputs that wait for their turn: with more, requests are answered with 429; default 8192. */
  maxWaiting?: number
  /** Of one image, video, document or sound; default 32 MiB. */
  maxFileBytes?: number
  /** Of an image, or a video's frame, as it is stored; default 64 million. How many frames are taken is `processor.maxFrames` of loadModel. */
  maxInputPixels?: number
  /** Of a video or a sound; default 600. */
  maxSeconds?: number
  /** Of a document, all of which become one vector; default 16. */
  maxPages?: number
  /** Hosts that media are fetched from: 'example.com', 'example.com:8443', '*.example.com', '*'; default none. */
  remoteHosts?: string[]
  /** Also from addresses of private networks and of this machine; default false. */
  remotePrivate?: boolean
  /** For one file from the network; default 10 seconds. */
  remoteTimeoutMs?: number
}

export interface Serving {
  /** "http://127.0.0.1:8080" */
  url: string
  port: number
  /** No more requests; resolves when those under way are answered. The model stays loaded. */
  close(): Promise<void>
}

type Answer = { status: number; type: string; body: string | Iterable<string> }
type Handler = (request: IncomingMessage, reading: Reading) => Promise<Answer> | Answer

const json = (value: unknown): Answer => ({ status: 200, type: 'application/json', body: JSON.stringify(value) })
const mebibyte = 1 << 20

/**
 * Answers POST /v1/embeddings (OpenAI's `input`, or a chat's `messages` with text, image_url, video_url, audio_url, input_audio and file),
 * POST /tokenize (vLLM's), GET /v1/models, /info, /health and /metrics (Prometheus). Inputs of requests that come together share passes.
 *
 * @throws ConanError INVALID_OPTION, and FILE_IO where the address cannot be listened at
 */
export async function serve(model: Model, options: ServeOptions = {}): Promise<Serving> {
  requireOptions(options)
  const { host = '127.0.0.1', port = 8080, name = path.basename(model.info.directory) } = options
  if (!Number.isInteger(port) || port < 0 || port > 65535) throw new ConanError('INVALID_OPTION', `port: expected 0 to 65535, got ${shown(port)}`)
  const digest = (key: string) => createHash('sha256').update(key).digest()
  const keys = textsOf(options.apiKeys ?? [], 'apiKeys').map(digest)
  const hosts = textsOf(options.remoteHosts ?? [], 'remoteHosts')
  const maxBodyBytes = positive(options.maxBodyBytes, 'maxBodyBytes', 64 * mebibyte)
  const maxFileBytes = positive(options.maxFileBytes, 'maxFileBytes', 32 * mebibyte)
  const timeoutMs = positive(options.remoteTimeoutMs, 'remoteTimeoutMs', 10_000)
  const limits: RequestLimits = {
    maxInputs: positive(options.maxInputs, 'maxInputs', 2048),
    maxFileBytes,
    maxPages: positive(options.maxPages, 'maxPages', 16),
    maxInputPixels: positive(options.maxInputPixels, 'maxInputPixels', 64_000_000),
    maxSeconds: positive(options.maxSeconds, 'maxSeconds', 600),
    remote: hosts.length ? remoteFetch({ hosts, allowPrivate: options.remotePrivate ?? false, maxBytes: maxFileBytes, timeoutMs }) : undefined,
  }
  const queue = new Queue(model, positive(options.maxWaiting, 'maxWaiting', 8192))
  const metrics = new Metrics()
  const started = Math.floor(Date.now() / 1000)
  let heldBytes = 0
  let closing: Promise<void> | undefined

  const requireKey = (request: IncomingMessage) => {
    const [, key = ''] = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '') ?? []
    const given = digest(key)
    if (keys.length && !keys.some((each) => timingSafeEqual(each, given)))
      throw new RequestError(401, 'expected a valid key as "Authorization: Bearer ..."', null, 'invalid_api_key', { 'www-authenticate': 'Bearer' })
  }
  const busy = () =>
    new RequestError(429, 'the server has more to do than it can hold, try again', null, 'rate_limit_exceeded', { 'retry-after': String(queue.secondsLeft) })

  async function readBody(request: IncomingMessage, { hold }: Reading): Promise<unknown> {
    const encoding = request.headers['content-encoding'] ?? 'identity'
    if (encoding !== 'identity') throw new RequestError(415, `content-encoding: expected none, got ${shown(encoding)}`)
    const tooLarge = () => new RequestError(413, `expected a body of at most ${maxBodyBytes} bytes, got more`)
    if (Number(request.headers['content-length'] ?? 0) > maxBodyBytes) throw tooLarge()
    const pieces: Buffer[] = []
    let size = 0
    for await (const piece of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      pieces.push(piece)
      size += piece.length
      if (size > maxBodyBytes) throw tooLarge()
      hold(piece.length)
    }
    try {
      return JSON.parse(Buffer.concat(pieces).toString())
    } catch (error) {
      throw new RequestError(400, `expected a body of JSON: ${(error as Error).message}`)
    }
  }

  const embeddings: Handler = async (request, reading) => {
    if (queue.full) throw busy()
    const { asked, params, base64 } = await readEmbeddings(await readBody(request, reading), model.info, limits, reading)
    if (queue.full) throw busy()
    const outcomes = await queue.add(asked, reading.signal)
    let tokens = 0
    const vectors = outcomes.map((outcome, i) => {
      if ('error' in outcome) throw requestError(outcome.error, params[i]!)
      tokens += outcome.tokens
      return outcome.vector
    })
    metrics.inputs += vectors.length
    metrics.tokens += tokens
    function* body() {
      yield '{"object":"list","data":['
      for (const [index, vector] of vectors.entries()) {
        // The bytes are little-endian float32: so are those of every machine that this runs on.
        const embedding = base64 ? Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64') : Array.from(vector)
        yield `${index ? ',' : ''}${JSON.stringify({ object: 'embedding', index, embedding })}`
      }
      yield `],"model":${JSON.stringify(name)},"usage":{"prompt_tokens":${tokens},"total_tokens":${tokens}}}`
    }
    return { status: 200, type: 'application/json', body: body() }
  }

  const tokenize: Handler = async (request, reading) => {
    const body = (await readBody(request, reading)) as Record<string, unknown> | null
    const text = body?.prompt ?? body?.input
    if (typeof text !== 'string') throw new RequestError(422, `prompt: expected a text, got ${shown(text)}`, 'prompt')
    const [batch] = await model.prepare([text], {})
    const tokens = Array.from(batch!.ids)
    return json({ count: tokens.length, max_model_len: model.info.maxTokens, tokens, truncated: batch!.truncated[0] })
  }

  const card = { id: name, object: 'model', created: started, owned_by: 'conan-embedding', max_model_len: model.info.maxTokens }
  const info: Handler = () => {
    const { modelType, device, backend, dtype, dimensions, matryoshka, maxTokens, prompts, defaultPromptName } = model.info
    const { remote: _, ...caps } = limits
    return json({
      ...{ name, version: packageVersion(), modelType, device, backend, dtype, dimensions, matryoshka, maxTokens, prompts, defaultPromptName },
      modalities: modalities.filter((modality) => model.supports(modality)),
      limits: { ...caps, maxBodyBytes, remoteHosts: hosts },
    })
  }
  const routes: Record<string, [allow: 'GET' | 'POST', Handler]> = {
    '/v1/embeddings': ['POST', embeddings],
    '/tokenize': ['POST', tokenize],
    '/v1/models': ['GET', () => json({ object: 'list', data: [card] })],
    '/health': ['GET', () => (closing ? { ...json({ status: 'closing' }), status: 503 } : json({ status: 'ok' }))],
    '/metrics': ['GET', () => ({ status: 200, type: 'text/plain; version=0.0.4', body: metrics.text(queue.waiting) })],
    '/info': ['GET', info],
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const begun = performance.now()
    const gone = new AbortController()
    response.once('close', () => gone.abort())
    const where = request.url?.split('?')[0] ?? ''
    const route = Object.hasOwn(routes, where) ? routes[where] : undefined
    let status = 500
    let own = 0
    const hold = (bytes: number) => {
      own += bytes
      heldBytes += bytes
      if (heldBytes > 8 * maxBodyBytes) throw busy()
    }
    try {
      if (where !== '/health') requireKey(request)
      if (closing && where === '/v1/embeddings') throw new RequestError(503, 'the server is closing')
      if (!route) throw new RequestError(404, `expected one of ${Object.keys(routes).join(', ')}, got ${shown(where)}`)
      const [allow, handler] = route
      if (allow !== (request.method === 'HEAD' ? 'GET' : request.method))
        throw new RequestError(405, `${where}: expected ${allow}, got ${request.method}`, null, null, { allow })
      const found = await handler(request, { signal: gone.signal, hold })
      status = found.status
      response.writeHead(status, { 'content-type': found.type })
      if (typeof found.body === 'string') response.end(found.body)
      else {
        for (const piece of found.body)
          if (!response.write(piece) && !gone.signal.aborted) await once(response, 'drain', { signal: gone.signal }).catch(() => {}) // it has gone
        response.end()
      }
    } catch (error) {
      const known = error instanceof RequestError ? error : requestError(asConanError(error), null)
      status = gone.signal.aborted ? 499 : known.status // nobody is there to read it
      // What is still to come of a body that was not read would be taken for the next request.
      const headers = { 'content-type': 'application/json', ...known.headers, ...(request.complete ? {} : { connection: 'close' }) }
      if (!response.headersSent) response.writeHead(known.status, headers)
      response.end(JSON.stringify(bodyOf(known)))
    } finally {
      heldBytes -= own
      metrics.request(route ? where : 'other', status, (performance.now() - begun) / 1000)
    }
  }

  const server = http.createServer((request, response) => void answer(request, response))
  server.keepAliveTimeout = 75_000 // longer than the 60 seconds after which balancers let go, so that it is they who close
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(new ConanError('FILE_IO', `${host}:${port}: cannot be listened at: ${error.message}`, { cause: error })))
    server.listen(port, host, resolve)
  })
  const bound = (server.address() as AddressInfo).port
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${bound}`,
    port: bound,
    close() {
      closing ??= (async () => {
        const ended = new Promise<void>((resolve) => server.close(() => resolve()))
        await queue.drained()
        const patience = setTimeout(() => server.closeAllConnections(), 5000) // for answers that are being read, and requests half sent
        await ended
        clearTimeout(patience)
      })()
      return closing
    },
  }
}

// A request for embeddings, OpenAI's `input` or a chat's `messages`, as inputs of the model. Nothing in it can name a file of this machine:
// media are data: URLs, or addresses that the server was told to fetch from.
import type { EmbedInput, MediaInput } from '../embed/inputs'
import { asConanError, type ErrorCode, shown } from '../errors'
import { documentPages } from '../media/document'
import type { ImageInput } from '../media/image'
import { type remoteFetch, requireMedium } from '../media/remote'
import type { EmbedOptions, ModelInfo } from '../model'
import { RequestError, requestError } from './error'
import type { Asked } from './queue'

export interface RequestLimits {
  maxInputs: number
  /** Of one image, video, document or sound. */
  maxFileBytes: number
  /** Of one document. */
  maxPages: number
  maxInputPixels: number
  maxSeconds: number
  /** Without it, nothing is fetched. */
  remote: ReturnType<typeof remoteFetch> | undefined
}

/** A request that is being read. */
export interface Reading {
  /** Aborted when the client has gone. */
  signal: AbortSignal
  /** Counts bytes that the server holds for it. Throws RequestError where they are too many. */
  hold(bytes: number): void
}

type Fields = Record<string, unknown>

const prompting = ['prompt_name', 'prompt', 'instruction', 'input_type']
const shaping = ['dimensions', 'encoding_format', 'normalize', 'truncate', 'truncate_prompt_tokens']
/** What clients of OpenAI and vLLM send along and what has no meaning, or only one, here. */
const ignored = ['user', 'add_special_tokens', 'add_generation_prompt', 'continue_final_message']
const known = ['model', 'input', 'messages', ...prompting, ...shaping, ...ignored]

function wrong(param: string, expected: string, got: unknown, status = 400): RequestError {
  return new RequestError(status, `${param}: expected ${expected}, got ${shown(got)}`, param)
}

const isFields = (value: unknown): value is Fields => typeof value === 'object' && value !== null && !Array.isArray(value)

function field<T>(body: Fields, name: string, type: 'string' | 'boolean' | 'number'): T | undefined {
  const value = body[name] ?? undefined
  if (value !== undefined && typeof value !== type) throw wrong(name, `a ${type}`, value)
  return value as T | undefined
}

/** Which of the model's prompts a kind of input has. */
const promptNames: Record<string, string[]> = { query: ['query'], document: ['document', 'passage', 'corpus'] }

function optionsOf(body: Fields, info: ModelInfo, { maxInputPixels, maxSeconds }: RequestLimits): EmbedOptions {
  const [promptName, prompt, instruction] = ['prompt_name', 'prompt', 'instruction'].map((name) => field<string>(body, name, 'string'))
  const [dimensions, cut] = ['dimensions', 'truncate_prompt_tokens'].map((name) => field<number>(body, name, 'number'))
  const kind = field<string>(body, 'input_type', 'string')
  if (kind !== undefined && !Object.hasOwn(promptNames, kind)) throw wrong('input_type', Object.keys(promptNames).join(' or '), kind)
  const own =
    kind && [promptName, prompt, instruction].every((given) => given === undefined) && promptNames[kind]!.find((name) => Object.hasOwn(info.prompts, name))
  const given = body.truncate ?? undefined
  const truncate = typeof given === 'boolean' ? (given ? undefined : 'error') : given // as text-embeddings-inference has it
  if (truncate !== undefined && !['error', 'start', 'end'].includes(truncate as string)) throw wrong('truncate', 'error, start, end, true or false', given)
  if (cut !== undefined && cut !== -1 && cut < info.maxTokens)
    throw wrong('truncate_prompt_tokens', `-1 or at least the model's ${info.maxTokens} (it is the same for all requests)`, cut)
  const normalize = field<boolean>(body, 'normalize', 'boolean')
  return {
    ...((promptName ?? own) && { promptName: promptName ?? (own as string) }),
    ...(prompt !== undefined && { prompt }),
    ...(instruction !== undefined && { instruction }),
    ...(dimensions !== undefined && { dimensions }),
    ...(normalize !== undefined && { normalize }),
    ...(truncate !== undefined && { truncate: truncate as 'error' }),
    processor: { maxInputPixels, maxSeconds },
  }
}

/** The bytes of a data: URL or of what was given as base64 alone, or of an address that may be fetched. */
async function bytesOf(value: unknown, param: string, limits: RequestLimits, reading: Reading): Promise<Uint8Array> {
  const bytes = await received(value, param, limits, reading)
  try {
    requireMedium(bytes, param)
  } catch (error) {
    throw requestError(asConanError(error), param)
  }
  return bytes
}

/** What is not allowed is the request's fault, what cannot be had (422) may be the other server's. */
const fetchStatus: Partial<Record<ErrorCode, number>> = { INVALID_INPUT: 400, INPUT_TOO_LONG: 413 }

async function received(value: unknown, param: string, limits: RequestLimits, { signal, hold }: Reading): Promise<Uint8Array> {
  if (typeof value !== 'string') throw wrong(param, 'a data: URL', value)
  if (/^https?:\/\//i.test(value)) {
    if (!limits.remote) throw new RequestError(400, `${param}: expected a data: URL (this server fetches nothing from the network), got ${shown(value)}`, param)
    if (!URL.canParse(value)) throw wrong(param, 'an address', value)
    try {
      const bytes = await limits.remote(value, { signal })
      hold(bytes.length)
      return bytes
    } catch (error) {
      if (error instanceof RequestError) throw error
      const { code, message } = asConanError(error)
      throw new RequestError(fetchStatus[code] ?? 422, `${param}: ${message}`, param)
    }
  }
  const [head = ''] = /^data:[^,]*;base64,/.exec(value.slice(0, 256)) ?? []
  if (head === '') throw wrong(param, 'a data: URL in base64', value)
  const bytes = Buffer.from(value.slice(head.length), 'base64')
  if (bytes.length === 0) throw wrong(param, 'data in base64', value, 422)
  if (bytes.length > limits.maxFileBytes) throw new RequestError(413, `${param}: expected at most ${limits.maxFileBytes} bytes, got ${bytes.length}`, param)
  return bytes
}

/** Pixels of a page at most: more than models look at, and few enough that many pages fit anywhere. */
const pagePixels = 1 << 22

async function pagesOf(file: Uint8Array, param: string, { maxPages, maxInputPixels }: RequestLimits, { hold }: Reading): Promise<ImageInput[]> {
  const pages: ImageInput[] = []
  try {
    for await (const { pageCount, image } of documentPages(file, { maxPixels: Math.min(maxInputPixels, pagePixels) })) {
      if (pageCount > maxPages) throw new RequestError(413, `${param}: expected at most ${maxPages} pages, got ${pageCount}`, param)
      hold(image.data.length)
      pages.push(image)
    }
  } catch (error) {
    throw error instanceof RequestError ? error : requestError(asConanError(error), param)
  }
  return pages
}

/** Parts of a message become one input; in the prompt they stand in the order video, image and page, sound, text. */
async function inputOf(content: unknown, param: string, limits: RequestLimits, reading: Reading): Promise<EmbedInput> {
  if (typeof content === 'string') return content
  if (!Array.isArray(content) || content.length === 0) throw wrong(param, 'a text or a list of parts', content, 422)
  const texts: string[] = []
  const media = { video: [] as Uint8Array[], image: [] as ImageInput[], audio: [] as Uint8Array[] }
  for (const [i, part] of content.entries()) {
    const where = `${param}[${i}]`
    const type = isFields(part) ? part.type : undefined
    const value = isFields(part) && typeof type === 'string' ? part[type] : undefined
    const inside = (name: string) => (isFields(value) ? value[name] : value)
    const bytes = (name: string) => bytesOf(inside(name), `${where}.${type}.${name}`, limits, reading)
    if (type === 'text' && typeof value === 'string') texts.push(value)
    else if (type === 'image_url') media.image.push(await bytes('url'))
    else if (type === 'video_url') media.video.push(await bytes('url'))
    else if (type === 'audio_url') media.audio.push(await bytes('url'))
    else if (type === 'input_audio' && isFields(value))
      media.audio.push(await bytesOf(`data:;base64,${String(value.data ?? '')}`, `${where}.input_audio.data`, limits, reading))
    else if (type === 'file' && isFields(value)) media.image.push(...(await pagesOf(await bytes('file_data'), `${where}.file`, limits, reading)))
    else throw wrong(where, 'a part of type text, image_url, video_url, audio_url, input_audio or file', part, 422)
  }
  const given = Object.entries(media).filter(([, list]) => list.length > 0)
  const text = texts.join('')
  if (given.length === 0) return text
  return { ...(Object.fromEntries(given) as MediaInput), ...(texts.length > 0 && { text }) }
}

/** A user's message, and perhaps a system's before it, which is the prompt. An empty answer after it, as vLLM's clients send it, is nothing. */
async function askedOf(messages: unknown, param: string, options: EmbedOptions, limits: RequestLimits, reading: Reading): Promise<Asked> {
  if (!Array.isArray(messages) || !messages.every(isFields)) throw wrong(param, 'a list of messages', messages, 422)
  const system = messages.flatMap((message, i) => (message.role === 'system' || message.role === 'developer' ? [[message, i] as const] : []))
  const user = messages.flatMap((message, i) => (message.role === 'user' ? [[message, i] as const] : []))
  const others = messages.filter(({ role }) => !['system', 'developer', 'user'].includes(role as string))
  const isEmpty = ({ role, content }: Fields) =>
    role === 'assistant' && (content === '' || (Array.isArray(content) && content.every((part) => isFields(part) && part.text === '')))
  if (user.length !== 1 || system.length > 1 || !others.every(isEmpty))
    throw wrong(param, 'one message of the user, and at most one of the system', messages.map(({ role }) => role).join(', '), 422)
  const [[message, at]] = user as [readonly [Fields, number]]
  const input = await inputOf(message.content, `${param}[${at}].content`, limits, reading)
  if (!system[0]) return { input, options }
  const prompt = await inputOf(system[0][0].content, `${param}[${system[0][1]}].content`, limits, reading)
  if (typeof prompt !== 'string') throw wrong(`${param}[${system[0][1]}].content`, 'text alone', prompt, 422)
  const { promptName: _, instruction: __, ...rest } = options
  return { input, options: { ...rest, prompt } }
}

/** What is fetched and rendered at one time for a request. */
const atOnce = 8

/**
 * @throws RequestError 400, 413, 422
 */
export async function readEmbeddings(
  body: unknown,
  info: ModelInfo,
  limits: RequestLimits,
  reading: Reading,
): Promise<{ asked: Asked[]; params: string[]; base64: boolean }> {
  if (!isFields(body)) throw new RequestError(400, `expected a JSON object, got ${shown(body)}`)
  for (const name of Object.keys(body)) if (!known.includes(name)) throw new RequestError(400, `expected ${known.join(', ')}, got ${shown(name)}`, name)
  const format = field<string>(body, 'encoding_format', 'string') ?? 'float'
  if (format !== 'float' && format !== 'base64') throw wrong('encoding_format', 'float or base64', format)
  const options = optionsOf(body, info, limits)
  const [input, messages] = [body.input ?? undefined, body.messages ?? undefined]
  if ((input === undefined) === (messages === undefined)) throw new RequestError(400, 'expected either "input" or "messages"', 'input')
  const name = input === undefined ? 'messages' : 'input'
  const isList = input === undefined ? Array.isArray(messages) && Array.isArray(messages[0]) : Array.isArray(input)
  const list = (isList ? (input ?? messages) : [input ?? messages]) as unknown[]
  const params = list.map((_, i) => (isList ? `${name}[${i}]` : name))
  if (list.length === 0 || list.length > limits.maxInputs) throw wrong(name, `1 to ${limits.maxInputs} inputs`, list.length, list.length ? 413 : 422)
  const asked: Asked[] = []
  if (input !== undefined) {
    for (const [i, text] of list.entries()) {
      if (typeof text !== 'string') throw wrong(params[i]!, 'a text (token ids mean something else to every model)', text, 422)
      asked.push({ input: text, options })
    }
  } else
    for (let first = 0; first < list.length; first += atOnce) {
      const group = list.slice(first, first + atOnce)
      asked.push(...(await Promise.all(group.map((one, i) => askedOf(one, params[first + i]!, options, limits, reading)))))
    }
  return { asked, params, base64: format === 'base64' }
}

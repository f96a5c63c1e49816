// What commands embed: inputs from arguments, files or stdin.
import { createReadStream, existsSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import type { EmbedInput } from '../embed/inputs'
import { ConanError, shown } from '../errors'
import { located, mediaNames, rowsOf } from '../files/rows'
import { documentPages } from '../media/document'
import { type RemoteFetch, remoteFetch } from '../media/remote'
import { documentKey } from '../train/sampler'
import { type Arguments, type Command, string } from './command'

/** Flags that say what is embedded. */
export const inputOptions: Command['options'] = {
  input: {
    type: 'string',
    short: 'i',
    multiple: true,
    help: 'FILE lines of text, or .jsonl or .parquet with strings or {id, text, video, image, document, page, audio, start, duration}; "-" is stdin (the default without TEXT)',
  },
  video: { type: 'string', multiple: true, help: 'FILE a video; may be repeated' },
  image: { type: 'string', multiple: true, help: 'FILE an image; may be repeated' },
  document: { type: 'string', multiple: true, help: 'FILE a document: each of its pages is an input; may be repeated' },
  audio: { type: 'string', multiple: true, help: 'FILE a sound; may be repeated' },
  jsonl: { type: 'boolean', help: 'the input is JSON lines whatever its name' },
  field: { type: 'string', help: 'NAME the field of a JSON line that holds the text (text)' },
  'remote-host': {
    type: 'string',
    multiple: true,
    help: 'HOST that files named by an address are fetched from: example.com, *.example.com, *; may be repeated (none)',
  },
  'remote-private': { type: 'boolean', help: 'also from private networks and this machine' },
}

/** What fetches files that are named by an address, where --remote-host allows any. */
export function fetchOf(args: Arguments): RemoteFetch | undefined {
  const hosts = args.values['remote-host'] as string[] | undefined
  return hosts && remoteFetch({ hosts, allowPrivate: args.values['remote-private'] === true })
}

/** Members of a row that say what of a file is meant. */
const mediaSettings = ['page', 'dpi', 'start', 'duration'] as const

export interface Item {
  id: string
  /** What it was read from. */
  of: string
  input: EmbedInput
}

/** What a row asks to be embedded. Paths in it are relative to `directory`, if it was read from a file. */
function itemOf(value: unknown, of: string, place: { where: string; number: number; field: string; directory: string | undefined }): Item {
  const { where, number, field, directory } = place
  const row = (typeof value === 'object' && value !== null ? value : { [field]: value }) as Record<string, unknown>
  const { [field]: text, id, ...rest } = row
  const given = Object.fromEntries(mediaNames.filter((kind) => rest[kind] !== undefined).map((kind) => [kind, rest[kind]]))
  const input = located(given, directory) as Record<string, unknown>
  for (const file of Object.values(input).flat())
    if (typeof file !== 'string' && !(file instanceof Uint8Array))
      throw new ConanError('INVALID_INPUT', `${where}: expected the name of a file, got ${shown(file)}`)
  const hasMedia = Object.keys(input).length > 0
  if ((typeof text !== 'string' && text !== undefined) || (text === undefined && !hasMedia))
    throw new ConanError(
      'INVALID_INPUT',
      `${where}: expected a string or an object with "${field}", ${mediaNames.map((kind) => `"${kind}"`).join(', ')}, got ${shown(value)}`,
    )
  for (const key of hasMedia ? mediaSettings : []) if (rest[key] !== undefined) input[key] = rest[key]
  if (text !== undefined) input.text = text
  return { id: String(id ?? number), of, input: hasMedia ? (input as EmbedInput) : (text as string) }
}

/** Rows of a .parquet file; lines of any other or of stdin ("-"): JSON lines where the name ends so or --jsonl is given, else plain text. */
async function* readItems(source: string, jsonl: boolean, field: string): AsyncGenerator<Item> {
  if (source !== '-' && !existsSync(source)) throw new ConanError('FILE_IO', `${source}: expected a file, found none`)
  const directory = source === '-' ? undefined : path.dirname(source)
  let number = 0
  if (source.endsWith('.parquet')) {
    for await (const { value, where } of rowsOf(source)) yield itemOf(value, documentKey(value), { where, number: number++, field, directory })
    return
  }
  const stream = source === '-' ? process.stdin : createReadStream(source)
  const asJson = jsonl || /\.(jsonl|ndjson)$/.test(source)
  for await (const line of createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY })) {
    number++
    if (asJson && line.trim() === '') continue
    if (!asJson) {
      yield { id: String(number - 1), of: line, input: line }
      continue
    }
    const where = `${source === '-' ? 'stdin' : source}: line ${number}`
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch {
      throw new ConanError('INVALID_INPUT', `${where}: expected JSON, got ${shown(line)}`)
    }
    yield itemOf(value, line, { where, number: number - 1, field, directory })
  }
}

/** The inputs that a command was given: as arguments, as files by kind, and in files of rows; of stdin where there is nothing else. */
export async function* items(args: Arguments, texts: string[], fetch: RemoteFetch | undefined): AsyncGenerator<Item> {
  for (const [i, input] of texts.entries()) yield { id: String(i), of: input, input }
  let named = texts.length
  for (const kind of mediaNames)
    for (const file of (args.values[kind] as string[] | undefined) ?? []) {
      named++
      if (kind !== 'document') yield { id: file, of: file, input: { [kind]: file } as EmbedInput }
      else
        for await (const { page, pageCount, image } of documentPages(file, { fetch })) {
          const id = pageCount > 1 ? `${file}#page=${page}` : file
          yield { id, of: id, input: { image } }
        }
    }
  const sources = (args.values.input as string[] | undefined) ?? (named ? [] : ['-'])
  for (const source of sources) yield* readItems(source, args.values.jsonl === true, string(args, 'field') ?? 'text')
}

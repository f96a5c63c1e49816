// Rows of files: JSON lines, or Parquet as the Hub and its tools write it, brought to the form that JSON lines have.
import { type FileHandle, open } from 'node:fs/promises'
import path from 'node:path'
import { ConanError } from '../errors'
import { jsonLines } from './json'

/** Members whose value is a file. */
export const mediaNames: readonly string[] = ['video', 'image', 'document', 'audio']

/** What `datasets` calls a column of such. */
const media: Record<string, string> = { Video: 'video', Image: 'image', Pdf: 'document', Audio: 'audio' }

const decoder = new TextDecoder()

interface Feature {
  _type?: unknown
  feature?: unknown
  [name: string]: unknown
}

/**
 * A value as a JSON line would hold it; bytes of media stay bytes.
 * @param name of the member or column it was found in
 * @param feature what the file says of it, if `datasets` wrote it: without that, an image in a column that is not called so is a struct
 */
function plain(value: unknown, name: string, feature: Feature | undefined): unknown {
  if (value === null || value === undefined) return undefined // a member that only other rows have
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  if (typeof value !== 'object' || value instanceof Date) return value
  const isMedia = mediaNames.includes(name)
  if (value instanceof Uint8Array) return isMedia ? value : decoder.decode(value) // strings that nobody marked as such
  if (ArrayBuffer.isView(value)) return value
  if (Array.isArray(value)) {
    if (typeof value[0] === 'number') return value
    const item = (Array.isArray(feature) ? feature[0] : feature?.feature) as Feature | undefined
    return value.map((each) => plain(each, name, item)).filter((each) => each !== undefined)
  }
  const { bytes, path: location, ...rest } = value as Record<string, unknown>
  const kind = media[String(feature?._type)] ?? (isMedia ? name : undefined)
  const file = bytes ?? location
  if (kind !== undefined && file != null && Object.keys(rest).length === 0) return kind === name ? file : { [kind]: file }
  const members = Object.entries(value).map(([key, each]) => [key, plain(each, key, feature?.[key] as Feature | undefined)] as const)
  return Object.fromEntries(members.filter(([, each]) => each !== undefined))
}

async function readAt(handle: FileHandle, start: number, end: number): Promise<ArrayBuffer> {
  const bytes = new Uint8Array(end - start)
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done)
    if (bytesRead === 0) throw new Error('the file ends before its data')
    done += bytesRead
  }
  return bytes.buffer
}

async function* parquetRows(file: string): AsyncGenerator<Record<string, unknown>> {
  const [{ parquetMetadataAsync, parquetReadObjects }, codecs] = await Promise.all([import('hyparquet'), import('hyparquet-compressors')])
  const compressors = {
    ...codecs.compressors,
    // A page of nothing but nulls holds no bytes, for which that of LZ4 finds an offset out of range.
    LZ4_RAW: (input: Uint8Array, size: number) => (size === 0 ? new Uint8Array() : codecs.decompressLz4Raw(input, size)),
  }
  let handle: FileHandle
  try {
    handle = await open(file)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be read: ${(error as Error).message}`, { cause: error })
  }
  try {
    const { size } = await handle.stat()
    const buffer = { byteLength: size, slice: (start: number, end = size) => readAt(handle, start, end) }
    const metadata = await parquetMetadataAsync(buffer)
    const written = metadata.key_value_metadata?.find(({ key }) => key === 'huggingface')?.value
    const features = written === undefined ? undefined : (JSON.parse(written) as { info?: { features?: Feature } }).info?.features
    let rowStart = 0
    for (const { num_rows } of metadata.row_groups) {
      const rowEnd = rowStart + Number(num_rows)
      const rows = await parquetReadObjects({ file: buffer, metadata, compressors, rowStart, rowEnd, utf8: false })
      for (const row of rows) yield plain(row, '', features) as Record<string, unknown>
      rowStart = rowEnd
    }
  } catch (error) {
    throw new ConanError('FILE_CORRUPT', `${file}: not a Parquet file that can be read: ${(error as Error).message}`, { cause: error })
  } finally {
    await handle.close()
  }
}

/**
 * The rows of a .parquet file, one row group at a time, or of a file of JSON lines; `where` names a row in messages.
 *
 * @throws ConanError FILE_IO, FILE_CORRUPT, INVALID_INPUT (a line that is not JSON)
 */
export async function* rowsOf(file: string): AsyncGenerator<{ value: unknown; where: string }> {
  if (!file.endsWith('.parquet')) {
    yield* jsonLines(file)
    return
  }
  let number = 0
  for await (const value of parquetRows(file)) yield { value, where: `${file}: row ${++number}` }
}

/** Paths are relative to the file that names them; addresses stay. */
export function located(value: unknown, directory: string | undefined): unknown {
  if (directory === undefined || typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value
  const place = (name: unknown) => (typeof name === 'string' && !/^(data:|file:|https?:\/\/)/i.test(name) ? path.resolve(directory, name) : name)
  const out: Record<string, unknown> = { ...value }
  for (const kind of mediaNames) if (out[kind] !== undefined) out[kind] = Array.isArray(out[kind]) ? (out[kind] as unknown[]).map(place) : place(out[kind])
  return out
}

// Reads JSON, JSON lines and YAML; errors name the file.
import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs'
import { createRequire } from 'node:module'
import { ConanError, shown } from '../errors'

export type Json = Record<string, unknown>

function unreadable(file: string, error: unknown): ConanError {
  return new ConanError('FILE_IO', `${file}: cannot be read: ${(error as Error).message}`, { cause: error })
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    throw unreadable(file, error)
  }
}

/** @throws ConanError FILE_IO, FILE_CORRUPT */
export function readJson(file: string): Json {
  const text = readText(file)
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new ConanError('FILE_CORRUPT', `${file}: not valid JSON: ${(error as Error).message}`, { cause: error })
  }
}

/** {} where there is no such file. */
export const readJsonIf = (file: string): Json => (existsSync(file) ? readJson(file) : {})

/**
 * What stands in a YAML or JSON file, unchecked.
 *
 * @throws ConanError FILE_IO, and `code` where it is not YAML
 */
export function readYaml(file: string, code: 'FILE_CORRUPT' | 'RECIPE_INVALID' = 'FILE_CORRUPT'): unknown {
  const text = readText(file)
  // When the first comes: embedding does not wait for it.
  const { parse } = createRequire(__filename)('yaml') as typeof import('yaml')
  try {
    return parse(text)
  } catch (error) {
    throw new ConanError(code, `${file}: not valid YAML: ${(error as Error).message.split('\n')[0]}`, { cause: error })
  }
}

/**
 * The values of a file of JSON lines, of any size, and where each stands; empty lines are none.
 *
 * @throws ConanError FILE_IO, INVALID_INPUT
 */
export function* jsonLines(file: string): Generator<{ value: unknown; where: string }> {
  let number = 0
  for (const line of lines(file)) {
    number++
    if (line.trim() === '') continue
    const where = `${file}: line ${number}`
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch {
      throw new ConanError('INVALID_INPUT', `${where}: expected JSON, got ${shown(line)}`)
    }
    yield { value, where }
  }
}

/** Piece by piece: a string has at most half a gigabyte. */
function* lines(file: string): Generator<string> {
  let descriptor: number
  try {
    descriptor = openSync(file, 'r')
  } catch (error) {
    throw unreadable(file, error)
  }
  try {
    const piece = Buffer.alloc(1 << 20)
    const decoder = new TextDecoder() // of characters that two pieces share, and of a byte order mark
    let begun = ''
    const read = () => {
      try {
        return readSync(descriptor, piece)
      } catch (error) {
        throw unreadable(file, error)
      }
    }
    for (let count = read(); count > 0; count = read()) {
      const text = begun + decoder.decode(piece.subarray(0, count), { stream: true })
      let from = 0
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', from)) {
        yield text.slice(from, end)
        from = end + 1
      }
      begun = text.slice(from)
    }
    yield begun + decoder.decode()
  } finally {
    closeSync(descriptor)
  }
}

// Reads JSON files; errors name the file.
import { existsSync, readFileSync } from 'node:fs'
import { ConanError } from '../errors'

export type Json = Record<string, unknown>

/** @throws ConanError FILE_IO, FILE_CORRUPT */
export function readJson(file: string): Json {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be read: ${(error as Error).message}`, { cause: error })
  }
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new ConanError('FILE_CORRUPT', `${file}: not valid JSON: ${(error as Error).message}`, { cause: error })
  }
}

/** {} where there is no such file. */
export const readJsonIf = (file: string): Json => (existsSync(file) ? readJson(file) : {})

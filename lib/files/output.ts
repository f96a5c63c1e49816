// Directories and files that are made whole: beside their name first, under it in the end.
import { accessSync, closeSync, constants, existsSync, openSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { ConanError } from '../errors'

/** @throws ConanError OUTPUT_EXISTS where `directory` is taken; an empty one is not */
export function requireFree(directory: string): void {
  if (!existsSync(directory)) return
  const isDirectory = statSync(directory).isDirectory()
  if (!isDirectory || readdirSync(directory).length > 0)
    throw new ConanError('OUTPUT_EXISTS', `${directory}: expected no such directory or an empty one, found ${isDirectory ? 'files in it' : 'a file'}`)
}

/**
 * Gives a directory that is whole its name.
 * @throws ConanError OUTPUT_EXISTS where somebody has taken that in the meantime
 */
export function publish(partial: string, directory: string): void {
  requireFree(directory)
  renameSync(partial, directory)
}

/**
 * Asked before the work whose result goes into `file`, not after hours of it.
 * @throws ConanError FILE_IO, OUTPUT_EXISTS (a directory)
 */
export function requirePlace(file: string): void {
  const directory = path.dirname(path.resolve(file))
  if (!existsSync(directory)) throw new ConanError('FILE_IO', `${file}: its directory does not exist`)
  try {
    accessSync(directory, constants.W_OK)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
  if (existsSync(file) && statSync(file).isDirectory()) throw new ConanError('OUTPUT_EXISTS', `${file}: expected a file or none, found a directory`)
}

/** Writes beside, then renames: a reader sees the old or the new, never half. `content`: all of it, or parts of any number. */
export function replaceFile(file: string, content: string | NodeJS.ArrayBufferView | string[]): void {
  const beside = `${file}.tmp`
  try {
    if (Array.isArray(content)) {
      const descriptor = openSync(beside, 'w')
      try {
        for (const part of content) writeFileSync(descriptor, part)
      } finally {
        closeSync(descriptor)
      }
    } else writeFileSync(beside, content)
    renameSync(beside, file)
  } catch (error) {
    rmSync(beside, { force: true })
    throw error
  }
}

/** What a file is known by when a run goes on: another size or time is another file. */
export function stampOf(file: string): [file: string, size: number, time: number] {
  const { size, mtimeMs } = statSync(file)
  return [file, size, mtimeMs]
}

/** An error of the file system as FILE_IO; any other as it is. */
export function asFileError(error: unknown): unknown {
  return error instanceof Error && 'syscall' in error ? new ConanError('FILE_IO', error.message, { cause: error }) : error
}

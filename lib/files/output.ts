// Directories and files that are made whole: beside their name first, under it in the end.
import { closeSync, existsSync, openSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { ConanError } from '../errors'

/** @throws ConanError OUTPUT_EXISTS where `directory` is taken; an empty one is not */
export function requireFree(directory: string): void {
  if (!existsSync(directory)) return
  const isDirectory = statSync(directory).isDirectory()
  if (!isDirectory || readdirSync(directory).length > 0)
    throw new ConanError('OUTPUT_EXISTS', `${directory}: expected no such directory or an empty one, found ${isDirectory ? 'files in it' : 'a file'}`)
}

/** Writes beside, then renames: a reader sees the old or the new, never half. `content`: all of it, or parts of any number. */
export function replaceFile(file: string, content: string | NodeJS.ArrayBufferView | string[]): void {
  const beside = `${file}.tmp`
  if (Array.isArray(content)) {
    const descriptor = openSync(beside, 'w')
    try {
      for (const part of content) writeFileSync(descriptor, part)
    } finally {
      closeSync(descriptor)
    }
  } else writeFileSync(beside, content)
  renameSync(beside, file)
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

// NumPy's .npy (format 1.0), row by row. What is written is a temporary file that takes its real name when it is whole.
import { closeSync, fstatSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs'
import type { Vectors } from '../embed/precision'
import { ConanError } from '../errors'

export const headerBytes = 128 // fixed, so that the number of rows can be filled in at the end

export const npyType = (row: Vectors): string => (row instanceof Float32Array ? '<f4' : row instanceof Int8Array ? '|i1' : '|u1')

export function npyHeader(type: string, rows: number, columns: number): Buffer {
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`
  const buffer = Buffer.alloc(headerBytes, ' ')
  buffer.write('\x93NUMPY\x01\x00', 0, 'latin1')
  buffer.writeUInt16LE(headerBytes - 10, 8)
  buffer.write(text, 10, 'latin1')
  buffer[headerBytes - 1] = 0x0a
  return buffer
}

/** What a header says that npyHeader wrote. */
export function readNpyHeader(fd: number): { type: string; columns: number } {
  const buffer = Buffer.alloc(headerBytes)
  readSync(fd, buffer, 0, headerBytes, 0)
  const [, type, columns] = /'descr': '(.*?)'.*\(\d+, (\d+)\)/.exec(buffer.toString('latin1')) as unknown as [string, string, string]
  return { type, columns: Number(columns) }
}

/** The number of rows, in the header of a file that npyHeader began. */
export function completeNpyHeader(fd: number, rows: number, file: string): void {
  const { type, columns } = readNpyHeader(fd)
  writeAll(fd, npyHeader(type, rows, columns), file, 0)
}

export class NpyWriter {
  private readonly temporary: string
  private readonly fd: number
  private rows = 0
  private columns = 0
  private type = '<f4'

  constructor(private readonly file: string) {
    this.temporary = `${file}.${process.pid}.tmp`
    try {
      this.fd = openSync(this.temporary, 'w')
      writeSync(this.fd, npyHeader(this.type, 0, 0))
    } catch (error) {
      throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
    }
  }

  /** One row; all rows must have the type and length of the first. */
  write(row: Vectors): void {
    const type = npyType(row)
    if (this.rows === 0) {
      this.columns = row.length
      this.type = type
    } else if (row.length !== this.columns || type !== this.type) {
      throw new ConanError('INVALID_INPUT', `${this.file}: row ${this.rows}: expected ${this.columns} of ${this.type}, got ${row.length} of ${type}`)
    }
    writeAll(this.fd, Buffer.from(row.buffer, row.byteOffset, row.byteLength), this.file)
    this.rows++
  }

  finish(): void {
    writeSync(this.fd, npyHeader(this.type, this.rows, this.columns), 0, headerBytes, 0)
    closeSync(this.fd)
    renameSync(this.temporary, this.file)
  }

  /** Gives up: nothing stays. */
  abandon(): void {
    closeSync(this.fd)
    rmSync(this.temporary, { force: true })
  }
}

/** Rows of a matrix of f32, read as they are asked for. The file is open only while it is read. */
export class NpyReader {
  readonly rows: number
  readonly columns: number
  private readonly start: number

  constructor(private readonly file: string) {
    const { text, start, size } = reading(file, (fd) => {
      const head = Buffer.alloc(4096)
      const read = readSync(fd, head, 0, head.length, 0)
      const long = head[6] === 1 ? head.readUInt16LE(8) : head.readUInt32LE(8)
      const start = (head[6] === 1 ? 10 : 12) + long
      return { text: head.toString('latin1', 0, Math.min(read, start)), start, size: fstatSync(fd).size }
    })
    const shape = /'shape': \((\d+), (\d+)\)/.exec(text)
    this.start = start
    this.rows = Number(shape?.[1])
    this.columns = Number(shape?.[2])
    if (!text.startsWith('\x93NUMPY') || !shape || !/'descr': '<f4'/.test(text) || !/'fortran_order': False/.test(text))
      throw new ConanError('FILE_CORRUPT', `${file}: expected a matrix of f32 in NumPy's format, found ${JSON.stringify(text.slice(0, 80))}`)
    if (size < start + 4 * this.rows * this.columns)
      throw new ConanError('FILE_CORRUPT', `${file}: expected ${this.rows} x ${this.columns} values, found a shorter file`)
  }

  row(i: number): Float32Array {
    return this.block(i, 1)
  }

  /** Rows `first` to `first + count`, row-major. */
  block(first: number, count: number): Float32Array {
    const out = new Float32Array(count * this.columns)
    reading(this.file, (fd) => readAll(fd, Buffer.from(out.buffer), this.file, this.start + 4 * this.columns * first))
    return out
  }
}

function reading<T>(file: string, work: (fd: number) => T): T {
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be read: ${(error as Error).message}`, { cause: error })
  }
  try {
    return work(fd)
  } finally {
    closeSync(fd)
  }
}

/** Fills the whole buffer from `position` on. */
export function readAll(fd: number, buffer: Buffer, file: string, position: number): void {
  for (let at = 0; at < buffer.length; ) {
    const read = readSync(fd, buffer, at, Math.min(buffer.length - at, 1 << 30), position + at)
    if (read === 0) throw new ConanError('FILE_IO', `${file}: expected ${buffer.length} bytes from ${position} on, found ${at}`)
    at += read
  }
}

/** Writes the whole buffer, however many calls that takes, from `position` on or where the file stands. */
export function writeAll(fd: number, buffer: Buffer, file: string, position?: number): void {
  try {
    for (let at = 0; at < buffer.length; ) at += writeSync(fd, buffer, at, buffer.length - at, position === undefined ? null : position + at)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
}

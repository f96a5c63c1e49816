// Writes NumPy's .npy (format 1.0) row by row: a temporary file that takes its real name when it is whole.
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import type { Vectors } from '../embed/precision'
import { ConanError } from '../errors'

const headerBytes = 128 // fixed, so that the number of rows can be filled in at the end

function header(type: string, rows: number, columns: number): Buffer {
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`
  const buffer = Buffer.alloc(headerBytes, ' ')
  buffer.write('\x93NUMPY\x01\x00', 0, 'latin1')
  buffer.writeUInt16LE(headerBytes - 10, 8)
  buffer.write(text, 10, 'latin1')
  buffer[headerBytes - 1] = 0x0a
  return buffer
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
      writeSync(this.fd, header(this.type, 0, 0))
    } catch (error) {
      throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
    }
  }

  /** One row; all rows must have the type and length of the first. */
  write(row: Vectors): void {
    const type = row instanceof Float32Array ? '<f4' : row instanceof Int8Array ? '|i1' : '|u1'
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
    writeSync(this.fd, header(this.type, this.rows, this.columns), 0, headerBytes, 0)
    closeSync(this.fd)
    renameSync(this.temporary, this.file)
  }

  /** Gives up: nothing stays. */
  abandon(): void {
    closeSync(this.fd)
    rmSync(this.temporary, { force: true })
  }
}

/** Writes the whole buffer, however many calls that takes. */
export function writeAll(fd: number, buffer: Buffer, file: string): void {
  try {
    for (let at = 0; at < buffer.length; ) at += writeSync(fd, buffer, at)
  } catch (error) {
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
}

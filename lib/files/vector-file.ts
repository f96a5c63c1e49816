// Vectors with their ids on the way into a file, kept so that a run that ends at any moment can go on: `<file>.partial` holds what the file
// begins with, and a journal of the inputs that are done.
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  existsSync,
  fdatasyncSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
} from 'node:fs'
import path from 'node:path'
import type { Vectors } from '../embed/precision'
import { ConanError } from '../errors'
import { completeNpyHeader, headerBytes, npyHeader, npyType, readAll, readNpyHeader, writeAll } from './npy'
import { asFileError, replaceFile } from './output'
import { writeParquet } from './parquet-vectors'

/** A line of the journal: an input's name, what it was, and where the vectors end after it. One that was left out has none. */
interface Done {
  id: string
  digest: string
  end: number
  skipped?: true
}

/** An input on its way: its name, and what it was read from. */
interface Source {
  id: string
  of: string
}

/** What goes to the disk at one time: so many bytes, or those of so many milliseconds. */
const heldBytes = 1 << 22
const heldTime = 1000

/** A file of vectors, .npy (with `<name>.ids.json` beside it), .parquet or .jsonl, in the order of its inputs. Errors of the file system are FILE_IO. */
export class VectorFile {
  /** Inputs that were done when it was opened. */
  readonly before: number
  private readonly partial: string
  private readonly format: 'npy' | 'parquet' | 'jsonl'
  private readonly vectors: number
  private readonly journal: number
  private inputs = 0
  private kept = 0
  private rows = 0
  private end = 0
  private journalEnd = 0
  private readonly waiting = { vectors: [] as Buffer[], journal: [] as Buffer[], bytes: 0 }
  private timer: NodeJS.Timeout | undefined
  private closed = false
  private failure: unknown

  /**
   * Goes on with what `<file>.partial` holds, if it is there. `identity`: what vectors depend on beside their inputs.
   *
   * @throws ConanError OUTPUT_EXISTS where that is of a run with another identity
   */
  constructor(
    private readonly file: string,
    identity: string,
  ) {
    this.partial = `${file}.partial`
    this.format = file.endsWith('.npy') ? 'npy' : file.endsWith('.parquet') ? 'parquet' : 'jsonl'
    const run = this.inside('run.json')
    try {
      if (!existsSync(run)) {
        mkdirSync(this.partial, { recursive: true })
        replaceFile(run, identity)
      } else if (readFileSync(run, 'utf8') !== identity) {
        throw new ConanError('OUTPUT_EXISTS', `${this.partial}: holds a run with other settings; remove it to begin anew`)
      }
      this.vectors = openSync(this.inside('vectors'), constants.O_RDWR | constants.O_CREAT)
      this.journal = openSync(this.inside('journal.jsonl'), constants.O_RDWR | constants.O_CREAT)
      this.recover()
    } catch (error) {
      throw asFileError(error)
    }
    this.before = this.kept = this.inputs
  }

  /**
   * Those inputs that are not done.
   *
   * @throws ConanError OUTPUT_EXISTS where those that are done were others
   */
  async *remaining<T extends Source>(items: AsyncIterable<T>): AsyncGenerator<T> {
    const done = this.lines()
    let n = 0
    const differs = (found: string) =>
      new ConanError('OUTPUT_EXISTS', `${this.partial}: holds a run over other inputs: number ${n} is ${found} now; remove it to begin anew`)
    for await (const item of items) {
      if (n === this.before) {
        yield item
        continue
      }
      const { id, digest } = done.next().value as Done
      if (id !== item.id || digest !== digestOf(item)) throw differs(`another (${item.id})`)
      n++
    }
    if (n < this.before) throw differs('missing')
  }

  /** The next input's vector, or that it has none. */
  write(source: Source, vector: Vectors | undefined): void {
    if (this.failure) throw this.failure
    if (vector) {
      if (this.format === 'jsonl') this.add(Buffer.from(`${JSON.stringify({ id: source.id, embedding: Array.from(vector) })}\n`))
      else {
        if (this.rows === 0) this.add(npyHeader(npyType(vector), 0, vector.length))
        this.add(Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength))
      }
      this.rows++
    }
    const done: Done = { id: source.id, digest: digestOf(source), end: this.end, ...(!vector && { skipped: true }) }
    this.waiting.journal.push(Buffer.from(`${JSON.stringify(done)}\n`))
    this.inputs++
    if (this.waiting.bytes > heldBytes) this.flush()
    else this.timer ??= setTimeout(() => this.flushLater(), heldTime)
  }

  /** The file takes its name. */
  finish(): void {
    try {
      if (this.format !== 'jsonl' && this.rows === 0) this.add(npyHeader('<f4', 0, 0))
      this.flush()
      if (this.format === 'npy') {
        completeNpyHeader(this.vectors, this.rows, this.file)
        this.writeIds(this.file.replace(/\.npy$/, '.ids.json'))
      }
      if (this.format === 'parquet') this.writeTable(this.inside('table'))
      this.close() // Windows removes no directory with open files
      renameSync(this.inside(this.format === 'parquet' ? 'table' : 'vectors'), this.file)
      rmSync(this.partial, { recursive: true })
    } catch (error) {
      throw asFileError(error)
    }
  }

  /** Gives up for now: what is done stays. Returns how many inputs that are. */
  leave(): number {
    try {
      this.flush()
    } catch {} // a full disk, which has been an error before
    this.close()
    if (this.kept === 0) rmSync(this.partial, { recursive: true, force: true })
    return this.kept
  }

  private close(): void {
    if (this.closed) return
    this.closed = true
    clearTimeout(this.timer)
    closeSync(this.vectors)
    closeSync(this.journal)
  }

  private inside(name: string): string {
    return path.join(this.partial, name)
  }

  private add(bytes: Buffer): void {
    this.waiting.vectors.push(bytes)
    this.waiting.bytes += bytes.length
    this.end += bytes.length
  }

  /** Vectors first: a line of the journal is true once it is there. */
  private flush(): void {
    clearTimeout(this.timer)
    this.timer = undefined
    const { waiting } = this
    const journal = Buffer.concat(waiting.journal)
    writeAll(this.vectors, Buffer.concat(waiting.vectors), this.file, this.end - waiting.bytes)
    fdatasyncSync(this.vectors)
    writeAll(this.journal, journal, this.file, this.journalEnd)
    fdatasyncSync(this.journal)
    this.journalEnd += journal.length
    this.kept = this.inputs
    Object.assign(waiting, { vectors: [], journal: [], bytes: 0 })
  }

  /** Takes up what both files hold whole. */
  private recover(): void {
    const { size } = fstatSync(this.vectors)
    for (const done of this.lines()) {
      if (done.end > size) break
      this.inputs++
      if (!done.skipped) this.rows++
      this.end = done.end
      this.journalEnd = done.after
    }
    ftruncateSync(this.vectors, this.end)
    ftruncateSync(this.journal, this.journalEnd)
  }

  private flushLater(): void {
    try {
      this.flush()
    } catch (error) {
      this.failure = error
    }
  }

  /** The journal, a line at a time; `after`: where the line ends. */
  private *lines(): Generator<Done & { after: number }> {
    const chunk = Buffer.alloc(1 << 20)
    let rest = Buffer.alloc(0)
    let after = 0
    for (let at = 0; ; ) {
      const n = readSync(this.journal, chunk, 0, chunk.length, at)
      if (n === 0) return
      at += n
      rest = Buffer.concat([rest, chunk.subarray(0, n)])
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
        after += end + 1
        let done: Done
        try {
          done = JSON.parse(rest.toString('utf8', 0, end))
        } catch {
          return // the machine went down while it was written
        }
        yield { ...done, after }
        rest = rest.subarray(end + 1)
      }
    }
  }

  private writeTable(file: string): void {
    const { type, columns } = readNpyHeader(this.vectors)
    const bytes = columns * (type === '<f4' ? 4 : 1)
    const rowsAt = (first: number, count: number) => {
      const buffer = Buffer.alloc(count * bytes)
      readAll(this.vectors, buffer, this.file, headerBytes + first * bytes)
      return buffer
    }
    writeParquet(file, { rows: this.rows, columns, type, ids: this.ids(), rowsAt })
  }

  /** Of the inputs that have a vector. */
  private *ids(): Generator<string> {
    for (const { id, skipped } of this.lines()) if (!skipped) yield id
  }

  private writeIds(file: string): void {
    const fd = openSync(`${file}.tmp`, 'w')
    let ids: string[] = []
    let first = true
    const put = (tail: string) => {
      writeAll(fd, Buffer.from(`${first ? '[' : ids.length ? ',' : ''}${ids.join(',')}${tail}`), file)
      first = false
      ids = []
    }
    for (const id of this.ids()) {
      ids.push(JSON.stringify(id))
      if (ids.length === 65536) put('')
    }
    put(']')
    closeSync(fd)
    renameSync(`${file}.tmp`, file)
  }
}

const digestOf = ({ of }: Source): string => createHash('sha1').update(of).digest('base64url').slice(0, 12)

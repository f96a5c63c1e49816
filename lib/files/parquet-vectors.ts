// A Parquet file of ids and vectors: columns "id" and "embedding", a list of as many numbers in every row. Libraries write lists value by
// value, which would take longer than embedding does on a GPU; here a page is the vectors' own bytes behind levels that repeat.
// Format: github.com/apache/parquet-format (Thrift's compact protocol, data pages of version 1, PLAIN, RLE levels).
import { closeSync, fsyncSync, openSync } from 'node:fs'
import { arrowSchema, counted } from './arrow-schema'
import { writeAll } from './npy'

/** A value of Thrift's compact protocol. */
interface Thrift {
  type: number
  put(out: number[]): void
}

/** Seven bits a byte, the lowest first. */
function varint(value: number, out: number[]): void {
  let rest = value
  for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) + 128)
  out.push(rest)
}

const whole = (type: number) => (value: number) => ({ type, put: (out: number[]) => varint(2 * value, out) }) // zigzag of what is not negative
const i32 = whole(5)
const i64 = whole(6)
const text = (value: string): Thrift => ({
  type: 8,
  put(out) {
    const bytes = Buffer.from(value)
    varint(bytes.length, out)
    out.push(...bytes)
  },
})
const list = (values: Thrift[], type = values[0]!.type): Thrift => ({
  type: 9,
  put(out) {
    if (values.length < 15) out.push((values.length << 4) | type)
    else {
      out.push(0xf0 | type)
      varint(values.length, out)
    }
    for (const value of values) value.put(out)
  },
})
const thriftStruct = 12
/** By numbers of fields, rising. */
const struct = (fields: Record<number, Thrift>): Thrift => ({
  type: thriftStruct,
  put(out) {
    let before = 0
    for (const [id, value] of Object.entries(fields)) {
      out.push(((Number(id) - before) << 4) | value.type)
      value.put(out)
      before = Number(id)
    }
    out.push(0)
  },
})
const bytesOf = (value: Thrift): Buffer => {
  const out: number[] = []
  value.put(out)
  return Buffer.from(out)
}

// Enumerations of the format.
const types = { int32: i32(1), float: i32(4), byteArray: i32(6) }
const repetition = { required: i32(0), repeated: i32(2) }
const encodings = { plain: i32(0), rle: i32(3) }
const converted = { utf8: i32(0), list: i32(3), uint8: i32(11), int8: i32(15) }

/** Runs of equal levels of one bit. */
function levels(runs: (readonly [count: number, level: 0 | 1])[]): Buffer {
  const out: number[] = []
  for (const [count, level] of runs) {
    if (count === 0) continue
    varint(2 * count, out)
    out.push(level)
  }
  return counted(Buffer.from(out))
}

/** Rows of a row group and numbers of a page at most. */
const groupRows = 1 << 16
const groupNumbers = 1 << 24
const pageNumbers = 1 << 18

/**
 * Writes ids with their vectors, which `rowsAt` gives row-major in the type that NumPy calls `type`.
 * @throws ConanError FILE_IO
 */
export function writeParquet(
  file: string,
  {
    rows,
    columns,
    type,
    ids,
    rowsAt,
  }: { rows: number; columns: number; type: string; ids: Iterator<string>; rowsAt: (first: number, count: number) => Buffer },
): void {
  const fd = openSync(file, 'w')
  try {
    let at = 0
    const put = (bytes: Buffer) => {
      writeAll(fd, bytes, file)
      at += bytes.length
    }
    const page = (values: number, data: Buffer) => {
      const header = struct({ 1: i32(values), 2: encodings.plain, 3: encodings.rle, 4: encodings.rle })
      put(bytesOf(struct({ 1: i32(0), 2: i32(data.length), 3: i32(data.length), 5: header })))
      put(data)
    }
    /** What `write` writes, as a row group lists it. */
    const column = (path: string[], type: Thrift, values: number, write: () => void): Thrift => {
      const start = at
      write()
      const bytes = i64(at - start)
      const meta = struct({
        1: type,
        2: list([encodings.plain, encodings.rle]),
        3: list(path.map(text)),
        4: i32(0), // not compressed: vectors gain nothing by it
        5: i64(values),
        6: bytes,
        7: bytes,
        9: i64(start),
      })
      return struct({ 2: i64(start), 3: meta })
    }
    const element = type === '<f4' ? types.float : types.int32
    const widened = (bytes: Buffer) => {
      if (type === '<f4') return bytes
      const small = type === '|i1' ? new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length) : bytes
      return Buffer.from(Int32Array.from(small).buffer)
    }
    put(Buffer.from('PAR1'))
    const groups: Thrift[] = []
    const most = Math.max(1, Math.min(groupRows, Math.floor(groupNumbers / columns)))
    const perPage = Math.max(1, Math.floor(pageNumbers / columns))
    for (let first = 0; first < rows; first += most) {
      const count = Math.min(most, rows - first)
      const begun = at
      const names = column(['id'], types.byteArray, count, () => {
        page(count, Buffer.concat(Array.from({ length: count }, () => counted(Buffer.from(ids.next().value as string)))))
      })
      const vectors = column(['embedding', 'list', 'element'], element, count * columns, () => {
        for (let row = first; row < first + count; row += perPage) {
          const own = Math.min(perPage, first + count - row)
          const starts = Array.from({ length: own }, () => [[1, 0] as const, [columns - 1, 1] as const]).flat() // a 0 begins a list
          page(own * columns, Buffer.concat([levels(starts), levels([[own * columns, 1]]), widened(rowsAt(row, own))]))
        }
      })
      groups.push(struct({ 1: list([names, vectors]), 2: i64(at - begun), 3: i64(count) }))
    }
    const number: Record<number, Thrift> = type === '<f4' ? {} : { 6: type === '|i1' ? converted.int8 : converted.uint8 }
    const schema = [
      struct({ 4: text('schema'), 5: i32(2) }),
      struct({ 1: types.byteArray, 3: repetition.required, 4: text('id'), 6: converted.utf8 }),
      struct({ 3: repetition.required, 4: text('embedding'), 5: i32(1), 6: converted.list }),
      struct({ 3: repetition.repeated, 4: text('list'), 5: i32(1) }),
      struct({ 1: element, 3: repetition.required, 4: text('element'), ...number }),
    ]
    const arrow: Record<number, Thrift> = columns > 0 ? { 5: list([struct({ 1: text('ARROW:schema'), 2: text(arrowSchema(type, columns)) })]) } : {}
    const footer = bytesOf(
      struct({
        1: i32(1),
        2: list(schema),
        3: i64(rows),
        4: list(groups, thriftStruct),
        ...arrow,
        6: text('conan-embedding'),
      }),
    )
    const end = Buffer.alloc(8)
    end.writeUInt32LE(footer.length)
    end.write('PAR1', 4)
    put(Buffer.concat([footer, end]))
    fsyncSync(fd) // what it was made from is removed next
  } finally {
    closeSync(fd)
  }
}

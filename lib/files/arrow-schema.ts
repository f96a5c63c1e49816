// What Arrow's libraries look for in a Parquet file to know that every list is equally long (FixedSizeList): the schema as a message of
// Arrow's, in base64, under the key ARROW:schema. Formats: arrow.apache.org/docs/format (Schema.fbs, Message.fbs), flatbuffers.dev/internals.

/** Bytes behind their number, as both formats have them. */
export function counted(bytes: Buffer): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(bytes.length)
  return Buffer.concat([length, bytes])
}

/** A FlatBuffer, from its end to its beginning; places are counted from the end. */
class FlatBuffer {
  private bytes = Buffer.alloc(0)

  /** Puts bytes in front, at a place that `align` divides. */
  private push(bytes: Buffer, align: number): number {
    const padding = Buffer.alloc((align - ((this.bytes.length + bytes.length) % align)) % align)
    this.bytes = Buffer.concat([bytes, padding, this.bytes])
    return this.bytes.length
  }

  private number(value: number, size: 1 | 2 | 4 | 8): number {
    const bytes = Buffer.alloc(size)
    bytes.writeIntLE(value, 0, Math.min(size, 6))
    return this.push(bytes, size)
  }

  private reference(place: number): number {
    const own = this.number(0, 4)
    this.bytes.writeUInt32LE(own - place, 0)
    return own
  }

  text(value: string): number {
    const bytes = counted(Buffer.from(value))
    return this.push(Buffer.concat([bytes, Buffer.alloc(4 - (bytes.length % 4))]), 4) // with at least one zero after it
  }

  list(places: number[]): number {
    for (const place of places.toReversed()) this.reference(place)
    return this.number(places.length, 4)
  }

  /** Members by slot: a number of so many bytes, or a reference to what is already there. */
  table(members: Record<number, { value: number; size: 1 | 2 | 4 | 8 } | { at: number }>): number {
    const before = this.bytes.length
    const places: [slot: number, place: number][] = []
    for (const [slot, member] of Object.entries(members))
      places.push([Number(slot), 'at' in member ? this.reference(member.at) : this.number(member.value, member.size)])
    const table = this.number(0, 4)
    const slots = Math.max(-1, ...places.map(([slot]) => slot)) + 1
    const offsets = Buffer.alloc(4 + 2 * slots)
    offsets.writeUInt16LE(offsets.length, 0)
    offsets.writeUInt16LE(table - before, 2)
    for (const [slot, place] of places) offsets.writeUInt16LE(table - place, 4 + 2 * slot)
    const virtual = this.push(offsets, 2)
    this.bytes.writeInt32LE(virtual - table, virtual - table)
    return table
  }

  finish(root: number): Buffer {
    this.push(Buffer.alloc((8 - ((this.bytes.length + 4) % 8)) % 8), 1)
    this.reference(root)
    return this.bytes
  }
}

// Enumerations of Schema.fbs and Message.fbs.
const kinds = { int: 2, float: 3, text: 5, fixedSizeList: 16 }
const [version5, schemaMessage, singlePrecision] = [4, 1, 1]
const flag = (value: boolean) => ({ value: Number(value), size: 1 as const })

/** Of a table {id: utf8, embedding: FixedSizeList<columns>} of what NumPy calls '<f4', '|i1' or '|u1'. */
export function arrowSchema(type: string, columns: number): string {
  const out = new FlatBuffer()
  const field = (name: string, kind: number, typeAt: number, children: number[]) => {
    const [nameAt, childrenAt] = [out.text(name), out.list(children)]
    return out.table({ 0: { at: nameAt }, 1: flag(false), 2: { value: kind, size: 1 }, 3: { at: typeAt }, 5: { at: childrenAt } })
  }
  const element =
    type === '<f4'
      ? field('element', kinds.float, out.table({ 0: { value: singlePrecision, size: 2 } }), [])
      : field('element', kinds.int, out.table({ 0: { value: 8, size: 4 }, 1: flag(type === '|i1') }), [])
  const embedding = field('embedding', kinds.fixedSizeList, out.table({ 0: { value: columns, size: 4 } }), [element])
  const id = field('id', kinds.text, out.table({}), [])
  const schema = out.table({ 1: { at: out.list([id, embedding]) } })
  const message = out.finish(out.table({ 0: { value: version5, size: 2 }, 1: { value: schemaMessage, size: 1 }, 2: { at: schema }, 3: { value: 0, size: 8 } }))
  const head = Buffer.alloc(8, 0xff)
  head.writeUInt32LE(message.length, 4)
  return Buffer.concat([head, message]).toString('base64')
}

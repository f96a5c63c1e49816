// Decoders of sound, run by audio-worker.ts: a file or its bytes in, one channel of float samples out. WAV is read here; MP3, Ogg
// Vorbis, Ogg Opus and FLAC by WebAssembly decoders; everything else by ffmpeg. Piece by piece, so that memory is bounded by what is
// kept.
import { createReadStream } from 'node:fs'
import { ConanError } from '../errors'
import { audioStream, fileOf } from './ffmpeg'

export interface SoundRequest {
  /** A path, or the bytes of a file. */
  source: string | Uint8Array
  /** How errors call it. */
  name: string
  /** The part that is wanted, in seconds. */
  start: number
  duration: number | undefined
  /** More than this without a wanted duration is an error, before it is decoded. */
  limitSeconds: number
}

export interface Sound {
  samples: Float32Array
  samplingRate: number
}

interface Piece {
  /** Samples of each channel, equally many. */
  channels: Float32Array[]
  samplingRate: number
}

const pieceBytes = 1 << 18

async function* bytesOf(source: string | Uint8Array): AsyncGenerator<Uint8Array> {
  if (typeof source === 'string') yield* createReadStream(source, { highWaterMark: pieceBytes })
  else for (let at = 0; at < source.length; at += pieceBytes) yield source.subarray(at, at + pieceBytes)
}

/** As many bytes as are asked for, of a stream of pieces of any size. */
class ByteQueue {
  private pieces: Uint8Array[] = []
  private held = 0

  constructor(private readonly stream: AsyncIterator<Uint8Array>) {}

  /** Fewer at the end of the stream. */
  async take(count: number): Promise<Buffer> {
    while (this.held < count) {
      const { value, done } = await this.stream.next()
      if (done) break
      this.pieces.push(value)
      this.held += value.length
    }
    const all = this.pieces.length === 1 ? (this.pieces[0] as Uint8Array) : Buffer.concat(this.pieces)
    const taken = Math.min(count, this.held)
    this.pieces = [all.subarray(taken)]
    this.held -= taken
    return Buffer.from(all.buffer, all.byteOffset, taken)
  }

  async skip(count: number): Promise<void> {
    for (let left = count; left > 0; ) {
      const taken = (await this.take(Math.min(left, pieceBytes))).length
      if (taken === 0) return
      left -= taken
    }
  }
}

interface SampleFormat {
  bytes: number
  numbers: (data: ArrayBuffer) => Uint8Array | Int16Array | Int32Array | Float32Array | Float64Array
  /** The number that stands for silence, and what one more adds. */
  zero: number
  step: number
}

function integers24(data: ArrayBuffer): Int32Array {
  const bytes = new Uint8Array(data)
  const out = new Int32Array(bytes.length / 3)
  for (let i = 0, at = 0; i < out.length; i++, at += 3) out[i] = ((bytes[at]! << 8) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 24)) >> 8
  return out
}

const sampleFormats: Record<string, SampleFormat> = {
  'integer 8': { bytes: 1, numbers: (data) => new Uint8Array(data), zero: 128, step: 2 ** -7 },
  'integer 16': { bytes: 2, numbers: (data) => new Int16Array(data), zero: 0, step: 2 ** -15 },
  'integer 24': { bytes: 3, numbers: integers24, zero: 0, step: 2 ** -23 },
  'integer 32': { bytes: 4, numbers: (data) => new Int32Array(data), zero: 0, step: 2 ** -31 },
  'float 32': { bytes: 4, numbers: (data) => new Float32Array(data), zero: 0, step: 1 },
  'float 64': { bytes: 8, numbers: (data) => new Float64Array(data), zero: 0, step: 1 },
}

/** `frames` samples of each channel, one of each in turn in the file. */
function separated(data: Buffer, frames: number, channels: number, { bytes, numbers, zero, step }: SampleFormat): Float32Array[] {
  const aligned = data.buffer.slice(data.byteOffset, data.byteOffset + frames * channels * bytes) as ArrayBuffer
  const all = numbers(aligned)
  return Array.from({ length: channels }, (_, channel) => {
    const out = new Float32Array(frames)
    for (let i = 0, at = channel; i < frames; i++, at += channels) out[i] = (all[at]! - zero) * step
    return out
  })
}

/** RIFF, RF64 and BW64, with integers or floats, plain or extensible; a size that is not true (a pipe, a cut file) ends with the data. */
async function* wav(stream: AsyncIterator<Uint8Array>, name: string): AsyncGenerator<Piece> {
  const bytes = new ByteQueue(stream)
  const wrong = (expected: string, got: string) => new ConanError('INVALID_INPUT', `${name}: WAV: expected ${expected}, got ${got}`)
  await bytes.skip(12)
  let format: { channels: number; samplingRate: number; sample: SampleFormat } | undefined
  for (;;) {
    const header = await bytes.take(8)
    if (header.length < 8) throw wrong('a data chunk', 'the end of the file')
    const [id, size] = [header.toString('latin1', 0, 4), header.readUInt32LE(4)]
    if (id === 'data') {
      if (!format) throw wrong('a format before the data', 'none')
      const { channels, samplingRate, sample } = format
      const block = channels * sample.bytes
      // 0 and the largest number stand for "until the end" in streams, and for "see ds64" in RF64.
      let left = size === 0 || size >= 0xffffff00 ? Number.POSITIVE_INFINITY : size
      while (left >= block) {
        const data = await bytes.take(Math.min(left, Math.floor(pieceBytes / block) * block || block))
        const frames = Math.floor(data.length / block)
        if (frames === 0) return
        yield { channels: separated(data, frames, channels, sample), samplingRate }
        left -= data.length
      }
      return
    }
    if (id !== 'fmt ') {
      await bytes.skip(size + (size % 2))
      continue
    }
    const chunk = await bytes.take(size + (size % 2))
    if (chunk.length < 16) throw wrong('a format of 16 bytes or more', `${chunk.length}`)
    let tag = chunk.readUInt16LE(0)
    const [channels, samplingRate, bits] = [chunk.readUInt16LE(2), chunk.readUInt32LE(4), chunk.readUInt16LE(14)]
    if (tag === 0xfffe && chunk.length >= 26) tag = chunk.readUInt16LE(24) // extensible: the first bytes of its GUID
    const kind = tag === 1 ? 'integer' : tag === 3 ? 'float' : undefined
    const sample = sampleFormats[`${kind} ${Math.ceil(bits / 8) * 8}`]
    if (!sample) throw wrong('integers of 8 to 32 bits or floats of 32 or 64', `format ${tag} of ${bits} bits`)
    if (channels < 1 || chunk.readUInt16LE(12) !== channels * sample.bytes)
      throw wrong('whole samples', `${channels} channels in ${chunk.readUInt16LE(12)} bytes`)
    format = { channels, samplingRate, sample }
  }
}

/** What the WebAssembly decoders have in common. */
interface WasmDecoder {
  ready: Promise<void>
  decode(data: Uint8Array): Decoded | Promise<Decoded>
  flush?(): Decoded | Promise<Decoded>
  free(): void
}
interface Decoded {
  channelData: Float32Array[]
  samplesDecoded: number
  sampleRate: number
  errors: { message: string }[]
}

const wasmDecoders: Record<string, () => Promise<WasmDecoder>> = {
  mp3: async () => new (await import('mpg123-decoder')).MPEGDecoder(),
  vorbis: async () => new (await import('@wasm-audio-decoders/ogg-vorbis')).OggVorbisDecoder() as WasmDecoder,
  opus: async () => new (await import('ogg-opus-decoder')).OggOpusDecoder({ forceStereo: false }) as WasmDecoder,
  flac: async () => new (await import('@wasm-audio-decoders/flac')).FLACDecoder() as WasmDecoder,
}

/** Samples of each channel that a FLAC file says it has; undefined where it does not know. */
function flacLength(head: Buffer): number | undefined {
  if (head.length < 26 || (head[4]! & 0x7f) !== 0) return undefined
  return (head[21]! & 0x0f) * 2 ** 32 + head.readUInt32BE(22) || undefined
}

async function* wasm(kind: string, stream: AsyncIterator<Uint8Array>, name: string, expected: number | undefined): AsyncGenerator<Piece> {
  const decoder = await wasmDecoders[kind]!()
  await decoder.ready
  let problem: string | undefined
  let samples = 0
  const undecodable = (why: string | undefined) => new Undecodable(`${name}: cannot be decoded as ${kind}${why === undefined ? '' : `: ${why}`}`)
  try {
    for (let ended = false; !ended; ) {
      const { value, done } = await stream.next()
      ended = done === true
      let made: Decoded | undefined
      try {
        made = ended ? await decoder.flush?.() : await decoder.decode(value)
      } catch {
        throw undecodable(undefined) // the message of a fault in a decoder says nothing of the file
      }
      problem ??= made?.errors[0]?.message
      if (!made || made.samplesDecoded === 0) continue
      samples += made.samplesDecoded
      yield { channels: made.channelData.map((channel) => channel.subarray(0, made.samplesDecoded)), samplingRate: made.sampleRate }
    }
  } finally {
    decoder.free()
  }
  if (samples === 0) throw undecodable(problem)
  if (expected !== undefined && samples < expected)
    throw new Undecodable(`${name}: ${kind}: expected ${expected} samples, which it says it has, got ${samples}`)
}

/** What a decoder of ours could make nothing of; ffmpeg may. */
class Undecodable extends ConanError {
  constructor(message: string) {
    super('INVALID_INPUT', message)
  }
}

/** Whatever ffmpeg reads. */
async function* anything(source: string | Uint8Array, name: string): AsyncGenerator<Piece> {
  const { file, close } = await fileOf(source)
  try {
    yield* wav(audioStream(file, name), name)
  } finally {
    await close()
  }
}

/** By its first bytes, never by its name. */
function kindOf(head: Buffer): string | undefined {
  const text = head.toString('latin1')
  if (/^(RIFF|RF64|BW64)....WAVE/s.test(text)) return 'wav'
  if (text.startsWith('fLaC')) return 'flac'
  if (text.startsWith('OggS'))
    return text.includes('\x01vorbis') ? 'vorbis' : text.includes('OpusHead') ? 'opus' : text.includes('\x7fFLAC') ? 'flac' : undefined
  // An MPEG frame of layer III; layer 0 would be AAC.
  if (text.startsWith('ID3') || (head.length > 2 && head[0] === 0xff && (head[1]! & 0xe6) === 0xe2)) return 'mp3'
  return undefined
}

/** Decodes a sound, mixes its channels by their mean, and keeps the part that is wanted. */
export async function decodeSound(request: SoundRequest): Promise<Sound> {
  const stream = bytesOf(request.source)
  try {
    return await decoded(stream, request)
  } catch (error) {
    if (!(error instanceof Undecodable)) throw error
    // The parser of FLAC frames loses frames in which something looks like the beginning of another.
    return await decoded(undefined, request).catch(() => {
      throw error
    })
  } finally {
    // A file of which not everything was asked for is still open.
    await stream.return(undefined)
  }
}

/** What is to be read how: by its first bytes; without a stream by ffmpeg. */
async function piecesOf(stream: AsyncGenerator<Uint8Array> | undefined, source: string | Uint8Array, name: string): Promise<AsyncGenerator<Piece>> {
  if (!stream) return anything(source, name)
  const first = (await stream.next()).value as Uint8Array | undefined
  if (!first?.length) throw new ConanError('INVALID_INPUT', `${name}: expected a sound, got no bytes`)
  const whole = (async function* () {
    yield first
    yield* stream
  })()
  const head = Buffer.from(first.buffer, first.byteOffset, Math.min(first.length, 96))
  const kind = kindOf(head)
  if (kind === 'wav') return wav(whole, name)
  return kind === undefined ? anything(source, name) : wasm(kind, whole, name, kind === 'flac' ? flacLength(head) : undefined)
}

async function decoded(stream: AsyncGenerator<Uint8Array> | undefined, { source, name, start, duration, limitSeconds }: SoundRequest): Promise<Sound> {
  const pieces = await piecesOf(stream, source, name)
  const kept: Float32Array[] = []
  let samplingRate = 0
  let seen = 0 // samples before the piece
  let length = 0
  for await (const piece of pieces) {
    if (samplingRate !== 0 && piece.samplingRate !== samplingRate)
      throw new ConanError('INVALID_INPUT', `${name}: expected one sampling rate, got ${samplingRate} and ${piece.samplingRate}`)
    samplingRate = piece.samplingRate
    if (samplingRate < 1000 || samplingRate > 768000)
      throw new ConanError('INVALID_INPUT', `${name}: expected a sampling rate of 1000 to 768000, got ${samplingRate}`)
    const frames = piece.channels[0]!.length
    const from = Math.round(start * samplingRate)
    const to = duration === undefined ? Number.POSITIVE_INFINITY : from + Math.round(duration * samplingRate)
    const [a, b] = [Math.min(frames, Math.max(0, from - seen)), Math.min(frames, to - seen)]
    if (b > a) kept.push(mixed(piece.channels, a, b))
    length += Math.max(0, b - a)
    seen += frames
    if (seen >= to) break
    if (length > limitSeconds * samplingRate)
      throw new ConanError(
        'INPUT_TOO_LONG',
        `${name}: expected at most ${Math.floor(limitSeconds)} seconds of sound, got more (start and duration choose a part)`,
      )
  }
  if (length === 0) throw new ConanError('INVALID_INPUT', `${name}: expected samples${start > 0 ? ` after ${start} seconds` : ''}, found none`)
  const samples = new Float32Array(length)
  kept.reduce((at, part) => {
    samples.set(part, at)
    return at + part.length
  }, 0)
  return { samples, samplingRate }
}

/** Samples [from, to) of the mean of all channels. */
export function mixed(channels: Float32Array[], from: number, to: number): Float32Array {
  const out = channels[0]!.slice(from, to)
  if (channels.length === 1) return out
  for (const channel of channels.slice(1)) for (let i = 0; i < out.length; i++) out[i]! += channel[from + i]!
  for (let i = 0; i < out.length; i++) out[i]! /= channels.length
  return out
}

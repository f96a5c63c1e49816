// Videos without ffmpeg: through @napi-rs/webcodecs where the user has installed it. It is no dependency of ours, not even an
// optional one, since its binary holds GPL code.
import { createRequire } from 'node:module'
import { setTimeout } from 'node:timers/promises'
import { ConanError } from '../errors'
import type { PacketTimes } from './ffmpeg'
import { type RawImage, undecodable } from './image'

/** What is used of the package. Times are in microseconds. */
interface Chunk {
  timestamp: number
  duration: number | null
}
interface Frame {
  timestamp: number
  displayWidth: number
  displayHeight: number
  allocationSize(options: { format: 'RGBA' }): number
  copyTo(destination: Uint8Array, options: { format: 'RGBA' }): Promise<unknown>
  close(): void
}
interface Demuxer {
  load(path: string): Promise<void>
  readonly videoDecoderConfig: { codec: string } | null
  demuxAsync(count?: number): Promise<void>
  readonly state: string
  close(): void
}
interface Library {
  Mp4Demuxer: DemuxerClass
  WebMDemuxer: DemuxerClass
  MkvDemuxer: DemuxerClass
  VideoDecoder: new (init: {
    output: (frame: Frame) => void
    error: (error: Error) => void
  }) => { configure(config: object): void; decode(chunk: Chunk): void; readonly decodeQueueSize: number; flush(): Promise<void>; close(): void }
}
type DemuxerClass = new (init: { videoOutput: (chunk: Chunk) => void; error: (error: Error) => void }) => Demuxer

let loaded: Library | undefined

function library(): Library | undefined {
  try {
    loaded ??= createRequire(__filename)('@napi-rs/webcodecs') as Library
    return loaded
  } catch {
    return undefined
  }
}

/** Packets read, and waiting for the decoder, at one time. */
const ahead = 16

/** The packets of a file's video stream, group by group. */
async function* packets(found: Library, file: string, matroska: boolean, name: string): AsyncGenerator<{ config: object; chunks: Chunk[] }> {
  const chunks: Chunk[] = []
  let failure: Error | undefined
  const open = async (Class: DemuxerClass) => {
    const opened = new Class({ videoOutput: (chunk) => chunks.push(chunk), error: (error) => (failure = error) })
    await opened.load(file)
    return opened
  }
  const demuxer = await (matroska ? open(found.WebMDemuxer).catch(() => open(found.MkvDemuxer)) : open(found.Mp4Demuxer)).catch((error) => {
    throw undecodable(name, error)
  })
  try {
    const config = demuxer.videoDecoderConfig
    if (!config) throw new ConanError('INVALID_INPUT', `${name}: expected a video stream, found none`)
    while (demuxer.state !== 'ended' && demuxer.state !== 'closed') {
      await demuxer.demuxAsync(ahead)
      if (failure) throw undecodable(name, failure)
      yield { config, chunks: chunks.splice(0) }
    }
    // The package hands packets over a little after it says that it has read them.
    for (await setTimeout(10); chunks.length; await setTimeout(10)) yield { config, chunks: chunks.splice(0) }
  } finally {
    demuxer.close()
  }
}

async function pixelsOf(frame: Frame): Promise<RawImage> {
  const { displayWidth: width, displayHeight: height } = frame
  const data = new Uint8Array(frame.allocationSize({ format: 'RGBA' }))
  await frame.copyTo(data, { format: 'RGBA' })
  frame.close()
  return { data, width, height, channels: 4 }
}

/** Whether the package is there for files that begin like this one. */
export function webcodecsReads(head: Buffer): boolean {
  return (isMatroska(head) || head.toString('latin1', 4, 8) === 'ftyp') && library() !== undefined
}

const isMatroska = (head: Buffer) => head.length >= 4 && head.readUInt32BE(0) === 0x1a45dfa3

/** The presentation times of a file's video stream, without decoding it. `head`: the first bytes of the file. */
export async function webcodecsTimes(file: string, head: Buffer, name: string): Promise<PacketTimes> {
  const seen: { time: number; duration: number }[] = []
  for await (const { chunks } of packets(library()!, file, isMatroska(head), name))
    for (const { timestamp, duration } of chunks) seen.push({ time: timestamp / 1e6, duration: (duration ?? 0) / 1e6 })
  if (seen.length === 0) throw new ConanError('INVALID_INPUT', `${name}: expected a video stream with frames, found none`)
  seen.sort((a, b) => a.time - b.time)
  // A millisecond is what Matroska rounds to; MP4 is finer.
  return { times: seen.map(({ time }) => time), lastDuration: seen.at(-1)!.duration, tick: 1e-3 }
}

/** Frames `indices` (rising), counted as they are shown. The package's own timestamps of decoded frames are not in that order. */
export async function* webcodecsFrames(file: string, head: Buffer, indices: number[], name: string): AsyncGenerator<RawImage> {
  const found = library()!
  const wanted = new Set(indices)
  let shown = 0
  let failure: Error | undefined
  const copies: Promise<RawImage>[] = []
  const decoder = new found.VideoDecoder({
    output: (frame) => (wanted.has(shown++) ? copies.push(pixelsOf(frame)) : frame.close()),
    error: (error) => (failure = error),
  })
  let made = 0
  try {
    let configured = false
    for await (const { config, chunks } of packets(found, file, isMatroska(head), name)) {
      if (!configured) decoder.configure(config)
      configured = true
      for (const chunk of chunks) decoder.decode(chunk)
      while (decoder.decodeQueueSize > ahead && !failure) await setTimeout(1)
      if (failure) break
      for (; copies.length; made++) yield await copies.shift()!
      if (made === indices.length) return
    }
    await decoder.flush().catch((error) => (failure ??= error))
    await setTimeout(10)
    for (; copies.length; made++) yield await copies.shift()!
    if (made === indices.length) return
    if (failure) throw undecodable(name, failure)
    throw new ConanError('INVALID_INPUT', `${name}: ends early: expected ${indices.length} frames to decode, got ${made}`)
  } finally {
    decoder.close()
  }
}

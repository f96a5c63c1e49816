// Videos: which frames are taken, at what times they stand, and the patches made of them two by two. Animated GIF and WebP are
// decoded by sharp, everything else by ffmpeg (or WebCodecs, see webcodecs.ts), frame by frame, so that memory stays bounded.
import { closeSync, openSync, readSync } from 'node:fs'
import { binding, type NativePictures } from '../binding'
import { asConanError, ConanError, shown } from '../errors'
import { fileOf, type PacketTimes, videoFrames, videoTimes } from './ffmpeg'
import { decodeImage, forSharp, type ImageInput, type RawImage, source, undecodable } from './image'
import { roundHalfEven, smartResizeVideo, type VideoSettings } from './processor'
import { type Local, localBy } from './remote'
import { webcodecsFrames, webcodecsReads, webcodecsTimes } from './webcodecs'

/** A path, the bytes of a file, a file: or data: URL, or frames in order. */
export type VideoInput = string | URL | Uint8Array | VideoFrames

export interface VideoFrames {
  frames: ImageInput[]
  /** Frames per second; default 24, as transformers assumes. */
  fps?: number
}

/** A video that has been opened: the times of its frames, and how to get at them. */
export interface Footage {
  /** Seconds from the first frame. */
  times: number[]
  fps: number
  frames(indices: number[]): AsyncIterable<ImageInput>
  close?(): Promise<void>
}

/** One video for the vision tower: a picture for each two frames, and the time at which each stands. */
export interface VideoPatches {
  pictures: NativePictures
  seconds: number[]
}

export function isFrames(input: unknown): input is VideoFrames {
  return typeof input === 'object' && input !== null && 'frames' in input
}

/** Decoded pixels of an animation that are held at once. */
const blockPixels = 1 << 26

/**
 * Times and rate of frames that a container puts at `given` seconds. At a steady rate, up to the container's own rounding, they
 * are whole multiples of a frame's length, as the reference takes them to be; else they stay what they are.
 */
export function steadyTimes({ times: given, lastDuration, tick }: PacketTimes): { times: number[]; fps: number } {
  const first = given[0] as number
  const times = given.map((time) => time - first)
  const last = times.at(-1) as number
  if (times.length === 1) return { times, fps: lastDuration > 0 ? 1 / lastDuration : 24 }
  const measured = (times.length - 1) / last
  for (const fps of [Math.round(measured), Math.round(measured * 1.001) / 1.001, measured])
    if (fps > 0 && times.every((time, i) => Math.abs(time - i / fps) <= tick * 1.01)) return { times: times.map((_, i) => i / fps), fps }
  return { times, fps: times.length / (last + (lastDuration || last / (times.length - 1))) }
}

/**
 * The frames that are taken (transformers, sample_frames of Qwen3-VL's video processor): as many as `fps` asks for, within the
 * limits, evenly from the first to the last.
 */
export function sampleFrames(total: number, fps: number, settings: Pick<VideoSettings, 'fps' | 'minFrames' | 'maxFrames'>): number[] {
  const wanted = Math.floor((total / fps) * settings.fps)
  const count = Math.min(Math.max(wanted, settings.minFrames), settings.maxFrames, total)
  if (count === 1) return [0]
  const step = (total - 1) / (count - 1)
  return Array.from({ length: count }, (_, i) => (i === count - 1 ? total - 1 : roundHalfEven(i * step)))
}

/** A time as it stands in a prompt: one decimal, exact halves to the even digit, as Python prints it. */
export function secondsText(seconds: number): string {
  const quarter = Number.isInteger(seconds * 4) && !Number.isInteger(seconds * 2) // only these are halfway in binary too
  return quarter ? (roundHalfEven(seconds * 10) / 10).toFixed(1) : seconds.toFixed(1)
}

function givenFrames({ frames, fps = 24 }: VideoFrames): Footage {
  if (!Array.isArray(frames) || frames.length === 0) throw new ConanError('INVALID_INPUT', `video: expected at least one frame, got ${shown(frames)}`)
  if (!(fps > 0 && Number.isFinite(fps))) throw new ConanError('INVALID_INPUT', `video: fps: expected a positive number, got ${shown(fps)}`)
  return {
    times: frames.map((_, i) => i / fps),
    fps,
    async *frames(indices) {
      for (const index of indices) yield frames[index] as ImageInput
    },
  }
}

/** Animated GIF and WebP. */
async function animation(bytes: string | Uint8Array, name: string): Promise<Footage> {
  const { default: sharp } = await import('sharp')
  const decoded = <T>(work: Promise<T>): Promise<T> =>
    work.catch((error) => {
      throw undecodable(name, error)
    })
  const { pages = 1, delay, width, pageHeight, height } = await decoded(sharp(bytes, { animated: true }).metadata())
  const lengths = Array.from({ length: pages }, (_, i) => ((delay?.[i] ?? 0) > 10 ? (delay![i] as number) : 100) / 1000) // 10 ms and less mean "as usual" to viewers
  const starts = lengths.map(
    (
      (at) => (length) =>
        (at += length) - length
    )(0),
  )
  const { times, fps } = steadyTimes({ times: starts, lastDuration: lengths.at(-1) as number, tick: 1e-6 })
  const block = Math.max(1, Math.floor(blockPixels / (width * (pageHeight ?? height))))
  return {
    times,
    fps,
    async *frames(indices) {
      for (let first = 0, next = 0; next < indices.length; first += block) {
        const count = Math.min(block, pages - first)
        if (indices[next]! >= first + count) continue
        const pixels = sharp(bytes, { page: first, pages: count, failOn: 'error' }).removeAlpha().toColourspace('srgb').raw({ depth: 'uchar' })
        const { data, info } = await decoded(pixels.toBuffer({ resolveWithObject: true }))
        const [frameHeight, channels] = [info.height / count, info.channels as RawImage['channels']]
        const size = info.width * frameHeight * channels
        for (; next < indices.length && indices[next]! < first + count; next++) {
          const at = (indices[next]! - first) * size
          yield { data: data.subarray(at, at + size), width: info.width, height: frameHeight, channels }
        }
      }
    },
  }
}

function firstBytes(file: string, count: number): Buffer {
  const descriptor = openSync(file, 'r')
  try {
    const bytes = Buffer.alloc(count)
    return bytes.subarray(0, readSync(descriptor, bytes, 0, count, 0))
  } finally {
    closeSync(descriptor)
  }
}

export async function openVideo(input: VideoInput): Promise<Footage & { name: string }> {
  if (isFrames(input)) return { ...givenFrames(input), name: 'video of given frames' }
  const { bytes, name } = source(input, 'video')
  const head = typeof bytes === 'string' ? firstBytes(bytes, 16) : Buffer.from(bytes.subarray(0, 16))
  if (head.length === 0) throw new ConanError('INVALID_INPUT', `${name}: expected a video, got no bytes`)
  const isPicture = /^(GIF8|RIFF....WEBP|\x89PNG)/s.test(head.toString('latin1'))
  if (isPicture && head[0] !== 0x89) return { ...(await animation(await forSharp(bytes), name)), name }

  const { file, close } = await fileOf(bytes)
  try {
    return { ...(await containerFootage(file, head, name)), name, close }
  } catch (error) {
    await close()
    throw error
  }
}

async function containerFootage(file: string, head: Buffer, name: string): Promise<Footage> {
  try {
    const packets = await videoTimes(file, name)
    return { ...steadyTimes(packets), frames: (indices) => videoFrames(file, packets, indices, name) }
  } catch (error) {
    if ((error as ConanError).code !== 'FFMPEG_MISSING' || !webcodecsReads(head)) throw error
    return { ...steadyTimes(await webcodecsTimes(file, head, name)), frames: (indices) => webcodecsFrames(file, head, indices, name) }
  }
}

/** One video as pictures of two frames each; an odd last frame stands twice. */
export async function videoPatches(input: VideoInput, settings: VideoSettings, local: Local = localBy(undefined)): Promise<VideoPatches> {
  const { times, fps, frames, close, name } = await openVideo(input)
  try {
    const length = times.at(-1)!
    if (settings.maxSeconds !== undefined && length > settings.maxSeconds)
      throw new ConanError('INPUT_TOO_LONG', `expected at most ${settings.maxSeconds} seconds, got ${Math.ceil(length)}`)
    const indices = sampleFrames(times.length, fps, settings)
    const { patch, temporalPatch, merge, mean, deviation } = settings
    const groups = Math.ceil(indices.length / temporalPatch)
    const at = (i: number) => times[indices[Math.min(i, indices.length - 1)]!]!
    const seconds = Array.from({ length: groups }, (_, g) => (at(g * temporalPatch) + at((g + 1) * temporalPatch - 1)) / 2)
    let size: { from: { width: number; height: number }; to: { width: number; height: number } } | undefined
    const patches: NativePictures['patches'] = []
    let group: Uint8Array[] = []
    const flush = async () => {
      const { from, to } = size!
      const layout = { toWidth: to.width, toHeight: to.height, patch, temporalPatch, merge }
      patches.push({ bytes: await binding().patches(group, from.width, from.height, layout), mean, deviation })
      group = []
    }
    for await (const frame of frames(indices)) {
      const { rgb, width, height } = await decodeImage(await local(frame, 'frame'), settings.maxInputPixels)
      size ??= { from: { width, height }, to: smartResizeVideo(Math.max(indices.length, temporalPatch), width, height, settings) }
      if (width !== size.from.width || height !== size.from.height)
        throw new ConanError('INVALID_INPUT', `expected frames of one size, got ${size.from.width} x ${size.from.height} and ${width} x ${height}`)
      group.push(rgb)
      if (group.length === temporalPatch) await flush()
    }
    if (group.length) await flush()
    const [rows, columns] = [size!.to.height / patch, size!.to.width / patch]
    return { pictures: { patches, grids: Int32Array.from({ length: 2 * groups }, (_, i) => (i % 2 ? columns : rows)) }, seconds }
  } catch (error) {
    const known = asConanError(error)
    throw known.message.startsWith(name) ? known : new ConanError(known.code, `${name}: ${known.message}`, { cause: error })
  } finally {
    await close?.()
  }
}

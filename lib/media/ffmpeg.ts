// Videos in any container, through the ffmpeg program of the system: what times its frames have, and the frames themselves over a
// pipe. It is never linked or shipped, so its licence stays its own.
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import type { Readable } from 'node:stream'
import { ConanError } from '../errors'
import type { RawImage } from './image'

export interface PacketTimes {
  /** Presentation times in seconds from the container's start, rising. */
  times: number[]
  /** How long the last one is shown, in seconds; 0: not known. */
  lastDuration: number
  /** The unit in which the container counts time, in seconds. */
  tick: number
}

const program = () => process.env.CONAN_FFMPEG || 'ffmpeg'

/** Major and minor version of an ffmpeg that answered, by program. A build from git counts as new. */
const versions = new Map<string, number>()

function missing(what: string, cause: unknown): ConanError {
  return new ConanError(
    'FFMPEG_MISSING',
    `${what}: decoding it takes ffmpeg, expected as ${JSON.stringify(program())} (CONAN_FFMPEG, else on PATH), found none. ` +
      'Install it: apt-get install ffmpeg, dnf install ffmpeg-free, brew install ffmpeg or winget install ffmpeg',
    { cause },
  )
}

type Child = ChildProcessByStdio<null, Readable, Readable>

/** A running ffmpeg; `outcome` waits for its end and fails with what it said. */
function start(args: string[], what: string): { child: Child; outcome: () => Promise<void> } {
  const child = spawn(program(), ['-hide_banner', '-nostdin', '-v', 'error', ...args], { stdio: ['ignore', 'pipe', 'pipe'], windowsHide: true })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    if (said.length < 1 << 16) said += chunk.toString()
  })
  let failure: Error | undefined
  const ended = new Promise<number | null>((resolve) => {
    child.on('error', (error) => {
      failure = error
      resolve(null)
    })
    child.on('close', resolve)
  })
  return {
    child,
    async outcome() {
      const code = await ended
      if (failure)
        throw (failure as NodeJS.ErrnoException).code === 'ENOENT' ? missing(what, failure) : new ConanError('FILE_IO', `${what}: ffmpeg: ${failure.message}`)
      if (code !== 0) throw new ConanError('INVALID_INPUT', `${what}: cannot be decoded: ${oneLine(said) || `ffmpeg ended with code ${code}`}`)
    },
  }
}

/** What ffmpeg said, on one line: the first lines name the cause, the last the consequence. */
const oneLine = (text: string) => text.trim().split('\n').slice(0, 4).join('; ').slice(0, 400)

/** What a program prints; a stream that breaks off is at its end, and the program's outcome says why. */
async function* outputOf({ stdout }: Child): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of stdout) yield chunk
  } catch {}
}

/** Whether the program is there, and which version it is. */
async function version(what: string): Promise<number> {
  const known = versions.get(program())
  if (known !== undefined) return known
  const { child, outcome } = start(['-version'], what)
  let text = ''
  for await (const chunk of outputOf(child)) text += chunk
  await outcome()
  const found = /^ffmpeg version n?(\d+)\.(\d+)/.exec(text)
  const read = found ? Number(found[1]) + Number(found[2]) / 100 : 1000
  versions.set(program(), read)
  return read
}

/** A file name as ffmpeg's -i takes it: never as a protocol. */
const input = (file: string) => ['-i', `file:${file}`]

/**
 * The presentation times of a file's first video stream (cover pictures do not count), without decoding it.
 *
 * @throws ConanError FFMPEG_MISSING, INVALID_INPUT (no video, damaged)
 */
export async function videoTimes(file: string, name: string): Promise<PacketTimes> {
  await version(name)
  const { child, outcome } = start([...input(file), '-map', '0:V:0', '-c', 'copy', '-f', 'framecrc', '-'], name)
  let tick = 0
  const packets: { pts: number; duration: number }[] = []
  let rest = ''
  for await (const chunk of outputOf(child)) {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() as string
    for (const line of lines) {
      const base = /^#tb 0: (\d+)\/(\d+)/.exec(line)
      if (base) tick = Number(base[1]) / Number(base[2])
      if (line.startsWith('#')) continue
      const [, , pts, duration] = line.split(',')
      if (Number.isFinite(Number(pts))) packets.push({ pts: Number(pts), duration: Number(duration) })
    }
  }
  try {
    await outcome()
  } catch (error) {
    // What was read of a file that ends early is still a video.
    if (packets.length === 0 || (error as ConanError).code !== 'INVALID_INPUT') throw noVideo(error, name)
  }
  if (packets.length === 0 || tick === 0) throw new ConanError('INVALID_INPUT', `${name}: expected a video stream with frames, found none`)
  packets.sort((a, b) => a.pts - b.pts)
  return { times: packets.map(({ pts }) => pts * tick), lastDuration: (packets.at(-1)!.duration || 0) * tick, tick }
}

function noVideo(error: unknown, name: string): unknown {
  return /matches no streams/.test((error as Error).message)
    ? new ConanError('INVALID_INPUT', `${name}: expected a video stream, found none`, { cause: error })
    : error
}

/** Frames with so many others between them are looked up one by one instead of decoding all. */
const sparse = 300

/**
 * Frames `indices` (rising) of the video whose frames have these times, upright, as RGB.
 *
 * @throws ConanError INVALID_INPUT where the file holds fewer
 */
export async function* videoFrames(file: string, { times }: PacketTimes, indices: number[], name: string): AsyncGenerator<RawImage> {
  if (times.length / indices.length > sparse) {
    for (const index of indices) {
      const before = index === 0 ? times[0]! : (times[index - 1]! + times[index]!) / 2
      yield* ppmFrames(['-ss', Math.max(0, before).toFixed(6), ...input(file), '-map', '0:V:0', '-frames:v', '1'], 1, name)
    }
    return
  }
  const wanted = indices.map((index) => `eq(n,${index})`).join('+')
  const passthrough = (await version(name)) >= 5.01 ? ['-fps_mode', 'passthrough'] : ['-vsync', '0']
  yield* ppmFrames([...input(file), '-map', '0:V:0', '-vf', `select='${wanted}'`, ...passthrough], indices.length, name)
}

/** `count` frames that an ffmpeg with these arguments makes. */
async function* ppmFrames(args: string[], count: number, name: string): AsyncGenerator<RawImage> {
  const { child, outcome } = start([...args, '-c:v', 'ppm', '-pix_fmt', 'rgb24', '-f', 'image2pipe', '-'], name)
  const reader = byteReader(outputOf(child))
  let made = 0
  let ended = false
  try {
    for (; made < count && !ended; made++) {
      // P6, width, height, 255, each followed by one white space, then the pixels
      const header: (string | undefined)[] = []
      for (let i = 0; i < 4; i++) header.push(await reader.word())
      const [width, height] = [Number(header[1]), Number(header[2])]
      const data = header[3] === undefined ? undefined : await reader.bytes(width * height * 3)
      if (data) yield { data, width, height, channels: 3 }
      else ended = true
    }
  } finally {
    if (!ended) {
      child.stdout.destroy()
      child.kill('SIGKILL') // it may still be decoding what nobody needs
    }
  }
  if (!ended) return
  await outcome()
  throw new ConanError('INVALID_INPUT', `${name}: ends early: expected ${count} frames to decode, got ${made - 1}`)
}

function byteReader(chunks: AsyncGenerator<Buffer>) {
  let rest: Buffer = Buffer.alloc(0)
  const more = async (): Promise<boolean> => {
    const { value, done } = await chunks.next()
    if (done) return false
    rest = rest.length ? Buffer.concat([rest, value]) : value
    return true
  }
  return {
    async word(): Promise<string | undefined> {
      for (;;) {
        const end = rest.findIndex((byte) => byte === 10 || byte === 32)
        if (end >= 0) {
          const word = rest.toString('latin1', 0, end)
          rest = rest.subarray(end + 1)
          return word
        }
        if (!(await more())) return undefined
      }
    },
    async bytes(count: number): Promise<Buffer | undefined> {
      const out = Buffer.allocUnsafe(count)
      for (let filled = 0; ; ) {
        const taken = Math.min(rest.length, count - filled)
        rest.copy(out, filled, 0, taken)
        rest = rest.subarray(taken)
        filled += taken
        if (filled === count) return out
        if (!(await more())) return undefined
      }
    },
  }
}

/** ffmpeg needs a file it can seek in: bytes get one for as long as they are looked at. */
export async function fileOf(source: string | Uint8Array): Promise<{ file: string; close(): Promise<void> }> {
  if (typeof source === 'string') return { file: source, close: async () => {} }
  const place = await mkdtemp(path.join(os.tmpdir(), 'conan-media-'))
  const close = () => rm(place, { recursive: true, force: true })
  const file = path.join(place, 'media')
  try {
    await writeFile(file, source)
  } catch (error) {
    await close()
    throw new ConanError('FILE_IO', `${file}: cannot be written: ${(error as Error).message}`, { cause: error })
  }
  return { file, close }
}

/**
 * The first audio stream of a file as a WAV stream of 32-bit floats.
 *
 * @throws ConanError FFMPEG_MISSING, INVALID_INPUT (no audio, damaged)
 */
export async function* audioStream(file: string, name: string): AsyncGenerator<Uint8Array> {
  await version(name)
  const { child, outcome } = start([...input(file), '-map', '0:a:0', '-c:a', 'pcm_f32le', '-f', 'wav', '-'], name)
  let ended = false
  try {
    yield* outputOf(child)
    ended = true
  } finally {
    if (!ended) child.kill('SIGKILL')
  }
  try {
    await outcome()
  } catch (error) {
    throw /matches no streams/.test((error as Error).message)
      ? new ConanError('INVALID_INPUT', `${name}: expected an audio stream, found none`, { cause: error })
      : error
  }
}

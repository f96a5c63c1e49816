// Images: from a path, bytes, a URL or raw pixels to the patches a vision tower takes. Decoding is sharp's, on its own threads;
// resampling and patches are native.
import { existsSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { binding, type NativePictures } from '../binding'
import { asConanError, ConanError, shown } from '../errors'
import { type ImageSettings, smartResize } from './processor'

export interface RawImage {
  /** Row by row, `channels` bytes a pixel. */
  data: Uint8Array
  width: number
  height: number
  channels: 1 | 2 | 3 | 4
}

/** A path, the bytes of a file, a file: or data: URL, or pixels. */
export type ImageInput = string | URL | Uint8Array | RawImage

/** More pixels than any picture that is meant to be looked at: a guard against files made to exhaust memory. */
const mostInputPixels = 268_402_689 // sharp's own: 16383 x 16383

interface Decoded {
  rgb: Uint8Array
  width: number
  height: number
}

export function isRaw(input: unknown): input is RawImage {
  return typeof input === 'object' && input !== null && 'data' in input && 'width' in input
}

/** What `read` makes of a URL, unless it is none. */
function asGiven(url: string, what: string, read: () => string): string {
  try {
    return read()
  } catch (error) {
    throw new ConanError('INVALID_INPUT', `${what} ${shown(url)}: ${(error as Error).message}`, { cause: error })
  }
}

/** Bytes or the path of an existing file, and how errors call it. `what`: image, document, video, audio. */
export function source(input: unknown, what = 'image'): { bytes: string | Uint8Array; name: string } {
  if (input instanceof Uint8Array) return { bytes: input, name: `${what} of ${input.length} bytes` }
  let text = input instanceof URL ? input.href : (input as string)
  if (typeof text !== 'string' || text === '')
    throw new ConanError(
      'INVALID_INPUT',
      `${what}: expected a path, bytes, a file: or data: URL${what === 'image' ? ' or raw pixels' : ''}, got ${shown(input)}`,
    )
  if (text.startsWith('data:')) {
    const found = /^data:[^,]*?(;base64)?,/s.exec(text)
    if (!found) throw new ConanError('INVALID_INPUT', `${what}: expected a data: URL with a comma before its data`)
    const body = text.slice(found[0].length)
    return {
      bytes: found[1]
        ? Buffer.from(body, 'base64')
        : Buffer.from(
            asGiven(text, what, () => decodeURIComponent(body)),
            'latin1',
          ),
      name: `${what} in a data: URL`,
    }
  }
  if (text.startsWith('file:')) text = asGiven(text, what, () => fileURLToPath(text))
  else if (/^[a-z][a-z0-9+.-]+:\/\//i.test(text))
    throw new ConanError('INVALID_INPUT', `${what}: expected a local file, got the remote address ${shown(text)} (the option fetch of embed allows such)`)
  if (!existsSync(text)) throw new ConanError('FILE_IO', `${what} ${text}: expected a file, found none`)
  if (!statSync(text).isFile()) throw new ConanError('FILE_IO', `${what} ${text}: expected a file, found something else`)
  return { bytes: text, name: `${what} ${text}` }
}

/** What sharp is given: it keeps files open for a while, and Windows does not let go of those. */
export const forSharp = async (bytes: string | Uint8Array): Promise<string | Uint8Array> =>
  process.platform === 'win32' && typeof bytes === 'string' ? readFile(bytes) : bytes

/** What a decoder failed with, as the fault of what it was given. */
export const undecodable = (name: string, error: unknown): ConanError =>
  new ConanError('INVALID_INPUT', `${name}: cannot be decoded: ${(error as Error).message}`, { cause: error })

/** 8-bit RGB, upright by its EXIF orientation; alpha is dropped and colour profiles are ignored, as the models' own processors do. */
export async function decodeImage(input: ImageInput, maxInputPixels?: number): Promise<Decoded> {
  if (isRaw(input)) {
    const { data, width, height, channels } = input
    if (
      ![1, 2, 3, 4].includes(channels) ||
      !Number.isInteger(width) ||
      !Number.isInteger(height) ||
      width < 1 ||
      height < 1 ||
      data?.length !== width * height * channels
    )
      throw new ConanError('INVALID_INPUT', `image: expected width * height * channels bytes, got ${data?.length} for ${width} x ${height} x ${channels}`)
    if (maxInputPixels !== undefined && width * height > maxInputPixels)
      throw new ConanError('INVALID_INPUT', `expected at most ${maxInputPixels} pixels, got ${width} x ${height}`)
    if (channels === 3) return { rgb: data, width, height }
    const rgb = new Uint8Array(width * height * 3)
    for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) rgb[i * 3 + c] = data[i * channels + (channels < 3 ? 0 : c)] as number
    return { rgb, width, height }
  }
  const { bytes, name } = source(input)
  if (bytes.length === 0) throw new ConanError('INVALID_INPUT', `${name}: expected an image, got no bytes`)
  try {
    const { default: sharp } = await import('sharp') // when the first image comes: text alone does not wait for it
    const { data, info } = await sharp(await forSharp(bytes), { failOn: 'error', limitInputPixels: maxInputPixels ?? mostInputPixels, ignoreIcc: true })
      .rotate() // by EXIF
      .removeAlpha()
      .toColourspace('srgb')
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true })
    if (info.channels === 3) return { rgb: data, width: info.width, height: info.height }
    return decodeImage({ data, width: info.width, height: info.height, channels: info.channels as 1 })
  } catch (error) {
    if (error instanceof ConanError) throw error
    throw undecodable(name, error)
  }
}

/** One picture for the vision tower. */
export async function imagePatches(input: ImageInput, settings: ImageSettings): Promise<NativePictures> {
  const { rgb, width, height } = await decodeImage(input, settings.maxInputPixels)
  const { patch, temporalPatch, merge, mean, deviation } = settings
  try {
    const to = smartResize(width, height, settings)
    const bytes = await binding().patches([rgb], width, height, { toWidth: to.width, toHeight: to.height, patch, temporalPatch, merge })
    return { patches: [{ bytes, mean, deviation }], grids: Int32Array.of(to.height / patch, to.width / patch) }
  } catch (error) {
    const known = asConanError(error)
    throw new ConanError(known.code, `image: ${known.message}`, { cause: error })
  }
}

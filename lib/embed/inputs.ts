// What embed takes, brought to one form.
import { asConanError, ConanError, shown } from '../errors'
import type { AudioInput, AudioPart } from '../media/audio'
import type { ImageInput } from '../media/image'
import type { VideoInput } from '../media/video'

export interface MediaInput {
  text?: string
  /** One video or several, in order; they stand before everything else. */
  video?: VideoInput | VideoInput[]
  /** One image or several, in order; they stand after the videos. */
  image?: ImageInput | ImageInput[]
  /** A page of a PDF file, or a picture of a page: after the images, before the text. */
  document?: ImageInput
  /** Which page, from 1; may be left out where there is only one. */
  page?: number
  /** Resolution at which the page is rendered; default 144. */
  dpi?: number
  /** One sound or several, in order; after videos, images and pages, before the text. */
  audio?: AudioInput | AudioInput[]
  /** Which part of the sound, in seconds; default all of it. */
  start?: number
  duration?: number
}

/** A string is text, never a path. An object gives one vector, whatever parts it has. */
export type EmbedInput = string | MediaInput

export type Modality = 'text' | 'image' | 'video' | 'document' | 'audio'
export const modalities: readonly Modality[] = ['text', 'image', 'video', 'document', 'audio']

export interface Content {
  text: string | undefined
  videos: VideoInput[]
  images: ImageInput[]
  document?: { file: ImageInput; page: number | undefined; dpi: number | undefined }
  audios: AudioInput[]
  part: AudioPart
  /** What is wrong with the input, which is left out. */
  fault?: ConanError
}

/**
 * @param supported what the model takes
 * @param skip an input that is not that has a `fault` and nothing else, instead of being an error
 */
export function contentOf(input: unknown, index: number, supported: readonly Modality[], skip: boolean): Content {
  try {
    return checkedContent(input, index, supported)
  } catch (error) {
    if (!skip) throw error
    return { text: undefined, videos: [], images: [], audios: [], part: {}, fault: asConanError(error) }
  }
}

function checkedContent(input: unknown, index: number, supported: readonly Modality[]): Content {
  if (typeof input === 'string') return { text: input, videos: [], images: [], audios: [], part: {} }
  if (typeof input === 'object' && input !== null && !Array.isArray(input)) {
    const keys = Object.keys(input)
    const unsupported = keys.filter((key) => (modalities as readonly string[]).includes(key) && !(supported as readonly string[]).includes(key))
    if (unsupported.length) throw new ConanError('INVALID_INPUT', `input ${index}: this model embeds ${supported.join(' and ')}, got ${unsupported.join(', ')}`)
    const { text, video, image, document, page, dpi, audio, start, duration } = input as Omit<MediaInput, 'text'> & { text?: unknown }
    const videos = listOf(video)
    const images = listOf(image)
    const audios = listOf(audio)
    const known: string[] = [...supported, ...(document === undefined ? [] : ['page', 'dpi']), ...(audios.length ? ['start', 'duration'] : [])]
    const whole = typeof text === 'string' || (text === undefined && (videos.length + images.length + audios.length > 0 || document !== undefined))
    if (whole && keys.every((key) => known.includes(key)))
      return {
        text: text as string | undefined,
        videos,
        images,
        ...(document !== undefined && { document: { file: document, page, dpi } }),
        audios,
        part: { ...(start !== undefined && { start }), ...(duration !== undefined && { duration }) },
      }
  }
  throw new ConanError('INVALID_INPUT', `input ${index}: expected a string or { ${supported.join(', ')} }, got ${shown(input)}`)
}

function listOf<T>(value: T | T[] | undefined): T[] {
  return value === undefined ? [] : Array.isArray(value) ? value : [value]
}

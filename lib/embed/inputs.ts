// What embed takes, brought to one form.
import { ConanError, shown } from '../errors'
import type { ImageInput } from '../media/image'

export interface MediaInput {
  text?: string
  /** One image or several, in order; they stand before the text. */
  image?: ImageInput | ImageInput[]
}

/** A string is text, never a path. An object gives one vector, whatever parts it has. */
export type EmbedInput = string | MediaInput

export type Modality = 'text' | 'image' | 'video' | 'document' | 'audio'
export const modalities: readonly Modality[] = ['text', 'image', 'video', 'document', 'audio']

export interface Content {
  text: string | undefined
  images: ImageInput[]
}

/** `supported`: what the model takes. */
export function contentOf(input: unknown, index: number, supported: readonly Modality[]): Content {
  if (typeof input === 'string') return { text: input, images: [] }
  if (typeof input === 'object' && input !== null && !Array.isArray(input)) {
    const keys = Object.keys(input)
    const unsupported = keys.filter((key) => (modalities as readonly string[]).includes(key) && !(supported as readonly string[]).includes(key))
    if (unsupported.length) throw new ConanError('INVALID_INPUT', `input ${index}: this model embeds ${supported.join(' and ')}, got ${unsupported.join(', ')}`)
    const { text, image } = input as { text?: unknown; image?: ImageInput | ImageInput[] }
    const images = image === undefined ? [] : Array.isArray(image) ? image : [image]
    if (
      keys.length > 0 &&
      keys.every((key) => (supported as readonly string[]).includes(key)) &&
      (typeof text === 'string' || (text === undefined && images.length > 0))
    )
      return { text, images }
  }
  throw new ConanError('INVALID_INPUT', `input ${index}: expected a string or { ${supported.join(', ')} }, got ${shown(input)}`)
}

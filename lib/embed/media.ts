// What stands beside text in an input: decoded and prepared for the towers, with the tokens that stand for it in a prompt.
import type { NativeMedia, NativeModelInfo, NativePictures, NativeSounds } from '../binding'
import { asConanError, ConanError } from '../errors'
import type { ModelDirectory } from '../files/model-directory'
import { type AudioInput, type AudioPart, audioFeatures } from '../media/audio'
import { documentImage } from '../media/document'
import { imagePatches } from '../media/image'
import type { AudioSettings, ImageSettings, MediaSettings, VideoSettings } from '../media/processor'
import type { Local } from '../media/remote'
import { secondsText, videoPatches } from '../media/video'
import type { Content } from './inputs'
import type { Placeholders } from './prompts'
import type { Tokenizer } from './tokenizer'

/** One image, video or sound made ready. */
export interface Medium {
  kind: 'image' | 'video' | 'audio'
  /** How many tokens stand for it. */
  tokens: number
  /** What its placeholder token becomes in a rendered prompt. */
  expanded: string
  pictures?: NativePictures
  features?: Float32Array
}

/** The tokens that stand for media in this model's prompts; undefined where it takes none of a kind. Errors: TOKENIZER_INVALID. */
export function placeholdersOf(info: NativeModelInfo, directory: ModelDirectory, tokenizer: Tokenizer): Placeholders {
  const { vision, audio } = directory.mediaTokens
  const around = (kind: Medium['kind'], id: number | null, { start, end }: { start: number; end: number }) => {
    if (id === null) return undefined
    const token = tokenizer.textOf(id)
    if (token === undefined)
      throw new ConanError(
        'TOKENIZER_INVALID',
        `${directory.tokenizerFile}: expected a token ${id}, which config.json says stands for ${plural[kind]}, found none`,
      )
    return { token, start: tokenizer.textOf(start) ?? '', end: tokenizer.textOf(end) ?? '' }
  }
  return { image: around('image', info.imageToken, vision), video: around('video', info.videoToken, vision), audio: around('audio', info.audioToken, audio) }
}

/** Where encoded sounds are kept, by what they were made from. */
export interface SoundCache {
  get(key: string): Float32Array | undefined
  set(key: string, features: Float32Array): void
  /** What tells one sound from another; undefined: this one is not kept. */
  keyOf(input: AudioInput, part: AudioPart): string | undefined
}

const plural = { image: 'images', video: 'videos', audio: 'sounds' }

export class MediaReader {
  /** With it, sounds are handed over encoded; `width`: channels of a feature. */
  cache: (SoundCache & { encode: (media: NativeMedia) => Promise<Float32Array>; width: number }) | undefined

  constructor(
    private readonly placeholders: Placeholders,
    /** Tokens that stand for a clip of so many frames. */
    private readonly audioTokens: (frames: number) => number,
    private readonly maxTokens: number,
    private readonly melBins: number,
  ) {}

  /**
   * Videos, images and the page, sounds: in the order in which they stand in a prompt. Images are decoded together, videos and
   * sounds one at a time, since one alone may fill much memory.
   */
  async read({ videos, images, document, audios, part }: Content, settings: MediaSettings, local: Local, index: number): Promise<Medium[]> {
    const { image, video, audio } = settings
    try {
      const media: Medium[] = []
      if (video) for (const each of videos) media.push(this.video(await videoPatches(await local(each, 'video'), video, local), video))
      if (image) {
        const page = document && (await documentImage(await local(document.file, 'document'), document.page, document.dpi, image.maxInputPixels))
        const all = [...images, ...(page === undefined ? [] : [page])]
        media.push(...(await Promise.all(all.map(async (each) => this.image(await imagePatches(await local(each, 'image'), image), image)))))
      }
      if (audio) for (const each of audios) media.push(await this.sound(await local(each, 'audio'), part, audio))
      return media
    } catch (error) {
      const known = asConanError(error)
      throw new ConanError(known.code, `input ${index}: ${known.message}`, { cause: error })
    }
  }

  /** A rendered prompt with every placeholder token replaced by what stands for its medium. */
  expand(rendered: string, media: Medium[], index: number): string {
    let text = rendered
    for (const kind of ['image', 'video', 'audio'] as const) {
      const place = this.placeholders[kind]
      if (!place) continue
      const own = media.filter((medium) => medium.kind === kind)
      const parts = text.split(place.token)
      if (parts.length !== own.length + 1)
        throw new ConanError(
          'INVALID_INPUT',
          `input ${index}: expected ${place.token} once for each of its ${own.length} ${plural[kind]}, got it ${parts.length - 1} times (it may not stand in a text)`,
        )
      text = parts.reduce((before, part, i) => `${before}${own[i - 1]!.expanded}${part}`)
    }
    return text
  }

  private image(pictures: NativePictures, settings: ImageSettings): Medium {
    const tokens = tokensOf(pictures, settings)
    return { kind: 'image', tokens, expanded: this.placeholders.image!.token.repeat(tokens), pictures }
  }

  /** A time and a framed picture for each two frames, inside the frame that the template has put around it (transformers 5). */
  private video({ pictures, seconds }: { pictures: NativePictures; seconds: number[] }, settings: VideoSettings): Medium {
    const tokens = tokensOf(pictures, settings)
    const { token, start, end } = this.placeholders.video!
    const picture = token.repeat(tokens / seconds.length)
    return { kind: 'video', tokens, expanded: seconds.map((time) => `<${secondsText(time)} seconds>${start}${picture}${end}`).join(''), pictures }
  }

  private async sound(input: AudioInput, part: AudioPart, settings: AudioSettings): Promise<Medium> {
    const of = (features: Float32Array, tokens: number): Medium => ({
      kind: 'audio',
      tokens,
      expanded: this.placeholders.audio!.token.repeat(tokens),
      features,
    })
    const { cache } = this
    const key = cache?.keyOf(input, part)
    const known = key === undefined ? undefined : cache!.get(key)
    if (known) return of(known, known.length / cache!.width)
    const frames = await audioFeatures(input, part, settings, this.limitSeconds(settings))
    if (!cache) return of(frames, this.audioTokens(frames.length / this.melBins))
    const encoded = await cache.encode({ sounds: { features: frames, frames: Int32Array.of(frames.length / this.melBins) } })
    if (key !== undefined) cache.set(key, encoded)
    return of(encoded, encoded.length / cache.width)
  }

  /** Sound of this length has more tokens than an input may have: there is no need to decode on. */
  private limitSeconds({ rate, hop }: AudioSettings): number {
    const seconds = 100
    return (this.maxTokens / this.audioTokens((seconds * rate) / hop)) * seconds + 1
  }
}

/** Tokens that stand for pictures: one for each merge x merge of their patches. */
function tokensOf({ grids }: NativePictures, { merge }: ImageSettings): number {
  let patches = 0
  for (let i = 0; i < grids.length; i += 2) patches += grids[i]! * grids[i + 1]!
  return patches / merge ** 2
}

/** Media of a batch, as the native side takes them; `width`: values in a frame of sound, or `encoded` in a feature. */
export function joined(media: Medium[], width: number, encoded = false): NativeMedia | undefined {
  const pictures = media.flatMap(({ pictures }) => pictures ?? [])
  const features = media.flatMap(({ features }) => features ?? [])
  if (pictures.length + features.length === 0) return undefined
  return {
    pictures: pictures.length
      ? { patches: pictures.flatMap(({ patches }) => patches), grids: Int32Array.from(pictures.flatMap(({ grids }) => [...grids])) }
      : undefined,
    sounds: features.length ? sounds(features, width, encoded) : undefined,
  }
}

function sounds(features: Float32Array[], width: number, encoded: boolean): NativeSounds {
  return { features: concatenated(features), frames: Int32Array.from(features, ({ length }) => length / width), encoded }
}

function concatenated(parts: Float32Array[]): Float32Array {
  if (parts.length === 1) return parts[0] as Float32Array
  const out = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0))
  parts.reduce((at, part) => {
    out.set(part, at)
    return at + part.length
  }, 0)
  return out
}

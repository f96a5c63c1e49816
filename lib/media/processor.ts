// How a model wants its pictures and videos: settings from the directory, in all spellings, and the sizes they lead to.
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { type Json, readJsonIf } from '../files/json'
import { positive } from '../options'

export interface ImageSettings {
  patch: number
  temporalPatch: number
  merge: number
  mean: number[]
  deviation: number[]
  /** Pixels of a picture after resizing, at least and at most; of all frames of a video together. */
  minPixels: number
  maxPixels: number
  /** Pixels of a picture, or of a video's frame, as it is stored; more is an error. */
  maxInputPixels?: number | undefined
}

export interface VideoSettings extends ImageSettings {
  /** Frames taken per second of the video, and how many at least and at most. */
  fps: number
  minFrames: number
  maxFrames: number
  /** Merged patches of a frame at most; undefined: only all frames together are limited. */
  maxFrameTokens: number | undefined
  /** A longer video is an error. */
  maxSeconds?: number | undefined
}

export interface AudioSettings {
  /** Samples per second, and the window and step of the spectrum in samples. */
  rate: number
  window: number
  hop: number
  bins: number
  /** Samples to which shorter clips are padded with silence; undefined: a clip stays as long as it is. */
  paddedSamples: number | undefined
  /** A longer sound is an error, whatever the model would take. */
  maxSeconds?: number | undefined
}

/** What a caller may want otherwise than the model's directory says. */
export interface ProcessorOptions {
  /** Pixels of an image after resizing, at least and at most. */
  minPixels?: number
  maxPixels?: number
  /** Frames taken per second of a video. */
  fps?: number
  minFrames?: number
  maxFrames?: number
  /** Pixels of all frames of a video together, at least and at most. */
  minTotalPixels?: number
  totalPixels?: number
  /** Sounds shorter than this are followed by silence up to it, as Whisper's own preprocessing does up to 30 seconds. Default: none. */
  padSeconds?: number
  /** Pixels of an image, or of a video's frame, as it is stored: more is an error. Default 268 million (16383 x 16383). */
  maxInputPixels?: number
  /** A longer video or sound is an error, before its frames or samples are decoded. Default: what the model takes. */
  maxSeconds?: number
}

const mostPixels = 2 ** 31
const mostFrames = 2 ** 20

/** One processor's part of a directory: a file of its own, or a member of processor_config.json (transformers 5). */
class SettingsReader {
  readonly config: Json
  readonly file: string

  constructor(directory: string, member: string, own: string) {
    const merged = readJsonIf(path.join(directory, 'processor_config.json'))[member] as Json | undefined
    this.file = path.join(directory, merged ? 'processor_config.json' : own)
    this.config = merged ?? readJsonIf(this.file)
  }

  /** At most `most`: what no model has would take all memory there is, or all time. */
  number(key: string, fallback: number, most: number, value = this.config[key]): number {
    if (value === undefined || value === null) return fallback
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > most)
      throw new ConanError('CONFIG_INVALID', `${this.file}: "${key}": expected a whole number from 1 to ${most}, got ${shown(value)}`)
    return value as number
  }

  real(key: string, fallback: number): number {
    const value = this.config[key] ?? fallback
    if (!(typeof value === 'number' && value > 0 && Number.isFinite(value)))
      throw new ConanError('CONFIG_INVALID', `${this.file}: "${key}": expected a positive number, got ${shown(value)}`)
    return value
  }

  private three(key: string): number[] {
    const value = this.config[key] ?? [0.5, 0.5, 0.5]
    if (!Array.isArray(value) || value.length !== 3 || !value.every(Number.isFinite))
      throw new ConanError('CONFIG_INVALID', `${this.file}: "${key}": expected three numbers, got ${shown(value)}`)
    return value
  }

  /** What images and videos have in common; `vision` is the model's own vision_config. */
  common(vision: Json, minPixels: number, maxPixels: number): ImageSettings {
    const size = (this.config.size ?? {}) as Json
    return {
      patch: this.number('patch_size', this.number('patch_size', 16, 1024, vision.patch_size), 1024),
      temporalPatch: this.number('temporal_patch_size', this.number('temporal_patch_size', 2, 64, vision.temporal_patch_size), 64),
      merge: this.number('merge_size', this.number('merge_size', 2, 64, vision.spatial_merge_size), 64),
      mean: this.three('image_mean'),
      deviation: this.three('image_std'),
      // Both are counts of pixels, whatever the newer names suggest.
      minPixels: this.number('min_pixels', minPixels, mostPixels, this.config.min_pixels ?? size.shortest_edge),
      maxPixels: this.number('max_pixels', maxPixels, mostPixels, this.config.max_pixels ?? size.longest_edge),
    }
  }
}

/** preprocessor_config.json, or image_processor inside processor_config.json; what is absent is as in Qwen3-VL. */
export function readImageSettings(directory: string, visionConfig: Json): ImageSettings {
  return new SettingsReader(directory, 'image_processor', 'preprocessor_config.json').common(visionConfig, 65536, 16777216)
}

/** video_preprocessor_config.json, or video_processor inside processor_config.json; what is absent is as in Qwen3-VL. */
export function readVideoSettings(directory: string, visionConfig: Json): VideoSettings {
  const reader = new SettingsReader(directory, 'video_processor', 'video_preprocessor_config.json')
  return {
    ...reader.common(visionConfig, 128 * 32 * 32, 768 * 32 * 32),
    fps: reader.real('fps', 2),
    minFrames: reader.number('min_frames', 4, mostFrames),
    maxFrames: reader.number('max_frames', 768, mostFrames),
    maxFrameTokens: reader.config.cap_pixels_per_frame === true ? reader.number('max_video_tokens', 768, mostPixels) : undefined,
  }
}

export interface MediaSettings {
  image: ImageSettings | undefined
  video: VideoSettings | undefined
  audio: AudioSettings | undefined
}

/** audio_preprocessor_config.json, or feature_extractor inside processor_config.json: the keys of Whisper's feature extractor. */
export function readAudioSettings(directory: string, audioConfig: Json): AudioSettings {
  const reader = new SettingsReader(directory, 'feature_extractor', 'audio_preprocessor_config.json')
  const bins = reader.number('feature_size', reader.number('num_mel_bins', 80, 4096, audioConfig.num_mel_bins), 4096)
  if (audioConfig.num_mel_bins !== undefined && bins !== audioConfig.num_mel_bins)
    throw new ConanError('CONFIG_INVALID', `${reader.file}: "feature_size": expected the encoder's ${audioConfig.num_mel_bins} mel bins, got ${bins}`)
  return {
    rate: reader.number('sampling_rate', 16000, 768000),
    window: reader.number('n_fft', 400, 65536),
    hop: reader.number('hop_length', 160, 65536),
    bins,
    paddedSamples: undefined,
  }
}

/** The caller's wishes on top of the directory's settings. */
export function withOptions({ image, video, audio }: MediaSettings, options: ProcessorOptions = {}): MediaSettings {
  const known = ['minPixels', 'maxPixels', 'fps', 'minFrames', 'maxFrames', 'minTotalPixels', 'totalPixels', 'padSeconds', 'maxInputPixels', 'maxSeconds']
  if (typeof options !== 'object' || options === null) throw new ConanError('INVALID_OPTION', `processor: expected an object, got ${shown(options)}`)
  for (const key of Object.keys(options))
    if (!known.includes(key)) throw new ConanError('INVALID_OPTION', `processor: expected ${known.join(', ')}, got ${shown(key)}`)
  const count = (key: keyof ProcessorOptions, fallback: number) => positive(options[key], `processor.${key}`, fallback)
  const real = (key: 'fps' | 'padSeconds' | 'maxSeconds') => {
    const value = options[key]
    if (value !== undefined && !(value > 0 && Number.isFinite(value)))
      throw new ConanError('INVALID_OPTION', `processor.${key}: expected a positive number, got ${shown(value)}`)
    return value
  }
  const ordered = (low: number, high: number, what: string) => {
    if (low > high) throw new ConanError('INVALID_OPTION', `processor: expected at most as many ${what} at least as at most, got ${low} and ${high}`)
  }
  const [fps, padSeconds] = [real('fps'), real('padSeconds')]
  const maxSeconds = real('maxSeconds')
  const stored = options.maxInputPixels === undefined ? {} : { maxInputPixels: count('maxInputPixels', 0) }
  const length = maxSeconds === undefined ? {} : { maxSeconds }
  const own = image && { ...image, ...stored, minPixels: count('minPixels', image.minPixels), maxPixels: count('maxPixels', image.maxPixels) }
  const clip = video && {
    ...video,
    ...stored,
    ...length,
    fps: fps ?? video.fps,
    minFrames: count('minFrames', Math.min(video.minFrames, options.maxFrames ?? video.minFrames)),
    maxFrames: count('maxFrames', Math.max(video.maxFrames, options.minFrames ?? 0)),
    minPixels: count('minTotalPixels', Math.min(video.minPixels, options.totalPixels ?? video.minPixels)),
    maxPixels: count('totalPixels', video.maxPixels),
  }
  if (own) ordered(own.minPixels, own.maxPixels, 'pixels')
  if (clip) {
    ordered(clip.minFrames, clip.maxFrames, 'frames')
    ordered(clip.minPixels, clip.maxPixels, 'pixels of a video')
  }
  return {
    image: own,
    video: clip,
    audio: audio && { ...audio, ...length, ...(padSeconds !== undefined && { paddedSamples: Math.round(padSeconds * audio.rate) }) },
  }
}

/** Python's round: halves go to the even number. */
export const roundHalfEven = (x: number): number => {
  const low = Math.floor(x)
  return x - low === 0.5 ? low + (low % 2) : Math.round(x)
}

/** The multiples of `factor` nearest to a shape, such that `frames` of them have a number of pixels within the limits. */
function fitted(width: number, height: number, factor: number, frames: number, rounded: number, minPixels: number, maxPixels: number) {
  if (Math.max(width, height) / Math.min(width, height) > 200)
    throw new ConanError('INVALID_INPUT', `expected a shape of at most 200 to 1, got ${width} x ${height}`)
  const [w, h] = [roundHalfEven(width / factor) * factor, roundHalfEven(height / factor) * factor]
  if (rounded * w * h > maxPixels) {
    const beta = Math.sqrt((frames * width * height) / maxPixels)
    const fit = (side: number) => Math.max(factor, Math.floor(side / beta / factor) * factor)
    return { width: fit(width), height: fit(height) }
  }
  if (rounded * w * h < minPixels) {
    const beta = Math.sqrt(minPixels / (frames * width * height))
    const fit = (side: number) => Math.ceil((side * beta) / factor) * factor
    return { width: fit(width), height: fit(height) }
  }
  return { width: w, height: h }
}

/**
 * The size a picture is resized to: multiples of patch * merge, within the pixel limits, of the same shape as far as that
 * goes (transformers, smart_resize of Qwen2-VL).
 */
export function smartResize(width: number, height: number, settings: ImageSettings): { width: number; height: number } {
  return fitted(width, height, settings.patch * settings.merge, 1, 1, settings.minPixels, settings.maxPixels)
}

/** The size to which `frames` frames of a video are resized (transformers, smart_resize of Qwen3-VL's video processor). */
export function smartResizeVideo(frames: number, width: number, height: number, settings: VideoSettings): { width: number; height: number } {
  const { temporalPatch, minPixels, maxFrameTokens } = settings
  const factor = settings.patch * settings.merge
  let maxPixels = settings.maxPixels
  if (maxFrameTokens !== undefined)
    maxPixels = frames * Math.max(Math.min(maxFrameTokens * factor * factor, Math.floor(maxPixels / frames)), Math.floor(minPixels * 1.05))
  let [w, h] = [width, height]
  if (Math.min(w, h) < factor) {
    const scale = Math.max(factor / h, factor / w)
    ;[w, h] = [Math.floor(w * scale), Math.floor(h * scale)]
  }
  return fitted(w, h, factor, frames, roundHalfEven(frames / temporalPatch) * temporalPatch, minPixels, maxPixels)
}

// How a model wants its pictures: settings from the directory, in all spellings, and the sizes they lead to.
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { type Json, readJsonIf } from '../files/json'

export interface ImageSettings {
  patch: number
  temporalPatch: number
  merge: number
  mean: number[]
  deviation: number[]
  /** Pixels of a picture after resizing, at least and at most. */
  minPixels: number
  maxPixels: number
}

/** preprocessor_config.json, or image_processor inside processor_config.json; what is absent is as in Qwen3-VL. */
export function readImageSettings(directory: string, visionConfig: Json): ImageSettings {
  const merged = readJsonIf(path.join(directory, 'processor_config.json')).image_processor as Json | undefined
  const file = path.join(directory, merged ? 'processor_config.json' : 'preprocessor_config.json')
  const config = merged ?? readJsonIf(file)
  const size = (config.size ?? {}) as Json
  const number = (value: unknown, key: string, fallback: number): number => {
    if (value === undefined || value === null) return fallback
    if (!Number.isInteger(value) || (value as number) < 1)
      throw new ConanError('CONFIG_INVALID', `${file}: "${key}": expected a positive whole number, got ${shown(value)}`)
    return value as number
  }
  const three = (key: string): number[] => {
    const value = config[key] ?? [0.5, 0.5, 0.5]
    if (!Array.isArray(value) || value.length !== 3 || !value.every(Number.isFinite))
      throw new ConanError('CONFIG_INVALID', `${file}: "${key}": expected three numbers, got ${shown(value)}`)
    return value
  }
  return {
    patch: number(config.patch_size, 'patch_size', number(visionConfig.patch_size, 'patch_size', 16)),
    temporalPatch: number(config.temporal_patch_size, 'temporal_patch_size', number(visionConfig.temporal_patch_size, 'temporal_patch_size', 2)),
    merge: number(config.merge_size, 'merge_size', number(visionConfig.spatial_merge_size, 'spatial_merge_size', 2)),
    mean: three('image_mean'),
    deviation: three('image_std'),
    // Both are counts of pixels, whatever the newer names suggest.
    minPixels: number(config.min_pixels ?? size.shortest_edge, 'min_pixels', 65536),
    maxPixels: number(config.max_pixels ?? size.longest_edge, 'max_pixels', 16777216),
  }
}

/** Python's round: halves go to the even number. */
const roundHalfEven = (x: number): number => {
  const low = Math.floor(x)
  return x - low === 0.5 ? low + (low % 2) : Math.round(x)
}

/**
 * The size a picture is resized to: multiples of patch * merge, within the pixel limits, of the same shape as far as that
 * goes (transformers, smart_resize of Qwen2-VL).
 */
export function smartResize(width: number, height: number, settings: ImageSettings): { width: number; height: number } {
  const factor = settings.patch * settings.merge
  if (Math.max(width, height) / Math.min(width, height) > 200)
    throw new ConanError('INVALID_INPUT', `image: expected a shape of at most 200 to 1, got ${width} x ${height}`)
  let [w, h] = [roundHalfEven(width / factor) * factor, roundHalfEven(height / factor) * factor]
  if (w * h > settings.maxPixels) {
    const beta = Math.sqrt((width * height) / settings.maxPixels)
    const fit = (side: number) => Math.max(factor, Math.floor(side / beta / factor) * factor)
    ;[w, h] = [fit(width), fit(height)]
  } else if (w * h < settings.minPixels) {
    const beta = Math.sqrt(settings.minPixels / (width * height))
    const fit = (side: number) => Math.ceil((side * beta) / factor) * factor
    ;[w, h] = [fit(width), fit(height)]
  }
  return { width: w, height: h }
}

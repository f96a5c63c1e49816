// Sounds: from a path, bytes, a URL or samples to the log-mel frames that an encoder takes. Decoding happens on threads of its own,
// resampling and the spectrogram are native.
import { binding } from '../binding'
import { asConanError, ConanError, shown } from '../errors'
import { source } from './image'
import type { AudioSettings } from './processor'
import { mixed, type Sound, type SoundRequest } from './sound'
import { Threads } from './thread'

/** A path, the bytes of a file, a file: or data: URL, or samples. */
export type AudioInput = string | URL | Uint8Array | AudioSamples

export interface AudioSamples {
  /** Between -1 and 1; several channels are mixed by their mean. */
  samples: Float32Array | Float32Array[]
  samplingRate: number
}

/** The part of a sound that is meant, in seconds. */
export interface AudioPart {
  start?: number
  duration?: number
}

const decoders = new Threads<SoundRequest>('audio-worker.js')

export function isSamples(input: unknown): input is AudioSamples {
  return typeof input === 'object' && input !== null && 'samples' in input
}

/** One channel as it was recorded. `limitSeconds`: more is an error, unless `duration` says what is wanted. */
export async function decodeAudio(input: AudioInput, { start = 0, duration }: AudioPart = {}, limitSeconds = Number.POSITIVE_INFINITY): Promise<Sound> {
  if (!(start >= 0 && Number.isFinite(start))) throw new ConanError('INVALID_INPUT', `audio: start: expected seconds from 0, got ${shown(start)}`)
  if (duration !== undefined && !(duration > 0 && Number.isFinite(duration)))
    throw new ConanError('INVALID_INPUT', `audio: duration: expected a positive number of seconds, got ${shown(duration)}`)
  if (!isSamples(input)) {
    const { bytes, name } = source(input, 'audio')
    const limit = duration === undefined ? limitSeconds : Number.POSITIVE_INFINITY
    return decoders.least().ask<Sound>({ source: bytes, name, start, duration, limitSeconds: limit })
  }
  const { samples, samplingRate } = input
  const channels = Array.isArray(samples) ? samples : [samples]
  if (channels.length === 0 || !channels.every((channel) => channel instanceof Float32Array && channel.length === channels[0]!.length))
    throw new ConanError('INVALID_INPUT', `audio: samples: expected a Float32Array or several of equal length, got ${shown(samples)}`)
  if (!(Number.isInteger(samplingRate) && samplingRate >= 1000 && samplingRate <= 768000))
    throw new ConanError('INVALID_INPUT', `audio: samplingRate: expected 1000 to 768000, got ${shown(samplingRate)}`)
  const from = Math.round(start * samplingRate)
  const part = mixed(channels, from, duration === undefined ? channels[0]!.length : from + Math.round(duration * samplingRate))
  if (part.length === 0) throw new ConanError('INVALID_INPUT', 'audio: expected samples, got none')
  return { samples: part, samplingRate }
}

/** Log-mel frames [frames, bins] of one sound. */
export async function audioFeatures(input: AudioInput, part: AudioPart, settings: AudioSettings, limitSeconds?: number): Promise<Float32Array> {
  const { rate, window, hop, bins, paddedSamples, maxSeconds = Number.POSITIVE_INFINITY } = settings
  const tooLong = (seconds: number) => new ConanError('INPUT_TOO_LONG', `audio: expected at most ${maxSeconds} seconds of sound, got ${Math.ceil(seconds)}`)
  if (part.duration !== undefined && part.duration > maxSeconds) throw tooLong(part.duration)
  const { samples, samplingRate } = await decodeAudio(input, part, Math.min(limitSeconds ?? maxSeconds, maxSeconds))
  if (samples.length > maxSeconds * samplingRate) throw tooLong(samples.length / samplingRate) // it came as samples
  try {
    const heard = await binding().resample(samples, samplingRate, rate)
    return await binding().logMel(padded(heard, Math.max(paddedSamples ?? 0, window)), { rate, window, hop, bins })
  } catch (error) {
    throw asConanError(error)
  }
}

/** Followed by silence up to `length`: a spectrum needs a window's worth of samples. */
function padded(samples: Float32Array, length: number): Float32Array {
  if (samples.length >= length) return samples
  const out = new Float32Array(length)
  out.set(samples)
  return out
}

// What embed takes, brought to one form.
import { ConanError, shown } from '../errors'

/** A string is text, never a path. */
export type EmbedInput = string | { text: string }

export type Modality = 'text' | 'image' | 'video' | 'document' | 'audio'
export const modalities: readonly Modality[] = ['text', 'image', 'video', 'document', 'audio']

export function textOf(input: unknown, index: number): string {
  if (typeof input === 'string') return input
  if (typeof input === 'object' && input !== null && !Array.isArray(input)) {
    const keys = Object.keys(input)
    const unsupported = keys.filter((key) => (modalities as readonly string[]).includes(key) && key !== 'text')
    if (unsupported.length) throw new ConanError('INVALID_INPUT', `input ${index}: this model embeds text, got ${unsupported.join(', ')}`)
    const { text } = input as { text?: unknown }
    if (typeof text === 'string' && keys.length === 1) return text
  }
  throw new ConanError('INVALID_INPUT', `input ${index}: expected a string or { text }, got ${shown(input)}`)
}

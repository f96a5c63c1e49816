// Checks of option values.
import { ConanError, shown } from './errors'

export function positive(value: unknown, name: string, fallback: number): number {
  if (value === undefined) return fallback
  if (!Number.isInteger(value) || (value as number) < 1)
    throw new ConanError('INVALID_OPTION', `${name}: expected a positive whole number, got ${shown(value)}`)
  return value as number
}

export function wholeNumber(value: unknown, name: string, fallback: number): number {
  if (value === undefined) return fallback
  if (!Number.isSafeInteger(value)) throw new ConanError('INVALID_OPTION', `${name}: expected a whole number, got ${shown(value)}`)
  return value as number
}

/** As a plan of work asks for them; 0, the default: as many as the process may use. */
export function threadsOf(value: unknown): number {
  const threads = wholeNumber(value, 'threads', 0)
  if (threads < 0 || threads > 1024) throw new ConanError('INVALID_OPTION', `threads: expected 0 to 1024, got ${threads}`)
  return threads
}

export function oneOf<T extends string>(value: unknown, name: string, allowed: readonly T[], fallback: T): T {
  if (value === undefined) return fallback
  if (!allowed.includes(value as T)) throw new ConanError('INVALID_OPTION', `${name}: expected one of ${allowed.join(', ')}, got ${shown(value)}`)
  return value as T
}

export function pathOf(value: unknown, name: string): string {
  if (typeof value !== 'string' || value === '') throw new ConanError('INVALID_OPTION', `${name}: expected a path, got ${shown(value)}`)
  return value
}

export function textsOf(value: unknown, name: string): string[] {
  if (!Array.isArray(value) || !value.every((each) => typeof each === 'string' && each !== ''))
    throw new ConanError('INVALID_OPTION', `${name}: expected a list of texts, got ${shown(value)}`)
  return value
}

/** An object; and what every call takes by these names, before hours of work lead to the first use of it. */
export function requireOptions(options: unknown): void {
  if (typeof options !== 'object' || options === null) throw new ConanError('INVALID_OPTION', `options: expected an object, got ${shown(options)}`)
  const { signal, onProgress } = options as { signal?: AbortSignal | null; onProgress?: unknown }
  if (signal != null && typeof signal.addEventListener !== 'function')
    // not by its class: test runners have their own
    throw new ConanError('INVALID_OPTION', `signal: expected an AbortSignal, got ${shown(signal)}`)
  if (onProgress != null && typeof onProgress !== 'function')
    throw new ConanError('INVALID_OPTION', `onProgress: expected a function, got ${shown(onProgress)}`)
}

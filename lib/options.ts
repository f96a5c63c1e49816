// Checks of option values.
import { ConanError, shown } from './errors'

export function positive(value: unknown, name: string, fallback: number): number {
  if (value === undefined) return fallback
  if (!Number.isInteger(value) || (value as number) < 1)
    throw new ConanError('INVALID_OPTION', `${name}: expected a positive whole number, got ${shown(value)}`)
  return value as number
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

export function requireOptions(options: unknown): void {
  if (typeof options !== 'object' || options === null) throw new ConanError('INVALID_OPTION', `options: expected an object, got ${shown(options)}`)
}

// The one error class, and the one table of what can go wrong. Native errors carry the same codes.

interface ErrorKind {
  meaning: string
  /** Status that the HTTP server answers with. */
  http: number
  /** Exit code of the command line. */
  exit: number
}

export const errorKinds = {
  INVALID_INPUT: { meaning: 'what was given to embed is not what it takes', http: 422, exit: 2 },
  INPUT_TOO_LONG: { meaning: 'an input has more tokens than allowed and truncation is off', http: 413, exit: 2 },
  INVALID_OPTION: { meaning: 'an option has a wrong value', http: 400, exit: 2 },
  RECIPE_INVALID: { meaning: 'a recipe is not what it should be', http: 400, exit: 2 },
  OUTPUT_EXISTS: { meaning: 'the place for the output is taken', http: 409, exit: 2 },
  TENSOR_UNACCOUNTED: { meaning: 'a tensor of a parent would be lost without a word', http: 400, exit: 3 },
  MODEL_NOT_FOUND: { meaning: 'the directory holds no model', http: 500, exit: 3 },
  CONFIG_INVALID: { meaning: 'a configuration file lacks something or contradicts itself', http: 500, exit: 3 },
  TOKENIZER_INVALID: { meaning: 'the tokenizer is missing or does not do what the model needs', http: 500, exit: 3 },
  UNSUPPORTED_ARCHITECTURE: { meaning: 'no implementation for this kind of model', http: 500, exit: 3 },
  UNSUPPORTED_DTYPE: { meaning: 'a tensor is stored in a type that cannot be used here', http: 500, exit: 3 },
  TENSOR_MISSING: { meaning: 'the checkpoint lacks a tensor that the configuration asks for', http: 500, exit: 3 },
  TENSOR_SHAPE: { meaning: 'a tensor has another shape than the configuration says', http: 500, exit: 3 },
  TENSOR_UNUSED: { meaning: 'a tensor has no place in the model that the configuration describes', http: 500, exit: 3 },
  WEIGHT_NOT_FINITE: { meaning: 'a weight is NaN or infinite', http: 500, exit: 3 },
  LOSS_NOT_FINITE: { meaning: 'a loss or a gradient is NaN or infinite', http: 500, exit: 4 },
  VECTOR_NOT_FINITE: { meaning: 'a computed vector holds NaN or infinity', http: 500, exit: 4 },
  FILE_CORRUPT: { meaning: 'a file is damaged or not of the kind its name says', http: 500, exit: 3 },
  FILE_IO: { meaning: 'a file cannot be read or written', http: 500, exit: 5 },
  ADDON_MISSING: { meaning: 'the native addon is not there for this platform', http: 500, exit: 6 },
  BACKEND_UNSUPPORTED: { meaning: 'the backend lacks an operation that the model needs', http: 500, exit: 6 },
  DEVICE_UNAVAILABLE: { meaning: 'the device asked for cannot be used', http: 500, exit: 6 },
  FFMPEG_MISSING: { meaning: 'ffmpeg is not there, and this file takes it', http: 500, exit: 6 },
  OUT_OF_MEMORY: { meaning: 'not enough memory', http: 503, exit: 7 },
  ABORTED: { meaning: 'the caller stopped it', http: 499, exit: 130 },
  DISPOSED: { meaning: 'the model was disposed', http: 503, exit: 1 },
  INTERNAL: { meaning: 'a fault of this library', http: 500, exit: 1 },
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof errorKinds

/** Every error this library throws. The message names the subject, what was expected and what was received. */
export class ConanError extends Error {
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = code === 'ABORTED' ? 'AbortError' : 'ConanError'
    this.code = code
  }
}

/** `error` as a ConanError: native errors keep their code, anything else becomes INTERNAL. */
export function asConanError(error: unknown): ConanError {
  if (error instanceof ConanError) return error
  const { code, message } = error as { code?: string; message?: string }
  if (code !== undefined && Object.hasOwn(errorKinds, code)) return new ConanError(code as ErrorCode, message ?? code)
  return new ConanError('INTERNAL', message ?? String(error), { cause: error })
}

/** A value as it is shown in messages. */
export function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value)
  if (Array.isArray(value)) return `an array of ${value.length}`
  if (value === null || typeof value !== 'object') return String(value)
  return `an object with keys ${Object.keys(value).slice(0, 8).join(', ') || '(none)'}`
}

// What is wrong with a request, as HTTP and OpenAI's clients have it.
import { type ConanError, errorKinds } from '../errors'

export class RequestError extends Error {
  /** @param param the part of the request that is meant, "input[3]" */
  constructor(
    readonly status: number,
    message: string,
    readonly param: string | null = null,
    readonly code: string | null = null,
    readonly headers: Record<string, string> = {},
  ) {
    super(message)
  }
}

const types: Record<number, string> = { 401: 'authentication_error', 429: 'rate_limit_error' }

export const bodyOf = ({ status, message, param, code }: RequestError) => ({
  error: { message, type: types[status] ?? (status < 500 ? 'invalid_request_error' : 'server_error'), param, code },
})

/** `param`: the input that it is about; in a message it stands instead of the input's number in the pass. */
export function requestError({ code, message }: ConanError, param: string | null): RequestError {
  const option = code === 'INVALID_OPTION' ? (/^(\w+):/.exec(message)?.[1] ?? param) : param
  return new RequestError(errorKinds[code].http, message.replace(/^input \d+/, param ?? 'input'), option, code)
}

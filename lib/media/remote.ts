// Media from the network: what stands at an address that an input names, where the caller allows that; and a fetch for it that takes only
// from hosts that were allowed, never from an address inside the own network unless that was allowed too, and no more bytes than that. The
// address that is checked is the one that is connected to, at every redirect again.
import dns from 'node:dns'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import { ConanError, shown } from '../errors'
import { positive, requireOptions, textsOf } from '../options'

/**
 * What stands at an address of http or https: the platform's own `fetch`, `remoteFetch()`, or whatever else answers with bytes or a
 * Response. Errors: its own, which become the cause of a FILE_IO, or a ConanError, which stays.
 */
export type RemoteFetch = (address: string, init: { signal: AbortSignal }) => Promise<Uint8Array | Response>

export interface RemoteFetchOptions {
  /** 'example.com', 'example.com:8443', '*.example.com' (all below it), or '*'. */
  hosts: string[]
  /** Addresses of private networks and of this machine as well; default false. */
  allowPrivate?: boolean
  /** Of one file; default 32 MiB. */
  maxBytes?: number
  /** For one file; default 10 seconds. */
  timeoutMs?: number
}

/** An input, or the bytes that stand at the address it is. `what`: image, document, video, audio. */
export type Local = <T>(input: T, what: string) => Promise<T | Uint8Array>

/** Playlists and drawings can name other files, which a decoder would then open on this machine. */
const naming = /^\ufeff?\s*(<|#EXTM3U|ffconcat|v=0)/

/** Bytes from elsewhere are one medium. Errors: INVALID_INPUT. */
export function requireMedium(bytes: Uint8Array, what: string): void {
  const begins = Buffer.from(bytes.subarray(0, 256)).toString()
  if (naming.test(begins)) throw new ConanError('INVALID_INPUT', `${what}: expected an image, a video, a sound or a document, got ${shown(begins)}`)
}

/** Not by its class: packages for fetching have their own. */
const isResponse = (answer: unknown): answer is Response => typeof (answer as Response | undefined)?.arrayBuffer === 'function'

/** Without `fetch`, everything stays what it is. Errors: ABORTED, FILE_IO, INVALID_INPUT, and those of `fetch`. */
export function localBy(fetch: RemoteFetch | undefined, signal: AbortSignal = new AbortController().signal): Local {
  if (!fetch) return async (input) => input
  return async (input, what) => {
    const address = input instanceof URL ? input.href : input
    if (typeof address !== 'string' || !/^https?:\/\//i.test(address)) return input
    const name = `${what} ${shown(address)}`
    let answer: unknown
    try {
      answer = await fetch(address, { signal })
      if (isResponse(answer)) {
        if (!answer.ok) throw new Error(`it answers ${answer.status}`)
        answer = new Uint8Array(await answer.arrayBuffer())
      }
    } catch (error) {
      if (signal.aborted) throw new ConanError('ABORTED', 'embed was aborted', { cause: signal.reason })
      if (error instanceof ConanError) throw error
      const { message = String(error), cause } = Object(error) as Error // Node's own says "fetch failed", and why in its cause
      throw new ConanError('FILE_IO', `${name}: cannot be fetched: ${[message, (cause as Error | undefined)?.message].filter(Boolean).join(': ')}`, {
        cause: error,
      })
    }
    if (!(answer instanceof Uint8Array)) throw new ConanError('INVALID_OPTION', `fetch: expected it to give bytes or a Response, got ${shown(answer)}`)
    requireMedium(answer, name)
    return answer
  }
}

type Limits = Required<RemoteFetchOptions>

const redirects = 3

/** Addresses that are not the public internet (the registries of special purposes, RFC 6890). */
const special = new net.BlockList()
for (const [address, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
] as const)
  special.addSubnet(address, bits, 'ipv4')
// Of IPv6 only what is given out for the public internet, less what leads back to IPv4 or is documentation.
const unicast = new net.BlockList()
unicast.addSubnet('2000::', 3, 'ipv6')
for (const [address, bits] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20],
] as const)
  special.addSubnet(address, bits, 'ipv6')

/** Whether an address belongs to the public internet. */
export function isPublic(address: string): boolean {
  if (net.isIPv4(address)) return !special.check(address, 'ipv4')
  return net.isIPv6(address) && unicast.check(address, 'ipv6') && !special.check(address, 'ipv6')
}

export function isAllowed({ hostname, port }: URL, hosts: string[]): boolean {
  return hosts.some((entry) => {
    const [, name, wanted = ''] = /^(.*?)(?::(\d+))?$/.exec(entry.toLowerCase())!
    if (port !== wanted) return false
    return name === '*' || name === hostname || (name!.startsWith('*.') && hostname.endsWith(name!.slice(1)))
  })
}

/**
 * A fetch for `embed` that takes files from some hosts alone.
 *
 * @throws ConanError INVALID_OPTION; what it gives: INVALID_INPUT (not allowed), INPUT_TOO_LONG (too many bytes), FILE_IO
 */
export function remoteFetch(options: RemoteFetchOptions): (address: string, init?: { signal?: AbortSignal }) => Promise<Uint8Array> {
  requireOptions(options)
  const limits: Limits = {
    hosts: textsOf(options.hosts, 'hosts'),
    allowPrivate: options.allowPrivate ?? false,
    maxBytes: positive(options.maxBytes, 'maxBytes', 32 << 20),
    timeoutMs: positive(options.timeoutMs, 'timeoutMs', 10_000),
  }
  return async (address, { signal } = {}) => {
    let url = address
    for (let hop = 0; hop <= redirects; hop++) {
      const found = await fetchOnce(new URL(url), limits, signal)
      if (typeof found !== 'string') return found
      if (!URL.canParse(found, url)) throw new ConanError('FILE_IO', `${address}: expected an address to go on to, got ${shown(found)}`)
      url = new URL(found, url).href
    }
    throw new ConanError('FILE_IO', `${address}: expected at most ${redirects} redirects, got more`)
  }
}

/** The bytes, or where they are said to be. */
function fetchOnce(url: URL, { hosts, allowPrivate, maxBytes, timeoutMs }: Limits, signal: AbortSignal | undefined): Promise<Uint8Array | string> {
  if (!/^https?:$/.test(url.protocol)) throw new ConanError('INVALID_INPUT', `${url.href}: expected an address of http or https`)
  if (!isAllowed(url, hosts)) throw new ConanError('INVALID_INPUT', `${url.host}: expected one of the hosts that may be fetched from, which it is not`)
  const literal = url.hostname.replace(/^\[|\]$/g, '')
  const refused = () => new ConanError('INVALID_INPUT', `${url.host}: expected a public address, got one of a private network`)
  if (net.isIP(literal) && !allowPrivate && !isPublic(literal)) throw refused()
  // Node connects to what this gives it, so that a name cannot mean one address here and another there.
  const lookup: net.LookupFunction = (host, asked, answer) => {
    dns.lookup(host, { ...asked, all: true }, (error, all) => {
      const list = all as dns.LookupAddress[] | undefined
      const fault = error ?? (!allowPrivate && list!.some((entry) => !isPublic(entry.address)) ? refused() : null)
      if (fault) answer(fault as NodeJS.ErrnoException, '', 4)
      else if (asked.all) (answer as unknown as (error: null, all: dns.LookupAddress[]) => void)(null, list!)
      else answer(null, list![0]!.address, list![0]!.family)
    })
  }
  return new Promise((resolve, reject) => {
    const late = AbortSignal.timeout(timeoutMs)
    const failed = (error: Error) => {
      const why = late.aborted && !signal?.aborted ? `it takes more than ${timeoutMs} ms` : error.message
      reject(error instanceof ConanError ? error : new ConanError('FILE_IO', `${url.host}: cannot be fetched: ${why}`, { cause: error }))
    }
    const tooLarge = () => new ConanError('INPUT_TOO_LONG', `${url.host}: expected at most ${maxBytes} bytes, got more`)
    const { get } = url.protocol === 'https:' ? https : http
    const until = signal ? AbortSignal.any([signal, late]) : late
    const request = get(url, { lookup, signal: until, agent: false, headers: { accept: '*/*', 'user-agent': 'conan-embedding' } }, (response) => {
      const { statusCode = 0, headers } = response
      const end = (error: Error) => {
        failed(error)
        request.destroy()
      }
      if (statusCode >= 300 && statusCode < 400 && headers.location) {
        resolve(headers.location)
        request.destroy()
        return
      }
      if (statusCode !== 200) return end(new Error(`it answers ${statusCode}`))
      if (Number(headers['content-length'] ?? 0) > maxBytes) return end(tooLarge())
      const pieces: Buffer[] = []
      let size = 0
      response.on('data', (piece: Buffer) => {
        pieces.push(piece)
        size += piece.length
        if (size > maxBytes) end(tooLarge())
      })
      response.on('end', () => resolve(Buffer.concat(pieces)))
      response.on('error', failed)
    })
    request.on('error', failed)
  })
}

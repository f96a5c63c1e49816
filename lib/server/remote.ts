// Media from the network: only from hosts that were allowed, never from an address inside the own network unless that was allowed too, and
// no more bytes than that. The address that is checked is the one that is connected to, at every redirect again.
import dns from 'node:dns'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import { shown } from '../errors'
import { RequestError } from './error'

export interface RemoteOptions {
  /** 'example.com', 'example.com:8443', '*.example.com' (all below it), or '*'. */
  hosts: string[]
  /** Addresses of private networks and of this machine as well. */
  allowPrivate: boolean
  maxBytes: number
  timeoutMs: number
}

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
 * The bytes at an address.
 *
 * @throws RequestError 400 where it is not allowed, 413 for too many bytes, 422 where it cannot be had
 */
export async function fetchRemote(address: string, options: RemoteOptions, signal: AbortSignal): Promise<Uint8Array> {
  let url = address
  for (let hop = 0; hop <= redirects; hop++) {
    const found = await fetchOnce(new URL(url), options, signal)
    if (typeof found !== 'string') return found
    if (!URL.canParse(found, url)) throw new RequestError(422, `${address}: expected an address to go on to, got ${shown(found)}`)
    url = new URL(found, url).href
  }
  throw new RequestError(422, `${address}: expected at most ${redirects} redirects, got more`)
}

/** The bytes, or where they are said to be. */
function fetchOnce(url: URL, { hosts, allowPrivate, maxBytes, timeoutMs }: RemoteOptions, signal: AbortSignal): Promise<Uint8Array | string> {
  if (!/^https?:$/.test(url.protocol)) throw new RequestError(400, `${url.href}: expected an address of http or https`)
  if (!isAllowed(url, hosts)) throw new RequestError(400, `${url.host}: expected one of the hosts that this server fetches from, which it is not`)
  const literal = url.hostname.replace(/^\[|\]$/g, '')
  const refused = () => new RequestError(400, `${url.host}: expected a public address, got one of a private network`)
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
    const failed = (error: Error) => reject(error instanceof RequestError ? error : new RequestError(422, `${url.host}: cannot be fetched: ${error.message}`))
    const tooLarge = () => new RequestError(413, `${url.host}: expected at most ${maxBytes} bytes, got more`)
    const { get } = url.protocol === 'https:' ? https : http
    const until = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
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

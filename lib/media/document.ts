// Documents: pages of PDF files as pictures, rendered by PDFium on a thread of its own.
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { ConanError, shown } from '../errors'
import { positive, requireOptions } from '../options'
import { decodeImage, type ImageInput, isRaw, type RawImage, source } from './image'
import type { PdfRequest } from './pdf-worker'
import { localBy, type RemoteFetch } from './remote'
import { Threads } from './thread'

export interface PageOptions {
  /** Resolution of the rendering; default 144. */
  dpi?: number
  /** Pixels of a rendered page at most: a larger one is rendered at a lower resolution. Default 2^25. */
  maxPixels?: number
  /** Pages, counted from 1: one, a list, or a range [first, last]; default all. */
  pages?: number | number[] | { first?: number; last?: number }
  password?: string
  /** How a document is fetched whose address is one of http or https, as in `embed`; without it such an address is an error. */
  fetch?: RemoteFetch
}

export interface DocumentPage {
  page: number
  pageCount: number
  image: RawImage
}

const renderers = new Threads<PdfRequest>('pdf-worker.js')

const isPdf = (bytes: Uint8Array) => Buffer.from(bytes.subarray(0, 1024)).includes('%PDF-')

/** A page of more pixels than this is rendered smaller: a plan on A0 says no more to a model. */
const maxPagePixels = 1 << 25

interface OpenDocument {
  pageCount: number
  render(page: number, dpi: number, maxPixels: number): Promise<RawImage>
  close(): Promise<void>
}

async function open(bytes: Uint8Array, name: string, password: string | undefined): Promise<OpenDocument> {
  const renderer = renderers.least() // the document is open there alone
  try {
    const { document, pageCount } = await renderer.ask<{ document: number; pageCount: number }>({ open: { bytes, password } })
    return {
      pageCount,
      async render(page, dpi, maxPixels) {
        try {
          return { ...(await renderer.ask<Omit<RawImage, 'channels'>>({ render: { document, page, dpi, maxPixels } })), channels: 4 }
        } catch (error) {
          throw new ConanError('INVALID_INPUT', `${name}: page ${page} cannot be rendered: ${(error as Error).message}`, { cause: error })
        }
      },
      close: () => renderer.ask({ close: { document } }),
    }
  } catch (error) {
    const message = (error as Error).message
    throw new ConanError('INVALID_INPUT', `${name}: ${/password/i.test(message) ? 'needs a password, or another one' : `cannot be opened: ${message}`}`, {
      cause: error,
    })
  }
}

function pagesOf(wanted: PageOptions['pages'], count: number, name: string): number[] {
  const range = (first: number, last: number) => Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i)
  if (wanted === null) throw new ConanError('INVALID_OPTION', 'pages: expected a number, numbers or {first, last}, got null')
  const pages =
    wanted === undefined
      ? range(1, count)
      : typeof wanted === 'number'
        ? [wanted]
        : Array.isArray(wanted)
          ? wanted
          : range(wanted.first ?? 1, wanted.last ?? count)
  for (const page of pages)
    if (!Number.isInteger(page) || page < 1 || page > count) throw new ConanError('INVALID_INPUT', `${name}: page: expected 1 to ${count}, got ${shown(page)}`)
  return pages
}

function checkedDpi(dpi: number | undefined): number {
  if (dpi !== undefined && !(dpi >= 1 && dpi <= 2400)) throw new ConanError('INVALID_OPTION', `dpi: expected 1 to 2400, got ${shown(dpi)}`)
  return dpi ?? 144
}

/**
 * The pages of a document as pictures, one after the other. Anything that is no PDF is a picture of a single page.
 * @param input a path, the bytes of a file, or a file: or data: URL
 * @throws ConanError INVALID_INPUT (not a document, a password, no such page), FILE_IO
 */
export async function* documentPages(input: string | URL | Uint8Array, options: PageOptions = {}): AsyncGenerator<DocumentPage> {
  requireOptions(options)
  const local = await localBy(options.fetch)(input, 'document')
  const { bytes: given, name } = source(local, 'document')
  const bytes = typeof given === 'string' ? await readFile(given) : given
  const dpi = checkedDpi(options.dpi)
  const maxPixels = positive(options.maxPixels, 'maxPixels', maxPagePixels)
  if (bytes.length === 0) throw new ConanError('INVALID_INPUT', `${name}: expected a document, got no bytes`)
  if (!isPdf(bytes)) {
    if (typeof given === 'string' && path.extname(given).toLowerCase() === '.pdf')
      throw new ConanError('INVALID_INPUT', `${name}: expected a PDF file, found no %PDF- at its start`)
    const { rgb, width, height } = await decodeImage(local)
    for (const page of pagesOf(options.pages, 1, name)) yield { page, pageCount: 1, image: { data: rgb, width, height, channels: 3 } }
    return
  }
  const document = await open(bytes, name, options.password)
  try {
    const { pageCount } = document
    for (const page of pagesOf(options.pages, pageCount, name)) yield { page, pageCount, image: await document.render(page, dpi, maxPixels) }
  } finally {
    await document.close()
  }
}

/** The one page an input means: the one it names, or the only one there is. */
export async function documentImage(input: ImageInput, page: number | undefined, dpi: number | undefined, maxPixels = maxPagePixels): Promise<ImageInput> {
  if (isRaw(input)) return input
  const options = {
    ...(page !== undefined && { pages: page }),
    ...(dpi !== undefined && { dpi }),
    maxPixels: Math.min(maxPagePixels, maxPixels),
  }
  for await (const { pageCount, image } of documentPages(input, options)) {
    if (page === undefined && pageCount > 1)
      throw new ConanError(
        'INVALID_INPUT',
        `document: expected a page, 1 to ${pageCount}, got none (one input is one vector; documentPages() gives all of them)`,
      )
    return image
  }
  throw new ConanError('INVALID_INPUT', 'document: expected at least one page, found none')
}

// PDFium on a thread of its own: rendering a page takes longer than the main thread may be held up. Requests come as messages
// {id, open | render | close} and are answered {id, value} or {id, error}.
import { parentPort } from 'node:worker_threads'
import type { PDFiumDocument, PDFiumLibrary } from '@hyzyla/pdfium'

export type PdfRequest =
  | { id: number; open: { bytes: Uint8Array; password: string | undefined } }
  | { id: number; render: { document: number; page: number; dpi: number; maxPixels: number } }
  | { id: number; close: { document: number } }

export interface PdfAnswer {
  id: number
  value?: { document: number; pageCount: number } | { data: Uint8Array; width: number; height: number }
  error?: string
}

let library: Promise<PDFiumLibrary> | undefined
const documents = new Map<number, PDFiumDocument>()

async function answer(request: PdfRequest): Promise<PdfAnswer['value']> {
  library ??= import('@hyzyla/pdfium').then(({ PDFiumLibrary }) => PDFiumLibrary.init())
  if ('open' in request) {
    const document = await (await library).loadDocument(request.open.bytes, request.open.password)
    documents.set(request.id, document)
    return { document: request.id, pageCount: document.getPageCount() }
  }
  if ('close' in request) {
    documents.get(request.close.document)?.destroy()
    documents.delete(request.close.document)
    return undefined
  }
  const { document, page, dpi, maxPixels } = request.render
  const opened = documents.get(document)!.getPage(page - 1)
  const { originalWidth, originalHeight } = opened.getOriginalSize()
  const scale = Math.min(dpi / 72, Math.sqrt(maxPixels / Math.max(1, originalWidth * originalHeight)))
  const { data, width, height } = await opened.render({ scale, render: 'bitmap' })
  return { data, width, height }
}

parentPort?.on('message', async (request: PdfRequest) => {
  const reply: PdfAnswer = { id: request.id }
  try {
    reply.value = await answer(request)
  } catch (error) {
    reply.error = (error as Error).message
  }
  parentPort?.postMessage(reply)
})

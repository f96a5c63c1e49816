// PDFium on a thread of its own: rendering a page takes longer than the main thread may be held up.
import type { PDFiumDocument, PDFiumLibrary } from '@hyzyla/pdfium'
import { serve } from './thread'

export type PdfRequest =
  | { open: { bytes: Uint8Array; password: string | undefined } }
  | { render: { document: number; page: number; dpi: number; maxPixels: number } }
  | { close: { document: number } }

let library: Promise<PDFiumLibrary> | undefined
const documents = new Map<number, PDFiumDocument>()
let next = 0

serve<PdfRequest>(async (request) => {
  library ??= import('@hyzyla/pdfium').then(({ PDFiumLibrary }) => PDFiumLibrary.init())
  if ('open' in request) {
    const opened = await (await library).loadDocument(request.open.bytes, request.open.password)
    documents.set(++next, opened)
    return { value: { document: next, pageCount: opened.getPageCount() } }
  }
  if ('close' in request) {
    documents.get(request.close.document)?.destroy()
    documents.delete(request.close.document)
    return { value: undefined }
  }
  const { document, page, dpi, maxPixels } = request.render
  const opened = documents.get(document)!.getPage(page - 1)
  const { originalWidth, originalHeight } = opened.getOriginalSize()
  let scale = Math.min(dpi / 72, Math.sqrt(maxPixels / Math.max(1, originalWidth * originalHeight)))
  while (Math.ceil(originalWidth * scale) * Math.ceil(originalHeight * scale) > Math.max(1, maxPixels)) scale *= 0.999
  const { data, width, height } = await opened.render({ scale, render: 'bitmap' })
  return { value: { data, width, height } }
})

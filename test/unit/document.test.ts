// Documents: pages of PDF files as pictures, in order, and what can be wrong with them.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { documentPages, loadModel, type PageOptions } from '../../lib'
import { dataDirectory, fixtures, needs, temporary } from '../support'

const file = (name: string) => path.join(fixtures, 'document', name)
const picture = path.join(fixtures, 'vision', 'images', 'rgb.png')

async function pages(input: string | Uint8Array, options: PageOptions = {}) {
  const out = []
  for await (const { page, pageCount, image } of documentPages(input, options))
    out.push({ page, pageCount, size: [image.width, image.height], colour: [...image.data.slice(0, 3)] })
  return out
}

test('pages come in order, in their colours, at the size asked for', async () => {
  const colours = [
    [255, 0, 0],
    [0, 255, 0],
    [0, 0, 255],
  ]
  const all = await pages(file('colours.pdf'))
  assert.deepEqual(
    all,
    colours.map((colour, i) => ({ page: i + 1, pageCount: 3, size: [288, 144], colour })),
  )
  assert.deepEqual(
    (await pages(readFileSync(file('colours.pdf')), { pages: [3, 1], dpi: 36 })).map(({ page, size, colour }) => [page, size, colour]),
    [
      [3, [72, 36], colours[2]],
      [1, [72, 36], colours[0]],
    ],
  )
  assert.deepEqual(
    (await pages(file('colours.pdf'), { pages: { first: 2 } })).map(({ page }) => page),
    [2, 3],
  )
  assert.equal((await pages(file('locked.pdf'), { password: 'secret' })).length, 3)
  assert.equal((await pages(picture))[0]!.pageCount, 1)
})

test('a page is embedded as its picture would be', async () => {
  await using model = await loadModel(path.join(fixtures, 'vision', 'qwen3_vl'))
  assert.ok(model.supports('document'))
  for await (const { page, image } of documentPages(file('colours.pdf')))
    assert.deepEqual(
      (await model.embed({ document: file('colours.pdf'), page, text: 'a page' })).vectors,
      (await model.embed({ image, text: 'a page' })).vectors,
    )
  assert.deepEqual((await model.embed({ document: picture })).vectors, (await model.embed({ image: picture })).vectors)
})

test('bad documents are named', async () => {
  const place = temporary()
  const write = (name: string, bytes: string | Buffer) => {
    writeFileSync(path.join(place, name), bytes)
    return path.join(place, name)
  }
  const fails = (input: string | Uint8Array, code: string, message: RegExp, options: PageOptions = {}) =>
    assert.rejects(pages(input, options), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails(file('locked.pdf'), 'INVALID_INPUT', /locked\.pdf: needs a password/)
  await fails(file('locked.pdf'), 'INVALID_INPUT', /needs a password, or another one/, { password: 'wrong' })
  await fails(file('colours.pdf'), 'INVALID_INPUT', /page: expected 1 to 3, got 4/, { pages: 4 })
  await fails(file('colours.pdf'), 'INVALID_OPTION', /dpi: expected 1 to 2400/, { dpi: 0 })
  await fails(file('none.pdf'), 'FILE_IO', /document .*none\.pdf: expected a file, found none/)
  await fails(write('text.pdf', 'words'), 'INVALID_INPUT', /expected a PDF file/)
  await fails(write('empty.pdf', ''), 'INVALID_INPUT', /got no bytes/)
  await fails(write('broken.pdf', '%PDF-1.7\nnothing'), 'INVALID_INPUT', /broken\.pdf: cannot be opened/)
  await using model = await loadModel(path.join(fixtures, 'vision', 'qwen3_vl'))
  await assert.rejects(model.embed({ document: file('colours.pdf') }), /input 0: document: expected a page, 1 to 3, got none/)
  await assert.rejects(model.embed({ text: 'x', page: 1 }), { code: 'INVALID_INPUT' })
  const { errors } = await model.embed([{ document: file('locked.pdf'), page: 1 }, 'text'], { onError: 'skip' })
  assert.equal(errors.length, 1)
})

test('a real score', needs('media/mdn-cc0/In-CC0.pdf'), async () => {
  const all = await pages(path.join(dataDirectory, 'media/mdn-cc0/In-CC0.pdf'), { dpi: 72 })
  assert.deepEqual(
    all.map(({ page }) => page),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
  )
})

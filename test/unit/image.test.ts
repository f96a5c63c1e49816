// Images: the same patches as transformers' processor, to the bit; whole inputs against golden vectors; every way to hand one
// over; and every way in which one can be wrong.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { copyFileSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'
import sharp from 'sharp'
import { type EmbedInput, loadModel } from '../../lib'
import { binding, type NativePatchLayout } from '../../lib/binding'
import { decodeImage, imagePatches } from '../../lib/media/image'
import { readImageSettings, smartResize } from '../../lib/media/processor'
import { copyOf, dataDirectory, fixtures, floats, ints, needs, numbersOf, readSafetensors, temporary, worstCosine } from '../support'

const directory = path.join(fixtures, 'vision', 'qwen3_vl')
const images = path.join(fixtures, 'vision', 'images')
const file = (name: string) => path.join(images, name)
const golden = readSafetensors(file('golden.safetensors'))
const settings = readImageSettings(directory, {})

for (const name of readdirSync(images).filter((name) => /\.(png|jpg|gif)$/.test(name)))
  test(`${name}: the patches of transformers' processor`, async () => {
    const { patches, grids } = await imagePatches(file(name), settings)
    assert.deepEqual(grids, ints(golden.get(`grid.${name}`)!))
    assert.deepEqual(numbersOf(patches, 2 * 4 * 4), floats(golden.get(`patches.${name}`)!))
  })

/** A picture [height, width, 3] of the patches that were made of it. */
function assembled(patches: Uint8Array, width: number, height: number, { patch: p, temporalPatch: frames, merge: m }: NativePatchLayout, frame: number) {
  const out = new Uint8Array(width * height * 3)
  const across = width / p / m
  for (let i = 0; i < (width / p) * (height / p); i++) {
    const [block, within] = [Math.floor(i / m / m), i % (m * m)]
    const [top, left] = [Math.floor(block / across) * m + Math.floor(within / m), (block % across) * m + (within % m)]
    for (let c = 0; c < 3; c++)
      for (let y = 0; y < p; y++)
        for (let x = 0; x < p; x++) out[((top * p + y) * width + left * p + x) * 3 + c] = patches[(((i * 3 + c) * frames + frame) * p + y) * p + x]!
  }
  return out
}

test('pictures of many sizes are resampled as Pillow does, to the bit', async () => {
  const sizes: { width: number; height: number; toWidth: number; toHeight: number; sha256: string }[] = JSON.parse(
    readFileSync(path.join(fixtures, 'vision/resized.json'), 'utf8'),
  )
  for (const { width, height, toWidth, toHeight, sha256 } of sizes)
    for (const [patch, merge] of [
      [16, 2],
      [8, 1],
    ] as const) {
      let state = 1
      const noise = Uint8Array.from({ length: width * height * 3 }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24)
      const other = noise.map((value) => 255 - value)
      const layout = { toWidth, toHeight, patch, temporalPatch: 2, merge }
      const hash = (picture: Uint8Array) => createHash('sha256').update(picture).digest('hex')
      const what = `${width} x ${height} to ${toWidth} x ${toHeight}, patches of ${patch}`
      const still = await binding().patches([noise], width, height, layout)
      for (const frame of [0, 1]) assert.equal(hash(assembled(still, toWidth, toHeight, layout, frame)), sha256, what)
      const moving = await binding().patches([other, noise], width, height, layout)
      assert.equal(hash(assembled(moving, toWidth, toHeight, layout, 1)), sha256, what)
      assert.notEqual(hash(assembled(moving, toWidth, toHeight, layout, 0)), sha256, what)
    }
})

test('whole inputs: image, image and text, several images with an instruction, text, nothing', async () => {
  await using model = await loadModel(directory, { dtype: 'float32' })
  const inputs: { text?: string; image?: string[]; instruction?: string }[] = JSON.parse(readFileSync(file('inputs.json'), 'utf8'))
  const want = floats(golden.get('vectors')!)
  assert.ok(model.supports('image') && !model.supports('audio'))
  const given = inputs.map(({ text, image }): EmbedInput => ({ ...(text !== undefined && { text }), ...(image && { image: image.map(file) }) }))
  for (const [i, { instruction }] of inputs.entries()) {
    const { vectors } = await model.embed(given[i]!, instruction === undefined ? {} : { instruction })
    assert.ok(worstCosine(vectors, want.subarray(i * 32, i * 32 + 32), 32) > 0.99999, `input ${i}`)
  }
  // Together, in small batches and as a stream: the same bits, and usage by modality.
  const together = await model.embed(given)
  const small = await model.embed(given, { maxBatchTokens: 40 })
  assert.deepEqual(small.vectors, together.vectors)
  assert.equal(together.usage.image, 24 + 30 + 53)
  let index = 0
  for await (const { vector } of model.embedStream(given)) assert.deepEqual(vector, together.vectors.slice(index * 32, ++index * 32))
})

test('path, bytes, URLs and pixels are one image; the eight orientations are one picture', async () => {
  await using model = await loadModel(directory)
  const bytes = readFileSync(file('rgb.png'))
  const { rgb, width, height } = await decodeImage(file('rgb.png'))
  const forms = [
    file('rgb.png'),
    bytes,
    pathToFileURL(file('rgb.png')),
    pathToFileURL(file('rgb.png')).href,
    `data:image/png;base64,${bytes.toString('base64')}`,
    { data: rgb, width, height, channels: 3 as const },
    { data: new Uint8Array(await sharp(bytes).ensureAlpha().raw().toBuffer()), width, height, channels: 4 as const },
  ]
  const { vectors } = await model.embed(forms.map((image) => ({ image })))
  for (let i = 1; i < forms.length; i++) assert.deepEqual(vectors.slice(i * 32, i * 32 + 32), vectors.slice(0, 32), `form ${i}`)
  const turned = await model.embed(Array.from({ length: 8 }, (_, i) => ({ image: file(`exif${i + 1}.png`) })))
  for (let i = 1; i < 8; i++) assert.deepEqual(turned.vectors.slice(i * 32, i * 32 + 32), turned.vectors.slice(0, 32), `orientation ${i + 1}`)
})

test('kinds of files: WebP, AVIF, CMYK, 16 bits, a wrong extension', async () => {
  const place = temporary()
  const { rgb, width, height } = await decodeImage(file('rgb.png'))
  const near = async (what: string, bytes: Buffer | string, most: number) => {
    const other = await decodeImage(bytes)
    assert.deepEqual([other.width, other.height], [width, height], what)
    const difference = other.rgb.reduce((sum, value, i) => sum + Math.abs(value - rgb[i]!), 0) / rgb.length
    assert.ok(difference <= most, `${what}: ${difference}`)
  }
  const raw = sharp(rgb, { raw: { width, height, channels: 3 } })
  await near('lossless WebP', await raw.clone().webp({ lossless: true }).toBuffer(), 0)
  await near('AVIF', await raw.clone().avif({ quality: 100, lossless: true }).toBuffer(), 2)
  await near('16-bit PNG', await raw.clone().toColourspace('rgb16').png().toBuffer(), 1)
  await near('CMYK JPEG', await raw.clone().toColourspace('cmyk').jpeg({ quality: 100, chromaSubsampling: '4:4:4' }).toBuffer(), 40)
  copyFileSync(file('rgb.png'), path.join(place, 'photo.jpg'))
  await near('PNG called .jpg', path.join(place, 'photo.jpg'), 0)
})

test('sizes: multiples of a merged patch within the limits, of the same shape', () => {
  const of = (width: number, height: number, more = {}) => smartResize(width, height, { ...settings, patch: 16, minPixels: 65536, maxPixels: 1 << 20, ...more })
  assert.deepEqual(of(640, 480), { width: 640, height: 480 })
  assert.deepEqual(of(4000, 3000), { width: 1152, height: 864 })
  assert.deepEqual(of(1, 1), { width: 256, height: 256 })
  assert.deepEqual(of(80, 48, { minPixels: 1 }), { width: 64, height: 64 }) // halves go to the even multiple
  assert.throws(() => of(201, 1), { code: 'INVALID_INPUT' })
})

test('settings are read in every spelling', () => {
  const change = (name: string, content: object) => {
    const copy = copyOf(directory)
    writeFileSync(path.join(copy, 'preprocessor_config.json'), '{}')
    writeFileSync(path.join(copy, name), JSON.stringify(content))
    return readImageSettings(copy, { patch_size: 4 })
  }
  const one = { patch_size: 8, merge_size: 1, min_pixels: 100, max_pixels: 200 }
  assert.equal(change('preprocessor_config.json', one).maxPixels, 200)
  assert.equal(change('processor_config.json', { image_processor: { ...one, max_pixels: 300 } }).maxPixels, 300)
  assert.equal(change('preprocessor_config.json', { size: { shortest_edge: 7, longest_edge: 9 } }).minPixels, 7)
  assert.equal(change('preprocessor_config.json', {}).patch, 4)
  assert.throws(() => change('preprocessor_config.json', { patch_size: 'x' }), { code: 'CONFIG_INVALID' })
})

test('bad images are named', async () => {
  const place = temporary()
  const write = (name: string, bytes: Buffer | string) => {
    writeFileSync(path.join(place, name), bytes)
    return path.join(place, name)
  }
  await using model = await loadModel(directory)
  const fails = (image: unknown, code: string, message: RegExp) =>
    assert.rejects(model.embed(['before', { image: image as string }]), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails(path.join(place, 'none.png'), 'FILE_IO', /input 1: image .*none\.png: expected a file, found none/)
  await fails(place, 'FILE_IO', /found something else/)
  await fails(write('empty.png', ''), 'INVALID_INPUT', /input 1: image .*empty\.png: cannot be decoded/)
  await fails(Buffer.alloc(0), 'INVALID_INPUT', /expected an image, got no bytes/)
  await fails(write('text.png', 'this is no image'), 'INVALID_INPUT', /cannot be decoded/)
  const jpeg = await sharp(file('rgb.png')).jpeg().toBuffer()
  await fails(write('half.jpg', jpeg.subarray(0, jpeg.length / 2)), 'INVALID_INPUT', /half\.jpg: cannot be decoded/)
  await fails('https://example.org/image.png', 'INVALID_INPUT', /expected a local file, got the remote address/)
  await fails('data:nothing', 'INVALID_INPUT', /data: URL with a comma/)
  await fails('data:,%zz', 'INVALID_INPUT', /image "data:,%zz": URI malformed/)
  if (process.platform !== 'win32')
    // where such is a share
    await fails('file://elsewhere/image.png', 'INVALID_INPUT', /image "file:.*": File URL host must be/)
  await fails({ data: new Uint8Array(5), width: 2, height: 2, channels: 3 }, 'INVALID_INPUT', /width \* height \* channels/)
  await fails(12, 'INVALID_INPUT', /expected a path, bytes/)
  await fails({ data: new Uint8Array(3 * 300), width: 300, height: 1, channels: 3 }, 'INVALID_INPUT', /shape of at most 200 to 1/)
  // A small file that claims 30,000 x 30,000 pixels is refused before they are decoded.
  const bomb = await sharp({ create: { width: 30000, height: 30000, channels: 3, background: 'white' }, limitInputPixels: false })
    .png({ compressionLevel: 9 })
    .toBuffer()
  const before = process.memoryUsage().rss
  await fails(write('bomb.png', bomb), 'INVALID_INPUT', /bomb\.png: cannot be decoded: .*pixel/)
  assert.ok(process.memoryUsage().rss - before < 300e6)
  await assert.rejects(model.embed({ image: file('rgb.png'), text: 'a <extra0> b' }), /expected <extra0> once for each of its 1 images, got it 2 times/)
  await assert.rejects(model.embed({ audio: 'x.wav' } as never), /this model embeds text and image and video and document, got audio/)
  await assert.rejects(model.embed({ image: Array.from({ length: 40 }, () => file('rgb.png')) }), { code: 'INPUT_TOO_LONG' })
})

test("onError: 'skip' leaves out what cannot be read, and only that", async () => {
  await using model = await loadModel(directory)
  const broken = { image: Buffer.from('no image') }
  const inputs: EmbedInput[] = ['one', broken, { image: file('rgb.png') }, { image: file('none.png') }, 'two', broken]
  const { vectors, errors } = await model.embed(inputs, { onError: 'skip', maxBatchTokens: 64 })
  assert.deepEqual(
    errors.map(({ index, error }) => [index, error.code]),
    [
      [1, 'INVALID_INPUT'],
      [3, 'FILE_IO'],
      [5, 'INVALID_INPUT'],
    ],
  )
  const good = await model.embed([inputs[0]!, inputs[2]!, inputs[4]!])
  assert.deepEqual(good.errors, [])
  for (const [i, index] of [0, 2, 4].entries()) assert.deepEqual(vectors.slice(index * 32, index * 32 + 32), good.vectors.slice(i * 32, i * 32 + 32))
  assert.ok(vectors.slice(32, 64).every((x) => x === 0))
  const seen: [number, number, string | undefined][] = []
  for await (const { index, vector, error } of model.embedStream(inputs, { onError: 'skip' })) seen.push([index, vector.length, error?.code])
  assert.deepEqual(
    seen.map(([index]) => index),
    [0, 1, 2, 3, 4, 5],
  )
  assert.deepEqual(seen[3], [3, 0, 'FILE_IO'])
  await assert.rejects(model.embed(inputs, { onError: 'ignore' as 'skip' }), { code: 'INVALID_OPTION' })
})

test('real pictures of all kinds are embedded', needs('media/mdn-cc0'), async () => {
  await using model = await loadModel(directory)
  const found = ['mdn-cc0', 'photos-ccby', 'exif-orientation'].flatMap((folder) =>
    readdirSync(path.join(dataDirectory, 'media', folder))
      .filter((name) => /\.(jpe?g|png|gif|avif|webp)$/.test(name))
      .map((name) => path.join(dataDirectory, 'media', folder, name)),
  )
  const { vectors } = await model.embed(found.map((image) => ({ image })))
  assert.ok(found.length > 20 && vectors.every(Number.isFinite) && existsSync(found[0]!))
})

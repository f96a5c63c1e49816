// Videos: the frames, times and patches of transformers' processor; whole inputs against golden vectors; every way to hand one
// over, and every way in which one can be wrong.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'
import sharp from 'sharp'
import { type EmbedInput, loadModel, type VideoInput } from '../../lib'
import { readVideoSettings, smartResizeVideo } from '../../lib/media/processor'
import { openVideo, sampleFrames, secondsText, steadyTimes, videoPatches } from '../../lib/media/video'
import { webcodecsReads } from '../../lib/media/webcodecs'
import { copyOf, dataDirectory, fixtures, floats, ints, largestDifference, needs, numbersOf, readSafetensors, temporary, worstCosine } from '../support'

const directory = path.join(fixtures, 'vision', 'qwen3_vl')
const videos = path.join(fixtures, 'vision', 'video')
const file = (name: string) => path.join(videos, name)
const golden = readSafetensors(file('golden.safetensors'))
const settings = readVideoSettings(directory, {})
const found = spawnSync('ffmpeg', ['-version']).status === 0
const ffmpeg = { skip: found ? false : 'no ffmpeg on PATH' } as const

for (const [name, options] of [
  ['five.webp', {}],
  ['five.webp?fps=5', { fps: 5 }],
  ['ntsc.mp4', {}],
  ['film.webm', {}],
] as const)
  test(`${name}: frames, times and patches of transformers' processor`, name.endsWith('webp') || 'fps' in options ? {} : ffmpeg, async () => {
    const own = { ...settings, ...options }
    const at = file(name.split('?')[0] as string)
    const footage = await openVideo(at)
    assert.deepEqual(sampleFrames(footage.times.length, footage.fps, own), [...ints(golden.get(`indices.${name}`)!)])
    const { pictures, seconds } = await videoPatches(at, own)
    // The reference's rate of a WebM is off by what its times are rounded to.
    const reference = floats(golden.get(`seconds.${name}`)!)
    assert.ok(largestDifference(seconds, reference) < 1e-3)
    assert.deepEqual(seconds.map(secondsText), [...reference].map(secondsText))
    const [groups, rows, columns] = ints(golden.get(`grid.${name}`)!) as unknown as [number, number, number]
    assert.deepEqual([...pictures.grids], Array.from({ length: groups }, () => [rows, columns]).flat())
    const want = floats(golden.get(`patches.${name}`)!)
    // A level of 255, in units of the smallest deviation. Pillow's and torchvision's resampling differ by one where they round
    // apart; decoders of lossy video differ in how they spread colour.
    const level = 1 / 255 / 0.25
    const got = numbersOf(pictures.patches, 2 * 4 * 4)
    assert.equal(got.length, want.length)
    const mean = got.reduce((sum, value, i) => sum + Math.abs(value - want[i]!), 0) / want.length
    if (name.startsWith('five')) assert.ok(largestDifference(got, want) <= level * 1.001)
    assert.ok(mean < (name.startsWith('five') ? 0.3 : 1.5) * level, `mean difference ${mean / level} levels`)
  })

test('whole inputs: a video, two videos with an image and text', async () => {
  await using model = await loadModel(directory, { dtype: 'float32' })
  assert.ok(model.supports('video'))
  const inputs: { text?: string; video: string[]; image?: string[] }[] = JSON.parse(readFileSync(file('inputs.json'), 'utf8'))
  const image = (name: string) => path.join(fixtures, 'vision', 'images', name)
  const given = inputs.map(
    (input): EmbedInput => ({ ...input, video: input.video.map(file), ...(input.image && { image: input.image.map(image) }) }) as EmbedInput,
  )
  const want = floats(golden.get('vectors')!)
  const together = await model.embed(['before', ...given])
  assert.ok(worstCosine(together.vectors.subarray(32), want, 32) > 0.99999)
  for (const [i, input] of given.entries()) assert.deepEqual((await model.embed([input])).vectors, together.vectors.slice((i + 1) * 32, (i + 2) * 32))
  assert.equal(together.usage.video, 36 + 36 + 35)
  assert.equal(together.usage.image, 24)
})

test('the directory that sentence-transformers 6 saves gives the same vectors', async () => {
  // As SentenceTransformer.save_pretrained writes it: one processor_config.json, pooling and chat messages in their own files.
  const saved = copyOf(directory)
  const json = (name: string) => JSON.parse(readFileSync(path.join(directory, name), 'utf8'))
  const write = (name: string, value: unknown) => {
    mkdirSync(path.dirname(path.join(saved, name)), { recursive: true })
    writeFileSync(path.join(saved, name), JSON.stringify(value))
  }
  for (const name of ['preprocessor_config.json', 'video_preprocessor_config.json']) rmSync(path.join(saved, name))
  write('processor_config.json', {
    image_processor: { ...json('preprocessor_config.json'), image_processor_type: 'Qwen2VLImageProcessor' },
    video_processor: { ...json('video_preprocessor_config.json'), return_metadata: false, video_processor_type: 'Qwen3VLVideoProcessor' },
    processor_class: 'Qwen3VLProcessor',
  })
  const type = (name: string) => `sentence_transformers.${name}`
  write('modules.json', [
    { idx: 0, name: '0', path: '', type: type('base.modules.transformer.Transformer') },
    { idx: 1, name: '1', path: '1_Pooling', type: type('sentence_transformer.modules.pooling.Pooling') },
    { idx: 2, name: '2', path: '2_Normalize', type: type('base.modules.normalize.Normalize') },
  ])
  write('1_Pooling/config.json', { embedding_dimension: 32, pooling_mode: 'lasttoken', include_prompt: true })
  write('sentence_bert_config.json', {
    transformer_task: 'feature-extraction',
    modality_config: { text: {}, image: {}, video: {}, message: { method: 'forward', format: 'structured' } },
    processing_kwargs: { chat_template: { add_generation_prompt: true } },
  })
  write('config_sentence_transformers.json', { prompts: { query: "Represent the user's input.", document: '' }, default_prompt_name: 'query' })
  await using plain = await loadModel(directory, { dtype: 'float32' })
  await using other = await loadModel(saved, { dtype: 'float32' })
  const image = path.join(fixtures, 'vision', 'images', 'rgb.png')
  const inputs: EmbedInput[] = ['only words', { image }, { image, text: 'what is this?' }, { video: file('five.webp') }]
  assert.deepEqual((await other.embed(inputs)).vectors, (await plain.embed(inputs)).vectors)
})

test('@napi-rs/webcodecs stands in for ffmpeg where it is installed', async (t) => {
  if (!webcodecsReads(readFileSync(file('ntsc.mp4')).subarray(0, 16))) return t.skip('no @napi-rs/webcodecs')
  if (ffmpeg.skip) return t.skip(ffmpeg.skip)
  const before = process.env.CONAN_FFMPEG
  for (const name of ['ntsc.mp4', 'film.webm']) {
    const want = await videoPatches(file(name), settings)
    process.env.CONAN_FFMPEG = 'no-such-program'
    const got = await videoPatches(file(name), settings)
    if (before === undefined) delete process.env.CONAN_FFMPEG
    else process.env.CONAN_FFMPEG = before
    assert.deepEqual(got, want)
  }
})

test('path, bytes, URLs and frames are one video', async () => {
  await using model = await loadModel(directory)
  const bytes = readFileSync(file('five.webp'))
  const frames = await Promise.all(
    Array.from({ length: 15 }, async (_, page) => {
      const { data, info } = await sharp(bytes, { page }).removeAlpha().raw().toBuffer({ resolveWithObject: true })
      return { data, width: info.width, height: info.height, channels: 3 as const }
    }),
  )
  const forms: VideoInput[] = [
    file('five.webp'),
    bytes,
    pathToFileURL(file('five.webp')),
    `data:image/webp;base64,${bytes.toString('base64')}`,
    { frames, fps: 5 },
  ]
  const { vectors } = await model.embed(forms.map((video) => ({ video })))
  for (let i = 1; i < forms.length; i++) assert.deepEqual(vectors.slice(i * 32, i * 32 + 32), vectors.slice(0, 32), `form ${i}`)
})

test('bytes of a container leave no file behind', ffmpeg, async () => {
  await using model = await loadModel(directory)
  const left = () => readdirSync(os.tmpdir()).filter((name) => name.startsWith('conan-media-')).length
  const before = left()
  const { vectors } = await model.embed([{ video: readFileSync(file('ntsc.mp4')) }, { video: file('ntsc.mp4') }])
  assert.deepEqual(vectors.slice(0, 32), vectors.slice(32))
  await assert.rejects(model.embed([{ video: Buffer.from('this is no video at all') }]), { code: 'INVALID_INPUT' })
  assert.equal(left(), before)
})

test('frames far apart are looked up one by one, and are the same frames', ffmpeg, async () => {
  const long = path.join(temporary(), 'long.mp4')
  spawnSync('ffmpeg', ['-v', 'error', '-f', 'lavfi', '-i', 'testsrc=size=64x48:rate=25:duration=60', '-c:v', 'libx264', '-g', '100', '-bf', '2', long])
  const footage = await openVideo(long)
  assert.equal(footage.times.length, 1500)
  const pixels = async (indices: number[]) => {
    const out: Uint8Array[] = []
    for await (const frame of footage.frames(indices)) out.push((frame as { data: Uint8Array }).data)
    return out
  }
  const few = await pixels([0, 437, 1499])
  const many = await pixels([0, 100, 200, 300, 437, 500, 1000, 1499])
  assert.equal(few.length, 3)
  assert.deepEqual(few, [many[0], many[4], many[7]])
})

test('options of the processor: of the model and of a call', async () => {
  await using plain = await loadModel(directory)
  await using fast = await loadModel(directory, { processor: { fps: 5, maxFrames: 12 } })
  const input = { video: file('five.webp') }
  const [a, b, c] = [await plain.embed(input), await fast.embed(input), await plain.embed(input, { processor: { fps: 5 } })]
  assert.deepEqual(b.vectors, c.vectors)
  assert.notDeepEqual(a.vectors, b.vectors)
  assert.ok((await plain.embed(input, { processor: { totalPixels: 2048 } })).usage.video < a.usage.video)
  const image = { image: path.join(fixtures, 'vision', 'images', 'rgb.png') }
  assert.equal((await plain.embed(image, { processor: { maxPixels: 512 } })).usage.image, 6)
  await assert.rejects(plain.embed(image, { processor: { maxpixels: 1 } as never }), /processor: expected minPixels, .*got "maxpixels"/)
  await assert.rejects(plain.embed(image, { processor: { minPixels: 4000 } }), /at most/)
  await assert.rejects(plain.embed(image, { processor: { fps: 0 } }), /processor.fps: expected a positive number/)
})

test('sampling, sizes and times as the reference takes them', () => {
  const few = { fps: 2, minFrames: 4, maxFrames: 768 }
  assert.deepEqual(sampleFrames(150, 30000 / 1001, few), [0, 17, 33, 50, 66, 83, 99, 116, 132, 149])
  assert.deepEqual(sampleFrames(3, 30, few), [0, 1, 2])
  assert.deepEqual(sampleFrames(1, 30, few), [0])
  assert.equal(sampleFrames(1_000_000, 25, few).length, 768)
  assert.deepEqual([0.25, 0.75, 1.25, 0.35, 12, 0.05].map(secondsText), ['0.2', '0.8', '1.2', '0.3', '12.0', '0.1'])
  const ntsc = steadyTimes({ times: Array.from({ length: 150 }, (_, i) => 0.003 + Math.round((i * 1001) / 30) / 1000), lastDuration: 0.033, tick: 0.001 })
  assert.ok(Math.abs(ntsc.fps - 30000 / 1001) < 1e-9 && ntsc.times[149] === 149 / ntsc.fps)
  assert.deepEqual(steadyTimes({ times: [0, 0.1, 0.2, 2.2], lastDuration: 0.1, tick: 1e-6 }).times, [0, 0.1, 0.2, 2.2])
  const big = { ...settings, patch: 16, minPixels: 4096, maxPixels: 25165824, maxFrameTokens: undefined }
  assert.deepEqual(smartResizeVideo(10, 1920, 1080, big), { width: 1920, height: 1088 })
  assert.deepEqual(smartResizeVideo(64, 1920, 1080, big), { width: 832, height: 448 })
  assert.deepEqual(smartResizeVideo(10, 1920, 1080, { ...big, maxFrameTokens: 768 }), { width: 1152, height: 640 })
  assert.deepEqual(smartResizeVideo(4, 10, 30, big), { width: 32, height: 96 })
})

test('bad videos are named', async () => {
  const place = temporary()
  await using model = await loadModel(directory)
  const fails = (video: unknown, code: string, message: RegExp) =>
    assert.rejects(model.embed(['before', { video: video as string }]), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  const write = (name: string, bytes: Buffer | string) => {
    writeFileSync(path.join(place, name), bytes)
    return path.join(place, name)
  }
  await fails(path.join(place, 'none.mp4'), 'FILE_IO', /input 1: video .*none\.mp4: expected a file, found none/)
  await fails(write('empty.mp4', ''), 'INVALID_INPUT', /empty\.mp4: expected a video, got no bytes/)
  await fails({ frames: [] }, 'INVALID_INPUT', /expected at least one frame/)
  await fails({ frames: [file('five.webp')], fps: 0 }, 'INVALID_INPUT', /fps: expected a positive number/)
  await fails({ frames: [file('five.webp'), path.join(fixtures, 'vision', 'images', 'rgb.png')] }, 'INVALID_INPUT', /frames of one size/)
  await fails('https://example.org/video.mp4', 'INVALID_INPUT', /expected a local file, got the remote address/)
  await fails(write('half.webp', readFileSync(file('five.webp')).subarray(0, 20000)), 'INVALID_INPUT', /half\.webp: cannot be decoded/)
  await fails(write('damaged.webp', readFileSync(file('five.webp')).fill(0, 5000, 5040)), 'INVALID_INPUT', /damaged\.webp: cannot be decoded: .*pixels/)
  const before = process.env.CONAN_FFMPEG
  process.env.CONAN_FFMPEG = path.join(place, 'no-such-program')
  try {
    await fails(file('ntsc.mp4'), 'FFMPEG_MISSING', /takes ffmpeg, expected as .*no-such-program.*Install it: apt-get install ffmpeg/)
  } finally {
    if (before === undefined) delete process.env.CONAN_FFMPEG
    else process.env.CONAN_FFMPEG = before
  }
})

test('bad containers are named', ffmpeg, async () => {
  const place = temporary()
  await using model = await loadModel(directory)
  const sound = path.join(place, 'sound.mp4')
  spawnSync('ffmpeg', ['-v', 'error', '-f', 'lavfi', '-i', 'sine=duration=1', '-c:a', 'aac', sound])
  writeFileSync(path.join(place, 'text.mp4'), 'this is no video')
  writeFileSync(path.join(place, 'half.mp4'), readFileSync(file('ntsc.mp4')).subarray(0, 6000))
  const inputs: EmbedInput[] = [{ video: sound }, { video: path.join(place, 'text.mp4') }, { video: path.join(place, 'half.mp4') }, 'a text']
  const { errors, vectors } = await model.embed(inputs, { onError: 'skip' })
  assert.deepEqual(
    errors.map(({ index, error }) => [index, error.code]),
    [0, 1, 2].map((index) => [index, 'INVALID_INPUT']),
  )
  assert.match(errors[0]!.error.message, /input 0: video .*sound\.mp4: expected a video stream, found none/)
  assert.match(errors[1]!.error.message, /text\.mp4: cannot be decoded: .*Invalid data/)
  assert.deepEqual(vectors.slice(96), (await model.embed('a text')).vectors)
  // Whatever its name says, a file is what it holds.
  const renamed = path.join(place, 'really.avi')
  writeFileSync(renamed, readFileSync(file('ntsc.mp4')))
  assert.deepEqual((await model.embed({ video: renamed })).vectors, (await model.embed({ video: file('ntsc.mp4') })).vectors)
})

test('real videos: the frames and times of the reference', { skip: ffmpeg.skip || needs('media/mdn-cc0').skip }, async () => {
  const media = (name: string) => path.join(dataDirectory, 'media', 'mdn-cc0', name)
  for (const name of ['flower.mp4', 'flower.webm']) {
    const { times, fps } = await openVideo(media(name))
    assert.equal(times.length, 150)
    assert.ok(Math.abs(fps - 30000 / 1001) < 1e-9)
    const { seconds } = await videoPatches(media(name), { ...settings, minFrames: 4, maxFrames: 768 })
    assert.deepEqual(seconds.map(secondsText), ['0.3', '1.4', '2.5', '3.6', '4.7'])
  }
  const friday = await openVideo(media('friday.mp4'))
  assert.deepEqual([friday.times.length, friday.fps], [185, 30])
  assert.equal((await openVideo(media('hand-controller-target-ray.gif'))).times.length, 9)
})

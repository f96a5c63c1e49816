// Images and sounds, stage by stage and end to end, beside transformers and librosa with PyTorch in the same run, in turn.
//   npx tsx bench/media.ts MODELS [--rounds 3] [--threads 2] [--dtype float32] [--out result.json]
// MODELS is made by bench/make_vision_model.py; CONAN_TEST_DATA holds media/; CONAN_BENCH_PYTHON has torch, transformers, librosa.
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { attachAudio, loadModel } from '../lib'
import { binding, type NativeModel } from '../lib/binding'
import { joined } from '../lib/embed/media'
import { audioFeatures, decodeAudio } from '../lib/media/audio'
import { decodeImage, imagePatches } from '../lib/media/image'
import { readAudioSettings, readImageSettings } from '../lib/media/processor'

async function main() {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '3' },
      threads: { type: 'string', default: '2' },
      dtype: { type: 'string', default: 'float32' },
      out: { type: 'string' },
    },
  })
  const models = path.resolve(positionals[0] ?? '')
  const data = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(__dirname, '../../shared/data'))
  const dtype = options.dtype as 'float32' | 'bfloat16'
  const directory = path.join(models, dtype === 'bfloat16' ? 'vision-bfloat16' : 'vision')
  const media = path.join(data, 'media', 'mdn-cc0')
  for (const where of [directory, media])
    if (!existsSync(where)) {
      console.error(`bench: expected ${where}, found none`)
      process.exit(2)
    }
  const images = readdirSync(media)
    .filter((name) => /\.jpg$/.test(name))
    .slice(0, 6)
    .map((name) => path.join(media, name))
  const sounds = ['guitar.mp3', 'guitar.ogg', 'guitar.wav', 'countdown.mp3'].map((name) => path.join(media, name))
  const threads = Number(options.threads)
  const temporary = mkdtempSync(path.join(os.tmpdir(), 'conan-bench-'))
  const omni = path.join(temporary, 'omni')
  await attachAudio(path.join(__dirname, '../test/fixtures/pico/qwen3'), path.join(models, 'audio-tower'), { out: omni })

  const seconds = async (work: () => Promise<unknown>) => {
    const start = performance.now()
    await work()
    return (performance.now() - start) / 1000
  }
  const handle = (from: string) => binding().load({ directory: from, adapters: [], dtype, threads, pooling: 'lasttoken', dense: [] })
  const model = await loadModel(directory, { dtype, threads })
  const tower = await handle(directory)
  const heard = await handle(omni)
  const imageSettings = readImageSettings(directory, {})
  const audioSettings = readAudioSettings(omni, {})

  async function ourImages(native: NativeModel) {
    const one = <T>(work: (file: string) => Promise<T>) => Promise.all(images.map(work))
    const decode = await seconds(() => one(decodeImage))
    const raw = await one(async (file) => {
      const { rgb, width, height } = await decodeImage(file)
      return { data: rgb, width, height, channels: 3 as const }
    })
    const resize = await seconds(() => Promise.all(raw.map((image) => imagePatches(image, imageSettings))))
    const pictures = await one((file) => imagePatches(file, imageSettings))
    let towers = 0
    let backbone = 0
    let tokens = 0
    for (const each of pictures) {
      towers += await seconds(() => binding().visionStates(native, joined([{ kind: 'image', tokens: 0, expanded: '', pictures: each }], 1)!))
      const count = (each.grids[0]! * each.grids[1]!) / 4 + 30
      tokens += count
      backbone += await seconds(() => binding().embed(native, new Int32Array(count).fill(5), Int32Array.of(0, count), true, 1024))
    }
    const total = await seconds(() => model.embed(images.map((image) => ({ image }))))
    return { decode, resize, tower: towers, backbone, total, tokens }
  }
  async function ourSounds(native: NativeModel) {
    const all = { decode: 0, resample: 0, mel: 0, tower: 0, length: 0 }
    for (const file of sounds) {
      const start = performance.now()
      const { samples, samplingRate } = await decodeAudio(file)
      all.decode += (performance.now() - start) / 1000
      all.length += samples.length / samplingRate
      all.resample += await seconds(() => binding().resample(samples, samplingRate, 16000))
      const raw = { samples: await binding().resample(samples, samplingRate, 16000), samplingRate: 16000 }
      all.mel += await seconds(() => audioFeatures(raw, {}, audioSettings))
      const features = await audioFeatures(raw, {}, audioSettings)
      all.tower += await seconds(() => binding().audioStates(native, joined([{ kind: 'audio', tokens: 0, expanded: '', features }], audioSettings.bins)!))
    }
    return all
  }

  const child = spawn(
    process.env.CONAN_BENCH_PYTHON ?? 'python3',
    [path.join(__dirname, 'media_peer.py'), directory, path.join(models, 'audio-tower'), dtype, options.threads],
    {
      stdio: ['pipe', 'pipe', process.env.CONAN_BENCH_VERBOSE ? 'inherit' : 'ignore'],
    },
  )
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const peer = async (request: object): Promise<Record<string, number>> => {
    child.stdin.write(`${JSON.stringify(request)}\n`)
    for (;;) {
      const { value, done } = await lines.next()
      if (done) throw new Error('the Python peer ended (CONAN_BENCH_VERBOSE=1 shows why)')
      if (value.startsWith('{')) return JSON.parse(value)
    }
  }
  await peer({ op: 'ready' })

  const rows: Record<string, Record<string, number>[]> = { 'images ours': [], 'images PyTorch': [], 'sounds ours': [], 'sounds PyTorch': [] }
  for (let round = -1; round < Number(options.rounds); round++) {
    const results = [await ourImages(tower), await peer({ op: 'images', files: images }), await ourSounds(heard), await peer({ op: 'sounds', files: sounds })]
    if (round >= 0) for (const [i, name] of Object.keys(rows).entries()) rows[name]!.push(results[i]!) // the first warms up
  }
  child.kill()
  const median = (values: number[]) => [...values].sort((a, b) => a - b)[values.length >> 1]!
  const table = Object.fromEntries(
    Object.entries(rows).map(([name, list]) => [name, Object.fromEntries(Object.keys(list[0]!).map((key) => [key, median(list.map((row) => row[key]!))]))]),
  ) as Record<string, Record<string, number>>
  console.log(`${os.cpus()[0]!.model}, ${threads} threads, ${dtype}, node ${process.version}; medians of ${options.rounds}`)
  const { tokens } = table['images ours'] as { tokens: number }
  console.log(`\n${images.length} images, ${tokens} tokens; milliseconds an image`)
  const each = (row: Record<string, number>, keys: string[], n: number) => Object.fromEntries(keys.map((key) => [key, ((1000 * row[key]!) / n).toFixed(1)]))
  const stages = ['decode', 'resize', 'tower', 'backbone', 'total']
  console.table({ ours: each(table['images ours']!, stages, images.length), 'transformers, PyTorch': each(table['images PyTorch']!, stages, images.length) })
  const length = table['sounds ours']!.length!
  console.log(`${sounds.length} sounds, ${length.toFixed(0)} seconds; milliseconds a second of sound`)
  const steps = ['decode', 'resample', 'mel', 'tower']
  console.table({ ours: each(table['sounds ours']!, steps, length), 'librosa, transformers, PyTorch': each(table['sounds PyTorch']!, steps, length) })
  if (options.out) writeFileSync(options.out, JSON.stringify({ cpu: os.cpus()[0]!.model, threads, dtype, rows }, null, 1))
  binding().dispose(tower)
  binding().dispose(heard)
  await model.dispose()
  rmSync(temporary, { recursive: true })
}

main()

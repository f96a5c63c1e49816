// Sounds: every format against soundfile's samples, resampling against soxr, every way to hand one over and every way in which one
// can be wrong; the command and the function that attach an encoder.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { type AudioInput, attachAudio, ConanError, type EmbedInput, inspect, loadModel } from '../../lib'
import { binding } from '../../lib/binding'
import { decodeAudio } from '../../lib/media/audio'
import type { Sound, SoundRequest } from '../../lib/media/sound'
import { Threads } from '../../lib/media/thread'
import { templateWithAudio } from '../../lib/omni/attach-audio'
import { copyOf, dataDirectory, editJson, fixtures, floats, largestDifference, needs, readSafetensors, root, temporary, worstCosine } from '../support'

const audio = (...names: string[]) => path.join(fixtures, 'audio', ...names)
const vl = path.join(fixtures, 'vision', 'qwen3_vl')
const golden = readSafetensors(audio('golden.safetensors'))
const ffmpeg = { skip: spawnSync('ffmpeg', ['-version']).status === 0 ? false : 'no ffmpeg on PATH' } as const

for (const name of ['pcm16.wav', 'sound.flac', 'sound.ogg', 'sound.mp3', 'sound.opus'])
  test(`${name}: the samples that soundfile reads, resampled as soxr does`, async () => {
    const { samples, samplingRate } = await decodeAudio(audio(name))
    const want = floats(golden.get(`decoded.${name}`)!)
    assert.ok(largestDifference(samples.subarray(0, want.length), want) < 2e-5)
    const heard = await binding().resample(samples, samplingRate, 16000)
    assert.equal(heard.length, Math.ceil((samples.length * 16000) / samplingRate))
    // The recording fills the band up to its edge, where no two filters are alike.
    const reference = floats(golden.get(`heard.${name}`)!)
    const difference = heard.subarray(1000, 1000 + reference.length).map((x, i) => x - reference[i]!)
    const power = (values: Float32Array) => values.reduce((sum, x) => sum + x * x, 0)
    assert.ok(10 * Math.log10(power(reference) / power(difference)) > 50)
  })

test('several threads share the sounds that are to be decoded', async () => {
  const threads = new Threads<SoundRequest>('audio-worker.js', 2)
  const decode = (name: string) => {
    const thread = threads.least()
    const sound = thread.ask<Sound>({ source: audio(name), name, start: 0, duration: undefined, limitSeconds: 60 })
    return { thread, sound }
  }
  const asked = ['sound.mp3', 'sound.flac', 'sound.mp3', 'none.wav'].map(decode)
  asked[3]!.sound.catch(() => {}) // it is looked at below
  assert.deepEqual(
    asked.map(({ thread }) => thread === asked[0]!.thread),
    [true, false, true, false],
  )
  const values = await Promise.all(asked.slice(0, 3).map(({ sound }) => sound))
  await assert.rejects(asked[3]!.sound, ConanError)
  const [mp3, flac] = [await decodeAudio(audio('sound.mp3')), await decodeAudio(audio('sound.flac'))]
  assert.deepEqual(values, [mp3, flac, mp3])
  assert.equal(threads.least().load, 0)
})

test('WAV of every width', async () => {
  const { samples } = await decodeAudio(audio('float.wav'))
  for (const [name, most] of Object.entries({
    'pcm8.wav': 1 / 127,
    'pcm16.wav': 1e-4,
    'pcm24.wav': 1e-6,
    'pcm32.wav': 1e-6,
    'double.wav': 1e-7,
    'extensible.wav': 1e-6,
  })) {
    const other = await decodeAudio(audio(name))
    assert.equal(other.samplingRate, 44100)
    assert.ok(largestDifference(other.samples, samples) <= most, name)
  }
})

/** A WAV file with 16-bit samples, of a rate and any number of channels. */
function wav(
  frames: number,
  { channels = 1, rate = 16000, sample = (i: number, c: number) => 3000 * Math.sin(i / (5 + c)), size = undefined as number | undefined } = {},
): Buffer {
  const data = Buffer.alloc(frames * channels * 2)
  for (let i = 0; i < frames; i++) for (let c = 0; c < channels; c++) data.writeInt16LE(Math.round(sample(i, c)), (i * channels + c) * 2)
  const header = Buffer.alloc(44)
  header.write('RIFF', 0)
  header.writeUInt32LE(36 + data.length, 4)
  header.write('WAVEfmt ', 8)
  header.writeUInt32LE(16, 16)
  header.writeUInt16LE(1, 20)
  header.writeUInt16LE(channels, 22)
  header.writeUInt32LE(rate, 24)
  header.writeUInt32LE(rate * channels * 2, 28)
  header.writeUInt16LE(channels * 2, 32)
  header.writeUInt16LE(16, 34)
  header.write('data', 36)
  header.writeUInt32LE(size ?? data.length, 40)
  return Buffer.concat([header, data])
}

test('path, bytes, URLs and samples are one sound; eight channels are mixed; parts are parts', async () => {
  await using model = await loadModel(audio('omni'))
  const bytes = readFileSync(audio('pcm16.wav'))
  const decoded = await decodeAudio(bytes)
  const forms: AudioInput[] = [audio('pcm16.wav'), bytes, pathToFileURL(audio('pcm16.wav')), `data:audio/wav;base64,${bytes.toString('base64')}`, decoded]
  const { vectors } = await model.embed(forms.map((audio) => ({ audio })))
  for (let i = 1; i < forms.length; i++) assert.deepEqual(vectors.slice(i * 32, i * 32 + 32), vectors.slice(0, 32), `form ${i}`)

  const eight = await decodeAudio(wav(4000, { channels: 8 }))
  const one = Float32Array.from(
    { length: 4000 },
    (_, i) => [...Array(8).keys()].reduce((sum, c) => sum + Math.round(3000 * Math.sin(i / (5 + c))), 0) / 8 / 32768,
  )
  assert.ok(largestDifference(eight.samples, one) < 1e-6)
  assert.deepEqual((await decodeAudio({ samples: [one, one], samplingRate: 16000 })).samples, one)

  const whole = await decodeAudio(wav(48000))
  const part = await decodeAudio(wav(48000), { start: 1, duration: 0.5 })
  assert.deepEqual(part.samples, whole.samples.slice(16000, 24000))
  const flac = await decodeAudio(audio('sound.flac'))
  assert.deepEqual((await decodeAudio(audio('sound.flac'), { start: 0.5 })).samples, flac.samples.slice(22050))
  const a = await model.embed({ audio: wav(48000), start: 1, duration: 0.5 })
  assert.deepEqual(a.vectors, (await model.embed({ audio: part })).vectors)
})

test('streams of unknown or untrue size end with their data', async () => {
  for (const size of [0, 0xffffffff, 9_000_000]) assert.equal((await decodeAudio(wav(5000, { size }))).samples.length, 5000)
  assert.equal((await decodeAudio(wav(5000).subarray(0, 44 + 2001))).samples.length, 1000)
  const cut = await decodeAudio(readFileSync(audio('sound.mp3')).subarray(0, 12000))
  assert.ok(cut.samples.length > 20000)
})

test('no file stays open, read to its end or not', { skip: existsSync('/proc/self/fd') ? false : 'no /proc to look into' }, async () => {
  const open = () => readdirSync('/proc/self/fd').length
  await decodeAudio(audio('pcm16.wav'))
  const before = open()
  for (let i = 0; i < 20; i++) {
    for (const name of ['pcm16.wav', 'sound.flac', 'sound.ogg', 'sound.mp3', 'sound.opus']) await decodeAudio(audio(name), { duration: i % 2 ? 0.01 : 100 })
    await assert.rejects(decodeAudio(path.join(root, 'package.json')), { code: /INVALID_INPUT|FFMPEG_MISSING/ })
  }
  assert.ok(open() < before + 20, `${open()} files are open, there were ${before}`)
})

test('a FLAC file of which our decoder loses a part goes through ffmpeg', ffmpeg, async () => {
  const cut = path.join(temporary(), 'cut.flac')
  const bytes = readFileSync(audio('sound.flac'))
  writeFileSync(cut, bytes.subarray(0, bytes.length / 2))
  const { samples } = await decodeAudio(cut)
  const whole = await decodeAudio(audio('sound.flac'))
  assert.ok(samples.length > 0 && samples.length < whole.samples.length)
  assert.ok(largestDifference(samples.subarray(0, 1000), whole.samples.subarray(0, 1000)) < 1e-4)
  assert.ok((await decodeAudio(bytes.subarray(0, 60000))).samples.length > 10000)
})

const nicolas = needs('datasets/fsdd/audio/8_nicolas_23.flac')
test('a FLAC file with what looks like a frame within a frame', { skip: ffmpeg.skip || nicolas.skip }, async () => {
  const { samples, samplingRate } = await decodeAudio(path.join(dataDirectory, 'datasets/fsdd/audio/8_nicolas_23.flac'))
  assert.deepEqual([samples.length, samplingRate], [3236, 8000])
})

test('what no decoder here reads goes through ffmpeg', ffmpeg, async () => {
  const place = temporary()
  const file = path.join(place, 'sound.m4a')
  spawnSync('ffmpeg', ['-v', 'error', '-i', audio('sound.flac'), '-c:a', 'aac', '-b:a', '192k', file])
  const { samples, samplingRate } = await decodeAudio(file)
  assert.equal(samplingRate, 44100)
  const flac = await decodeAudio(audio('sound.flac'))
  assert.ok(Math.abs(samples.length - flac.samples.length) < 4096)
  assert.deepEqual((await decodeAudio(readFileSync(file))).samples, samples)
  const renamed = path.join(place, 'sound.wav')
  copyFileSync(audio('sound.mp3'), renamed)
  assert.deepEqual((await decodeAudio(renamed)).samples, (await decodeAudio(audio('sound.mp3'))).samples)
  const silent = path.join(place, 'silent.mp4')
  spawnSync('ffmpeg', ['-v', 'error', '-f', 'lavfi', '-i', 'testsrc=duration=0.2', silent])
  await assert.rejects(decodeAudio(silent), { code: 'INVALID_INPUT', message: /silent\.mp4: expected an audio stream, found none/ })
})

test('bad sounds are named, and the rest goes on', async () => {
  const place = temporary()
  const write = (name: string, bytes: Buffer | string) => {
    writeFileSync(path.join(place, name), bytes)
    return path.join(place, name)
  }
  await using model = await loadModel(audio('omni'))
  const bad = (samples: unknown, samplingRate: unknown = 16000) => ({ samples, samplingRate }) as AudioInput
  const noisy = Buffer.concat([Buffer.from('ID3\x03\0\0\0\0\0\0'), Buffer.alloc(5000, 0x55)])
  const flipped = (name: string, at: number) => readFileSync(audio(name)).fill(1, at, at + 1) // of the first page's number: its decoder ends in a fault
  const cases: [unknown, string, RegExp][] = [
    [flipped('sound.ogg', 35), 'INVALID_INPUT', /input 0: audio .*: cannot be decoded as vorbis$/],
    [flipped('sound.opus', 18), 'INVALID_INPUT', /input 0: audio .*: cannot be decoded as opus$/],
    [path.join(place, 'none.wav'), 'FILE_IO', /input 0: audio .*none\.wav: expected a file, found none/],
    [write('empty.wav', ''), 'INVALID_INPUT', /empty\.wav: expected a sound, got no bytes/],
    [write('header.wav', wav(0)), 'INVALID_INPUT', /header\.wav: expected samples, found none/],
    [write('cut.wav', wav(10).subarray(0, 30)), 'INVALID_INPUT', /cut\.wav: WAV: expected/],
    [wav(100, { rate: 10 }), 'INVALID_INPUT', /sampling rate of 1000 to 768000, got 10/],
    [bad(new Float32Array(0)), 'INVALID_INPUT', /expected samples, got none/],
    [bad(Float32Array.of(0, Number.NaN, 0)), 'INVALID_INPUT', /sample 1: expected a finite number, got NaN/],
    [bad([new Float32Array(3), new Float32Array(4)]), 'INVALID_INPUT', /of equal length/],
    [bad(new Float32Array(3), 7), 'INVALID_INPUT', /samplingRate: expected 1000 to 768000, got 7/],
    [noisy, 'INVALID_INPUT', /cannot be decoded/],
    [12, 'INVALID_INPUT', /expected a path, bytes/],
  ]
  for (const [input, code, message] of cases)
    await assert.rejects(model.embed([{ audio: input as string }]), (error: ConanError) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  const inputs = ['before', ...cases.map(([input]) => ({ audio: input })), 'after'] as EmbedInput[]
  const { vectors, errors } = await model.embed(inputs, { onError: 'skip' })
  assert.equal(errors.length, cases.length)
  assert.deepEqual(vectors.slice(-32), (await model.embed('after')).vectors)
  for (const options of [{ start: -1 }, { duration: 0 }, { start: 100 }])
    await assert.rejects(model.embed({ audio: wav(100), ...options }), { code: 'INVALID_INPUT' })
  await assert.rejects(model.embed({ text: 'a', start: 1 } as EmbedInput), { code: 'INVALID_INPUT' })
})

test('settings of sound that no model has, and a token that is not there, are named', async () => {
  const absurd = copyOf(audio('omni'))
  for (const [key, value] of [
    ['n_fft', 2 ** 32],
    ['sampling_rate', 1e9],
    ['hop_length', 1e18],
  ] as const) {
    editJson(path.join(absurd, 'audio_preprocessor_config.json'), (c) => (c[key] = value))
    await assert.rejects(loadModel(absurd), { code: 'CONFIG_INVALID', message: new RegExp(`"${key}": expected a whole number from 1 to`) })
    editJson(path.join(absurd, 'audio_preprocessor_config.json'), (c) => delete c[key])
  }
  const mute = copyOf(audio('omni'))
  editJson(
    path.join(mute, 'tokenizer.json'),
    (t) => (t.added_tokens = (t.added_tokens as { content: string }[]).filter(({ content }) => content !== '<|AUDIO|>')),
  )
  await assert.rejects(loadModel(mute), { code: 'TOKENIZER_INVALID', message: /expected a token 275, which config\.json says stands for sounds/ })
})

test('more sound than the model takes is an error before it is decoded; an hour is heard in parts', async () => {
  await using model = await loadModel(audio('omni'))
  const file = path.join(temporary(), 'hour.wav')
  writeFileSync(file, wav(16000 * 3600, { sample: () => 0 }))
  const before = process.memoryUsage().rss
  const start = performance.now()
  await assert.rejects(model.embed({ audio: file }), {
    code: 'INPUT_TOO_LONG',
    message: /expected at most \d+ seconds of sound, .*start and duration choose a part/,
  })
  assert.ok(performance.now() - start < 2000)
  const { vectors } = await model.embed({ audio: file, start: 3590, duration: 5 })
  assert.ok(vectors.every(Number.isFinite))
  assert.ok(process.memoryUsage().rss - before < 300e6)
})

test('clips of a few samples are heard in silence', async () => {
  await using model = await loadModel(audio('omni'))
  for (const length of [1, 159, 160, 201, 399, 401]) {
    const { vectors, usage } = await model.embed({ audio: { samples: new Float32Array(length).fill(0.1), samplingRate: 16000 } })
    assert.ok(vectors.every(Number.isFinite) && usage.audio === 1, `${length}`)
  }
})

test('attach-audio: the directory is whole, says what it holds, and is the same again', async () => {
  const place = temporary()
  const cli = (...args: string[]) => spawnSync(process.execPath, [path.join(root, 'dist/cli.js'), 'attach-audio', ...args], { encoding: 'utf8' })
  const out = path.join(place, 'omni')
  const run = cli(vl, audio('qwen3_omni'), '--out', out, '--hidden-size', '20', '--hidden-act', 'silu', '--no-bias', '--seed', '3', '--dtype', 'bfloat16')
  assert.equal(run.status, 0, run.stderr)
  assert.match(run.stdout, /a fresh projector 24 -> 20 -> 32, 4 tokens added, embeddings longer by 4 rows/)
  const report = inspect(out)
  assert.deepEqual([report.problems, report.unused], [[], []])
  assert.deepEqual(
    report.tensors
      .filter(({ name }) => name.startsWith('audio_projector'))
      .map(({ name, dtype }) => [name, dtype])
      .sort(),
    [
      ['audio_projector.linear_1.weight', 'bfloat16'],
      ['audio_projector.linear_2.weight', 'bfloat16'],
    ],
  )
  await using model = await loadModel(out)
  assert.ok((await model.embed({ audio: wav(16000), text: 'a' })).vectors.every(Number.isFinite))
  // Text and images give what they gave before.
  await using plain = await loadModel(vl)
  const inputs: EmbedInput[] = ['words', { image: path.join(fixtures, 'vision', 'images', 'rgb.png') }]
  assert.deepEqual((await model.embed(inputs)).vectors, (await plain.embed(inputs)).vectors)

  await attachAudio(vl, audio('qwen3_omni'), { out: path.join(place, 'again'), hiddenSize: 20, hiddenAct: 'silu', bias: false, seed: 3, dtype: 'bfloat16' })
  const weights = (directory: string) => readFileSync(path.join(directory, 'model.safetensors'))
  assert.deepEqual(weights(path.join(place, 'again')), weights(out))
  await attachAudio(vl, audio('qwen3_omni'), { out: path.join(place, 'other'), hiddenSize: 20, bias: false, seed: 4, outShardSize: 200_000 })
  assert.ok(existsSync(path.join(place, 'other', 'model.safetensors.index.json')))
  await using sharded = await loadModel(path.join(place, 'other'))
  assert.ok(sharded.supports('audio'))

  const dry = await attachAudio(vl, audio('whisper'), { out: path.join(place, 'dry'), dryRun: true })
  assert.deepEqual([dry.projector.hiddenSize, dry.projector.fresh, existsSync(path.join(place, 'dry'))], [32, true, false])
})

test('attach-audio: any text model becomes one that hears', async () => {
  for (const name of readdirSync(path.join(fixtures, 'pico'))) {
    const out = path.join(temporary(), name)
    await attachAudio(path.join(fixtures, 'pico', name), audio('whisper'), { out })
    await using model = await loadModel(out)
    const { vectors } = await model.embed(['bell', { audio: audio('pcm16.wav') }])
    assert.ok(model.supports('audio') && vectors.every(Number.isFinite), name)
  }
})

test('attach-audio: what is wrong is named, and nothing is left behind', async () => {
  const place = temporary()
  const out = path.join(place, 'out')
  const fails = (model: string, encoder: string, options: object, code: string, message: RegExp) =>
    assert.rejects(attachAudio(model, encoder, { out, ...options }), (error: ConanError) => {
      assert.ok(error instanceof ConanError, String(error))
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails(audio('omni'), audio('whisper'), {}, 'CONFIG_INVALID', /expected a model without sound/)
  await fails(vl, path.join(fixtures, 'pico', 'bert'), {}, 'UNSUPPORTED_ARCHITECTURE', /expected one of whisper, .*got "bert"/)
  await fails(vl, path.join(place, 'none'), {}, 'MODEL_NOT_FOUND', /found nothing/)
  await fails(vl, audio('whisper'), { projector: audio('projector-tower') }, 'TENSOR_SHAPE', /expected linear_1 \[\*, 32\] .* got \[40, 24\]/)
  const narrow = copyOf(path.join(fixtures, 'pico', 'bert'))
  for (const key of ['hidden_size', 'vocab_size']) {
    editJson(path.join(narrow, 'config.json'), (config) => delete config[key])
    await fails(narrow, audio('whisper'), {}, 'CONFIG_INVALID', new RegExp(`"${key}": expected a positive whole number, got undefined`))
    editJson(path.join(narrow, 'config.json'), (config) => Object.assign(config, { [key]: 32 }))
  }
  await fails(vl, audio('whisper'), { hiddenAct: 'swishy' }, 'INVALID_OPTION', /hiddenAct/)
  await fails(vl, audio('whisper'), { hiddenSize: 0 }, 'INVALID_OPTION', /hiddenSize/)
  await fails(vl, audio('whisper'), { onProgress: () => mkdirSync(path.join(out, 'taken'), { recursive: true }) }, 'OUTPUT_EXISTS', /found files in it/)
  await fails(vl, audio('whisper'), {}, 'OUTPUT_EXISTS', /found files in it/)
  assert.deepEqual(readdirSync(place), ['out'])
  assert.throws(() => templateWithAudio('{{ messages }}', 'here'), { code: 'CONFIG_INVALID' })
  const qwen = "{%- if content.type == 'image' or 'image' in content %}A{%- elif content.type == 'video' %}B{%- endif %}"
  assert.equal(
    templateWithAudio(qwen, ''),
    "{%- if content.type == 'audio' %}<|audio_start|><|AUDIO|><|audio_end|>{%- elif content.type == 'image' or 'image' in content %}A{%- elif content.type == 'video' %}B{%- endif %}",
  )
})

test("attach-audio: transformers loads the omni checkpoint's backbone", async (t) => {
  const python = process.env.CONAN_TEST_PYTHON || 'python3'
  if (spawnSync(python, ['-c', 'import transformers, torch']).status !== 0) return t.skip(`no transformers for ${python} (set CONAN_TEST_PYTHON)`)
  const { status, stdout, stderr } = spawnSync(python, [path.join(fixtures, 'load_backbone.py'), audio('omni'), 'only words'], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  await using model = await loadModel(audio('omni'), { dtype: 'float32' })
  const { vectors } = await model.embed('only words')
  assert.ok(worstCosine(vectors, JSON.parse(stdout.trim().split('\n').at(-1) as string), 32) > 0.99999)
})

test('real recordings: one as MP3, Ogg and WAV; 8 kHz FLAC; 44.1 kHz Ogg', needs('media/mdn-cc0/guitar.wav'), async () => {
  await using model = await loadModel(audio('omni'), { dtype: 'float32' })
  const media = (name: string) => path.join(dataDirectory, 'media', 'mdn-cc0', name)
  const forms = await Promise.all(['guitar.wav', 'guitar.mp3', 'guitar.ogg'].map((name) => decodeAudio(media(name))))
  assert.deepEqual(
    forms.map(({ samples, samplingRate }) => [samples.length, samplingRate]),
    forms.map(() => [1006848, 44100]),
  )
  for (const { samples } of forms) {
    const off = samples.reduce((sum, x, i) => sum + (x - forms[0]!.samples[i]!) ** 2, 0) / samples.reduce((sum, x) => sum + x * x, 0)
    assert.ok(off < 0.05)
  }
  const inputs = ['guitar.wav', 'guitar.mp3', 'guitar.ogg'].map((name) => ({ audio: media(name), duration: 8 }))
  const { vectors } = await model.embed(inputs)
  assert.ok(model.similarity({ vectors: vectors.slice(0, 32), dimensions: 32 }, { vectors, dimensions: 32 }).every((cosine) => cosine > 0.99))
})

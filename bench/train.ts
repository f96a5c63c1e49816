// A step of Projector Recovery and a step of LoRA training, beside PyTorch in the same run, in turn.
//   npx tsx bench/train.ts MODELS [--rounds 3] [--threads 2] [--dtype float32] [--compiled] [--out result.json] [--only projector]
//     [--device cuda] [--decoder DIRECTORY] [--encoder DIRECTORY] [--batch 32]
// MODELS is made by bench/make_models.py (decoder, decoder-bfloat16); CONAN_TEST_DATA holds weights/whisper-base-encoder;
// CONAN_BENCH_PYTHON has torch, transformers and peft.
// Recovery: 16 sounds of 62 features against 16 texts of 64 tokens, a projector 512 -> 768 -> 1024 before a frozen decoder of 12 layers of
// 1024: the texts go forward only. LoRA: 32 texts of 64 tokens, rank 16 on all linear layers. --batch: the two halves together.
import { spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { attachAudio } from '../lib'
import { binding, type NativeChunk, type NativeStep } from '../lib/binding'
import { openParent } from '../lib/fuse/parents'
import { chooseTrainable } from '../lib/train/trainable'

const memory = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) / 1024

/** The process that measures ours: its memory is its own. */
async function worker(
  directory: string,
  dtype: string,
  threads: number,
  mode: 'projector' | 'lora',
  audioToken: number,
  again: boolean,
  device: string,
  half: number,
  width: number,
) {
  const { dense, lowRank } = chooseTrainable(openParent(directory, '.'), {
    mode,
    rank: 16,
    include: mode === 'lora' ? ['layers\\.\\d+\\.(self_attn|mlp)'] : [],
  })
  const training = JSON.stringify({ dense, lowRank, seed: 0, optimizer: {} })
  const model = await binding().load({ device, directory, adapters: [], dtype, threads, pooling: 'lasttoken', dense: [], training })
  const ids = new Int32Array(2 * half * 64)
  for (let i = 0; i < ids.length; i++) ids[i] = 300 + ((i * 37) % 1500)
  const offsets = Int32Array.from({ length: half + 1 }, (_, i) => 64 * i)
  // Queries and documents, as a training run hands them over.
  const chunks: NativeChunk[] = [0, 1].map((i) => ({ ids: ids.subarray(i * half * 64, (i + 1) * half * 64), offsets }))
  if (mode === 'projector') {
    for (let b = 0; b < half; b++) ids.fill(audioToken, b * 64 + 1, b * 64 + 63)
    const features = Float32Array.from({ length: half * 62 * width }, (_, i) => Math.sin(i * 0.37))
    chunks[0]!.media = { sounds: { features, frames: new Int32Array(half).fill(62), encoded: true } }
  }
  const step: NativeStep = {
    learningRate: 1e-4,
    weight: 1,
    update: true,
    chunkTokens: Math.max(8192, half * 64),
    matryoshka: { dimensions: [], weights: [] },
    contrastive: {
      queries: Array.from({ length: half }, (_, i) => i),
      documents: Array.from({ length: half }, (_, i) => half + i),
      positives: Array.from({ length: half }, (_, i) => [i]),
      temperature: 0.05,
      bothDirections: true,
      margin: -1,
    },
  }
  let round = 0
  for await (const _ of createInterface({ input: process.stdin })) {
    // A first epoch has new texts in every step; later ones know their vectors where nothing in the language model trains.
    if (!again) for (let i = half * 64; i < ids.length; i++) ids[i] = 300 + ((i * 37 + round) % 1500)
    round++
    const start = performance.now()
    const { loss } = await binding().trainStep(model, chunks, JSON.stringify(step))
    console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000, memory: memory(), loss }))
  }
}

async function main() {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '3' },
      threads: { type: 'string', default: '2' },
      dtype: { type: 'string', default: 'float32' },
      compiled: { type: 'boolean', default: false },
      out: { type: 'string' },
      worker: { type: 'string' },
      token: { type: 'string' },
      again: { type: 'boolean', default: false },
      only: { type: 'string' },
      device: { type: 'string', default: 'cpu' },
      decoder: { type: 'string' },
      encoder: { type: 'string' },
      batch: { type: 'string', default: '32' },
      width: { type: 'string' },
    },
  })
  const models = path.resolve(positionals[0] ?? '')
  const half = Number(options.batch) / 2
  if (options.worker)
    return worker(
      models,
      options.dtype!,
      Number(options.threads),
      options.worker as 'lora',
      Number(options.token),
      options.again!,
      options.device!,
      half,
      Number(options.width),
    )
  const directory = path.resolve(options.decoder ?? path.join(models, options.dtype === 'bfloat16' ? 'decoder-bfloat16' : 'decoder'))
  const temporary = mkdtempSync(path.join(os.tmpdir(), 'conan-bench-'))
  const omni = path.join(temporary, 'omni')
  const data = path.resolve(process.env.CONAN_TEST_DATA ?? path.join(__dirname, '../../shared/data'))
  const encoder = path.resolve(options.encoder ?? path.join(data, 'weights/whisper-base-encoder'))
  for (const where of [directory, encoder])
    if (!existsSync(where)) {
      console.error(`bench: expected ${where}, found none`)
      process.exit(2)
    }
  copyFileSync(path.join(__dirname, '../test/fixtures/pico/qwen3/tokenizer.json'), path.join(directory, 'tokenizer.json')) // any will do
  const { tokens } = await attachAudio(directory, encoder, { out: omni, hiddenSize: 768 })
  const token = String(tokens['<|AUDIO|>'])
  const width = String(JSON.parse(readFileSync(path.join(encoder, 'config.json'), 'utf8')).d_model)
  const modes = ['projector', 'lora'].filter((mode) => !options.only || mode === options.only)
  const contenders: Record<string, [string, string[]]> = {}
  for (const mode of modes) {
    contenders[`${mode} ours`] = [
      process.execPath,
      [
        ...process.execArgv,
        __filename,
        mode === 'lora' ? directory : omni,
        '--worker',
        mode,
        '--token',
        token,
        '--dtype',
        options.dtype!,
        '--threads',
        options.threads!,
        '--device',
        options.device!,
        '--batch',
        options.batch!,
        '--width',
        width,
      ],
    ]
    if (mode === 'projector') contenders['projector ours, later epochs'] = [contenders['projector ours']![0], [...contenders['projector ours']![1], '--again']]
    contenders[`${mode} PyTorch`] = [
      process.env.CONAN_BENCH_PYTHON ?? 'python3',
      [
        path.join(__dirname, 'train_peer.py'),
        directory,
        mode,
        options.dtype!,
        options.threads!,
        options.compiled ? 'compiled' : 'eager',
        options.device!,
        String(half),
        width,
      ],
    ]
    if (mode === 'projector') {
      const [command, [file, model, , ...rest]] = contenders['projector PyTorch']! as [string, [string, string, string, ...string[]]]
      contenders['projector PyTorch, one batch'] = [command, [file, model, 'projector-whole', ...rest]]
    }
  }
  const rows: Record<string, { seconds: number; memory: number; loss: number }[]> = {}
  for (const mode of modes) {
    const running = Object.entries(contenders)
      .filter(([name]) => name.startsWith(mode))
      .map(([name, [command, args]]) => {
        const child = spawn(command, args, { stdio: ['pipe', 'pipe', process.env.CONAN_BENCH_VERBOSE ? 'inherit' : 'ignore'] })
        const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
        return { name, child, lines }
      })
    for (let round = -1; round < Number(options.rounds); round++)
      for (const { name, child, lines } of running) {
        child.stdin.write('\n')
        for (;;) {
          const { value, done } = await lines.next()
          if (done) throw new Error(`${name} ended (CONAN_BENCH_VERBOSE=1 shows why)`)
          if (!value.startsWith('{')) continue
          if (round >= 0) (rows[name] ??= []).push(JSON.parse(value)) // the first warms up
          break
        }
      }
    for (const { child } of running) child.kill()
  }
  const median = (values: number[]) => [...values].sort((a, b) => a - b)[values.length >> 1]!
  const flop = { projector: (0.86e12 * half) / 16, lora: (1.15e12 * half) / 16 } // of the decoder of MODELS: the last layer for one token of each text; the weights of LoRA left aside
  const ceiling = spawnSync(path.join(__dirname, '../build/native-tests/gemm_bench'), [options.threads!, 'ceiling'], { encoding: 'utf8' }).stdout ?? ''
  console.log(
    `${os.cpus()[0]!.model}, ${options.threads} threads, ${options.dtype}, node ${process.version}; medians of ${options.rounds}; ceilings ${ceiling.trim()}`,
  )
  const table = Object.fromEntries(
    Object.entries(rows).map(([name, list]) => {
      const seconds = median(list.map((row) => row.seconds))
      const work = flop[name.split(' ')[0] as 'lora']
      return [
        name,
        {
          'seconds a step': seconds.toFixed(3),
          ...(!options.decoder && { 'GFLOP/s of the least work': Math.round(work / seconds / 1e9) }),
          'peak MB': Math.round(Math.max(...list.map((row) => row.memory))),
        },
      ]
    }),
  )
  console.table(table)
  if (options.out) writeFileSync(options.out, JSON.stringify({ cpu: os.cpus()[0]!.model, options, rows }, null, 1))
  rmSync(temporary, { recursive: true })
}

main()

// The command line as a process: input from everywhere, output whole or not at all, exit codes.
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { loadModel } from '../../lib/index'
import { copyOf, editJson, fixtures, pico, root, temporary } from '../support'

const bert = path.join(fixtures, 'st', 'bert-mean-dense')
function run(args: string[], input?: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [path.join(root, 'dist/cli.js'), ...args], { input, encoding: 'utf8' })
  return {
    status,
    stdout,
    stderr,
    lines: () =>
      stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
  }
}

test('embed: arguments, stdin, files; JSON lines and npy give the same numbers', async () => {
  await using model = await loadModel(bert)
  const texts = ['first line', 'second, with "quotes"', '']
  const { vectors } = await model.embed(texts)
  const want = texts.map((_, i) => [...vectors.subarray(i * 24, (i + 1) * 24)])
  const directory = temporary()
  const plain = path.join(directory, 'in.txt')
  writeFileSync(plain, `${texts.join('\n')}\n`)
  const jsonl = path.join(directory, 'in.jsonl')
  writeFileSync(jsonl, texts.map((text, i) => JSON.stringify(i === 1 ? text : { id: `doc-${i}`, text })).join('\n'))
  assert.deepEqual(
    run(['embed', bert, ...texts])
      .lines()
      .map((l) => l.embedding),
    want,
  )
  assert.deepEqual(
    run(['embed', bert], `${texts.join('\n')}\n`)
      .lines()
      .map((l) => l.embedding),
    want,
  )
  assert.deepEqual(
    run(['embed', bert, '--input', plain])
      .lines()
      .map((l) => l.embedding),
    want,
  )
  const fromJson = run(['embed', bert, '-i', jsonl]).lines()
  assert.deepEqual(
    fromJson.map((l) => l.id),
    ['doc-0', '1', 'doc-2'],
  )
  assert.deepEqual(
    fromJson.map((l) => l.embedding),
    want,
  )
  assert.deepEqual(run(['embed', bert, '--jsonl', '--field', 'body', '-i', '-'], '{"body": "first line"}\n').lines()[0].embedding, want[0])

  const npy = path.join(directory, 'out.npy')
  assert.equal(run(['embed', bert, '-i', jsonl, '--out', npy]).status, 0)
  const bytes = readFileSync(npy)
  assert.match(bytes.toString('latin1', 0, 128), /NUMPY.*'<f4'.*\(3, 24\)/s)
  assert.deepEqual([...new Float32Array(bytes.buffer.slice(bytes.byteOffset + 128, bytes.byteOffset + bytes.length))], want.flat())
  assert.deepEqual(JSON.parse(readFileSync(path.join(directory, 'out.ids.json'), 'utf8')), ['doc-0', '1', 'doc-2'])
  const out = path.join(directory, 'out.jsonl')
  assert.equal(run(['embed', bert, '-i', plain, '-o', out, '--dimensions', '8', '--force', '--precision', 'ubinary']).status, 0)
  assert.equal(JSON.parse(readFileSync(out, 'utf8').split('\n')[0]!).embedding.length, 1)
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.endsWith('.tmp')),
    [],
  )
})

test('embed: a failure leaves no output behind', () => {
  const directory = temporary()
  const bad = path.join(directory, 'bad.jsonl')
  writeFileSync(bad, '{"text": "fine"}\n{"no": "text"}\n')
  for (const out of ['out.npy', 'out.jsonl', 'out.parquet']) {
    const result = run(['embed', bert, '-i', bad, '-o', path.join(directory, out)])
    assert.equal(result.status, 2)
    assert.match(result.stderr, /line 2/)
    assert.ok(!existsSync(path.join(directory, out)))
  }
  assert.deepEqual(readdirSync(directory), ['bad.jsonl'])
})

test('embed: a run that was killed goes on, to the same bytes; not over other inputs or settings', async () => {
  const directory = temporary()
  const lines = Array.from({ length: 700 }, (_, i) => JSON.stringify(i % 50 === 7 ? { id: `n${i}`, image: 'none.png' } : { id: `n${i}`, text: `text ${i}` }))
  const model = path.join(fixtures, 'vision', 'qwen3_vl')
  const command = (out: string, ...more: string[]) => ['embed', model, '--jsonl', '-i', '-', '--skip-errors', '--batch-size', '4', '-o', out, ...more]
  for (const type of ['npy', 'jsonl', 'parquet']) {
    const [whole, out] = [path.join(directory, `whole.${type}`), path.join(directory, `out.${type}`)]
    assert.equal(run(command(whole), lines.join('\n')).status, 0)
    const journal = path.join(`${out}.partial`, 'journal.jsonl')
    const count = () => (existsSync(journal) ? readFileSync(journal, 'utf8').split('\n').length - 1 : 0)
    const killed = spawn(process.execPath, [path.join(root, 'dist/cli.js'), ...command(out)], { stdio: ['pipe', 'ignore', 'ignore'] })
    killed.stdin.write(`${lines.slice(0, 500).join('\n')}\n`) // and no end
    while (count() < 200) await setTimeout(20)
    killed.kill('SIGKILL')
    await once(killed, 'close')
    assert.ok(!existsSync(out))

    const other = lines.with(100, '{"id": "n100", "text": "another"}')
    assert.match(run(command(out), other.join('\n')).stderr, /number 100 is another \(n100\) now.*\[OUTPUT_EXISTS\]/)
    assert.match(run(command(out), lines.slice(0, 100).join('\n')).stderr, /number 100 is missing now/)
    assert.match(run(command(out, '--no-normalize'), lines.join('\n')).stderr, /holds a run with other settings.*\[OUTPUT_EXISTS\]/)

    // A machine that went down may have left less of either file, or half a line.
    const before = count()
    const vectors = path.join(`${out}.partial`, 'vectors')
    truncateSync(vectors, statSync(vectors).size - 10)
    appendFileSync(journal, '{"id": "n')
    const resumed = run(command(out, '--batch-size', '7'), lines.join('\n'))
    assert.equal(resumed.status, 0, resumed.stderr)
    const after = Number(/^going on after (\d+) inputs/.exec(resumed.stderr)?.[1])
    assert.ok(after > before - 3 && after <= before, `${after} of ${before}`)
    assert.ok(readFileSync(out).equals(readFileSync(whole)))
    if (type === 'npy') assert.equal(readFileSync(path.join(directory, 'out.ids.json'), 'utf8'), readFileSync(path.join(directory, 'whole.ids.json'), 'utf8'))
  }
  assert.deepEqual(readdirSync(directory).sort(), ['npy', 'jsonl', 'parquet', 'ids.json'].flatMap((type) => [`out.${type}`, `whole.${type}`]).sort())
})

test('exit codes and messages', () => {
  assert.equal(run([]).status, 2)
  assert.equal(run(['--help']).status, 0)
  assert.match(run(['embed', '--help']).stdout, /\n {2}--video FILE +a video; may be repeated\n.*\n {2}--jsonl +the input is JSON lines/s)
  assert.match(run(['--version']).stdout, /^\d+\.\d+\.\d+\n$/)
  assert.match(run(['frobnicate']).stderr, /expected one of embed, /)
  assert.equal(run(['embed']).status, 2)
  assert.equal(run(['embed', bert, '--nonsense']).status, 2)
  assert.equal(run(['embed', bert, 'a', '--batch-size', 'x']).status, 2)
  assert.equal(run(['embed', bert, 'a', '--out', 'x.csv']).status, 2)
  assert.equal(run(['embed', '/nowhere', 'a']).status, 3)
  assert.equal(run(['embed', bert, '-i', '/nowhere.txt']).status, 5)
  assert.equal(run(['embed', bert, 'a', '-o', '/nowhere/x.npy']).status, 5)
  const { status, stderr } = run(['embed', '/nowhere', 'a', '--json'])
  assert.equal(status, 3)
  assert.equal(JSON.parse(stderr).error.code, 'MODEL_NOT_FOUND')
})

test('embed: images by option and in JSON lines; --skip-errors', () => {
  const model = path.join(fixtures, 'vision', 'qwen3_vl')
  const images = path.join(fixtures, 'vision', 'images')
  const directory = temporary()
  writeFileSync(path.join(directory, 'photo.png'), readFileSync(path.join(images, 'rgb.png')))
  const rows = [
    { id: 'a', image: 'photo.png' },
    { id: 'b', image: ['photo.png'], text: 'with words' },
    { id: 'c', image: 'none.png' },
    'only words',
    { id: 'd', document: path.join(fixtures, 'document', 'colours.pdf'), page: 2 },
  ]
  const input = path.join(directory, 'rows.jsonl')
  writeFileSync(input, rows.map((row) => JSON.stringify(row)).join('\n'))
  assert.equal(run(['embed', model, '-i', input]).status, 5)
  const skipped = run(['embed', model, '-i', input, '--skip-errors'])
  assert.equal(skipped.status, 0, skipped.stderr)
  assert.match(skipped.stderr, /skipped c: input 2: image .*none\.png/)
  assert.deepEqual(
    skipped.lines().map(({ id }) => id),
    ['a', 'b', '3', 'd'],
  )
  const option = run(['embed', model, '--image', path.join(images, 'rgb.png')])
  assert.deepEqual(option.lines()[0].embedding, skipped.lines()[0].embedding)
})

test('inspect: a good directory, a bad one, devices', () => {
  const good = run(['inspect', bert])
  assert.equal(good.status, 0)
  assert.match(good.stdout, /architecture +bert/)
  assert.equal(run(['inspect', bert, '--json']).lines()[0].pooling, 'mean')
  assert.match(run(['inspect', bert, '--tensors']).stdout, /word_embeddings\.weight float32 \[272, 32\]/)
  const directory = copyOf(pico('bert'))
  editJson(path.join(directory, 'config.json'), (c) => (c.num_hidden_layers = 3))
  const bad = run(['inspect', directory])
  assert.equal(bad.status, 3)
  assert.match(bad.stdout, /PROBLEM.*layer\.2/)
  assert.match(run(['inspect', '--devices']).stdout, /^cpu: /)
})

test('fuse, drift and extract-lora', () => {
  const directory = temporary()
  const recipe = path.join(directory, 'recipe.yml')
  const qwen = pico('qwen3')
  const [out, adapter, page] = ['fused', 'adapter', 'drift.html'].map((name) => path.join(directory, name)) as [string, string, string]
  writeFileSync(
    recipe,
    `merge_method: ties\nbase_model: ${qwen}\nmodels:\n- model: ${path.join(fixtures, 'adapter')}\n  parameters: {weight: 1, density: 0.5}\ndtype: float32\n`,
  )
  assert.match(run(['fuse', recipe, '--out', out, '--dry-run']).stdout, /would write .*ties/)
  const fused = run(['fuse', recipe, '--out', out, '--sha256'])
  assert.equal(fused.status, 0, fused.stderr)
  assert.match(fused.stdout, /tensors: \d+ merged, 0 copied, 0 kept; 0 dropped/)
  assert.equal(run(['fuse', recipe, '--out', out]).status, 2) // taken
  assert.equal(run(['fuse', recipe]).status, 2)
  assert.equal(run(['fuse', `${recipe}.none`, '--out', `${out}2`]).status, 5)

  const lora = run(['extract-lora', out, qwen, '--out', adapter, '--rank', '2', '--json'])
  assert.equal(lora.status, 0, lora.stderr)
  assert.ok(lora.lines()[0].energy > 0.1)
  assert.equal(run(['extract-lora', out, qwen, '--out', `${adapter}2`, '--energy', 'all']).status, 2)

  const probe = path.join(directory, 'probe.jsonl')
  writeFileSync(probe, ['one', 'two', 'three'].map((text) => JSON.stringify({ query: `${text}?`, positive: text })).join('\n'))
  const drifted = run(['drift', qwen, out, '--probe', probe, '--out', page, '--json'])
  assert.equal(drifted.status, 0, drifted.stderr)
  assert.equal(drifted.lines()[0].retrieval.length, 2)
  assert.match(readFileSync(page, 'utf8'), /<svg/)
  assert.match(run(['drift', qwen, out]).stdout, /by layer\nmodel\.layers\.0/)
  assert.equal(run(['drift', qwen]).status, 2)
  assert.match(run(['drift', qwen, out, '--out', path.join(directory, 'none', 'drift.html')]).stderr, /its directory does not exist \[FILE_IO\]/)

  const searched = run(['fuse', recipe, '--out', `${out}3`, '--search', probe, '--grid', '0,1', '--json'])
  assert.equal(searched.status, 0, searched.stderr)
  assert.ok(existsSync(path.join(`${out}3`, 'coefficient-search.json')))
  assert.equal(run(['fuse', recipe, '--out', `${out}4`, '--search', probe, '--trade-off', 'x=y']).status, 2)
})

test('embed: media by flag and in JSON lines; every page of a document is an input', async () => {
  const model = path.join(fixtures, 'vision', 'qwen3_vl')
  const media = (...names: string[]) => path.join(fixtures, ...names)
  const [video, image, pdf] = [media('vision', 'video', 'five.webp'), media('vision', 'images', 'rgb.png'), media('document', 'colours.pdf')]
  const flags = run(['embed', model, '--video', video, '--image', image, '--document', pdf, '--fps', '5', '--max-frames', '6'])
  assert.equal(flags.status, 0, flags.stderr)
  const ids = [video, image, ...[1, 2, 3].map((page) => `${pdf}#page=${page}`)]
  assert.deepEqual(
    flags.lines().map(({ id }) => id),
    ids,
  )
  const directory = temporary()
  const rows = [
    { video: path.relative(directory, video) },
    { image: [path.relative(directory, image)] },
    ...[1, 2, 3].map((page) => ({ document: path.relative(directory, pdf), page })),
  ]
  writeFileSync(path.join(directory, 'rows.jsonl'), rows.map((row) => JSON.stringify(row)).join('\n'))
  const lines = run(['embed', model, '-i', path.join(directory, 'rows.jsonl'), '--fps', '5', '--max-frames', '6']).lines()
  assert.deepEqual(
    lines.map(({ embedding }) => embedding),
    flags.lines().map(({ embedding }) => embedding),
  )
  const omni = media('audio', 'omni')
  const sound = media('audio', 'pcm16.wav')
  writeFileSync(path.join(directory, 'sounds.jsonl'), JSON.stringify({ audio: sound, start: 0.1, duration: 0.1, text: 'a sound' }))
  const sounds = run(['embed', omni, '--audio', sound, '-i', path.join(directory, 'sounds.jsonl')]).lines()
  await using heard = await loadModel(omni)
  const { vectors } = await heard.embed([{ audio: sound }, { audio: sound, start: 0.1, duration: 0.1, text: 'a sound' }])
  assert.deepEqual(
    sounds.flatMap(({ embedding }) => embedding),
    [...vectors],
  )
  writeFileSync(path.join(directory, 'bad.jsonl'), '{"video": 5}')
  assert.match(run(['embed', model, '-i', path.join(directory, 'bad.jsonl')]).stderr, /line 1: expected the name of a file, got 5/)
})

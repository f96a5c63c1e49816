// Metrics against scikit-learn, scipy and mteb's definitions; tasks of every type on a tiny model; result files; bad tasks.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { type ConanError, evaluate, loadModel, type Task } from '../../lib'
import {
  averagePrecision,
  classificationScores,
  kMeans,
  linearProbe,
  multilabelScores,
  nearestNeighbours,
  pearson,
  ranking,
  rankingScores,
  spearman,
  vMeasure,
} from '../../lib/eval/metrics'
import { dataDirectory, fixtures, needs, pico, root, temporary } from '../support'

const golden = JSON.parse(readFileSync(path.join(fixtures, 'metrics.json'), 'utf8'))
const near = (got: number, want: number, what: string, tolerance = 1e-9) => assert.ok(Math.abs(got - want) < tolerance, `${what}: ${got}, reference ${want}`)

test('rankings: nDCG, recall, precision, MRR, MAP, hit rate', () => {
  for (const { scores, grades, expected } of golden.rankings) {
    const found = rankingScores(ranking(scores), grades, [3, 10])
    for (const [name, want] of Object.entries(expected as Record<string, number>)) near(found[name]!, want, name)
  }
  assert.deepEqual(rankingScores([0, 1], [0, 0], [1]).ndcg_at_1, 0)
})

test('average precision, correlations, V-measure', () => {
  const { average_precision: ap, correlation, v_measure: v } = golden
  near(averagePrecision(ap.scores, ap.labels), ap.expected, 'average precision')
  near(spearman(correlation.a, correlation.b), correlation.spearman, 'Spearman')
  near(pearson(correlation.a, correlation.b), correlation.pearson, 'Pearson')
  near(vMeasure(v.labels, v.clusters), v.expected, 'V-measure')
  assert.equal(vMeasure(['a', 'a', 'b'], [1, 1, 0]), 1)
})

test("a linear probe is scikit-learn's logistic regression", () => {
  const { train, train_labels, test: vectors, test_labels, found, two_found, accuracy, f1 } = golden.probe
  const ours = linearProbe(Float32Array.from(train), train_labels.map(String), Float32Array.from(vectors), 6)
  assert.deepEqual(ours, found.map(String))
  const two = train_labels.map((label: number) => String(label > 0))
  assert.deepEqual(linearProbe(Float32Array.from(train), two, Float32Array.from(vectors), 6), two_found.map(String))
  const scores = classificationScores(test_labels.map(String), ours)
  near(scores.accuracy, accuracy, 'accuracy')
  near(scores.f1, f1, 'F1')
})

test('several labels a row: votes of neighbours, LRAP, F1', () => {
  const { labels, test_labels, found, lrap, accuracy, f1 } = golden.multilabel
  const vectors = Float32Array.from(golden.probe.test).subarray(0, 40 * 6)
  assert.deepEqual(nearestNeighbours(Float32Array.from(golden.probe.train), labels, vectors, 6), found)
  const scores = multilabelScores(test_labels, found)
  near(scores.lrap, lrap, 'LRAP')
  near(scores.accuracy, accuracy, 'accuracy')
  near(scores.f1, f1, 'F1')
})

test('clusters that lie apart are found', () => {
  const vectors = Float32Array.from({ length: 60 }, (_, i) => 10 * Math.floor(i / 20) + Math.sin(i))
  const labels = Array.from({ length: 30 }, (_, i) => Math.floor(i / 10))
  assert.equal(vMeasure(labels, kMeans(vectors, 2, 3, 1)), 1)
  assert.throws(() => kMeans(vectors.subarray(0, 4), 2, 3, 1), { code: 'INVALID_INPUT' })
})

const texts = Array.from({ length: 12 }, (_, i) => `${'abc'[i % 3]}${'abc'[i % 3]}${'abc'[i % 3]} ${i}`)
const tasks: Task[] = [
  { name: 'pairs', type: 'retrieval', rows: texts.map((query) => ({ query, positive: query })) },
  {
    name: 'corpus',
    type: 'retrieval',
    queries: [{ id: 'q', text: texts[0] }],
    corpus: texts.map((text, i) => ({ id: `d${i}`, title: '', text })),
    qrels: [{ query: 'q', document: 'd0', score: 2 }],
  },
  {
    name: 'classes',
    type: 'classification',
    train: texts.map((input, i) => ({ input, label: i % 3 })),
    rows: texts.map((input, i) => ({ input, label: i % 3 })),
  },
  {
    name: 'several',
    type: 'multilabel',
    train: texts.map((input, i) => ({ input, labels: [i % 3, 'all'] })),
    rows: texts.map((input, i) => ({ input, labels: [i % 3, 'all'] })),
  },
  { name: 'names', type: 'zero-shot', rows: texts.map((input, i) => ({ input, label: 'abc'[i % 3] })), labels: { a: 'aaa', b: 'bbb', c: 'ccc' } },
  { name: 'groups', type: 'clustering', rows: texts.map((input, i) => ({ input, label: i % 3 })) },
  { name: 'graded', type: 'sts', rows: texts.map((left, i) => ({ left, right: texts[(i * 5) % 12], score: Number((i * 5) % 12 === i) })) },
  { name: 'same', type: 'pair', rows: texts.map((left, i) => ({ left, right: texts[(i * 5) % 12], label: Number((i * 5) % 12 === i) })) },
  { name: 'order', type: 'reranking', rows: [{ query: texts[0], positives: [texts[0]], negatives: texts.slice(1) }] },
]

test("tasks of every type, and their results in mteb's form", async () => {
  const place = temporary()
  const results = await evaluate(pico('bert'), tasks, { out: place })
  assert.deepEqual(
    results.map(({ task }) => task),
    tasks.map(({ name }) => name),
  )
  for (const { task, mainScore } of results) assert.ok(mainScore >= 0 && mainScore <= 1.0000001, `${task}: ${mainScore}`)
  for (const name of ['pairs', 'corpus', 'same', 'order']) near(results.find(({ task }) => task === name)!.mainScore, 1, name)
  const file = JSON.parse(readFileSync(path.join(place, 'pairs.json'), 'utf8'))
  assert.deepEqual(Object.keys(file), ['dataset_revision', 'task_name', 'mteb_version', 'scores', 'evaluation_time'])
  assert.equal(file.scores.test[0].main_score, results[0]!.mainScore)
  writeFileSync(path.join(place, 'rows.jsonl'), texts.map((query) => JSON.stringify({ query, positive: query })).join('\n'))
  writeFileSync(path.join(place, 'tasks.yaml'), 'tasks:\n  - {name: from file, type: retrieval, rows: rows.jsonl, mainScore: mrr_at_10}\n')
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [path.join(root, 'dist/cli.js'), 'eval', pico('bert'), path.join(place, 'tasks.yaml'), '--json'],
    { encoding: 'utf8' },
  )
  assert.equal(status, 0, stderr)
  near(JSON.parse(stdout)[0].mainScore, 1, 'from file')
})

test('bad tasks are named', async () => {
  await using model = await loadModel(pico('bert'))
  const taken = path.join(temporary(), 'taken')
  mkdirSync(path.join(taken, 'pairs.json'), { recursive: true })
  await assert.rejects(evaluate('none', tasks, { out: taken }), { code: 'OUTPUT_EXISTS', message: /pairs\.json: expected a file or none/ })
  const fails = (task: object, code: string, message: RegExp) =>
    assert.rejects(evaluate(model, [task as Task]), (error: ConanError) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
  await fails({ type: 'sts' }, 'INVALID_INPUT', /expected a name/)
  await fails({ name: 'x', type: 'magic' }, 'INVALID_INPUT', /task x: type: expected one of retrieval, /)
  await fails({ name: 'x', type: 'sts' }, 'INVALID_INPUT', /expected "rows" as a \.jsonl or \.parquet file or rows/)
  await fails({ name: 'x', type: 'sts', rows: 'none.jsonl' }, 'FILE_IO', /none\.jsonl, found none/)
  await fails({ name: 'x', type: 'sts', rows: [null] }, 'INVALID_INPUT', /rows: row 1: expected an object, got null/)
  await fails({ name: 'x', type: 'sts', rows: [{ left: 'a', right: 'b', score: 'high' }] }, 'INVALID_INPUT', /row 1: "score": expected a number, got "high"/)
  await fails({ name: 'x', type: 'pair', rows: [{ left: 'a', right: 'b', label: 2 }] }, 'INVALID_INPUT', /0 or 1/)
  await fails({ name: 'x', type: 'zero-shot', rows: [{ input: 'a', label: 'b' }] }, 'INVALID_INPUT', /expected "labels"/)
  await fails({ name: 'x', type: 'multilabel', train: [{ input: 'a', labels: 'b' }], rows: [] }, 'INVALID_INPUT', /row 1: "labels": expected a list/)
  await fails({ ...tasks[0], mainScore: 'luck' }, 'INVALID_OPTION', /mainScore: expected one of .*got "luck"/)
  await fails({ ...tasks[1], qrels: [{ query: 'nobody', document: 'd0' }] }, 'INVALID_INPUT', /qrels: row 1/)
})

test('STS-B dev with the real MiniLM', needs('weights/all-MiniLM-L6-v2'), async () => {
  const rows = readFileSync(path.join(dataDirectory, 'datasets/stsb/sts-dev.csv'), 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split('\t'))
    .map((cells) => ({ left: cells[5], right: cells[6], score: Number(cells[4]) }))
  const [result] = await evaluate(path.join(dataDirectory, 'weights/all-MiniLM-L6-v2'), [{ name: 'STS-B dev', type: 'sts', rows }])
  near(result!.mainScore, 0.86716, 'Spearman', 0.0005)
})

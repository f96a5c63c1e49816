// The study's page: RESULTS.md and its plots, from what the seeds have measured.
//   npx tsx recipes/nano/results.ts [--reduced]
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { readJson } from '../../lib/files/json'
import { type Line, lineSvg } from '../../lib/report/html'
import { byModality, type Measured, mean } from './measure'
import { reduced, work } from './settings'
import { type Directions, modalities, type Results, readResults, studyFolder } from './study'

/** Rows of the tables: what they are called here and in the paper, and the paper's numbers. */
const variants: [name: string, title: string, paper?: (number | string)[]][] = [
  ['base', 'base'],
  ['image specialist', 'image specialist'],
  ['video specialist', 'video specialist'],
  ['document specialist', 'document specialist'],
  ['audio specialist', 'audio specialist'],
  ['joint without audio', 'joint training I+V+D', [80.3, 67.2, 82.0, '–']],
  ['joint', 'joint training I+V+D+A', [69.2, 43.0, 74.9, 48.01]],
  ['fused', 'fused (task arithmetic, coefficients found)', [68.5, 56.7, 68.9, 32.68]],
  ['fused, recovered', '… + projector recovery', [68.5, 56.7, 68.9, 55.82]],
  ['rehearsed', '… + balanced rehearsal', [77.2, 65.1, 79.0, 55.61]],
  ['fused, paper', "fused, the paper's coefficients (.3 .3 .3 .5)"],
  ['fused, paper, recovered', '… + projector recovery'],
  ['ties', 'fused by TIES'],
  ['ties, recovered', '… + projector recovery'],
  ['dare', 'fused by DARE'],
  ['dare, recovered', '… + projector recovery'],
  ['fused, recovered gently', 'fused + recovery at a tenth of the learning rate'],
  ['fused, fresh projector', 'fused, a fresh projector trained as long as recovery'],
  ['audio specialist, projector longer', 'audio specialist, its projector trained on as long as recovery'],
]

const spread = (values: number[]) => {
  const middle = mean(values)
  return values.length < 2 ? 0 : Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1))
}
const cell = (values: (number | undefined)[], digits = 1, scale = 100) => {
  const known = values.filter((value): value is number => value !== undefined && Number.isFinite(value)).map((value) => value * scale)
  if (known.length === 0) return '–'
  return known.length === 1 ? known[0]!.toFixed(digits) : `${mean(known).toFixed(digits)} ± ${spread(known).toFixed(digits)}`
}
const markdown = (head: string[], rows: string[][]) =>
  [head, head.map((_, i) => (i ? '---:' : '---')), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n')

function main() {
  const seeds = Array.from({ length: 20 }, (_, seed) => seed).filter((seed) => existsSync(path.join(work, `study/seed-${seed}/results.json`)))
  const all = seeds.map(readResults)
  const folder = reduced ? work : __dirname
  mkdirSync(path.join(folder, 'plots'), { recursive: true })
  const plot = (name: string, title: string, labels: string[], lines: Line[], unit: string) => {
    writeFileSync(path.join(folder, 'plots', `${name}.svg`), lineSvg(title, labels, lines, unit))
    return `![${title}](plots/${name}.svg)`
  }
  const over = (name: string, read: (found: Measured) => number | undefined) =>
    all.map(({ tests }) => {
      const test = tests[name]
      return test && read(test.found)
    })
  const there = variants.filter(([name]) => all.some(({ tests }) => tests[name]))
  const table = there.map(([name, title]) => [
    title,
    ...modalities.map((modality) => cell(over(name, (found) => byModality(found)[modality]))),
    cell(over(name, (found) => found.speech?.at1)),
    cell(over(name, (found) => found['new words']?.at5)),
    cell(over(name, (found) => found['word to picture']?.at5)),
    cell(over(name, (found) => found['noise to picture']?.at1)),
    cell(
      all.map(({ tests }) => tests[name]?.sts),
      3,
      1,
    ),
  ])
  const paper = variants.flatMap(([, title, numbers]) =>
    numbers ? [[title.replace(' (task arithmetic, coefficients found)', ''), ...numbers.map(String)]] : [],
  )

  const directions = (name: string): number[] => {
    const lists = all.flatMap((results) => (results.directions[name] ? [results.directions[name]] : []))
    return (lists[0] ?? []).map((_: Directions[number], layer) => mean(lists.map((list) => list[layer]!.mean)))
  }
  const drifts = ['fused', 'fused, recovered', 'fused, recovered gently', 'fused, fresh projector', 'audio specialist, projector longer']
    .map((name): Line => ({ name: variants.find(([own]) => own === name)![1].replace('… +', 'fused +'), values: directions(name) }))
    .filter(({ values }) => values.length)
  const paperDrifts = ['fused, paper', 'fused, paper, recovered'].map(
    (name): Line => ({
      name: name === 'fused, paper' ? "the paper's coefficients" : "the paper's coefficients, recovered",
      values: directions(name),
    }),
  )
  const layers = (drifts[0]?.values ?? []).map((_, layer) => String(layer))
  const deviation = (lines: Line[]) => lines.map(({ name, values }): Line => ({ name, values: values.map((value) => 1 - (value ?? Number.NaN)) }))

  const first = all[0] as Results
  const weights = first.curve.map(({ weight }) => String(weight))
  const curveOf = (modality: string) => weights.map((_, i) => mean(all.flatMap(({ curve }) => (curve[i] ? [curve[i].scores[modality]!] : []))))
  const geometry = all.flatMap(({ geometry }) => (geometry ? [geometry] : []))
  const keys = Object.keys(geometry[0]?.cosines ?? {})

  const final = 'rehearsed'
  const tasks = Object.keys(first.tests[final]?.found ?? {})
  const chances = tasks.map((task) => {
    const { queries, candidates } = first.tests[final]!.found[task]!
    const [at1, at5] = [over(final, (found) => found[task]?.at1), over(final, (found) => found[task]?.at5)]
    return [
      task,
      String(queries),
      String(candidates),
      cell(at1),
      cell(at5),
      cell(
        at1.map((value) => value && value * candidates),
        0,
        1,
      ),
      cell(
        at5.map((value) => value && (value * candidates) / Math.min(5, candidates)),
        0,
        1,
      ),
    ]
  })

  const spent = (seed: number, name: string) => {
    const file = path.join(studyFolder(seed), name, 'training-report.json')
    return existsSync(file) ? Number(readJson(file).seconds) : all[seeds.indexOf(seed)]!.seconds[name]
  }
  const seconds = [...new Set(all.flatMap((results) => Object.keys(results.seconds)))]
    .map(
      (name) =>
        [
          name,
          cell(
            seeds.map((seed) => spent(seed, name)),
            0,
            1,
          ),
        ] as string[],
    )
    .filter(([, time]) => !/^0( |$)/.test(time as string))
  const base = ['text-distilled', 'text', 'viewer', 'vision-taught', 'vision-tower', 'base-vision', 'listener'].flatMap((name) => {
    const file = path.join(work, name, 'training-report.json')
    return existsSync(file) ? [[name, Number(readJson(file).seconds).toFixed(0)]] : []
  })
  const found = Object.keys(first.weights).map((method) => [
    method,
    ...modalities.map((modality) => cell([first.weights[method]?.[modality]], 2, 1)),
    cell([Math.max(...(first.tried[method] ?? []).map(({ value }) => value))]),
  ])

  const page = `# conan-nano: what was measured

${seeds.length} seed${seeds.length === 1 ? '' : 's'} (the base is one; specialists, projector and everything after differ), mean ± standard deviation, in %; a number
without spread is one seed's. Image, video and document: how
often the right one is among the first five (mean over tasks, and over both directions where both are asked); audio: how often the right
text is the first (mean of words, digits and noises). Names of pictures, films and pages are unseen ones; words are spoken by unheard
voices, digits by an unheard speaker; "new words" (first five) are unheard words as well. STS-B dev: Spearman. Tests were looked at after
all choices; coefficients were found on validation data of the same kind. ${reduced ? 'This is the reduced run.' : ''}

${markdown(['', ...modalities, 'words', 'new words', 'word → picture', 'noise → picture', 'STS-B'], table)}

The paper's table (MMEB image, video, visual documents; MAEB), on its own benchmarks and at 8 billion parameters:

${markdown(['', 'image', 'video', 'document', 'audio'], paper)}

## Coefficients

Found with the first seed on validation data, by the mean share of the specialists' own scores that the fused model keeps.

${markdown(['', ...modalities, 'kept, %'], found)}

${
  weights.length
    ? plot(
        'coefficients',
        "What is found as the audio specialist's coefficient grows",
        weights,
        modalities.map((name) => ({ name, values: curveOf(name) })),
        'share found; the other coefficients are 0.3',
      )
    : ''
}

## Drift

Cosine of the hidden states at sounds with the audio specialist's, by layer (0: what the projector gives; the last: after the final norm),
as 1 − cosine:

${plot('drift', 'Direction of hidden states at sounds', layers, deviation(drifts), '1 − cosine with the audio specialist, by layer')}

${plot('drift-paper', "Direction at the paper's coefficients", layers, deviation(paperDrifts), '1 − cosine with the audio specialist, by layer')}

${markdown(
  ['layer', ...layers],
  [...drifts, ...paperDrifts].map(({ name, values }) => [name, ...values.map((value) => (value ?? Number.NaN).toFixed(3))]),
)}

Task vectors:

${markdown(
  ['', ...Object.keys(geometry[0]?.norms ?? {})],
  [
    [
      'norm',
      ...Object.keys(geometry[0]?.norms ?? {}).map((name) =>
        cell(
          geometry.map(({ norms }) => norms[name]),
          2,
          1,
        ),
      ),
    ],
  ],
)}

${markdown(
  ['', ...keys],
  [
    [
      'cosine',
      ...keys.map((key) =>
        cell(
          geometry.map(({ cosines }) => cosines[key]),
          3,
          1,
        ),
      ),
    ],
    ['sign conflicts, %', ...keys.map((key) => cell(geometry.map(({ signConflicts }) => signConflicts[key])))],
  ],
)}

${plot(
  'norms',
  'Norm of the task vectors in the language model',
  (geometry[0]?.layers.audio ?? []).map((_, layer) => String(layer)),
  Object.keys(geometry[0]?.layers ?? {}).map((name) => ({
    name,
    values: (geometry[0]?.layers[name] ?? []).map((_, layer) => mean(geometry.map(({ layers }) => layers[name]![layer]!))),
  })),
  'by layer',
)}

## The final model, task by task

${markdown(['', 'queries', 'candidates', 'R@1', 'R@5', 'R@1 / chance', 'R@5 / chance'], chances)}

## Cost

Seconds on 2 cores, beside other work.

${markdown(['', 's'], [...base, ...seconds])}
`
  const file = path.join(folder, 'RESULTS.md')
  writeFileSync(file, page)
  console.log(file)
}

main()

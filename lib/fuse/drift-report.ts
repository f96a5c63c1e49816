// The drift report as a page that a person can read.
import path from 'node:path'
import { lineChart, page, table } from '../report/html'
import type { DriftReport, TaskVectorGeometry } from './drift'

export function driftHtml(report: DriftReport): string {
  const { models } = report
  const short = (name: string) => path.basename(name) || name
  const row = (part: TaskVectorGeometry) => [
    part.name,
    part.tensors,
    part.parameters / 1e6,
    ...part.norms.flatMap((norm) => [norm, (100 * norm) / (part.baseNorm || 1)]),
  ]
  const parts = [
    `<p>Task vectors are the difference to the base, <b>${short(report.base)}</b>. Norms are Euclidean; the share is of the norm of the base's own weights.</p>`,
    table(['', 'tensors', 'parameters (M)', ...models.flatMap((name) => [`|d| ${short(name)}`, '% of base'])], [report.total, ...report.modules].map(row)),
  ]
  for (const stack of new Set(report.layers.map((layer) => layer.stack))) {
    const layers = report.layers.filter((layer) => layer.stack === stack)
    const labels = layers.map(({ layer }) => String(layer))
    parts.push(
      lineChart(
        `Norm of the task vector by layer: ${stack}`,
        labels,
        models.map((name, i) => ({ name: short(name), values: layers.map(({ norms }) => norms[i]) })),
        '|d|',
      ),
    )
    if (models.length > 1) {
      const pairs = models.flatMap((_, i) => models.map((_, j) => [i, j] as const)).filter(([i, j]) => i < j)
      const name = ([i, j]: readonly [number, number]) => `${short(models[i]!)} · ${short(models[j]!)}`
      parts.push(
        lineChart(
          `Cosine between task vectors by layer: ${stack}`,
          labels,
          pairs.map((pair) => ({ name: name(pair), values: layers.map(({ cosines }) => cosines[pair[0]]![pair[1]]) })),
          'cosine',
        ),
        lineChart(
          `Sign conflicts by layer: ${stack}`,
          labels,
          pairs.map((pair) => ({ name: name(pair), values: layers.map(({ signConflicts }) => signConflicts[pair[0]]![pair[1]]) })),
          'share of the entries that both change',
        ),
      )
    }
  }
  if (models.length > 1)
    parts.push(
      '<h2>Between task vectors</h2><p>Cosine, and in brackets the share of sign conflicts.</p>',
      table(
        ['', ...models.map(short)],
        models.map((name, i) => [
          short(name),
          ...models.map((_, j) => {
            const [cosine, conflicts] = [report.total.cosines[i]![j], report.total.signConflicts[i]![j]]
            return cosine === undefined ? '–' : `${cosine.toFixed(4)} (${((conflicts ?? 0) * 100).toFixed(1)} %)`
          }),
        ]),
      ),
    )
  for (const probe of report.probe ?? [])
    parts.push(
      `<h2>Hidden states: ${probe.modality}</h2><p>Cosine between the two models' hidden states at the same token, over ${probe.tokens} tokens of ${probe.pairs} pairs.</p>`,
      lineChart(
        'Direction of hidden states by layer',
        probe.directions.map(({ layer }) => String(layer)),
        [
          { name: 'mean', values: probe.directions.map(({ mean }) => mean) },
          { name: 'lowest tenth', values: probe.directions.map(({ low }) => low) },
        ],
        'cosine',
      ),
    )
  if (report.retrieval)
    parts.push(
      '<h2>Retrieval</h2>',
      table(
        ['model', 'modality', 'pairs', 'R@1', 'R@10', 'MRR'],
        report.retrieval.flatMap(({ model, scores }) =>
          scores.map((score) => [short(model), score.modality, score.pairs, score.recallAt1, score.recallAt10, score.mrr]),
        ),
      ),
    )
  if (report.unshared.length)
    parts.push(
      `<h2>Left out</h2><p>${report.unshared.length} tensors that not all models share: ${report.unshared.slice(0, 20).join(', ')}${report.unshared.length > 20 ? ', …' : ''}</p>`,
    )
  return page(`Drift of ${models.map(short).join(', ')} from ${short(report.base)}`, parts)
}

// Measures of retrieval, classification, clustering, similarity and reranking, as mteb, scikit-learn and trec_eval define them.
import { best, similarities, similarityTo } from '../embed/similarity'
import { ConanError } from '../errors'
import { randomNumbers } from '../train/sampler'

/** Documents by falling score; equal scores in the order of their places, as numpy's stable sort. */
export function ranking(scores: ArrayLike<number>): number[] {
  return Array.from({ length: scores.length }, (_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b)
}

/** `order`: at least the largest cutoff's best, where there are so many. `grades[d]`: of document d; 0 is not relevant. */
export function rankingScores(order: number[], grades: ArrayLike<number>, cutoffs: number[]): Record<string, number> {
  // Of a large collection nearly all grades are 0.
  const known: number[] = []
  for (let d = 0; d < grades.length; d++) if (grades[d] !== 0) known.push(grades[d] as number)
  known.sort((a, b) => b - a)
  const relevant = known.filter((grade) => grade > 0).length
  const zeros = Math.min(grades.length - known.length, Math.max(...cutoffs))
  const ideal = [...known.slice(0, relevant), ...new Array<number>(zeros).fill(0), ...known.slice(relevant)]
  const out: Record<string, number> = {}
  for (const k of cutoffs) {
    const top = order.slice(0, k)
    const hits = top.filter((d) => grades[d]! > 0).length
    const gain = (values: number[], of: (grade: number) => number) => values.slice(0, k).reduce((sum, grade, i) => sum + of(grade) / Math.log2(i + 2), 0)
    const share = (of: (grade: number) => number) => {
      const best = gain(ideal, of)
      return best === 0
        ? 0
        : gain(
            top.map((d) => grades[d]!),
            of,
          ) / best
    }
    let precision = 0
    let seen = 0
    for (const [i, d] of top.entries()) if (grades[d]! > 0) precision += ++seen / (i + 1)
    const first = top.findIndex((d) => grades[d]! > 0)
    out[`hit_rate_at_${k}`] = hits > 0 ? 1 : 0
    out[`recall_at_${k}`] = relevant === 0 ? 0 : hits / relevant
    out[`precision_at_${k}`] = hits / k
    out[`ndcg_at_${k}`] = share((grade) => grade)
    out[`ndcg_exponential_at_${k}`] = share((grade) => 2 ** grade - 1)
    out[`mrr_at_${k}`] = first < 0 ? 0 : 1 / (first + 1)
    out[`map_at_${k}`] = relevant === 0 ? 0 : precision / Math.min(relevant, k)
  }
  return out
}

/** Average precision of scores for labels 0 and 1 (scikit-learn's average_precision_score: ties count together). */
export function averagePrecision(scores: ArrayLike<number>, labels: ArrayLike<number>): number {
  const order = ranking(scores)
  const positives = Array.from(labels).filter((label) => label === 1).length
  if (positives === 0) return 0
  let sum = 0
  let hits = 0
  let recalled = 0
  for (let i = 0; i < order.length; ) {
    const score = scores[order[i]!]
    while (i < order.length && scores[order[i]!] === score) hits += labels[order[i++]!] === 1 ? 1 : 0
    sum += ((hits - recalled) / positives) * (hits / i)
    recalled = hits
  }
  return sum
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values: ArrayLike<number>): number[] {
  const order = Array.from({ length: values.length }, (_, i) => i).sort((a, b) => values[a]! - values[b]!)
  const out = new Array<number>(values.length)
  for (let i = 0; i < order.length; ) {
    let end = i
    while (end < order.length && values[order[end]!] === values[order[i]!]) end++
    for (let j = i; j < end; j++) out[order[j]!] = (i + end + 1) / 2
    i = end
  }
  return out
}

export function pearson(a: ArrayLike<number>, b: ArrayLike<number>): number {
  const mean = (values: ArrayLike<number>) => Array.from(values).reduce((x, y) => x + y, 0) / values.length
  const [ma, mb] = [mean(a), mean(b)]
  let [ab, aa, bb] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    ab += (a[i]! - ma) * (b[i]! - mb)
    aa += (a[i]! - ma) ** 2
    bb += (b[i]! - mb) ** 2
  }
  return ab / Math.sqrt(aa * bb)
}

export const spearman = (a: ArrayLike<number>, b: ArrayLike<number>): number => pearson(ranks(a), ranks(b))

/** Harmonic mean of homogeneity and completeness (Rosenberg & Hirschberg 2007). */
export function vMeasure(labels: ArrayLike<string | number>, clusters: ArrayLike<number>): number {
  const n = labels.length
  const count = (keys: unknown[]) => {
    const counts = new Map<unknown, number>()
    for (const key of keys) counts.set(key, (counts.get(key) ?? 0) + 1)
    return counts
  }
  const [byLabel, byCluster] = [count(Array.from(labels)), count(Array.from(clusters))]
  const joint = new Map<string, { count: number; label: unknown; cluster: unknown }>()
  for (let i = 0; i < n; i++) {
    const key = JSON.stringify([labels[i], clusters[i]])
    const entry = joint.get(key) ?? { count: 0, label: labels[i], cluster: clusters[i] }
    entry.count++
    joint.set(key, entry)
  }
  const entropy = (counts: Map<unknown, number>) => [...counts.values()].reduce((sum, c) => sum - (c / n) * Math.log(c / n), 0)
  const given = (others: Map<unknown, number>, of: 'label' | 'cluster') =>
    [...joint.values()].reduce((sum, entry) => sum - (entry.count / n) * Math.log(entry.count / others.get(entry[of])!), 0)
  const [hl, hc] = [entropy(byLabel), entropy(byCluster)]
  const homogeneity = hl === 0 ? 1 : 1 - given(byCluster, 'cluster') / hl
  const completeness = hc === 0 ? 1 : 1 - given(byLabel, 'label') / hc
  return homogeneity + completeness === 0 ? 0 : (2 * homogeneity * completeness) / (homogeneity + completeness)
}

/** Clusters of vectors [n, d] by Lloyd's iterations from k-means++ beginnings, the best of several. */
export function kMeans(vectors: Float32Array, d: number, k: number, seed: number, attempts = 5): number[] {
  const n = vectors.length / d
  if (k > n) throw new ConanError('INVALID_INPUT', `clustering: expected at least ${k} vectors, got ${n}`)
  const random = randomNumbers(seed)
  const all = { vectors, dimensions: d }
  const row = (i: number) => vectors.subarray(i * d, (i + 1) * d)
  const square = (values: Float32Array) => values.reduce((sum, x) => sum + x * x, 0)
  const squares = Float64Array.from({ length: n }, (_, i) => square(row(i)))
  let least: { inertia: number; clusters: number[] } | undefined
  for (let attempt = 0; attempt < attempts; attempt++) {
    const centres = new Float32Array(k * d)
    const nearest = new Float64Array(n).fill(Number.POSITIVE_INFINITY)
    let chosen = Math.floor(random() * n)
    for (let c = 0; ; c++) {
      centres.set(row(chosen), c * d)
      if (c + 1 === k) break
      const distances = similarities('euclidean', { vectors: row(chosen), dimensions: d }, all, 0)
      for (let i = 0; i < n; i++) nearest[i] = Math.min(nearest[i]!, distances[i]! ** 2)
      let at = random() * nearest.reduce((a, b) => a + b, 0)
      chosen = nearest.findIndex((distance) => {
        at -= distance
        return at < 0
      })
      if (chosen < 0) chosen = n - 1
    }
    const toCentres = similarityTo('dot', { vectors: centres, dimensions: d }, 0)
    const clusters = new Array<number>(n).fill(0)
    let inertia = Number.POSITIVE_INFINITY
    for (let iteration = 0; iteration < 100; iteration++) {
      // |x - c|^2 = |x|^2 + |c|^2 - 2 x.c
      const offsets = Float64Array.from({ length: k }, (_, c) => square(centres.subarray(c * d, (c + 1) * d)))
      let total = 0
      let i = 0
      for (const products of toCentres(all)) {
        let closest = Number.POSITIVE_INFINITY
        for (let c = 0; c < k; c++) {
          const distance = offsets[c]! - 2 * products[c]!
          if (distance >= closest) continue
          closest = distance
          clusters[i] = c
        }
        total += Math.max(0, closest + squares[i++]!)
      }
      if (total >= inertia * (1 - 1e-9)) break
      inertia = total
      const sums = new Float64Array(k * d)
      const counts = new Uint32Array(k)
      for (const [i, c] of clusters.entries()) {
        counts[c]!++
        for (let x = 0; x < d; x++) sums[c * d + x]! += vectors[i * d + x]!
      }
      for (let c = 0; c < k; c++) if (counts[c]! > 0) for (let x = 0; x < d; x++) centres[c * d + x] = sums[c * d + x]! / counts[c]!
    }
    if (!least || inertia < least.inertia) least = { inertia, clusters }
  }
  return least!.clusters
}

const dotOf = (a: Float64Array, b: Float64Array) => a.reduce((sum, x, i) => sum + x * b[i]!, 0)

/** The least value's place of a smooth convex function (L-BFGS, Nocedal & Wright 2006, algorithm 7.4, with steps that are halved until they pay). */
function minimum(
  start: Float64Array,
  at: (x: Float64Array) => { value: number; gradient: Float64Array },
  tolerance: number,
  maxIterations: number,
): Float64Array {
  const kept = 10
  const history: { step: Float64Array; change: Float64Array; scale: number }[] = []
  let x = start
  let { value, gradient } = at(x)
  for (let iteration = 0; iteration < maxIterations && gradient.some((slope) => Math.abs(slope) > tolerance); iteration++) {
    const direction = gradient.map((slope) => -slope)
    const shares = history.map(() => 0)
    for (let h = history.length - 1; h >= 0; h--) {
      const { step, change, scale } = history[h]!
      const share = (shares[h] = scale * dotOf(step, direction))
      for (let i = 0; i < x.length; i++) direction[i]! -= share * change[i]!
    }
    const last = history.at(-1)
    // Without a history a step of length 1.
    const first = last ? 1 / (last.scale * dotOf(last.change, last.change)) : 1 / Math.sqrt(dotOf(gradient, gradient))
    for (let i = 0; i < x.length; i++) direction[i]! *= first
    for (const [h, { step, change, scale }] of history.entries()) {
      const share = shares[h]! - scale * dotOf(change, direction)
      for (let i = 0; i < x.length; i++) direction[i]! += share * step[i]!
    }
    const slope = dotOf(gradient, direction)
    let size = 1
    let next = x
    let found = { value, gradient }
    do {
      next = x.map((value, i) => value + size * direction[i]!)
      found = at(next)
      size /= 2
    } while (!(found.value <= value + 1e-4 * 2 * size * slope) && size > 1e-10)
    if (!(found.value < value)) break // as near as the numbers are exact
    const step = next.map((value, i) => value - x[i]!)
    const change = found.gradient.map((slope, i) => slope - gradient[i]!)
    const curvature = dotOf(step, change)
    if (curvature > 0) history.push({ step, change, scale: 1 / curvature })
    if (history.length > kept) history.shift()
    x = next
    ;({ value, gradient } = found)
  }
  return x
}

/** Logistic regression with an L2 penalty (C = 1, as scikit-learn's default) on vectors [n, d]; returns the classes of other vectors. */
export function linearProbe(train: Float32Array, labels: string[], test: Float32Array, d: number): string[] {
  const classes = [...new Set(labels)].sort()
  const [n, k] = [labels.length, classes.length]
  const target = labels.map((label) => classes.indexOf(label))
  const turned = new Float32Array(n * d)
  for (let i = 0; i < n; i++) for (let x = 0; x < d; x++) turned[x * n + i] = train[i * d + x]!
  // Of two classes scikit-learn has one row of weights, which is the difference of the two here.
  const penalty = k === 2 ? 2 : 1
  // weights [k, d], then biases [k]
  const scores = (vectors: Float32Array, weights: Float64Array) =>
    similarities('dot', { vectors, dimensions: d }, { vectors: Float32Array.from(weights.subarray(0, k * d)), dimensions: d }, 0)
  const weights = minimum(
    new Float64Array(k * (d + 1)),
    (at) => {
      const products = scores(train, at)
      const errors = new Float32Array(k * n)
      const biases = new Float64Array(k)
      const row = new Float64Array(k)
      let value = 0
      for (let i = 0; i < n; i++) {
        let most = Number.NEGATIVE_INFINITY
        for (let c = 0; c < k; c++) most = Math.max(most, (row[c] = products[i * k + c]! + at[k * d + c]!))
        let total = 0
        for (let c = 0; c < k; c++) total += Math.exp(row[c]! - most)
        value += Math.log(total) + most - row[target[i]!]!
        for (let c = 0; c < k; c++) {
          const error = Math.exp(row[c]! - most) / total - (c === target[i] ? 1 : 0)
          errors[c * n + i] = error
          biases[c]! += error
        }
      }
      const slopes = similarities('dot', { vectors: errors, dimensions: n }, { vectors: turned, dimensions: n }, 0)
      const gradient = at.map((w, i) => (i < k * d ? slopes[i]! + penalty * w : biases[i - k * d]!))
      for (let i = 0; i < k * d; i++) value += (penalty / 2) * at[i]! ** 2
      return { value, gradient }
    },
    1e-4,
    1000,
  )
  const products = scores(test, weights)
  return Array.from({ length: test.length / d }, (_, i) => {
    let found = 0
    const score = (c: number) => products[i * k + c]! + weights[k * d + c]!
    for (let c = 1; c < k; c++) if (score(c) > score(found)) found = c
    return classes[found] as string
  })
}

/** Share of equal labels, and the mean over classes of their F1. */
export function classificationScores(truth: string[], found: string[]): { accuracy: number; f1: number } {
  const classes = [...new Set([...truth, ...found])]
  const count = (test: (i: number) => boolean) => truth.reduce((sum, _, i) => sum + (test(i) ? 1 : 0), 0)
  const f1 = classes.map((c) => {
    const both = count((i) => truth[i] === c && found[i] === c)
    return (2 * both) / (count((i) => truth[i] === c) + count((i) => found[i] === c))
  })
  return { accuracy: count((i) => truth[i] === found[i]) / truth.length, f1: f1.reduce((a, b) => a + b, 0) / classes.length }
}

/**
 * Labels of rows by a vote of their k nearest neighbours (Euclidean): a label that more than half of them have (scikit-learn's
 * KNeighborsClassifier). `labels[i][l]`: whether row i of `train` has label l.
 */
export function nearestNeighbours(train: Float32Array, labels: number[][], test: Float32Array, d: number, k = 5): number[][] {
  return Array.from(similarityTo('euclidean', { vectors: train, dimensions: d }, 0)({ vectors: test, dimensions: d }), (near) => {
    const voters = best(near, k)
    return (labels[0] ?? []).map((_, l) => (2 * voters.filter((j) => labels[j]![l] === 1).length > voters.length ? 1 : 0))
  })
}

/**
 * For rows with several labels each: label ranking average precision, share of rows with all labels right, mean F1 of the labels
 * (scikit-learn's label_ranking_average_precision_score, accuracy_score and f1_score).
 */
export function multilabelScores(truth: number[][], found: number[][]): { lrap: number; accuracy: number; f1: number } {
  const precision = (row: number[], scores: number[]) => {
    const relevant = row.flatMap((label, l) => (label === 1 ? [l] : []))
    if (relevant.length === 0 || relevant.length === row.length) return 1
    // Ties count as ranked above.
    const rank = (l: number, among: number[]) => among.filter((other) => scores[other]! >= scores[l]!).length
    const all = row.map((_, l) => l)
    return relevant.reduce((sum, l) => sum + rank(l, relevant) / rank(l, all), 0) / relevant.length
  }
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length
  const f1 = (truth[0] ?? []).map((_, l) => {
    const count = (test: (i: number) => boolean) => truth.filter((_, i) => test(i)).length
    const either = count((i) => truth[i]![l] === 1) + count((i) => found[i]![l] === 1)
    return either === 0 ? 0 : (2 * count((i) => truth[i]![l] === 1 && found[i]![l] === 1)) / either
  })
  return {
    lrap: mean(truth.map((row, i) => precision(row, found[i]!))),
    accuracy: mean(truth.map((row, i) => (row.every((label, l) => label === found[i]![l]) ? 1 : 0))),
    f1: mean(f1),
  }
}

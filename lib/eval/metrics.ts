// Measures of retrieval, classification, clustering, similarity and reranking, as mteb, scikit-learn and trec_eval define them.
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
  const distance = (i: number, centre: Float64Array) => {
    let sum = 0
    for (let c = 0; c < d; c++) sum += (vectors[i * d + c]! - centre[c]!) ** 2
    return sum
  }
  const row = (i: number) => Float64Array.from(vectors.subarray(i * d, (i + 1) * d))
  let best: { inertia: number; clusters: number[] } | undefined
  for (let attempt = 0; attempt < attempts; attempt++) {
    const centres = [row(Math.floor(random() * n))]
    while (centres.length < k) {
      const nearest = Array.from({ length: n }, (_, i) => Math.min(...centres.map((centre) => distance(i, centre))))
      let at = random() * nearest.reduce((a, b) => a + b, 0)
      let chosen = n - 1
      for (let i = 0; i < n; i++) {
        at -= nearest[i]!
        if (at < 0) {
          chosen = i
          break
        }
      }
      centres.push(row(chosen))
    }
    let clusters: number[] = []
    let inertia = Number.POSITIVE_INFINITY
    for (let iteration = 0; iteration < 100; iteration++) {
      let total = 0
      clusters = Array.from({ length: n }, (_, i) => {
        const distances = centres.map((centre) => distance(i, centre))
        const nearest = distances.indexOf(Math.min(...distances))
        total += distances[nearest]!
        return nearest
      })
      if (total >= inertia * (1 - 1e-9)) break
      inertia = total
      for (const [c, centre] of centres.entries()) {
        const own = clusters.flatMap((cluster, i) => (cluster === c ? [i] : []))
        if (own.length === 0) continue
        centre.fill(0)
        for (const i of own) for (let x = 0; x < d; x++) centre[x]! += vectors[i * d + x]! / own.length
      }
    }
    if (!best || inertia < best.inertia) best = { inertia, clusters }
  }
  return best!.clusters
}

/**
 * Logistic regression with an L2 penalty (C = 1, as scikit-learn's default) on vectors [n, d], by gradient descent with momentum to
 * convergence; returns the classes of other vectors.
 */
export function linearProbe(train: Float32Array, labels: string[], test: Float32Array, d: number, maxIterations = 1000): string[] {
  const classes = [...new Set(labels)].sort()
  const [n, k] = [labels.length, classes.length]
  const target = labels.map((label) => classes.indexOf(label))
  const weights = new Float64Array(k * (d + 1))
  const velocity = new Float64Array(k * (d + 1))
  const scores = (vectors: Float32Array, i: number, at: Float64Array) => {
    const out = new Float64Array(k)
    for (let c = 0; c < k; c++) {
      let sum = at[c * (d + 1) + d]!
      for (let x = 0; x < d; x++) sum += at[c * (d + 1) + x]! * vectors[i * d + x]!
      out[c] = sum
    }
    return out
  }
  let largest = 1e-12
  for (let i = 0; i < n; i++) {
    let sum = 1
    for (let x = 0; x < d; x++) sum += train[i * d + x]! ** 2
    largest = Math.max(largest, sum)
  }
  const rate = 1 / (1 + 0.5 * n * largest) // one over a bound of the curvature
  for (let iteration = 0; iteration < maxIterations; iteration++) {
    const momentum = iteration / (iteration + 3)
    const ahead = weights.map((w, i) => w + momentum * velocity[i]!)
    const gradient = ahead.map((w, i) => (i % (d + 1) === d ? 0 : w))
    for (let i = 0; i < n; i++) {
      const s = scores(train, i, ahead)
      const most = Math.max(...s)
      const e = s.map((value) => Math.exp(value - most))
      const total = e.reduce((a, b) => a + b, 0)
      for (let c = 0; c < k; c++) {
        const error = e[c]! / total - (c === target[i] ? 1 : 0)
        for (let x = 0; x < d; x++) gradient[c * (d + 1) + x]! += error * train[i * d + x]!
        gradient[c * (d + 1) + d]! += error
      }
    }
    let moved = 0
    for (let i = 0; i < weights.length; i++) {
      const next = ahead[i]! - rate * gradient[i]!
      velocity[i] = next - weights[i]!
      weights[i] = next
      moved = Math.max(moved, Math.abs(gradient[i]!))
    }
    if (moved < 1e-4) break
  }
  return Array.from({ length: test.length / d }, (_, i) => {
    const s = scores(test, i, weights)
    return classes[s.indexOf(Math.max(...s))] as string
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
  const rows = test.length / d
  return Array.from({ length: rows }, (_, i) => {
    const near = labels.map((_, j) => {
      let sum = 0
      for (let x = 0; x < d; x++) sum -= (test[i * d + x]! - train[j * d + x]!) ** 2
      return sum
    })
    const voters = ranking(near).slice(0, k)
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

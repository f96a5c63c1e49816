// The table of merge methods: what a recipe's merge_method means, its parameters with their defaults (as in mergekit),
// the formula and where it comes from. A method is an algorithm of native/merge with fixed options; most are one row of
// sparsifier x consensus x scaling over task vectors d_p = x_p - base.

export interface Parameter {
  type: 'number' | 'boolean'
  /** Absent: the recipe must say. */
  default?: number | boolean
  min?: number
  max?: number
}

export interface Method {
  /** In native/merge/methods.h. */
  algorithm: 'task_vectors' | 'combination' | 'sce' | 'arcee_fusion' | 'nearswap' | 'ram' | 'spectral'
  options: Record<string, string | boolean>
  /** How the base takes part: task vectors are taken from it, it is the first of the parents, or it is just a parent. */
  base: 'required' | 'optional' | 'first' | 'parent'
  /** How many models beside the base. */
  models: [min: number, max: number]
  /** The result does not depend on the order of the models. */
  symmetric: boolean
  perModel: Record<string, Parameter>
  shared: Record<string, Parameter>
  /** What is wrong with a model's parameters beyond their ranges: what was expected. */
  check?: (parameters: Record<string, number | boolean>) => string | undefined
  formula: string
  source: string
}

const number = (value?: number, min?: number, max?: number): Parameter => ({
  type: 'number',
  ...(value !== undefined && { default: value }),
  ...(min !== undefined && { min }),
  ...(max !== undefined && { max }),
})
const boolean = (value: boolean): Parameter => ({ type: 'boolean', default: value })
const any = Number.POSITIVE_INFINITY

interface TaskVectorRow {
  sparsifier: 'none' | 'magnitude' | 'outliers' | 'random' | 'rank_random'
  elect: boolean
  normalize: boolean
  rescale: boolean
  perModel?: Record<string, Parameter>
  check?: Method['check']
  formula: string
  source: string
}

/** base + lambda * sum_p weight_p s(d_p) [/ sum of weights], over all models or, with `elect`, over those that agree in sign. */
const taskVectors = (row: TaskVectorRow): Method => ({
  algorithm: 'task_vectors',
  options: { sparsifier: row.sparsifier, elect: row.elect },
  base: 'required',
  models: [1, any],
  symmetric: true,
  perModel: { weight: number(), density: number(1, 0, 1), ...row.perModel },
  shared: { normalize: boolean(row.normalize), rescale: boolean(row.rescale), lambda: number(1) },
  ...(row.check && { check: row.check }),
  formula: row.formula,
  source: row.source,
})

const gamma = { gamma: number(0.01, 0, 1) }
const epsilon = { epsilon: number(0.15, 0, 1) }
const probabilities: Method['check'] = ({ density, epsilon }) => {
  const [low, high] = [(density as number) - (epsilon as number), (density as number) + (epsilon as number)]
  return density === 0 || density === 1 || (low > 0 && high < 1) ? undefined : `density - epsilon and density + epsilon between 0 and 1, got ${low} and ${high}`
}

const combination = (kind: string, rest: Omit<Method, 'algorithm' | 'options'>): Method => ({ algorithm: 'combination', options: { kind }, ...rest })
/** `most`: how many models it takes beside the base. */
const selective = (algorithm: Method['algorithm'], most: number, rest: Pick<Method, 'shared' | 'formula' | 'source'>): Method => ({
  algorithm,
  options: {},
  base: 'required',
  models: [1, most],
  symmetric: most > 1,
  perModel: {},
  ...rest,
})
const spectral = (kind: string, shared: Record<string, Parameter>, formula: string, source: string): Method => ({
  algorithm: 'spectral',
  options: { kind },
  base: 'required',
  models: [1, any],
  symmetric: true,
  perModel: {},
  shared: { lambda: number(1), ...shared },
  formula: `${formula}; what is not a matrix, and embeddings: base + lambda * mean(d)`,
  source,
})

export const methods: Record<string, Method> = {
  // sparsifier x consensus x scaling
  task_arithmetic: taskVectors({
    sparsifier: 'magnitude',
    elect: false,
    normalize: false,
    rescale: false,
    formula: 'base + lambda * sum(w d)',
    source: 'Ilharco et al. 2023, arXiv:2212.04089',
  }),
  ties: taskVectors({
    sparsifier: 'magnitude',
    elect: true,
    normalize: true,
    rescale: false,
    formula: 'base + lambda * sum over agreeing p (w top_k(d)) / sum of their w; sign by sum(w top_k(d))',
    source: 'Yadav et al. 2023, arXiv:2306.01708',
  }),
  dare_linear: taskVectors({
    sparsifier: 'random',
    elect: false,
    normalize: false,
    rescale: true,
    formula: 'base + lambda * sum(w mask(d) |d|_1 / |mask(d)|_1), mask ~ Bernoulli(density)',
    source: 'Yu et al. 2024, arXiv:2311.03099',
  }),
  dare_ties: taskVectors({
    sparsifier: 'random',
    elect: true,
    normalize: false,
    rescale: true,
    formula: 'as dare_linear, over the models that agree with the sign of the sum',
    source: 'Yu et al. 2024, arXiv:2311.03099',
  }),
  breadcrumbs: taskVectors({
    sparsifier: 'outliers',
    elect: false,
    normalize: false,
    rescale: false,
    perModel: gamma,
    formula: 'base + lambda * sum(w mask(d)); mask drops the gamma largest and then the smallest down to density',
    source: 'Davari & Belilovsky 2024, arXiv:2312.06795',
  }),
  breadcrumbs_ties: taskVectors({
    sparsifier: 'outliers',
    elect: true,
    normalize: false,
    rescale: false,
    perModel: gamma,
    formula: 'as breadcrumbs, over the models that agree with the sign of the sum',
    source: 'Davari & Belilovsky 2024, arXiv:2312.06795',
  }),
  della: taskVectors({
    sparsifier: 'rank_random',
    elect: true,
    normalize: true,
    rescale: true,
    perModel: epsilon,
    check: probabilities,
    formula: 'as dare_ties with P(keep) = density - epsilon .. density + epsilon by rank of |d| in its row',
    source: 'Deep et al. 2024, arXiv:2406.11617',
  }),
  della_linear: taskVectors({
    sparsifier: 'rank_random',
    elect: false,
    normalize: false,
    rescale: true,
    perModel: epsilon,
    check: probabilities,
    formula: 'as dare_linear with P(keep) = density - epsilon .. density + epsilon by rank of |d| in its row',
    source: 'Deep et al. 2024, arXiv:2406.11617',
  }),

  // weighted sums by inner products
  linear: combination('linear', {
    base: 'parent',
    models: [1, any],
    symmetric: true,
    perModel: { weight: number() },
    shared: { normalize: boolean(true) },
    formula: 'sum(w x) / sum(w)',
    source: 'Wortsman et al. 2022, arXiv:2203.05482',
  }),
  slerp: combination('slerp', {
    base: 'first',
    models: [1, 1],
    symmetric: false,
    perModel: {},
    shared: { t: number() },
    formula: '(sin((1 - t) a) base + sin(t a) x) / sin a, a the angle between them; linear where they are nearly parallel',
    source: 'Shoemake 1985, doi:10.1145/325334.325242',
  }),
  nuslerp: combination('nuslerp', {
    base: 'optional',
    models: [2, 2],
    symmetric: false,
    perModel: { weight: number() },
    shared: { nuslerp_flatten: boolean(true), nuslerp_row_wise: boolean(false) },
    formula: 'slerp of x_1 and x_2, or base + slerp of d_1 and d_2, at t = w_2 / (w_1 + w_2); by rows or columns where not flattened',
    source: 'mergekit',
  }),
  multislerp: combination('multislerp', {
    base: 'optional',
    models: [1, any],
    symmetric: true,
    perModel: { weight: number() },
    shared: { normalize_weights: boolean(true), eps: number(1e-8, 0) },
    formula: 'exp_m(sum(w log_m(x / |x|))) * sum(w |x|), m the direction of sum(w x / |x|)',
    source: 'Goddard, mergekit',
  }),
  karcher: combination('karcher', {
    base: 'parent',
    models: [1, any],
    symmetric: true,
    perModel: {},
    shared: { max_iter: number(10, 0), tol: number(1e-5, 0) },
    formula: 'm * mean(|x|), m the Riemannian centre of mass of x / |x| on the sphere',
    source: 'Karcher 1977; arXiv:2603.04972',
  }),
  model_stock: combination('model_stock', {
    base: 'required',
    models: [2, any],
    symmetric: true,
    perModel: {},
    shared: { filter_wise: boolean(false) },
    formula: 't mean(x) + (1 - t) base, t = N c / (1 + (N - 1) c), c the mean cosine of pairs of task vectors',
    source: 'Jang et al. 2024, arXiv:2403.19522',
  }),
  passthrough: combination('passthrough', {
    base: 'parent',
    models: [1, 1],
    symmetric: false,
    perModel: { scale: number(1) },
    shared: {},
    formula: 'scale * x',
    source: 'mergekit',
  }),

  // entries chosen by a statistic
  sce: selective('sce', any, {
    shared: { select_topk: number(1, 0, 1) },
    formula: 'entries of largest variance across models; weights from mean(d^2); erase against the sign of sum(d)',
    source: 'Wan et al. 2024, arXiv:2408.07990',
  }),
  arcee_fusion: selective('arcee_fusion', 1, {
    shared: {},
    formula: 'x where |d| KL(softmax x || softmax base) >= median + 1.5 IQR, else base',
    source: 'Arcee AI, mergekit',
  }),
  nearswap: selective('nearswap', 1, {
    shared: { t: number() },
    formula: 'base + min(1, t / |d|) d',
    source: 'alchemonaut, mergekit',
  }),
  ram: selective('ram', any, {
    shared: { epsilon: number(1e-5, 0) },
    formula: 'base + d where one model changed the entry (|d| > epsilon), + mean(d) over its changers where several did',
    source: 'arXiv:2601.13572',
  }),
  ramplus_tl: selective('ram', any, {
    shared: { epsilon: number(1e-5, 0), r: number(0.1), alpha: number(0.2, 0) },
    formula: 'as ram, what one model alone changed times 1 + r min(shared / own, alpha), per tensor',
    source: 'arXiv:2601.13572',
  }),

  // singular vectors of task vectors
  tsv_m: spectral(
    'tsv_m',
    {},
    'base + lambda * U diag(s) V^T: the top rank / T singular triples of each d, U and V made orthogonal',
    'Gargiulo et al. 2025, arXiv:2412.00081',
  ),
  iso_c: spectral('iso_c', {}, 'base + lambda * mean(s) U V^T with U diag(s) V^T = sum(d)', 'Marczak et al. 2025, arXiv:2502.04959'),
  wudi: spectral(
    'wudi',
    { iterations: number(300, 0), learning_rate: number(1e-5, 0) },
    'base + lambda * argmin_m sum(|(m - d) d^T|^2 / |d|^2) by Adam from m = sum(d)',
    'Cheng et al. 2025, arXiv:2503.08099',
  ),
}

/** Accepted and without effect: mergekit's knobs for how it computes, not what. */
export const ignoredParameters = ['int8_mask']

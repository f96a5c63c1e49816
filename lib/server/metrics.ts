// Counters in the text format of Prometheus.

/** Upper ends of a histogram's classes, in seconds. */
const classes = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

export class Metrics {
  private readonly requests = new Map<string, number>()
  private readonly seconds = { counts: classes.map(() => 0), sum: 0, count: 0 }
  inputs = 0
  tokens = 0

  request(path: string, status: number, seconds: number): void {
    const labels = `path="${path}",status="${status}"`
    this.requests.set(labels, (this.requests.get(labels) ?? 0) + 1)
    if (path !== '/v1/embeddings') return
    this.seconds.sum += seconds
    this.seconds.count++
    for (const [i, end] of classes.entries()) if (seconds <= end) this.seconds.counts[i]!++
  }

  text(waiting: number): string {
    const { counts, sum, count } = this.seconds
    const of = (name: string, type: string, help: string, lines: string[]) => [`# HELP conan_${name} ${help}`, `# TYPE conan_${name} ${type}`, ...lines]
    const duration = 'conan_request_seconds'
    return [
      ...of(
        'requests_total',
        'counter',
        'Requests by path and status.',
        [...this.requests].map(([labels, n]) => `conan_requests_total{${labels}} ${n}`),
      ),
      ...of('request_seconds', 'histogram', 'Seconds from a request for embeddings to its answer.', [
        ...counts.map((n, i) => `${duration}_bucket{le="${classes[i]}"} ${n}`),
        `${duration}_bucket{le="+Inf"} ${count}`,
        `${duration}_sum ${sum}`,
        `${duration}_count ${count}`,
      ]),
      ...of('inputs_total', 'counter', 'Inputs embedded.', [`conan_inputs_total ${this.inputs}`]),
      ...of('tokens_total', 'counter', 'Tokens embedded.', [`conan_tokens_total ${this.tokens}`]),
      ...of('inputs_waiting', 'gauge', 'Inputs that wait for their turn.', [`conan_inputs_waiting ${waiting}`]),
      '',
    ].join('\n')
  }
}

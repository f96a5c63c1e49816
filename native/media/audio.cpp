#include "media/audio.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "base/clones.h"

namespace conan::media {

namespace {

constexpr double kPi = 3.14159265358979323846;

/// Modified Bessel function of the first kind, order 0.
double bessel_i0(double x) {
  double sum = 1, term = 1;
  for (int k = 1; term > 1e-17 * sum; ++k) {
    term *= (x / (2 * k)) * (x / (2 * k));
    sum += term;
  }
  return sum;
}

constexpr int64_t kLanes = 16;

/// A filter for each of the `to` / gcd places at which an output can lie between two inputs.
struct Phases {
  int64_t up = 1, down = 1;  // to and from without their common divisor
  int64_t taps = 0, reach = 0;
  std::vector<float> weights;  // [up, taps]: tap k of a phase belongs to input (floor(output * down / up) - reach + k)

  Phases(int64_t from, int64_t to) {
    const int64_t common = std::gcd(from, to);
    up = to / common, down = from / common;
    // In units of the input's rate: the narrower of the two bands ends at `edge`, its pass band at 0.913 of that.
    constexpr double pass = 0.913, attenuation = 136;
    const double edge = 0.5 * std::min(1.0, double(to) / double(from)), cutoff = edge * (1 + pass) / 2, transition = edge * (1 - pass);
    const double beta = 0.1102 * (attenuation - 8.7), length = (attenuation - 7.95) / (2.285 * 2 * kPi * transition);
    const double half = length / 2;
    reach = int64_t(std::ceil(half));
    taps = (2 * reach + 1 + kLanes - 1) / kLanes * kLanes;
    weights.assign(size_t(up * taps), 0);
    const double scale = bessel_i0(beta);
    for (int64_t phase = 0; phase < up; ++phase) {
      double sum = 0;
      std::vector<double> row(static_cast<size_t>(taps));
      for (int64_t k = 0; k <= 2 * reach; ++k) {
        const double x = double(k - reach) - double(phase) / double(up), at = x / half;
        if (std::fabs(at) >= 1) continue;
        const double angle = 2 * kPi * cutoff * x;
        row[size_t(k)] = (x == 0 ? 1 : std::sin(angle) / angle) * bessel_i0(beta * std::sqrt(1 - at * at)) / scale;
        sum += row[size_t(k)];
      }
      for (int64_t k = 0; k < taps; ++k) weights[size_t(phase * taps + k)] = float(row[size_t(k)] / sum);  // a constant stays what it is
    }
  }
};

/// out[i * up] = sum of x[i * down + k] * y[k] over k < n, a multiple of kLanes, for i < count: as many sums in step, so that vectors of any
/// width add in the same order; and several outputs at once, so that none waits for the last addition.
template <int count>
CONAN_CLONES void dot(const float* __restrict x, int64_t down, const float* __restrict y, int64_t n, float* __restrict out, int64_t up) {
  float sums[count][kLanes] = {};
  for (int64_t k = 0; k < n; k += kLanes)
    for (int i = 0; i < count; ++i)
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[i][lane] += x[i * down + k + lane] * y[k + lane];
  for (int i = 0; i < count; ++i) {
    double pairs[kLanes / 2];
    for (int64_t lane = 0; lane < kLanes / 2; ++lane) pairs[lane] = double(sums[i][lane]) + double(sums[i][lane + kLanes / 2]);
    out[i * up] = float(((pairs[0] + pairs[1]) + (pairs[2] + pairs[3])) + ((pairs[4] + pairs[5]) + (pairs[6] + pairs[7])));
  }
}

/// Complex numbers of transforms that are carried out in step. (std::complex looks for infinities in every product.)
struct Complex {
  static constexpr int kTransforms = 8;
  double re[kTransforms] = {}, im[kTransforms] = {};

  void add_product(const Complex& o, double c, double s) {
    for (int i = 0; i < kTransforms; ++i) re[i] += o.re[i] * c - o.im[i] * s, im[i] += o.re[i] * s + o.im[i] * c;
  }
  void turn(double c, double s) {
    for (int i = 0; i < kTransforms; ++i) {
      const double x = re[i] * c - im[i] * s;
      im[i] = re[i] * s + im[i] * c, re[i] = x;
    }
  }
};

/// Complex discrete Fourier transforms of one size, by the prime factors of the size.
class Fourier {
 public:
  explicit Fourier(size_t n) : n_(n) {
    size_t rest = n;
    for (size_t p = 2; p <= kLargestPrime; ++p)
      while (rest % p == 0) rest /= p;
    if (rest != 1) fail("CONFIG_INVALID", "\"n_fft\": expected a product of primes up to ", kLargestPrime, ", got ", n);
    for (size_t i = 0; i < n; ++i)
      cos_.push_back(std::cos(2 * kPi * double(i) / double(n))), sin_.push_back(-std::sin(2 * kPi * double(i) / double(n)));
  }
  void run(const Complex* in, Complex* out) const { step(in, out, n_, 1); }

 private:
  static constexpr size_t kLargestPrime = 31;

  /// out[k] = sum over i < n of in[i * stride] * w^(i k), w the n-th root of unity.
  void step(const Complex* in, Complex* out, size_t n, size_t stride) const {
    if (n == 1) {
      out[0] = in[0];
      return;
    }
    size_t p = 2;
    while (n % p) ++p;
    const size_t m = n / p;
    for (size_t r = 0; r < p; ++r) step(in + r * stride, out + r * m, m, stride * p);
    join(out, p, m, stride);
  }
  /// p transforms of m numbers each become one.
  CONAN_CLONES void join(Complex* out, size_t p, size_t m, size_t stride) const {
    Complex small[kLargestPrime];
    for (size_t k = 0; k < m; ++k) {
      for (size_t r = 0; r < p; ++r) {
        small[r] = out[r * m + k];
        if (r > 0) small[r].turn(cos_[r * k * stride], sin_[r * k * stride]);
      }
      for (size_t q = 0; q < p; ++q) {
        Complex sum = small[0];
        for (size_t r = 1; r < p; ++r) {
          const size_t root = r * q % p * m * stride;
          sum.add_product(small[r], cos_[root], sin_[root]);
        }
        out[q * m + k] = sum;
      }
    }
  }

  size_t n_;
  std::vector<double> cos_, sin_;
};

/// Slaney's scale: linear up to 1 kHz, logarithmic above.
double to_mel(double hertz) { return hertz < 1000 ? 3 * hertz / 200 : 15 + std::log(hertz / 1000) * 27 / std::log(6.4); }
double to_hertz(double mel) { return mel < 15 ? 200 * mel / 3 : 1000 * std::exp(std::log(6.4) / 27 * (mel - 15)); }

/// Triangles of equal area, each over the frequencies between its neighbours.
struct Filters {
  struct Triangle {
    size_t first = 0;
    std::vector<float> weights;
  };
  std::vector<Triangle> triangles;

  explicit Filters(const MelLayout& layout) {
    const size_t frequencies = size_t(layout.window / 2 + 1);
    const double top = to_mel(8000);
    std::vector<double> edges;
    for (int64_t i = 0; i < layout.bins + 2; ++i) edges.push_back(to_hertz(top * double(i) / double(layout.bins + 1)));
    for (size_t b = 0; b + 2 < edges.size(); ++b) {
      Triangle triangle;
      for (size_t f = 0; f < frequencies; ++f) {
        const double hertz = double(f) * double(layout.rate) / double(layout.window);
        const double rising = (hertz - edges[b]) / (edges[b + 1] - edges[b]), falling = (edges[b + 2] - hertz) / (edges[b + 2] - edges[b + 1]);
        const double weight = std::min(rising, falling);
        if (weight <= 0) continue;
        if (triangle.weights.empty()) triangle.first = f;
        triangle.weights.push_back(float(weight * 2 / (edges[b + 2] - edges[b])));
      }
      triangles.push_back(std::move(triangle));
    }
  }
};

}  // namespace

std::vector<float> resample(const float* samples, int64_t n, int64_t from, int64_t to) {
  const float* const bad = std::find_if_not(samples, samples + n, [](float x) { return std::isfinite(x); });
  if (bad != samples + n)
    fail("INVALID_INPUT", "audio: sample ", bad - samples, ": expected a finite number, got ",
         std::isnan(*bad) ? "NaN"
         : *bad > 0       ? "Infinity"
                          : "-Infinity");
  if (from == to) return std::vector<float>(samples, samples + n);
  static std::mutex mutex;
  static std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const Phases>> known;
  std::shared_ptr<const Phases> phases;
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto& entry = known[{from, to}];
    if (!entry) {
      if (known.size() > 8) known.clear();  // rates are few, unless somebody makes them up
      known[{from, to}] = phases = std::make_shared<const Phases>(from, to);
    } else {
      phases = entry;
    }
  }
  const Phases& p = *phases;
  const int64_t count = (n * p.up + p.down - 1) / p.down;
  std::vector<float> out(static_cast<size_t>(count));
  std::vector<float> edge(static_cast<size_t>(p.taps));
  // Outputs of a phase together, as long as their inputs stay in cache.
  constexpr int64_t rounds = 16, at_once = 4;
  for (int64_t block = 0; block < count; block += rounds * p.up)
    for (int64_t place = block; place < std::min(count, block + p.up); ++place) {
      const float* const weights = p.weights.data() + place * p.down % p.up * p.taps;
      int64_t first = place * p.down / p.up - p.reach;
      const int64_t end = std::min(count, block + rounds * p.up);
      for (int64_t i = place; i < end;) {
        float* const to = &out[size_t(i)];
        int64_t made = 1;
        if (first >= 0 && first + (at_once - 1) * p.down + p.taps <= n && i + (at_once - 1) * p.up < end) {
          dot<at_once>(samples + first, p.down, weights, p.taps, to, p.up);
          made = at_once;
        } else {
          for (int64_t k = 0; k < p.taps; ++k) edge[size_t(k)] = first + k >= 0 && first + k < n ? samples[first + k] : 0;
          dot<1>(edge.data(), 0, weights, p.taps, to, 0);
        }
        i += made * p.up, first += made * p.down;
      }
    }
  return out;
}

int64_t mel_frames(int64_t samples, const MelLayout& layout) { return samples / layout.hop; }

void log_mel(const float* samples, int64_t n, const MelLayout& layout, float* out) {
  const int64_t half = layout.window / 2, frames = mel_frames(n, layout);
  if (n <= half) fail("INVALID_INPUT", "expected more than ", half, " samples, got ", n);
  const Filters filters(layout);
  Fourier fourier{size_t(layout.window)};
  std::vector<double> window(size_t(layout.window)), power(size_t(half + 1));
  for (int64_t i = 0; i < layout.window; ++i) window[size_t(i)] = 0.5 - 0.5 * std::cos(2 * kPi * double(i) / double(layout.window));
  std::vector<Complex> in(size_t(layout.window)), spectrum(size_t(layout.window));
  float loudest = -10;
  // A transform has two frames: one as the real part, the other as the imaginary part.
  constexpr int64_t at_once = 2 * Complex::kTransforms;
  for (int64_t t0 = 0; t0 < frames; t0 += at_once) {
    const int64_t count = std::min(at_once, frames - t0);
    for (int64_t i = 0; i < layout.window; ++i) {
      Complex& to = in[size_t(i)];
      to = {};
      for (int64_t j = 0; j < count; ++j) {
        int64_t at = (t0 + j) * layout.hop + i - half;
        if (at < 0) at = -at;
        if (at >= n) at = 2 * (n - 1) - at;
        double* const part = j % 2 ? to.im : to.re;
        part[j / 2] = double(samples[at]) * window[size_t(i)];
      }
    }
    fourier.run(in.data(), spectrum.data());
    for (int64_t j = 0; j < count; ++j) {
      const auto lane = size_t(j / 2);
      const double sign = j % 2 ? -1 : 1;
      for (int64_t k = 0; k <= half; ++k) {
        const Complex &a = spectrum[size_t(k)], &mirrored = spectrum[size_t(k == 0 ? 0 : layout.window - k)];
        const double re = a.re[lane] + sign * mirrored.re[lane], im = a.im[lane] - sign * mirrored.im[lane];
        power[size_t(k)] = (re * re + im * im) / 4;
      }
      float* row = out + (t0 + j) * layout.bins;
      for (int64_t b = 0; b < layout.bins; ++b) {
        const Filters::Triangle& triangle = filters.triangles[size_t(b)];
        double sum = 0;
        for (size_t k = 0; k < triangle.weights.size(); ++k) sum += power[triangle.first + k] * double(triangle.weights[k]);
        row[b] = float(std::log10(std::max(sum, 1e-10)));
        loudest = std::max(loudest, row[b]);
      }
    }
  }
  for (int64_t i = 0; i < frames * layout.bins; ++i) out[i] = (std::max(out[i], loudest - 8) + 4) / 4;
}

}  // namespace conan::media

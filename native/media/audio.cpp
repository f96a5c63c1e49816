#include "media/audio.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "media/clones.h"

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
    taps = (2 * reach + 1 + 15) / 16 * 16;
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

/// Sums of `n` products, a multiple of 16: sixteen sums in step, so that vectors of any width add in the same order.
CONAN_CLONES float dot(const float* x, const float* y, int64_t n) {
  float sums[16] = {};
  for (int64_t k = 0; k < n; k += 16)
    for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += x[k + lane] * y[k + lane];
  double sum = 0;
  for (float lane : sums) sum += double(lane);
  return float(sum);
}

/// std::complex looks for infinities in every product.
struct Complex {
  double re = 0, im = 0;
  Complex operator+(const Complex& o) const { return {re + o.re, im + o.im}; }
  Complex operator-(const Complex& o) const { return {re - o.re, im - o.im}; }
  Complex operator*(const Complex& o) const { return {re * o.re - im * o.im, re * o.im + im * o.re}; }
};

/// Complex discrete Fourier transform of one size, by the prime factors of the size.
class Fourier {
 public:
  explicit Fourier(size_t n) : n_(n), roots_(n) {
    size_t rest = n;
    for (size_t p = 2; p <= kLargestPrime; ++p)
      while (rest % p == 0) rest /= p;
    if (rest != 1) fail("CONFIG_INVALID", "\"n_fft\": expected a product of primes up to ", kLargestPrime, ", got ", n);
    for (size_t i = 0; i < n; ++i) roots_[i] = {std::cos(2 * kPi * double(i) / double(n)), -std::sin(2 * kPi * double(i) / double(n))};
  }
  void run(const Complex* in, Complex* out) { step(in, out, n_, 1); }

 private:
  static constexpr size_t kLargestPrime = 31;

  /// out[k] = sum over i < n of in[i * stride] * w^(i k), w the n-th root of unity.
  void step(const Complex* in, Complex* out, size_t n, size_t stride) {
    if (n == 1) {
      out[0] = in[0];
      return;
    }
    size_t p = 2;
    while (n % p) ++p;
    const size_t m = n / p;
    for (size_t r = 0; r < p; ++r) step(in + r * stride, out + r * m, m, stride * p);
    for (size_t k = 0; k < m; ++k) {
      if (p == 2) {
        const Complex even = out[k], odd = out[m + k] * roots_[k * stride];
        out[k] = even + odd;
        out[m + k] = even - odd;
        continue;
      }
      Complex small[kLargestPrime];
      for (size_t r = 0; r < p; ++r) small[r] = out[r * m + k] * roots_[r * k * stride];
      for (size_t q = 0; q < p; ++q) {
        Complex sum = small[0];
        for (size_t r = 1; r < p; ++r) sum = sum + small[r] * roots_[r * q % p * m * stride];
        out[q * m + k] = sum;
      }
    }
  }

  size_t n_;
  std::vector<Complex> roots_;
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
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * p.down / p.up, phase = i * p.down % p.up, first = at - p.reach;
    const float* weights = p.weights.data() + phase * p.taps;
    const float* x = samples + first;
    if (first < 0 || first + p.taps > n) {
      for (int64_t k = 0; k < p.taps; ++k) edge[size_t(k)] = first + k >= 0 && first + k < n ? samples[first + k] : 0;
      x = edge.data();
    }
    out[size_t(i)] = dot(x, weights, p.taps);
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
  // Two frames are transformed at once: one as the real part, the other as the imaginary part.
  for (int64_t t = 0; t < frames; t += 2) {
    const int64_t together = std::min<int64_t>(2, frames - t);
    for (int64_t i = 0; i < layout.window; ++i) {
      double values[2] = {0, 0};
      for (int64_t j = 0; j < together; ++j) {
        int64_t at = (t + j) * layout.hop + i - half;
        if (at < 0) at = -at;
        if (at >= n) at = 2 * (n - 1) - at;
        values[j] = double(samples[at]) * window[size_t(i)];
      }
      in[size_t(i)] = {values[0], values[1]};
    }
    fourier.run(in.data(), spectrum.data());
    for (int64_t j = 0; j < together; ++j) {
      for (int64_t k = 0; k <= half; ++k) {
        const Complex a = spectrum[size_t(k)], mirrored = spectrum[size_t(k == 0 ? 0 : layout.window - k)], b = {mirrored.re, -mirrored.im};
        const Complex own = j == 0 ? a + b : a - b;
        power[size_t(k)] = (own.re * own.re + own.im * own.im) / 4;
      }
      float* row = out + (t + j) * layout.bins;
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

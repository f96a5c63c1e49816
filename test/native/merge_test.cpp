// The parts of merging that the tests of whole recipes (test/unit/fuse.test.ts) reach only on models larger than theirs:
// selection over many chunks, with ties and with samples that mislead; singular values; rows in another order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "check.h"
#include "merge/kernels.h"
#include "merge/linear_algebra.h"
#include "merge/select.h"

using namespace conan;
using namespace conan::merge;
using namespace conan::test;

namespace {

/// The entries of the k largest magnitudes, equal ones by place, as select_largest must find them.
void check_selection(const std::string& what, const std::vector<float>& values, const std::vector<int64_t>& ks, int threads) {
  Job job;
  job.shape = {int64_t(values.size())};
  job.threads = threads;
  std::vector<Workspace> workspaces(static_cast<size_t>(threads));
  job.workspaces = &workspaces;
  job.divide(false);
  const Magnitudes magnitudes = [&](int64_t first, int64_t n, Workspace&, uint32_t* bits) {
    kernels().magnitude_bits(values.data() + first, nullptr, n, bits);
  };
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return std::abs(values[size_t(a)]) > std::abs(values[size_t(b)]); });
  std::vector<Selection> selections;
  for (int64_t k : ks) selections.push_back({magnitudes, k});
  const std::vector<Cut> cuts = select_largest(job, selections);
  for (size_t c = 0; c < ks.size(); ++c) {
    std::vector<char> expected(values.size()), got(values.size());
    for (int64_t i = 0; i < ks[c]; ++i) expected[size_t(order[size_t(i)])] = 1;
    for (int64_t chunk = 0; chunk < job.chunks(); ++chunk)
      for (int64_t first = chunk * job.chunk(); first < std::min(job.size(), (chunk + 1) * job.chunk()); first += kBlock) {
        Block block;
        block.chunk = chunk;
        block.first = first;
        block.n = std::min({kBlock, job.size() - first, (chunk + 1) * job.chunk() - first});
        const Cut::Share share = cuts[c].share(job, block);
        int64_t seen = 0;
        for (int64_t i = first; i < first + block.n; ++i) {
          uint32_t bits;
          std::memcpy(&bits, &values[size_t(i)], 4);
          got[size_t(i)] = cuts[c].holds(share, bits & 0x7fffffff, seen);
        }
      }
    check(got == expected, text(what, ", k = ", ks[c]));
  }
}

void selections() {
  const size_t n = 700'001;  // three chunks, the last one short
  const int64_t all = int64_t(n);
  const std::vector<int64_t> ks = {0, 1, all / 100, all / 5, all / 2, all - 1, all};
  std::vector<float> values = random_floats(n, 1);
  check_selection("normal", values, ks, 2);
  check_selection("normal, one thread", values, {all / 3}, 1);
  for (float& x : values) x = std::round(x * 3) / 3;
  check_selection("many equal", values, ks, 2);
  std::vector<float> rising(n);
  for (size_t i = 0; i < n; ++i) rising[i] = float(i);
  check_selection("rising", rising, ks, 2);
  check_selection("all equal", std::vector<float>(n, -2.f), ks, 2);
  check_selection("all zero", std::vector<float>(n, 0.f), ks, 2);
  // Large values just where the sample does not look: between its runs.
  std::vector<float> hidden = random_floats(n, 2, 1e-3f);
  for (size_t i = 0; i < n; ++i)
    if (i % 341 > 40 && i % 341 < 120) hidden[i] = 100 + float(i % 1000);
  check_selection("hidden from the sample", hidden, ks, 2);
  for (size_t small : {size_t(1), size_t(2), size_t(100), size_t(2048), size_t(2049)}) {
    const std::vector<float> few = random_floats(small, unsigned(small));
    check_selection(text(small, " values"), few, {1, int64_t(small + 1) / 2, int64_t(small)}, 2);
  }
}

double error(const Dense& a, const Dense& b) {
  double d = 0, s = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    d += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
    s += b.values[i] * b.values[i];
  }
  return std::sqrt(d / std::max(s, 1e-300));
}

Dense random_matrix(int64_t rows, int64_t cols, unsigned seed) {
  Dense a(rows, cols);
  const std::vector<float> values = random_floats(size_t(rows * cols), seed);
  std::copy(values.begin(), values.end(), a.values.begin());
  return a;
}

Dense identity(int64_t n) {
  Dense i(n, n);
  for (int64_t k = 0; k < n; ++k) i.row(k)[k] = 1;
  return i;
}

void linear_algebra() {
  for (auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1}, {5, 3, 7}, {70, 300, 33}, {129, 17, 65}}) {
    const Dense a = random_matrix(m, n, 1), b = random_matrix(n, k, 2);
    Dense plain(m, k);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < k; ++j)
        for (int64_t l = 0; l < n; ++l) plain.row(i)[j] += a.row(i)[l] * b.row(l)[j];
    check(error(multiply(a, b, 2), plain) < 1e-14, text("product ", m, " ", n, " ", k));
  }
  for (auto [m, n] : {std::array<int64_t, 2>{1, 1}, {1, 9}, {9, 1}, {40, 70}, {70, 40}, {64, 64}, {65, 66}}) {
    const Dense a = random_matrix(m, n, unsigned(m + n));
    const Svd two = svd(a, 2), one = svd(a, 1);
    Dense scaled = two.u;
    for (int64_t i = 0; i < m; ++i)
      for (size_t r = 0; r < two.s.size(); ++r) scaled.row(i)[r] *= two.s[r];
    const std::string what = text("svd ", m, " ", n);
    check(error(multiply(scaled, two.vt, 1), a) < 1e-13, what + ": u s vt");
    check(error(multiply(two.vt, transposed(two.vt), 1), identity(int64_t(two.s.size()))) < 1e-12, what + ": vt");
    check(error(multiply(transposed(two.u), two.u, 1), identity(int64_t(two.s.size()))) < 1e-10, what + ": u");
    check(std::is_sorted(two.s.rbegin(), two.s.rend()), what + ": s falls");
    check(one.s == two.s && one.vt.values == two.vt.values, what + ": threads change nothing");
  }
  // rank 3 of 30
  const Dense low = multiply(random_matrix(30, 3, 5), random_matrix(3, 50, 6), 1);
  check(svd(low, 2).s.size() == 3, "rank of a product");
  check(svd(Dense(4, 5), 1).s.empty(), "rank of zero");
}

void sources() {
  const std::vector<float> a = {1, 2, 3, 4, 5, 6}, b = {10, 20, 30, 40};
  const Source first("a", TensorView{a.data(), Dtype::f32, {3, 2}}), second("b", TensorView{b.data(), Dtype::f32, {2, 2}});
  const Source rows("rows", {5, 2}, {{2, {{&first, 1}}}, {1, {}}, {1, {{&second, 0}}}, {1, {{&first, 0}, {&second, 1}}}});
  const std::vector<float> expected = {3, 4, 5, 6, 0, 0, 10, 20, 15.5f, 21};
  for (int64_t from = 0; from < 10; ++from)
    for (int64_t count = 1; from + count <= 10; ++count) {
      std::vector<float> got(static_cast<size_t>(count));
      rows.read(from, count, got.data());
      check(std::equal(got.begin(), got.end(), expected.begin() + from), text("rows ", from, " ", count));
    }
}

void rounding() {
  // Just above, at and just below the middle between two bf16 numbers; float32 alone would call them all the middle.
  const double middle = 1 + 0x1p-8, inputs[] = {middle, middle + 0x1p-40, middle - 0x1p-40, -middle - 0x1p-40, 0, 1e-45, 3.4e38};
  const uint16_t expected[] = {0x3f80, 0x3f81, 0x3f80, 0xbf81, 0, 0, 0x7f80};
  uint16_t out[7];
  kernels().narrow(Dtype::bf16, inputs, 7, out);
  for (int i = 0; i < 7; ++i) check(out[i] == expected[i], text("bf16 of ", inputs[i], ": expected ", expected[i], ", got ", out[i]));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = uint16_t(bits);
    float wide;
    kernels().widen(Dtype::f16, &half, 1, &wide);
    const float plain = f16_to_f32(half);
    if (std::memcmp(&wide, &plain, 4) != 0) check(false, text("f16 ", bits));
  }
}

}  // namespace

int main() {
  selections();
  linear_algebra();
  sources();
  rounding();
  return report("merge_test");
}

// Operations that look at one row, or at few, at a time: bound by memory. A warp takes a row, its lanes neighbouring channels.
#include <algorithm>

#include "cuda/cuda.h"

namespace conan::cuda {

namespace {

constexpr int warps = 8;  // rows of a block

__device__ __forceinline__ int64_t own_row() { return int64_t(blockIdx.x) * warps + threadIdx.y; }
__device__ __forceinline__ int lane() { return int(threadIdx.x); }

/// For operations on each number by itself: a warp has `part` columns of a row, and asks for all before it writes one.
constexpr int part = 256;

struct Place {
  int64_t row, column;
};
__device__ __forceinline__ Place own_part(int64_t cols) {
  const int64_t at = own_row(), parts = (cols + part - 1) / part;
  return {at / parts, at % parts * part};
}
template <class Read, class Write>
__device__ __forceinline__ void each_of(int64_t first, int64_t cols, const Read& read, const Write& write) {
  decltype(read(first)) held[part / 32];
#pragma unroll
  for (int i = 0; i < part / 32; ++i) {  // without a condition, which would come between what is asked for
    const int64_t c = first + 32 * i + lane();
    held[i] = read(c < cols ? c : cols - 1);
  }
#pragma unroll
  for (int i = 0; i < part / 32; ++i)
    if (first + 32 * i + lane() < cols) write(first + 32 * i + lane(), held[i]);
}

template <class... Parameters, class... Args>
void launch_rows(const Arguments& arguments, void (*kernel)(Parameters...), int64_t rows, Args... args) {
  launch(arguments.device, kernel, dim3(blocks(rows, warps)), dim3(32, warps), args...);
}

template <class... Parameters, class... Args>
void launch_parts(const Arguments& arguments, void (*kernel)(Parameters...), int64_t rows, int64_t cols, Args... args) {
  launch_rows(arguments, kernel, rows * ((cols + part - 1) / part), args...);
}

/// One thread a channel, for sums over rows in their order; block x is the sequence, of which there may be many.
template <class... Parameters, class... Args>
void launch_columns(const Arguments& arguments, void (*kernel)(Parameters...), int64_t cols, unsigned rows, Args... args) {
  launch(arguments.device, kernel, dim3(rows, blocks(cols, 128)), dim3(128), args...);
}

__device__ __forceinline__ int64_t own_column() { return int64_t(blockIdx.y) * 128 + threadIdx.x; }

/// Rows of bf16, by two neighbouring numbers or four. What a kernel reads of rows whose kind it knows when it is compiled is asked for together; of
/// EitherRows one after the other.
struct NarrowRows {
  NarrowView m;
  __device__ __forceinline__ float2 at(int64_t t, int64_t c) const { return unpack_bf16(*reinterpret_cast<const uint32_t*>(m.row(t) + c)); }
  __device__ __forceinline__ float4 four(int64_t t, int64_t c) const {
    const uint2 words = *reinterpret_cast<const uint2*>(m.row(t) + c);
    const float2 low = unpack_bf16(words.x), high = unpack_bf16(words.y);
    return {low.x, low.y, high.x, high.y};
  }
  __device__ __forceinline__ void put(int64_t t, int64_t c, const float2& v) const {
    *reinterpret_cast<uint32_t*>(m.row(t) + c) = pack_bf16(v.x, v.y);
  }
};

/// Rows in either of their forms, by one number as well.
struct EitherRows {
  View wide;
  NarrowRows narrow;
  __device__ __forceinline__ float one(int64_t t, int64_t c) const {
    return narrow.m.data ? file_word(narrow.m.row(t), Dtype::bf16, c) : wide.row(t)[c];
  }
  __device__ __forceinline__ float2 at(int64_t t, int64_t c) const {
    return narrow.m.data ? narrow.at(t, c) : *reinterpret_cast<const float2*>(wide.row(t) + c);
  }
  __device__ __forceinline__ float4 four(int64_t t, int64_t c) const {
    return narrow.m.data ? narrow.four(t, c) : *reinterpret_cast<const float4*>(wide.row(t) + c);
  }
  __device__ __forceinline__ void put(int64_t t, int64_t c, const float2& v) const {
    if (narrow.m.data) narrow.put(t, c, v);
    else *reinterpret_cast<float2*>(wide.row(t) + c) = v;
  }
};

/// Calls run with the rows of some matrices: as NarrowRows where all of them are.
template <class Run, class... Each>
void with_rows(const Run& run, const Each&... each) {
  if ((each.narrow.m.data && ...)) run(each.narrow...);
  else run(each...);
}

struct Moments {
  float mean, factor;
};

__device__ Moments moments(const float* x, int64_t C, NormKind kind, float eps) {
  float sum = 0;
  if (kind == NormKind::layer)
    for (int64_t c = lane(); c < C; c += 32) sum += x[c];
  const float mean = kind == NormKind::layer ? warp_sum(sum) / float(C) : 0;
  float squares = 0;
  for (int64_t c = lane(); c < C; c += 32) squares += (x[c] - mean) * (x[c] - mean);
  return {mean, 1 / sqrtf(warp_sum(squares) / float(C) + eps)};
}

__global__ void norm_f32(NormKind kind, float eps, View x, const float* weight, const float* bias, View residual, View y, NarrowView narrow_y,
                         View copy) {
  const int64_t t = own_row(), C = x.cols;
  if (t >= x.rows) return;
  const float* from = x.row(t);
  const Moments m = moments(from, C, kind, eps);
  for (int64_t c = lane(); c < C; c += 32) {
    float v = (from[c] - m.mean) * m.factor;
    if (copy.data) copy.row(t)[c] = from[c];
    if (weight) v *= weight[c];
    if (bias) v += bias[c];
    if (residual.data) v += residual.row(t)[c];
    if (narrow_y.data) narrow_y.row(t)[c] = uint16_t(pack_bf16(v, 0));
    else y.row(t)[c] = v;
  }
}

struct Most {
  static __device__ __forceinline__ float of_warp(float x) { return warp_max(x); }
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
  static __device__ __forceinline__ float of_warp(float x) { return warp_sum(x); }
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
/// What Each makes of the values of `across` warps of a block, for each of their lanes. Where they are several, all threads of the block take
/// part.
template <int across, class Each>
__device__ __forceinline__ float of_warps(float value, float* shares, const Each& each) {
  value = Each::of_warp(value);
  if constexpr (across == 1) return value;
  const int first = int(threadIdx.y) / across * across;
  __syncthreads();  // what was there has been read
  if (lane() == 0) shares[threadIdx.y] = value;
  __syncthreads();
  value = shares[first];
#pragma unroll
  for (int w = 1; w < across; ++w) value = each(value, shares[first + w]);
  return value;
}

/// Some warps of a block that have a row together, by fours: N each to a lane, up to 128 N `across` channels. Where they are several, all
/// threads of a block take part in sums, also those that have no row. The last of `rows` come first: what made them has just written those, and
/// they lie in the cache.
template <int across>
struct Together {
  float* shares;  // [warps], shared
  __device__ __forceinline__ int64_t row(int64_t rows) const { return rows - 1 - own_row() / across; }
  __device__ __forceinline__ int four(int i) const { return 4 * (32 * across * i + int(threadIdx.y) % across * 32 + lane()); }
  __device__ __forceinline__ float sum(float value) const { return of_warps<across>(value, shares, Sum()); }
};

/// The same where a row fits the registers of some warps.
template <int N, int across>
__global__ void __launch_bounds__(32 * warps)
    norm_held(NormKind kind, float eps, View x, const float* weight, const float* bias, View residual, View y, NarrowView narrow_y, View copy) {
  __shared__ float shares[warps];
  const Together<across> together{shares};
  const int64_t t = together.row(x.rows);
  const int C = t >= 0 ? int(x.cols) : 0;
  if (across == 1 && t < 0) return;
  float4 v[N];
  float sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int c = together.four(i);
    v[i] = c < C ? *reinterpret_cast<const float4*>(x.row(t) + c) : float4{0, 0, 0, 0};
    sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
  }
  if (copy.data) {  // in a loop of its own: a store between loads would wait for each of them
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (together.four(i) < C) *reinterpret_cast<float4*>(copy.row(t) + together.four(i)) = v[i];
  }
  const float mean = kind == NormKind::layer ? together.sum(sum) / float(x.cols) : 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (together.four(i) >= C) continue;
    v[i].x -= mean, v[i].y -= mean, v[i].z -= mean, v[i].w -= mean;
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
  }
  const float factor = 1 / sqrtf(together.sum(squares) / float(x.cols) + eps);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int c = together.four(i);
    if (c >= C) continue;
    const auto four = [&](const float* from, float other) {
      return from ? *reinterpret_cast<const float4*>(from + c) : float4{other, other, other, other};
    };
    const float4 w = four(weight, 1), b = four(bias, 0), r = four(residual.data ? residual.row(t) : nullptr, 0);
    const float4 out = {v[i].x * factor * w.x + b.x + r.x, v[i].y * factor * w.y + b.y + r.y, v[i].z * factor * w.z + b.z + r.z,
                        v[i].w * factor * w.w + b.w + r.w};
    if (narrow_y.data) *reinterpret_cast<uint2*>(narrow_y.row(t) + c) = {pack_bf16(out.x, out.y), pack_bf16(out.z, out.w)};
    else *reinterpret_cast<float4*>(y.row(t) + c) = out;
  }
}

/// narrow_dx: the result once more.
__global__ void norm_backward_input_f32(NormKind kind, float eps, View x, const float* weight, EitherRows dy, View dx, NarrowView narrow_dx, bool add,
                                        int groups) {
  const int64_t t = own_row() / groups, C = x.cols / groups, column = own_row() % groups * C;
  if (t >= x.rows) return;
  const float* from = x.row(t) + column;
  const auto slope = [&](int64_t c) { return dy.one(t, column + c) * (weight ? weight[c] : 1); };
  const Moments m = moments(from, C, kind, eps);
  float sum = 0, along = 0;
  for (int64_t c = lane(); c < C; c += 32) {
    const float g = slope(c);
    sum += g;
    along += g * (from[c] - m.mean) * m.factor;
  }
  sum = kind == NormKind::rms ? 0 : warp_sum(sum) / float(C);
  along = warp_sum(along) / float(C);
  for (int64_t c = lane(); c < C; c += 32) {
    const float hat = (from[c] - m.mean) * m.factor;
    float& to = dx.row(t)[column + c];
    to = m.factor * (slope(c) - sum - hat * along) + (add ? to : 0);
    if (narrow_dx.data) narrow_dx.row(t)[column + c] = uint16_t(pack_bf16(to, 0));
  }
}

/// The same where a row fits the registers of some warps.
template <int N, int across>
__global__ void __launch_bounds__(32 * warps)
    norm_backward_held(NormKind kind, float eps, View x, const float* weight, EitherRows dy, View dx, NarrowView narrow_dx, bool add, int groups) {
  __shared__ float shares[warps];
  const Together<across> together{shares};
  const int width = int(x.cols) / groups;
  const int64_t segment = together.row(x.rows * groups), t = segment / groups, column = segment % groups * width;
  const int C = segment >= 0 ? width : 0;
  if (across == 1 && segment < 0) return;
  float4 v[N], g[N];
  float total = 0, squares = 0, sum = 0, along = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int c = together.four(i);
    v[i] = c < C ? *reinterpret_cast<const float4*>(x.row(t) + column + c) : float4{0, 0, 0, 0};
    g[i] = c < C ? dy.four(t, column + c) : float4{0, 0, 0, 0};
    total += (v[i].x + v[i].y) + (v[i].z + v[i].w);
  }
  const float mean = kind == NormKind::layer ? together.sum(total) / float(width) : 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int c = together.four(i);
    if (c >= C) continue;
    const float4 w = weight ? *reinterpret_cast<const float4*>(weight + c) : float4{1, 1, 1, 1};
    g[i] = {g[i].x * w.x, g[i].y * w.y, g[i].z * w.z, g[i].w * w.w};
    v[i] = {v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean};
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
    sum += (g[i].x + g[i].y) + (g[i].z + g[i].w);
    along += (g[i].x * v[i].x + g[i].y * v[i].y) + (g[i].z * v[i].z + g[i].w * v[i].w);
  }
  const float factor = 1 / sqrtf(together.sum(squares) / float(width) + eps);
  sum = kind == NormKind::rms ? 0 : together.sum(sum) / float(width);
  along = together.sum(along) / float(width) * factor * factor;
  constexpr int at_once = N < 4 ? N : 4;
#pragma unroll
  for (int first = 0; first < N; first += at_once) {
    float4 before[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int c = together.four(first + i);
      before[i] = add && c < C ? *reinterpret_cast<const float4*>(dx.row(t) + column + c) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int c = together.four(first + i);
      if (c >= C) continue;
      const float4 &a = g[first + i], &b = v[first + i];
      const float4 out = {factor * (a.x - sum - b.x * along) + before[i].x, factor * (a.y - sum - b.y * along) + before[i].y,
                          factor * (a.z - sum - b.z * along) + before[i].z, factor * (a.w - sum - b.w * along) + before[i].w};
      *reinterpret_cast<float4*>(dx.row(t) + column + c) = out;
      if (narrow_dx.data) *reinterpret_cast<uint2*>(narrow_dx.row(t) + column + c) = {pack_bf16(out.x, out.y), pack_bf16(out.z, out.w)};
    }
  }
}

__global__ void moments_f32(NormKind kind, float eps, View x, int groups, Moments* out) {
  const int64_t t = own_row() / groups, C = x.cols / groups;
  if (t >= x.rows) return;
  const Moments m = moments(x.row(t) + own_row() % groups * C, C, kind, eps);
  if (lane() == 0) out[own_row()] = m;
}

/// Block x takes a part of the rows, and has sums [2, C] of its own: by the weight, and by the bias.
__global__ void norm_backward_weight_f32(View x, EitherRows dy, int groups, const Moments* rows, float* out) {
  const int64_t c = own_column(), C = x.cols / groups, first = x.rows * blockIdx.x / gridDim.x, end = x.rows * (blockIdx.x + 1) / gridDim.x;
  if (c >= C) return;
  float weight = 0, bias = 0;
  for (int64_t t = first; t < end; ++t)
    for (int g = 0; g < groups; ++g) {
      const Moments m = rows[t * groups + g];
      const float slope = dy.one(t, g * C + c);
      weight += slope * (x.row(t)[g * C + c] - m.mean) * m.factor;
      bias += slope;
    }
  out[2 * blockIdx.x * C + c] = weight;
  out[(2 * blockIdx.x + 1) * C + c] = bias;
}

/// One warp a head of a token.
__global__ void rope_f32(View x, int heads, int head_dim, const float* norm_weight, float eps, const float* cos, const float* sin, int half,
                         const int32_t* positions, bool inverse, NarrowView narrow_y) {
  const int64_t at = own_row(), t = at / heads;
  if (t >= x.rows) return;
  const int64_t column = at % heads * head_dim;
  float* row = x.row(t) + column;
  float factor = 1;
  if (norm_weight) {
    float squares = 0;
    for (int d = lane(); d < head_dim; d += 32) squares += row[d] * row[d];
    factor = 1 / sqrtf(warp_sum(squares) / float(head_dim) + eps);
  }
  auto normed = [&](int d) { return norm_weight ? row[d] * factor * norm_weight[d] : row[d]; };
  auto put = [&](int d, float value) {
    if (narrow_y.data) narrow_y.row(t)[column + d] = uint16_t(pack_bf16(value, 0));
    else row[d] = value;
  };
  const int turned = cos ? half : 0;
  for (int d = lane(); d < turned; d += 32) {
    const int64_t angle = int64_t(positions[t]) * half + d;
    const float low = normed(d), high = normed(half + d), c = cos[angle], s = inverse ? -sin[angle] : sin[angle];
    put(d, low * c - high * s);
    put(half + d, low * s + high * c);
  }
  if (norm_weight || narrow_y.data)
    for (int d = 2 * turned + lane(); d < head_dim; d += 32) put(d, normed(d));
}

/// rope_f32 by pairs of channels, where halves of heads are even: a warp has some heads of a token, which turn by the same angles.
constexpr int heads_at_once = 4;

/// `most_pairs`: pairs of channels that a lane turns.
template <int most_pairs, class Rows>
__global__ void __launch_bounds__(32 * warps) rope_pairs(Rows x, Rows y, int64_t rows, int heads, int head_dim, const float* norm_weight, float eps,
                                                         const float* cos, const float* sin, int half, const int32_t* positions, bool inverse) {
  const int groups = (heads + heads_at_once - 1) / heads_at_once;
  const int64_t at = own_row(), t = at / groups;
  if (t >= rows) return;
  const int first = int(at % groups) * heads_at_once, own = heads - first < heads_at_once ? heads - first : heads_at_once;
  float2 low[heads_at_once][most_pairs], high[heads_at_once][most_pairs];
#pragma unroll
  for (int h = 0; h < heads_at_once; ++h)
#pragma unroll
    for (int i = 0; i < most_pairs; ++i) {
      const int d = 2 * lane() + 64 * i;
      const int64_t from = int64_t(first + h) * head_dim + d;
      const bool there = h < own && d < half;
      low[h][i] = there ? x.at(t, from) : float2{0, 0};
      high[h][i] = there ? x.at(t, from + half) : float2{0, 0};
    }
  float2 c[most_pairs], s[most_pairs];
  const float2 one = {1, 1};
  const int64_t angle = half > 0 ? int64_t(positions[t]) * half : 0;
#pragma unroll
  for (int i = 0; i < most_pairs; ++i) {
    const int d = 2 * lane() + 64 * i;
    c[i] = d < half ? *reinterpret_cast<const float2*>(cos + angle + d) : one;
    s[i] = d < half ? *reinterpret_cast<const float2*>(sin + angle + d) : one;
    if (inverse) s[i].x = -s[i].x, s[i].y = -s[i].y;
  }
#pragma unroll
  for (int h = 0; h < heads_at_once; ++h) {
    if (h >= own) break;
    const int64_t column = int64_t(first + h) * head_dim;
    float factor = 1;
    if (norm_weight) {
      float squares = 0;
#pragma unroll
      for (int i = 0; i < most_pairs; ++i) squares += squares_of(low[h][i], high[h][i]);
      for (int d = 2 * half + 2 * lane(); d < head_dim; d += 64) {
        const float2 v = x.at(t, column + d);
        squares += v.x * v.x + v.y * v.y;
      }
      factor = 1 / sqrtf(warp_sum(squares) / float(head_dim) + eps);
    }
    auto put = [&](int d, const float2& value) { y.put(t, column + d, value); };
    auto behind_norm = [&](const float2& value, int d) { return normed(value, factor, norm_weight ? norm_weight + d : nullptr); };
#pragma unroll
    for (int i = 0; i < most_pairs; ++i) {
      const int d = 2 * lane() + 64 * i;
      if (d >= half) continue;
      const Turned out(behind_norm(low[h][i], d), behind_norm(high[h][i], half + d), c[i], s[i]);
      put(d, out.low), put(half + d, out.high);
    }
    for (int d = 2 * half + 2 * lane(); d < head_dim; d += 64) put(d, behind_norm(x.at(t, column + d), d));
  }
}

/// The way back through rope_pairs with a norm: dy turned by the negative angles, then the gradient of the norm at x. A warp a head of a token,
/// with channels in pairs of neighbours: of the first half of what turns, of the second, and behind; `most` to a lane.
template <int most, class Rows>
__global__ void __launch_bounds__(32 * warps)
    rope_pairs_backward(Rows dy, Rows x, Rows dx, int64_t rows, int heads, int head_dim, const float* norm_weight, float eps, const float* cos,
                        const float* sin, int half, const int32_t* positions) {
  const int64_t at = own_row(), t = at / heads, column = at % heads * head_dim;
  if (t >= rows) return;
  const int pairs = head_dim / 2;
  const int64_t angle = half > 0 ? int64_t(positions[t]) * half : 0;
  const auto channel = [&](int i) { return 2 * (lane() + 32 * i); };
  const float2 none = {0, 0};
  float2 g[most], v[most], other[most], c[most], s[most], w[most];
#pragma unroll
  for (int i = 0; i < most; ++i) {
    const int d = channel(i);
    const bool there = d < 2 * pairs, turned = there && d < 2 * half, low = d < half;
    const int64_t turn = angle + (low ? d : d - half);
    v[i] = there ? x.at(t, column + d) : none;
    g[i] = there ? dy.at(t, column + d) : none;
    other[i] = turned ? dy.at(t, column + (low ? d + half : d - half)) : none;
    c[i] = turned ? *reinterpret_cast<const float2*>(cos + turn) : float2{1, 1};
    s[i] = turned ? *reinterpret_cast<const float2*>(sin + turn) : none;
    w[i] = there ? *reinterpret_cast<const float2*>(norm_weight + d) : none;
  }
  float squares = 0, along = 0;
#pragma unroll
  for (int i = 0; i < most; ++i) {
    if (channel(i) < half) s[i] = {-s[i].x, -s[i].y};
    g[i] = {(g[i].x * c[i].x - other[i].x * s[i].x) * w[i].x, (g[i].y * c[i].y - other[i].y * s[i].y) * w[i].y};
    squares += v[i].x * v[i].x + v[i].y * v[i].y;
    along += g[i].x * v[i].x + g[i].y * v[i].y;
  }
  const float factor = 1 / sqrtf(warp_sum(squares) / float(head_dim) + eps), share = warp_sum(along) / float(head_dim) * factor * factor;
#pragma unroll
  for (int i = 0; i < most; ++i)
    if (lane() + 32 * i < pairs) dx.put(t, column + channel(i), {factor * (g[i].x - v[i].x * share), factor * (g[i].y - v[i].y * share)});
}

/// Rows of a matrix of files, or of what the host has picked from one, in its order.
struct Table {
  const void* words;
  Dtype dtype;
  const int32_t* ids;
  __device__ int64_t row(int64_t t) const { return ids ? ids[t] : t; }
  __device__ float at(int64_t t, int64_t cols, int64_t c) const { return file_word(words, dtype, row(t) * cols + c); }
};

__global__ void embed_f32(Table table, Table positions, float scale, const float* type_row, View y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= y.rows) return;
  each_of(
      first, y.cols,
      [&](int64_t c) { return table.at(t, y.cols, c) * scale + (type_row ? type_row[c] : 0) + (positions.words ? positions.at(t, y.cols, c) : 0); },
      [&](int64_t c, float v) { y.row(t)[c] = v; });
}

/// The same of 16-bit words without positions and type, four at a time.
template <Dtype dtype>
__global__ void embed_words(Table table, float scale, View y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= y.rows) return;
  const auto* const from = reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(table.words) + table.row(t) * y.cols);
  auto* const to = reinterpret_cast<float4*>(y.row(t));
  const int at = int(first / 4) + lane(), end = int(y.cols / 4);
  uint2 held[part / 128];
#pragma unroll
  for (int i = 0; i < part / 128; ++i)
    if (at + 32 * i < end) held[i] = from[at + 32 * i];
#pragma unroll
  for (int i = 0; i < part / 128; ++i) {
    uint16_t words[4];
    memcpy(words, &held[i], sizeof words);
    const auto number = [&](int e) { return file_word(words, dtype, e) * scale; };
    if (at + 32 * i < end) to[at + 32 * i] = {number(0), number(1), number(2), number(3)};
  }
}

__global__ void embed_backward_f32(const int32_t* ids, float scale, View dy, View dtable) {
  const int64_t c = own_column();
  if (c >= dy.cols) return;
  for (int64_t t = 0; t < dy.rows; ++t)
    if (ids[t] >= 0) dtable.row(ids[t])[c] += dy.row(t)[c] * scale;
}

__global__ void gather_f32(View x, View y, const int32_t* rows, int taps, const float* weights) {
  const auto [i, first] = own_part(y.cols);
  if (i >= y.rows) return;
  each_of(
      first, y.cols,
      [&](int64_t c) {
        float sum = 0;
        for (int k = 0; k < taps; ++k) sum += x.row(rows[i * taps + k])[c] * (weights ? weights[i * taps + k] : 1);
        return sum;
      },
      [&](int64_t c, float v) { y.row(i)[c] = v; });
}

__global__ void scatter_f32(View x, View y, const int32_t* rows, bool add) {
  const auto [i, first] = own_part(x.cols);
  if (i >= x.rows) return;
  float* to = y.row(rows ? rows[i] : i);
  each_of(
      first, x.cols, [&](int64_t c) { return x.row(i)[c] + (add ? to[c] : 0); }, [&](int64_t c, float v) { to[c] = v; });
}

__global__ void pool_f32(View x, View y, const int32_t* offsets, Pooling mode) {
  const int64_t c = own_column(), b = blockIdx.x;
  if (c >= y.cols) return;
  const int64_t begin = offsets[b], end = offsets[b + 1];
  const float count = float(end - begin);
  float v = 0, weighted = 0, most = x.row(begin)[c];
  if (mode == Pooling::cls) v = x.row(begin)[c];
  else if (mode == Pooling::last) v = x.row(end - 1)[c];
  else {
    for (int64_t t = begin; t < end; ++t) {
      const float value = x.row(t)[c];
      v += value;
      weighted += value * float(t - begin + 1);
      most = value > most ? value : most;
    }
    if (mode == Pooling::mean) v /= count;
    if (mode == Pooling::mean_sqrt_len) v /= sqrtf(count);
    if (mode == Pooling::max) v = most;
    if (mode == Pooling::weighted_mean) v = weighted * 2 / (count * (count + 1));
  }
  y.row(b)[c] = v;
}

__global__ void pool_backward_f32(View x, View dy, View dx, const int32_t* offsets, Pooling mode) {
  const int64_t c = own_column(), b = blockIdx.x;
  if (c >= dy.cols) return;
  const int64_t begin = offsets[b], end = offsets[b + 1];
  const float count = float(end - begin), slope = dy.row(b)[c];
  int64_t most = begin;  // the first of equals
  if (mode == Pooling::max)
    for (int64_t t = begin; t < end; ++t)
      if (x.row(t)[c] > x.row(most)[c]) most = t;
  for (int64_t t = begin; t < end; ++t) {
    float weight = 0;
    if (mode == Pooling::cls) weight = t == begin;
    if (mode == Pooling::last) weight = t == end - 1;
    if (mode == Pooling::mean) weight = 1 / count;
    if (mode == Pooling::mean_sqrt_len) weight = 1 / sqrtf(count);
    if (mode == Pooling::weighted_mean) weight = float(t - begin + 1) * 2 / (count * (count + 1));
    if (mode == Pooling::max) weight = t == most;
    dx.row(t)[c] = slope * weight;
  }
}

__device__ float length_of(const float* x, int64_t C) {
  float squares = 0;
  for (int64_t c = lane(); c < C; c += 32) squares += x[c] * x[c];
  return sqrtf(warp_sum(squares));
}

__global__ void normalize_f32(View x) {
  const int64_t b = own_row();
  if (b >= x.rows) return;
  const float length = length_of(x.row(b), x.cols), factor = 1 / (length > 1e-12f ? length : 1e-12f);
  for (int64_t c = lane(); c < x.cols; c += 32) x.row(b)[c] *= factor;
}

__global__ void normalize_backward_f32(View x, View dy) {
  const int64_t b = own_row();
  if (b >= x.rows) return;
  const float length = length_of(x.row(b), x.cols), factor = 1 / (length > 1e-12f ? length : 1e-12f);
  float along = 0;
  for (int64_t c = lane(); c < x.cols; c += 32) along += x.row(b)[c] * factor * dy.row(b)[c];
  along = length < 1e-12f ? 0 : warp_sum(along);  // below that the divisor does not move
  for (int64_t c = lane(); c < x.cols; c += 32) dy.row(b)[c] = factor * (dy.row(b)[c] - x.row(b)[c] * factor * along);
}

/// Calls body with the activation, which is a constant where it is the decoders' own: to choose it for every number takes as long as to read it.
template <class Body>
__device__ __forceinline__ void with_activation(Activation activation, const Body& body) {
  if (activation == Activation::silu) body(std::integral_constant<Activation, Activation::silu>());
  else body(activation);
}

template <class Rows>
__global__ void activate_pairs(Activation activation, bool gated, Rows x, Rows y, int64_t rows, int64_t cols) {
  const Place place = own_part(cols / 2);
  if (place.row >= rows) return;
  struct Inputs {
    float2 at, value;
  };
  with_activation(activation, [&](auto own) {
    each_of(
        place.column, cols / 2,
        [&](int64_t i) {
          return Inputs{x.at(place.row, 2 * i), gated ? x.at(place.row, cols + 2 * i) : float2{1, 1}};
        },
        [&](int64_t i, const Inputs& in) {
          y.put(place.row, 2 * i, {activated(own, in.at.x) * in.value.x, activated(own, in.at.y) * in.value.y});
        });
  });
}

template <class Rows>
__global__ void activate_backward_pairs(Activation activation, bool gated, Rows x, Rows dy, Rows dx, int64_t rows, int64_t cols) {
  const Place place = own_part(cols / 2);
  if (place.row >= rows) return;
  struct Inputs {
    float2 at, value, slope;
  };
  with_activation(activation, [&](auto own) {
    each_of(
        place.column, cols / 2,
        [&](int64_t i) {
          return Inputs{x.at(place.row, 2 * i), gated ? x.at(place.row, cols + 2 * i) : float2{1, 1}, dy.at(place.row, 2 * i)};
        },
        [&](int64_t i, const Inputs& in) {
          if (gated) dx.put(place.row, cols + 2 * i, {in.slope.x * activated(own, in.at.x), in.slope.y * activated(own, in.at.y)});
          dx.put(place.row, 2 * i,
                 {in.slope.x * in.value.x * activated_derivative(own, in.at.x), in.slope.y * in.value.y * activated_derivative(own, in.at.y)});
        });
  });
}

__global__ void activate_f32(Activation activation, bool gated, View x, View y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= y.rows) return;
  each_of(
      first, y.cols,
      [&](int64_t n) {
        return float2{x.row(t)[n], gated ? x.row(t)[y.cols + n] : 1};
      },
      [&](int64_t n, const float2& v) { y.row(t)[n] = activated(activation, v.x) * v.y; });
}

__global__ void activate_backward_f32(Activation activation, bool gated, View x, View dy, View dx) {
  const int64_t N = dy.cols;
  const auto [t, first] = own_part(N);
  if (t >= dy.rows) return;
  struct Inputs {
    float at, value, slope;
  };
  each_of(
      first, N,
      [&](int64_t n) {
        return Inputs{x.row(t)[n], gated ? x.row(t)[N + n] : 1, dy.row(t)[n]};
      },
      [&](int64_t n, const Inputs& in) {
        if (gated) dx.row(t)[N + n] = in.slope * activated(activation, in.at);
        dx.row(t)[n] = in.slope * in.value * activated_derivative(activation, in.at);
      });
}

__global__ void unpack_f32(const uint8_t* x, const float* table, int64_t each, View y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= y.rows) return;
  each_of(
      first, y.cols, [&](int64_t c) { return x[t * y.cols + c]; }, [&](int64_t c, uint8_t byte) { y.row(t)[c] = table[c / each * 256 + byte]; });
}

/// Zeros behind the last column of x.
__global__ void narrow_f32(View x, NarrowView y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= x.rows) return;
  each_of(
      first, y.cols, [&](int64_t c) { return c < x.cols ? x.row(t)[c] : 0; }, [&](int64_t c, float v) { y.row(t)[c] = uint16_t(pack_bf16(v, 0)); });
}

__global__ void widen_f32(NarrowView x, View y) {
  const auto [t, first] = own_part(y.cols);
  if (t >= y.rows) return;
  each_of(
      first, y.cols, [&](int64_t c) { return x.row(t)[c]; },
      [&](int64_t c, uint16_t word) {
        const uint32_t bits = uint32_t(word) << 16;
        float value;
        memcpy(&value, &bits, 4);
        y.row(t)[c] = value;
      });
}

/// A block a row; a thread has every 256th column. Which are positives is one bit each.
__global__ void __launch_bounds__(32 * warps) contrast_f32(ContrastArgs a, View scores, View y, double* losses) {
  CONAN_LAUNCH_MEMORY(memory);
  __shared__ float shares[warps];
  uint32_t* const bits = reinterpret_cast<uint32_t*>(memory);
  const int id = 32 * int(threadIdx.y) + lane(), M = int(scores.cols), first = a.offsets[blockIdx.x], end = a.offsets[blockIdx.x + 1];
  const float* const s = scores.row(blockIdx.x);
  float* const to = y.row(blockIdx.x);
  for (int word = id; word < (M + 31) / 32; word += 32 * warps) bits[word] = 0;
  for (int p = first; p < end; ++p)  // each word has one thread that writes it
    if (const int d = a.positives[p]; d / 32 % (32 * warps) == id) bits[d / 32] |= 1u << d % 32;
  for (int d = id; d < M; d += 32 * warps) to[d] = 0;
  __syncthreads();
  float loss = 0;
  const float weight = 1 / float(end - first);
  for (int p = first; p < end; ++p) {
    const int positive = a.positives[p];
    const float own = s[positive];
    const auto counts = [&](int d, float score) {
      return d == positive || (!(bits[d / 32] >> d % 32 & 1) && (a.margin < 0 || score <= own + a.margin));
    };
    float most = own, sum = 0;
    for (int d = id; d < M; d += 32 * warps)
      if (counts(d, s[d])) most = fmaxf(most, s[d]);
    most = of_warps<warps>(most, shares, Most());
    for (int d = id; d < M; d += 32 * warps)
      if (counts(d, s[d])) sum += expf((s[d] - most) / a.temperature);
    sum = of_warps<warps>(sum, shares, Sum());
    loss += weight * (logf(sum) + (most - own) / a.temperature);
    for (int d = id; d < M; d += 32 * warps)
      if (counts(d, s[d])) to[d] += a.factor * weight / a.temperature * (expf((s[d] - most) / a.temperature) / sum - (d == positive ? 1 : 0));
  }
  if (id == 0) losses[blockIdx.x] = loss;
}

__global__ void adamw_f32(AdamWArgs a) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= a.count) return;
  const float g = a.scale * a.gradient[i];
  const float first = a.beta1 * a.first[i] + (1 - a.beta1) * g, second = a.beta2 * a.second[i] + (1 - a.beta2) * g * g;
  a.first[i] = first, a.second[i] = second, a.gradient[i] = 0;
  a.value[i] = a.decay * a.value[i] - a.rate * first / (sqrtf(second) / a.correction + a.epsilon);
}

constexpr int64_t numbers = 1 << 14;  // of a block's sum

__global__ void squares_f32(const float* values, int64_t count, double* sums) {
  __shared__ double parts[warps];
  const int64_t first = int64_t(blockIdx.x) * numbers, end = first + numbers < count ? first + numbers : count;
  double sum = 0;
  for (int64_t i = first + 32 * threadIdx.y + lane(); i < end; i += 32 * warps) sum += double(values[i]) * values[i];
  sum = warp_sum(sum);
  if (lane() == 0) parts[threadIdx.y] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || lane() > 0) return;
  for (int w = 1; w < warps; ++w) sum += parts[w];
  sums[blockIdx.x] = sum;
}

__global__ void sum_f64(const double* values, int64_t count, double* sum) {
  const double total = warp_sum_of(values, count);
  if (lane() == 0) *sum = total;
}

/// Its rows are picked by the host where the device does not have it.
Table table_of(Arguments& args, const TensorView& table, const int32_t* ids, int64_t count, int64_t C) {
  if (const void* there = args.find(table.data, table.bytes())) return {there, table.dtype, args.in(ids, count)};
  if (recording) fail("INTERNAL", "cuda: a recording of rows that the host picks");
  std::vector<float> values(size_t(count * C));
  for (int64_t t = 0; t < count; ++t) read_f32(table, ids[t] * C, C, values.data() + t * C);
  return {args.in(static_cast<const float*>(values.data()), count * C), Dtype::f32, nullptr};
}

}  // namespace

NarrowView narrowed(Arguments& args, const Bf16Matrix& narrow, const Matrix& x, int64_t stride) {
  if (narrow.data) return args.in(narrow);
  const NarrowView out = {args.scratch<uint16_t>(x.rows * stride), x.rows, stride, stride};
  launch_parts(args, narrow_f32, x.rows, stride, args.in(x), out);
  return out;
}

void norm(Context& context, const NormArgs& a) {
  Arguments args(context);
  const View x = args.in(a.x), residual = args.in(a.residual), y = args.out(a.y), copy = args.out(a.copy);
  const float *weight = args.in(a.weight, x.cols), *bias = args.in(a.bias, x.cols);
  const NarrowView narrow_y = args.inout(a.narrow_y);
  const bool by_four = in_steps(x, 4) && in_steps(residual, 4) && in_steps(y, 4) && in_steps(copy, 4) && x.cols % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(weight) % 16 == 0 && reinterpret_cast<uintptr_t>(bias) % 16 == 0 && in_steps(narrow_y, 4);
  const auto run = [&](auto kernel, int across) {
    launch_rows(args, kernel, x.rows * across, a.kind, a.eps, x, weight, bias, residual, y, narrow_y, copy);
  };
  if (!by_four || x.cols > 8192) run(norm_f32, 1);
  else if (x.cols <= 512) run(norm_held<4, 1>, 1);
  else if (x.cols <= 1024) run(norm_held<8, 1>, 1);
  else if (x.cols <= 2048) run(norm_held<16, 1>, 1);
  else if (x.cols <= 4096) run(norm_held<8, 4>, 4);
  else run(norm_held<16, 4>, 4);
}

void norm_backward(Context& context, const NormBackwardArgs& a) {
  Arguments args(context);
  const int64_t C = a.x.cols / a.groups, segments = a.x.rows * a.groups;
  const View x = args.in(a.x);
  const EitherRows dy = {args.in(a.dy), {args.in(a.narrow_dy)}};
  if (a.dweight || a.dbias) {
    Moments* rows = args.scratch<Moments>(segments);
    launch_rows(args, moments_f32, segments, a.kind, a.eps, x, a.groups, rows);
    const int parts = parts_of(a.x.rows);
    float* sums = args.scratch<float>(2 * parts * C);
    launch_columns(args, norm_backward_weight_f32, C, unsigned(parts), x, dy, a.groups, static_cast<const Moments*>(rows), sums);
    if (a.dweight) add_parts(args, sums, 2 * C, parts, {args.inout(a.dweight, C), 1, C, C});
    if (a.dbias) add_parts(args, sums + C, 2 * C, parts, {args.inout(a.dbias, C), 1, C, C});
  }
  if (!a.dx.data) return;
  const float* weight = args.in(a.weight, C);
  const View dx = args.inout(a.dx);
  const NarrowView narrow_dx = args.inout(a.narrow_dx);
  const bool by_four = in_steps(x, 4) && in_steps(dy.wide, 4) && in_steps(dy.narrow.m, 4) && in_steps(dx, 4) && in_steps(narrow_dx, 4) &&
                       C % 4 == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  const auto run = [&](auto kernel, int across) {
    launch_rows(args, kernel, segments * across, a.kind, a.eps, x, weight, dy, dx, narrow_dx, a.add, a.groups);
  };
  if (!by_four || C > 8192) run(norm_backward_input_f32, 1);
  else if (C <= 128) run(norm_backward_held<1, 1>, 1);
  else if (C <= 512) run(norm_backward_held<4, 1>, 1);
  else if (C <= 1024) run(norm_backward_held<8, 1>, 1);
  else if (C <= 2048) run(norm_backward_held<8, 2>, 2);
  else if (C <= 4096) run(norm_backward_held<8, 4>, 4);
  else run(norm_backward_held<8, 8>, 8);
}

RopeTables rope_tables(Arguments& args, const RopeArgs& a) {
  const int64_t rows = a.narrow_x.data ? a.narrow_x.rows : a.x.rows;
  int64_t angles = a.cos ? a.half : 0;
  if (a.cos && rows > 0 && !args.find(a.cos, sizeof(float))) angles *= *std::max_element(a.positions, a.positions + rows) + int64_t(1);
  return {args.in(a.norm_weight, a.head_dim), args.in(a.cos, angles), args.in(a.sin, angles), args.in(a.positions, rows)};
}

void rope(Context& context, const RopeArgs& a) {
  Arguments args(context);
  const int64_t rows = a.narrow_x.data ? a.narrow_x.rows : a.x.rows;
  const View x = args.inout(a.x);
  const RopeTables tables = rope_tables(args, a);
  const NarrowView narrow_x = args.in(a.narrow_x), narrow_y = args.inout(a.narrow_y);
  const int half = a.cos ? a.half : 0;
  const bool by_pairs = half % 2 == 0 && half <= 128 && a.head_dim % 2 == 0 && in_steps(x, 2) && tables.in_pairs();
  const EitherRows normed = {args.in(a.normed), {args.in(a.narrow_normed)}};
  const bool backward = normed.wide.data || normed.narrow.m.data;
  if (!by_pairs && !narrow_x.data && !backward) {
    launch_rows(args, rope_f32, rows * a.heads, x, a.heads, a.head_dim, tables.norm_weight, a.eps, tables.cos, tables.sin, a.half, tables.positions,
                a.inverse, narrow_y);
    return;
  }
  const EitherRows from = {x, {narrow_x}}, to = {x, {narrow_y}};
  if (backward)
    with_rows(
        [&]<class Rows>(const Rows& dy, const Rows& at, const Rows& dx) {
          launch_rows(args, a.head_dim <= 128 ? rope_pairs_backward<2, Rows> : rope_pairs_backward<4, Rows>, rows * a.heads, dy, at, dx, rows,
                      a.heads, a.head_dim, tables.norm_weight, a.eps, tables.cos, tables.sin, half, tables.positions);
        },
        from, normed, to);
  else
    with_rows(
        [&]<class Rows>(const Rows& in, const Rows& out) {
          launch_rows(args, half <= 64 ? rope_pairs<1, Rows> : rope_pairs<2, Rows>, rows * ((a.heads + heads_at_once - 1) / heads_at_once), in, out,
                      rows, a.heads, a.head_dim, tables.norm_weight, a.eps, tables.cos, tables.sin, half, tables.positions, a.inverse);
        },
        from, to);
}

void embed(Context& context, const EmbedArgs& a) {
  Arguments args(context);
  const int64_t T = a.y.rows, C = a.y.cols;
  const Table positions = a.position_table ? table_of(args, *a.position_table, a.positions, T, C) : Table{nullptr, Dtype::f32, nullptr};
  const Table table = table_of(args, *a.table, a.ids, T, C);
  const View y = args.out(a.y);
  const bool alone = !positions.words && !a.type_row && C % 4 == 0 && reinterpret_cast<uintptr_t>(table.words) % 8 == 0 && in_steps(y, 4);
  if (alone && table.dtype == Dtype::bf16) return launch_parts(args, embed_words<Dtype::bf16>, T, C, table, a.scale, y);
  if (alone && table.dtype == Dtype::f16) return launch_parts(args, embed_words<Dtype::f16>, T, C, table, a.scale, y);
  launch_parts(args, embed_f32, T, C, table, positions, a.scale, args.in(a.type_row, C), y);
}

void embed_backward(Context& context, const EmbedBackwardArgs& a) {
  Arguments args(context);
  launch_columns(args, embed_backward_f32, a.dy.cols, 1, args.in(a.ids, a.dy.rows), a.scale, args.in(a.dy), args.inout(a.dtable));
}

void gather(Context& context, const GatherArgs& a) {
  Arguments args(context);
  const int64_t taps = a.y.rows * a.taps;
  launch_parts(args, gather_f32, a.y.rows, a.y.cols, args.in(a.x), args.out(a.y), args.in(a.rows, taps), a.taps, args.in(a.weights, taps));
}

void scatter(Context& context, const ScatterArgs& a) {
  Arguments args(context);
  const bool all = !a.rows && !a.add && a.x.rows == a.y.rows && a.x.cols == a.y.cols;
  const View y = all ? args.out(a.y) : args.inout(a.y);
  launch_parts(args, scatter_f32, a.x.rows, a.x.cols, args.in(a.x), y, args.in(a.rows, a.x.rows), a.add);
}

void clear(Context& context, const Matrix& x) {
  Arguments args(context);
  const View there = args.out(x);
  if (x.rows > 0)
    check(
        cudaMemset2DAsync(there.data, size_t(there.stride) * sizeof(float), 0, size_t(x.cols) * sizeof(float), size_t(x.rows), args.device.stream()),
        "memset");
}

void pool(Context& context, const PoolArgs& a) {
  Arguments args(context);
  launch_columns(args, pool_f32, a.y.cols, unsigned(a.y.rows), args.in(a.x), args.out(a.y), args.in(a.offsets, a.y.rows + 1), a.mode);
}

void pool_backward(Context& context, const PoolBackwardArgs& a) {
  Arguments args(context);
  launch_columns(args, pool_backward_f32, a.dy.cols, unsigned(a.dy.rows), args.in(a.x), args.in(a.dy), args.inout(a.dx),
                 args.in(a.offsets, a.dy.rows + 1), a.mode);
}

void normalize(Context& context, const NormalizeArgs& a) {
  Arguments args(context);
  launch_rows(args, normalize_f32, a.x.rows, args.inout(a.x));
}

void normalize_backward(Context& context, const NormalizeBackwardArgs& a) {
  Arguments args(context);
  launch_rows(args, normalize_backward_f32, a.x.rows, args.in(a.x), args.inout(a.dy));
}

void unpack(Context& context, const UnpackArgs& a) {
  Arguments args(context);
  const int64_t T = a.y.rows, C = a.y.cols;
  launch_parts(args, unpack_f32, T, C, args.in(a.x, T * C), args.in(a.table, a.channels * 256), C / a.channels, args.out(a.y));
}

void narrow(Context& context, const NarrowArgs& a) {
  Arguments args(context);
  launch_parts(args, narrow_f32, a.x.rows, a.x.cols, args.in(a.x), args.inout(a.y));
}

void widen(Context& context, const WidenArgs& a) {
  Arguments args(context);
  launch_parts(args, widen_f32, a.x.rows, a.x.cols, args.in(a.x), args.out(a.y));
}

void activate(Context& context, const ActivateArgs& a) {
  Arguments args(context);
  const View x = args.in(a.x), y = args.out(a.y);
  const int64_t rows = a.narrow_y.data ? a.narrow_y.rows : y.rows, cols = a.narrow_y.data ? a.narrow_y.cols : y.cols;
  if (a.narrow_x.data || (in_steps(x, 2) && in_steps(y, 2) && cols % 2 == 0))
    with_rows(
        [&]<class Rows>(const Rows& in, const Rows& out) {
          launch_parts(args, activate_pairs<Rows>, rows, cols / 2, a.activation, a.gated, in, out, rows, cols);
        },
        EitherRows{x, {args.in(a.narrow_x)}}, EitherRows{y, {args.inout(a.narrow_y)}});
  else launch_parts(args, activate_f32, rows, cols, a.activation, a.gated, x, y);
}

void activate_backward(Context& context, const ActivateBackwardArgs& a) {
  Arguments args(context);
  const View x = args.in(a.x), dy = args.in(a.dy), dx = args.out(a.dx);
  const int64_t rows = a.narrow_dy.data ? a.narrow_dy.rows : dy.rows, cols = a.narrow_dy.data ? a.narrow_dy.cols : dy.cols;
  if (a.narrow_x.data || (in_steps(x, 2) && in_steps(dy, 2) && in_steps(dx, 2) && cols % 2 == 0))
    with_rows(
        [&]<class Rows>(const Rows& at, const Rows& slope, const Rows& out) {
          launch_parts(args, activate_backward_pairs<Rows>, rows, cols / 2, a.activation, a.gated, at, slope, out, rows, cols);
        },
        EitherRows{x, {args.in(a.narrow_x)}}, EitherRows{dy, {args.in(a.narrow_dy)}}, EitherRows{dx, {args.inout(a.narrow_dx)}});
  else launch_parts(args, activate_backward_f32, rows, cols, a.activation, a.gated, x, dy, dx);
}

void contrast(Context& context, const ContrastArgs& a) {
  Arguments args(context);
  const int64_t N = a.scores.rows;
  ContrastArgs there = a;
  there.offsets = args.in(a.offsets, N + 1);
  there.positives = args.in(a.positives, N > 0 ? a.offsets[N] : 0);
  launch_shared(args.device, contrast_f32, dim3(unsigned(N)), dim3(32, warps), int((a.scores.cols + 31) / 32 * 4), there, args.in(a.scores),
                args.out(a.y), args.out(a.losses, N));
}

void adamw(Context& context, const AdamWArgs& a) {
  Arguments args(context);
  AdamWArgs there = a;
  for (float** part : {&there.value, &there.gradient, &there.first, &there.second}) *part = args.inout(*part, a.count);
  launch(args.device, adamw_f32, dim3(blocks(a.count, 256)), dim3(256), there);
}

void squares(Context& context, const SquaresArgs& a) {
  Arguments args(context);
  int64_t parts = 0;
  for (const std::span<const float>& values : a.values) parts += blocks(int64_t(values.size()), numbers);
  double* const sums = args.scratch<double>(parts);
  int64_t part = 0;
  for (const std::span<const float>& values : a.values) {
    const auto count = int64_t(values.size());
    const unsigned own = blocks(count, numbers);
    launch(args.device, squares_f32, dim3(own), dim3(32, 8), args.in(values.data(), count), count, sums + part);
    part += own;
  }
  launch(args.device, sum_f64, dim3(1), dim3(32), static_cast<const double*>(sums), parts, args.out(a.sum, 1));
}

}  // namespace conan::cuda

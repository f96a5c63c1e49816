// Operations that look at one row, or at few, at a time: bound by memory. A warp takes a row, its lanes neighbouring channels.
#include <algorithm>

#include "cuda/cuda.h"

namespace conan::cuda {

namespace {

constexpr int warps = 8;  // rows of a block

__device__ __forceinline__ int64_t own_row() { return int64_t(blockIdx.x) * warps + threadIdx.y; }
__device__ __forceinline__ int lane() { return int(threadIdx.x); }

template <class... Parameters, class... Args>
void launch_rows(const Arguments& arguments, void (*kernel)(Parameters...), int64_t rows, Args... args) {
  launch(arguments.device, kernel, dim3(blocks(rows, warps)), dim3(32, warps), args...);
}

/// One thread a channel, for sums over rows in their order; block x is the sequence, of which there may be many.
template <class... Parameters, class... Args>
void launch_columns(const Arguments& arguments, void (*kernel)(Parameters...), int64_t cols, unsigned rows, Args... args) {
  launch(arguments.device, kernel, dim3(rows, blocks(cols, 128)), dim3(128), args...);
}

__device__ __forceinline__ int64_t own_column() { return int64_t(blockIdx.y) * 128 + threadIdx.x; }

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

__global__ void norm_f32(NormKind kind, float eps, View x, const float* weight, const float* bias, View residual, View y, NarrowView narrow_y) {
  const int64_t t = own_row(), C = x.cols;
  if (t >= x.rows) return;
  const float* from = x.row(t);
  const Moments m = moments(from, C, kind, eps);
  for (int64_t c = lane(); c < C; c += 32) {
    float v = (from[c] - m.mean) * m.factor;
    if (weight) v *= weight[c];
    if (bias) v += bias[c];
    if (residual.data) v += residual.row(t)[c];
    if (narrow_y.data) narrow_y.row(t)[c] = uint16_t(pack_bf16(v, 0));
    else y.row(t)[c] = v;
  }
}

__global__ void norm_backward_input_f32(NormKind kind, float eps, View x, const float* weight, View dy, View dx, bool add) {
  const int64_t t = own_row(), C = x.cols;
  if (t >= x.rows) return;
  const float *from = x.row(t), *slope = dy.row(t);
  const Moments m = moments(from, C, kind, eps);
  float sum = 0, along = 0;
  for (int64_t c = lane(); c < C; c += 32) {
    const float g = slope[c] * (weight ? weight[c] : 1);
    sum += g;
    along += g * (from[c] - m.mean) * m.factor;
  }
  sum = kind == NormKind::rms ? 0 : warp_sum(sum) / float(C);
  along = warp_sum(along) / float(C);
  for (int64_t c = lane(); c < C; c += 32) {
    const float g = slope[c] * (weight ? weight[c] : 1), hat = (from[c] - m.mean) * m.factor;
    float& to = dx.row(t)[c];
    to = m.factor * (g - sum - hat * along) + (add ? to : 0);
  }
}

__global__ void moments_f32(NormKind kind, float eps, View x, Moments* out) {
  const int64_t t = own_row();
  if (t >= x.rows) return;
  const Moments m = moments(x.row(t), x.cols, kind, eps);
  if (lane() == 0) out[t] = m;
}

__global__ void norm_backward_weight_f32(View x, View dy, const Moments* rows, float* dweight, float* dbias) {
  const int64_t c = own_column();
  if (c >= x.cols) return;
  float weight = 0, bias = 0;
  for (int64_t t = 0; t < x.rows; ++t) {
    weight += dy.row(t)[c] * (x.row(t)[c] - rows[t].mean) * rows[t].factor;
    bias += dy.row(t)[c];
  }
  if (dweight) dweight[c] += weight;
  if (dbias) dbias[c] += bias;
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

/// Rows of a table of files.
__global__ void table_rows_f32(const void* table, Dtype dtype, const int32_t* ids, View out) {
  const int64_t t = own_row();
  if (t >= out.rows) return;
  for (int64_t c = lane(); c < out.cols; c += 32) out.row(t)[c] = file_word(table, dtype, ids[t] * out.cols + c);
}

__global__ void embed_f32(View rows, View positions, float scale, const float* type_row, View y) {
  const int64_t t = own_row();
  if (t >= y.rows) return;
  for (int64_t c = lane(); c < y.cols; c += 32)
    y.row(t)[c] = rows.row(t)[c] * scale + (type_row ? type_row[c] : 0) + (positions.data ? positions.row(t)[c] : 0);
}

__global__ void embed_backward_f32(const int32_t* ids, float scale, View dy, View dtable) {
  const int64_t c = own_column();
  if (c >= dy.cols) return;
  for (int64_t t = 0; t < dy.rows; ++t)
    if (ids[t] >= 0) dtable.row(ids[t])[c] += dy.row(t)[c] * scale;
}

__global__ void gather_f32(View x, View y, const int32_t* rows, int taps, const float* weights) {
  const int64_t i = own_row();
  if (i >= y.rows) return;
  for (int64_t c = lane(); c < y.cols; c += 32) {
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += x.row(rows[i * taps + k])[c] * (weights ? weights[i * taps + k] : 1);
    y.row(i)[c] = sum;
  }
}

__global__ void scatter_f32(View x, View y, const int32_t* rows, bool add) {
  const int64_t i = own_row();
  if (i >= x.rows) return;
  for (int64_t c = lane(); c < x.cols; c += 32) y.row(rows[i])[c] = x.row(i)[c] + (add ? y.row(rows[i])[c] : 0);
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

__global__ void activate_f32(Activation activation, bool gated, View x, View y) {
  const int64_t t = own_row();
  if (t >= y.rows) return;
  for (int64_t n = lane(); n < y.cols; n += 32) y.row(t)[n] = activated(activation, x.row(t)[n]) * (gated ? x.row(t)[y.cols + n] : 1);
}

__global__ void activate_backward_f32(Activation activation, bool gated, View x, View dy, View dx) {
  const int64_t t = own_row(), N = dy.cols;
  if (t >= dy.rows) return;
  for (int64_t n = lane(); n < N; n += 32) {
    const float at = x.row(t)[n], value = gated ? x.row(t)[N + n] : 1, slope = dy.row(t)[n];
    if (gated) dx.row(t)[N + n] = slope * activated(activation, at);
    dx.row(t)[n] = slope * value * activated_derivative(activation, at);
  }
}

__global__ void narrow_f32(View x, NarrowView y) {
  const int64_t t = own_row();
  if (t >= x.rows) return;
  for (int64_t c = lane(); c < x.cols; c += 32) y.row(t)[c] = uint16_t(pack_bf16(x.row(t)[c], 0));
}

__global__ void widen_f32(NarrowView x, View y) {
  const int64_t t = own_row();
  if (t >= y.rows) return;
  for (int64_t c = lane(); c < y.cols; c += 32) {
    const uint32_t bits = uint32_t(x.row(t)[c]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    y.row(t)[c] = value;
  }
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
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += values[i];
  *sum = total;
}

/// Rows of a table: gathered here where the table is on the device, else there by the host.
View table_rows(Arguments& args, const TensorView& table, const int32_t* ids, int64_t count, int64_t C) {
  float* out = args.scratch<float>(count * C);
  const View rows{out, count, C, C};
  if (const void* there = args.find(table.data, table.bytes())) {
    launch_rows(args, table_rows_f32, count, there, table.dtype, args.in(ids, count), rows);
    return rows;
  }
  std::vector<float> values(size_t(count * C));
  for (int64_t t = 0; t < count; ++t) read_f32(table, ids[t] * C, C, values.data() + t * C);
  check(cudaMemcpyAsync(out, values.data(), values.size() * sizeof(float), cudaMemcpyDefault, args.device.stream), "copy");
  return rows;
}

}  // namespace

void norm(Context& context, const NormArgs& a) {
  Arguments args(context);
  const View x = args.in(a.x), residual = args.in(a.residual), y = args.out(a.y);
  launch_rows(args, norm_f32, x.rows, a.kind, a.eps, x, args.in(a.weight, x.cols), args.in(a.bias, x.cols), residual, y, args.inout(a.narrow_y));
}

void norm_backward(Context& context, const NormBackwardArgs& a) {
  Arguments args(context);
  const int64_t C = a.x.cols;
  const View x = args.in(a.x), dy = args.in(a.dy);
  if (a.dweight || a.dbias) {
    Moments* rows = args.scratch<Moments>(x.rows);
    launch_rows(args, moments_f32, x.rows, a.kind, a.eps, x, rows);
    launch_columns(args, norm_backward_weight_f32, C, 1, x, dy, static_cast<const Moments*>(rows), args.inout(a.dweight, C), args.inout(a.dbias, C));
  }
  if (a.dx.data) launch_rows(args, norm_backward_input_f32, x.rows, a.kind, a.eps, x, args.in(a.weight, C), dy, args.inout(a.dx), a.add);
}

void rope(Context& context, const RopeArgs& a) {
  Arguments args(context);
  int64_t angles = a.cos ? a.half : 0;
  if (a.cos && a.x.rows > 0 && !args.find(a.cos, sizeof(float))) angles *= *std::max_element(a.positions, a.positions + a.x.rows) + int64_t(1);
  launch_rows(args, rope_f32, a.x.rows * a.heads, args.inout(a.x), a.heads, a.head_dim, args.in(a.norm_weight, a.head_dim), a.eps,
              args.in(a.cos, angles), args.in(a.sin, angles), a.half, args.in(a.positions, a.x.rows), a.inverse, args.inout(a.narrow_y));
}

void embed(Context& context, const EmbedArgs& a) {
  Arguments args(context);
  const int64_t T = a.y.rows, C = a.y.cols;
  const View rows = table_rows(args, *a.table, a.ids, T, C);
  const View positions = a.position_table ? table_rows(args, *a.position_table, a.positions, T, C) : View{nullptr, T, C, C};
  launch_rows(args, embed_f32, T, rows, positions, a.scale, args.in(a.type_row, C), args.out(a.y));
}

void embed_backward(Context& context, const EmbedBackwardArgs& a) {
  Arguments args(context);
  launch_columns(args, embed_backward_f32, a.dy.cols, 1, args.in(a.ids, a.dy.rows), a.scale, args.in(a.dy), args.inout(a.dtable));
}

void gather(Context& context, const GatherArgs& a) {
  Arguments args(context);
  const int64_t taps = a.y.rows * a.taps;
  launch_rows(args, gather_f32, a.y.rows, args.in(a.x), args.out(a.y), args.in(a.rows, taps), a.taps, args.in(a.weights, taps));
}

void scatter(Context& context, const ScatterArgs& a) {
  Arguments args(context);
  launch_rows(args, scatter_f32, a.x.rows, args.in(a.x), args.inout(a.y), args.in(a.rows, a.x.rows), a.add);
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

void narrow(Context& context, const NarrowArgs& a) {
  Arguments args(context);
  launch_rows(args, narrow_f32, a.x.rows, args.in(a.x), args.inout(a.y));
}

void widen(Context& context, const WidenArgs& a) {
  Arguments args(context);
  launch_rows(args, widen_f32, a.x.rows, args.in(a.x), args.out(a.y));
}

void activate(Context& context, const ActivateArgs& a) {
  Arguments args(context);
  launch_rows(args, activate_f32, a.y.rows, a.activation, a.gated, args.in(a.x), args.out(a.y));
}

void activate_backward(Context& context, const ActivateBackwardArgs& a) {
  Arguments args(context);
  launch_rows(args, activate_backward_f32, a.dy.rows, a.activation, a.gated, args.in(a.x), args.in(a.dy), args.out(a.dx));
}

void adamw(Context& context, const AdamWArgs& a) {
  Arguments args(context);
  AdamWArgs there = a;
  for (float** part : {&there.value, &there.gradient, &there.first, &there.second}) *part = args.inout(*part, a.count);
  launch(args.device, adamw_f32, dim3(blocks(a.count, 256)), dim3(256), there);
}

void squares(Context& context, const SquaresArgs& a) {
  Arguments args(context);
  const unsigned parts = blocks(a.count, numbers);
  double* sums = args.scratch<double>(parts);
  launch(args.device, squares_f32, dim3(parts), dim3(32, 8), args.in(a.values, a.count), a.count, sums);
  launch(args.device, sum_f64, dim3(1), dim3(1), static_cast<const double*>(sums), int64_t(parts), args.inout(a.sum, 1));
}

}  // namespace conan::cuda

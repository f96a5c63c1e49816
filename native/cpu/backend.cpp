// The CPU backend: packs weights, divides each operation over threads and calls the kernels of the best instruction
// set. Whatever the division, every number is computed by the same instructions in the same order, so results depend
// neither on the number of threads nor on what else is in the batch.
#include "ops/backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "base/cpu_features.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "cpu/cpu.h"
#include "cpu/kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace conan::cpu {

namespace {

const Kernels& kernels(const Context& context) { return *static_cast<const Kernels*>(context.ops.data); }

// ---- memory

constexpr size_t kAlignment = 64;

[[noreturn]] void no_memory(size_t bytes) { fail("OUT_OF_MEMORY", "no memory: asked for ", bytes, " bytes"); }

// Aligned memory is not left to the C library: that of Linux hardly found a second use for it before glibc 2.38 (its bug 14581),
// and a process that loaded one model after the other grew.

#if defined(__linux__)
constexpr size_t kHugePage = size_t(2) << 20, kPage = size_t(64) << 10;  // the largest of the usual small ones

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

/// Pages of its own, huge ones where it fills them, which go back to the system.
void* map(size_t bytes) {
  const size_t size = whole_pages(bytes);
  void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) no_memory(bytes);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage;
  char* memory = static_cast<char*>(mapped) + before;
  if (before) munmap(mapped, before);
  munmap(memory + size, kHugePage - before);
  madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return memory;
}
#endif

}  // namespace

void* allocate(size_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) return map(bytes);
#endif
  void* whole = std::malloc(bytes + kAlignment);
  if (!whole) no_memory(bytes);
  char* memory = static_cast<char*>(whole) + kAlignment - reinterpret_cast<uintptr_t>(whole) % kAlignment;
  std::memcpy(memory - sizeof whole, &whole, sizeof whole);  // there is room: malloc aligns to twice a pointer
  return memory;
}

void release(void* memory, [[maybe_unused]] size_t bytes) {
  if (!memory) return;
#if defined(__linux__)
  if (bytes >= kHugePage) {
    munmap(memory, whole_pages(bytes));
    return;
  }
#endif
  void* whole;
  std::memcpy(&whole, static_cast<char*>(memory) - sizeof whole, sizeof whole);
  std::free(whole);
}

namespace {

// ---- weights

struct PackedWeight : Weight {
  const GemmKernel* kernel = nullptr;
  int64_t panels = 0, steps = 0;  // a step of a row of activations is one 32-bit word
  size_t panel_bytes = 0;
  char* data = nullptr;
  std::vector<float> column_scale;    // int8: in panel order, zero for padding
  std::vector<int32_t> compensation;  // where activations are shifted: 128 * sum of the column's weights

  bool borrowed = false;  // the memory is another's

  ~PackedWeight() override {
    if (!borrowed) release(data, bytes);
  }
  int64_t outputs() const { return gated ? rows / 2 : rows; }
};

int64_t group(Layout layout) {  // elements along K per step
  switch (layout) {
    case Layout::bf16_pairs:
    case Layout::i8_pairs: return 2;
    case Layout::i8_quads: return 4;
    default: return 1;
  }
}

size_t element_bytes(Layout layout) {
  switch (layout) {
    case Layout::f32: return 4;
    case Layout::bf16_columns:
    case Layout::bf16_pairs:
    case Layout::f16: return 2;
    default: return 1;
  }
}

/// Where element k of column c stands in its panel.
int64_t place(Layout layout, int width, int64_t k, int64_t c) {
  const int64_t NR = 2 * width, g = group(layout);
  if (layout == Layout::bf16_columns) return k * NR + 2 * (c % width) + c / width;
  return (k / g * NR + c) * g + k % g;
}

/// One panel from `columns` rows of floats [NR][K]; a null row is padding.
void pack_panel(PackedWeight& weight, int64_t panel, const std::vector<const float*>& columns, int width) {
  const int NR = 2 * width;
  const int64_t K = weight.cols, g = group(weight.kernel->layout);
  char* out = weight.data + size_t(panel) * weight.panel_bytes;
  std::memset(out, 0, weight.panel_bytes);
  for (int c = 0; c < NR; ++c) {
    const float* w = columns[size_t(c)];
    if (!w) continue;
    const int64_t lane = c % width, high = c / width;
    switch (weight.kernel->layout) {
      case Layout::f32:
        for (int64_t k = 0; k < K; ++k) reinterpret_cast<float*>(out)[k * NR + c] = w[k];
        break;
      case Layout::bf16_columns:
        for (int64_t k = 0; k < K; ++k) reinterpret_cast<uint16_t*>(out)[k * NR + 2 * lane + high] = f32_to_bf16(w[k]);
        break;
      case Layout::f16:
        for (int64_t k = 0; k < K; ++k) reinterpret_cast<uint16_t*>(out)[k * NR + c] = f32_to_f16(w[k]);
        break;
      case Layout::bf16_pairs:
        for (int64_t k = 0; k < K; ++k) reinterpret_cast<uint16_t*>(out)[(k / 2 * NR + c) * 2 + k % 2] = f32_to_bf16(w[k]);
        break;
      case Layout::i8_pairs:
      case Layout::i8_quads: {
        float most = 0;
        for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(w[k]));
        const float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
        int32_t sum = 0;
        for (int64_t k = 0; k < K; ++k) {
          const int q = int(std::nearbyintf(w[k] * inverse));
          sum += q;
          out[(k / g * NR + c) * g + k % g] = char(int8_t(q));
        }
        weight.column_scale[size_t(panel * NR + c)] = scale;
        if (!weight.compensation.empty()) weight.compensation[size_t(panel * NR + c)] = 128 * sum;
        break;
      }
    }
  }
}

void fill(Context& context, const WeightSource& source, PackedWeight* weight);

/// A weight [rows, cols] without its memory.
PackedWeight described(Context& context, int64_t rows, int64_t cols, bool gated, WeightFormat format) {
  PackedWeight weight;
  const int width = kernels(context).width, NR = 2 * width;
  weight.kernel = &kernels(context).gemm[int(format)];
  weight.format = format;
  weight.gated = gated;
  weight.rows = rows;
  const int64_t K = weight.cols = cols, g = group(weight.kernel->layout);
  weight.panels = gated ? (weight.rows / 2 + width - 1) / width : (weight.rows + NR - 1) / NR;
  weight.steps = (K + g - 1) / g;
  weight.panel_bytes = size_t(weight.steps * g * NR) * element_bytes(weight.kernel->layout);
  weight.bytes = size_t(weight.panels) * weight.panel_bytes;
  return weight;
}

/// And with it.
std::unique_ptr<PackedWeight> unfilled(Context& context, int64_t rows, int64_t cols, bool gated, WeightFormat format) {
  auto weight = std::make_unique<PackedWeight>(described(context, rows, cols, gated, format));
  const int NR = 2 * kernels(context).width;
  weight->data = static_cast<char*>(allocate(weight->bytes));
  if (format == WeightFormat::i8) {
    weight->column_scale.resize(size_t(weight->panels * NR));
    if (weight->kernel->shifted) weight->compensation.resize(size_t(weight->panels * NR));
  }
  return weight;
}

std::unique_ptr<Weight> pack(Context& context, const WeightSource& source, WeightFormat format) {
  int64_t rows = 0;
  for (const TensorView& part : source.parts) rows += part.shape[0];
  std::unique_ptr<PackedWeight> weight = unfilled(context, rows, source.parts[0].shape[1], source.gated, format);
  fill(context, source, weight.get());
  return weight;
}

void repack(Context& context, const WeightSource& source, Weight& weight) { fill(context, source, static_cast<PackedWeight*>(&weight)); }

void fill(Context& context, const WeightSource& source, PackedWeight* weight) {
  const int width = kernels(context).width, NR = 2 * width;
  const int64_t K = weight->cols;
  WorkQueue queue(weight->panels);
  ThreadPool::instance().run(context.threads, [&](int worker) {
    Arena& arena = context.worker(worker).scratch;
    Arena::Scope scope(arena);
    float* rows = static_cast<float*>(arena.take(size_t(NR * K) * sizeof(float)));
    std::vector<const float*> columns(static_cast<size_t>(NR));
    for (int64_t panel; queue.next(panel);) {
      for (int c = 0; c < NR; ++c) {
        int64_t row;
        bool padding;
        if (source.gated) {
          const int64_t n = panel * width + c % width;
          row = n + (c / width) * (weight->rows / 2);
          padding = n >= weight->rows / 2;
        } else {
          row = panel * NR + c;
          padding = row >= weight->rows;
        }
        columns[size_t(c)] = padding ? nullptr : rows + c * K;
        if (padding) continue;
        size_t part = 0;
        while (row >= source.parts[part].shape[0]) row -= source.parts[part++].shape[0];
        float* out = rows + c * K;
        read_f32(source.parts[part], row * K, K, out);
        // An exponent of all ones is infinity or NaN. One such weight would silently spoil every vector.
        uint32_t most = 0;
        for (int64_t k = 0; k < K; ++k) {
          uint32_t bits;
          std::memcpy(&bits, out + k, 4);
          most = std::max(most, bits & 0x7f800000u);
        }
        if (most == 0x7f800000u) fail("WEIGHT_NOT_FINITE", "tensor \"", source.name, "\": row ", row, " holds a NaN or an infinity");
      }
      pack_panel(*weight, panel, columns, width);
    }
  });
}

/// Tiles of NR x NR elements lie together in both packings, so that a tile is turned by one permutation of its elements.
template <class Element>
void turn_panels(Context& context, const PackedWeight& from, PackedWeight& to) {
  const int width = kernels(context).width;
  const int64_t NR = 2 * width, tile = NR * NR, from_steps = from.steps * group(from.kernel->layout), to_steps = to.steps * group(to.kernel->layout);
  const Layout layout = from.kernel->layout;
  std::vector<uint16_t> turned(static_cast<size_t>(tile));
  for (int64_t k = 0; k < NR; ++k)
    for (int64_t c = 0; c < NR; ++c) turned[size_t(place(layout, width, k, c))] = uint16_t(place(layout, width, c, k));
  WorkQueue queue(to.panels);
  ThreadPool::instance().run(context.threads, [&](int) {
    for (int64_t panel; queue.next(panel);) {
      Element* const out = reinterpret_cast<Element*>(to.data + size_t(panel) * to.panel_bytes);
      for (int64_t p = 0; p < from.panels; ++p) {
        const Element* const in = reinterpret_cast<const Element*>(from.data + size_t(p) * from.panel_bytes) + panel * tile;
        if ((panel + 1) * NR <= from_steps && (p + 1) * NR <= to_steps) {
          if (from.kernel->turn) from.kernel->turn(in, out + p * tile);
          else
            for (int64_t i = 0; i < tile; ++i) out[p * tile + i] = in[turned[size_t(i)]];
          continue;
        }
        // At an edge one of them ends within the tile; beyond it there are zeros.
        for (int64_t k = 0; k < std::min(NR, to_steps - p * NR); ++k)
          for (int64_t c = 0; c < NR; ++c)
            out[p * tile + place(layout, width, k, c)] = panel * NR + c < from_steps ? in[place(layout, width, c, k)] : Element(0);
      }
    }
  });
}

void pack_transposed(Context& context, const Weight& weight, std::unique_ptr<Weight>& into) {
  const auto& from = static_cast<const PackedWeight&>(weight);
  if (!into) into = unfilled(context, from.cols, from.rows, false, from.format);
  auto& to = static_cast<PackedWeight&>(*into);
  if (from.gated || to.rows != from.cols || to.cols != from.rows || to.format != from.format)
    fail("INTERNAL", "pack_transposed: weights do not match");
  switch (element_bytes(from.kernel->layout)) {
    case 4: return turn_panels<float>(context, from, to);
    case 2: return turn_panels<uint16_t>(context, from, to);
    default: break;
  }
  // Whole numbers have a scale for each output, and the outputs are others now.
  const int width = kernels(context).width;
  const int64_t NR = 2 * width;
  std::vector<float> values(size_t(from.rows * from.cols));
  for (int64_t n = 0; n < from.rows; ++n) {
    const char* const panel = from.data + size_t(n / NR) * from.panel_bytes;
    for (int64_t k = 0; k < from.cols; ++k)
      values[size_t(k * from.rows + n)] = float(int8_t(panel[place(from.kernel->layout, width, k, n % NR)])) * from.column_scale[size_t(n)];
  }
  fill(context, {"transposed", {{values.data(), Dtype::f32, {from.cols, from.rows}}}, false}, &to);
}

// ---- division of rows

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void for_rows(Context& context, int64_t rows, int64_t width, const RowsBody& body) {
  // Blocks that stay in a second-level cache (about 512 KB of activations), but not so small that the weights, which
  // every block reads, come from memory more often than the arithmetic hides.
  const int64_t least = width < 6000 ? 42 : 84;  // wide layers do not stay in any cache
  const int64_t target = std::clamp<int64_t>((512 << 10) / (width * int64_t(sizeof(float))), least, 112);
  if (ThreadPool::inside() || context.threads == 1) {
    const int64_t blocks = ceil_div(rows, target);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = rows * b / blocks;
      body(context, first, rows * (b + 1) / blocks - first);
    }
    return;
  }
  if (rows < 28 * context.threads) return body(context, 0, rows);  // too few: each operation divides its columns instead
  int64_t blocks = ceil_div(rows, target);
  if (blocks < 16 * context.threads) blocks = ceil_div(blocks, context.threads) * context.threads;
  WorkQueue queue(blocks);
  ThreadPool::instance().run(context.threads, [&](int worker) {
    Context& own = context.worker(worker);
    for (int64_t b; queue.next(b);) {
      const int64_t first = rows * b / blocks;
      body(own, first, rows * (b + 1) / blocks - first);
    }
  });
}

/// Runs an operation that looks at one row at a time; few rows are not worth waking anyone for.
template <class Body>
void each_rows(Context& context, int64_t rows, int64_t cols, const Body& body) {
  constexpr int64_t kWorthwhile = 32768;
  if (context.threads == 1 || ThreadPool::inside() || rows * cols < kWorthwhile) return body(0, rows);
  const int64_t blocks = std::min<int64_t>(rows, context.threads * 4);
  WorkQueue queue(blocks);
  ThreadPool::instance().run(context.threads, [&](int) {
    for (int64_t b; queue.next(b);) {
      const int64_t first = rows * b / blocks;
      body(first, rows * (b + 1) / blocks - first);
    }
  });
}

Matrix slice(const Matrix& m, int64_t first, int64_t count) { return m.data ? m.slice(first, count) : m; }

void embed(Context& context, const EmbedArgs& args) {
  each_rows(context, args.y.rows, args.y.cols, [&](int64_t first, int64_t count) {
    EmbedArgs part = args;
    part.ids += first;
    if (part.positions) part.positions += first;
    part.y = args.y.slice(first, count);
    kernels(context).embed(part);
  });
}

void norm(Context& context, const NormArgs& args) {
  each_rows(context, args.x.rows, args.x.cols, [&](int64_t first, int64_t count) {
    NormArgs part = args;
    part.x = args.x.slice(first, count);
    part.y = args.y.slice(first, count);
    part.residual = slice(args.residual, first, count);
    kernels(context).norm(part);
  });
}

void rope(Context& context, const RopeArgs& args) {
  each_rows(context, args.x.rows, args.x.cols, [&](int64_t first, int64_t count) {
    RopeArgs part = args;
    part.x = args.x.slice(first, count);
    if (part.positions) part.positions += first;
    kernels(context).rope(part);
  });
}

void gather(Context& context, const GatherArgs& args) {
  each_rows(context, args.y.rows, args.y.cols * args.taps, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      float* y = args.y.row(i);
      if (args.taps == 1 && !args.weights) {
        std::memcpy(y, args.x.row(args.rows[i]), size_t(args.x.cols) * sizeof(float));
        continue;
      }
      std::fill(y, y + args.x.cols, 0.f);
      for (int k = 0; k < args.taps; ++k) {
        const float *x = args.x.row(args.rows[i * args.taps + k]), weight = args.weights ? args.weights[i * args.taps + k] : 1;
        for (int64_t c = 0; c < args.x.cols; ++c) y[c] += weight * x[c];
      }
    }
  });
}

void scatter(Context&, const ScatterArgs& args) {
  for (int64_t i = 0; i < args.x.rows; ++i) {
    const float* x = args.x.row(i);
    float* y = args.y.row(args.rows ? args.rows[i] : i);
    if (!args.add) std::memcpy(y, x, size_t(args.x.cols) * sizeof(float));
    else
      for (int64_t c = 0; c < args.x.cols; ++c) y[c] += x[c];
  }
}

void unpack(Context& context, const UnpackArgs& args) {
  each_rows(context, args.y.rows, args.y.cols, [&](int64_t first, int64_t count) {
    const int64_t each = args.y.cols / args.channels;
    for (int64_t t = first; t < first + count; ++t)
      for (int64_t channel = 0; channel < args.channels; ++channel) {
        const uint8_t* from = args.x + t * args.y.cols + channel * each;
        const float* table = args.table + channel * 256;
        std::transform(from, from + each, args.y.row(t) + channel * each, [&](uint8_t byte) { return table[byte]; });
      }
  });
}

void narrow(Context& context, const NarrowArgs& args) {
  each_rows(context, args.x.rows, args.x.cols, [&](int64_t first, int64_t count) {
    kernels(context).narrow({args.x.slice(first, count), args.y.slice(first, count)});
  });
}

void widen(Context& context, const WidenArgs& args) {
  each_rows(context, args.x.rows, args.x.cols, [&](int64_t first, int64_t count) {
    kernels(context).widen({args.x.slice(first, count), args.y.slice(first, count)});
  });
}

void pool(Context& context, const PoolArgs& args) {
  each_rows(context, args.y.rows, args.y.rows ? args.x.rows / args.y.rows * args.x.cols : 0, [&](int64_t first, int64_t count) {
    for (int64_t b = first; b < first + count; ++b) kernels(context).pool(args, int(b));
  });
}

void normalize(Context& context, const NormalizeArgs& args) { kernels(context).normalize(args); }

// ---- matrix multiplication

/// Rows [first, first + count) by panels [panel, panel_end). `a`: their words.
void multiply(const Kernels& k, const PackedWeight& weight, const uint32_t* a, int64_t stride, const Finish& finish, int64_t count, int64_t panel,
              int64_t panel_end) {
  alignas(64) float tile[kMaxTileRows * 2 * kMaxWidth];
  const int64_t tiles = ceil_div(count, k.tile_rows);
  for (; panel < panel_end; ++panel) {
    const char* b = weight.data + size_t(panel) * weight.panel_bytes;
    const bool half = weight.kernel->narrow_tile[1] && !weight.gated && weight.rows - panel * 2 * k.width <= k.width;  // the rest is padding
    const TileKernel* const tile_of = half ? weight.kernel->narrow_tile : weight.kernel->tile;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = count * t / tiles, rows = count * (t + 1) / tiles - row;
      tile_of[rows](a + row * stride, stride, b, weight.steps, tile);
      Finish part = finish;
      part.y += row * part.y_stride;
      if (part.residual) part.residual += row * part.residual_stride;
      if (part.row_scale) part.row_scale += row;
      if (part.narrow_y) part.narrow_y += row * part.narrow_stride;
      k.finish(tile, int(rows), panel, part);
    }
  }
}

void linear(Context& context, const LinearArgs& args) {
  const Kernels& k = kernels(context);
  const PackedWeight& weight = *static_cast<const PackedWeight*>(args.weight);
  const GemmKernel& kernel = *weight.kernel;
  const int64_t rows = args.narrow_x.data ? args.narrow_x.rows : args.x.rows;
  if (rows == 0) return;

  // Units of work: blocks of rows whose words fit the second-level cache, by chunks of panels if blocks are too few.
  const bool alone = context.threads == 1 || ThreadPool::inside();
  const int64_t block_rows = std::clamp<int64_t>((384 << 10) / (weight.steps * 4), 2 * k.tile_rows, 16 * k.tile_rows);
  const int64_t blocks = ceil_div(rows, block_rows);
  const int64_t chunks = alone ? 1 : std::min(weight.panels, std::max<int64_t>(1, ceil_div(16 * context.threads, blocks)));
  WorkQueue queue(blocks * chunks);
  auto work = [&](int worker) {
    Arena& arena = context.worker(worker).scratch;
    Arena::Scope scope(arena);
    const int64_t word_stride = padded_stride(weight.steps);
    uint32_t* words = nullptr;
    float* scales = nullptr;
    int64_t converted = -1;
    for (int64_t unit; queue.next(unit);) {
      const int64_t block = unit / chunks, chunk = unit % chunks;
      const int64_t first = rows * block / blocks, count = rows * (block + 1) / blocks - first;
      const uint32_t* a = reinterpret_cast<const uint32_t*>(args.x.row(first));
      int64_t stride = args.x.stride;
      if (args.narrow_x.data) {
        a = reinterpret_cast<const uint32_t*>(args.narrow_x.row(first));
        stride = weight.steps;
      } else if (kernel.convert) {
        if (!words) {
          words = static_cast<uint32_t*>(arena.take(size_t(block_rows * word_stride) * 4));
          scales = static_cast<float*>(arena.take(size_t(block_rows) * 4));
        }
        if (converted != block)
          for (int64_t i = 0; i < count; ++i) kernel.convert(args.x.row(first + i), weight.cols, words + i * word_stride, scales + i);
        converted = block;
        a = words;
        stride = word_stride;
      }
      Finish finish;
      finish.bias = args.bias;
      finish.activation = args.activation;
      finish.gated = weight.gated;
      finish.coarse = is_reduced(weight.format);
      finish.outputs = weight.outputs();
      if (weight.format == WeightFormat::i8) {
        finish.column_scale = weight.column_scale.data();
        finish.compensation = weight.compensation.empty() ? nullptr : weight.compensation.data();
        finish.row_scale = scales;
      }
      if (args.residual.data) finish.residual = args.residual.row(first), finish.residual_stride = args.residual.stride;
      finish.y = args.y.row(first);
      finish.y_stride = args.y.stride;
      if (args.narrow_y.data) finish.narrow_y = args.narrow_y.row(first), finish.narrow_stride = args.narrow_y.stride;
      multiply(k, weight, a, stride, finish, count, weight.panels * chunk / chunks, weight.panels * (chunk + 1) / chunks);
    }
  };
  if (alone) work(0);
  else ThreadPool::instance().run(context.threads, work);
}

// ---- attention

void attention(Context& context, const AttentionArgs& args) {
  const Kernels& k = kernels(context);
  const int NR = 2 * k.width;
  constexpr int kPanels = 4;  // of queries in one unit
  struct Unit {
    int sequence, first;  // query row within the sequence
  };
  std::vector<Unit> units;
  for (int b = 0; b < args.sequences; ++b)
    for (int first = 0; first < args.q_offsets[b + 1] - args.q_offsets[b]; first += kPanels * NR) units.push_back({b, first});
  const int64_t total = int64_t(units.size()) * args.heads;
  const int64_t grain = std::clamp<int64_t>(total / (context.threads * 16), 1, 16);
  WorkQueue queue(ceil_div(total, grain));
  ThreadPool::instance().run(context.threads, [&](int worker) {
    Arena& arena = context.worker(worker).scratch;
    Arena::Scope scope(arena);
    AttentionPanel p;
    p.scratch = static_cast<float*>(arena.take(size_t(attention_scratch(args.head_dim)) * sizeof(float)));
    for (int64_t batch; queue.next(batch);) {
      for (int64_t i = batch * grain; i < std::min(total, (batch + 1) * grain); ++i) {
        const Unit& unit = units[size_t(i / args.heads)];
        const int head = int(i % args.heads), kv_head = head / (args.heads / args.kv_heads), b = unit.sequence;
        const int64_t column = int64_t(head) * args.head_dim, kv_column = int64_t(kv_head) * args.head_dim;
        const int queries = args.q_offsets[b + 1] - args.q_offsets[b];
        p.q_stride = args.q.stride, p.k_stride = args.k.stride, p.v_stride = args.v.stride, p.y_stride = args.y.stride;
        p.k = args.k.row(args.kv_offsets[b]) + kv_column;
        p.v = args.v.row(args.kv_offsets[b]) + kv_column;
        p.keys = args.kv_offsets[b + 1] - args.kv_offsets[b];
        p.head_dim = args.head_dim;
        p.scale = args.scale;
        p.left = args.left, p.right = args.right;
        p.bias = args.bias ? args.bias + head * (2 * args.bias_reach + 1) + args.bias_reach : nullptr;
        for (int first = unit.first; first < std::min(queries, unit.first + kPanels * NR); first += NR) {
          p.queries = std::min(NR, queries - first);
          p.same_keys = first != unit.first;
          p.position = args.q_starts[b] + first;
          p.q = args.q.row(args.q_offsets[b] + first) + column;
          p.y = args.y.row(args.q_offsets[b] + first) + column;
          (args.reduced ? k.attention_reduced : k.attention)(p);
        }
      }
    }
  });
}

// ---- backward

void activate(Context& context, const ActivateArgs& args) {
  each_rows(context, args.y.rows, args.y.cols, [&](int64_t first, int64_t count) {
    kernels(context).activate({args.activation, args.gated, args.x.slice(first, count), args.y.slice(first, count)});
  });
}

void activate_backward(Context& context, const ActivateBackwardArgs& args) {
  each_rows(context, args.dy.rows, args.dy.cols, [&](int64_t first, int64_t count) {
    kernels(context).activate_backward(
        {args.activation, args.gated, args.x.slice(first, count), args.dy.slice(first, count), args.dx.slice(first, count)});
  });
}

/// body(first, count) on blocks of `size` of `total`, which do not depend on the number of threads.
template <class Body>
void each_block(Context& context, int64_t total, int64_t size, const Body& body) {
  WorkQueue queue(ceil_div(total, size));
  auto work = [&](int) {
    for (int64_t b; queue.next(b);) body(b * size, std::min(size, total - b * size));
  };
  if (context.threads == 1 || ThreadPool::inside() || total <= size) work(0);
  else ThreadPool::instance().run(context.threads, work);
}

template <class Body>
void each_columns(Context& context, int64_t cols, const Body& body) {
  each_block(context, cols, 64, body);
}

void norm_backward(Context& context, const NormBackwardArgs& args) {
  if (args.groups > 1) {
    for (int g = 0; g < args.groups; ++g) norm_backward(context, args.group(g));
    return;
  }
  Arena::Scope scope(context.scratch);
  float* statistics = static_cast<float*>(context.scratch.take(size_t(2 * args.x.rows) * sizeof(float)));
  const auto rows = [&](const Matrix& dx) {
    each_rows(context, args.x.rows, args.x.cols, [&](int64_t first, int64_t count) {
      NormBackwardArgs part = args;
      part.x = args.x.slice(first, count);
      part.dy = args.dy.slice(first, count);
      part.dx = slice(dx, first, count);
      kernels(context).norm_backward(part, statistics + 2 * first);
    });
  };
  if (args.dweight || args.dbias) {  // before dx, which may take dy's place
    rows({});
    each_columns(context, args.x.cols, [&](int64_t first, int64_t count) { kernels(context).norm_backward_columns(args, statistics, first, count); });
  }
  if (args.dx.data) rows(args.dx);
}

/// Rows become columns, [T, N] -> [N, T].
Matrix transposed(Context& context, const Matrix& x) {
  const Matrix out = context.scratch.matrix(x.cols, x.rows);
  each_columns(context, x.cols, [&](int64_t first, int64_t count) { kernels(context).transpose(x.columns(first, count), out.slice(first, count)); });
  return out;
}

/// dy^T x is a product like any other once x stands as a weight [K, T] and dy is turned over.
void linear_backward(Context& context, const LinearBackwardArgs& args) {
  Arena::Scope scope(context.scratch);
  const int64_t T = args.dy.rows, K = args.x.cols;
  if (args.dbias)
    each_columns(context, args.dy.cols, [&](int64_t first, int64_t count) {
      for (int64_t t = 0; t < T; ++t)
        for (int64_t c = first; c < first + count; ++c) args.dbias[c] += args.dy.row(t)[c];
    });
  if (!args.dw.data || T == 0) return;
  // y += a^T b
  const auto add_product = [&](const Matrix& a, const Matrix& b, const Matrix& y, bool add) {
    // b is a weight already, but for its panels: its rows are their steps.
    const bool reduced = args.reduced && kernels(context).gemm[int(WeightFormat::bf16)].pack_rows;
    PackedWeight packed = described(context, b.cols, T, false, reduced ? WeightFormat::bf16 : WeightFormat::f32);
    packed.data = static_cast<char*>(context.scratch.take(packed.bytes));
    packed.borrowed = true;
    const int NR = 2 * kernels(context).width;
    each_columns(context, b.cols, [&](int64_t first, int64_t count) {
      for (int64_t c = first; c < first + count; c += NR)
        packed.kernel->pack_rows(b.data + c, b.stride, T, int(std::min<int64_t>(NR, b.cols - c)), packed.data + size_t(c / NR) * packed.panel_bytes);
    });
    LinearArgs product;
    product.x = transposed(context, a);
    product.weight = &packed;
    if (add) product.residual = y;
    product.y = y;
    linear(context, product);
  };
  if (4 * args.dy.cols > K) return add_product(args.dy, args.x, args.dw, true);
  // The narrower side is the one to pack; the result comes out turned over.
  const Matrix other = context.scratch.matrix(K, args.dy.cols);
  add_product(args.x, args.dy, other, false);
  const Matrix turned = transposed(context, other);
  for (int64_t n = 0; n < turned.rows; ++n)
    for (int64_t k = 0; k < K; ++k) args.dw.row(n)[k] += turned.row(n)[k];
}

void attention_backward(Context& context, const AttentionBackwardArgs& args) {
  const AttentionArgs& a = args.forward;
  int64_t longest = 0;
  for (int b = 0; b < a.sequences; ++b) longest = std::max<int64_t>(longest, a.kv_offsets[b + 1] - a.kv_offsets[b]);
  const size_t scratch = size_t(kernels(context).attention_backward_scratch(longest, a.head_dim)) * sizeof(float);
  if (args.dbias) {  // one bias is shared by all sequences: its gradient is summed in their order
    Arena::Scope scope(context.scratch);
    float* own = static_cast<float*>(context.scratch.take(scratch));
    for (int b = 0; b < a.sequences; ++b)
      for (int h = 0; h < a.kv_heads; ++h) kernels(context).attention_backward(args, b, h, own);
    return;
  }
  WorkQueue queue(int64_t(a.sequences) * a.kv_heads);
  ThreadPool::instance().run(context.threads, [&](int worker) {
    Arena& arena = context.worker(worker).scratch;
    Arena::Scope scope(arena);
    float* own = static_cast<float*>(arena.take(scratch));
    for (int64_t unit; queue.next(unit);) kernels(context).attention_backward(args, int(unit / a.kv_heads), int(unit % a.kv_heads), own);
  });
}

void contrast_rows(Context& context, const ContrastArgs& args) {
  each_rows(context, args.scores.rows, args.scores.cols, [&](int64_t first, int64_t count) {
    ContrastArgs part = args;
    part.scores = args.scores.slice(first, count), part.y = args.y.slice(first, count);
    part.offsets += first, part.losses += first;
    contrast(context, part);
  });
}

constexpr int64_t kNumbers = 1 << 15;  // in a block of the optimizer's

void adamw(Context& context, const AdamWArgs& args) {
  each_block(context, args.count, kNumbers, [&](int64_t first, int64_t count) {
    AdamWArgs part = args;
    part.value += first, part.gradient += first, part.first += first, part.second += first;
    part.count = count;
    kernels(context).adamw(part);
  });
}

void squares(Context& context, const SquaresArgs& args) {
  *args.sum = 0;
  for (const std::span<const float>& values : args.values) {
    const auto all = int64_t(values.size());
    std::vector<double> sums(size_t(ceil_div(all, kNumbers)));
    each_block(context, all, kNumbers,
               [&](int64_t first, int64_t count) { sums[size_t(first / kNumbers)] = kernels(context).squares(values.data() + first, count); });
    *args.sum += std::accumulate(sums.begin(), sums.end(), 0.0);
  }
}

// ---- tables, one per instruction set

OperationTable table_of(const Kernels& kernels) {
  OperationTable t;
  t.name = kernels.name;
  t.data = &kernels;
  t.narrow_linear = kernels.gemm[int(WeightFormat::bf16)].layout == Layout::bf16_pairs;
  t.allocate = [](const OperationTable&, size_t bytes) { return allocate(bytes); };
  t.release = [](const OperationTable&, void* memory, size_t bytes) { release(memory, bytes); };
  t.pack = pack;
  t.for_rows = for_rows;
  t.embed = embed;
  t.norm = norm;
  t.linear = linear;
  t.rope = rope;
  t.attention = attention;
  t.gather = gather;
  t.scatter = scatter;
  t.narrow = narrow;
  t.unpack = unpack;
  t.widen = widen;
  t.pool = pool;
  t.normalize = normalize;
  t.repack = repack;
  t.pack_transposed = pack_transposed;
  t.norm_backward = norm_backward;
  t.activate = activate;
  t.activate_backward = activate_backward;
  t.linear_backward = linear_backward;
  t.attention_backward = attention_backward;
  t.embed_backward = embed_backward;
  t.pool_backward = pool_backward;
  t.normalize_backward = normalize_backward;
  t.contrast = contrast_rows;
  t.adamw = adamw;
  t.squares = squares;
  return t;
}

#if defined(__x86_64__)
/// Multiplications and additions per second of a tile that stays in L1, one thread, best of a few short runs.
double tile_rate(const GemmKernel& kernel, int rows, int width) {
  constexpr int kSteps = 192;
  alignas(64) static thread_local uint32_t a[kMaxTileRows * kSteps], b[kSteps * 2 * kMaxWidth];
  alignas(64) float tile[kMaxTileRows * 2 * kMaxWidth];
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) kernel.tile[rows](a, kSteps, b, kSteps, tile);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 20.0 * 2 * rows * 2 * width * kSteps * double(group(kernel.layout)) / seconds);
  }
  return best;
}
#endif

struct Machine {
  std::vector<Kernels> kernels;  // slowest first
  std::vector<OperationTable> tables;
  std::vector<const OperationTable*> all;
  const OperationTable* chosen = nullptr;
  CpuReport report;
};

Machine& machine() {
  static Machine* machine = [] {
    auto* m = new Machine;
    m->kernels.push_back(kernels_portable);
#if defined(__x86_64__)
    if (has_avx2()) m->kernels.push_back(kernels_avx2);
    if (has_avx512()) {
      m->kernels.push_back(kernels_avx512);
      Kernels dot = kernels_avx512;
      bool differs = false;
      if (has_avx512_vnni()) dot.gemm[int(WeightFormat::i8)] = gemm_i8_avx512vnni, differs = true;
      if (has_avx512_bf16()) {
        // On some CPUs the bf16 dot product runs at half the rate of f32 FMA, on others at twice: measure, once.
        m->report.f32_gflops = tile_rate(dot.gemm[int(WeightFormat::f32)], dot.tile_rows, dot.width) / 1e9;
        m->report.bf16_dot_gflops = tile_rate(gemm_bf16_avx512bf16, dot.tile_rows, dot.width) / 1e9;
        if (m->report.bf16_dot_gflops > m->report.f32_gflops)
          dot.gemm[int(WeightFormat::bf16)] = gemm_bf16_avx512bf16, dot.attention_reduced = attention_avx512bf16, dot.finish = finish_avx512bf16,
          differs = true;
      }
      dot.name = "avx512+dot";
      if (differs) m->kernels.push_back(dot);
    }
#elif defined(__aarch64__)
    m->kernels.push_back(kernels_neon);
    if (has_dotprod()) {
      Kernels dot = kernels_neon;
      dot.name = "neon+dot";
      dot.gemm[int(WeightFormat::i8)] = gemm_i8_dotprod;
      m->kernels.push_back(dot);
    }
#endif
    m->tables.reserve(m->kernels.size());
    m->all.push_back(&reference_table());
    for (const Kernels& k : m->kernels) {
      m->tables.push_back(table_of(k));
      m->all.push_back(&m->tables.back());
    }
    m->chosen = m->all.back();
    if (const char* wanted = std::getenv("CONAN_CPU_ISA"); wanted && *wanted) {
      std::string names;
      const OperationTable* found = nullptr;
      for (const OperationTable* table : m->all) {
        names += (names.empty() ? "" : ", ") + std::string(table->name);
        if (wanted == std::string(table->name)) found = table;
      }
      if (!found) {
        delete m;
        fail("INVALID_OPTION", "CONAN_CPU_ISA: expected one of ", names, " on this CPU, got \"", wanted, "\"");
      }
      m->chosen = found;
    }
    m->report.isa = m->chosen->name;
    if (auto* k = static_cast<const Kernels*>(m->chosen->data)) {
      m->report.bf16_kernel = k->gemm[int(WeightFormat::bf16)].name;
      m->report.int8_kernel = k->gemm[int(WeightFormat::i8)].name;
    }
    return m;
  }();
  return *machine;
}

}  // namespace

int64_t attention_scratch(int head_dim) {
  return int64_t(3 * head_dim + 2 * kAttentionBlock + 16) * 2 * kMaxWidth + 2 * kAttentionBlock * (head_dim + 1);
}

}  // namespace conan::cpu

namespace conan {

const OperationTable& cpu_backend() { return *cpu::machine().chosen; }
std::vector<const OperationTable*> cpu_backends() { return cpu::machine().all; }
CpuReport cpu_report() {
  CpuReport report = cpu::machine().report;
  report.threads = ThreadPool::default_threads();
  return report;
}

}  // namespace conan

// Tile maps of the copy engine.
#include "cuda/hopper.h"

#include "cuda/cuda.h"

namespace conan::cuda {

TileMap tile_map(const void* data, int word, int64_t columns, int64_t planes, int64_t rows, int64_t plane_stride, int64_t row_stride, int box_rows) {
#ifdef __CUDACC__
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                              const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found), "tile maps");
    return reinterpret_cast<Encode>(entry);
  }();
  TileMap map;
  const cuuint64_t sizes[] = {cuuint64_t(columns), cuuint64_t(planes), cuuint64_t(rows)};
  const cuuint64_t strides[] = {cuuint64_t(plane_stride * word), cuuint64_t(row_stride * word)};  // bytes
  const cuuint32_t box[] = {cuuint32_t(128 / word), 1, cuuint32_t(box_rows)}, steps[] = {1, 1, 1};
  const CUresult made = encode(&map,
                               word == 4   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                               : word == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                           : CU_TENSOR_MAP_DATA_TYPE_UINT8,
                               3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made != CUDA_SUCCESS) fail("DEVICE_FAILED", "cuda: tile map of ", rows, " x ", planes, " x ", columns, ": error ", int(made));
  return map;
#else
  return {static_cast<char*>(const_cast<void*>(data)), columns * word, planes, rows, plane_stride * word, row_stride * word, box_rows, word};
#endif
}

}  // namespace conan::cuda

{
  "variables": {
    "conan_sources": [
      "native/base/json.cpp",
      "native/base/safetensors.cpp",
      "native/base/tensor.cpp",
      "native/base/thread_pool.cpp",
      "native/ops/ops.cpp",
      "native/cpu/reference.cpp",
      "native/cpu/backend.cpp",
      "native/cpu/kernels_portable.cpp",
      "native/models/config.cpp",
      "native/models/weights.cpp",
      "native/models/transformer.cpp",
      "native/models/text_model.cpp",
      "native/models/inspect.cpp",
      "native/models/arch/bert.cpp",
      "native/models/arch/modernbert.cpp",
      "native/models/arch/decoder.cpp"
    ],
    "conan_addon_sources": ["native/addon/addon.cpp"],
    "conan_flags": ["-O3", "-Wall", "-Wextra", "-Wno-restrict", "-fvisibility=hidden", "-ffp-contract=off"],
    "conan_linux_link_flags": ["-Wl,-z,nodelete", "-Wl,--exclude-libs,ALL", "-static-libstdc++", "-static-libgcc"],
    "conan_avx2_sources": ["native/cpu/kernels_avx2.cpp"],
    "conan_avx2_flags": ["-mavx2", "-mfma", "-mf16c"],
    "conan_avx512_sources": ["native/cpu/kernels_avx512.cpp"],
    "conan_avx512_flags": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    "conan_avx512bf16_sources": ["native/cpu/bf16_avx512bf16.cpp"],
    "conan_avx512bf16_flags": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mavx512bf16", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
    "conan_avx512vnni_sources": ["native/cpu/gemm_i8_avx512vnni.cpp"],
    "conan_avx512vnni_flags": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mavx512vnni", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
  }
}

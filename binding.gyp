# CPU-only build through node-gyp, for platforms without a prebuilt addon. Same sources and flags as CMakeLists.txt.
{
  "includes": ["native/sources.gypi"],
  "target_defaults": {
    "include_dirs": ["native"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20", "-std=c++17"],
    "cflags_cc": ["-std=c++20", "-fexceptions", "-fPIC", "<@(conan_flags)"],
    "xcode_settings": {
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "OTHER_CPLUSPLUSFLAGS": ["<@(conan_flags)"],
      "MACOSX_DEPLOYMENT_TARGET": "11.0"
    }
  },
  "targets": [
    {
      "target_name": "conan",
      "type": "static_library",
      "sources": ["<@(conan_sources)"]
    },
    {
      "target_name": "conan_embedding",
      "sources": ["<@(conan_addon_sources)"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_DEPRECATED", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "dependencies": ["conan"],
      "conditions": [
        ["target_arch=='x64'", {"dependencies": ["conan_avx2", "conan_avx512", "conan_avx512bf16", "conan_avx512vnni"]}],
        ["OS=='linux'", {"ldflags": ["<@(conan_linux_link_flags)"], "libraries": ["-ldl"]}],
        ["OS=='linux' and (target_arch=='x64' or target_arch=='arm64')", {"ldflags": ["-Wl,@<(module_root_dir)/native/base/old_glibc.flags"]}]
      ]
    }
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {"target_name": "conan_avx2", "type": "static_library", "sources": ["<@(conan_avx2_sources)"], "cflags_cc": ["<@(conan_avx2_flags)"],
         "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(conan_avx2_flags)"]}},
        {"target_name": "conan_avx512", "type": "static_library", "sources": ["<@(conan_avx512_sources)"], "cflags_cc": ["<@(conan_avx512_flags)"],
         "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(conan_avx512_flags)"]}},
        {"target_name": "conan_avx512bf16", "type": "static_library", "sources": ["<@(conan_avx512bf16_sources)"], "cflags_cc": ["<@(conan_avx512bf16_flags)"],
         "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(conan_avx512bf16_flags)"]}},
        {"target_name": "conan_avx512vnni", "type": "static_library", "sources": ["<@(conan_avx512vnni_sources)"], "cflags_cc": ["<@(conan_avx512vnni_flags)"],
         "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["<@(conan_avx512vnni_flags)"]}}
      ]
    }]
  ]
}

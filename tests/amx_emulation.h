// AMX in C++, for machines without it: compiled in front of native/gemm_amx.cpp (`-include`), it takes the place of the
// intrinsics and of what is asked of the processor and of Linux.
//
// After Intel's Software Developer's Manual: volume 1, chapter 18 (tiles, their configuration); volume 2, LDTILECFG,
// TILELOADD, TILESTORED, TILERELEASE and TDPBUSD. What would raise an exception there ends the program here. Written
// for test_amx.py:
//
//   AMX_EMULATION_LACKS=osxsave|tile|int8|palette|states|permission   a machine without that
//
// At the end it writes "products N" (of tiles) to stderr; it fails if tiles are still configured then.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // as gemm_avx512.h says
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

[[noreturn]] inline void raise(const char* exception) {
  std::fprintf(stderr, "amx_emulation: %s\n", exception);
  std::_Exit(3);
}

inline bool lacks(const char* what) {
  const char* asked = std::getenv("AMX_EMULATION_LACKS");
  return asked && !std::strcmp(asked, what);
}

struct Tile {
  int n_row = 0, row_nbytes = 0;
  unsigned char data[kRows][kRowBytes] = {};
};

struct State {
  bool configured = false;
  Tile tiles[kTiles];
};

inline thread_local State state;
inline std::atomic<long> n_product{0};

struct AtEnd {
  ~AtEnd() {
    std::fprintf(stderr, "products %ld\n", n_product.load());
    if (state.configured) raise("tiles are configured at the end");
  }
};
inline AtEnd at_end;

inline void load_config(const void* memory) {
  unsigned char config[64];
  std::memcpy(config, memory, sizeof config);
  if (lacks("permission")) raise("#NM: the system has not been asked");
  State fresh;
  if (config[0] > 1) raise("#GP: no such palette");
  fresh.configured = config[0] == 1;
  for (int i = 1; i < 16; ++i)
    if (config[i]) raise("#GP: a start row, or reserved bytes that are not zero");
  for (int i = 0; i < 16; ++i) {
    std::uint16_t row_nbytes;
    std::memcpy(&row_nbytes, config + 16 + 2 * i, sizeof row_nbytes);
    const int n_row = config[48 + i];
    if (i >= kTiles) {
      if (row_nbytes || n_row) raise("#GP: a tile beyond the last");
      continue;
    }
    if (row_nbytes > kRowBytes || n_row > kRows || !row_nbytes != !n_row) raise("#GP: no such tile");
    fresh.tiles[i].row_nbytes = row_nbytes;
    fresh.tiles[i].n_row = n_row;
  }
  state = fresh;  // tiles are zero
}

inline void release() { state = State(); }

inline Tile& tile(int i) {
  if (!state.configured || !state.tiles[i].n_row) raise("#UD: a tile that is not configured");
  return state.tiles[i];
}

inline void load(int i, const void* base, std::ptrdiff_t stride) {
  Tile& to = tile(i);
  std::memset(to.data, 0, sizeof to.data);
  for (int r = 0; r < to.n_row; ++r)
    std::memcpy(to.data[r], static_cast<const unsigned char*>(base) + r * stride,
                static_cast<std::size_t>(to.row_nbytes));
}

inline void store(int i, void* base, std::ptrdiff_t stride) {
  const Tile& from = tile(i);
  for (int r = 0; r < from.n_row; ++r)
    std::memcpy(static_cast<unsigned char*>(base) + r * stride, from.data[r], static_cast<std::size_t>(from.row_nbytes));
}

// Sums of products of unsigned bytes (of a) and signed ones (of b), which wrap around.
inline void dpbusd(int sum, int a, int b) {
  Tile& to = tile(sum);
  const Tile &from = tile(a), &by = tile(b);
  if (sum == a || sum == b || a == b) raise("#UD: one tile twice");
  if (to.n_row != from.n_row || to.row_nbytes != by.row_nbytes || from.row_nbytes != 4 * by.n_row || to.row_nbytes % 4)
    raise("#UD: tiles that do not fit");
  ++n_product;
  for (int m = 0; m < to.n_row; ++m)
    for (int n = 0; n < to.row_nbytes / 4; ++n) {
      std::uint32_t total;
      std::memcpy(&total, to.data[m] + 4 * n, sizeof total);
      for (int k = 0; k < by.n_row; ++k)
        for (int i = 0; i < 4; ++i) {
          const int weight = by.data[k][4 * n + i] < 128 ? by.data[k][4 * n + i] : by.data[k][4 * n + i] - 256;
          total += static_cast<std::uint32_t>(from.data[m][4 * k + i] * weight);
        }
      std::memcpy(to.data[m] + 4 * n, &total, sizeof total);
    }
}

inline int cpuid(unsigned leaf, unsigned part, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  *a = *b = *c = *d = 0;
  // What the processor says of the rest is asked for, too: the vectors that the tiles are used beside.
  if (leaf == 1 || leaf == 7) __get_cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 1) *c = lacks("osxsave") ? *c & ~(1u << 27) : *c | 1u << 27;
  if (leaf == 7 && part == 0) *d |= (lacks("tile") ? 0 : 1u << 24) | (lacks("int8") ? 0 : 1u << 25);
  if (leaf == 0x1D && part == 1) {
    *a = 1024u << 16 | 8192;
    *b = 8u << 16 | 64;
    *c = lacks("palette") ? 8 : 16;
  }
  return 1;
}

inline unsigned long long xgetbv(unsigned) { return lacks("states") ? 0xE7 | 1ull << 17 : 0xE7 | 3ull << 17; }

inline long arch_prctl(long number, long code, long feature) {
  if (number != SYS_arch_prctl || code != 0x1023 || feature != 18) raise("another system call");
  return lacks("permission") ? -1 : 0;
}

}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _xgetbv
#define _tile_loadconfig(config) amx_emulation::load_config(config)
#define _tile_release() amx_emulation::release()
#define _tile_loadd(to, base, stride) amx_emulation::load(to, base, static_cast<std::ptrdiff_t>(stride))
#define _tile_stored(from, base, stride) amx_emulation::store(from, base, static_cast<std::ptrdiff_t>(stride))
#define _tile_dpbusd(sum, a, b) amx_emulation::dpbusd(sum, a, b)
#define __get_cpuid(leaf, a, b, c, d) amx_emulation::cpuid(leaf, 0, a, b, c, d)
#define __get_cpuid_count(leaf, part, a, b, c, d) amx_emulation::cpuid(leaf, part, a, b, c, d)
#define _xgetbv(which) amx_emulation::xgetbv(which)
#define syscall(number, code, feature) amx_emulation::arch_prctl(number, code, feature)

// AMX: 32 rows and 32 outputs at a time in four tiles, or 16 rows and 64 outputs; what is no product is AVX-512's.
//
// Tiles as Intel's manual describes them (Software Developer's Manual, volume 1, chapter 18; TDPBUSD in volume 2). A tile
// of activations is 16 rows of 64 inputs; a tile of weights is 16 quads of 16 outputs, which is how PackedLinear has
// them; a tile of sums, 16 rows of 16 outputs, begins with the bias.
//
// A tile's registers belong to a thread and are set up and released within a product: the rest of the program, and what
// the system saves of a thread, knows nothing of them. Linux wants to be asked before a process uses them.
#include "gemm_body.h"

#if defined(__x86_64__) && defined(__LP64__) && defined(__linux__) && (defined(__GNUC__) || defined(__clang__)) && \
    defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define LMCODEC_HAS_AMX
#endif
#endif

#ifdef LMCODEC_HAS_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gemm_avx512.h"

#define LMCODEC_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")))

namespace lmcodec {
namespace {

using avx512::kVectors;

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // a row of a tile: 64 inputs, or 16 quads of inputs, or 16 sums
constexpr int kTileQuads = kTileBytes / kQuad;
constexpr int kWeightStride = kPanel * kQuad;  // bytes from a quad's weights to the next one's
constexpr int kSumStride = kPanel * 4;         // bytes from a row's sums to the next one's
constexpr int kPairRows = 2 * kTileRows;

// Below this AVX-512 takes over. By count, not measured: TDPBUSD takes 16 cycles, in which two VPDPBUSD a cycle are
// through with 2 rows (of 16 outputs and 64 inputs); setting up, and sums that go through memory, take their share, too.
constexpr int kFewRows = 8;

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_nbytes[16] = {};
  std::uint8_t n_row[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

// Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights. Of more than 16 rows, 0, 1 and 4 have the first 16 and
// 2, 3 and 5 the rest; of up to 16, 0 to 3 are the panel's four tiles of sums.
LMCODEC_AMX void configure(int n_row) {
  const bool pair = n_row > kTileRows;
  const std::uint8_t first = static_cast<std::uint8_t>(pair ? kTileRows : n_row);
  const std::uint8_t rest = static_cast<std::uint8_t>(pair ? n_row - kTileRows : n_row);
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_nbytes[i] = kTileBytes;
    config.n_row[i] = i >= 6 ? kTileRows : i == 2 || i == 3 || i == 5 ? rest : first;
  }
  // GCC believes that 8 bytes are read (GCC bug 114098).
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Sums of 17 to 32 rows with a panel: two of its tiles, then the others.
LMCODEC_AMX void multiply_pair(const std::uint8_t* u, std::size_t stride, const std::int8_t* w, int n_quad,
                               const std::int32_t* bias, std::int32_t* sums) {
  const std::size_t second = kTileRows * stride;
  for (int half = 0; half < 2; ++half, w += 2 * kTileBytes, bias += 32, sums += 32) {
    _tile_loadd(0, bias, 0);  // a stride of 0: the same in every row
    _tile_loadd(1, bias + 16, 0);
    _tile_loadd(2, bias, 0);
    _tile_loadd(3, bias + 16, 0);
    const std::uint8_t* a = u;
    const std::int8_t* b = w;
    for (int q = 0; q < n_quad; q += kTileQuads, a += kTileBytes, b += kTileQuads * kWeightStride) {
      _tile_loadd(6, b, kWeightStride);
      _tile_loadd(4, a, stride);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(5, a + second, stride);
      _tile_dpbusd(2, 5, 6);
      _tile_loadd(7, b + kTileBytes, kWeightStride);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, kSumStride);
    _tile_stored(1, sums + 16, kSumStride);
    _tile_stored(2, sums + kTileRows * kPanel, kSumStride);
    _tile_stored(3, sums + kTileRows * kPanel + 16, kSumStride);
  }
}

// Sums of 1 to 16 rows with a panel.
LMCODEC_AMX void multiply_one(const std::uint8_t* u, std::size_t stride, const std::int8_t* w, int n_quad,
                              const std::int32_t* bias, std::int32_t* sums) {
  _tile_loadd(0, bias, 0);
  _tile_loadd(1, bias + 16, 0);
  _tile_loadd(2, bias + 32, 0);
  _tile_loadd(3, bias + 48, 0);
  for (int q = 0; q < n_quad; q += kTileQuads, u += kTileBytes, w += kTileQuads * kWeightStride) {
    _tile_loadd(4, u, stride);
    _tile_loadd(6, w, kWeightStride);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, w + kTileBytes, kWeightStride);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(6, w + 2 * kTileBytes, kWeightStride);
    _tile_dpbusd(2, 4, 6);
    _tile_loadd(7, w + 3 * kTileBytes, kWeightStride);
    _tile_dpbusd(3, 4, 7);
  }
  _tile_stored(0, sums, kSumStride);
  _tile_stored(1, sums + 16, kSumStride);
  _tile_stored(2, sums + 32, kSumStride);
  _tile_stored(3, sums + 48, kSumStride);
}

// Rows first to last - 1, n at a time, with all panels. A panel's weights stay near while rows pass it.
LMCODEC_AMX void multiply(const std::uint8_t* u, std::size_t stride, int first, int last, int n,
                          const PackedLinear& linear, const Finished& to) {
  const std::size_t panel_nbytes = static_cast<std::size_t>(linear.n_quad) * kWeightStride;
  __m512i sums[kPairRows * kVectors];
  configure(n);
  for (int panel = 0; panel < linear.n_panel; ++panel) {
    const std::int8_t* w = linear.weight + static_cast<std::size_t>(panel) * panel_nbytes;
    for (int row = first; row < last; row += n) {
      (n > kTileRows ? multiply_pair : multiply_one)(u + static_cast<std::size_t>(row) * stride, stride, w,
                                                     linear.n_quad, linear.bias + panel * kPanel,
                                                     reinterpret_cast<std::int32_t*>(sums));
      avx512::finish(sums, n, row, panel, linear, to);
    }
  }
}

LMCODEC_AMX void product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear,
                         const Finished& to) {
  if (n_row < kFewRows) {
    avx512::product(u, stride, n_row, linear, to);
    return;
  }
  // GCC does not know that a load of a tile reads memory: what was written before is there from here on.
  __asm__ volatile("" : : : "memory");
  const int whole = n_row / kPairRows * kPairRows;
  if (whole) multiply(u, stride, 0, whole, kPairRows, linear, to);
  if (whole < n_row) multiply(u, stride, whole, n_row, n_row - whole, linear, to);
  _tile_release();
}

// XCR0, what the system saves of a thread.
__attribute__((target("xsave"))) unsigned long long saved_states() { return _xgetbv(0); }

// Whether the processor has tiles of the size expected and their products, the system saves them, and it lets this
// process use them (Linux, Documentation/arch/x86/xstate.rst).
bool usable() {
  constexpr unsigned kOsXsave = 1u << 27;                   // leaf 1, ecx
  constexpr unsigned kTileAndInt8 = 1u << 24 | 1u << 25;    // leaf 7, edx
  constexpr unsigned long long kTileStates = 3ull << 17;    // XTILECFG, XTILEDATA
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsXsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileAndInt8) != kTileAndInt8) return false;
  // Palette 1: bytes a tile, bytes a row and tiles, rows.
  if (!__get_cpuid_count(0x1D, 1, &a, &b, &c, &d) || a >> 16 != kTileRows * kTileBytes ||
      b != (8u << 16 | kTileBytes) || (c & 0xFFFF) != kTileRows)
    return false;
  if ((saved_states() & kTileStates) != kTileStates) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

int add_amx_kernels(NetworkKernels* kernels) {
  if (!add_avx512vnni_kernels(kernels) || !usable()) return 0;
  kernels->isa = "amx";
  kernels->quad_unit = kTileQuads;
  kernels->product = product;
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_amx_kernels(NetworkKernels*) { return 0; }
}  // namespace lmcodec

#endif

// Runs integer models without Python, so that test_native_network.py can compare builds of the kernel: other
// optimisation, sanitizers, machines.
//
//   network_driver isas
//       writes the names of the instruction sets, one a line
//   network_driver run MODEL TOKENS ISA
//       writes, for a sequence, u32 (T, B, V) frequencies; the same again step by step; for every step and stream the
//       u64 sums below every token and V; i32 (L, B, R) states after either way
//
// MODEL holds i32 V D L R M, then for each tensor i32 N, K, whether biased, shift, and weights, biases, multipliers; i32
// start states; the tables; TOKENS holds u32 T, B, B flags (cut) and (T, B) tokens.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "network.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "network_driver: %s\n", what.c_str());
  std::exit(2);
}

class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(std::string("cannot read ") + path);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  // In storage of its own size, so that a sanitizer sees what is read beyond it.
  template <typename T>
  std::unique_ptr<T[]> array(std::size_t n) {
    if (bytes_.size() - at_ < n * sizeof(T)) fail("a file ends too early");
    std::unique_ptr<T[]> values(new T[n]);
    if (n) std::memcpy(values.get(), bytes_.data() + at_, n * sizeof(T));
    at_ += n * sizeof(T);
    return values;
  }
  int number() { return array<std::int32_t>(1)[0]; }

 private:
  std::vector<char> bytes_;
  std::size_t at_ = 0;
};

template <typename T>
void write(const T* values, std::size_t n) {
  std::fwrite(values, sizeof(T), n, stdout);
}

struct Tensor {
  int n, k, biased, shift;
  std::unique_ptr<std::int8_t[]> weight;
  std::unique_ptr<std::int32_t[]> bias;
  std::unique_ptr<std::uint16_t[]> multiplier;
};

void write_states(lmcodec::Session& session, const lmcodec::NetworkShape& shape) {
  for (int i = 0; i < shape.n_layer; ++i)
    for (int b = 0; b < session.n_stream(); ++b) write(session.state(i, b), static_cast<std::size_t>(shape.recurrent));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "isas")) {
    int n;
    const lmcodec::NetworkKernels* kernels = lmcodec::network_kernels(&n);
    for (int i = 0; i < n; ++i) std::puts(kernels[i].isa);
    return 0;
  }
  if (argc != 5 || std::strcmp(argv[1], "run")) fail("isas, or run MODEL TOKENS ISA");
  Reader file(argv[2]);
  const int v = file.number(), d = file.number(), l = file.number(), r = file.number(), m = file.number();
  const lmcodec::NetworkShape shape = {v, d, l, r, m};
  std::vector<Tensor> tensors(2 + static_cast<std::size_t>(l) * (m ? 4 : 2));
  std::vector<lmcodec::LinearView> views;
  for (Tensor& t : tensors) {
    t.n = file.number();
    t.k = file.number();
    t.biased = file.number();
    t.shift = file.number();
    const std::size_t n = static_cast<std::size_t>(t.n);
    t.weight = file.array<std::int8_t>(n * static_cast<std::size_t>(t.k));
    if (t.biased) t.bias = file.array<std::int32_t>(n);
    t.multiplier = file.array<std::uint16_t>(n);
    views.push_back({t.n, t.k, t.weight.get(), t.bias.get(), t.multiplier.get(), t.shift});
  }
  const auto start = file.array<std::int32_t>(2 * static_cast<std::size_t>(l) * static_cast<std::size_t>(r));
  const auto decay = file.array<std::int32_t>(255), input_scale = file.array<std::int32_t>(255);
  const auto relu2 = file.array<std::int8_t>(128);
  const auto rsqrt = file.array<std::int32_t>(12288);
  const auto coarse = file.array<std::int32_t>(16), fine = file.array<std::int32_t>(16);
  const int norm_scale = file.number();
  const lmcodec::Network network(
      shape, views, start.get(),
      {decay.get(), input_scale.get(), relu2.get(), rsqrt.get(), coarse.get(), fine.get(), norm_scale}, argv[4]);
  tensors.clear();  // the network has its own

  Reader input(argv[3]);
  const std::size_t n_step = static_cast<std::size_t>(input.number());
  const int b = input.number();
  const auto cut = input.array<std::uint32_t>(static_cast<std::size_t>(b));
  const auto tokens = input.array<std::uint32_t>(n_step * static_cast<std::size_t>(b));
  lmcodec::Session whole(network, b, true), session(network, b);
  for (int s = 0; s < b; ++s) {
    whole.reset(s, cut[static_cast<std::size_t>(s)] != 0);
    session.reset(s, cut[static_cast<std::size_t>(s)] != 0);
  }
  whole.run(tokens.get(), n_step, [&](std::size_t, int n) {
    for (int row = 0; row < n; ++row) write(whole.frequencies(row), static_cast<std::size_t>(v));
  });
  std::vector<std::uint64_t> sums;
  for (std::size_t t = 0; t < n_step; ++t) {
    session.step(tokens.get() + t * static_cast<std::size_t>(b));
    for (int s = 0; s < b; ++s) {
      write(session.frequencies(s), static_cast<std::size_t>(v));
      for (int token = 0; token <= v; ++token) {
        sums.push_back(session.cum(s, token));
        if (session.span(s, token / 2, token) != session.cum(s, token) - session.cum(s, token / 2)) fail("a wrong span");
      }
    }
  }
  write(sums.data(), sums.size());
  write_states(whole, shape);
  write_states(session, shape);
  return std::fflush(stdout);
}

// Runs integer models without Python, so that test_native_network.py can compare builds of the kernel: other
// optimisation, sanitizers, machines.
//
//   network_driver isas
//       writes the names of the instruction sets, one a line
//   network_driver run MODEL TOKENS ISA
//       writes, for a sequence, u32 (T, B, V) frequencies; the same again step by step; for every step and stream the
//       u64 sums below every token and V; i32 (L, B, R) states after either way; a second thread that helps changes nothing
//
// MODEL is as driver_files.h has it; TOKENS holds u32 T, B, B flags (cut) and (T, B) tokens.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "driver_files.h"
#include "recurrent.h"

namespace {

using driver::fail;
using driver::Reader;
using driver::write;

void write_states(lmcodec::RecurrentSession& session, const lmcodec::RecurrentShape& shape) {
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
  const std::unique_ptr<lmcodec::RecurrentModel> owner = driver::read_network(argv[2], argv[4]);
  const lmcodec::RecurrentModel& network = *owner;
  const lmcodec::RecurrentShape& shape = network.shape();
  const int v = shape.vocab_size;

  Reader input(argv[3]);
  const std::size_t n_step = static_cast<std::size_t>(input.number());
  const int b = input.number();
  const auto cut = input.array<std::uint32_t>(static_cast<std::size_t>(b));
  const auto tokens = input.array<std::uint32_t>(n_step * static_cast<std::size_t>(b));
  lmcodec::RecurrentSession whole(network, b, {}, true), session(network, b), helped(network, b, {lmcodec::Help::kThread, false});
  for (int s = 0; s < b; ++s) {
    whole.begin(s, cut[static_cast<std::size_t>(s)] != 0);
    session.begin(s, cut[static_cast<std::size_t>(s)] != 0);
    helped.begin(s, cut[static_cast<std::size_t>(s)] != 0);
  }
  whole.run(tokens.get(), n_step, [&](std::size_t, int n) {
    for (int row = 0; row < n; ++row) write(whole.frequencies(row), static_cast<std::size_t>(v));
  });
  std::vector<std::uint64_t> sums;
  for (std::size_t t = 0; t < n_step; ++t) {
    session.step(tokens.get() + t * static_cast<std::size_t>(b));
    helped.step(tokens.get() + t * static_cast<std::size_t>(b));
    for (int s = 0; s < b; ++s) {
      const std::size_t nbytes = static_cast<std::size_t>(v) * sizeof(std::uint32_t);
      if (std::memcmp(helped.frequencies(s), session.frequencies(s), nbytes)) fail("another answer with a helper");
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

// Runs transformers without Python, so that test_transformer_kernel.py can compare builds of the kernel: other
// optimisation, sanitizers, machines.
//
//   transformer_driver isas
//       writes the names of the instruction sets, one a line
//   transformer_driver run MODEL TOKENS ISA [ROUNDING]
//       writes, for a sequence, i32 (T, B, V) logits; for the same step by step u32 (T, B, V) frequencies; a second thread
//       that helps changes nothing. ROUNDING: any word; the process rounds upward then, and flushes subnormal numbers
//
// MODEL holds i32 V D L H G E F W S, whether there are biases, norms of queries and keys, a tied head; i32 how many layers
// are without rotation and which; the members from layer_norm to mlp_bias, P, the sliding layers' window and sinks, how
// many slide and which; f32 eps, the scores' and the logits' scale and caps; i32 how many tensors; for each tensor i32 N, K, whether it has
// weights and a bias, then weights, scales, biases; i32 how many vectors; for each vector its length and values; f64 rotary; i32 tables of
// powers. TOKENS holds u32 T, B and (T, B) tokens.
#include <cfenv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "driver_files.h"
#include "transformer.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using driver::fail;
using driver::Reader;
using driver::write;

struct Tensor {
  std::unique_ptr<std::int8_t[]> weight;
  std::unique_ptr<float[]> scale, bias;
};

std::unique_ptr<lmcodec::TransformerModel> read_model(const char* path, const char* isa) {
  Reader file(path);
  lmcodec::TransformerShape shape = {};
  for (int* number : {&shape.vocab_size, &shape.dim, &shape.n_layer, &shape.n_head, &shape.n_kv_head, &shape.head_dim,
                      &shape.mlp, &shape.window, &shape.sinks})
    *number = file.number();
  for (bool* flag : {&shape.qkv_bias, &shape.qk_norm, &shape.tied}) *flag = file.number() != 0;
  shape.no_rotary.resize(static_cast<std::size_t>(file.number()));
  for (int& layer : shape.no_rotary) layer = file.number();
  for (bool* flag : {&shape.layer_norm, &shape.pre_norm, &shape.post_norm, &shape.parallel, &shape.qk_norm_whole,
                     &shape.gated})
    *flag = file.number() != 0;
  shape.activation = static_cast<lmcodec::Activation>(file.number());
  for (bool* flag : {&shape.out_bias, &shape.mlp_bias}) *flag = file.number() != 0;
  for (int* number : {&shape.n_position, &shape.sliding_window, &shape.sliding_sinks}) *number = file.number();
  shape.sliding.resize(static_cast<std::size_t>(file.number()));
  for (int& layer : shape.sliding) layer = file.number();
  for (float* number : {&shape.norm_eps, &shape.score_scale, &shape.logit_scale, &shape.score_cap, &shape.logit_cap}) *number = file.array<float>(1)[0];
  std::vector<Tensor> tensors(static_cast<std::size_t>(file.number()));
  std::vector<lmcodec::FloatLinearView> views;
  for (Tensor& t : tensors) {
    const std::size_t n = static_cast<std::size_t>(file.number()), k = static_cast<std::size_t>(file.number());
    const bool weighted = file.number() != 0, biased = file.number() != 0;
    if (weighted) {
      t.weight = file.array<std::int8_t>(n * k);
      t.scale = file.array<float>(n);
    }
    if (biased) t.bias = file.array<float>(n);
    views.push_back({n, k, t.weight.get(), t.scale.get(), t.bias.get()});
  }
  std::vector<std::unique_ptr<float[]>> vectors(static_cast<std::size_t>(file.number()));
  std::vector<lmcodec::VectorView> vector_views;
  for (auto& vector : vectors) {
    const std::size_t n = static_cast<std::size_t>(file.number());
    vector = file.array<float>(n);
    vector_views.push_back({n, vector.get()});
  }
  const auto rotary = file.array<double>(static_cast<std::size_t>(shape.sliding.empty() ? shape.head_dim : 2 * shape.head_dim));
  const auto coarse = file.array<std::int32_t>(16), fine = file.array<std::int32_t>(16);
  return std::make_unique<lmcodec::TransformerModel>(shape, views, vector_views, rotary.get(), coarse.get(), fine.get(),
                                                     isa);
}

void round_upward() {
  if (std::fesetround(FE_UPWARD)) fail("no other rounding mode");
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
  std::uint64_t word;
  __asm__ volatile("mrs %0, fpcr" : "=r"(word));
  __asm__ volatile("msr fpcr, %0" : : "r"(word | 1u << 24));
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "isas")) {
    int n;
    const lmcodec::NetworkKernels* kernels = lmcodec::network_kernels(&n);
    for (int i = 0; i < n; ++i) std::puts(kernels[i].isa);
    return 0;
  }
  if (argc < 5 || std::strcmp(argv[1], "run")) fail("isas, or run MODEL TOKENS ISA [ROUNDING]");
  if (argc == 6) round_upward();
  const std::unique_ptr<lmcodec::TransformerModel> owner = read_model(argv[2], argv[4]);
  const lmcodec::TransformerModel& model = *owner;
  const std::size_t v = model.n_token();

  Reader input(argv[3]);
  const std::size_t n_step = static_cast<std::size_t>(input.number());
  const int b = input.number();
  const std::size_t width = static_cast<std::size_t>(b);
  const auto tokens = input.array<std::uint32_t>(n_step * width);
  lmcodec::TransformerSession whole(model, b, {}, true), session(model, b), helped(model, b, {lmcodec::Help::kThread, false});
  whole.run(tokens.get(), n_step, [&](std::size_t, int n) {
    for (int row = 0; row < n; ++row) write(whole.logits(row), v);
  });
  for (std::size_t t = 0; t < n_step; ++t) {
    session.step(tokens.get() + t * width);
    helped.step(tokens.get() + t * width);
    for (int s = 0; s < b; ++s) {
      if (std::memcmp(helped.frequencies(s), session.frequencies(s), v * sizeof(std::uint32_t)))
        fail("another answer with a helper");
      write(session.frequencies(s), v);
    }
  }
  if (argc == 6 && std::fegetround() != FE_UPWARD) fail("the rounding mode is not the one that was set");
  return std::fflush(stdout);
}

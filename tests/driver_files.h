// What the drivers that run language models read: files of numbers, and a network in one.
//
// A model's file holds i32 V D L R M, then for each tensor i32 N, K, whether biased, shift, and weights, biases,
// multipliers; i32 start states; the tables.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "recurrent.h"

namespace driver {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
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
  // How many values of a type are left.
  template <typename T>
  std::size_t left() const {
    return (bytes_.size() - at_) / sizeof(T);
  }

 private:
  std::vector<char> bytes_;
  std::size_t at_ = 0;
};

template <typename T>
void write(const T* values, std::size_t n) {
  if (n) std::fwrite(values, sizeof(T), n, stdout);
}

inline std::unique_ptr<lmcodec::RecurrentModel> read_network(const char* path, const char* isa) {
  struct Tensor {
    int n, k, biased, shift;
    std::unique_ptr<std::int8_t[]> weight;
    std::unique_ptr<std::int32_t[]> bias;
    std::unique_ptr<std::uint16_t[]> multiplier;
  };
  Reader file(path);
  const int v = file.number(), d = file.number(), l = file.number(), r = file.number(), m = file.number();
  const lmcodec::RecurrentShape shape = {v, d, l, r, m};
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
  return std::make_unique<lmcodec::RecurrentModel>(
      shape, views, start.get(),
      lmcodec::TableViews{decay.get(), input_scale.get(), relu2.get(), rsqrt.get(), coarse.get(), fine.get(), norm_scale},
      isa);
}

}  // namespace driver

#include "module_range.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "module_gil.h"
#include "range_encoder.h"
#include "range_width.h"

namespace nb = nanobind;

namespace {

using Bits = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Shares = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Widths = nb::ndarray<std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(const Shares& p16) {
  for (std::size_t i = 0; i < p16.size(); ++i)
    if (!p16.data()[i]) throw nb::value_error("a probability is 1 to 65535");
}

std::uint64_t widths(Bits bits, Shares p16, std::uint64_t range, Widths before, Widths after) {
  const std::size_t n = bits.size();
  if (p16.size() != n || before.size() < n || after.size() < n) throw nb::value_error("lengths do not fit");
  if (range >> 32 == 0) throw nb::value_error("a range is at least 2^32");
  check(p16);
  const lmcodec::GilReleased released;
  return lmcodec::range_widths(bits.data(), p16.data(), n, range, before.data(), after.data());
}

// With the names and values of constriction's RangeEncoder.
class Encoder {
 public:
  void encode(Bits bits, Shares p16) {
    const std::size_t n = bits.size();
    if (p16.size() != n) throw nb::value_error("lengths do not fit");
    check(p16);
    const lmcodec::GilReleased released;
    const std::uint8_t* b = bits.data();
    const std::uint16_t* p = p16.data();
    for (std::size_t i = 0; i < n; ++i) encoder_.encode(b[i], p[i]);
  }

  // Words that can no longer be shifted, and the interval behind them: its lower end, its width.
  std::pair<std::size_t, std::pair<std::uint64_t, std::uint64_t>> pos() const {
    return {encoder_.n_word(), {encoder_.lower(), encoder_.range()}};
  }

  nb::object get_compressed() const {
    auto* words = new std::vector<std::uint32_t>(encoder_.sealed());
    nb::capsule owner(words, [](void* p) noexcept { delete static_cast<std::vector<std::uint32_t>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>(words->data(), {words->size()}, owner));
  }

 private:
  lmcodec::RangeEncoder encoder_;
};

}  // namespace

namespace lmcodec {

void bind_range(nb::module_& m) {
  nb::class_<Encoder>(m, "RangeEncoder", "Writes the words that constriction's range encoder writes.")
      .def(nb::init<>())
      .def("encode", &Encoder::encode, nb::arg("bits"), nb::arg("p16"))
      .def("pos", &Encoder::pos)
      .def("get_compressed", &Encoder::get_compressed);
  m.def("range_widths", &widths, nb::arg("bits"), nb::arg("p16"), nb::arg("range"), nb::arg("before"),
        nb::arg("after"), "Widths of the range coder's interval before and after each decision; returns the last one.");
}

}  // namespace lmcodec
